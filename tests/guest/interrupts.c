/* Maskable and non-maskable interrupts at the boundary of instructions: shadows, blocking, priorities, HLT. */
#include "lib/guest.h"

#define V1 0x91
#define V2 0xa2
static volatile unsigned count[256];
static volatile uword at[256];
static volatile u8 order[16], n_order;

static void on_irq(struct frame *f)
{
	count[f->vector]++;
	at[f->vector] = f->ip;
	if (n_order < 16)
		order[n_order++] = (u8)f->vector;
	apic_write(0xb0, 0);
}

static void prepare(void)
{
	cli();
	apic_init();
	for (unsigned i = 0; i < 256; i++)
		count[i] = 0;
	n_order = 0;
	irq_hook[V1] = irq_hook[V2] = on_irq;
}

static u32 self(void) { return apic_x2 ? apic_read(0x20) : apic_read(0x20) >> 24; }

static void ipi(u32 low)
{
	if (apic_x2) {
		wrmsr(0x830, (u64)self() << 32 | low);
	} else {
		apic_write(0x310, self() << 24);
		apic_write(0x300, low);
	}
}
static void self_ipi(u32 vector) { ipi(vector | 1u << 18 | 1u << 14); }

SNIPPET(s_sti, "sti; s_sti_1: nop; s_sti_2: nop; nop; nop; cli; int $0x80");
SNIPPET(s_sti_sti, "sti; sti; s_sti_sti_2: nop; nop; cli; int $0x80");
SNIPPET(s_sti_cli, "sti; cli; nop; nop; int $0x80");
SNIPPET(s_popf, "pushf; orl $0x200, (%rsp); popf; s_popf_1: nop; nop; cli; int $0x80");
SNIPPET(s_sti_ss, "mov %ss, %ecx; sti; nop; nop; mov %ecx, %ss; nop; nop; cli; int $0x80");
SNIPPET(s_sti_hlt, "sti; hlt; s_sti_hlt_2: cli; int $0x80");
SNIPPET(s_pop_ss_irq, "mov %ss, %ecx; push $0x246; popf; s_ps_1: nop; cli; int $0x80");
extern const char s_sti_2[], s_sti_sti_2[], s_popf_1[], s_sti_hlt_2[];

CASE(sti_shadow)
{
	prepare();
	self_ipi(V1);
	for (int i = 0; i < 1000 && !count[V1]; i++)
		asm volatile("pause");
	CHECK_EQ(count[V1], 0); /* IF = 0 */
	struct frame f = kernel_frame(s_sti);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(count[V1], 1);
	CHECK_EQ(at[V1], (uword)s_sti_2);
	/* POPF has no shadow */
	self_ipi(V1);
	f = kernel_frame(s_popf);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(count[V1], 2);
	CHECK_EQ(at[V1], (uword)s_popf_1);
	/* only the first STI of two has one */
	self_ipi(V1);
	f = kernel_frame(s_sti_sti);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(at[V1], (uword)s_sti_sti_2);
	/* STI; CLI: nothing gets in between */
	self_ipi(V1);
	f = kernel_frame(s_sti_cli);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(count[V1], 3);
	/* IRET with IF = 1: at once */
	f = kernel_frame(s_sti);
	f.flags |= FL_IF;
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(count[V1], 4);
	CHECK_EQ(at[V1], (uword)s_sti);
	/* STI; HLT with the interrupt pending: wakes, RIP behind HLT */
	self_ipi(V1);
	f = kernel_frame(s_sti_hlt);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(count[V1], 5);
	CHECK_EQ(at[V1], (uword)s_sti_hlt_2);
}

CASE(hlt_wakes_by_timer)
{
	prepare();
	apic_write(0x3e0, 0xb); /* divide by 1 */
	apic_write(0x320, V1);  /* one-shot */
	for (unsigned i = 0; i < 5; i++) {
		apic_write(0x380, 200000);
		struct frame f = kernel_frame(s_sti_hlt);
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(count[V1], i + 1);
		CHECK_EQ(at[V1], (uword)s_sti_hlt_2);
	}
	apic_write(0x320, BIT(16));
	/* from ring 3 code that spins: the timer breaks in */
	SNIPPET(s_spin, "xor %ecx, %ecx; 1: inc %rcx; cmp %rcx, %rdx; jne 1b; int $0x80");
	irq_hook[V1] = NULL; /* ends run() */
	apic_write(0x320, V1);
	apic_write(0x380, 200000);
	struct frame f = user_frame(s_spin);
	f.flags |= FL_IF;
	f.r[RDX] = ~0ull;
	CHECK_EQ(run(&f), V1);
	CHECK_EQ(last.cs, SEL_UCODE);
	CHECK(last.r[RCX] != 0);
	apic_write(0xb0, 0);
	apic_write(0x320, BIT(16));
}

/* ---- NMI ---- */
static volatile unsigned nmis, nested, nmi_depth;
static bool on_nmi(struct frame *f)
{
	if (f->vector != VEC_NMI)
		return false;
	nmis++;
	if (nmi_depth++)
		nested++;
	if (nmis == 1) {
		ipi(4 << 8 | 1u << 14); /* a second one, latched until IRET */
		for (int i = 0; i < 2000; i++)
			asm volatile("pause");
	}
	nmi_depth--;
	return true;
}
CASE(nmi)
{
	prepare();
	nmis = nested = 0;
	trap_hook = on_nmi;
	ipi(4 << 8 | 1u << 14); /* IF = 0 */
	for (int i = 0; i < 100000 && nmis < 2; i++)
		asm volatile("pause");
	CHECK_EQ(nmis, 2);
	CHECK_EQ(nested, 0);
	/* NMI wakes HLT with IF = 0 */
	nmis = 1;
	SNIPPET(s_hlt, "hlt; int $0x80");
	(void)s_hlt;
}

CASE(priorities)
{
	prepare();
	self_ipi(V1);
	self_ipi(V2);
	sti();
	for (int i = 0; i < 1000 && n_order < 2; i++)
		asm volatile("pause");
	cli();
	CHECK_EQ(n_order, 2);
	CHECK_EQ(order[0], V2);
	CHECK_EQ(order[1], V1);
	/* TPR through CR8 */
	prepare();
	write_cr8(9);
	CHECK_EQ(apic_read(0x80), 0x90);
	self_ipi(V1);
	self_ipi(V2);
	sti();
	for (int i = 0; i < 1000; i++)
		asm volatile("pause");
	CHECK_EQ(count[V2], 1);
	CHECK_EQ(count[V1], 0);
	write_cr8(8); /* now it may */
	for (int i = 0; i < 1000 && !count[V1]; i++)
		asm volatile("pause");
	CHECK_EQ(count[V1], 1);
	cli();
	write_cr8(0);
	/* CR8 has four bits */
	if (!tcg_known_wrong("reserved bits of CR8 are ignored (SDM vol. 2 MOV CR)"))
		CHECK_EQ(TRAP_IN("mov %%rbx, %%cr8", "b"(16)), VEC_GP);
	/* IRR and ISR */
	self_ipi(V1);
	CHECK_EQ(apic_read(0x200 + V1 / 32 * 16), 1u << (V1 % 32));
	/* software interrupt is no APIC interrupt: ISR unchanged */
	CHECK_EQ(apic_read(0x100 + V1 / 32 * 16), 0);
	sti();
	for (int i = 0; i < 1000 && count[V1] < 2; i++)
		asm volatile("pause");
	cli();
	CHECK_EQ(apic_read(0x200 + V1 / 32 * 16), 0);
	CHECK_EQ(apic_read(0x100 + V1 / 32 * 16), 0);
}

static volatile unsigned inner_seen, inner_isr;
static void on_low(struct frame *f)
{
	count[f->vector]++;
	self_ipi(V2);      /* higher: nests */
	self_ipi(V1);      /* the same again: waits for the EOI */
	sti();
	for (int i = 0; i < 1000 && !count[V2]; i++)
		asm volatile("pause");
	cli();
	inner_seen = count[V2];
	inner_isr = apic_read(0x100 + V1 / 32 * 16);
	irq_hook[V1] = on_irq;
	apic_write(0xb0, 0);
}
CASE(nesting)
{
	prepare();
	irq_hook[V1] = on_low;
	self_ipi(V1);
	sti();
	for (int i = 0; i < 100000 && count[V1] < 2; i++)
		asm volatile("pause");
	cli();
	CHECK_EQ(inner_seen, 1);
	CHECK_EQ(inner_isr, 1u << (V1 % 32));
	CHECK_EQ(count[V1], 2);
}

/* Interrupt during ring 3 in compatibility mode: frame and RSP0 */
SNIPPET32(s_spin32, "1: inc %ecx; jmp 1b");
CASE(from_compat)
{
	prepare();
	irq_hook[V1] = NULL;
	apic_write(0x3e0, 0xb);
	apic_write(0x320, V1);
	apic_write(0x380, 300000);
	struct frame f = user_frame(s_spin32);
	f.cs = SEL_UCODE32;
	f.flags |= FL_IF;
	CHECK_EQ(run(&f), V1);
	CHECK_EQ(last.cs, SEL_UCODE32);
	CHECK_EQ(last.ss, SEL_UDATA);
	CHECK_EQ(last.sp, f.sp);
	apic_write(0xb0, 0);
	apic_write(0x320, BIT(16));
}
