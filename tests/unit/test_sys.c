/* Exception delivery, segments, far transfers and system instructions, handler by handler, on the real page walk and
 * memory access but without decoder, blocks or loop.  Expected values are those of the SDM's pseudo-code. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/block.h"
#include "cpu/cpuid.h"
#include "cpu/mmu.h"
#include "cpu/msr.h"
#include "cpu/seg.h"

/* ---- the parts of a CPU that are not under test ---- */

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, expr);
	abort();
}

void cpu_update_mode(struct cpu *c)
{
	bool smap_off = !(c->cr4 & CR4_SMAP) || (c->sflags & FL_AC);
	c->tlb = c->tlbs[c->cpl == 3 ? TLB_USER : smap_off ? TLB_KERNEL_AC : TLB_KERNEL];
}
u64 insn_next_rip(const struct cpu *c, const struct insn *i)
{
	u64 rip = insn_rip(c, i) + i->len;
	return cpu_code64(c) ? rip : (u32)rip;
}
bool block_code_write(struct cpu *c, gpa_t gpa, u64 len) { return false; }
void block_leave_after(struct cpu *c, const struct insn *i) { }
void mmu_table_written(struct cpu *c, const void *p) { }
bool cpuid_has(const struct cpuid_table *t, u32 leaf, u32 subleaf, enum cpuid_reg reg, unsigned bit) { return true; }
static u64 last_msr;
bool msr_read(struct cpu *c, u32 index, u64 *v)
{
	*v = 0x1122334455667788;
	return index != 0xdead;
}
bool msr_write(struct cpu *c, u32 index, u64 v)
{
	last_msr = v;
	return index != 0xdead;
}
void cpuid_get(const struct cpu *c, u32 leaf, u32 subleaf, u32 out[4])
{
	for (unsigned k = 0; k < 4; k++)
		out[k] = leaf + subleaf + k;
}
u64 cpu_tsc(const struct cpu *c) { return 0x123456789abcdef0; }
u32 lapic_mmio_read(struct cpu *c, u32 o) { return 0; }
void lapic_mmio_write(struct cpu *c, u32 o, u32 v) { }
void lapic_set_tpr(struct cpu *c, u8 t) { }
u8 lapic_get_tpr(const struct cpu *c) { return 0; }

/* ---- the machine: 16 MiB; linear = physical; upper 8 MiB belong to the user; 10-12 MiB are not present ---- */

#define RAM_SIZE (16 * MiB)
#define GDT 0x1000u
#define IDT 0x2000u
#define TSS 0x3000u
#define PML4 0x8000u
#define RSP0 0x20008u /* odd on purpose: delivery aligns to 16 */
#define IST1 0x30000u
#define HANDLER 0x40000u
#define USTACK (9 * MiB)
#define UCODE (8 * MiB + 0x1000)
#define HOLE (10 * MiB)

enum {
	K_CODE = 0x08, K_DATA = 0x10, U_CODE32 = 0x18, U_DATA = 0x20, U_CODE = 0x28, S_TSS = 0x30, S_LDT = 0x40,
	S_GATE64 = 0x50, NP_DATA = 0x60, K_CODE32 = 0x68, S_GATE32 = 0x70, S_TSS32 = 0x78, K_CONF = 0x80, RO_DATA = 0x88,
	GDT_END = 0x90,
};

static struct cpu *c;
static u8 *mem;
static struct ram ram;
static struct cpuid_table cpuid = { .xcr0 = CPUID_XCR0_OFFERED };
static unsigned checks, failures;

static void check_(bool ok, const char *what, int line)
{
	checks++;
	if (!ok) {
		failures++;
		printf("FAIL line %d: %s\n", line, what);
	}
}
#define CHECK(x) check_((x), #x, __LINE__)
#define EQ(a, b)                                                                                               \
	do {                                                                                                   \
		u64 a_ = (a), b_ = (b);                                                                        \
		check_(a_ == b_, #a " == " #b, __LINE__);                                                      \
		if (a_ != b_)                                                                                  \
			printf("  %#llx != %#llx\n", (unsigned long long)a_, (unsigned long long)b_);          \
	} while (0)

static void w64(u64 a, u64 v) { memcpy(mem + a, &v, 8); }
static void w32(u64 a, u32 v) { memcpy(mem + a, &v, 4); }
static void w16(u64 a, u16 v) { memcpy(mem + a, &v, 2); }
static u64 r64(u64 a)
{
	u64 v;
	memcpy(&v, mem + a, 8);
	return v;
}
static u32 r32(u64 a) { return (u32)r64(a); }
static u16 r16(u64 a) { return (u16)r64(a); }

static u64 desc(u32 base, u32 limit, u32 access, u32 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)flags << 52 | (u64)(base >> 24) << 56;
}
static void gate64(unsigned vec, u16 sel, u64 target, unsigned ist, u32 access)
{
	w64(IDT + vec * 16, (target & 0xffff) | (u64)sel << 16 | (u64)ist << 32 | (u64)access << 40 | (target >> 16 & 0xffff) << 48);
	w64(IDT + vec * 16 + 8, target >> 32);
}
static void gate32(unsigned vec, u16 sel, u32 target, u32 access)
{
	w64(IDT + vec * 8, (target & 0xffff) | (u64)sel << 16 | (u64)access << 40 | (u64)(target >> 16) << 48);
}
static struct seg load(u16 sel)
{
	struct seg s;
	desc_unpack(&s, r64(GDT + (sel & 0xfff8)), sel);
	return s;
}

/* A fresh CPU with tables in memory, in real mode. */
static void reset(void)
{
	memset(mem, 0, RAM_SIZE);
	struct tlb_entry *t[TLB_CTX_COUNT];
	memcpy(t, c->tlbs, sizeof t);
	memset(c, 0, sizeof *c);
	memcpy(c->tlbs, t, sizeof t);
	c->ram = &ram;
	c->cpuid = &cpuid;
	c->maxphyaddr = 40;
	c->vendor_intel = true;
	c->sflags = FL_FIXED;
	c->dr7 = DR7_FIXED;
	c->dr6 = DR6_FIXED;
	c->cr0 = CR0_ET;
	c->xcr0 = 1;
	mmu_flush_all(c);
	for (unsigned k = 0; k < SREG_COUNT; k++)
		c->seg[k] = (struct seg){ .limit = 0xffff, .type = 3, .s = true, .present = true };
	c->ldtr.unusable = true;
	c->idtr.limit = 0x3ff;

	w64(GDT + K_CODE, desc(0, 0xfffff, 0x9b, 0xa));
	w64(GDT + K_DATA, desc(0, 0xfffff, 0x93, 0xc));
	w64(GDT + U_CODE32, desc(0, 0xfffff, 0xfb, 0xc));
	w64(GDT + U_DATA, desc(0, 0xfffff, 0xf2, 0xc)); /* not accessed yet */
	w64(GDT + U_CODE, desc(0, 0xfffff, 0xfb, 0xa));
	w64(GDT + S_TSS, desc(TSS, 0x2067, 0x89, 0));
	w64(GDT + S_LDT, desc(0x7000, 0xf, 0x82, 0));
	w64(GDT + S_GATE64, 0x1234 | (u64)K_CODE << 16 | (u64)0xec << 40 | (u64)0x0004 << 48);
	w64(GDT + NP_DATA, desc(0, 0xfffff, 0x13, 0xc));
	w64(GDT + K_CODE32, desc(0, 0xfffff, 0x9b, 0xc));
	w64(GDT + S_GATE32, 0x5678 | (u64)K_CODE32 << 16 | (u64)2 << 32 | (u64)0xec << 40 | (u64)0x0004 << 48);
	w64(GDT + S_TSS32, desc(TSS, 0x2067, 0x89, 0));
	w64(GDT + K_CONF, desc(0, 0xfffff, 0x9f, 0xa));
	w64(GDT + RO_DATA, desc(0, 0xfffff, 0xf1, 0xc));

	w64(PML4, 0x9000 | PTE_P | PTE_W | PTE_U);
	w64(0x9000, 0xa000 | PTE_P | PTE_W | PTE_U);
	for (u64 k = 0; k < 8; k++)
		if (k * 2 * MiB != HOLE)
			w64(0xa000 + k * 8, k * 2 * MiB | PTE_P | PTE_W | PTE_PS | (k >= 4 ? PTE_U : 0));
	c->gdtr = (struct dtr){ GDT, GDT_END - 1 };
}

static void enter(u16 cs, u16 ss)
{
	c->seg[CS] = load(cs);
	c->seg[SS] = load(ss);
	c->seg[DS] = c->seg[ES] = load(U_DATA | 3);
	c->cpl = cs & 3;
	c->r[RSP] = c->cpl == 3 ? USTACK : 0x50000;
	c->rip = c->cpl == 3 ? UCODE : 0x60000;
	cpu_update_mode(c);
}

static void long_mode(u16 cs)
{
	reset();
	c->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET;
	c->cr4 = CR4_PAE;
	c->cr3 = PML4;
	c->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	c->idtr = (struct dtr){ IDT, 0xfff };
	c->tr = load(S_TSS);
	c->tr.type |= 2;
	w64(TSS + 4, RSP0);
	w64(TSS + 36, IST1);
	w16(TSS + 102, 104);
	memset(mem + TSS + 104, 0xff, 0x2000);
	for (unsigned v = 0; v < 256; v++)
		gate64(v, K_CODE, HANDLER + v, 0, 0x8e);
	gate64(3, K_CODE, HANDLER + 3, 0, 0xef);
	gate64(0x80, K_CODE, HANDLER + 0x80, 0, 0xef);
	gate64(8, K_CODE, HANDLER + 8, 1, 0x8e);
	c->star = (u64)K_CODE << 32 | (u64)U_CODE32 << 48;
	c->lstar = 0x70000;
	c->sfmask = FL_IF | FL_TF | FL_DF;
	enter(cs, cs & 3 ? U_DATA | 3 : K_DATA);
}

static void protected_mode(u16 cs)
{
	reset();
	c->cr0 = CR0_PE | CR0_ET;
	c->idtr = (struct dtr){ IDT, 0x7ff };
	c->tr = load(S_TSS32);
	c->tr.type |= 2;
	w32(TSS + 4, 0x20000);
	w16(TSS + 8, K_DATA);
	w16(TSS + 102, 104 + 32);
	memset(mem + TSS + 104 + 32, 0xff, 0x2000);
	for (unsigned v = 0; v < 256; v++)
		gate32(v, K_CODE32, HANDLER + v, 0x8e);
	gate32(0x80, K_CODE32, HANDLER + 0x80, 0xef);
	enter(cs, cs & 3 ? U_DATA | 3 : K_DATA);
}

#define DONE 100 /* the handler continued with NEXT */
static int done(struct cpu *cpu, const struct insn *i)
{
	cpu->rip = insn_rip(cpu, i);
	return DONE;
}

static int run(insn_fn fn, struct insn i)
{
	struct insn pair[2];
	i.len = i.len ? i.len : 2;
	i.base = i.base ? i.base : R_ZERO;
	i.index = i.index ? i.index : R_ZERO;
	pair[0] = i;
	pair[1] = (struct insn){ .fn = done, .off = i.len };
	c->r[R_RIP] = c->rip;
	c->exit = CPU_EXIT_NONE;
	return fn(c, pair);
}
#define RUN(fn, ...) run(fn, (struct insn){ __VA_ARGS__ })

static bool faulted(int step, u8 vector, u32 error)
{
	if (step == STEP_FAULT && c->exc.vector == vector && (!c->exc.has_error || c->exc.error == error))
		return true;
	printf("  step %d vector %u error %#x\n", step, c->exc.vector, c->exc.error);
	return false;
}

static int raise(u8 vector, bool has_error, u32 error)
{
	c->exc = (struct exception){ .vector = vector, .has_error = has_error, .error = error, .cr2 = 0xbad000 };
	return exc_deliver(c);
}

/* ---- tests ---- */

static void test_long_delivery(void)
{
	long_mode(U_CODE | 3);
	cpu_set_rflags(c, FL_IF | FL_TF | FL_ZF | FL_AC);
	EQ(raise(VEC_GP, true, 0x18), STEP_MODE);
	u64 sp = (RSP0 & ~15ull) - 48;
	EQ(c->r[RSP], sp);
	EQ(c->rip, HANDLER + VEC_GP);
	EQ(c->cpl, 0);
	EQ(c->seg[CS].sel, K_CODE);
	CHECK(c->seg[SS].unusable);
	EQ(c->seg[SS].sel, 0);
	EQ(cpu_rflags(c), FL_FIXED | FL_ZF | FL_AC);
	EQ(r64(sp), 0x18);
	EQ(r64(sp + 8), UCODE);
	EQ(r64(sp + 16), U_CODE | 3);
	EQ(r64(sp + 24), FL_FIXED | FL_IF | FL_TF | FL_ZF | FL_AC | FL_RF);
	EQ(r64(sp + 32), USTACK);
	EQ(r64(sp + 40), U_DATA | 3);

	/* Same level: the current stack, aligned; SS stays.  Interrupts push RF as it is. */
	long_mode(K_CODE);
	c->r[RSP] = 0x50007;
	c->sflags |= FL_IF;
	EQ(interrupt_deliver(c, 0x31), STEP_MODE);
	EQ(c->r[RSP], 0x50000 - 40);
	EQ(r64(c->r[RSP] + 16), FL_FIXED | FL_IF);
	EQ(r64(c->r[RSP] + 24), 0x50007);
	EQ(c->seg[SS].sel, K_DATA);
	CHECK(!(c->sflags & FL_IF));

	/* #PF commits CR2; the IST stack of #DF; CR2 of the second fault (stack guard). */
	long_mode(K_CODE);
	c->r[RSP] = HOLE + 0x1000;
	EQ(raise(VEC_PF, true, 2), STEP_MODE);
	EQ(c->rip, HANDLER + VEC_DF);
	EQ(c->r[RSP], IST1 - 48);
	EQ(r64(c->r[RSP]), 0);
	EQ(r64(c->r[RSP] + 8), 0x60000);
	EQ(r64(c->r[RSP] + 32), HOLE + 0x1000);
	EQ(c->cr2, HOLE + 0x1000 - 48);
	/* A benign event does not make a double fault. */
	long_mode(K_CODE);
	gate64(VEC_PF, K_CODE, HANDLER + VEC_PF, 1, 0x8e);
	c->r[RSP] = HOLE + 0x1000;
	EQ(interrupt_deliver(c, 0x31), STEP_MODE);
	EQ(c->rip, HANDLER + VEC_PF);
	EQ(r64(c->r[RSP]), PF_W);
	EQ(r64(c->r[RSP] + 8), 0x60000);

	/* Non-canonical stack: #SS, itself on the bad stack: #DF through its IST. */
	long_mode(K_CODE);
	c->r[RSP] = 0x0000900000000000;
	EQ(raise(VEC_UD, false, 0), STEP_MODE);
	EQ(c->rip, HANDLER + VEC_DF);
	/* #GP, #PF in sequence, #DF, triple fault: nothing changes. */
	long_mode(K_CODE);
	gate64(VEC_DF, K_CODE, HANDLER, 0, 0x0e);
	c->r[RSP] = HOLE + 0x1000;
	EQ(raise(VEC_GP, true, 0), STEP_EXIT);
	EQ(c->exit, CPU_EXIT_SHUTDOWN);
	EQ(c->r[RSP], HOLE + 0x1000);
	EQ(c->rip, 0x60000);
	CHECK(strstr(c->why, "triple fault: #GP, then #PF, then #DF, then #NP error 0x43"));

	/* NMI blocks NMIs until IRET. */
	long_mode(K_CODE);
	EQ(nmi_deliver(c), STEP_MODE);
	EQ(c->rip, HANDLER + 2);
	CHECK(c->nmi_blocked);
	EQ(RUN(op_iret, .opsize = 8), STEP_MODE);
	CHECK(!c->nmi_blocked);
	EQ(c->rip, 0x60000);
	EQ(c->r[RSP], 0x50000);
}

static void test_soft_interrupts(void)
{
	long_mode(U_CODE | 3);
	CHECK(faulted(RUN(op_int, .imm = 0x30), VEC_GP, 0x30 * 8 + 2));
	EQ(c->rip, UCODE);
	EQ(RUN(op_int, .imm = 0x80), STEP_MODE);
	EQ(c->rip, HANDLER + 0x80);
	EQ(r64(c->r[RSP]), UCODE + 2);
	EQ(r64(c->r[RSP] + 16), FL_FIXED); /* no RF */
	long_mode(U_CODE | 3);
	EQ(RUN(op_int3, .len = 1), STEP_MODE);
	EQ(r64(c->r[RSP]), UCODE + 1);
	long_mode(U_CODE | 3);
	EQ(RUN(op_int1, .len = 1), STEP_MODE); /* no DPL check, DR6 untouched */
	EQ(c->rip, HANDLER + 1);
	EQ(c->dr6, DR6_FIXED);
	long_mode(U_CODE | 3);
	c->idtr.limit = 0x80 * 16 - 1;
	CHECK(faulted(RUN(op_int, .imm = 0x80), VEC_GP, 0x80 * 8 + 2));
	gate64(0x42, K_CODE, 0x0000800000000000, 0, 0xee);
	CHECK(faulted(RUN(op_int, .imm = 0x42), VEC_GP, 0));
	gate64(0x42, U_CODE, 0x1000, 0, 0xee); /* handler at CPL 3: user stack with user rights */
	EQ(RUN(op_int, .imm = 0x42), STEP_MODE);
	EQ(c->cpl, 3);
	EQ(c->r[RSP], USTACK - 40);
	c->rip = UCODE;
	c->r[RSP] = 0x50000;
	EQ(RUN(op_int, .imm = 0x42), STEP_FAULT);
	EQ(c->exc.vector, VEC_PF);
	EQ(c->exc.error, PF_P | PF_W | PF_U);
}

static void frame(u64 sp, u64 rip, u64 cs, u64 fl, u64 rsp, u64 ss)
{
	w64(sp, rip);
	w64(sp + 8, cs);
	w64(sp + 16, fl);
	w64(sp + 24, rsp);
	w64(sp + 32, ss);
}

static void test_iret(void)
{
	long_mode(K_CODE);
	c->seg[FS] = (struct seg){ .base = 0x7fff12345000, .unusable = true };
	c->seg[DS] = load(K_DATA);
	frame(0x50000, UCODE, U_CODE | 3, FL_IF | FL_CF | FL_NT, USTACK, U_DATA | 3);
	EQ(RUN(op_iret, .opsize = 8), STEP_MODE);
	EQ(c->rip, UCODE);
	EQ(c->cpl, 3);
	EQ(c->r[RSP], USTACK);
	EQ(cpu_rflags(c), FL_FIXED | FL_IF | FL_CF | FL_NT);
	CHECK(c->seg[DS].unusable && c->seg[DS].sel == 0);
	EQ(c->seg[FS].base, 0x7fff12345000);
	CHECK(r64(GDT + U_DATA) & BIT(40)); /* accessed */
	EQ(c->seg[ES].sel, U_DATA | 3);

	/* Faults leave everything as it was. */
	long_mode(K_CODE);
	frame(0x50000, 0x0000800000000000, U_CODE | 3, FL_IF, USTACK, U_DATA | 3);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, 0));
	EQ(c->cpl, 0);
	EQ(c->r[RSP], 0x50000);
	EQ(c->seg[CS].sel, K_CODE);
	frame(0x50000, UCODE, U_CODE | 3, FL_IF, USTACK, K_DATA);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, K_DATA));
	frame(0x50000, UCODE, U_CODE | 3, FL_IF, USTACK, 0);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, 0));
	frame(0x50000, UCODE, U_CODE, FL_IF, USTACK, U_DATA | 3);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, U_CODE));
	frame(0x50000, UCODE, 0x7f8, FL_IF, USTACK, 0);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, 0x7f8));
	frame(0x50000, UCODE, 0, FL_IF, USTACK, 0);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, 0));
	c->sflags |= FL_NT;
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, 0));
	c->sflags &= ~FL_NT;
	/* Same level with a null SS, in 64-bit mode. */
	frame(0x50000, 0x61000, K_CODE, FL_FIXED, 0x51000, 0);
	EQ(RUN(op_iret, .opsize = 8), STEP_MODE);
	EQ(c->r[RSP], 0x51000);
	CHECK(c->seg[SS].unusable);

	/* To compatibility mode and back up. */
	long_mode(K_CODE);
	frame(0x50000, UCODE, U_CODE32 | 3, FL_IF, 0x1200000000ull + USTACK, U_DATA | 3);
	EQ(RUN(op_iret, .opsize = 8), STEP_MODE);
	CHECK(!cpu_code64(c));
	EQ(c->r[RSP], USTACK);
	EQ(RUN(op_int, .imm = 0x80), STEP_MODE);
	EQ(r64(c->r[RSP] + 8), U_CODE32 | 3);
	/* CPL 3 may not return to CPL 0, nor change IF or IOPL. */
	long_mode(U_CODE | 3);
	frame(USTACK, 0x60000, K_CODE, FL_FIXED, 0, 0);
	CHECK(faulted(RUN(op_iret, .opsize = 8), VEC_GP, K_CODE));
	frame(USTACK, UCODE + 9, U_CODE | 3, FL_IF | FL_IOPL | FL_DF, USTACK, U_DATA | 3);
	EQ(RUN(op_iret, .opsize = 8), STEP_MODE);
	EQ(cpu_rflags(c), FL_FIXED | FL_DF);
}

static void test_syscall(void)
{
	long_mode(U_CODE | 3);
	cpu_set_rflags(c, FL_IF | FL_DF | FL_CF);
	EQ(RUN(op_syscall), STEP_MODE);
	EQ(c->rip, 0x70000);
	EQ(c->r[RCX], UCODE + 2);
	EQ(c->r[R11], FL_FIXED | FL_IF | FL_DF | FL_CF);
	EQ(cpu_rflags(c), FL_FIXED | FL_CF);
	EQ(c->seg[CS].sel, K_CODE);
	EQ(c->seg[SS].sel, K_DATA);
	EQ(c->cpl, 0);
	EQ(RUN(op_sysret, .opsize = 8), STEP_MODE);
	EQ(c->rip, UCODE + 2);
	EQ(c->cpl, 3);
	EQ(c->seg[CS].sel, U_CODE | 3);
	EQ(c->seg[SS].sel, U_DATA | 3);
	EQ(cpu_rflags(c), FL_FIXED | FL_IF | FL_DF | FL_CF);
	CHECK(faulted(RUN(op_sysret, .opsize = 8), VEC_GP, 0));

	long_mode(K_CODE);
	c->r[RCX] = 0x0000800000000000;
	CHECK(faulted(RUN(op_sysret, .opsize = 8), VEC_GP, 0));
	EQ(c->cpl, 0);
	c->vendor_intel = false;
	c->seg[SS] = (struct seg){ .unusable = true };
	EQ(RUN(op_sysret, .opsize = 8), STEP_MODE);
	EQ(c->rip, 0x0000800000000000);
	CHECK(c->seg[SS].unusable); /* AMD: attributes stay */

	long_mode(U_CODE32 | 3);
	CHECK(faulted(RUN(op_syscall), VEC_UD, 0));
	c->vendor_intel = false;
	c->cstar = 0x71000;
	EQ(RUN(op_syscall), STEP_MODE);
	EQ(c->rip, 0x71000);
	CHECK(cpu_code64(c));
	EQ(RUN(op_sysret, .opsize = 4), STEP_MODE);
	EQ(c->seg[CS].sel, U_CODE32 | 3);
	CHECK(!c->seg[CS].l);
	CHECK(faulted(RUN(op_sysenter), VEC_UD, 0)); /* AMD, long mode */
	c->efer &= ~EFER_SCE;
	CHECK(faulted(RUN(op_syscall), VEC_UD, 0));

	long_mode(U_CODE32 | 3);
	CHECK(faulted(RUN(op_sysenter), VEC_GP, 0));
	c->sysenter_cs = K_CODE;
	c->sysenter_eip = 0xffffffff81000000;
	c->sysenter_esp = 0xffff880000001000;
	c->sflags |= FL_IF;
	EQ(RUN(op_sysenter), STEP_MODE);
	EQ(c->rip, 0xffffffff81000000);
	EQ(c->r[RSP], 0xffff880000001000);
	CHECK(cpu_code64(c) && !(c->sflags & FL_IF));
	c->r[RDX] = UCODE;
	c->r[RCX] = USTACK;
	EQ(RUN(op_sysexit, .opsize = 8), STEP_MODE);
	EQ(c->seg[CS].sel, (K_CODE + 32) | 3);
	EQ(c->cpl, 3);
}

static void test_segments(void)
{
	long_mode(U_CODE | 3);
	EQ(seg_load(c, NULL, DS, 0), 0);
	CHECK(c->seg[DS].unusable);
	c->seg[FS].base = 0x1234;
	EQ(seg_load(c, NULL, FS, 0), 0);
	EQ(c->seg[FS].base, 0);
	EQ(seg_load(c, NULL, GS, 3), 0);
	EQ(c->seg[GS].sel, 3);
	CHECK(faulted(seg_load(c, NULL, SS, 3), VEC_GP, 0));
	CHECK(faulted(seg_load(c, NULL, DS, K_DATA), VEC_GP, K_DATA));
	CHECK(faulted(seg_load(c, NULL, DS, GDT_END | 3), VEC_GP, GDT_END));
	CHECK(faulted(seg_load(c, NULL, DS, 0xc), VEC_GP, 0xc)); /* no LDT */
	CHECK(faulted(seg_load(c, NULL, DS, S_TSS), VEC_GP, S_TSS));
	CHECK(faulted(seg_load(c, NULL, SS, RO_DATA | 3), VEC_GP, RO_DATA));
	EQ(seg_load(c, NULL, DS, RO_DATA | 3), 0);
	EQ(RUN(op_lar, .opsize = 4, .ra = RAX * 8, .rb = RCX * 8), DONE);
	CHECK(!(c->aflags & FL_ZF));
	c->r[RCX] = U_CODE | 3;
	EQ(RUN(op_lar, .opsize = 4, .ra = RAX * 8, .rb = RCX * 8), DONE);
	CHECK(c->aflags & FL_ZF);
	EQ(c->r[RAX], 0xaffb00);
	EQ(RUN(op_lsl, .opsize = 4, .ra = RAX * 8, .rb = RCX * 8), DONE);
	EQ(c->r[RAX], 0xffffffff);
	EQ(RUN(op_verw, .ra = RCX * 8), DONE);
	CHECK(!(c->aflags & FL_ZF));
	EQ(RUN(op_verr, .ra = RCX * 8), DONE);
	CHECK(c->aflags & FL_ZF);

	long_mode(K_CODE);
	CHECK(faulted(seg_load(c, NULL, DS, NP_DATA), VEC_NP, NP_DATA));
	CHECK(faulted(seg_load(c, NULL, SS, NP_DATA), VEC_SS, NP_DATA));
	EQ(seg_load(c, NULL, SS, 0), 0);
	c->r[RAX] = S_TSS;
	EQ(RUN(op_ltr, .ra = 0), DONE);
	EQ(c->tr.base, TSS);
	EQ((r64(GDT + S_TSS) >> 40) & 15, SYS_TSS_BUSY);
	CHECK(faulted(RUN(op_ltr, .ra = 0), VEC_GP, S_TSS)); /* busy */
	c->r[RAX] = S_LDT;
	EQ(RUN(op_lldt, .ra = 0), DONE);
	w64(0x7008, desc(0x5000, 0xfff, 0x93, 4));
	EQ(seg_load(c, NULL, FS, 0xc), 0);
	EQ(c->seg[FS].base, 0x5000);
	c->r[RAX] = K_DATA;
	EQ(RUN(op_mov_to_sreg, .aux = SS, .ra = 0, .opsize = 4), STEP_MODE);
	CHECK(c->irq_shadow);
	CHECK(faulted(RUN(op_mov_to_sreg, .aux = CS, .ra = 0), VEC_UD, 0));
	c->seg[GS].sel = 0x2b;
	EQ(RUN(op_push_sreg, .aux = GS, .opsize = 8), DONE);
	EQ(r64(0x50000 - 8), 0x2b);
	EQ(c->r[RSP], 0x50000 - 8);
}

static void test_far(void)
{
	/* CALL through a 64-bit call gate: inner stack from the TSS, and back with RETF. */
	long_mode(U_CODE | 3);
	w32(USTACK + 0x100, 0xdeadbeef);
	w16(USTACK + 0x104, S_GATE64 | 3);
	EQ(RUN(op_call_far_mem, .opsize = 4, .flags = IF_MEM, .base = RSP, .disp = 0x100, .len = 7), STEP_MODE);
	EQ(c->rip, 0x41234);
	EQ(c->cpl, 0);
	EQ(c->r[RSP], RSP0 - 32);
	EQ(r64(RSP0 - 8), U_DATA | 3);
	EQ(r64(RSP0 - 16), USTACK);
	EQ(r64(RSP0 - 24), U_CODE | 3);
	EQ(r64(RSP0 - 32), UCODE + 7);
	EQ(RUN(op_ret_far, .opsize = 8), STEP_MODE);
	EQ(c->rip, UCODE + 7);
	EQ(c->r[RSP], USTACK);
	EQ(c->cpl, 3);
	/* Direct, same level; conforming; not allowed. */
	long_mode(K_CODE);
	w32(0x52000, 0x65000);
	w16(0x52004, K_CODE);
	EQ(RUN(op_call_far_mem, .opsize = 4, .flags = IF_MEM, .disp = 0x52000, .len = 7), STEP_MODE);
	EQ(r32(c->r[RSP]), 0x60007);
	EQ(r32(c->r[RSP] + 4), K_CODE);
	EQ(c->rip, 0x65000);
	w16(0x52004, U_CODE);
	CHECK(faulted(RUN(op_jmp_far_mem, .opsize = 4, .flags = IF_MEM, .disp = 0x52000), VEC_GP, U_CODE));
	w16(0x52004, S_TSS);
	CHECK(faulted(RUN(op_jmp_far_mem, .opsize = 4, .flags = IF_MEM, .disp = 0x52000), VEC_GP, S_TSS));
	w16(0x52004, K_CODE32);
	EQ(RUN(op_jmp_far_mem, .opsize = 4, .flags = IF_MEM, .disp = 0x52000), STEP_MODE);
	CHECK(!cpu_code64(c));

	/* 32-bit call gate with two parameters. */
	protected_mode(U_CODE32 | 3);
	w32(USTACK, 0x11111111);
	w32(USTACK + 4, 0x22222222);
	EQ(RUN(op_call_far_imm, .opsize = 4, .imm = (u64)(S_GATE32 | 3) << 32, .len = 7), STEP_MODE);
	EQ(c->rip, 0x45678);
	EQ(c->r[RSP], 0x20000 - 24);
	EQ(r32(0x20000 - 24), UCODE + 7);
	EQ(r32(0x20000 - 16), 0x11111111);
	EQ(r32(0x20000 - 12), 0x22222222);
	EQ(r32(0x20000 - 8), USTACK);
	EQ(RUN(op_ret_far, .opsize = 4, .imm = 8), STEP_MODE);
	EQ(c->r[RSP], USTACK + 8);
	EQ(c->cpl, 3);
}

static void test_legacy_delivery(void)
{
	protected_mode(U_CODE32 | 3);
	c->sflags |= FL_IF;
	EQ(raise(VEC_GP, true, 0x33), STEP_MODE);
	EQ(c->r[RSP], 0x20000 - 24);
	EQ(r32(0x20000 - 24), 0x33);
	EQ(r32(0x20000 - 20), UCODE);
	EQ(r32(0x20000 - 8), USTACK);
	EQ(r32(0x20000 - 4), U_DATA | 3);
	EQ(c->seg[SS].sel, K_DATA);
	c->r[RSP] += 4;
	EQ(RUN(op_iret, .opsize = 4), STEP_MODE);
	EQ(c->rip, UCODE);
	EQ(c->cpl, 3);
	w16(TSS + 8, U_DATA | 3);
	EQ(raise(VEC_GP, true, 0), STEP_EXIT); /* #TS, #DF, #TS */
	EQ(c->exit, CPU_EXIT_SHUTDOWN);

	/* Virtual-8086 mode: in, a #GP for CLI, back again. */
	protected_mode(K_CODE32);
	u32 vm[] = { 0x100, 0x2000, (u32)(FL_VM | FL_FIXED | FL_IF), 0xfff0, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000 };
	memcpy(mem + 0x50000, vm, sizeof vm);
	EQ(RUN(op_iret, .opsize = 4), STEP_MODE);
	CHECK(cpu_vm86(c));
	EQ(c->cpl, 3);
	EQ(c->rip, 0x100);
	EQ(c->seg[CS].base, 0x20000);
	EQ(c->seg[GS].base, 0x70000);
	EQ(c->r[RSP], 0xfff0);
	CHECK(faulted(RUN(op_cli), VEC_GP, 0));
	CHECK(faulted(RUN(op_pushf, .opsize = 2), VEC_GP, 0));
	CHECK(faulted(RUN(op_int, .imm = 0x21), VEC_GP, 0));
	EQ(exc_deliver(c), STEP_MODE);
	CHECK(!cpu_vm86(c));
	EQ(c->r[RSP], 0x20000 - 40);
	EQ(r32(0x20000 - 4), 0x7000);
	EQ(r32(0x20000 - 16), 0x4000);
	EQ(r32(0x20000 - 24), 0xfff0);
	EQ(r32(0x20000 - 32), 0x2000);
	CHECK(c->seg[DS].unusable);
	c->r[RSP] += 4;
	EQ(RUN(op_iret, .opsize = 4), STEP_MODE);
	CHECK(cpu_vm86(c) && c->rip == 0x100);
	c->sflags |= FL_IOPL;
	EQ(RUN(op_cli), DONE);
	/* VME: the bitmap below the I/O map sends INT 21h to the program's own table. */
	c->sflags &= ~FL_IOPL;
	c->sflags |= FL_VIF;
	c->cr4 |= CR4_VME;
	w32(0x21 * 4, 0x12345678);
	c->rip = 0x200;
	EQ(RUN(op_int, .imm = 0x21), STEP_MODE);
	EQ(c->rip, 0x5678);
	EQ(c->seg[CS].sel, 0x1234);
	EQ(r16(0x30000 + 0xfff0 - 2), FL_FIXED | FL_IF | FL_IOPL);
	EQ(r16(0x30000 + 0xfff0 - 6), 0x202);
	CHECK(!(c->sflags & FL_VIF));

	/* Task gates name themselves. */
	protected_mode(K_CODE32);
	gate32(8, S_TSS32, 0, 0x85);
	EQ(RUN(op_int, .imm = 8), STEP_EXIT);
	EQ(c->exit, CPU_EXIT_UNIMPLEMENTED);
	CHECK(strstr(c->why, "task gate"));
}

static void test_real_mode(void)
{
	reset();
	cpu_update_mode(c);
	c->rip = 0x7c00;
	c->r[RSP] = 0xabcd0000;
	c->sflags |= FL_IF;
	w32(0x10 * 4, 0xf0001234);
	EQ(RUN(op_int, .imm = 0x10), STEP_MODE);
	EQ(c->rip, 0x1234);
	EQ(c->seg[CS].base, 0xf0000);
	EQ(c->r[RSP], 0xabcdfffa);
	EQ(r16(0xfffa), 0x7c02);
	EQ(r16(0xfffe), FL_FIXED | FL_IF);
	CHECK(!(c->sflags & FL_IF));
	EQ(RUN(op_iret, .opsize = 2), STEP_MODE);
	EQ(c->rip, 0x7c02);
	EQ(c->seg[CS].base, 0);
	EQ(c->r[RSP], 0xabcd0000);
	CHECK(c->sflags & FL_IF);
	EQ(RUN(op_jmp_far_imm, .opsize = 2, .imm = 0x0800ull << 32 | 0x10), STEP_MODE);
	EQ(c->seg[CS].base, 0x8000);
	EQ(c->rip, 0x10);
	/* Into protected mode; into long mode; the forbidden ways. */
	c->r[RAX] = CR0_PE | CR0_PG;
	c->cr4 = CR4_PAE;
	c->cr3 = PML4;
	c->efer = EFER_LME;
	EQ(RUN(op_mov_to_cr, .aux = 0, .ra = 0), STEP_MODE);
	CHECK(cpu_long_mode(c) && !cpu_code64(c));
	c->r[RAX] = CR0_PG;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 0, .ra = 0), VEC_GP, 0));
	c->r[RAX] = 0;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 4, .ra = 0), VEC_GP, 0)); /* PAE off in long mode */
	c->r[RAX] = CR0_PE;
	EQ(RUN(op_mov_to_cr, .aux = 0, .ra = 0), STEP_MODE);
	CHECK(!cpu_long_mode(c));
	c->cr4 = 0;
	c->r[RAX] = CR0_PE | CR0_PG;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 0, .ra = 0), VEC_GP, 0)); /* LME without PAE */
}

static void test_control(void)
{
	long_mode(K_CODE);
	c->r[RAX] = BIT(63) | PML4;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 3, .ra = 0), VEC_GP, 0));
	c->r[RAX] = CR4_PAE | CR4_PCIDE;
	EQ(RUN(op_mov_to_cr, .aux = 4, .ra = 0), STEP_MODE);
	c->r[RAX] = BIT(63) | PML4 | 5;
	EQ(RUN(op_mov_to_cr, .aux = 3, .ra = 0), STEP_MODE);
	EQ(c->cr3, PML4 | 5);
	c->r[RAX] = BIT(40) | PML4;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 3, .ra = 0), VEC_GP, 0));
	c->r[RAX] = CR4_PAE;
	EQ(RUN(op_mov_to_cr, .aux = 4, .ra = 0), STEP_MODE);
	c->r[RAX] = CR4_PAE | CR4_PCIDE; /* CR3[11:0] != 0 */
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 4, .ra = 0), VEC_GP, 0));
	c->r[RAX] = CR4_PAE | CR4_LA57;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 4, .ra = 0), VEC_GP, 0));
	c->r[RAX] = CR0_PE; /* PG off in 64-bit mode */
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 0, .ra = 0), VEC_GP, 0));
	c->r[RAX] = 16;
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 8, .ra = 0), VEC_GP, 0));
	CHECK(faulted(RUN(op_mov_to_cr, .aux = 1, .ra = 0), VEC_UD, 0));

	c->r[RAX] = 0xffffffff;
	EQ(RUN(op_mov_to_dr, .aux = 7, .ra = 0), STEP_MODE);
	EQ(c->dr7, 0xffff27ff);
	CHECK(faulted(RUN(op_mov_from_dr, .aux = 7, .ra = 0), VEC_DB, 0)); /* GD */
	EQ(exc_deliver(c), STEP_MODE);
	EQ(c->dr6, DR6_FIXED | DR6_BD);
	CHECK(!(c->dr7 & DR7_GD));
	EQ(RUN(op_mov_from_dr, .aux = 4, .ra = 0), DONE);
	EQ(c->r[RAX], DR6_FIXED | DR6_BD);
	c->cr4 |= CR4_DE;
	CHECK(faulted(RUN(op_mov_from_dr, .aux = 4, .ra = 0), VEC_UD, 0));
	c->r[RAX] = BIT(32);
	CHECK(faulted(RUN(op_mov_to_dr, .aux = 6, .ra = 0), VEC_GP, 0));

	c->r[RCX] = 0;
	c->r[RDX] = 0;
	c->r[RAX] = 7;
	CHECK(faulted(RUN(op_xsetbv), VEC_UD, 0));
	c->cr4 |= CR4_OSXSAVE;
	EQ(RUN(op_xsetbv), STEP_MODE);
	EQ(c->xcr0, 7);
	static const u64 bad[] = { 0, 6, 5, 0x27, 0xe3, 0x207 };
	for (unsigned k = 0; k < ARRAY_SIZE(bad); k++) {
		c->r[RAX] = bad[k];
		CHECK(faulted(RUN(op_xsetbv), VEC_GP, 0));
	}
	c->r[RCX] = 0xdead;
	CHECK(faulted(RUN(op_rdmsr), VEC_GP, 0));
	c->r[RCX] = 1;
	EQ(RUN(op_rdmsr), DONE);
	EQ(c->r[RAX], 0x55667788);
	EQ(c->r[RDX], 0x11223344);

	c->seg[GS].base = 1;
	c->kernel_gs_base = 2;
	EQ(RUN(op_swapgs), DONE);
	EQ(c->seg[GS].base, 2);
	CHECK(faulted(RUN(op_wrfsbase, .ra = 0, .opsize = 8), VEC_UD, 0));
	c->cr4 |= CR4_FSGSBASE;
	c->r[RAX] = 0x8000000000000;
	CHECK(faulted(RUN(op_wrfsbase, .ra = 0, .opsize = 8), VEC_GP, 0));
	EQ(RUN(op_wrfsbase, .ra = 0, .opsize = 4), DONE);
	EQ(c->seg[FS].base, 0);

	/* INVPCID's descriptor. */
	w64(0x52000, 0x1000);
	CHECK(faulted(RUN(op_invpcid, .ra = 0, .flags = IF_MEM, .disp = 0x52000), VEC_GP, 0));
	w64(0x52000, 0);
	c->r[RAX] = 4;
	CHECK(faulted(RUN(op_invpcid, .ra = 0, .flags = IF_MEM, .disp = 0x52000), VEC_GP, 0));
	c->r[RAX] = 2;
	EQ(RUN(op_invpcid, .ra = 0, .flags = IF_MEM, .disp = 0x52000), STEP_NEXT);

	/* LGDT, SGDT, UMIP. */
	w16(0x52000, 0x1ff);
	w64(0x52002, 0xffff888000001000);
	EQ(RUN(op_lgdt, .flags = IF_MEM, .disp = 0x52000), DONE);
	EQ(c->gdtr.base, 0xffff888000001000);
	EQ(RUN(op_sgdt, .flags = IF_MEM, .disp = 0x53000), DONE);
	EQ(memcmp(mem + 0x52000, mem + 0x53000, 10), 0);
	w64(0x52002, 0x8000000000000000);
	CHECK(faulted(RUN(op_lidt, .flags = IF_MEM, .disp = 0x52000), VEC_GP, 0));
	long_mode(U_CODE | 3);
	EQ(RUN(op_smsw, .ra = 0, .opsize = 4), DONE);
	c->cr4 |= CR4_UMIP | CR4_TSD;
	CHECK(faulted(RUN(op_smsw, .ra = 0, .opsize = 4), VEC_GP, 0));
	CHECK(faulted(RUN(op_str, .ra = 0, .opsize = 4), VEC_GP, 0));
	CHECK(faulted(RUN(op_rdtsc), VEC_GP, 0));
	CHECK(faulted(RUN(op_hlt), VEC_GP, 0));
	CHECK(faulted(RUN(op_mov_from_cr, .aux = 0), VEC_GP, 0));
	CHECK(faulted(RUN(op_stac), VEC_UD, 0));
}

static void test_flags(void)
{
	long_mode(K_CODE);
	w64(0x50000, ~0ull);
	EQ(RUN(op_popf, .opsize = 8), STEP_MODE);
	EQ(cpu_rflags(c), (FL_ALL | FL_FIXED) & ~(FL_VM | FL_RF | FL_VIF | FL_VIP));
	EQ(c->r[RSP], 0x50008);
	EQ(RUN(op_pushf, .opsize = 8), DONE);
	EQ(r64(0x50000), (FL_ALL | FL_FIXED) & ~(FL_VM | FL_RF | FL_VIF | FL_VIP));

	long_mode(U_CODE | 3);
	w64(USTACK, ~0ull);
	EQ(RUN(op_popf, .opsize = 8), STEP_MODE);
	EQ(cpu_rflags(c), FL_FIXED | FL_ARITH | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID);
	c->r[RSP] = USTACK;
	w64(USTACK, 0);
	c->sflags |= FL_IOPL | FL_IF;
	EQ(RUN(op_popf, .opsize = 2), STEP_MODE); /* AC, ID, IOPL stay; TF goes */
	EQ(cpu_rflags(c), FL_FIXED | FL_AC | FL_ID | FL_IOPL);
	EQ(c->r[RSP], USTACK + 2);
	c->irq_shadow = false;
	EQ(RUN(op_sti), STEP_MODE);
	CHECK(c->irq_shadow);
	c->irq_shadow = false;
	EQ(RUN(op_sti), DONE);
	CHECK(!c->irq_shadow);
	c->sflags &= ~FL_IOPL;
	CHECK(faulted(RUN(op_cli), VEC_GP, 0));
	c->r[RSP] = 0x0000800000000008;
	CHECK(faulted(RUN(op_pushf, .opsize = 8), VEC_SS, 0));
}

static void test_io(void)
{
	long_mode(U_CODE | 3);
	mem[TSS + 104 + 0x70 / 8] = 0xfe; /* port 70h alone */
	c->r[RDX] = 0x70;
	EQ(RUN(op_in, .opsize = 1, .aux = 1), STEP_EXIT);
	EQ(c->exit, CPU_EXIT_IO);
	EQ(c->rip, UCODE);
	c->io.data = 0xabcdef;
	c->io.done = true;
	c->r[RAX] = 0x1122334455667788;
	EQ(RUN(op_in, .opsize = 1, .aux = 1), DONE);
	EQ(c->r[RAX], 0x11223344556677ef);
	CHECK(!c->io.done);
	CHECK(faulted(RUN(op_in, .opsize = 2, .aux = 1), VEC_GP, 0));
	CHECK(faulted(RUN(op_out, .opsize = 1, .imm = 0x71), VEC_GP, 0));
	c->r[RDX] = 0xffff;
	CHECK(faulted(RUN(op_out, .opsize = 1, .aux = 1), VEC_GP, 0)); /* beyond the limit's last byte pair */
	c->sflags |= FL_IOPL;
	u64 rip = c->rip;
	EQ(RUN(op_out, .opsize = 4, .imm = 0x80), STEP_EXIT);
	EQ(c->rip, rip + 2);
	EQ(c->io.data, 0x556677ef);
	c->deterministic = true;
	c->det_rng = 1;
	EQ(RUN(op_rdrand, .opsize = 8, .ra = 0), DONE);
	EQ(c->r[RAX], 0x910a2dec89025cc1); /* splitmix64(1) */
	EQ(c->aflags, FL_CF);
	c->r[RAX] = ~0ull;
	EQ(RUN(op_xbegin, .opsize = 4, .imm = 0x100), STEP_NEXT);
	EQ(c->r[RAX], 0);
	EQ(c->rip, c->r[R_RIP] + 0x100);
}

int main(void)
{
	c = calloc(1, sizeof *c);
	for (unsigned k = 0; k < TLB_CTX_COUNT; k++) {
		c->tlbs[k] = calloc(TLB_SIZE, sizeof(struct tlb_entry));
		for (unsigned j = 0; j < TLB_SIZE; j++)
			c->tlbs[k][j].rtag = c->tlbs[k][j].wtag = c->tlbs[k][j].xtag = TLB_NONE;
	}
	mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!c || mem == MAP_FAILED)
		return 99;
	ram.n = 1;
	ram.slot[0] = (struct ram_slot){ .size = RAM_SIZE, .hva = mem, .fd = -1 };
	test_long_delivery();
	test_soft_interrupts();
	test_iret();
	test_syscall();
	test_segments();
	test_far();
	test_legacy_delivery();
	test_real_mode();
	test_control();
	test_flags();
	test_io();
	printf("%u checks, %u failed\n", checks, failures);
	return failures != 0;
}
