/* The CPU as an executor, interpreted or translated: a guest of a few dozen pages in which user code at CPL 3 is the instruction under
 * test, with Linux's selectors, control registers and page rights.  Every exception is delivered through the guest's
 * IDT to a handler that consists of HLT: the CPU's state at that exit and the frame on the guest's kernel stack are the
 * result.
 *
 * "translate" translates every block before its first execution, and checks what was emitted.  "translate-hot" runs every case twice and shows the
 * second run: TLB filled, blocks linked, the vector state live in the host's registers.  "translate-small" does so with
 * hardly any room for translations. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/block.h"
#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/fpu.h"
#include "cpu/native.h"
#include "cpu/seg.h"
#include "cpu/setup.h"
#include "engine/tr/translate.h"
#include "engine/rt/rt.h"
#include "gen_internal.h"

/* Guest-physical pages. */
enum {
	PG_PML4, PG_LOW_PDPT, PG_LOW_PD, PG_LOW_PT, PG_HIGH_PDPT, PG_HIGH_PD, PG_HIGH_PT,
	PG_GDT, PG_IDT, PG_TSS, PG_STACK, PG_HANDLERS, PG_CODE = 16, PG_DATA = PG_CODE + CODE_PAGES,
	PG_COUNT = PG_DATA + DATA_PAGES,
};
#define RAM_SIZE (PG_COUNT * PAGE_SIZE)
#define HIGH_BASE 0xffff800000000000ull /* linear address of guest-physical 0 for the kernel's pages */
#define HANDLER(v) (HIGH_BASE + PG_HANDLERS * PAGE_SIZE + (u64)(v) * 16)
#define STUB_SIZE (4 * MiB)
#define BLOCK_ARENA (8 * MiB)
#define MAX_INSNS 100000 /* a case that runs longer is an endless loop */

struct interp {
	struct executor e;
	struct insn_batch batch;
	struct insn_result result[BATCH_CASES];
	struct ram ram;
	u64 code[PG_COUNT];
	u8 *mem;
	struct cpu *cpu;
	struct cpuid_table cpuid;
	struct seg seg[SREG_COUNT], ldtr, tr;
	struct translator translator;
	bool hot; /* two runs of every case */
};

static struct interp *running; /* for the signal handler and the assertion hook */
static const struct insn_case *running_case;

static void die_here(const char *what)
{
	fprintf(stderr, "insn: %s: %s", running ? running->e.name : "cpu", what);
	if (running_case) {
		fprintf(stderr, "; case at rip %llx:", (unsigned long long)running_case->rip);
		for (unsigned i = 0; i < running_case->len; i++)
			fprintf(stderr, " %02x", running_case->bytes[i]);
		fprintf(stderr, " (case %d of the batch)", (int)(running_case - running->batch.c));
	}
	fprintf(stderr, "\n");
}

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	char text[300];
	snprintf(text, sizeof(text), "%s:%d: assertion %s", file, line, expr);
	die_here(text);
	abort();
}

static void on_fault(int sig, siginfo_t *info, void *ucv)
{
	ucontext_t *uc = ucv;
	if (running && native_fault(running->cpu, sig, (int)uc->uc_mcontext.gregs[REG_TRAPNO],
				    (u64)uc->uc_mcontext.gregs[REG_ERR], uc))
		return;
	u64 pc = (u64)uc->uc_mcontext.gregs[REG_RIP];
	if (running && translate_fault(running->cpu, &pc)) {
		uc->uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
		return;
	}
	char text[200];
	snprintf(text, sizeof(text), "signal %d, host rip %llx, address %p", sig,
		 (unsigned long long)uc->uc_mcontext.gregs[REG_RIP], info->si_addr);
	die_here(text);
	signal(sig, SIG_DFL);
}

static u64 *page(struct interp *t, unsigned n) { return (u64 *)(t->mem + n * PAGE_SIZE); }

static void build_tables(struct interp *t)
{
	const u64 tab = PTE_P | PTE_W | PTE_U;
	page(t, PG_PML4)[0] = PG_LOW_PDPT * PAGE_SIZE | tab;
	page(t, PG_LOW_PDPT)[DATA_BASE >> 30] = PG_LOW_PD * PAGE_SIZE | tab;
	page(t, PG_LOW_PD)[DATA_BASE >> 21 & 511] = PG_LOW_PT * PAGE_SIZE | tab;
	_Static_assert(DATA_BASE >> 21 == CODE_BASE >> 21, "one page table");
	for (unsigned i = 0; i < CODE_PAGES; i++)
		page(t, PG_LOW_PT)[(CODE_BASE >> 12 & 511) + i] = (PG_CODE + i) * PAGE_SIZE | PTE_P | PTE_W | PTE_U;
	for (unsigned i = 0; i < DATA_PAGES; i++)
		page(t, PG_LOW_PT)[(DATA_BASE >> 12 & 511) + i] =
			(PG_DATA + i) * PAGE_SIZE | PTE_P | PTE_U | PTE_NX | (i < DATA_RW_PAGES ? PTE_W : 0);
	page(t, PG_PML4)[HIGH_BASE >> 39 & 511] = PG_HIGH_PDPT * PAGE_SIZE | PTE_P | PTE_W;
	page(t, PG_HIGH_PDPT)[0] = PG_HIGH_PD * PAGE_SIZE | PTE_P | PTE_W;
	page(t, PG_HIGH_PD)[0] = PG_HIGH_PT * PAGE_SIZE | PTE_P | PTE_W;
	for (unsigned i = PG_GDT; i <= PG_HANDLERS; i++)
		page(t, PG_HIGH_PT)[i] = i * PAGE_SIZE | PTE_P | PTE_W | PTE_G;

	/* Linux's GDT (arch/x86/include/asm/segment.h). */
	u64 *gdt = page(t, PG_GDT);
	gdt[1] = 0x00cf9b000000ffff;
	gdt[2] = 0x00af9b000000ffff;
	gdt[3] = 0x00cf93000000ffff;
	gdt[4] = 0x00cffb000000ffff;
	gdt[5] = 0x00cff3000000ffff;
	gdt[6] = 0x00affb000000ffff;
	u64 tss = HIGH_BASE + PG_TSS * PAGE_SIZE;
	gdt[8] = 0x67 | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56;
	gdt[9] = tss >> 32;
	gdt[15] = 0x0040f50000000000;
	u64 rsp0 = HIGH_BASE + (PG_STACK + 1) * PAGE_SIZE;
	memcpy((u8 *)page(t, PG_TSS) + 4, &rsp0, 8);
	const u16 no_io_map = 0x8000; /* beyond the limit: no port is permitted */
	memcpy((u8 *)page(t, PG_TSS) + 102, &no_io_map, 2);
	for (unsigned v = 0; v < 256; v++) {
		u64 h = HANDLER(v), *idt = page(t, PG_IDT) + v * 2;
		u64 type = v == 3 || v == 4 || v == 0x80 ? 0xee : 0x8e;
		idt[0] = (h & 0xffff) | 0x10 << 16 | type << 40 | (h >> 16 & 0xffff) << 48;
		idt[1] = h >> 32;
		((u8 *)page(t, PG_HANDLERS))[v * 16] = 0xf4;
	}
}

static void user_state(struct interp *t)
{
	struct cpu *c = t->cpu;
	const u64 *gdt = page(t, PG_GDT);
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | CR4_UMIP | CR4_SMEP | CR4_SMAP;
	c->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	c->cr3 = PG_PML4 * PAGE_SIZE;
	c->xcr0 = host.xcr0 & XCR0_OFFERED;
	c->gdtr = (struct dtr){ .base = HIGH_BASE + PG_GDT * PAGE_SIZE, .limit = 127 };
	c->idtr = (struct dtr){ .base = HIGH_BASE + PG_IDT * PAGE_SIZE, .limit = 4095 };
	desc_unpack(&t->tr, gdt[8], 0x40);
	t->tr.base = HIGH_BASE + PG_TSS * PAGE_SIZE;
	t->ldtr = (struct seg){ .unusable = true };
	desc_unpack(&t->seg[CS], gdt[6], SEL_USER_CS);
	desc_unpack(&t->seg[SS], gdt[5], SEL_USER_DS);
	c->cpl = 3;
	for (unsigned s = 0; s < SREG_COUNT; s++)
		if (s != CS && s != SS) {
			seg_set_null(c, (enum sreg)s, 0);
			t->seg[s] = c->seg[s];
			t->seg[s].base = 0;
		}
}

static void checked_hot(struct cpu *c, struct block *b)
{
	const size_t from = c->translator->used;
	rt_hot(c, b);
	if (b->code && !check_emitted(c->translator, c->ram, b, from)) {
		die_here("translated code breaks its rules");
		exit(1);
	}
}

static struct executor *create(const struct executor *kind, bool translate, bool hot, bool small)
{
	struct interp *t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t == MAP_FAILED)
		abort();
	t->e = *kind;
	t->hot = hot;
	t->e.batch = &t->batch;
	t->e.result = t->result;
	t->mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	t->ram.n = 1;
	t->ram.slot[0] = (struct ram_slot){ .size = RAM_SIZE, .hva = t->mem, .fd = -1, .code = t->code };
	cpuid_table_init(&t->cpuid, 1, 2000000);

	int fd = memfd_create("stubs", MFD_CLOEXEC);
	if (t->mem == MAP_FAILED || fd < 0 || ftruncate(fd, STUB_SIZE))
		abort();
	void *rw = mmap(NULL, STUB_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *rx = mmap(NULL, STUB_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	u8 *scratch = mmap(NULL, NATIVE_SCRATCH_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rw == MAP_FAILED || rx == MAP_FAILED || (void *)scratch == MAP_FAILED)
		abort();
	close(fd);
	mprotect(scratch, PAGE_SIZE, PROT_NONE);
	mprotect(scratch + (NATIVE_SCRATCH_PAGES - 1) * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	struct cpu_config cfg = {
		.bsp = true, .ram = &t->ram, .cpuid = &t->cpuid, .block_arena = BLOCK_ARENA, .stub_rw = rw, .stub_rx = rx,
		.stub_size = STUB_SIZE, .scratch = scratch, .tsc_khz = 2000000, .vendor_intel = t->cpuid.intel,
		.maxphyaddr = t->cpuid.maxphyaddr,
	};
	size_t size = cpu_memory_size(&cfg);
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		abort();
	t->cpu = cpu_init(mem, &cfg);
	build_tables(t);
	user_state(t);
	int r = translate ? translate_attach(&t->translator, t->cpu, 1) : 0;
	if (r) {
		fprintf(stderr, "insn: translator: %s\n", strerror(-r));
		exit(r == -ENOTSUP ? 77 : 2);
	}
	if (translate)
		translate_thread(t->cpu);
	if (translate && !hot)
		t->cpu->tr_hot = checked_hot;
	if (small) {
		t->translator.size = t->translator.base + 24 * KiB;
		t->translator.sites_size = 12 * KiB;
	}

	size_t stack = 256 * 1024;
	stack_t ss = { .ss_sp = mmap(NULL, stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), .ss_size = stack };
	struct sigaction sa = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sa.sa_sigaction = on_fault;
	static const int sigs[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	sigaltstack(&ss, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(sigs); i++)
		sigaction(sigs[i], &sa, NULL);
	return &t->e;
}

static void interp_result(struct interp *t, enum cpu_exit exit, struct insn_result *r)
{
	struct cpu *c = t->cpu;
	r->error = 0;
	r->cr2 = 0;
	r->why[0] = 0;
	r->end = END_OTHER;
	u64 v = (c->rip - 1 - HANDLER(0)) / 16;
	if (exit == CPU_EXIT_BUDGET) {
		r->end = END_TIMEOUT;
	} else if (exit != CPU_EXIT_HLT || v > 255 || c->cpl) {
		snprintf(r->why, sizeof(r->why), "exit %d at rip %llx: %s", (int)exit, (unsigned long long)c->rip,
			 exit == CPU_EXIT_UNIMPLEMENTED ? c->why : "");
	} else {
		u64 sp = c->r[RSP] - (HIGH_BASE + PG_STACK * PAGE_SIZE);
		u64 frame[6] = { 0 };
		bool has_error = sp == PAGE_SIZE - 48;
		if (sp != PAGE_SIZE - 40 && !has_error) {
			snprintf(r->why, sizeof(r->why), "exception frame at %llx", (unsigned long long)c->r[RSP]);
			return;
		}
		memcpy(frame + !has_error, t->mem + PG_STACK * PAGE_SIZE + sp, has_error ? 48 : 40);
		r->end = (u32)v;
		r->error = (u32)frame[0];
		r->cr2 = v == VEC_PF ? c->cr2 : 0;
		for (unsigned i = 0; i < 16; i++)
			r->gpr[i] = c->r[i];
		r->rip = frame[1];
		r->cs = (u16)frame[2];
		r->rflags = frame[3];
		r->gpr[RSP] = frame[4];
		r->ss = (u16)frame[5];
	}
	r->ds = c->seg[DS].sel;
	r->es = c->seg[ES].sel;
	r->fs = c->seg[FS].sel;
	r->gs = c->seg[GS].sel;
	r->fs_base = c->seg[FS].base;
	r->gs_base = c->seg[GS].base;
	/* Through the registers once: that gives the image the form that hardware gives it. */
	fpu_load(c);
	fpu_save(c);
	memcpy(r->xsave, c->xsave, host.xsave_size < c->xsave_size ? host.xsave_size : c->xsave_size);
}

static void interp_run(struct interp *t, const struct insn_case *k, struct insn_result *r, bool live)
{
	struct cpu *c = t->cpu;
	u8 *code = t->mem + PG_CODE * PAGE_SIZE, *data = t->mem + PG_DATA * PAGE_SIZE;
	arena_place(code, data, k);
	memcpy(c->r, k->gpr, sizeof(k->gpr));
	c->rip = k->rip;
	memcpy(c->seg, t->seg, sizeof(c->seg));
	c->ldtr = t->ldtr;
	c->tr = t->tr;
	c->seg[FS].base = k->fs_base;
	c->seg[GS].base = k->gs_base;
	cpu_set_rflags(c, k->rflags | FL_IF | FL_FIXED);
	c->cpl = 3;
	c->irq_shadow = false;
	c->db_pending = 0;
	c->dr6 = DR6_FIXED;
	memcpy(c->xsave, t->batch.vec[k->vec], host.xsave_size < c->xsave_size ? host.xsave_size : c->xsave_size);
	u64 bv = c->xcr0;
	memcpy(c->xsave + XS_BV, &bv, 8);
	memcpy(&c->fip, c->xsave + FX_FIP, 8); /* kept apart while the state is live */
	memcpy(&c->fdp, c->xsave + FX_FDP, 8);
	if (k->vec_reg != 0xff)
		xsave_set_vec(c->xsave, k->vec_reg, k->vec_val);
	if (live)
		fpu_load(c);
	cpu_update_mode(c);
	c->stop_at = c->insns + MAX_INSNS;
	enum cpu_exit exit = cpu_run(c);
	interp_result(t, exit, r);
	arena_collect(code, data, t->batch.arena, r);
}

static void interp_case(struct interp *t, const struct insn_case *k, struct insn_result *r)
{
	running_case = k;
	block_invalidate(t->cpu, GPA(PG_CODE * PAGE_SIZE), CODE_SIZE);
	interp_run(t, k, r, false);
	if (!t->hot)
		return;
	if (r->n_lines && r->line_no[0] < CODE_SIZE / 64) /* code was written, and put back since */
		block_invalidate(t->cpu, GPA(PG_CODE * PAGE_SIZE), CODE_SIZE);
	interp_run(t, k, r, true);
}

static void interp_start(struct executor *e)
{
	struct interp *t = (struct interp *)e;
	running = t;
	block_invalidate(t->cpu, GPA(PG_CODE * PAGE_SIZE), CODE_SIZE);
	memcpy(t->mem + PG_CODE * PAGE_SIZE, t->batch.arena, ARENA_SIZE);
	mmu_flush_all(t->cpu);
	for (u32 i = 0; i < t->batch.n; i++)
		interp_case(t, &t->batch.c[i], &t->result[i]);
	running_case = NULL;
	running = NULL;
}

static void interp_wait(struct executor *e)
{
}

static void interp_destroy(struct executor *e)
{
	struct interp *t = (struct interp *)e;
	if (t->translator.rw) {
		t->translator.size = TR_ARENA;
		t->translator.sites_size = TR_SITES;
		translate_detach(&t->translator);
	}
	munmap(t, sizeof(*t));
}

#define OPS .destroy = interp_destroy, .start = interp_start, .wait = interp_wait
static struct executor *interp_create(void) { return create(&executor_interp, false, false, false); }
static struct executor *translate_create(void) { return create(&executor_translate, true, false, false); }
static struct executor *translate_hot_create(void) { return create(&executor_translate_hot, true, true, false); }
static struct executor *translate_small_create(void) { return create(&executor_translate_small, true, true, true); }

const struct executor executor_interp = { .name = "interp", .create = interp_create, OPS };
const struct executor executor_translate = { .name = "translate", .create = translate_create, OPS };
const struct executor executor_translate_hot = { .name = "translate-hot", .create = translate_hot_create, OPS };
const struct executor executor_translate_small = { .name = "translate-small", .create = translate_small_create, OPS };
