/* Checkpoints of deterministic runs: the architectural state after a counted
 * number of instructions, for comparing two runs or two engines. */
#include "cpu/fpu.h"
#include "cpu/msr.h"
#include "engine/soft.h"

/* FNV-1a over 64-bit words: differences matter here, not adversaries. */
static u64 mix(u64 h, u64 v) { return (h ^ v) * 0x100000001b3ull; }
static u64 mix_bytes(u64 h, const void *p, size_t n)
{
	const u8 *b = p;
	for (size_t k = 0; k < n; k++)
		h = mix(h, b[k]);
	return h;
}
#define HASH_SEED 0xcbf29ce484222325ull

static u64 seg_hash(u64 h, const struct seg *s)
{
	h = mix(h, s->sel | (u64)s->type << 16 | (u64)s->dpl << 24 | (u64)s->s << 32 | (u64)s->present << 33 |
			   (u64)s->l << 34 | (u64)s->db << 35 | (u64)s->g << 36 | (u64)s->unusable << 37);
	h = mix(h, s->base);
	return mix(h, s->limit);
}

static u64 fpu_hash(struct cpu *c)
{
	u64 h = HASH_SEED;
	u8 buf[64];
	for (unsigned n = 0; n < 32; n++) {
		fpu_get_vector(c, n, buf);
		h = mix_bytes(h, buf, sizeof buf);
	}
	for (unsigned n = 0; n < 8; n++) {
		h = mix(h, fpu_get_k(c, n));
		fpu_get_st(c, n, buf);
		h = mix_bytes(h, buf, 10);
	}
	h = mix(h, fpu_get_mxcsr(c));
	return mix(h, fpu_get_fcw(c) | (u64)fpu_get_fsw(c) << 16);
}

static u64 ram_hash(const struct ram *ram)
{
	u64 h = HASH_SEED;
	for (unsigned k = 0; k < ram->n; k++) {
		const u64 *p = (const u64 *)ram->slot[k].hva;
		for (u64 n = 0; n < ram->slot[k].size / 8; n++)
			h = mix(h, p[n]);
	}
	return h;
}

u64 soft_next_stop(const struct vcpu *v)
{
	const struct hv_config *cfg = &v->hv->cfg;
	u64 stop = cfg->stop_at_insns ? cfg->stop_at_insns : ~0ull;
	if (v->cpu->insns >= stop)
		return ~0ull;
	if (cfg->checkpoint_every) {
		u64 every = cfg->checkpoint_every, next = (v->cpu->insns / every + 1) * every;
		if (next < cfg->checkpoint_from)
			next = (cfg->checkpoint_from + every - 1) / every * every;
		if (next < stop)
			stop = next;
	}
	return stop;
}

void soft_checkpoint(struct vcpu *v, bool last)
{
	const struct hv_config *cfg = &v->hv->cfg;
	struct cpu *c = v->cpu;
	if (!cfg->checkpoint_every || !cfg->checkpoints || (!last && (c->insns % cfg->checkpoint_every || c->insns < cfg->checkpoint_from)))
		return;
	struct hv_checkpoint cp = { .insns = c->insns, .rip = c->rip, .rflags = cpu_rflags(c), .cr0 = c->cr0, .cr2 = c->cr2,
		.cr3 = c->cr3, .cr4 = c->cr4, .efer = c->efer, .fs_base = c->seg[FS].base, .gs_base = c->seg[GS].base,
		.kernel_gs_base = c->kernel_gs_base };
	for (unsigned n = 0; n < 16; n++)
		cp.r[n] = c->r[n];
	cp.seg_hash = HASH_SEED;
	for (unsigned n = 0; n < SREG_COUNT; n++)
		cp.seg_hash = seg_hash(cp.seg_hash, &c->seg[n]);
	cp.seg_hash = seg_hash(seg_hash(cp.seg_hash, &c->tr), &c->ldtr);
	cp.seg_hash = mix(mix(mix(mix(cp.seg_hash, c->gdtr.base), c->gdtr.limit), c->idtr.base), c->idtr.limit);
	cp.fpu_hash = fpu_hash(c);
	cp.apic_hash = mix_bytes(HASH_SEED, c->lapic, lapic_size());
	if (last)
		cp.ram_hash = ram_hash(c->ram);
	struct hv_checkpoints *list = cfg->checkpoints;
	u64 n = __atomic_load_n(&list->n, __ATOMIC_RELAXED);
	if (n < list->cap) {
		list->rec[n] = cp;
		__atomic_store_n(&list->n, n + 1, __ATOMIC_RELEASE);
	}
}
