/* Segments in long and compatibility mode: loads, LDT, access-rights instructions, far transfers, call gates. */
#include "lib/guest.h"

static u64 *slot(unsigned n) { return &gdt[SEL_FREE / 8 + n]; }
#define SLOT(n) (SEL_FREE + 8 * (n))
enum { DATA = 0x93, DATA_RO = 0x91, CODE = 0x9b, CODE_XO = 0x99, CONFORMING = 0x9f, USER = 0x60, ABSENT = 0x80 };

CASE(loads)
{
	*slot(0) = desc(0, 0xfffff, DATA, 0xc);
	*slot(1) = desc(0, 0xfffff, CODE_XO, 0xc);
	*slot(2) = desc(0, 0xfffff, CODE, 0xc);
	*slot(3) = desc(0, 0xfffff, DATA & ~ABSENT, 0xc);
	*slot(4) = desc(0, 0xfffff, DATA_RO, 0xc);
	*slot(5) = desc(0, 0xfffff, 0x82, 0); /* LDT: a system descriptor */
	*slot(6) = desc(0, 0xfffff, DATA & ~1, 0xc); /* accessed bit clear */
	asm volatile("lldt %w0" : : "r"(0));
#define LOAD(reg, sel) TRAP_IN("mov %w0, %%" #reg, "b"(sel))
	CHECK_EQ(LOAD(ds, SLOT(0)), NO_TRAP);
	CHECK_EQ(LOAD(es, SLOT(0) | 3), VEC_GP); /* RPL 3 > DPL 0 */
	CHECK_EQ(last.error, SLOT(0));
	CHECK_EQ(LOAD(es, SLOT(1)), VEC_GP); /* execute-only */
	CHECK_EQ(last.error, SLOT(1));
	CHECK_EQ(LOAD(es, SLOT(2)), NO_TRAP); /* readable code */
	CHECK_EQ(LOAD(fs, SLOT(3)), VEC_NP);
	CHECK_EQ(last.error, SLOT(3));
	CHECK_EQ(LOAD(gs, SLOT(5)), VEC_GP);
	CHECK_EQ(LOAD(gs, 0), NO_TRAP);
	CHECK_EQ(LOAD(gs, 3), NO_TRAP);
	CHECK_EQ(LOAD(gs, GDT_ENTRIES * 8), VEC_GP);
	CHECK_EQ(last.error, GDT_ENTRIES * 8);
	CHECK_EQ(LOAD(gs, 0xc), VEC_GP); /* LDTR is null */
	CHECK_EQ(last.error, 0xc);
	CHECK_EQ(LOAD(ss, SLOT(0)), NO_TRAP);
	CHECK_EQ(LOAD(ss, SLOT(4)), VEC_GP); /* read-only */
	CHECK_EQ(LOAD(ss, SLOT(2)), VEC_GP);
	CHECK_EQ(LOAD(ss, SLOT(0) | 1), VEC_GP);
	CHECK_EQ(LOAD(ss, SEL_UDATA), VEC_GP);
	if (!on_tcg()) /* known wrong: TCG takes any null selector for SS (SDM vol. 2 MOV) */
		CHECK_EQ(LOAD(ss, 3), VEC_GP);
	*slot(3) = desc(0, 0xfffff, DATA & ~ABSENT, 0xc);
	CHECK_EQ(LOAD(ss, SLOT(3)), VEC_SS);
	CHECK_EQ(last.error, SLOT(3));
	CHECK_EQ(LOAD(ss, SEL_KDATA), NO_TRAP);
	CHECK_EQ(TRAP_IN(".byte 0x8e, 0xcb", "b"(SEL_KCODE)), VEC_UD); /* mov to CS */
	CHECK_EQ(LOAD(ds, SLOT(6)), NO_TRAP);
	CHECK_EQ(*(volatile u64 *)slot(6) >> 40 & 1, 1); /* accessed is set by the load */
	LOAD(ds, SEL_UDATA);
	LOAD(es, SEL_UDATA);
	/* ring 3 */
	SNIPPET(s_ds3, "mov %eax, %ds; int $0x80");
	struct frame f = user_frame(s_ds3);
	f.r[RAX] = SEL_KDATA;
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SEL_KDATA);
	*slot(7) = desc(0, 0xfffff, CONFORMING, 0xc); /* conforming code: any ring may read */
	f.r[RAX] = SLOT(7) | 3;
	CHECK_EQ(run(&f), VEC_DONE);
	LOAD(ds, SEL_UDATA);
}

CASE(ldt)
{
	static u64 table[4];
	static u64 mark = 0x5555;
	table[0] = desc(0, 0xfffff, DATA, 0xc);
	table[1] = desc((u32)(u64)&mark, 0xfffff, DATA | USER, 0xc);
	*slot(0) = desc((u32)(u64)table, sizeof(table) - 1, 0x82, 0);
	*slot(1) = 0;
	asm volatile("lldt %w0" : : "r"(SLOT(0)) : "memory");
	u32 sel;
	asm volatile("sldt %0" : "=r"(sel));
	CHECK_EQ(sel, SLOT(0));
	u64 v;
	asm volatile("mov %w1, %%fs; mov %%fs:0, %0" : "=r"(v) : "r"(12) : "memory");
	CHECK_EQ(v, 0x5555);
	CHECK_EQ(TRAP_IN("mov %w0, %%fs", "b"(32 | 4)), VEC_GP); /* beyond the limit */
	CHECK_EQ(last.error, 32 | 4);
	CHECK_EQ(TRAP_IN("lldt %w0", "b"(4)), VEC_GP);
	CHECK_EQ(TRAP_IN("lldt %w0", "b"(SEL_TSS)), VEC_GP);
	CHECK_EQ(last.error, SEL_TSS);
	*slot(0) &= ~BIT(47);
	CHECK_EQ(TRAP_IN("lldt %w0", "b"(SLOT(0))), VEC_NP);
	CHECK_EQ(last.error, SLOT(0));
	CHECK_EQ(TRAP_IN("lldt %w0", "b"(0)), NO_TRAP);
	CHECK_EQ(TRAP_IN("mov %w0, %%fs", "b"(12)), VEC_GP);
	asm volatile("mov %w0, %%fs" : : "r"(SEL_UDATA));
}

static bool lar(u32 sel, u32 *out)
{
	bool zf;
	asm volatile("lar %2, %0" : "=r"(*out), "=@ccz"(zf) : "r"(sel));
	return zf;
}
static bool lsl(u32 sel, u32 *out)
{
	bool zf;
	asm volatile("lsl %2, %0" : "=r"(*out), "=@ccz"(zf) : "r"(sel));
	return zf;
}
static bool verr(u32 sel) { bool zf; asm volatile("verr %w1" : "=@ccz"(zf) : "r"(sel)); return zf; }
static bool verw(u32 sel) { bool zf; asm volatile("verw %w1" : "=@ccz"(zf) : "r"(sel)); return zf; }

CASE(access_rights)
{
	u32 v;
	*slot(0) = desc(0x12345678, 0xabcde, DATA, 0xc);
	CHECK(lar(SLOT(0), &v));
	CHECK_EQ(v & 0xf0ff00, 0xc09300); /* bits 19:16 are undefined */
	CHECK(lsl(SLOT(0), &v));
	CHECK_EQ(v, 0xabcdefff);
	*slot(0) = desc(0x12345678, 0xabcde, DATA, 0x4);
	CHECK(lsl(SLOT(0), &v));
	CHECK_EQ(v, 0xabcde);
	CHECK(!lar(0, &v));
	CHECK(!lsl(0, &v));
	CHECK(!lar(SLOT(0) | 3, &v)); /* DPL 0 < RPL 3 */
	CHECK(!lar(GDT_ENTRIES * 8, &v));
	CHECK(lar(SEL_TSS, &v));
	CHECK_EQ(v >> 8 & 0xff, 0x8b);
	CHECK(lsl(SEL_TSS, &v));
	CHECK_EQ(v, sizeof(struct tss) - 1);
	*slot(1) = desc(0, 0, 0x8e, 0); /* interrupt gate: neither */
	*slot(2) = 0;
	CHECK(!lar(SLOT(1), &v));
	CHECK(!lsl(SLOT(1), &v));
	*slot(1) = desc(0, 0, 0x8c, 0); /* call gate: LAR only */
	CHECK(lar(SLOT(1), &v));
	CHECK(!lsl(SLOT(1), &v));
	*slot(1) = desc(0, 0, 0x83, 0); /* 16-bit TSS: not in long mode */
	if (!tcg_known_wrong("LAR accepts 16-bit system types in long mode (SDM vol. 2 LAR)"))
		CHECK(!lar(SLOT(1), &v));
	CHECK(verr(SLOT(0)) && verw(SLOT(0)));
	*slot(0) = desc(0, 0xfffff, DATA_RO, 0xc);
	CHECK(verr(SLOT(0)) && !verw(SLOT(0)));
	*slot(0) = desc(0, 0xfffff, CODE_XO, 0xc);
	CHECK(!verr(SLOT(0)) && !verw(SLOT(0)));
	*slot(0) = desc(0, 0xfffff, CODE, 0xc);
	CHECK(verr(SLOT(0)) && !verw(SLOT(0)));
	CHECK(!verr(SEL_TSS) && !verr(0));
	*slot(0) = desc(0, 0xfffff, DATA & ~ABSENT, 0xc); /* P is not looked at */
	CHECK(lar(SLOT(0), &v));
}

/* ---- far transfers ---- */
SNIPPET(s_ljmp, "ljmpl *(%rax)"); SNIPPET(s_lcall, "lcall *(%rax)"); SNIPPET(s_lcallq, "rex.w lcall *(%rax)");
SNIPPET(s_lret, "lretq"); SNIPPET(s_target, "int $0x80"); SNIPPET32(s_target32, "movl $0x1234, %eax; int $0x80");
SNIPPET(s_ljmp_bad, ".byte 0xea, 0, 0, 0, 0, 0, 0"); SNIPPET(s_lcall_bad, ".byte 0x9a, 0, 0, 0, 0, 0, 0");
static struct { u32 off; u16 sel; } __attribute__((packed)) ptr;
static unsigned jump(const char *how, const void *to, u16 sel)
{
	struct frame f = kernel_frame(how);
	ptr.off = (u32)(uword)to;
	ptr.sel = sel;
	f.r[RAX] = (u64)&ptr;
	return run(&f);
}
CASE(far_jumps)
{
	CHECK_EQ(jump(s_ljmp_bad, NULL, 0), VEC_UD);
	CHECK_EQ(jump(s_lcall_bad, NULL, 0), VEC_UD);
	CHECK_EQ(jump(s_ljmp, s_target, SEL_KCODE), VEC_DONE);
	CHECK_EQ(last.ip, (u64)s_target + 2);
	CHECK_EQ(jump(s_ljmp, s_target32, SEL_KCODE32), VEC_DONE);
	CHECK_EQ(last.cs, SEL_KCODE32);
	CHECK_EQ(last.r[RAX], 0x1234);
	CHECK_EQ(jump(s_ljmp, s_target, 0), VEC_GP);
	CHECK_EQ(last.error, 0);
	CHECK_EQ(jump(s_ljmp, s_target, SEL_KDATA), VEC_GP);
	CHECK_EQ(last.error, SEL_KDATA);
	CHECK_EQ(last.ip, (u64)s_ljmp);
	CHECK_EQ(jump(s_ljmp, s_target, SEL_UCODE), VEC_GP);
	CHECK_EQ(last.error, SEL_UCODE & ~3);
	CHECK_EQ(jump(s_ljmp, s_target, SEL_TSS), VEC_GP);
	*slot(0) = desc(0, 0xfffff, CODE & ~ABSENT, 0xa);
	CHECK_EQ(jump(s_ljmp, s_target, SLOT(0)), VEC_NP);
	CHECK_EQ(last.error, SLOT(0));
	*slot(0) = desc(0, 0xfffff, CODE, 0xe); /* L and D together */
	if (!on_tcg()) /* known wrong: TCG accepts it (SDM 5.2.1) */
		CHECK_EQ(jump(s_ljmp, s_target, SLOT(0)), VEC_GP);
	/* calls push old CS and RIP: 32-bit slots, with REX.W 64-bit ones */
	CHECK_EQ(jump(s_lcall, s_target, SEL_KCODE), VEC_DONE);
	CHECK_EQ(last.sp, (u64)run_stack_top - 8);
	CHECK_EQ(((u32 *)run_stack_top)[-1], SEL_KCODE);
	CHECK_EQ(((u32 *)run_stack_top)[-2], (u32)(u64)s_lcall + 2);
	if (cpuid(0, 0).b == 0x756e6547) { /* Intel: m16:64 */
		static struct { u64 off; u16 sel; } __attribute__((packed)) p64;
		struct frame f = kernel_frame(s_lcallq);
		p64.off = (u64)s_target;
		p64.sel = SEL_KCODE;
		f.r[RAX] = (u64)&p64;
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.sp, (u64)run_stack_top - 16);
		CHECK_EQ(((u64 *)run_stack_top)[-1], SEL_KCODE);
		CHECK_EQ(((u64 *)run_stack_top)[-2], (u64)s_lcallq + 3);
	}
	/* far return: same ring, to ring 3, bad selectors */
	static u64 stack[4] __attribute__((aligned(16)));
	struct frame f = kernel_frame(s_lret);
	f.sp = (u64)stack;
	stack[0] = (u64)s_target;
	stack[1] = SEL_KCODE;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.sp, (u64)(stack + 2));
	stack[0] = U(s_target);
	stack[1] = SEL_UCODE;
	stack[2] = 0x7654321;
	stack[3] = SEL_UDATA;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.cs, SEL_UCODE);
	CHECK_EQ(last.sp, 0x7654321);
	CHECK_EQ(last.ss, SEL_UDATA);
	stack[3] = SEL_KDATA;
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SEL_KDATA);
	CHECK_EQ(last.sp, (u64)stack);
	stack[1] = SEL_KDATA;
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SEL_KDATA);
	stack[1] = 0;
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, 0);
}

/* ---- 64-bit call gates ---- */
static void call_gate(unsigned n, u64 target, u16 sel, u8 type)
{
	*slot(n) = (target & 0xffff) | (u64)sel << 16 | (u64)type << 40 | (target >> 16 & 0xffff) << 48;
	*slot(n + 1) = target >> 32;
}
SNIPPET(s_gate_target, "mov %cs, %eax; mov %ss, %ecx; mov %rsp, %rbx; int $0x80");
SNIPPET(s_gate_return, "mov %cs, %eax; rex.w lret");
SNIPPET(s_gate_call, "lcall *(%rax); s_gate_call_1: int $0x80");
extern const char s_gate_call_1[];
CASE(call_gates)
{
	call_gate(0, (u64)s_gate_target, SEL_KCODE, 0xec);
	ptr.off = 0x12345678; /* ignored */
	ptr.sel = SLOT(0) | 3;
	struct frame f = user_frame(s_gate_call);
	f.r[RAX] = U(&ptr);
	/* from ring 3: RSP0, SS null */
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], SEL_KCODE);
	CHECK_EQ(last.r[RCX], 0);
	u64 *st = (u64 *)trap_stack_top;
	CHECK_EQ(last.r[RBX], (u64)(st - 4));
	CHECK_EQ(st[-1], SEL_UDATA);
	CHECK_EQ(st[-2], f.sp);
	CHECK_EQ(st[-3], SEL_UCODE);
	CHECK_EQ(st[-4], U(s_gate_call_1));
	/* there and back */
	call_gate(0, (u64)s_gate_return, SEL_KCODE, 0xec);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.cs, SEL_UCODE);
	CHECK_EQ(last.r[RAX], SEL_KCODE);
	CHECK_EQ(last.sp, f.sp);
	/* from ring 0: same stack */
	struct frame k = kernel_frame(s_gate_call);
	k.r[RAX] = (u64)&ptr;
	ptr.sel = SLOT(0);
	CHECK_EQ(run(&k), VEC_DONE);
	CHECK_EQ(last.sp, k.sp);
	ptr.sel = SLOT(0) | 3;
	/* rights */
	call_gate(0, (u64)s_gate_target, SEL_KCODE, 0x8c); /* DPL 0 */
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SLOT(0));
	call_gate(0, (u64)s_gate_target, SEL_KCODE, 0x6c); /* absent */
	CHECK_EQ(run(&f), VEC_NP);
	CHECK_EQ(last.error, SLOT(0));
	call_gate(0, (u64)s_gate_target, SEL_KCODE32, 0xec); /* not a 64-bit segment */
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SEL_KCODE32);
	call_gate(0, (u64)s_gate_target, 0, 0xec);
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, 0);
	call_gate(0, (u64)s_gate_target, SEL_KCODE, 0xec);
	*slot(1) |= BIT(40); /* the type field of the upper half must be 0 */
	if (!tcg_known_wrong("the upper half's type of a 64-bit call gate is not checked (SDM 5.8.3.1)")) {
		CHECK_EQ(run(&f), VEC_GP);
		CHECK_EQ(last.error, SLOT(0));
	}
	call_gate(0, (u64)s_gate_target, SEL_KCODE, 0xe4); /* 16-bit call gate: not in long mode */
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, SLOT(0));
}

/* ---- compatibility mode ---- */
static u32 datum = 0x600d;
CASE(compatibility_mode)
{
	struct frame f = user_frame(NULL);
	f.cs = SEL_UCODE32;
	/* 32-bit: registers above 31 are zero after writes, no REX, 32-bit pushes, AAA and friends exist */
	SNIPPET32(c_push, "movl %esp, %ebx; pushl $1; subl %esp, %ebx; pushfl; popl %edx; incl %eax; decl %ecx; int $0x80");
	f.ip = U(c_push);
	f.r[RAX] = 0xffffffff;
	f.r[RCX] = 0;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX], 4);
	CHECK_EQ((u32)last.r[RAX], 0);
	CHECK_EQ((u32)last.r[RCX], 0xffffffff);
	SNIPPET32(c_bcd, "movl $0x0009, %eax; addb $8, %al; daa; movl %eax, %ebx; movl $0x0509, %eax; aad; movl %eax, %ecx; "
			 "movl $57, %eax; aam; movl %eax, %edx; int $0x80");
	f.ip = U(c_bcd);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX] & 0xff, 0x17);
	CHECK_EQ(last.r[RCX] & 0xffff, 59);
	CHECK_EQ(last.r[RDX] & 0xffff, 0x0507);
	SNIPPET32(c_pusha, "movl %esp, %ebx; pusha; movl 12(%esp), %ecx; popa; subl %esp, %ebx; int $0x80");
	f.ip = U(c_pusha);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX], 0);
	SNIPPET32(c_enter, "movl %esp, %ebx; enter $16, $2; leave; subl %esp, %ebx; int $0x80");
	f.ip = U(c_enter);
	f.r[RBP] = U(run_stack_top) - 512;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX], 0);
	SNIPPET32(c_les, "lesl (%eax), %ecx; movl %es, %edx; pushl %ds; popl %es; int $0x80");
	static struct { u32 off; u16 sel; } __attribute__((packed)) fp = {0x87654321, SEL_UDATA2};
	f.ip = U(c_les);
	f.r[RAX] = U(&fp);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ((u32)last.r[RCX], 0x87654321);
	CHECK_EQ(last.r[RDX], SEL_UDATA2);
	SNIPPET32(c_arpl, "movl $0x18, %eax; movl $3, %ecx; arpl %cx, %ax; setz %bl; int $0x80");
	f.ip = U(c_arpl);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], 0x1b);
	CHECK_EQ(last.r[RBX] & 0xff, 1);
	SNIPPET32(c_salc, "stc; .byte 0xd6; int $0x80");
	f.ip = U(c_salc);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX] & 0xff, 0xff);
	/* address wrap and base: segment with a base; limit violations */
	gdt[SEL_FREE / 8] = desc((u32)U(&datum), 3, DATA | USER, 0x4); /* exactly four bytes */
	SNIPPET32(c_ds, "movl %eax, %fs; movl %fs:(%ecx), %edx; int $0x80");
	f.ip = U(c_ds);
	f.r[RAX] = SEL_FREE | 3;
	f.r[RCX] = 0;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RDX], 0x600d);
	if (!tcg_known_wrong("no segment limit checks (SDM 5.3)")) {
		f.r[RCX] = 1;
		CHECK_EQ(run(&f), VEC_GP);
		CHECK_EQ(last.error, 0);
		f.r[RCX] = 0xfffffffe;
		CHECK_EQ(run(&f), VEC_GP);
		/* read-only and expand-down */
		SNIPPET32(c_ds_w, "movl %eax, %fs; movl %edx, %fs:(%ecx); int $0x80");
		gdt[SEL_FREE / 8] = desc(0, 0xfffff, DATA_RO | USER, 0xc);
		f.ip = U(c_ds_w);
		f.r[RCX] = U(&datum);
		CHECK_EQ(run(&f), VEC_GP);
		gdt[SEL_FREE / 8] = desc(0, (u32)(U(&datum) >> 12), 0x97 | USER, 0xc); /* expand-down: above the limit */
		f.ip = U(c_ds);
		CHECK_EQ(run(&f), VEC_GP);
		f.r[RCX] = U(&datum) + 0x2000;
		CHECK_EQ(run(&f), VEC_DONE);
		/* SS: #SS */
		SNIPPET32(c_ss, "movl %eax, %ss; movl (%esp), %edx; int $0x80");
		gdt[SEL_FREE / 8] = desc(0, 0xff, DATA | USER, 0x4);
		f.ip = U(c_ss);
		CHECK_EQ(run(&f), VEC_SS);
		CHECK_EQ(last.error, 0);
		/* null segment: #GP(0) */
		SNIPPET32(c_null, "xorl %eax, %eax; movl %eax, %ds; movl (%esp), %ecx; movl (%ecx), %edx; int $0x80");
		f.ip = U(c_null);
		CHECK_EQ(run(&f), VEC_GP);
		asm volatile("mov %w0, %%ds" : : "r"(SEL_UDATA));
	}
	/* far jump between compat and 64-bit code at ring 3 */
	SNIPPET32(c_ljmp, "ljmpl *(%eax)");
	SNIPPET(l_after, "mov $0x123456789, %rax; int $0x80");
	ptr.off = (u32)U(l_after);
	ptr.sel = SEL_UCODE;
	f = user_frame(c_ljmp);
	f.cs = SEL_UCODE32;
	f.r[RAX] = U(&ptr);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], 0x123456789);
	CHECK_EQ(last.cs, SEL_UCODE);
	/* 64-bit only instructions are others here: 48 is DEC EAX */
	SNIPPET32(c_48, ".byte 0x48; int $0x80");
	f = user_frame(c_48);
	f.cs = SEL_UCODE32;
	f.r[RAX] = 5;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], 4);
}

CASE(sixteen_bit_compat)
{
	/* 16-bit code and stack segments at ring 3, bases at the snippet and a stack */
	static u16 stack16[64];
	SNIPPET16(h_code, "movw $0x1234, %ax; movw %sp, %bx; pushw %ax; popw %cx; movl $0x89abcdef, %edx; int $0x80");
	gdt[SEL_FREE / 8] = desc((u32)U(h_code), 0xffff, CODE | USER, 0);
	gdt[SEL_FREE / 8 + 1] = desc((u32)U(stack16), 0xffff, DATA | USER, 0);
	struct frame f = user_frame(NULL);
	f.ip = 0;
	f.cs = SEL_FREE | 3;
	f.ss = SLOT(1) | 3;
	f.sp = 0xdead0080;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX] & 0xffff, 0x1234);
	CHECK_EQ(last.r[RBX] & 0xffff, 0x80);
	CHECK_EQ(last.r[RCX] & 0xffff, 0x1234);
	CHECK_EQ((u32)last.r[RDX], 0x89abcdef);
	CHECK_EQ(last.ip, (u64)(h_code_end - h_code));
	CHECK_EQ(stack16[63], 0x1234);
	CHECK_EQ((u16)last.sp, 0x80); /* IRET to a 16-bit stack loads SP only */
	/* jump beyond: IP wraps to 16 bits */
	SNIPPET16(h_jmp, "jmp 1f; nop; 1: int $0x80");
	gdt[SEL_FREE / 8] = desc((u32)U(h_jmp), 0xffff, CODE | USER, 0);
	CHECK_EQ(run(&f), VEC_DONE);
	/* 16-bit addressing forms */
	SNIPPET16(h_addr, "movb (%bx,%si), %al; movb 2(%bp), %cl; movb 4(%bp,%di), %ch; movb (0x10), %ah; int $0x80");
	static u8 data16[64];
	for (unsigned i = 0; i < 64; i++)
		data16[i] = (u8)(i + 1);
	gdt[SEL_FREE / 8] = desc((u32)U(h_addr), 0xffff, CODE | USER, 0);
	gdt[SEL_FREE / 8 + 1] = desc((u32)U(data16), 0xffff, DATA | USER, 0);
	f.r[RBX] = 0xfffff003; /* upper halves do not count */
	f.r[RSI] = 0xffff0002 + 0x1000; /* 0xf003 + 0x1002 wraps to 5 */
	f.r[RBP] = 0x10008;
	f.r[RDI] = 3;
	asm volatile("mov %w0, %%ds" : : "r"(SLOT(1) | 3));
	/* run() loads no DS: the snippet inherits ours */
	unsigned v = run(&f);
	asm volatile("mov %w0, %%ds" : : "r"(SEL_UDATA));
	CHECK_EQ(v, VEC_DONE);
	CHECK_EQ(last.r[RAX] & 0xff, data16[5]);
	CHECK_EQ(last.r[RCX] & 0xff, data16[10]);
	CHECK_EQ(last.r[RCX] >> 8 & 0xff, data16[15]);
	CHECK_EQ(last.r[RAX] >> 8 & 0xff, data16[0x10]);
}
