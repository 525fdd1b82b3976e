/* x87, SSE, AVX and AVX-512 state: lazy switching, FXSAVE, XSAVE and its variants, exceptions. */
#include "lib/guest.h"

static u8 area[8192] __attribute__((aligned(64))), area2[8192] __attribute__((aligned(64)));
static u64 xcr0;
static bool enable(void)
{
	if (!(cpuid(1, 0).c >> 26 & 1))
		return false;
	write_cr4(read_cr4() | CR4_OSXSAVE);
	u32 have = cpuid(0xd, 0).a;
	xcr0 = have & 0xe7;
	if ((xcr0 & 0xe0) != 0xe0)
		xcr0 &= 7;
	asm volatile("xsetbv" : : "c"(0), "a"((u32)xcr0), "d"(0));
	return true;
}
#define XSAVE(insn, p, mask) asm volatile(insn " (%0)" : : "r"(p), "a"((u32)(mask)), "d"((u32)((u64)(mask) >> 32)) : "memory")

CASE(lazy_switching)
{
	/* #NM lets an OS swap states: the instruction runs again with the new state */
	asm volatile("fninit; fld1");
	write_cr0(read_cr0() | CR0_TS);
	SNIPPET(s_fst, "sub $16, %rsp; s_fst_at: fstpl (%rsp); mov (%rsp), %rax; int $0x80");
	extern const char s_fst_at[];
	struct frame f = kernel_frame(s_fst);
	CHECK_EQ(run(&f), VEC_NM);
	CHECK_EQ(last.ip, (uword)s_fst_at);
	asm volatile("clts");
	struct frame g = last;
	CHECK_EQ(run(&g), VEC_DONE);
	CHECK_EQ(last.r[RAX], 0x3ff0000000000000);
	/* LDMXCSR, FXSAVE and XSAVE are caught too */
	write_cr0(read_cr0() | CR0_TS);
	CHECK_EQ(TRAP_IN("fxsave (%%rbx)", "b"(area)), VEC_NM);
	CHECK_EQ(TRAP_IN("stmxcsr (%%rbx)", "b"(area)), VEC_NM);
	CHECK_EQ(TRAP_IN("fninit", "b"(0)), VEC_NM);
	CHECK_EQ(TRAP_IN("pause", "b"(0)), NO_TRAP);
	CHECK_EQ(TRAP_IN("prefetchnta (%%rbx)", "b"(0)), NO_TRAP);
	CHECK_EQ(TRAP_IN("sfence; lfence; mfence", "b"(0)), NO_TRAP);
	asm volatile("clts");
}

CASE(fxsave)
{
	u64 a = 0x1122334455667788, b = 0x99aabbccddeeff00;
	asm volatile("fninit; fld1; fldpi");
	asm volatile("movq %0, %%xmm0; movq %1, %%xmm15; pshufd $0x44, %%xmm15, %%xmm15" : : "r"(a), "r"(b));
	memset(area, 0xcc, 512);
	asm volatile("fxsave64 (%0)" : : "r"(area) : "memory");
	CHECK_EQ(*(u16 *)area, 0x37f);
	CHECK_EQ(*(u16 *)(area + 2) >> 11 & 7, 6); /* TOP */
	CHECK_EQ(area[4], 0xc0);                   /* abridged tag: two in use */
	CHECK_EQ(*(u32 *)(area + 24), 0x1f80);
	CHECK_EQ(*(u64 *)(area + 160), a);
	CHECK_EQ(*(u64 *)(area + 160 + 240), b);
	CHECK_EQ(*(u64 *)(area + 160 + 248), b);
	CHECK_EQ(*(u64 *)(area + 32), 0xc90fdaa22168c235); /* pi */
	CHECK_EQ(*(u16 *)(area + 40), 0x4000);
	memcpy(area2, area, 512);
	*(u64 *)(area2 + 160) = 42;
	area2[4] = 0x80;
	asm volatile("fxrstor64 (%0)" : : "r"(area2));
	u64 x;
	asm volatile("movq %%xmm0, %0" : "=r"(x));
	CHECK_EQ(x, 42);
	/* misaligned, bad MXCSR */
	if (!on_tcg()) /* known wrong: TCG checks the alignment but not MXCSR (SDM vol. 2 FXRSTOR) */
	{
		*(u32 *)(area2 + 24) = 0x80000000;
		CHECK_EQ(TRAP_IN("fxrstor (%%rbx)", "b"(area2)), VEC_GP);
	}
	CHECK_EQ(TRAP_IN("fxsave (%%rbx)", "b"(area + 8)), VEC_GP);
	CHECK_EQ(TRAP_IN("movaps (%%rbx), %%xmm0", "b"(area + 8)), VEC_GP);
	CHECK_EQ(TRAP_IN("movups (%%rbx), %%xmm0", "b"(area + 8)), NO_TRAP);
	CHECK_EQ(TRAP_IN("paddd (%%rbx), %%xmm0", "b"(area + 8)), VEC_GP);
	if (!on_tcg()) {
		u32 bad = 0x10000;
		CHECK_EQ(TRAP_IN("ldmxcsr (%%rbx)", "b"(&bad)), VEC_GP);
	}
	asm volatile("fninit");
}

CASE(x87_environment)
{
	/* FIP, FOP and FDP are the guest's own addresses */
	static double d = 3.0;
	asm volatile("fninit");
	extern const char x87_at[];
	asm volatile("x87_at: fldl %0; fdivs %1" : : "m"(d), "m"((const u32){0}));
	struct { u16 cw, r0, sw, r1, tw, r2; u32 fip; u16 fcs, fop; u32 fdp; u16 fds, r3; } env;
	asm volatile("fnstenv %0" : "=m"(env));
	CHECK_EQ(env.sw & 4, 4); /* ZE */
	CHECK_EQ(env.tw >> 14 & 3, 2); /* infinity: special */
	if (!on_tcg()) { /* known wrong: TCG does not keep the instruction pointer */
		CHECK(env.fip == (u32)(uword)x87_at || (env.fip > (u32)(uword)x87_at && env.fip < (u32)(uword)x87_at + 16));
		CHECK(env.fdp < 0x1000000);
	}
	asm volatile("fldenv %0" : : "m"(env));
	asm volatile("fninit");
	/* FNSAVE / FRSTOR */
	u8 save[108];
	asm volatile("fldpi; fnsave %0" : "=m"(save));
	CHECK_EQ(*(u64 *)(save + 28), 0xc90fdaa22168c235);
	asm volatile("fnstsw %0" : "=m"(env.sw));
	CHECK_EQ(env.sw, 0); /* FNSAVE initializes */
	asm volatile("frstor %1; fstpl %0" : "=m"(d) : "m"(save));
	CHECK_EQ(*(u64 *)&d, 0x400921fb54442d18);
	asm volatile("fninit");
}

CASE(xsave)
{
	if (!enable())
		return skipped("XSAVE");
	u32 size = cpuid(0xd, 0).b;
	CHECK(size >= 576 && size <= sizeof(area));
	memset(area, 0, sizeof(area));
	u64 v = 0x0123456789abcdef;
	if (xcr0 & 4)
		asm volatile("vmovq %0, %%xmm3; vpermq $0, %%ymm3, %%ymm3" : : "r"(v));
	else
		asm volatile("movq %0, %%xmm3" : : "r"(v));
	XSAVE("xsave", area, ~0ull);
	CHECK_EQ(*(u64 *)(area + 512) & 2, 2); /* XSTATE_BV: SSE in use */
	CHECK_EQ(*(u64 *)(area + 520), 0);
	CHECK_EQ(*(u64 *)(area + 160 + 3 * 16), v);
	if (xcr0 & 4) {
		u32 off = cpuid(0xd, 2).b;
		CHECK_EQ(cpuid(0xd, 2).a, 256);
		CHECK_EQ(*(u64 *)(area + off + 3 * 16), v);
		CHECK_EQ(*(u64 *)(area + off + 3 * 16 + 8), v);
		/* restore without the AVX bit: upper halves are zero */
		*(u64 *)(area + 512) &= ~4ull;
		XSAVE("xrstor", area, ~0ull);
		memset(area2, 0xff, sizeof(area2));
		*(u64 *)(area2 + 512) = 0;
		memset(area2 + 520, 0, 56);
		asm volatile("vmovdqu %%ymm3, (%0)" : : "r"(area2) : "memory");
		CHECK_EQ(*(u64 *)area2, v);
		CHECK_EQ(*(u64 *)(area2 + 16), 0);
	}
	/* only what the mask asks for */
	asm volatile("movq %0, %%xmm3" : : "r"(77ull));
	XSAVE("xrstor", area, 1);
	u64 x;
	asm volatile("movq %%xmm3, %0" : "=r"(x));
	CHECK_EQ(x, 77);
	XSAVE("xrstor", area, 2);
	asm volatile("movq %%xmm3, %0" : "=r"(x));
	CHECK_EQ(x, v);
	/* faults */
#define XR(insn, p) TRAP_IN(insn " (%%rbx)", "b"(p), "a"(-1), "d"(-1))
	CHECK_EQ(XR("xsave", area + 8), VEC_GP);
	CHECK_EQ(XR("xrstor", area + 16), VEC_GP);
	if (!on_tcg()) {
		*(u64 *)(area + 512) |= BIT(63); /* a component XCR0 lacks */
		CHECK_EQ(XR("xrstor", area), VEC_GP);
		*(u64 *)(area + 512) &= ~BIT(63);
		area[528] = 1; /* header bytes 63:16 must be 0 */
		CHECK_EQ(XR("xrstor", area), VEC_GP);
		area[528] = 0;
	}
	CHECK_EQ(XR("xrstor", area), NO_TRAP);
	write_cr0(read_cr0() | CR0_TS);
	if (!on_tcg()) /* known wrong: TCG does not look at TS (SDM vol. 2 XSAVE) */
		CHECK_EQ(XR("xsave", area), VEC_NM);
	asm volatile("clts");
	write_cr4(read_cr4() & ~CR4_OSXSAVE);
	CHECK_EQ(XR("xsave", area), VEC_UD);
	write_cr4(read_cr4() | CR4_OSXSAVE);
	/* a fault in the middle of the area: nothing of the state changes */
	u64 T = 0x8000000000;
	char *page = page_alloc(1);
	pt_map(boot_pml4, T, (u64)page, PTE_P | PTE_W);
	CHECK_EQ(XR("xsave", T + PAGE - 512), VEC_PF);
	CHECK_EQ(last_cr2 & ~0xfffull, T + PAGE);
	/* XSAVEOPT, XSAVEC */
	struct cpuid d1 = cpuid(0xd, 1);
	if (d1.a & 1) {
		memset(area2, 0, sizeof(area2));
		XSAVE("xsaveopt", area2, ~0ull);
		CHECK_EQ(*(u64 *)(area2 + 160 + 3 * 16), v);
	}
	if (d1.a & 2) {
		memset(area2, 0, sizeof(area2));
		XSAVE("xsavec", area2, ~0ull);
		CHECK_EQ(*(u64 *)(area2 + 520), BIT(63) | xcr0);
		asm volatile("xorps %%xmm3, %%xmm3" : :);
		XSAVE("xrstor", area2, ~0ull);
		asm volatile("movq %%xmm3, %0" : "=r"(x));
		CHECK_EQ(x, v);
	}
	if (d1.a & 4) {
		u32 in_use, hi;
		asm volatile("xgetbv" : "=a"(in_use), "=d"(hi) : "c"(1));
		CHECK_EQ(in_use & ~xcr0, 0);
	}
}

CASE(avx512)
{
	if (!enable() || (xcr0 & 0xe0) != 0xe0)
		return skipped("AVX-512");
	u64 v = 0xfedcba9876543210;
	asm volatile("vpbroadcastq %0, %%zmm5; vpbroadcastq %0, %%zmm31; kmovw %k1, %%k3" : : "r"(v), "r"(0x5a5a));
	memset(area, 0, sizeof(area));
	XSAVE("xsave", area, ~0ull);
	CHECK_EQ(*(u64 *)(area + 512) & 0xe6, 0xe6);
	CHECK_EQ(*(u64 *)(area + cpuid(0xd, 5).b + 3 * 8), 0x5a5a);
	CHECK_EQ(*(u64 *)(area + cpuid(0xd, 6).b + 5 * 32 + 24), v);
	CHECK_EQ(*(u64 *)(area + cpuid(0xd, 7).b + 15 * 64 + 56), v);
	asm volatile("vpxorq %%zmm31, %%zmm31, %%zmm31; kxorw %%k3, %%k3, %%k3" : :);
	XSAVE("xrstor", area, 0xe0);
	asm volatile("vmovdqu64 %%zmm31, (%0)" : : "r"(area2) : "memory");
	CHECK_EQ(*(u64 *)(area2 + 56), v);
	/* masked store: bytes that are masked out do not fault */
	u64 T = 0x8000000000;
	char *page = page_alloc(1);
	pt_map(boot_pml4, T, (u64)page, PTE_P | PTE_W);
	u32 k = 0xff;
	CHECK_EQ(TRAP_IN("kmovd %%ecx, %%k1; vmovdqu32 %%zmm31, (%%rbx)%{%%k1%}", "b"(T + PAGE - 32), "c"(k)), NO_TRAP);
	CHECK_EQ(*(u64 *)(page + PAGE - 8), v);
	CHECK_EQ(TRAP_IN("kmovd %%ecx, %%k1; vmovdqu32 %%zmm31, (%%rbx)%{%%k1%}", "b"(T + PAGE - 32), "c"(0x1ff)), VEC_PF);
	CHECK_EQ(last_cr2 & ~0xfffull, T + PAGE); /* any byte of the element, as the host has it */
	asm volatile("vzeroupper");
}

/* interrupts between vector instructions do not disturb the state; neither do ring changes */
static void on_timer(struct frame *f)
{
	asm volatile("xorps %%xmm9, %%xmm9; fninit" : :); /* the handler uses the FPU after saving it */
	apic_write(0xb0, 0);
	apic_write(0x380, 20000);
}
static volatile unsigned saves;
static void on_timer_saving(struct frame *f)
{
	static u8 st[512] __attribute__((aligned(16)));
	asm volatile("fxsave64 (%0)" : : "r"(st) : "memory");
	on_timer(f);
	asm volatile("fxrstor64 (%0)" : : "r"(st) : "memory");
	saves++;
}
CASE(preemption)
{
	SNIPPET(s_sum, "mov $1, %eax; cvtsi2sd %eax, %xmm9; xorpd %xmm8, %xmm8; fninit; fldz; 1: addsd %xmm9, %xmm8; fld1; faddp; "
		       "dec %rcx; jnz 1b; sub $16, %rsp; fistpll (%rsp); mov (%rsp), %rdx; cvttsd2si %xmm8, %rax; int $0x80");
	apic_init();
	irq_hook[0x61] = on_timer_saving;
	apic_write(0x3e0, 0xb);
	apic_write(0x320, 0x61);
	apic_write(0x380, 20000);
	struct frame f = user_frame(s_sum);
	f.flags |= FL_IF;
	for (unsigned i = 0; i < 20 && saves < 10; i++) {
		f.r[RCX] = 300000;
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RAX], 300000);
		CHECK_EQ(last.r[RDX], 300000);
	}
	apic_write(0x320, 0x10000);
	CHECK(saves > 0);
}
