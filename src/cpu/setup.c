/* Layout of a CPU's memory, and its power-on state (SDM 10.1.1, table 10-1). */
#include "cpu/setup.h"
#include "cpu/block.h"
#include "cpu/fpu.h"
#include "cpu/msr.h"
#include "cpu/native.h"

struct layout {
	size_t cpu, xsave, tlb, jcache, blocks, decoder, native, lapic, end;
};

static size_t take(size_t *at, size_t n)
{
	size_t r = ALIGN_UP(*at, 64);
	*at = r + n;
	return r;
}

static struct layout layout_of(const struct cpu_config *cfg)
{
	struct layout l;
	size_t at = 0;
	l.cpu = take(&at, sizeof(struct cpu));
	l.xsave = take(&at, fpu_state_size());
	l.tlb = take(&at, sizeof(struct tlb_entry) * TLB_SIZE * TLB_CTX_COUNT);
	l.jcache = take(&at, sizeof(struct jcache_entry) << JCACHE_BITS);
	l.decoder = take(&at, decoder_size());
	l.native = take(&at, sizeof(struct native));
	l.lapic = take(&at, lapic_size());
	at = ALIGN_UP(at, PAGE_SIZE);
	l.blocks = take(&at, blockcache_size(cfg->block_arena));
	l.end = at;
	return l;
}

size_t cpu_memory_size(const struct cpu_config *cfg) { return ALIGN_UP(layout_of(cfg).end, PAGE_SIZE); }

struct cpu *cpu_init(void *mem, const struct cpu_config *cfg)
{
	const struct layout l = layout_of(cfg);
	u8 *base = mem;
	struct cpu *c = (struct cpu *)(base + l.cpu);
	c->id = cfg->id;
	c->ram = cfg->ram;
	c->cpuid = cfg->cpuid;
	c->tsc_khz = cfg->tsc_khz;
	c->deterministic = cfg->deterministic;
	c->det_rng = cfg->det_seed;
	c->vendor_intel = cfg->vendor_intel;
	c->maxphyaddr = cfg->maxphyaddr;
	c->gpa_limit = GPA(BIT(cfg->maxphyaddr));
	c->xsave = base + l.xsave;
	c->xsave_size = fpu_state_size();
	struct tlb_entry *tlb = (struct tlb_entry *)(base + l.tlb);
	for (unsigned k = 0; k < TLB_CTX_COUNT; k++) {
		c->tlbs[k] = tlb + k * TLB_SIZE;
		for (unsigned j = 0; j < TLB_SIZE; j++)
			c->tlbs[k][j].rtag = c->tlbs[k][j].wtag = c->tlbs[k][j].xtag = TLB_NONE;
		for (unsigned j = 0; k < TLB_EMPTY && j < FTLB_SIZE; j++)
			c->ftlb[k].read[j] = c->ftlb[k].write[j] = FTLB_NONE(j);
	}
	c->jcache = (struct jcache_entry *)(base + l.jcache);
	c->decoder = decoder_init(base + l.decoder);
	c->native = (struct native *)(base + l.native);
	native_init(c->native, cfg->stub_rw, cfg->stub_rx, cfg->stub_size, cfg->scratch);
	c->blocks = blockcache_init(base + l.blocks, cfg->block_arena);
	c->block_limit = cfg->block_limit && cfg->block_limit < BLOCK_MAX_INSNS ? cfg->block_limit : BLOCK_MAX_INSNS;
	c->code_gen[0] = c->code_gen[1] = 1;
	c->stop_at = ~0ull;
	if (cfg->lapic) {
		c->lapic = (struct lapic *)(base + l.lapic);
		lapic_reset(c->lapic, cfg->id, cfg->bsp);
	}
	msr_reset(c, cfg->bsp);
	c->bsp = cfg->bsp;
	c->wait_sipi = !cfg->bsp;
	cpu_reset(c, false);
	return c;
}

static struct seg real_segment(u16 sel, u64 base, u8 type)
{
	return (struct seg){ .sel = sel, .base = base, .limit = 0xffff, .type = type, .s = true, .present = true };
}

void cpu_reset(struct cpu *c, bool init)
{
	for (unsigned k = 0; k < 16; k++)
		c->r[k] = 0;
	u32 id[4] = { 0 };
	if (c->cpuid)
		cpuid_get(c, 1, 0, id);
	c->r[RDX] = id[0];
	c->r[R_ZERO] = 0;
	cpu_set_rflags(c, FL_FIXED);
	c->rip = 0xfff0;
	c->seg[CS] = real_segment(0xf000, 0xffff0000, 0xb);
	for (unsigned k = 0; k < SREG_COUNT; k++)
		if (k != CS)
			c->seg[k] = real_segment(0, 0, 3);
	c->gdtr = c->idtr = (struct dtr){ .limit = 0xffff };
	c->ldtr = (struct seg){ .limit = 0xffff, .type = 2, .present = true };
	c->tr = (struct seg){ .limit = 0xffff, .type = 0xb, .present = true };
	c->cr0 = (init ? c->cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW) | CR0_ET;
	c->cr2 = c->cr3 = c->cr4 = c->cr8 = c->efer = 0;
	c->dr[0] = c->dr[1] = c->dr[2] = c->dr[3] = 0;
	c->dr6 = DR6_FIXED;
	c->dr7 = DR7_FIXED;
	c->cpl = 0;
	c->irq_shadow = c->nmi_blocked = false;
	c->exit = CPU_EXIT_NONE;
	c->mmio.n = c->mmio.next = 0;
	c->mmio.pending = c->io.done = false;
	if (!init) {
		c->xcr0 = 1;
	} else {
		lapic_init_signal(c);
	}
	fpu_reset(c, init);
	mmu_flush_all(c);
	cpu_update_mode(c);
}
