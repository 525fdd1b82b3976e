/* Exceptions and interrupts in 64-bit mode: vectors, error codes, return addresses, stacks, flags. */
#include "lib/guest.h"

SNIPPET(s_done, "int $0x80");

static void expect_run(const char *file, int line, struct frame *f, unsigned vector, u64 error, const void *ip)
{
	unsigned v = run(f);
	if (v != vector)
		check_failed(file, line, "vector", v, vector);
	else if (last.error != error)
		check_failed(file, line, "error code", last.error, error);
	else if (ip && last.ip != (uword)ip)
		check_failed(file, line, "return RIP", last.ip, (uword)ip);
}
#define EXPECT_RUN(f, v, e, ip) expect_run(__FILE__, __LINE__, f, v, e, (const void *)(ip))

SNIPPET(s_div0, "xor %ecx, %ecx; mov $1, %eax; xor %edx, %edx; s_div0_at: div %ecx");
SNIPPET(s_idiv_ovf, "mov $-1, %rcx; movabs $0x8000000000000000, %rax; cqo; s_idiv_at: idiv %rcx");
SNIPPET(s_int3, "int3; s_int3_next: nop");
SNIPPET(s_cd03, ".byte 0xcd, 3; s_cd03_next: nop");
SNIPPET(s_int4, "int $4; s_int4_next: nop");
SNIPPET(s_into64, ".byte 0xce");
SNIPPET32(s_into32, "movb $0x7f, %al; addb $1, %al; into; s_into32_next: nop");
SNIPPET32(s_into32_no, "xorl %eax, %eax; into; int $0x80");
SNIPPET32(s_bound, "pushl $10; pushl $1; movl $11, %eax; s_bound_at: bound %eax, (%esp)");
SNIPPET32(s_bound_ok, "pushl $10; pushl $1; movl $10, %eax; bound %eax, (%esp); int $0x80");
SNIPPET(s_ud2, "ud2");
SNIPPET(s_hlt, "hlt");
SNIPPET(s_lock_ud, ".byte 0xf0, 0x90"); /* lock nop */
SNIPPET(s_int81, "int $0x81; s_int81_next: nop");
SNIPPET(s_long, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66, 0x90");
extern const char s_div0_at[], s_idiv_at[], s_int3_next[], s_cd03_next[], s_int4_next[], s_into32_next[], s_bound_at[],
	s_int81_next[];

CASE(faults_and_traps)
{
	struct frame f;
	for (int user = 0; user < 2; user++) {
		uword a = user ? UALIAS : 0;
#define START(s) (f = user ? user_frame(s) : kernel_frame(s), &f)
		EXPECT_RUN(START(s_div0), VEC_DE, 0, s_div0_at + a);
		EXPECT_RUN(START(s_idiv_ovf), VEC_DE, 0, s_idiv_at + a);
		EXPECT_RUN(START(s_int3), VEC_BP, 0, s_int3_next + a);
		EXPECT_RUN(START(s_cd03), VEC_BP, 0, s_cd03_next + a);
		EXPECT_RUN(START(s_int4), VEC_OF, 0, s_int4_next + a);
		EXPECT_RUN(START(s_into64), VEC_UD, 0, s_into64 + a);
		EXPECT_RUN(START(s_ud2), VEC_UD, 0, s_ud2 + a);
		EXPECT_RUN(START(s_lock_ud), VEC_UD, 0, s_lock_ud + a);
		EXPECT_RUN(START(s_long), VEC_GP, 0, s_long + a);
		f = user ? user_frame(s_into32) : kernel_frame(s_into32);
		f.cs = user ? SEL_UCODE32 : SEL_KCODE32;
		EXPECT_RUN(&f, VEC_OF, 0, s_into32_next + a);
		f.ip = (uword)s_into32_no + a;
		EXPECT_RUN(&f, VEC_DONE, 0, 0);
		f.ip = (uword)s_bound + a;
		EXPECT_RUN(&f, VEC_BR, 0, s_bound_at + a);
		f.ip = (uword)s_bound_ok + a;
		EXPECT_RUN(&f, VEC_DONE, 0, 0);
	}
	f = user_frame(s_hlt);
	EXPECT_RUN(&f, VEC_GP, 0, U(s_hlt));
}

CASE(int_n_rights)
{
	/* DPL 0 gate from ring 3: #GP with the IDT bit; from ring 0 it works */
	unsigned err = 0x81 * 8 + 2;
	if (tcg_known_wrong("IDT error codes are vector * 16 + 2 in long mode (SDM 6.13: vector * 8 + 2)"))
		err = 0x81 * 16 + 2;
	struct frame f = user_frame(s_int81);
	EXPECT_RUN(&f, VEC_GP, err, U(s_int81));
	f = kernel_frame(s_int81);
	EXPECT_RUN(&f, 0x81, 0, s_int81_next);
	/* not present */
	u8 type = idt[0x81].type;
	idt[0x81].type = 0x6e;
	f = user_frame(s_int81);
	EXPECT_RUN(&f, VEC_NP, err, U(s_int81));
	/* not a gate */
	idt[0x81].type = 0xe2;
	EXPECT_RUN(&f, VEC_GP, err, U(s_int81));
	idt[0x81].type = type;
	/* beyond the limit */
	struct dtr d = idtr;
	d.limit = 0x81 * 16 + 14;
	asm volatile("lidt %0" : : "m"(d));
	f = kernel_frame(s_int81);
	EXPECT_RUN(&f, VEC_GP, err, s_int81);
	asm volatile("lidt %0" : : "m"(idtr));
	/* gate with bad code selectors */
	u16 sel = idt[0x81].sel;
	idt[0x81].sel = 0;
	EXPECT_RUN(&f, VEC_GP, 0, s_int81);
	idt[0x81].sel = SEL_KDATA;
	EXPECT_RUN(&f, VEC_GP, SEL_KDATA, s_int81);
	idt[0x81].sel = SEL_KCODE32; /* must be a 64-bit segment */
	EXPECT_RUN(&f, VEC_GP, SEL_KCODE32, s_int81);
	idt[0x81].sel = GDT_ENTRIES * 8;
	EXPECT_RUN(&f, VEC_GP, GDT_ENTRIES * 8, s_int81);
	gdt[SEL_FREE / 8] = 0x00af1b000000ffff; /* 64-bit code, not present */
	idt[0x81].sel = SEL_FREE;
	EXPECT_RUN(&f, VEC_NP, SEL_FREE, s_int81);
	/* handler of lower privilege than the interrupted code */
	idt[0x81].sel = SEL_UCODE;
	EXPECT_RUN(&f, VEC_GP, SEL_UCODE & ~3, s_int81);
	idt[0x81].sel = sel;
	EXPECT_RUN(&f, 0x81, 0, s_int81_next);
}

SNIPPET(s_stack, "mov %rsp, %rax; mov %ss, %ecx; int $0x80");
CASE(stacks)
{
	/* RSP0 from ring 3; 16-byte alignment and no switch from ring 0 */
	struct frame f = user_frame(s_done);
	f.sp = 0x1234567;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.sp, 0x1234567);
	CHECK_EQ(last.ss, SEL_UDATA);
	CHECK_EQ(last.cs, SEL_UCODE);
	f = kernel_frame(s_stack);
	for (unsigned k = 0; k < 16; k++) {
		f.sp = (uword)run_stack_top - 64 + k;
		EXPECT_RUN(&f, VEC_DONE, 0, 0);
		CHECK_EQ(last.sp, f.sp);
		CHECK_EQ(last.r[RAX], f.sp);
		CHECK_EQ(last.ss, SEL_KDATA);
	}
}

static uword frame_at;
static bool note_frame(struct frame *f)
{
	frame_at = (uword)f;
	return false;
}
CASE(ist)
{
	static char stack[4096] __attribute__((aligned(16)));
	tss.ist[2] = (u64)stack + sizeof(stack) - 5; /* misaligned: aligned down */
	idt[0x81].ist = 3;
	trap_hook = note_frame;
	struct frame f = kernel_frame(s_int81);
	EXPECT_RUN(&f, 0x81, 0, 0);
	CHECK_EQ(frame_at + sizeof(struct frame), (((u64)stack + sizeof(stack) - 5) & ~15ull));
	/* also from ring 3, instead of RSP0 */
	idt[0x81].type = 0xee;
	f = user_frame(s_int81);
	EXPECT_RUN(&f, 0x81, 0, 0);
	CHECK_EQ(frame_at + sizeof(struct frame), (((u64)stack + sizeof(stack) - 5) & ~15ull));
	CHECK_EQ(last.ss, SEL_UDATA);
	idt[0x81].ist = 0;
	EXPECT_RUN(&f, 0x81, 0, 0);
	CHECK_EQ(frame_at + sizeof(struct frame), (u64)trap_stack_top);
	/* without IST at equal privilege: the current stack, aligned */
	idt[0x81].type = 0x8e;
	f = kernel_frame(s_int81);
	f.sp = (uword)run_stack_top - 3;
	EXPECT_RUN(&f, 0x81, 0, 0);
	CHECK_EQ(frame_at + sizeof(struct frame), (u64)run_stack_top - 16);
	/* a new stack that is not canonical: #SS(0), itself on an IST stack */
	tss.ist[0] = (u64)trap_stack_top - 8192;
	idt[VEC_SS].ist = 1;
	tss.rsp[0] = 0x900000000000;
	f = user_frame(s_done);
	if (!tcg_known_wrong("a non-canonical RSP0 gives #PF or #GP, SDM vol. 2 INT n: #SS"))
		EXPECT_RUN(&f, VEC_SS, 0, U(s_done));
	tss.rsp[0] = (u64)trap_stack_top;
	idt[VEC_SS].ist = 0;
}

CASE(tss_limit)
{
	/* RSP0 is inside the limit, IST1 is not: #TS(TSS selector) */
	gdt[SEL_TSS / 8] = desc((u32)(uword)&tss, 0x23, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
	idt[0x80].ist = 1;
	struct frame f = user_frame(s_done);
	EXPECT_RUN(&f, VEC_TS, SEL_TSS, U(s_done));
	idt[0x80].ist = 0;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	gdt[SEL_TSS / 8] = desc((u32)(uword)&tss, sizeof(tss) - 1, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
	CHECK_EQ(gdt[SEL_TSS / 8] >> 40 & 0xff, 0x8b); /* LTR marks it busy */
	CHECK_EQ(TRAP_IN("ltr %w0", "b"(SEL_TSS)), VEC_GP); /* … and refuses a busy one */
	CHECK_EQ(last.error, SEL_TSS);
}

SNIPPET(s_sti_run, "int $0x81");
CASE(gates_and_flags)
{
	struct frame f = kernel_frame(s_sti_run);
	f.flags = FL_1 | FL_IF | FL_NT | FL_AC | FL_DF | FL_CF | FL_ZF;
	idt[0x81].type = 0x8e;
	EXPECT_RUN(&f, 0x81, 0, 0);
	CHECK_EQ(last.flags, f.flags);
	/* what the handler sees: interrupt gate clears IF, trap gate does not; both clear TF NT RF (not AC) */
	SNIPPET(read_flags_handler, "pushf; pop %rax; cli; int $0x80");
	u64 off = (u64)read_flags_handler;
	struct gate old = idt[0x81];
	f.flags &= ~FL_IF;
	gate_set(0x81, off, SEL_KCODE, 0x8e, 0);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RAX], FL_1 | FL_AC | FL_DF | FL_CF | FL_ZF);
	f.flags |= FL_IF;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RAX], FL_1 | FL_AC | FL_DF | FL_CF | FL_ZF);
	gate_set(0x81, off, SEL_KCODE, 0x8f, 0);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RAX], FL_1 | FL_AC | FL_DF | FL_CF | FL_ZF | FL_IF);
	idt[0x81] = old;
}

CASE(rf_in_frame)
{
	/* SDM 17.3.1.1: faults push RF = 1, traps and INT n push it unchanged */
	if (tcg_known_wrong("RF is not set in the image pushed by faults (SDM 17.3.1.1)"))
		return;
	struct frame f = kernel_frame(s_ud2);
	EXPECT_RUN(&f, VEC_UD, 0, s_ud2);
	CHECK_EQ(last.flags & FL_RF, FL_RF);
	f = kernel_frame(s_div0);
	EXPECT_RUN(&f, VEC_DE, 0, s_div0_at);
	CHECK_EQ(last.flags & FL_RF, FL_RF);
	f = kernel_frame(s_int3);
	EXPECT_RUN(&f, VEC_BP, 0, s_int3_next);
	CHECK_EQ(last.flags & FL_RF, 0);
}

/* ---- device-not-available, floating point ---- */
SNIPPET(s_fld, "fld1; int $0x80");
SNIPPET(s_fwait, "fwait; int $0x80");
SNIPPET(s_movaps, "movaps %xmm0, %xmm1; int $0x80");
SNIPPET(s_mf, "fninit; push $0x37b; fldcw (%rsp); fld1; fldz; fdivrp; s_mf_at: fwait");
SNIPPET(s_xm, "push $0x1d80; ldmxcsr (%rsp); xorps %xmm0, %xmm0; pcmpeqd %xmm1, %xmm1; psrld $25, %xmm1; pslld $23, "
	      "%xmm1; s_xm_at: divps %xmm0, %xmm1");
extern const char s_mf_at[], s_xm_at[];
CASE(fpu_exceptions)
{
	uword cr0 = read_cr0(), cr4 = read_cr4();
	struct frame f = kernel_frame(s_fld), sse = kernel_frame(s_movaps), wait = kernel_frame(s_fwait);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	asm volatile("fninit");
	write_cr0(cr0 | CR0_TS);
	EXPECT_RUN(&f, VEC_NM, 0, s_fld);
	EXPECT_RUN(&sse, VEC_NM, 0, s_movaps);
	EXPECT_RUN(&wait, VEC_NM, 0, s_fwait);
	write_cr0((cr0 | CR0_TS) & ~CR0_MP);
	EXPECT_RUN(&wait, VEC_DONE, 0, 0); /* FWAIT needs MP and TS */
	write_cr0(cr0 | CR0_EM);
	EXPECT_RUN(&f, VEC_NM, 0, s_fld);
	EXPECT_RUN(&sse, VEC_UD, 0, s_movaps);
	write_cr0(cr0);
	write_cr4(cr4 & ~CR4_OSFXSR);
	EXPECT_RUN(&sse, VEC_UD, 0, s_movaps);
	write_cr4(cr4);
	EXPECT_RUN(&sse, VEC_DONE, 0, 0);

	f = kernel_frame(s_mf);
	EXPECT_RUN(&f, VEC_MF, 0, s_mf_at);
	u16 sw;
	asm volatile("fnstsw %0" : "=a"(sw));
	CHECK_EQ(sw & 0x84, 0x84); /* ES and ZE */
	asm volatile("fninit");
	f = kernel_frame(s_xm);
	if (tcg_known_wrong("#XM is not implemented (SDM 6.15 vector 19)")) {
		asm volatile("ldmxcsr %0" : : "m"((const u32){0x1f80}));
		return;
	}
	EXPECT_RUN(&f, VEC_XM, 0, s_xm_at);
	u32 mxcsr;
	asm volatile("stmxcsr %0" : "=m"(mxcsr));
	CHECK_EQ(mxcsr & 0x3f, 4); /* ZE */
	write_cr4(cr4 & ~CR4_OSXMMEXCPT);
	EXPECT_RUN(&f, VEC_UD, 0, s_xm_at);
	write_cr4(cr4);
	mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
}

/* ---- alignment check ---- */
SNIPPET(s_unaligned, "mov $1, %ecx; s_unaligned_at: mov 1(%rsp), %eax; int $0x80");
SNIPPET(s_aligned, "mov 4(%rsp), %eax; mov 1(%rsp), %al; int $0x80");
extern const char s_unaligned_at[];
CASE(alignment_check)
{
	if (tcg_known_wrong("#AC is not implemented (SDM 6.15 vector 17)"))
		return;
	uword cr0 = read_cr0();
	struct frame f = user_frame(s_unaligned);
	f.sp -= 64;
	write_cr0(cr0 | CR0_AM);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	f.flags |= FL_AC;
	EXPECT_RUN(&f, VEC_AC, 0, U(s_unaligned_at));
	f.ip = U(s_aligned);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	f = kernel_frame(s_unaligned);
	f.sp -= 64;
	f.flags |= FL_AC;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	write_cr0(cr0);
	f = user_frame(s_unaligned);
	f.sp -= 64;
	f.flags |= FL_AC;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
}

/* ---- canonical addresses ---- */
SNIPPET(s_gp_load, "s_gp_load_at: mov (%rax), %ecx; int $0x80");
SNIPPET(s_ss_load, "s_ss_load_at: mov (%rbp), %ecx; int $0x80");
SNIPPET(s_ss_push, "push %rax; int $0x80");
SNIPPET(s_jmp_rax, "jmp *%rax");
SNIPPET(s_ret_bad, "push %rax; s_ret_bad_at: ret");
SNIPPET(s_call_mem, "call *(%rax); int $0x80");
extern const char s_ret_bad_at[];
CASE(non_canonical)
{
	bool ss_wrong = tcg_known_wrong("non-canonical stack references give #GP (SDM vol. 1 3.3.7.1: #SS)");
	struct frame f = kernel_frame(s_gp_load);
	static const u64 bad[] = {0x800000000000, 0xffff7fffffffffff, 0x1122334455667788, 0x7fffffffffff};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) { /* the last one begins canonical, ends not */
		f = kernel_frame(s_gp_load);
		f.r[RAX] = bad[i];
		if (i == 3 && tcg_known_wrong("an access that only ends non-canonical gives #PF (SDM vol. 1 3.3.7.1)"))
			break;
		EXPECT_RUN(&f, VEC_GP, 0, s_gp_load);
		f.ip = (uword)s_call_mem;
		EXPECT_RUN(&f, VEC_GP, 0, s_call_mem);
		f.ip = (uword)s_ss_load;
		f.r[RBP] = bad[i];
		if (!ss_wrong)
			EXPECT_RUN(&f, VEC_SS, 0, s_ss_load);
	}
	f = user_frame(s_ss_push);
	f.sp = 0x800000000008 + 8;
	EXPECT_RUN(&f, ss_wrong ? VEC_GP : VEC_SS, 0, U(s_ss_push));
	CHECK_EQ(last.sp, f.sp);
	/* jumps: the fault is at the jump itself */
	f = user_frame(s_jmp_rax);
	f.r[RAX] = 0x800000000000;
	if (!tcg_known_wrong("a jump to a non-canonical address faults at the target (SDM vol. 2 JMP)")) {
		EXPECT_RUN(&f, VEC_GP, 0, U(s_jmp_rax));
		f.ip = U(s_ret_bad);
		EXPECT_RUN(&f, VEC_GP, 0, U(s_ret_bad_at));
		CHECK_EQ(last.sp, f.sp - 8); /* RET did not pop */
	}
}

/* ---- double fault ---- */
CASE(double_fault)
{
	/* #GP while delivering #NP / #GP → #DF; #PF while delivering → #PF or #DF by class (SDM 6-5) */
	struct gate gp = idt[VEC_GP], ud = idt[VEC_UD], pf = idt[VEC_PF], np = idt[VEC_NP];
	static char stack[4096] __attribute__((aligned(16)));
	tss.ist[0] = (u64)stack + sizeof(stack);
	idt[VEC_DF].ist = 1;
	struct frame f = user_frame(s_hlt);
	idt[VEC_GP].type = 0x0e; /* #GP → #NP: contributory twice */
	EXPECT_RUN(&f, VEC_DF, 0, U(s_hlt));
	idt[VEC_GP] = gp;
	idt[VEC_UD].type = 0x0e; /* #UD is benign: the #NP is delivered, with EXT set */
	f = user_frame(s_ud2);
	EXPECT_RUN(&f, VEC_NP, VEC_UD * (on_tcg() ? 16 : 8) + (on_tcg() ? 2 : 3), U(s_ud2)); /* TCG: see int_n_rights */
	idt[VEC_NP].type = 0x0e; /* … and twice contributory */
	EXPECT_RUN(&f, VEC_DF, 0, U(s_ud2));
	idt[VEC_UD] = ud;
	idt[VEC_NP] = np;
	idt[VEC_PF].type = 0x0e; /* #PF then #NP */
	f = user_frame(s_gp_load);
	f.r[RAX] = 0x7000000000;
	EXPECT_RUN(&f, VEC_DF, 0, U(s_gp_load));
	idt[VEC_PF] = pf;
	/* #PF while pushing the frame of #UD: benign first, so #PF with the frame's address */
	tss.rsp[0] = 0x7000001000;
	idt[VEC_PF].ist = 1;
	f = user_frame(s_ud2);
	EXPECT_RUN(&f, VEC_PF, PF_W, U(s_ud2));
	CHECK_EQ(last_cr2 & ~0xfffull, 0x7000000000);
	/* #PF while delivering #GP: contributory then page fault: both are handled serially */
	f = user_frame(s_hlt);
	EXPECT_RUN(&f, VEC_PF, PF_W, U(s_hlt));
	/* #PF while delivering #PF: double */
	idt[VEC_PF].ist = 0;
	f = user_frame(s_gp_load);
	f.r[RAX] = 0x7100000000;
	EXPECT_RUN(&f, VEC_DF, 0, U(s_gp_load));
	CHECK_EQ(last_cr2 & ~0xfffull, 0x7000000000);
	tss.rsp[0] = (u64)trap_stack_top;
	idt[VEC_DF].ist = 0;
}

/* ---- IRET ---- */
extern const char run_iret[];
static void iret_fault(int line, struct frame *f, unsigned vector, u64 error)
{
	expect_run(__FILE__, line, f, vector, error, run_iret);
	CHECK_EQ(last.cs, SEL_KCODE); /* the fault is the kernel's */
}
SNIPPET(s_nt_iret, "pushf; orl $0x4000, (%rsp); popf; s_nt_iret_at: iretq");
extern const char s_nt_iret_at[];
CASE(iret)
{
	struct frame f = user_frame(s_done), g;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
#define BAD(field, value, v, e) (g = f, g.field = (value), iret_fault(__LINE__, &g, v, e))
	BAD(cs, 0, VEC_GP, 0);
	BAD(cs, 3, VEC_GP, 0);
	BAD(cs, SEL_UDATA, VEC_GP, SEL_UDATA & ~3);
	BAD(cs, GDT_ENTRIES * 8 + 3, VEC_GP, GDT_ENTRIES * 8);
	BAD(cs, SEL_KCODE | 3, VEC_GP, SEL_KCODE);
	BAD(cs, SEL_UCODE & ~3, VEC_GP, SEL_UCODE & ~3); /* RPL 0, DPL 3 */
	BAD(cs, SEL_TSS | 3, VEC_GP, SEL_TSS);
	BAD(cs, SEL_UCODE | 4, VEC_GP, SEL_UCODE - 3 + 4); /* LDT not loaded */
	gdt[SEL_FREE / 8] = 0x002ffb000000ffff | BIT(53);
	gdt[SEL_FREE / 8] &= ~BIT(47);
	BAD(cs, SEL_FREE | 3, VEC_NP, SEL_FREE);
	BAD(ss, 0, VEC_GP, 0);
	BAD(ss, 3, VEC_GP, 0); /* null SS only below ring 3 */
	BAD(ss, SEL_KDATA, VEC_GP, SEL_KDATA);
	BAD(ss, SEL_UDATA & ~3, VEC_GP, SEL_UDATA & ~3);
	BAD(ss, SEL_UCODE, VEC_GP, SEL_UCODE & ~3);
	gdt[SEL_FREE / 8] = 0x00cf73000000ffff;
	if (!tcg_known_wrong("IRET with SS not present gives #NP (SDM vol. 2 IRET: #SS)"))
		BAD(ss, SEL_FREE | 3, VEC_SS, SEL_FREE);
	if (!tcg_known_wrong("IRET to a non-canonical RIP faults at the target (SDM vol. 2 IRET)"))
		BAD(ip, 0x800000000000, VEC_GP, 0);
	/* compatibility mode: EIP beyond the limit */
	gdt[SEL_FREE / 8] = 0x0040fb0000000fff; /* 32-bit ring 3 code, limit 0xfff */
	g = f;
	g.cs = SEL_FREE | 3;
	g.ip = 0x1000;
	if (!tcg_known_wrong("no code-segment limit checks"))
		iret_fault(__LINE__, &g, VEC_GP, 0);
	/* … and a compat frame runs, upper halves of what it saves are 0 */
	g = f;
	g.cs = SEL_UCODE32;
	EXPECT_RUN(&g, VEC_DONE, 0, 0);
	CHECK_EQ(last.cs, SEL_UCODE32);
	/* IRET to ring 0 with a null SS is allowed in 64-bit mode */
	g = kernel_frame(s_done);
	g.ss = 0;
	EXPECT_RUN(&g, VEC_DONE, 0, 0);
	CHECK_EQ(last.ss, 0);
	asm volatile("mov %w0, %%ss" : : "r"(SEL_KDATA));
	/* IRET in long mode with NT: #GP(0) */
	g = kernel_frame(s_nt_iret);
	EXPECT_RUN(&g, VEC_GP, 0, s_nt_iret_at);
	/* flags: everything writable comes back from ring 0 */
	g = f;
	g.flags = 0x3f7fd7 & ~(FL_VM | FL_TF | FL_RF | BIT(19) | BIT(20)) & ~FL_IF;
	EXPECT_RUN(&g, VEC_DONE, 0, 0);
	CHECK_EQ(last.flags, g.flags);
}

/* IRET/POPF at ring 3 cannot change IOPL or IF */
SNIPPET(s_popf3, "push %rax; popf; pushf; pop %rbx; int $0x80");
SNIPPET(s_iret3, "mov %rsp, %rcx; push $0x23; push %rcx; push %rax; push $0x2b; lea 1f(%rip), %rdx; push %rdx; iretq; 1: "
		 "pushf; pop %rbx; int $0x80");
CASE(flags_rights)
{
	struct frame f = user_frame(s_popf3);
	f.r[RAX] = 0x247cd7 | FL_IF;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RBX], (0x247cd7 & ~(FL_IOPL | FL_IF)));
	f.ip = U(s_iret3);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RBX], (0x247cd7 & ~(FL_IOPL | FL_IF | FL_NT)) | FL_NT);
	/* IOPL 3: IF may change, IOPL may not */
	f = user_frame(s_popf3);
	f.flags |= FL_IOPL;
	f.r[RAX] = FL_1;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RBX], FL_1 | FL_IOPL);
	f.r[RAX] = FL_1 | FL_IF;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RBX], FL_1 | FL_IOPL | FL_IF);
	/* CLI and STI */
	SNIPPET(s_cli, "cli; int $0x80");
	SNIPPET(s_sti, "sti; int $0x80");
	f = user_frame(s_cli);
	EXPECT_RUN(&f, VEC_GP, 0, U(s_cli));
	f = user_frame(s_sti);
	EXPECT_RUN(&f, VEC_GP, 0, U(s_sti));
	f.flags |= FL_IOPL;
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	/* the reserved bits of RFLAGS */
	SNIPPET(s_popf0, "push %rax; popf; pushf; pop %rbx; push $2; popf; int $0x80");
	f = kernel_frame(s_popf0);
	f.r[RAX] = ~0ull & ~(FL_TF | FL_IF);
	EXPECT_RUN(&f, VEC_DONE, 0, 0);
	CHECK_EQ(last.r[RBX] & ~(BIT(19) | BIT(20)), 0x3f7fd7 & ~(FL_TF | FL_IF | FL_RF | FL_VM | BIT(19) | BIT(20)));
}
