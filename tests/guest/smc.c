/* Self-modifying code: what a store writes is what is executed next, by every kind of store and through every mapping. */
#include "lib/guest.h"

#define T 0x8000000000ull
#define LEAF (PTE_P | PTE_W)
typedef u32 (*fn)(void);

SNIPPET(s_next, "movb $7, s_next_imm + 1(%rip); s_next_imm: mov $1, %eax; int $0x80");
SNIPPET(s_loop, "xor %edx, %edx; mov $200, %ecx; 1: s_loop_imm: mov $0, %eax; add %eax, %edx; incb s_loop_imm + 1(%rip); "
		"dec %ecx; jnz 1b; movb $0, s_loop_imm + 1(%rip); int $0x80");
SNIPPET(s_rmw, "lock xorb $0x10, s_rmw_imm + 1(%rip); s_rmw_imm: mov $1, %eax; int $0x80");
SNIPPET(s_back, "s_back_again: mov $1, %eax; cmp $5, %eax; je 1f; movb $5, s_back_again + 1(%rip); jmp s_back_again; 1: "
		"movb $1, s_back_again + 1(%rip); int $0x80");
SNIPPET(s_far_same_block, "nop; nop; nop; nop; movl $0x90909090, s_fsb_t(%rip); nop; nop; s_fsb_t: mov $0x11223344, %ebx; "
			  "int $0x80");
CASE(next_instruction)
{
	struct frame f = kernel_frame(s_next);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RAX], 7);
		((volatile char *)s_next)[8] = 1;
	}
	f = kernel_frame(s_loop);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RDX], 199 * 200 / 2);
	}
	f = kernel_frame(s_rmw);
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RAX], i & 1 ? 0x01 : 0x11);
	}
	f = kernel_frame(s_back);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(run(&f), VEC_DONE);
}

/* Code of the form  b8 imm32 c3  at p */
static void put(void *p, u32 imm)
{
	u8 c[6] = {0xb8, (u8)imm, (u8)(imm >> 8), (u8)(imm >> 16), (u8)(imm >> 24), 0xc3};
	for (unsigned i = 0; i < 6; i++)
		((volatile u8 *)p)[i] = c[i];
}

CASE(jit)
{
	char *page = page_alloc(2);
	for (u32 i = 0; i < 10000; i++) {
		char *p = page + (i % 7) * 600;
		put(p, i);
		CHECK_EQ(((fn)p)(), i);
		*(volatile u32 *)(p + 1) = ~i;
		CHECK_EQ(((fn)p)(), ~i);
	}
	/* across the page boundary, one half at a time */
	for (u32 k = 1; k < 6; k++) {
		char *p = page + PAGE - k;
		put(p, 0x01020304);
		CHECK_EQ(((fn)p)(), 0x01020304);
		for (unsigned b = 1; b < 5; b++) {
			((volatile u8 *)p)[b] = (u8)(0xa0 + b);
			u32 got = ((fn)p)();
			CHECK_EQ(got >> (8 * (b - 1)) & 0xff, 0xa0 + b);
		}
	}
}

CASE(kinds_of_store)
{
	char *p = (char *)page_alloc(1) + 0x100;
	u64 code[2] __attribute__((aligned(16))) = {0xc300000000b8ull | 0x2200, 0};
#define RUN_AFTER(imm, ...)                                                                                            \
	do {                                                                                                           \
		put(p, 1);                                                                                             \
		CHECK_EQ(((fn)p)(), 1);                                                                                \
		code[0] = 0xc300000000b8ull | (u64)(imm) << 8;                                                         \
		__VA_ARGS__;                                                                                           \
		CHECK_EQ(((fn)p)(), imm);                                                                              \
	} while (0)
	RUN_AFTER(0x21, asm volatile("mov %0, (%1)" : : "r"(code[0]), "r"(p) : "memory"));
	RUN_AFTER(0x22, asm volatile("movups (%0), %%xmm0; movups %%xmm0, (%1)" : : "r"(code), "r"(p) : "memory"));
	RUN_AFTER(0x23, asm volatile("movq (%0), %%xmm0; movq %%xmm0, (%1)" : : "r"(code), "r"(p) : "memory"));
	RUN_AFTER(0x24, asm volatile("fildll (%0); fistpll (%1)" : : "r"(code), "r"(p) : "memory"));
	RUN_AFTER(0x25, memcpy(p, code, 6));
	RUN_AFTER(0x26, ({ u64 si = (u64)code, di = (u64)p, cx = 1; asm volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(cx) : : "memory"); }));
	RUN_AFTER(0x27, ({ u64 di = (u64)p; asm volatile("stosq" : "+D"(di) : "a"(code[0]) : "memory"); }));
	RUN_AFTER(0x28, asm volatile("xchg %0, (%1)" : "+r"(code[0]) : "r"(p) : "memory"));
	RUN_AFTER(0x29, { u64 old = *(u64 *)p; asm volatile("lock cmpxchg %1, (%2)" : "+a"(old) : "r"(code[0]), "r"(p) : "memory"); });
	RUN_AFTER(0x2a, asm volatile("mov %%rsp, %%r11; lea 8(%1), %%rsp; push %0; mov %%r11, %%rsp" : : "r"(code[0]), "r"(p) : "memory", "r11"));
	RUN_AFTER(0x2b, asm volatile("mov %%rsp, %%r11; mov %1, %%rsp; sub $-8, %%rsp; push (%0); mov %%r11, %%rsp" : : "r"(code), "r"(p) : "memory", "r11"));
	RUN_AFTER(0x2c, asm volatile("mov %%rsp, %%r11; mov %0, %%rsp; pop (%1); mov %%r11, %%rsp" : : "r"(code), "r"(p) : "memory", "r11"));
	RUN_AFTER(0x2d, asm volatile("addl $0x2c00, (%0)" : : "r"(p) : "memory"));
	RUN_AFTER(0x2e, asm volatile("movnti %0, (%1); sfence" : : "r"(code[0]), "r"(p) : "memory"));
	RUN_AFTER(0x2f, ({ u64 add = 0x2e00; asm volatile("lock xadd %0, (%1)" : "+r"(add) : "r"(p) : "memory"); }));
	RUN_AFTER(1, asm volatile("bts $9, (%0); btr $9, (%0)" : : "r"(p) : "memory")); /* changed and changed back */
	RUN_AFTER(0x30, {
		char b[512] __attribute__((aligned(16)));
		asm volatile("fxsave (%0)" : : "r"(b) : "memory");
		u64 *x = (u64 *)(b + 160); /* XMM0 */
		*x = code[0];
		asm volatile("fxrstor (%0); fxsave (%1)" : : "r"(b), "r"(p - 160) : "memory");
	});
	/* the frame of an interrupt from ring 3, whose RSP field is the code */
	RUN_AFTER(0x31, {
		SNIPPET(s_done, "int $0x80");
		tss.rsp[0] = (u64)p + 16;
		struct frame f = user_frame(s_done);
		f.sp = code[0];
		CHECK_EQ(run(&f), VEC_DONE);
		tss.rsp[0] = (u64)trap_stack_top;
	});
	/* a call whose return address lands in code that has run */
	put(p, 5);
	CHECK_EQ(((fn)p)(), 5);
	asm volatile("mov %%rsp, %%r11; lea 8(%0), %%rsp; call 1f; 1: mov %%r11, %%rsp" : : "r"(p) : "memory", "r11");
	CHECK(*(u8 *)p != 0xb8);
}

CASE(rep_over_itself)
{
	/* REP MOVSB writes over the instructions that follow it */
	char *p = page_alloc(1);
	static const u8 code[] = {0xf3, 0xa4, 0xb8, 1, 0, 0, 0, 0xc3}, over[] = {0xb8, 9, 0, 0, 0, 0xc3};
	for (int i = 0; i < 3; i++) {
		memcpy(p, code, sizeof(code));
		u32 r;
		asm volatile("call *%1" : "=a"(r) : "r"(p), "S"(over), "D"(p + 2), "c"(sizeof(over)) : "memory");
		CHECK_EQ(r, 9);
	}
}

CASE(aliases)
{
	char *page = page_alloc(1);
	pt_map(boot_pml4, T, (u64)page, LEAF);
	pt_map(boot_pml4, T + PAGE, (u64)page, LEAF);
	pt_map(boot_pml4, T + 2 * PAGE, (u64)page, LEAF & ~PTE_W);
	for (u32 i = 0; i < 200; i++) {
		/* written through one mapping, run through the others; CPUID serializes */
		put((char *)(i % 3 == 0 ? T : i % 3 == 1 ? T + PAGE : (u64)page), i);
		cpuid(0, 0);
		CHECK_EQ(((fn)T)(), i);
		CHECK_EQ(((fn)(T + PAGE))(), i);
		CHECK_EQ(((fn)(T + 2 * PAGE))(), i);
		CHECK_EQ(((fn)page)(), i);
	}
	/* remapped: other memory at the same address */
	char *b = page_alloc(1);
	put(page, 0x111);
	put(b, 0x222);
	for (int i = 0; i < 20; i++) {
		*pt_entry(boot_pml4, T, 1) = (u64)(i & 1 ? page : b) | LEAF;
		invlpg(T);
		CHECK_EQ(((fn)T)(), i & 1 ? 0x111 : 0x222);
	}
	/* an instruction across two pages, the second remapped */
	char *c = page_alloc(1), *d = page_alloc(1);
	u8 *e = (u8 *)page + PAGE - 3;
	e[0] = 0xb8;
	e[1] = 0x44;
	e[2] = 0x33;
	((u8 *)c)[0] = 0x22;
	((u8 *)c)[1] = 0x11;
	((u8 *)c)[2] = 0xc3;
	memcpy(d, c, 8);
	d[1] = 0x77;
	*pt_entry(boot_pml4, T, 1) = (u64)page | LEAF;
	invlpg(T);
	for (int i = 0; i < 20; i++) {
		*pt_entry(boot_pml4, T + PAGE, 1) = (u64)(i & 1 ? c : d) | LEAF;
		invlpg(T + PAGE);
		CHECK_EQ(((fn)(T + PAGE - 3))(), i & 1 ? 0x11223344 : 0x77223344);
		CHECK_EQ(((fn)(T + PAGE - 3))(), i & 1 ? 0x11223344 : 0x77223344);
	}
	/* the same code under another root */
	u64 *root2 = page_alloc(1);
	memcpy(root2, boot_pml4, PAGE);
	root2[1] = 0;
	pt_map(root2, T, (u64)b, LEAF);
	*pt_entry(boot_pml4, T, 1) = (u64)page | LEAF;
	invlpg(T);
	for (int i = 0; i < 20; i++) {
		CHECK_EQ(((fn)T)(), 0x111);
		write_cr3((u64)root2);
		CHECK_EQ(((fn)T)(), 0x222);
		write_cr3((u64)boot_pml4);
	}
	/* a page loses its right to execute */
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	CHECK_EQ(((fn)T)(), 0x111);
	*pt_entry(boot_pml4, T, 1) = (u64)page | LEAF | PTE_NX;
	invlpg(T);
	struct frame f = kernel_frame((void *)T);
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last.error, PF_P | PF_I);
}

/* ring 3 writes code that ring 0 has run and the other way round */
SNIPPET(s_user_write, "movl %eax, 1(%rbx); int $0x80");
CASE(other_ring)
{
	char *p = page_alloc(1);
	put(p, 3);
	for (u32 i = 0; i < 50; i++) {
		struct frame f = user_frame(s_user_write);
		f.r[RAX] = i;
		f.r[RBX] = U(p);
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(((fn)p)(), i);
	}
}

/* a branch into the middle of an instruction that has been decoded */
SNIPPET(s_overlap, "mov $0x9005b0, %eax; s_ov: test %ecx, %ecx; jnz 1f; int $0x80; 1: xor %ecx, %ecx; jmp s_overlap + 1");
CASE(overlapping_code)
{
	struct frame f = kernel_frame(s_overlap);
	f.r[RCX] = 1; /* second pass starts at b0 05 90 00 …: mov $5, %al; nop; … */
	(void)f;
	static u8 code[] = {0xb8, 0xb0, 0x05, 0xc3, 0x90, 0xc3};
	CHECK_EQ(((fn)code)(), 0x90c305b0);
	CHECK_EQ(((fn)(code + 1))() & 0xff, 5);
	CHECK_EQ(((fn)code)(), 0x90c305b0);
}
