/* Local APIC, IOAPIC, timers and kvmclock (SDM vol. 3 chapter 11; Intel 82093AA). */
#include "lib/acpi.h"

static volatile unsigned count[256];
static volatile u64 when;
static void on_irq(struct frame *f)
{
	count[f->vector]++;
	when = rdtsc();
	apic_write(0xb0, 0);
}
static void on_irq_no_eoi(struct frame *f) { count[f->vector]++; }
#define WAIT(cond)                                                                                                     \
	do {                                                                                                           \
		u64 end_ = rdtsc() + 4000000000ull;                                                                    \
		while (!(cond) && rdtsc() < end_)                                                                      \
			asm volatile("pause");                                                                         \
	} while (0)
static void prepare(void)
{
	cli();
	apic_init();
	for (unsigned i = 0; i < 256; i++)
		count[i] = 0;
	for (unsigned i = 0x30; i < 0xff; i++)
		if (i != 0x80)
			irq_hook[i] = on_irq;
}

static void registers(void)
{
	prepare();
	u32 version = apic_read(0x30);
	CHECK((version & 0xff) >= 0x10 && (version & 0xff) <= 0x1f);
	CHECK((version >> 16 & 0xff) >= 3);
	CHECK_EQ(apic_read(0x100), 0); /* ISR, IRR, TMR */
	CHECK_EQ(apic_read(0x200), 0);
	apic_write(0x80, 0x35);
	CHECK_EQ(apic_read(0x80), 0x35);
	CHECK_EQ(apic_read(0xa0) & 0xf0, 0x30); /* PPR */
	CHECK_EQ(read_cr8(), 3);
	apic_write(0x80, 0);
	CHECK_EQ(apic_read(0xa0), 0);
	/* LVT: reserved bits do not stick; masked while software-disabled */
	apic_write(0x350, 0x10000 | 0x41);
	CHECK_EQ(apic_read(0x350), 0x10041);
	apic_write(0x320, 0x42);
	CHECK_EQ(apic_read(0x320), 0x42);
	apic_write(0xf0, 0xff); /* SVR: disabled */
	if (!on_tcg()) { /* known wrong: TCG leaves the LVT alone (SDM 11.4.7.2) */
		CHECK_EQ(apic_read(0x320) & BIT(16), BIT(16));
		apic_write(0x320, 0x42);
		CHECK_EQ(apic_read(0x320) & BIT(16), BIT(16)); /* cannot be unmasked now */
	}
	apic_write(0xf0, 0x1ff);
	apic_write(0x320, 0x10000);
	CHECK_EQ(apic_read(0x380), 0);
	CHECK_EQ(apic_read(0x390), 0);
	apic_write(0x3e0, 0xb);
	CHECK_EQ(apic_read(0x3e0), 0xb);
}

/* Counts per 2^20 cycles with this divider. */
static u64 rate(u32 divider)
{
	apic_write(0x3e0, divider);
	apic_write(0x380, ~0u);
	u64 t0 = rdtsc();
	u32 c0 = apic_read(0x390);
	while (rdtsc() - t0 < 4000000)
		;
	u64 t1 = rdtsc();
	u32 c1 = apic_read(0x390);
	return ((u64)(c0 - c1) << 20) / (t1 - t0);
}

static void timers(void)
{
	prepare();
	/* one-shot: once, count reaches 0 */
	apic_write(0x3e0, 0xb);
	apic_write(0x320, 0x41);
	sti();
	apic_write(0x380, 1000000);
	u32 a = apic_read(0x390), b = apic_read(0x390);
	CHECK(a <= 1000000 && b <= a);
	WAIT(count[0x41]);
	CHECK_EQ(count[0x41], 1);
	CHECK_EQ(apic_read(0x390), 0);
	u64 end = rdtsc() + 10000000;
	while (rdtsc() < end)
		asm volatile("pause");
	CHECK_EQ(count[0x41], 1);
	/* periodic */
	apic_write(0x320, 0x42 | 1u << 17);
	apic_write(0x380, 300000);
	WAIT(count[0x42] >= 5);
	CHECK(count[0x42] >= 5);
	apic_write(0x380, 0); /* stops it */
	unsigned n = count[0x42];
	end = rdtsc() + 5000000;
	while (rdtsc() < end)
		asm volatile("pause");
	CHECK(count[0x42] <= n + 1);
	/* masked: no interrupt, the count runs */
	apic_write(0x320, 0x43 | 1u << 16);
	apic_write(0x380, 100000);
	WAIT(apic_read(0x390) == 0);
	CHECK_EQ(count[0x43], 0);
	/* the divider */
	u64 fast = rate(0xb), slow = rate(0x3); /* by 1, by 16; the host may take the CPU away meanwhile */
	for (int i = 0; i < 10 && (!slow || fast / slow < 12 || fast / slow > 20); i++)
		fast = rate(0xb), slow = rate(0x3);
	CHECK(slow > 0 && fast / slow >= 12 && fast / slow <= 20);
	apic_write(0x320, 0x10000);
	apic_write(0x380, 0);
	cli();
}

static void deadline(void)
{
	if (!(cpuid(1, 0).c >> 24 & 1))
		return skipped("TSC deadline timer");
	prepare();
	apic_write(0x320, 0x44 | 2u << 17);
	asm volatile("mfence");
	CHECK_EQ(rdmsr(MSR_TSC_DEADLINE), 0);
	sti();
	u64 due = rdtsc() + 3000000;
	wrmsr(MSR_TSC_DEADLINE, due);
	CHECK(rdmsr(MSR_TSC_DEADLINE) == due || count[0x44]);
	WAIT(count[0x44]);
	CHECK_EQ(count[0x44], 1);
	CHECK(when >= due);
	CHECK_EQ(rdmsr(MSR_TSC_DEADLINE), 0); /* disarmed by firing */
	/* in the past: at once */
	wrmsr(MSR_TSC_DEADLINE, 1);
	WAIT(count[0x44] == 2);
	CHECK_EQ(count[0x44], 2);
	/* 0 disarms */
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 2000000);
	wrmsr(MSR_TSC_DEADLINE, 0);
	u64 end = rdtsc() + 6000000;
	while (rdtsc() < end)
		asm volatile("pause");
	CHECK(count[0x44] <= 3);
	/* initial count does nothing in this mode */
	apic_write(0x380, 1000);
	CHECK_EQ(apic_read(0x390), 0);
	/* a HLT sleeps until the deadline */
	unsigned n = count[0x44];
	cli();
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 30000000);
	asm volatile("sti; hlt; cli");
	CHECK_EQ(count[0x44], n + 1);
	apic_write(0x320, 0x10000);
}

static void ipis(void)
{
	prepare();
	u32 id = apic_x2 ? apic_read(0x20) : apic_read(0x20) >> 24;
	sti();
#define ICR(hi, lo)                                                                                                    \
	do {                                                                                                           \
		if (apic_x2)                                                                                           \
			wrmsr(0x830, (u64)(hi) << 32 | (lo));                                                          \
		else                                                                                                   \
			apic_write(0x310, (u32)(hi) << 24), apic_write(0x300, lo);                                     \
	} while (0)
	ICR(0, 0x51 | 1u << 18 | 1u << 14); /* self */
	WAIT(count[0x51]);
	ICR(id, 0x52 | 1u << 14); /* physical */
	WAIT(count[0x52]);
	ICR(0, 0x53 | 2u << 18 | 1u << 14); /* all with self */
	WAIT(count[0x53]);
	ICR(0, 0x54 | 3u << 18 | 1u << 14); /* all but self */
	if (!apic_x2) {
		apic_write(0xe0, ~0u);       /* flat model */
		apic_write(0xd0, 2u << 24);  /* logical id 2 */
		ICR(2, 0x55 | 1u << 11 | 1u << 14);
		ICR(1, 0x56 | 1u << 11 | 1u << 14);
	} else {
		u32 ldr = apic_read(0xd0);
		CHECK_EQ(ldr, (id >> 4 << 16) | 1u << (id & 15));
		ICR(ldr, 0x55 | 1u << 11 | 1u << 14);
		ICR(ldr & 0xffff0000, 0x56 | 1u << 11 | 1u << 14);
		wrmsr(0x83f, 0x57); /* SELF IPI */
		WAIT(count[0x57]);
		CHECK_EQ(count[0x57], 1);
	}
	WAIT(count[0x55]);
	cli();
	CHECK_EQ(count[0x51], 1);
	CHECK_EQ(count[0x52], 1);
	CHECK_EQ(count[0x53], 1);
	CHECK_EQ(count[0x54], 0);
	CHECK_EQ(count[0x55], 1);
	CHECK_EQ(count[0x56], 0);
	if (!apic_x2)
		CHECK_EQ(apic_read(0x300) & BIT(12), 0); /* delivered */
	/* without EOI the same priority class waits */
	irq_hook[0x61] = on_irq_no_eoi;
	ICR(id, 0x61 | 1u << 14);
	sti();
	WAIT(count[0x61]);
	ICR(id, 0x62 | 1u << 14);
	u64 end = rdtsc() + 2000000;
	while (rdtsc() < end)
		asm volatile("pause");
	CHECK_EQ(count[0x62], 0);
	CHECK_EQ(apic_read(0x100 + 0x61 / 32 * 16), 1u << (0x61 % 32));
	CHECK_EQ(apic_read(0x200 + 0x62 / 32 * 16), 1u << (0x62 % 32));
	apic_write(0xb0, 0);
	WAIT(count[0x62]);
	CHECK_EQ(count[0x62], 1);
	cli();
	/* an illegal vector is reported in ESR */
	apic_write(0x280, 0);
	ICR(id, 5 | 1u << 14);
	apic_write(0x280, 0);
	CHECK_EQ(apic_read(0x280) & 0x20, 0x20);
	apic_write(0x280, 0);
}

CASE(xapic_registers) { registers(); CHECK(!apic_x2); }
CASE(xapic_timers) { timers(); }
CASE(xapic_deadline) { deadline(); }
CASE(xapic_ipis)
{
	if (tcg_known_wrong("ESR does not report illegal vectors sent (SDM 11.5.3)"))
		return;
	ipis();
}

/* ---- IOAPIC ---- */
static u32 io_read(u32 r) { *(volatile u32 *)0xfec00000 = r; return *(volatile u32 *)0xfec00010; }
static void io_write(u32 r, u32 v) { *(volatile u32 *)0xfec00000 = r; *(volatile u32 *)0xfec00010 = v; }
static void on_uart(struct frame *f)
{
	count[f->vector]++;
	(void)inb(0x3fa); /* IIR: clears THRE */
	apic_write(0xb0, 0);
}
static void on_level(struct frame *f)
{
	CHECK_EQ(apic_read(0x180 + 0x71 / 32 * 16) >> (0x71 % 32) & 1, 1); /* TMR */
	if (++count[f->vector] == 5)
		io_write(0x10 + 8, 0x18071);
	apic_write(0xb0, 0);
}
CASE(ioapic)
{
	prepare();
	u32 n = (io_read(1) >> 16 & 0xff) + 1;
	CHECK_EQ(n, 24);
	for (u32 i = 0; i < n; i++)
		CHECK_EQ(io_read(0x10 + 2 * i) & BIT(16), BIT(16)); /* all masked */
	u32 id = apic_read(0x20) >> 24;
	io_write(0x11 + 8, id << 24);
	io_write(0x10 + 8, 0x10000 | 0x71);
	CHECK_EQ(io_read(0x10 + 8) & ~0x5000u, 0x10071);
	CHECK_EQ(io_read(0x11 + 8) >> 24, id);
	/* COM1 is IRQ 4: THRE interrupts with OUT2 and IER bit 1, edge triggered */
	irq_hook[0x71] = on_uart;
	outb(0x3fc, 0x0b);
	outb(0x3f9, 0);
	(void)inb(0x3fa);
	io_write(0x10 + 8, 0x71);
	sti();
	outb(0x3f9, 2);
	WAIT(count[0x71]);
	CHECK_EQ(count[0x71], 1);
	outb(0x3f8, '\r');
	WAIT(count[0x71] >= 2);
	CHECK_EQ(count[0x71], 2);
	/* masked: nothing */
	io_write(0x10 + 8, 0x10071);
	outb(0x3f8, '\r');
	u64 end = rdtsc() + 20000000;
	while (rdtsc() < end)
		asm volatile("pause");
	CHECK_EQ(count[0x71], 2);
	outb(0x3f9, 0);
	(void)inb(0x3fa);
	/* level triggered: comes again until the line is low */
	cli();
	irq_hook[0x71] = on_level; /* does not look at the UART */
	count[0x71] = 0;
	io_write(0x10 + 8, 0x18071);
	outb(0x3f9, 2);
	io_write(0x10 + 8, 0x8071);
	sti();
	WAIT(count[0x71] >= 5);
	cli();
	CHECK_EQ(count[0x71], 5);
	io_write(0x10 + 8, 0x10071);
	outb(0x3f9, 0);
	(void)inb(0x3fa);
	sti();
	end = rdtsc() + 2000000;
	while (rdtsc() < end)
		asm volatile("pause");
	cli();
}

/* ---- x2APIC ---- */
CASE(x2apic)
{
	if (!(cpuid(1, 0).c >> 21 & 1))
		return skipped("x2APIC");
	u64 base = rdmsr(MSR_APIC_BASE);
	CHECK_EQ(TRAP_IN("rdmsr", "c"(0x802)), VEC_GP); /* not in x2APIC mode */
	u32 id = *(volatile u32 *)0xfee00020 >> 24;
	wrmsr(MSR_APIC_BASE, base | BIT(10));
	apic_x2 = true;
	CHECK_EQ(apic_read(0x20), id);
	CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_APIC_BASE), "a"((u32)base & ~(1u << 10)), "d"(0)), VEC_GP); /* no way back to xAPIC */
	CHECK_EQ(TRAP_IN("wrmsr", "c"(0x802), "a"(1), "d"(0)), VEC_GP); /* read-only */
	CHECK_EQ(TRAP_IN("rdmsr", "c"(0x80b)), VEC_GP);                 /* write-only */
	CHECK_EQ(TRAP_IN("wrmsr", "c"(0x80b), "a"(1), "d"(0)), VEC_GP); /* EOI takes 0 only */
	CHECK_EQ(TRAP_IN("rdmsr", "c"(0x80e)), VEC_GP);                 /* no DFR */
	CHECK_EQ(TRAP_IN("rdmsr", "c"(0x831)), VEC_GP);                 /* no ICR2 */
	CHECK_EQ(TRAP_IN("wrmsr", "c"(0x80f), "a"(0x1ff), "d"(1)), VEC_GP);
	registers();
	timers();
	deadline();
	ipis();
	/* off and on again: back to xAPIC */
	wrmsr(MSR_APIC_BASE, base & ~(BIT(10) | BIT(11)));
	CHECK_EQ(cpuid(1, 0).d >> 9 & 1, 0);
	wrmsr(MSR_APIC_BASE, base);
	apic_x2 = false;
	CHECK_EQ(cpuid(1, 0).d >> 9 & 1, 1);
}

/* ---- kvmclock ---- */
CASE(kvmclock)
{
	struct cpuid c = cpuid(0x40000000, 0);
	if (c.b != 0x4b4d564b || !(cpuid(0x40000001, 0).a >> 3 & 1))
		return skipped("kvmclock");
	static struct { u32 version, pad; u64 tsc, ns; u32 mul; s8 shift; u8 flags; u8 pad2[2]; } t __attribute__((aligned(64)));
	static struct { u32 version, sec, nsec; } w;
	wrmsr(0x4b564d01, (u64)(uword)&t | 1);
	volatile __typeof__(t) *v = &t;
	CHECK_EQ(v->version & 1, 0);
	CHECK(v->mul != 0);
	u64 prev = 0;
	for (int i = 0; i < 1000; i++) {
		u64 d = rdtsc() - v->tsc;
		d = v->shift >= 0 ? d << v->shift : d >> -v->shift;
		u64 ns = v->ns + (u64)((unsigned __int128)d * v->mul >> 32);
		CHECK(ns >= prev);
		prev = ns;
	}
	CHECK(prev < 3600ull * 1000000000);
	wrmsr(0x4b564d00, (u64)(uword)&w);
	CHECK_EQ(w.version & 1, 0);
	CHECK(w.sec > 1700000000);
	wrmsr(0x4b564d01, 0);
}
