/* System instructions: control registers, MSRs, CPUID, fast system calls, FS/GS bases, UMIP, XSAVE enabling. */
#include "lib/guest.h"

static bool intel(void) { return cpuid(0, 0).b == 0x756e6547; }

CASE(control_registers)
{
	if (tcg_known_wrong("few reserved bits of control registers are checked (SDM vol. 3 2.5)"))
		return;
	uword cr0 = read_cr0(), cr4 = read_cr4();
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"(cr0 & ~CR0_PE)), VEC_GP); /* PG without PE */
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"((cr0 & ~CR0_CD) | CR0_NW)), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"(cr0 | BIT(32))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"(cr0 | BIT(63))), VEC_GP);
	write_cr0(cr0 | BIT(10)); /* reserved below 32: ignored */
	CHECK_EQ(read_cr0() & ~BIT(10), cr0);
	write_cr0(cr0 & ~BIT(4)); /* ET is fixed */
	CHECK_EQ(read_cr0() & BIT(4), BIT(4));
	write_cr0(cr0);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 & ~CR4_PAE)), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 | BIT(15))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 | BIT(32))), VEC_GP);
	CHECK_EQ(read_cr4(), cr4);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr3", "b"(read_cr3() | BIT(60))), VEC_GP);
	CHECK_EQ(TRAP_IN(".byte 0x0f, 0x20, 0xc8", "b"(0)), VEC_UD); /* CR1 */
	CHECK_EQ(TRAP_IN(".byte 0x0f, 0x20, 0xe8", "b"(0)), VEC_UD); /* CR5 */
	CHECK_EQ(TRAP_IN(".byte 0x0f, 0x22, 0xf8", "b"(0)), VEC_UD); /* CR7 */
	/* each feature bit of CR4 goes with its CPUID bit */
	struct cpuid l7 = cpuid(7, 0), l1 = cpuid(1, 0);
	struct { u64 bit; bool have; } t[] = {
		{CR4_UMIP, l7.c >> 2 & 1}, {CR4_FSGSBASE, l7.b & 1}, {CR4_PCIDE, l1.c >> 17 & 1}, {CR4_OSXSAVE, l1.c >> 26 & 1},
		{CR4_SMEP, l7.b >> 7 & 1}, {CR4_SMAP, l7.b >> 20 & 1}, {CR4_PKE, l7.c >> 3 & 1}, {BIT(12), false},
		{BIT(23), false}, {BIT(13), l1.c >> 5 & 1}};
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		if (t[i].bit == BIT(12))
			continue; /* LA57 cannot be changed in long mode */
		unsigned v = TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 | t[i].bit));
		if (v != (t[i].have ? NO_TRAP : VEC_GP))
			print("CR4 bit %llx\n", t[i].bit);
		CHECK_EQ(v, t[i].have ? NO_TRAP : VEC_GP);
		write_cr4(cr4);
	}
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 | BIT(12))), VEC_GP);
	/* LMSW: sets PE MP EM TS, never clears PE; SMSW */
	u32 sw;
	asm volatile("smsw %0" : "=r"(sw));
	CHECK_EQ(sw & 0xffff, cr0 & 0xffff);
	asm volatile("lmsw %w0" : : "r"((u32)CR0_TS | (u32)CR0_MP));
	CHECK_EQ(read_cr0(), ((cr0 & ~0xeull) | CR0_TS | CR0_MP));
	asm volatile("clts");
	CHECK_EQ(read_cr0() & CR0_TS, 0);
	write_cr0(cr0);
}

CASE(privileged_at_ring3)
{
	SNIPPET(p_clts, "clts"); SNIPPET(p_lgdt, "lgdt (%rsp)"); SNIPPET(p_lidt, "lidt (%rsp)"); SNIPPET(p_lldt, "lldt %ax");
	SNIPPET(p_ltr, "ltr %ax"); SNIPPET(p_lmsw, "lmsw %ax"); SNIPPET(p_invd, "invd"); SNIPPET(p_wbinvd, "wbinvd");
	SNIPPET(p_rdmsr, "rdmsr"); SNIPPET(p_wrmsr, "wrmsr"); SNIPPET(p_cr0, "mov %cr0, %rax"); SNIPPET(p_cr8, "mov %cr8, %rax");
	SNIPPET(p_wcr4, "mov %rax, %cr4"); SNIPPET(p_dr0, "mov %dr0, %rax"); SNIPPET(p_swapgs, "swapgs");
	SNIPPET(p_sysret, "sysretq"); SNIPPET(p_in, "in $0x70, %al"); SNIPPET(p_out, "out %al, %dx");
	SNIPPET(p_outsb, "outsb"); SNIPPET(p_insb, "insb"); SNIPPET(p_xsetbv, "xsetbv");
	static const struct { const char *code; const char *name; u8 vector; } t[] = {
		{p_clts, "clts", VEC_GP}, {p_lgdt, "lgdt", VEC_GP}, {p_lidt, "lidt", VEC_GP}, {p_lldt, "lldt", VEC_GP},
		{p_ltr, "ltr", VEC_GP}, {p_lmsw, "lmsw", VEC_GP}, {p_invd, "invd", VEC_GP}, {p_wbinvd, "wbinvd", VEC_GP},
		{p_rdmsr, "rdmsr", VEC_GP}, {p_wrmsr, "wrmsr", VEC_GP}, {p_cr0, "mov cr0", VEC_GP}, {p_cr8, "mov cr8", VEC_GP},
		{p_wcr4, "mov to cr4", VEC_GP}, {p_dr0, "mov dr0", VEC_GP}, {p_swapgs, "swapgs", VEC_GP},
		{p_sysret, "sysret", VEC_GP}, {p_in, "in", VEC_GP}, {p_out, "out", VEC_GP}, {p_outsb, "outs", VEC_GP},
		{p_insb, "ins", VEC_GP}, {p_xsetbv, "xsetbv", VEC_GP}};
	uword cr4 = read_cr4();
	bool xsave = cpuid(1, 0).c >> 26 & 1;
	if (xsave)
		write_cr4(cr4 | CR4_OSXSAVE);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		if (t[i].code == p_xsetbv && !xsave)
			continue;
		struct frame f = user_frame(t[i].code);
		f.sp -= 64;
		unsigned v = run(&f);
		if (v != t[i].vector || last.error)
			print("%s\n", t[i].name);
		CHECK_EQ(v, t[i].vector);
		CHECK_EQ(last.error, 0);
	}
	write_cr4(cr4);
}

CASE(umip)
{
	if (!(cpuid(7, 0).c >> 2 & 1))
		return skipped("UMIP");
	SNIPPET(u_sgdt, "sgdt (%rsp); int $0x80"); SNIPPET(u_sidt, "sidt (%rsp); int $0x80");
	SNIPPET(u_sldt, "sldt %eax; int $0x80"); SNIPPET(u_str, "str %eax; int $0x80"); SNIPPET(u_smsw, "smsw %eax; int $0x80");
	static const char *const t[] = {u_sgdt, u_sidt, u_sldt, u_str, u_smsw};
	uword cr4 = read_cr4();
	for (unsigned on = 0; on < 2; on++) {
		write_cr4(on ? cr4 | CR4_UMIP : cr4 & ~CR4_UMIP);
		for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
			struct frame f = user_frame(t[i]);
			f.sp -= 64;
			CHECK_EQ(run(&f), on ? VEC_GP : VEC_DONE);
			f = kernel_frame(t[i]);
			f.sp -= 64;
			CHECK_EQ(run(&f), VEC_DONE);
			if (t[i] == u_str)
				CHECK_EQ(last.r[RAX], SEL_TSS);
		}
	}
	write_cr4(cr4);
	struct dtr d;
	asm volatile("sgdt %0" : "=m"(d));
	CHECK_EQ(d.base, (u64)gdt);
	CHECK_EQ(d.limit, sizeof(gdt) - 1);
	asm volatile("sidt %0" : "=m"(d));
	CHECK_EQ(d.base, (u64)idt);
	CHECK_EQ(d.limit, 4095);
}

CASE(tsd_and_tsc)
{
	SNIPPET(t_rdtsc, "rdtsc; int $0x80"); SNIPPET(t_rdtscp, "rdtscp; int $0x80"); SNIPPET(t_rdpmc, "xor %ecx, %ecx; rdpmc; int $0x80");
	SNIPPET(t_rdpid, "rdpid %rax; int $0x80");
	uword cr4 = read_cr4();
	bool rdtscp = cpuid(0x80000001, 0).d >> 27 & 1, rdpid = cpuid(7, 0).c >> 22 & 1;
	struct frame f = user_frame(t_rdtsc);
	CHECK_EQ(run(&f), VEC_DONE);
	u64 a = rdtsc(), b = rdtsc();
	CHECK(b >= a);
	if (rdtscp) {
		wrmsr(MSR_TSC_AUX, 0x1234567);
		f = user_frame(t_rdtscp);
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RCX], 0x1234567);
		if (rdpid) {
			f = user_frame(t_rdpid);
			CHECK_EQ(run(&f), VEC_DONE);
			CHECK_EQ(last.r[RAX], 0x1234567);
		}
		if (!on_tcg()) /* TCG: upper half not checked */
			CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_TSC_AUX), "a"(0), "d"(1)), VEC_GP);
		wrmsr(MSR_TSC_AUX, 0);
	}
	write_cr4(cr4 | CR4_TSD);
	f = user_frame(t_rdtsc);
	CHECK_EQ(run(&f), VEC_GP);
	if (rdtscp) {
		f = user_frame(t_rdtscp);
		CHECK_EQ(run(&f), VEC_GP);
	}
	f = kernel_frame(t_rdtsc);
	CHECK_EQ(run(&f), VEC_DONE);
	write_cr4(cr4);
	f = user_frame(t_rdpmc); /* CR4.PCE = 0 */
	CHECK_EQ(run(&f), VEC_GP);
	/* upper halves are cleared */
	asm volatile("mov $-1, %%rax; mov $-1, %%rdx; rdtsc; shr $32, %%rax; shr $32, %%rdx; or %%rdx, %%rax" : "=a"(a) : : "rdx");
	CHECK_EQ(a, 0);
	/* the TSC can be moved */
	if (!tcg_known_wrong("the TSC cannot be written")) {
		u64 adjust = rdtsc() + (1ull << 40);
		wrmsr(MSR_TSC, adjust);
		b = rdtsc();
		CHECK(b >= adjust && b < adjust + (1ull << 36));
	}
}

CASE(msrs)
{
	/* non-canonical bases */
	static const u32 addr_msr[] = {MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_LSTAR, MSR_CSTAR, MSR_SYSENTER_ESP,
				       MSR_SYSENTER_EIP};
	for (unsigned i = 0; i < ARRAY_SIZE(addr_msr); i++) {
		u64 old = rdmsr(addr_msr[i]);
		if (!on_tcg()) /* known wrong: TCG stores non-canonical addresses (SDM vol. 2 WRMSR) */
			CHECK_EQ(TRAP_IN("wrmsr", "c"(addr_msr[i]), "a"(0), "d"(0x8000)), VEC_GP);
		wrmsr(addr_msr[i], 0xffff812345678000);
		if (intel() || i < 5)
			CHECK_EQ(rdmsr(addr_msr[i]), 0xffff812345678000);
		wrmsr(addr_msr[i], old);
	}
	if (!on_tcg()) { /* known wrong: TCG ignores unknown MSRs and reserved bits (SDM vol. 2 RDMSR, WRMSR) */
		CHECK_EQ(TRAP_IN("rdmsr", "c"(0x12345678)), VEC_GP);
		CHECK_EQ(TRAP_IN("wrmsr", "c"(0x12345678), "a"(0), "d"(0)), VEC_GP);
		u64 efer = rdmsr(MSR_EFER);
		CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_EFER), "a"((u32)efer | 2), "d"(0)), VEC_GP);
		CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_EFER), "a"((u32)efer), "d"(1)), VEC_GP);
		CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_EFER), "a"((u32)efer & ~(u32)EFER_LME), "d"(0)), VEC_GP);
		CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_PAT), "a"(2), "d"(0)), VEC_GP); /* type 2 is reserved */
		CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_APIC_BASE), "a"(0xfee00800 | 0x100), "d"(0xffffffff)), VEC_GP);
	}
	u64 pat = rdmsr(MSR_PAT);
	CHECK_EQ(pat, 0x0007040600070406);
	wrmsr(MSR_PAT, 0x0007050600070106);
	CHECK_EQ(rdmsr(MSR_PAT), 0x0007050600070106);
	wrmsr(MSR_PAT, pat);
	CHECK_EQ(rdmsr(MSR_EFER) & (EFER_LMA | EFER_LME), EFER_LMA | EFER_LME);
	/* LMA cannot be written */
	u64 efer = rdmsr(MSR_EFER);
	if (TRAP_IN("wrmsr", "c"(MSR_EFER), "a"((u32)efer & ~(u32)EFER_LMA), "d"(0)) == NO_TRAP)
		CHECK_EQ(rdmsr(MSR_EFER), efer);
}

/* ---- SYSCALL, SYSRET ---- */
extern char syscall_entry[];
asm(".pushsection .snippets,\"ax\"; .globl syscall_entry; syscall_entry: pushf; pop %rdx; mov %rsp, %rbx; mov %cs, %esi; "
    "mov %ss, %edi; lea trap_stack_top - 512(%rip), %rsp; int $0x81; .popsection");
SNIPPET(s_syscall, "syscall; s_syscall_1: int $0x80");
extern const char s_syscall_1[];
SNIPPET(s_sysret, "sysretq");
SNIPPET(s_sysret32, "sysretl");
SNIPPET(s_flags_out, "pushf; pop %rdx; mov %cs, %esi; mov %ss, %edi; int $0x80");
CASE(syscall)
{
	u64 efer = rdmsr(MSR_EFER);
	wrmsr(MSR_STAR, (u64)SEL_KCODE << 32 | (u64)SEL_UCODE32 << 48);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_SFMASK, FL_IF | FL_DF | FL_CF | FL_TF);
	struct frame f = user_frame(s_syscall);
	f.sp = 0x7777000;
	f.flags = FL_1 | FL_DF | FL_CF | FL_ZF | FL_AC | FL_IF;
	CHECK_EQ(run(&f), 0x81);
	CHECK_EQ(last.r[RCX], U(s_syscall_1));
	CHECK_EQ(last.r[R11], f.flags);
	u64 lost = on_tcg() ? FL_ZF : 0; /* known wrong: TCG forgets arithmetic flags in SYSCALL (SDM vol. 2 SYSCALL) */
	CHECK_EQ(last.r[RDX] & ~lost, f.flags & ~(FL_IF | FL_DF | FL_CF) & ~lost);
	CHECK_EQ(last.r[RBX], 0x7777000); /* RSP is not touched */
	CHECK_EQ(last.r[RSI], SEL_KCODE);
	CHECK_EQ(last.r[RDI], SEL_KDATA);
	CHECK_EQ(last.cs, SEL_KCODE);
	wrmsr(MSR_EFER, efer & ~EFER_SCE);
	CHECK_EQ(run(&f), VEC_UD);
	CHECK_EQ(last.cs, SEL_UCODE);
	struct frame k = kernel_frame(s_sysret);
	k.r[RCX] = U(s_flags_out);
	k.r[R11] = FL_1;
	CHECK_EQ(run(&k), VEC_UD);
	wrmsr(MSR_EFER, efer | EFER_SCE);
	/* SYSRET to 64-bit and to compatibility mode */
	k.r[R11] = FL_1 | FL_ZF | FL_DF | FL_ID;
	k.sp = (uword)run_stack_top + UALIAS; /* RSP stays */
	k.ss = 0;
	CHECK_EQ(run(&k), VEC_DONE);
	CHECK_EQ(last.cs, SEL_UCODE);
	CHECK_EQ(last.ss, SEL_UDATA);
	CHECK_EQ(last.r[RDX], k.r[R11]);
	CHECK_EQ(last.r[RSI], SEL_UCODE);
	SNIPPET32(s_flags_out32, "pushf; popl %edx; movl %cs, %esi; movl %ss, %edi; int $0x80");
	k.ip = (uword)s_sysret32;
	k.r[RCX] = U(s_flags_out32) | 0x1200000000;
	CHECK_EQ(run(&k), VEC_DONE);
	CHECK_EQ(last.cs, SEL_UCODE32);
	CHECK_EQ(last.ss, SEL_UDATA);
	CHECK_EQ(last.r[RDX], k.r[R11]);
	/* RF and VM in R11 are dropped */
	k.ip = (uword)s_sysret;
	k.r[RCX] = U(s_flags_out);
	k.r[R11] = FL_1 | FL_RF | FL_VM | BIT(3) | BIT(5) | BIT(40);
	if (!on_tcg()) {
		CHECK_EQ(run(&k), VEC_DONE);
		CHECK_EQ(last.flags, FL_1);
	}
	/* non-canonical RCX: #GP in ring 0 on Intel */
	k.r[RCX] = 0x800000000000;
	if (intel() && !on_tcg()) {
		CHECK_EQ(run(&k), VEC_GP);
		CHECK_EQ(last.cs, SEL_KCODE);
		CHECK_EQ(last.ip, (uword)s_sysret);
	}
	/* SYSCALL in compatibility mode: AMD to CSTAR, Intel #UD */
	SNIPPET32(s_syscall32, "syscall; s_syscall32_1: int $0x80");
	extern const char s_syscall32_1[];
	wrmsr(MSR_CSTAR, (u64)syscall_entry);
	f = user_frame(s_syscall32);
	f.cs = SEL_UCODE32;
	if (intel()) {
		CHECK_EQ(run(&f), VEC_UD);
	} else {
		CHECK_EQ(run(&f), 0x81);
		CHECK_EQ(last.r[RCX], U(s_syscall32_1));
	}
	wrmsr(MSR_EFER, efer);
}

SNIPPET(s_sysenter, "sysenter; int $0x80");
SNIPPET32(s_sysenter32, "sysenter; int $0x80");
SNIPPET(s_sysexit64, ".byte 0x48; sysexit");
SNIPPET(s_sysexit32, "sysexit");
CASE(sysenter)
{
	if (!intel() && !on_tcg()) {
		struct frame f = user_frame(s_sysenter); /* AMD: not in long mode (APM vol. 3) */
		CHECK_EQ(run(&f), VEC_UD);
		return;
	}
	if (!intel())
		return skipped("TCG as AMD has it in long mode");
	struct frame f = user_frame(s_sysenter);
	wrmsr(MSR_SYSENTER_CS, 0);
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, 0);
	wrmsr(MSR_SYSENTER_CS, SEL_KCODE);
	wrmsr(MSR_SYSENTER_EIP, (u64)syscall_entry);
	wrmsr(MSR_SYSENTER_ESP, (u64)run_stack_top - 256);
	f.flags |= FL_IF | FL_DF | FL_AC;
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(run(&f), 0x81);
		CHECK_EQ(last.r[RDX], FL_1 | FL_DF | FL_AC); /* IF cleared, nothing else */
		CHECK_EQ(last.r[RBX], (u64)run_stack_top - 256);
		CHECK_EQ(last.r[RSI], SEL_KCODE);
		CHECK_EQ(last.r[RDI], SEL_KDATA);
		f.ip = U(s_sysenter32);
		f.cs = SEL_UCODE32;
	}
	SNIPPET32(s_out32, "movl %cs, %esi; movl %ss, %edi; movl %esp, %ebx; int $0x80");
	SNIPPET(s_out64, "mov %cs, %esi; mov %ss, %edi; mov %rsp, %rbx; int $0x80");
	struct frame k = kernel_frame(s_sysexit64);
	k.r[RDX] = U(s_out64);
	k.r[RCX] = 0x123456789000;
	CHECK_EQ(run(&k), VEC_DONE);
	CHECK_EQ(last.r[RSI], SEL_UCODE);
	CHECK_EQ(last.r[RDI], SEL_UDATA2);
	CHECK_EQ(last.r[RBX], 0x123456789000);
	k.ip = (uword)s_sysexit32;
	k.r[RDX] = U(s_out32);
	k.r[RCX] = U(run_stack_top);
	CHECK_EQ(run(&k), VEC_DONE);
	CHECK_EQ(last.r[RSI], SEL_UCODE32);
	CHECK_EQ(last.r[RDI], SEL_UDATA);
	wrmsr(MSR_SYSENTER_CS, 0);
	CHECK_EQ(run(&k), VEC_GP);
	CHECK_EQ(last.cs, SEL_KCODE);
}

/* ---- FS and GS ---- */
CASE(fs_gs)
{
	static u64 a = 0xaaaa, b = 0xbbbb;
	wrmsr(MSR_GS_BASE, (u64)&a);
	wrmsr(MSR_KERNEL_GS_BASE, (u64)&b);
	u64 v;
	asm volatile("mov %%gs:0, %0" : "=r"(v) : : "memory");
	CHECK_EQ(v, 0xaaaa);
	asm volatile("swapgs; mov %%gs:0, %0" : "=r"(v) : : "memory");
	CHECK_EQ(v, 0xbbbb);
	CHECK_EQ(rdmsr(MSR_GS_BASE), (u64)&b);
	CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), (u64)&a);
	/* loading a selector replaces the base by the descriptor's 32 bits (null on AMD keeps it) */
	asm volatile("mov %w0, %%gs" : : "r"(SEL_UDATA));
	CHECK_EQ(rdmsr(MSR_GS_BASE), 0);
	CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), (u64)&a);
	wrmsr(MSR_FS_BASE, (u64)&b - 0x1000);
	asm volatile("mov %%fs:0x1000, %0" : "=r"(v) : : "memory");
	CHECK_EQ(v, 0xbbbb);
	asm volatile("mov %w0, %%fs" : : "r"(0));
	if (intel())
		CHECK_EQ(rdmsr(MSR_FS_BASE), 0);
	/* DS, ES, SS, CS bases are ignored */
	gdt[SEL_FREE / 8] = desc(0x1000, 0xfffff, 0xf3, 0xc);
	asm volatile("mov %w1, %%ds; mov (%2), %0; mov %w3, %%ds" : "=&r"(v) : "r"(SEL_FREE | 3), "r"(&a), "r"(SEL_UDATA) : "memory");
	CHECK_EQ(v, 0xaaaa);
	/* FS takes base and ignores the limit in 64-bit mode */
	gdt[SEL_FREE / 8] = desc((u32)(u64)&a - 0x100, 0, 0xf3, 0);
	asm volatile("mov %w1, %%fs; mov %%fs:0x100, %0" : "=r"(v) : "r"(SEL_FREE | 3) : "memory");
	CHECK_EQ(v, 0xaaaa);
	if (!(cpuid(7, 0).b & 1))
		return skipped("FSGSBASE");
	uword cr4 = read_cr4();
	CHECK_EQ(TRAP_IN("rdfsbase %%r11", "b"(0)), VEC_UD);
	write_cr4(cr4 | CR4_FSGSBASE);
	asm volatile("wrfsbase %1; rdfsbase %0" : "=r"(v) : "r"((u64)&a));
	CHECK_EQ(v, (u64)&a);
	asm volatile("mov %%fs:0, %0" : "=r"(v) : : "memory");
	CHECK_EQ(v, 0xaaaa);
	asm volatile("wrgsbase %k1; rdgsbase %0" : "=r"(v) : "r"(0xffff900000001000)); /* 32-bit: zero-extended */
	CHECK_EQ(v, 0x1000);
	if (!on_tcg())
		CHECK_EQ(TRAP_IN("wrgsbase %%rbx", "b"(0x800000000000)), VEC_GP);
	SNIPPET(s_wrfs3, "wrfsbase %rax; rdfsbase %rcx; int $0x80");
	struct frame f = user_frame(s_wrfs3);
	f.r[RAX] = 0xffff900000000000;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RCX], 0xffff900000000000);
	write_cr4(cr4);
	CHECK_EQ(run(&f), VEC_UD);
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_GS_BASE, 0);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
}

CASE(cpuid_consistency)
{
	struct cpuid c0 = cpuid(0, 0), c1 = cpuid(1, 0), e0 = cpuid(0x80000000, 0);
	CHECK(c0.a >= 7 && c0.a < 0x40);
	CHECK(e0.a >= 0x80000008);
	CHECK(c1.d >> 0 & 1); /* FPU */
	CHECK(c1.d >> 4 & 1); /* TSC */
	CHECK(c1.d >> 5 & 1); /* MSR */
	CHECK(c1.d >> 8 & 1); /* CX8 */
	CHECK(c1.d >> 9 & 1); /* APIC */
	CHECK(c1.d >> 26 & 1); /* SSE2 */
	CHECK(cpuid(0x80000001, 0).d >> 29 & 1); /* LM */
	CHECK(c1.c >> 31 & 1); /* hypervisor */
	/* OSXSAVE and the PAE bit follow CR4 */
	uword cr4 = read_cr4();
	write_cr4(cr4 & ~CR4_OSXSAVE);
	CHECK_EQ(cpuid(1, 0).c >> 27 & 1, 0);
	if (c1.c >> 26 & 1) {
		write_cr4(cr4 | CR4_OSXSAVE);
		CHECK_EQ(cpuid(1, 0).c >> 27 & 1, 1);
	}
	write_cr4(cr4);
	u64 base = rdmsr(MSR_APIC_BASE);
	CHECK_EQ(c1.b >> 24, base >> 10 & 1 ? (u32)rdmsr(0x802) : *(volatile u32 *)0xfee00020 >> 24);
	/* upper halves cleared */
	u64 a, b, c, d;
	asm volatile("mov $-1, %%rbx; mov $-1, %%rdx; cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1ull << 32), "c"(~0ull << 32));
	CHECK_EQ((a | b | c | d) >> 32, 0);
	CHECK_EQ(b, c0.b);
	/* leaf 0xd: sizes follow XCR0 */
	if (c1.c >> 26 & 1) {
		write_cr4(cr4 | CR4_OSXSAVE);
		asm volatile("xsetbv" : : "a"(3), "d"(0), "c"(0));
		CHECK_EQ(cpuid(0xd, 0).b, 576);
		if (cpuid(0xd, 0).a & 4) {
			asm volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
			CHECK_EQ(cpuid(0xd, 0).b, 832);
		}
		CHECK(cpuid(0xd, 0).c >= cpuid(0xd, 0).b);
		asm volatile("xsetbv" : : "a"(1), "d"(0), "c"(0));
		write_cr4(cr4);
	}
}

CASE(xsetbv)
{
	if (!(cpuid(1, 0).c >> 26 & 1))
		return skipped("XSAVE");
	uword cr4 = read_cr4();
	CHECK_EQ(TRAP_IN("xgetbv", "c"(0)), VEC_UD);
	CHECK_EQ(TRAP_IN("xsetbv", "c"(0), "a"(1), "d"(0)), VEC_UD);
	write_cr4(cr4 | CR4_OSXSAVE);
	u32 have = cpuid(0xd, 0).a;
#define XSETBV(lo, hi, i) TRAP_IN("xsetbv", "c"(i), "a"((u32)(lo)), "d"((u32)(hi)))
	CHECK_EQ(XSETBV(1, 0, 0), NO_TRAP);
	CHECK_EQ(XSETBV(3, 0, 0), NO_TRAP);
	CHECK_EQ(XSETBV(0, 0, 0), VEC_GP);    /* x87 must be on */
	CHECK_EQ(XSETBV(2, 0, 0), VEC_GP);
	if (!on_tcg())
		CHECK_EQ(XSETBV(1, 0x40000000, 0), VEC_GP);
	CHECK_EQ(XSETBV(3, 0, 1), VEC_GP);    /* no XCR1 */
	if (have & 4) {
		if (!on_tcg())
			CHECK_EQ(XSETBV(5, 0, 0), VEC_GP); /* AVX without SSE */
		CHECK_EQ(XSETBV(7, 0, 0), NO_TRAP);
	}
	if ((have & 0xe0) == 0xe0) {
		CHECK_EQ(XSETBV(0x27, 0, 0), VEC_GP); /* the three of AVX-512 go together */
		CHECK_EQ(XSETBV(0xe3, 0, 0), VEC_GP); /* … and need AVX */
		CHECK_EQ(XSETBV(0xe7, 0, 0), NO_TRAP);
	}
	XSETBV(1, 0, 0);
	/* AVX is #UD while XCR0 lacks it */
	if (cpuid(1, 0).c >> 28 & 1) {
		CHECK_EQ(TRAP_IN("vxorps %%ymm0, %%ymm0, %%ymm0", "b"(0)), VEC_UD);
		XSETBV(7, 0, 0);
		CHECK_EQ(TRAP_IN("vxorps %%ymm0, %%ymm0, %%ymm0", "b"(0)), NO_TRAP);
		write_cr0(read_cr0() | CR0_TS);
		CHECK_EQ(TRAP_IN("vxorps %%ymm0, %%ymm0, %%ymm0", "b"(0)), VEC_NM);
		write_cr0(read_cr0() & ~CR0_TS);
		XSETBV(1, 0, 0);
	}
	write_cr4(cr4);
	if (cpuid(1, 0).c >> 28 & 1)
		CHECK_EQ(TRAP_IN("vxorps %%ymm0, %%ymm0, %%ymm0", "b"(0)), VEC_UD);
}
