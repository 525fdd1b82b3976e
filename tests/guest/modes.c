/* Operating modes other than long mode: 32-bit and 16-bit protected, virtual-8086, real, and the way into long mode. */
#include "lib/guest.h"

/* ---- 32-bit protected mode ---- */
SNIPPET(s_done, "int $0x80");
SNIPPET(s_ud, "ud2");
SNIPPET(s_int81, "int $0x81");
static struct { u32 off; u16 sel; } __attribute__((packed)) ptr;
SNIPPET(s_lcall, "lcall *(%eax); s_lcall_1: int $0x80");
SNIPPET(s_gate, "movl %esp, %ebx; movl 8(%esp), %ecx; movl 12(%esp), %edx; movl %cs, %esi; int $0x80");
SNIPPET(s_gate_ret, "lret $8");
SNIPPET(s_gate_call3, "pushl $0x22; pushl $0x11; lcall *(%eax); int $0x80");
extern const char s_lcall_1[];

CASE(protected_32)
{
	struct frame f = user_frame(s_done);
	f.sp = 0x1234567;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.sp, 0x1234567);
	CHECK_EQ(last.ss, SEL_UDATA);
	CHECK_EQ((u16)last.ds, SEL_UDATA);
	f = user_frame(s_int81);
	CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, 0x81 * 8 + 2);
	/* IRET at ring 0 keeps ESP, returns flags */
	f = kernel_frame(s_ud);
	f.flags |= FL_DF | FL_CF | FL_AC | FL_ID;
	CHECK_EQ(run(&f), VEC_UD);
	CHECK_EQ(last.flags & ~FL_RF, f.flags);
	/* a 32-bit call gate copies parameters to the inner stack */
	gdt[SEL_FREE / 8] = ((u32)s_gate & 0xffff) | (u64)SEL_KCODE << 16 | 2ull << 32 | 0xecull << 40 |
			    (u64)((u32)s_gate >> 16) << 48;
	ptr.off = 0;
	ptr.sel = SEL_FREE | 3;
	f = user_frame(s_gate_call3);
	f.r[RAX] = (uword)&ptr;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX], (uword)trap_stack_top - 24);
	CHECK_EQ(last.r[RCX], 0x11);
	CHECK_EQ(last.r[RDX], 0x22);
	CHECK_EQ(last.r[RSI], SEL_KCODE);
	/* and back, releasing them on both stacks */
	gdt[SEL_FREE / 8] = ((u32)s_gate_ret & 0xffff) | (u64)SEL_KCODE << 16 | 2ull << 32 | 0xecull << 40 |
			    (u64)((u32)s_gate_ret >> 16) << 48;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.sp, f.sp);
	CHECK_EQ(last.cs, SEL_UCODE32);
	/* stack segment limit: push below, ESP wrap */
	if (!on_tcg()) {
		gdt[SEL_FREE / 8] = desc(0, 0xff, 0xf3, 0x4);
		f = user_frame(s_done);
		SNIPPET(s_push, "pushl $1; int $0x80");
		f.ip = (uword)s_push;
		f.ss = SEL_FREE | 3;
		f.sp = 0x200;
		CHECK_EQ(run(&f), VEC_SS);
		CHECK_EQ(last.error, 0);
		CHECK_EQ(last.sp, 0x200);
		/* code segment limit */
		gdt[SEL_FREE / 8] = desc((u32)s_gate, 3, 0xfb, 0x4);
		SNIPPET(s_far, "nop");
		(void)s_far;
		f = user_frame(NULL);
		f.cs = SEL_FREE | 3;
		f.ip = 0;
		CHECK_EQ(run(&f), VEC_GP); /* the second instruction straddles the limit */
		CHECK_EQ(last.ip, 2);
		CHECK_EQ(last.error, 0);
	}
}

/* ---- 16-bit protected mode ---- */
CASE(protected_16)
{
	static u16 stack[64];
	SNIPPET16(h_code, "movw $0x1234, %ax; movw %sp, %bx; pushw %ax; popw %cx; pushl $0x12345678; popl %edx; pushfw; popw %si; int $0x80");
	gdt[SEL_FREE / 8] = desc((u32)h_code, 0xffff, 0xfb, 0);
	gdt[SEL_FREE / 8 + 1] = desc((u32)stack, 0xffff, 0xf3, 0);
	struct frame f = user_frame(NULL);
	f.ip = 0;
	f.cs = SEL_FREE | 3;
	f.ss = (SEL_FREE + 8) | 3;
	f.sp = 0x80;
	f.r[RBX] = 0x77770000;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX] & 0xffff, 0x1234);
	CHECK_EQ(last.r[RBX], 0x77770080);
	CHECK_EQ(last.r[RCX] & 0xffff, 0x1234);
	CHECK_EQ(last.r[RDX], 0x12345678);
	CHECK_EQ(last.ip, (uword)(h_code_end - h_code));
	CHECK_EQ(stack[63], FL_1);
	/* a 16-bit interrupt gate pushes words */
	SNIPPET16(h_int, "int $0x82");
	SNIPPET(h_gate16, "movl %esp, %ebx; movl (%esp), %ecx; movl 4(%esp), %edx; int $0x80");
	struct gate old = idt[0x82];
	gate_set(0x82, (uword)h_gate16, SEL_KCODE, 0xe6, 0);
	/* the offset has 16 bits: give the handler a segment of its own */
	gdt[SEL_FREE / 8 + 2] = desc((u32)h_gate16, 0xffff, 0x9b, 0x4);
	gate_set(0x82, 0, SEL_FREE + 16, 0xe6, 0);
	gdt[SEL_FREE / 8] = desc((u32)h_int, 0xffff, 0xfb, 0);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RBX], (uword)trap_stack_top - 10);
	CHECK_EQ(last.r[RCX], 2 | (u32)(SEL_FREE | 3) << 16);
	CHECK_EQ(last.r[RDX] & 0xffff, FL_1);
	CHECK_EQ(last.r[RDX] >> 16, 0x80);
	idt[0x82] = old;
}

/* ---- virtual-8086 mode ---- */
#define LOW 0x8000u /* where 16-bit code goes */
static struct frame v86(const char *code, const char *end, u32 iopl)
{
	struct frame f = kernel_frame(NULL);
	memcpy((void *)LOW, code, (uword)(end - code));
	f.ip = 0;
	f.cs = LOW >> 4;
	f.ss = 0x900;
	f.sp = 0x100;
	f.flags = FL_1 | FL_VM | (uword)iopl << 12;
	f.vm_ds = 0x910;
	f.vm_es = 0x920;
	f.vm_fs = 0x930;
	f.vm_gs = 0x940;
	return f;
}
#define V86(s, iopl) v86(s, s##_end, iopl)

CASE(virtual_8086)
{
	SNIPPET16(v_mem, "movb $0x5a, (0x20); movb %es:(0x20), %al; movw %cs, %bx; movw %ds, %cx; pushw $0x1234; ud2");
	*(volatile u8 *)0x9220 = 0x77;
	struct frame f = V86(v_mem, 0);
	CHECK_EQ(run(&f), VEC_UD);
	CHECK_EQ(*(volatile u8 *)0x9120, 0x5a);
	CHECK_EQ(last.r[RAX] & 0xff, 0x77);
	CHECK_EQ(last.r[RBX] & 0xffff, LOW >> 4);
	CHECK_EQ(last.r[RCX] & 0xffff, 0x910);
	CHECK_EQ(*(volatile u16 *)(0x9000 + 0xfe), 0x1234);
	CHECK_EQ(last.cs, LOW >> 4);
	CHECK_EQ(last.ss, 0x900);
	CHECK_EQ(last.sp, 0xfe);
	CHECK_EQ(last.vm_ds, 0x910);
	CHECK_EQ(last.vm_es, 0x920);
	CHECK_EQ(last.vm_fs, 0x930);
	CHECK_EQ(last.vm_gs, 0x940);
	CHECK(last.flags & FL_VM);
	CHECK_EQ((u16)last.ds, 0); /* the handler got null data segments */
	CHECK_EQ((u16)last.gs, 0);
	/* IOPL-sensitive instructions */
	SNIPPET16(v_cli, "cli"); SNIPPET16(v_sti, "sti"); SNIPPET16(v_pushf, "pushfw"); SNIPPET16(v_popf, "popfw");
	SNIPPET16(v_int, "int $0x80"); SNIPPET16(v_iret, "iretw"); SNIPPET16(v_hlt, "hlt"); SNIPPET16(v_lgdt, "lgdt (0)");
	SNIPPET16(v_lldt, "lldt %ax"); SNIPPET16(v_out, "outb %al, $0x80"); SNIPPET16(v_int3, "int3");
	f = V86(v_cli, 0); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_sti, 0); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_pushf, 0); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_popf, 0); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_int, 0); CHECK_EQ(run(&f), VEC_GP);
	CHECK_EQ(last.error, 0);
	f = V86(v_iret, 0); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_hlt, 3); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_lgdt, 3); CHECK_EQ(run(&f), VEC_GP);
	f = V86(v_lldt, 3); CHECK_EQ(run(&f), VEC_UD);
	f = V86(v_out, 3); CHECK_EQ(run(&f), VEC_GP); /* the bitmap decides, not IOPL */
	f = V86(v_int3, 0); CHECK_EQ(run(&f), VEC_BP);
	f = V86(v_int, 3); CHECK_EQ(run(&f), VEC_DONE);
	SNIPPET16(v_flags, "sti; pushfw; popw %ax; cli; pushfw; popw %bx; int $0x80");
	f = V86(v_flags, 3);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX] & FL_IF, FL_IF);
	CHECK_EQ(last.r[RBX] & FL_IF, 0);
	/* I/O bitmap */
	tss.iomap = (u16)((uword)tss.bitmap - (uword)&tss);
	memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
	tss.bitmap[0x80 / 8] = 0xfe;
	SNIPPET16(v_out_ok, "outb %al, $0x80; ud2");
	f = V86(v_out_ok, 0);
	CHECK_EQ(run(&f), VEC_UD);
	tss.iomap = sizeof(tss);
	/* interrupt to a handler that is not at ring 0: #GP */
	idt[0x82].sel = SEL_UCODE32;
	SNIPPET16(v_int82, "int $0x82");
	idt[0x82].type = 0xee;
	f = V86(v_int82, 3);
	CHECK_EQ(run(&f), VEC_GP);
	idt[0x82].sel = SEL_KCODE;
	idt[0x82].type = 0x8e;
}

/* ---- real mode ---- */
/* Copied to LOW; entered in 16-bit protected mode at its start, leaves at back32. */
extern const char rm[], rm_end[];
extern char back32[], real_call[];
asm(".pushsection .snippets, \"ax\"\n"
    ".code32\n"
    "real_call: pusha; mov %esp, real_esp; lidt real_idtr; ljmp $0x40, $0x8000\n"
    "back32: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %fs; mov %eax, %gs; mov %eax, %ss\n"
    "mov real_esp, %esp; lidt idtr; popa; ret\n"
    ".balign 4; real_esp: .long 0; real_idtr: .word 0x3ff; .long 0\n"
    ".code16\n"
    "rm: mov $0x48, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov %ax, %gs\n"
    "mov $0x10, %ax; mov %ax, %fs\n" /* FS keeps a 4 GiB limit: unreal mode */
    "mov %cr0, %eax; and $0xfe, %al; mov %eax, %cr0\n"
    "ljmp $0, $(0x8000 + rm_real - rm)\n"
    "rm_real: xor %ax, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %gs; mov %ax, %ss; mov $0x7ff0, %sp\n"
    "mov $0x9000, %di; cld\n"
    /* 0: CS after the far jump; 1: SMSW */
    "mov %cs, %ax; stosw; smsw %ax; stosw\n"
    /* 2: segment arithmetic */
    "mov $0x0a12, %ax; mov %ax, %ds; movw $0xbeef, (0x34)\n xor %ax, %ax; mov %ax, %ds; mov 0xa154, %ax; stosw\n"
    /* 3: INT through the table, 4: pushed IP, 5: pushed FLAGS & IF TF, 6: FLAGS inside */
    "movw $(0x8000 + rm_int - rm), (0x60 * 4); movw $0, (0x60 * 4 + 2)\n"
    "sti; int $0x60; rm_int_next: cli; jmp 1f\n"
    "rm_int: mov $0x6060, %ax; stosw; mov %sp, %bp; mov (%bp), %ax; sub $(0x8000 + rm_int_next - rm), %ax; stosw\n"
    "mov 4(%bp), %ax; and $0x300, %ax; stosw; pushf; pop %ax; and $0x300, %ax; stosw; iret\n"
    "1:\n"
    /* 7: #DE pushes the faulting IP */
    "movw $(0x8000 + rm_de - rm), (0); movw $0, (2)\n"
    "xor %cx, %cx; xor %dx, %dx; rm_div: div %cx; jmp 1f\n"
    "rm_de: mov %sp, %bp; mov (%bp), %ax; sub $(0x8000 + rm_div - rm), %ax; stosw; addw $2, (%bp); iret\n"
    "1:\n"
    /* 8: unreal mode: FS has its 4 GiB limit still, 32-bit address */
    "mov $real_mark, %ebx; mov %fs:(%ebx), %ax; stosw\n"
    /* 9: 1 MiB wrap does not happen (A20 on): FFFF:0010 is 0x100000 */
    "mov $0xffff, %ax; mov %ax, %ds; mov (0x10), %ax; push $0; pop %ds; stosw\n"
    /* 10: string wrap: SI goes from FFFF to 0 */
    "movb $0x11, (0xffff); movb $0x22, (0); mov $0xffff, %si; mov $2, %cx; push %di; rep movsb; pop %di; add $2, %di\n"
    /* 11: far call and return: SP restored; 12: PUSH SP pushes the old value */
    "mov %sp, %bx; lcall $0x800, $(rm_far - rm); sub %sp, %bx; mov %bx, %ax; stosw; jmp 1f; rm_far: lret; 1:\n"
    "mov %sp, %bx; push %sp; pop %ax; sub %bx, %ax; stosw\n"
    /* 13: 32-bit operands and addresses */
    "mov $0x12345678, %eax; shr $16, %eax; stosw\n"
    /* 14: loading a segment register does not touch the limit, only the base (FS: unreal) */
    "mov $0x10, %ax; mov %ax, %fs; mov $real_mark - 0x100, %ebx; mov %fs:(%ebx), %ax; stosw\n"
    /* 15: #GP for an offset above 64 KiB in DS (limit FFFF), vector 13 */
    "movw $(0x8000 + rm_gp - rm), (13 * 4); movw $0, (13 * 4 + 2); movw $0, (0x9100)\n"
    "mov $0x10000, %ebx; rm_bad: mov (%ebx), %al; jmp 1f\n"
    "rm_gp: movw $1, (0x9100); mov %sp, %bp; addw $3, (%bp); iret\n"
    "1: mov (0x9100), %ax; stosw\n"
    /* 16: word at FFFF in a 64 KiB segment: #GP too */
    "movw $0, (0x9100); mov $0xffff, %bx; nop; mov (%bx), %ax; nop; mov (0x9100), %ax; stosw\n"
    /* back */
    "mov %cr0, %eax; or $1, %al; mov %eax, %cr0; ljmpl $8, $back32\n"
    "rm_end:\n"
    ".code32\n.popsection");
u32 real_mark = 0x4321;

CASE(real_mode)
{
	static u8 saved[0x400];
	memcpy(saved, (const void *)(uword)0, 0x400 - 0); /* the firmware's table and its data */
	volatile u16 *r = (void *)0x9000;
	memset((void *)0x9000, 0xee, 64);
	memcpy((void *)LOW, rm, (uword)(rm_end - rm));
	asm volatile("call real_call" : : : "memory", "cc");
	memcpy((void *)(uword)0, saved, 0x400);
	CHECK_EQ(r[0], 0);
	CHECK_EQ(r[1] & 1, 0);
	CHECK_EQ(r[2], 0xbeef);
	CHECK_EQ(r[3], 0x6060);
	CHECK_EQ(r[4], 0);
	CHECK_EQ(r[5], FL_IF);
	CHECK_EQ(r[6], 0);
	CHECK_EQ(r[7], 0);
	CHECK_EQ(r[8], 0x4321);
	CHECK_EQ(r[9], *(volatile u16 *)0x100000);
	CHECK_EQ(r[10], 0x2211);
	CHECK_EQ(r[11], 0);
	CHECK_EQ(r[12], 0);
	CHECK_EQ(r[13], 0x1234);
	CHECK_EQ(r[14], 0x4321);
	if (!tcg_known_wrong("no segment limit checks in real mode (SDM 21.1.1)")) {
		CHECK_EQ(r[15], 1);
		CHECK_EQ(r[16], 1);
	}
}

/* ---- into long mode and back, step by step (SDM 10.8.5) ---- */
extern char long_trip[];
asm(".pushsection .snippets, \"ax\"\n"
    ".code32\n"
    "long_trip: pusha; mov %esp, real_esp\n"
    "ljmp $0x28 - 0x28 + 0x60, $1f\n" /* SEL_FREE: ring 0 code, 64-bit */
    ".code64\n"
    "1: mov $0x123456789abcdef0, %rax; mov %rax, long_result(%rip); mov %cs, long_result + 8(%rip)\n"
    "lea 2f(%rip), %rcx; push $8; push %rcx; lretq\n"
    ".code32\n"
    "2: mov real_esp, %esp; popa; ret\n"
    ".balign 8; .globl long_result; long_result: .quad 0, 0\n"
    ".popsection");
extern volatile u64 long_result[2];

CASE(long_mode)
{
	volatile u64 *pml4 = page_alloc(1), *pdpt = page_alloc(1), *pd = page_alloc(1);
	for (u32 i = 0; i < 128; i++)
		pd[i] = (u64)i << 21 | 0x83;
	pdpt[0] = (u32)pd | 3;
	pml4[0] = (u32)pdpt | 3;
	gdt[SEL_FREE / 8] = 0x00af9b000000ffff;
	u64 efer = rdmsr(MSR_EFER);
	CHECK_EQ(efer & EFER_LMA, 0);
	wrmsr(MSR_EFER, efer | EFER_LME);
	CHECK_EQ(rdmsr(MSR_EFER) & (EFER_LME | EFER_LMA), EFER_LME);
	write_cr3((u32)pml4);
	if (!tcg_known_wrong("PG without PAE while LME = 1 is not refused (SDM vol. 2 MOV CR)"))
		CHECK_EQ(TRAP_IN("mov %%ebx, %%cr0", "b"((u32)(read_cr0() | CR0_PG))), VEC_GP);
	write_cr4(read_cr4() | CR4_PAE);
	write_cr0(read_cr0() | CR0_PG);
	CHECK_EQ(rdmsr(MSR_EFER) & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
	/* compatibility mode now */
	asm volatile("call long_trip" : : : "memory", "cc");
	CHECK_EQ(long_result[0], 0x123456789abcdef0);
	CHECK_EQ(long_result[1], SEL_FREE);
	if (!on_tcg()) { /* TCG checks neither */
		idt[VEC_GP].type = 0x8e;
	}
	write_cr0(read_cr0() & ~CR0_PG);
	CHECK_EQ(rdmsr(MSR_EFER) & (EFER_LME | EFER_LMA), EFER_LME);
	wrmsr(MSR_EFER, efer);
	CHECK_EQ(rdmsr(MSR_EFER) & EFER_LME, 0);
	write_cr4(read_cr4() & ~CR4_PAE);
}
