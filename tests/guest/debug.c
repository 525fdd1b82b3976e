/* Debug exceptions: single-stepping, breakpoints, DR6/DR7, RF (SDM vol. 3 chapter 17). */
#include "lib/guest.h"

#define DR6_NONE 0xffff0ff0ull
#define B(n) BIT(n)
#define BD BIT(13)
#define BS BIT(14)
#define L(n) BIT(2 * (n))
#define G(n) BIT(2 * (n) + 1)
#define EXECUTE(n) 0
#define WRITES(n) (1ull << (16 + 4 * (n)))
#define PORTS(n) (2ull << (16 + 4 * (n)))
#define READWRITES(n) (3ull << (16 + 4 * (n)))
#define LEN(n, l) ((l == 1 ? 0ull : l == 2 ? 1ull : l == 4 ? 3ull : 2ull) << (18 + 4 * (n)))

static void expect_db(const char *file, int line, const struct frame *f, const void *ip, u64 dr6)
{
	write_dr6(DR6_NONE);
	unsigned v = run(f);
	if (v != VEC_DB)
		check_failed(file, line, "vector", v, VEC_DB);
	else if (last.ip != (uword)ip)
		check_failed(file, line, "RIP", last.ip, (uword)ip);
	else if (last_dr6 != dr6)
		check_failed(file, line, "DR6", last_dr6, dr6);
}
#define EXPECT_DB(f, ip, dr6) expect_db(__FILE__, __LINE__, f, (const void *)(ip), DR6_NONE | (dr6))

SNIPPET(s_nops, "nop; nop; nop; int $0x80");
SNIPPET(s_popf, "pushf; orl $0x100, (%rsp); popf; s_popf_1: nop; s_popf_2: nop; int $0x80");
SNIPPET(s_mov_ss, "s_mov_ss_0: mov %ecx, %ss; nop; s_mov_ss_2: nop; int $0x80");
SNIPPET(s_int3, "int3; s_int3_1: nop");
SNIPPET(s_jmp, "jmp s_jmp_2; nop; s_jmp_2: nop; int $0x80");
SNIPPET(s_stos, "rep stosb; s_stos_1: nop; int $0x80");
SNIPPET(s_pushf, "pushf; s_pushf_1: pop %rax; int $0x80");
SNIPPET(s_icebp, ".byte 0xf1; s_icebp_1: nop; int $0x80");
SNIPPET(s_syscall_like, "cpuid; s_sys_1: rdtsc; s_sys_2: nop; int $0x80");
SNIPPET(s_ud, "ud2");
extern const char s_popf_2[], s_mov_ss_2[], s_int3_1[], s_jmp_2[], s_stos_1[], s_pushf_1[], s_icebp_1[], s_sys_1[];

CASE(single_step)
{
	struct frame f;
	for (int user = 0; user < 2; user++) {
		uword a = user ? UALIAS : 0;
#define START(s) (f = user ? user_frame(s) : kernel_frame(s), (void)(f.flags |= FL_TF))
		START(s_nops);
		EXPECT_DB(&f, s_nops + 1 + a, BS);
		CHECK_EQ(last.flags & (FL_TF | FL_RF), FL_TF);
		START(s_jmp);
		EXPECT_DB(&f, s_jmp_2 + a, BS);
		START(s_syscall_like);
		EXPECT_DB(&f, s_sys_1 + a, BS);
		START(s_popf);
		f.flags &= ~FL_TF;
		EXPECT_DB(&f, s_popf_2 + a, BS);
		START(s_pushf);
		EXPECT_DB(&f, s_pushf_1 + a, BS);
		/* a fault comes instead of the step; INT3's trap has TF saved */
		START(s_ud);
		CHECK_EQ(run(&f), VEC_UD);
		CHECK_EQ(last.flags & FL_TF, FL_TF);
		START(s_int3);
		CHECK_EQ(run(&f), VEC_BP);
		CHECK_EQ(last.ip, (uword)s_int3_1 + a);
		CHECK_EQ(last.flags & FL_TF, FL_TF);
	}
	/* whole snippet, stepping by returning from the handler */
	f = kernel_frame(s_nops);
	f.flags |= FL_TF;
	unsigned steps = 0;
	while (run(&f) == VEC_DB && steps < 10) {
		steps++;
		f = last;
	}
	CHECK_EQ(steps, 3);
	CHECK_EQ(last.vector, VEC_DONE);
	/* MOV SS holds the trap back by one instruction (SDM 6.8.3) */
	f = kernel_frame(s_mov_ss);
	f.r[RCX] = SEL_KDATA;
	f.flags |= FL_TF;
	if (!tcg_known_wrong("MOV SS does not hold back the single-step trap (SDM 6.8.3)"))
		EXPECT_DB(&f, s_mov_ss_2, BS);
	/* a repeated string instruction traps after every iteration */
	static char buf[8];
	f = kernel_frame(s_stos);
	f.r[RDI] = (uword)buf;
	f.r[RCX] = 3;
	f.r[RAX] = 'x';
	f.flags |= FL_TF;
	for (unsigned i = 1; i <= 3; i++) {
		EXPECT_DB(&f, i < 3 ? s_stos : s_stos_1, BS);
		CHECK_EQ(last.r[RCX], 3 - i);
		CHECK_EQ(last.r[RDI], (uword)buf + i);
		f = last;
	}
}

CASE(icebp)
{
	if (tcg_known_wrong("0xf1 gives #UD (SDM vol. 2 INT1)"))
		return;
	struct frame f = kernel_frame(s_icebp);
	EXPECT_DB(&f, s_icebp_1, 0);
	f = user_frame(s_icebp); /* no DPL check */
	EXPECT_DB(&f, U(s_icebp_1), 0);
}

static volatile u64 watched[4] __attribute__((aligned(32)));
SNIPPET(s_w4, "mov %eax, (%rbx); s_w4_1: nop; int $0x80");
SNIPPET(s_r4, "mov (%rbx), %eax; s_r4_1: nop; int $0x80");
SNIPPET(s_w1, "mov %al, (%rbx); s_w1_1: nop; int $0x80");
SNIPPET(s_rmw, "lock incq (%rbx); s_rmw_1: nop; int $0x80");
SNIPPET(s_ss_mem, "mov (%rbx), %ss; nop; s_ss_mem_2: nop; int $0x80");
SNIPPET(s_movs, "rep movsb; s_movs_1: nop; int $0x80");
extern const char s_w4_1[], s_r4_1[], s_w1_1[], s_rmw_1[], s_ss_mem_2[], s_movs_1[];
static unsigned with(u64 dr7, const char *code, void *rbx)
{
	struct frame f = kernel_frame(code);
	f.r[RBX] = (uword)rbx;
	f.r[RAX] = SEL_KDATA;
	write_dr6(DR6_NONE);
	write_dr7(dr7);
	unsigned v = run(&f);
	write_dr7(0x400);
	return v;
}

CASE(data_breakpoints)
{
	char *w = (char *)watched;
	write_dr0((uword)w + 8);
	write_dr3((uword)w + 16);
	struct { u64 dr7; const char *code, *ip; int off; bool hit; unsigned n; } t[] = {
		{L(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 8, true, 0},
		{G(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 8, true, 0},
		{WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 8, false, 0},
		{L(0) | WRITES(0) | LEN(0, 4), s_r4, s_r4_1, 8, false, 0},
		{L(0) | READWRITES(0) | LEN(0, 4), s_r4, s_r4_1, 8, true, 0},
		{L(0) | READWRITES(0) | LEN(0, 4), s_w4, s_w4_1, 8, true, 0},
		{L(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 5, true, 0}, /* overlaps by one byte */
		{L(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 4, false, 0},
		{L(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 11, true, 0},
		{L(0) | WRITES(0) | LEN(0, 4), s_w4, s_w4_1, 12, false, 0},
		{L(0) | WRITES(0) | LEN(0, 1), s_w1, s_w1_1, 8, true, 0},
		{L(0) | WRITES(0) | LEN(0, 1), s_w1, s_w1_1, 9, false, 0},
		{L(0) | WRITES(0) | LEN(0, 2), s_w1, s_w1_1, 9, true, 0},
		{L(0) | WRITES(0) | LEN(0, 8), s_w1, s_w1_1, 15, true, 0},
		{L(3) | WRITES(3) | LEN(3, 8), s_rmw, s_rmw_1, 16, true, 3},
	};
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		unsigned v = with(t[i].dr7, t[i].code, w + t[i].off);
		if (v != (t[i].hit ? VEC_DB : VEC_DONE)) {
			print("data breakpoint %u\n", i);
			CHECK_EQ(v, t[i].hit ? VEC_DB : VEC_DONE);
		} else if (t[i].hit) {
			CHECK_EQ(last.ip, (uword)t[i].ip);
			CHECK_EQ(last_dr6, DR6_NONE | B(t[i].n));
		}
	}
	/* the store is done when the trap comes */
	watched[1] = 0;
	CHECK_EQ(with(L(0) | WRITES(0) | LEN(0, 4), s_w4, w + 8), VEC_DB);
	CHECK_EQ(watched[1], SEL_KDATA);
	/* ring 3 too */
	write_dr0(U(w + 8));
	write_dr7(L(0) | WRITES(0) | LEN(0, 4));
	struct frame f = user_frame(s_w4);
	f.r[RBX] = U(w + 8);
	EXPECT_DB(&f, U(s_w4_1), B(0));
	write_dr7(0x400);
	/* string instruction: after the iteration that hit */
	write_dr0((uword)w + 8);
	f = kernel_frame(s_movs);
	f.r[RSI] = (uword)s_movs;
	f.r[RDI] = (uword)w + 6;
	f.r[RCX] = 8;
	write_dr7(L(0) | WRITES(0) | LEN(0, 1));
	EXPECT_DB(&f, s_movs, B(0));
	CHECK_EQ(last.r[RCX], 5);
	write_dr7(0x400);
	/* MOV SS from watched memory: the trap is held back */
	if (!tcg_known_wrong("MOV SS does not hold back a data breakpoint (SDM 6.8.3)")) {
		watched[1] = SEL_KDATA;
		CHECK_EQ(with(L(0) | READWRITES(0) | LEN(0, 2), s_ss_mem, w + 8), VEC_DB);
		CHECK_EQ(last.ip, (uword)s_ss_mem_2);
	}
	/* together with TF: both reasons in DR6 */
	f = kernel_frame(s_w4);
	f.r[RBX] = (uword)w + 8;
	f.flags |= FL_TF;
	write_dr7(L(0) | WRITES(0) | LEN(0, 4));
	if (!tcg_known_wrong("a data breakpoint under TF reports one reason only (SDM 17.2.3)"))
		EXPECT_DB(&f, s_w4_1, B(0) | BS);
	write_dr7(0x400);
}

CASE(code_breakpoints)
{
	struct frame f = kernel_frame(s_nops);
	write_dr1((uword)s_nops + 1);
	write_dr7(L(1) | EXECUTE(1));
	EXPECT_DB(&f, s_nops + 1, B(1));
	CHECK_EQ(last.flags & FL_RF, 0);
	/* resumed with RF = 1: the breakpoint is passed, RF is cleared behind one instruction */
	f = last;
	f.flags |= FL_RF;
	CHECK_EQ(run(&f), VEC_DONE);
	if (!on_tcg()) /* known wrong: TCG clears RF at the end of its translation block only (SDM 17.3.1.1) */
		CHECK_EQ(last.flags & FL_RF, 0);
	/* RF lives for one instruction: it does not pass the next but one */
	f = kernel_frame(s_nops);
	f.flags |= FL_RF;
	EXPECT_DB(&f, s_nops + 1, B(1));
	/* first instruction after IRET without RF */
	f.ip = (uword)s_nops + 1;
	f.flags = FL_1;
	EXPECT_DB(&f, s_nops + 1, B(1));
	/* LEN must be 0 for execution; the address of a middle byte does not match */
	write_dr1((uword)s_jmp + 1);
	f = kernel_frame(s_jmp);
	CHECK_EQ(run(&f), VEC_DONE);
	write_dr7(0x400);
	f = kernel_frame(s_nops);
	CHECK_EQ(run(&f), VEC_DONE);
}

SNIPPET(s_mov_dr7, "s_gd_0: mov %dr7, %rax; int $0x80");
static u64 dr7_in_handler;
static bool note_dr7(struct frame *f)
{
	dr7_in_handler = read_dr7();
	return false;
}
CASE(general_detect)
{
	if (tcg_known_wrong("DR7.GD is not implemented (SDM 17.2.4)"))
		return;
	struct frame f = kernel_frame(s_mov_dr7);
	trap_hook = NULL;
	write_dr6(DR6_NONE);
	write_dr7(0x400 | BIT(13));
	unsigned v = run(&f); /* trap() reads DR6: delivery must have cleared GD */
	CHECK_EQ(v, VEC_DB);
	CHECK_EQ(last.ip, (uword)s_mov_dr7);
	CHECK_EQ(last_dr6, DR6_NONE | BD);
	trap_hook = note_dr7;
	write_dr7(0x400 | BIT(13));
	CHECK_EQ(run(&f), VEC_DB);
	CHECK_EQ(dr7_in_handler, 0x400);
}

CASE(debug_registers)
{
	struct frame f = user_frame(s_mov_dr7);
	CHECK_EQ(run(&f), VEC_GP);
	write_dr7(0);
	CHECK_EQ(read_dr7(), 0x400);
	uword cr4 = read_cr4();
	write_cr4(cr4 | CR4_DE);
	CHECK_EQ(TRAP_IN("mov %%dr4, %%r11", "b"(0)), VEC_UD);
	CHECK_EQ(TRAP_IN("mov %%dr5, %%r11", "b"(0)), VEC_UD);
	write_cr4(cr4 & ~CR4_DE);
	CHECK_EQ(TRAP_IN("mov %%dr4, %%r11", "b"(0)), NO_TRAP);
	write_cr4(cr4);
	write_dr0(0x123456789abcdef0);
	CHECK_EQ(read_dr0(), 0x123456789abcdef0);
	if (tcg_known_wrong("bits 63:32 of DR6 and DR7 are not checked, fixed bits of DR6 not kept (SDM 17.2.6)"))
		return;
	CHECK_EQ(TRAP_IN("mov %%rbx, %%dr7", "b"(BIT(32))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%dr6", "b"(BIT(32))), VEC_GP);
	write_dr6(0);
	CHECK_EQ(read_dr6() & ~BIT(16) & ~BIT(11), DR6_NONE & ~BIT(16) & ~BIT(11));
	write_dr6(DR6_NONE);
}

SNIPPET(s_out, "out %al, %dx; s_out_1: nop; int $0x80");
extern const char s_out_1[];
CASE(port_breakpoints)
{
	uword cr4 = read_cr4();
	write_cr4(cr4 | CR4_DE);
	write_dr2(0x80);
	write_dr7(L(2) | PORTS(2));
	struct frame f = kernel_frame(s_out);
	f.r[RDX] = 0x80;
	EXPECT_DB(&f, s_out_1, B(2));
	f.r[RDX] = 0x81;
	CHECK_EQ(run(&f), VEC_DONE);
	write_dr7(0x400);
	write_cr4(cr4);
}
