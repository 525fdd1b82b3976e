/* Local APIC: priorities, EOI, register access in both modes, mode transitions, timer, IPIs. */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu_stubs.h"

#define X2(reg) (0x800 + (reg))
#define MMIO(reg) ((reg) * 16)
enum { ID = 2, VER = 3, TPR = 8, PPR = 0xa, EOI = 0xb, LDR = 0xd, DFR = 0xe, SVR = 0xf, ISR = 0x10, TMR = 0x18, IRR = 0x20,
	ESR = 0x28, ICR = 0x30, ICR2 = 0x31, LVTT = 0x32, LINT0 = 0x35, LVTERR = 0x37, INIT = 0x38, CUR = 0x39, DIV = 0x3e,
	SELF = 0x3f };

static struct cpu cpus[2];
static struct cpuid_table table;

/* A CPU in virtual time: one instruction = one cycle = one tick of the timer undivided. */
static struct cpu *fresh(unsigned id, bool x2apic)
{
	struct cpu *c = &cpus[id & 1];
	struct lapic *l = c->lapic ? c->lapic : calloc(1, lapic_size());
	memset(c, 0, sizeof(*c));
	memset(l, 0, lapic_size());
	c->lapic = l;
	c->id = id;
	c->cpuid = &table;
	c->deterministic = true;
	c->tsc_khz = 1000000;
	c->maxphyaddr = 46;
	c->vendor_intel = true;
	c->insns = 1000;
	lapic_reset(l, id, id == 0);
	msr_reset(c, id == 0);
	if (x2apic) {
		CHECK(msr_write(c, MSR_APIC_BASE, c->apic_base | APIC_BASE_EXTD));
		CHECK(msr_write(c, X2(SVR), 0x1ff));
	} else {
		lapic_mmio_write(c, MMIO(SVR), 0x1ff);
	}
	return c;
}

static u64 rd(struct cpu *c, u32 reg)
{
	u64 v = 0xdead;
	CHECK(msr_read(c, X2(reg), &v));
	return v;
}

static void test_priorities(void)
{
	struct cpu *c = fresh(0, true);
	CHECK_EQ(lapic_pending(c), -1);
	lapic_post(c->lapic, 0x41, false);
	lapic_post(c->lapic, 0x83, false);
	lapic_post(c->lapic, 0x8f, false);
	CHECK_EQ(lapic_pending(c), 0x8f);
	lapic_ack(c, 0x8f);
	CHECK_EQ(rd(c, ISR + 4), 1u << 15);
	CHECK_EQ(rd(c, IRR + 4), 1u << 3);
	CHECK_EQ(rd(c, IRR + 2), 1u << 1);
	CHECK_EQ(rd(c, PPR), 0x80);
	CHECK_EQ(lapic_pending(c), -1); /* same class waits */
	lapic_post(c->lapic, 0x90, false);
	CHECK_EQ(lapic_pending(c), 0x90); /* nested */
	lapic_ack(c, 0x90);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
	CHECK_EQ(lapic_pending(c), -1);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(lapic_pending(c), 0x83);
	lapic_set_tpr(c, 0x80);
	CHECK_EQ(c->cr8, 8);
	CHECK_EQ(lapic_pending(c), -1);
	CHECK_EQ(rd(c, PPR), 0x80);
	lapic_set_tpr(c, 0x70);
	CHECK_EQ(lapic_pending(c), 0x83);
	CHECK(!msr_write(c, X2(TPR), 0x100));
	CHECK(msr_write(c, X2(TPR), 0x4f));
	CHECK_EQ(c->cr8, 4);
	CHECK_EQ(lapic_get_tpr(c), 0x4f);
	lapic_ack(c, 0x83);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(lapic_pending(c), -1); /* 0x41: class 4 does not exceed TPR class 4 */
	CHECK(!msr_write(c, X2(EOI), 1));
}

static void test_level(void)
{
	struct cpu *c = fresh(0, true);
	lapic_post(c->lapic, 0x55, true);
	CHECK_EQ(rd(c, TMR + 2), 1u << 21);
	CHECK_EQ(lapic_pending(c), 0x55);
	lapic_ack(c, 0x55);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(c->exit, CPU_EXIT_EOI);
	CHECK_EQ(c->eoi_vector, 0x55);
	c->exit = CPU_EXIT_NONE;
	lapic_post(c->lapic, 0x55, false); /* edge now */
	lapic_ack(c, 0x55);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
	CHECK(msr_write(c, X2(EOI), 0)); /* spurious EOI */
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
}

static void test_registers(void)
{
	struct cpu *c = fresh(0x13, true);
	u64 v;
	CHECK_EQ(rd(c, ID), 0x13);
	CHECK_EQ(rd(c, LDR), 0x10008);
	CHECK_EQ(rd(c, VER), 0x50014);
	CHECK(!msr_read(c, X2(DFR), &v));
	CHECK(!msr_read(c, X2(EOI), &v));
	CHECK(!msr_read(c, X2(SELF), &v));
	CHECK(!msr_read(c, X2(ICR2), &v));
	CHECK(!msr_read(c, X2(9), &v));
	CHECK(!msr_read(c, X2(0x2f), &v)); /* no CMCI */
	CHECK(!msr_write(c, X2(ID), 1));
	CHECK(!msr_write(c, X2(LDR), 1));
	CHECK(!msr_write(c, X2(VER), 1));
	CHECK(!msr_write(c, X2(CUR), 1));
	CHECK(!msr_write(c, X2(ISR), 0));
	CHECK(!msr_write(c, X2(ESR), 1));
	CHECK(msr_write(c, X2(ESR), 0));
	CHECK(!msr_write(c, X2(SVR), 0x1000001ffull));
	CHECK(!msr_write(c, X2(DIV), 4));
	CHECK(msr_write(c, X2(LINT0), 0x10700));
	CHECK_EQ(rd(c, LINT0), 0x10700);
	/* the MMIO page is dead in x2APIC mode */
	CHECK(!lapic_in_page(c, 0xfee00020));
	CHECK_EQ(lapic_mmio_read(c, MMIO(ID)), 0);

	c = fresh(5, false);
	CHECK(lapic_in_page(c, 0xfee00020));
	CHECK(!lapic_in_page(c, 0xfee01020));
	CHECK(!msr_read(c, X2(ID), &v));
	CHECK(!msr_write(c, X2(EOI), 0));
	CHECK_EQ(lapic_mmio_read(c, MMIO(ID)), 5u << 24);
	lapic_mmio_write(c, MMIO(LDR), 0x12345678);
	CHECK_EQ(lapic_mmio_read(c, MMIO(LDR)), 0x12000000);
	CHECK_EQ(lapic_mmio_read(c, MMIO(DFR)), 0xffffffff);
	lapic_mmio_write(c, MMIO(DFR), 0);
	CHECK_EQ(lapic_mmio_read(c, MMIO(DFR)), 0x0fffffff);
	lapic_mmio_write(c, MMIO(ICR2), 0xabcdef01);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ICR2)), 0xab000000);
	CHECK_EQ(lapic_mmio_read(c, 0x4), 0);
	/* an illegal register: ESR bit 7, latched at the next write */
	lapic_mmio_write(c, MMIO(0x3d), 1);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ESR)), 0);
	lapic_mmio_write(c, MMIO(ESR), 0);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ESR)), 0x80);
	lapic_mmio_write(c, MMIO(ESR), 0);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ESR)), 0);
	/* an illegal vector, with the error interrupt on */
	lapic_mmio_write(c, MMIO(LVTERR), 0xfe);
	lapic_post(c->lapic, 5, false);
	CHECK_EQ(lapic_pending(c), 0xfe);
	lapic_mmio_write(c, MMIO(ESR), 0);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ESR)), 0x40);

	/* software disable masks every LVT entry and drops new interrupts */
	lapic_mmio_write(c, MMIO(LINT0), 0x700);
	CHECK_EQ(lapic_mmio_read(c, MMIO(LINT0)), 0x700);
	lapic_mmio_write(c, MMIO(SVR), 0xff);
	CHECK_EQ(lapic_mmio_read(c, MMIO(LINT0)), 0x10700);
	lapic_mmio_write(c, MMIO(LINT0), 0x700);
	CHECK_EQ(lapic_mmio_read(c, MMIO(LINT0)), 0x10700);
	CHECK(!lapic_deliver(c, 0, 0x44, false));
	CHECK_EQ(lapic_mmio_read(c, MMIO(IRR + 2)), 0);
	CHECK(lapic_deliver(c, 4, 0, false)); /* NMI passes */
	CHECK(c->nmi_pending);
}

static void test_modes(void)
{
	struct cpu *c = fresh(0, false);
	const u64 base = 0xfee00000 | APIC_BASE_BSP;
	u64 v;
	CHECK(msr_read(c, MSR_APIC_BASE, &v));
	CHECK_EQ(v, base | APIC_BASE_EN);
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EXTD));
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN | 1));
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN | BIT(46)));
	unsigned before = flushes;
	CHECK(msr_write(c, MSR_APIC_BASE, base)); /* off */
	CHECK(flushes > before);
	CHECK_EQ(lapic_pending(c), -1);
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN | APIC_BASE_EXTD)); /* off -> x2APIC */
	CHECK(msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN));
	CHECK_EQ(lapic_mmio_read(c, MMIO(SVR)), 0xff); /* state was lost */
	CHECK(msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN | APIC_BASE_EXTD));
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EN)); /* x2APIC -> xAPIC */
	CHECK(!msr_write(c, MSR_APIC_BASE, base | APIC_BASE_EXTD));
	CHECK(msr_write(c, MSR_APIC_BASE, base));
	CHECK(msr_write(c, MSR_APIC_BASE, (base & ~0xfffff000ull) | 0xd0000000 | APIC_BASE_EN)); /* moved page */
	CHECK(lapic_in_page(c, 0xd0000300));
	/* INIT keeps the mode */
	c = fresh(0, true);
	lapic_post(c->lapic, 0x50, false);
	lapic_init_signal(c);
	CHECK_EQ(rd(c, SVR), 0xff);
	CHECK_EQ(lapic_pending(c), -1);
}

static void test_oneshot(void)
{
	struct cpu *c = fresh(0, true);
	CHECK_EQ(lapic_deadline(c), ~0ull);
	CHECK(msr_write(c, X2(DIV), 0xb)); /* by 1 */
	CHECK(msr_write(c, X2(LVTT), 0x30));
	CHECK(msr_write(c, X2(INIT), 500));
	CHECK_EQ(c->poll_at, 0);
	CHECK_EQ(lapic_deadline(c), 1500);
	CHECK_EQ(rd(c, CUR), 500);
	c->insns += 200;
	CHECK_EQ(rd(c, CUR), 300);
	CHECK_EQ(lapic_pending(c), -1);
	c->insns += 299;
	CHECK_EQ(lapic_pending(c), -1);
	c->insns += 1;
	CHECK_EQ(lapic_pending(c), 0x30);
	CHECK_EQ(rd(c, CUR), 0);
	CHECK_EQ(lapic_deadline(c), ~0ull);
	lapic_ack(c, 0x30);
	CHECK(msr_write(c, X2(EOI), 0));
	c->insns += 10000;
	CHECK_EQ(lapic_pending(c), -1);
	/* divided by 16; rewriting the count restarts; 0 stops */
	CHECK(msr_write(c, X2(DIV), 3));
	CHECK(msr_write(c, X2(INIT), 100));
	CHECK_EQ(lapic_deadline(c), c->insns + 1600);
	c->insns += 800;
	CHECK_EQ(rd(c, CUR), 50);
	CHECK(msr_write(c, X2(INIT), 100));
	CHECK_EQ(rd(c, CUR), 100);
	CHECK(msr_write(c, X2(INIT), 0));
	CHECK_EQ(lapic_deadline(c), ~0ull);
	/* masked: counts down without an interrupt, also when unmasked afterwards */
	CHECK(msr_write(c, X2(LVTT), 0x10030));
	CHECK(msr_write(c, X2(INIT), 10));
	CHECK_EQ(lapic_deadline(c), ~0ull);
	c->insns += 1000;
	CHECK(msr_write(c, X2(LVTT), 0x30));
	CHECK_EQ(lapic_pending(c), -1);
	CHECK_EQ(rd(c, CUR), 0);
	/* the guest moving its TSC does not move the counting timer */
	CHECK(msr_write(c, X2(DIV), 0xb));
	CHECK(msr_write(c, X2(INIT), 1000));
	CHECK(msr_write(c, MSR_TSC, 5));
	CHECK_EQ(cpu_tsc(c), 5);
	CHECK_EQ(lapic_deadline(c), 1005);
	c->insns += 1000;
	CHECK_EQ(lapic_pending(c), 0x30);
}

static void test_periodic(void)
{
	struct cpu *c = fresh(0, true);
	u64 start = c->insns;
	CHECK(msr_write(c, X2(DIV), 0xb));
	CHECK(msr_write(c, X2(LVTT), 0x20040));
	CHECK(msr_write(c, X2(INIT), 7));
	for (unsigned i = 1; i <= 1000; i++) {
		u64 due = lapic_deadline(c);
		CHECK_EQ(due, start + (u64)i * 7);
		c->insns = due - 1;
		CHECK_EQ(lapic_pending(c), -1);
		c->insns = due;
		CHECK_EQ(lapic_pending(c), 0x40);
		lapic_ack(c, 0x40);
		CHECK(msr_write(c, X2(EOI), 0));
	}
	/* a million missed periods: one interrupt, next one in the future on the grid */
	c->insns += 14700000;
	CHECK_EQ(lapic_pending(c), 0x40);
	lapic_ack(c, 0x40);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK_EQ(lapic_pending(c), -1);
	CHECK(lapic_deadline(c) > c->insns && lapic_deadline(c) <= c->insns + 7);
	/* the smallest period there is ends, too */
	CHECK(msr_write(c, X2(INIT), 1));
	c->insns += 10;
	CHECK_EQ(lapic_pending(c), 0x40);
}

static void test_deadline(void)
{
	struct cpu *c = fresh(0, true);
	u64 v;
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 5000)); /* not in that mode: no effect */
	CHECK(msr_read(c, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(v, 0);
	CHECK(msr_write(c, X2(LVTT), 0x400ec));
	CHECK(msr_write(c, X2(INIT), 100)); /* ignored in deadline mode */
	CHECK_EQ(lapic_deadline(c), ~0ull);
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 5000));
	CHECK_EQ(lapic_deadline(c), 5000);
	CHECK(msr_read(c, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(v, 5000);
	c->insns = 4999;
	CHECK_EQ(lapic_pending(c), -1);
	c->insns = 5000;
	CHECK_EQ(lapic_pending(c), 0xec);
	CHECK(msr_read(c, MSR_TSC_DEADLINE, &v));
	CHECK_EQ(v, 0);
	lapic_ack(c, 0xec);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 1)); /* in the past: at once */
	CHECK_EQ(lapic_pending(c), 0xec);
	lapic_ack(c, 0xec);
	CHECK(msr_write(c, X2(EOI), 0));
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 9000));
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 0)); /* disarmed */
	c->insns = 10000;
	CHECK_EQ(lapic_pending(c), -1);
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 20000));
	CHECK(msr_write(c, X2(LVTT), 0xec)); /* leaving the mode disarms */
	CHECK_EQ(lapic_deadline(c), ~0ull);
	/* the deadline follows the guest's TSC */
	CHECK(msr_write(c, X2(LVTT), 0x400ec));
	CHECK(msr_write(c, MSR_TSC_DEADLINE, 20000));
	CHECK(msr_write(c, MSR_TSC, 20000));
	CHECK_EQ(lapic_pending(c), 0xec);
}

static void test_ipi(void)
{
	table.ncpus = 4;
	struct cpu *c = fresh(0, true);
	CHECK(msr_write(c, X2(SELF), 0x51));
	CHECK_EQ(lapic_pending(c), 0x51);
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
	CHECK(!msr_write(c, X2(SELF), 0x151));
	CHECK(!msr_write(c, X2(ICR), BIT(13)));
	CHECK(!msr_write(c, X2(ICR), BIT(20)));

	c = fresh(0, true); /* physical, to another */
	CHECK(msr_write(c, X2(ICR), 3ull << 32 | 0x44));
	CHECK_EQ(c->exit, CPU_EXIT_IPI);
	CHECK_EQ(c->ipi_icr, 3ull << 32 | 0x44);
	CHECK_EQ(rd(c, ICR), 3ull << 32 | 0x44);
	CHECK_EQ(lapic_pending(c), -1);

	c = fresh(0, true); /* physical, to itself */
	CHECK(msr_write(c, X2(ICR), 0x45));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
	CHECK_EQ(lapic_pending(c), 0x45);

	c = fresh(0, true); /* all including self, all excluding self */
	CHECK(msr_write(c, X2(ICR), 2ull << 18 | 0x46));
	CHECK_EQ(lapic_pending(c), 0x46);
	CHECK_EQ(c->exit, CPU_EXIT_IPI);
	CHECK_EQ(c->ipi_icr >> 18 & 3, 3);
	c = fresh(0, true);
	CHECK(msr_write(c, X2(ICR), 3ull << 18 | 0x46));
	CHECK_EQ(lapic_pending(c), -1);
	CHECK_EQ(c->exit, CPU_EXIT_IPI);

	c = fresh(0, true); /* logical: cluster 0, CPUs 0 and 2 */
	CHECK(msr_write(c, X2(ICR), 5ull << 32 | BIT(11) | 0x47));
	CHECK_EQ(lapic_pending(c), 0x47);
	CHECK_EQ(c->exit, CPU_EXIT_IPI);
	c = fresh(0, true); /* lowest priority: one of them */
	CHECK(msr_write(c, X2(ICR), 5ull << 32 | BIT(11) | 1 << 8 | 0x47));
	CHECK_EQ(lapic_pending(c), 0x47);
	CHECK_EQ(c->exit, CPU_EXIT_NONE);

	c = fresh(0, true); /* INIT, SIPI to CPU 1; INIT level de-assert is nothing */
	CHECK(msr_write(c, X2(ICR), 1ull << 32 | 0x4500));
	CHECK_EQ(c->exit, CPU_EXIT_IPI);
	struct cpu *ap = fresh(1, false);
	CHECK(lapic_deliver(ap, c->ipi_icr >> 8 & 7, (u8)c->ipi_icr, false));
	CHECK(ap->init_pending);
	c->exit = CPU_EXIT_NONE;
	CHECK(msr_write(c, X2(ICR), 1ull << 32 | 0x4698));
	CHECK(lapic_deliver(ap, c->ipi_icr >> 8 & 7, (u8)c->ipi_icr, false));
	CHECK(ap->sipi_pending);
	CHECK_EQ(ap->sipi_vector, 0x98);
	c->exit = CPU_EXIT_NONE;
	CHECK(msr_write(c, X2(ICR), 1ull << 32 | 0x8500));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);

	c = fresh(0, true); /* illegal vector */
	CHECK(msr_write(c, X2(ICR), 1ull << 32 | 3));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
	CHECK(msr_write(c, X2(ESR), 0));
	CHECK_EQ(rd(c, ESR), 0x20);

	c = fresh(0, false); /* xAPIC: normalized */
	lapic_mmio_write(c, MMIO(ICR2), 1u << 24);
	lapic_mmio_write(c, MMIO(ICR), 0x1044);
	CHECK_EQ(c->exit, CPU_EXIT_IPI);
	CHECK_EQ(c->ipi_icr, 1ull << 32 | 0x44);
	CHECK_EQ(lapic_mmio_read(c, MMIO(ICR)), 0x44);
	lapic_mmio_write(c, MMIO(ICR2), 0xffu << 24);
	lapic_mmio_write(c, MMIO(ICR), 0x48);
	CHECK_EQ(c->ipi_icr >> 32, 0xffffffff);
	CHECK_EQ(lapic_pending(c), 0x48);
	c = fresh(0, false); /* NMI to itself */
	lapic_mmio_write(c, MMIO(ICR), 1 << 18 | 0x400);
	CHECK(c->nmi_pending);
	CHECK_EQ(c->exit, CPU_EXIT_NONE);

	table.ncpus = 1; /* nobody else: no exit */
	c = fresh(0, true);
	CHECK(msr_write(c, X2(ICR), 3ull << 18 | 0x46));
	CHECK_EQ(c->exit, CPU_EXIT_NONE);
}

static void test_destinations(void)
{
	struct cpu *c = fresh(0x25, true);
	CHECK(lapic_matches(c->lapic, 0x25, false));
	CHECK(!lapic_matches(c->lapic, 0x24, false));
	CHECK(lapic_matches(c->lapic, 0xffffffff, false));
	CHECK(lapic_matches(c->lapic, 0xff, false));
	CHECK(lapic_matches(c->lapic, 0x20020, true));
	CHECK(!lapic_matches(c->lapic, 0x20010, true));
	CHECK(!lapic_matches(c->lapic, 0x10020, true));
	CHECK(lapic_matches(c->lapic, 0xffffffff, true));

	c = fresh(3, false);
	CHECK(lapic_matches(c->lapic, 3, false));
	lapic_mmio_write(c, MMIO(LDR), 0x08000000);
	CHECK(lapic_matches(c->lapic, 0x0c, true));
	CHECK(!lapic_matches(c->lapic, 0x04, true));
	CHECK(lapic_matches(c->lapic, 0xff, true));
	lapic_mmio_write(c, MMIO(DFR), 0x0fffffff); /* cluster */
	lapic_mmio_write(c, MMIO(LDR), 0x24000000);
	CHECK(lapic_matches(c->lapic, 0x24, true));
	CHECK(lapic_matches(c->lapic, 0x2f, true));
	CHECK(!lapic_matches(c->lapic, 0x14, true));
	CHECK(!lapic_matches(c->lapic, 0x23, true));
	CHECK(msr_write(c, MSR_APIC_BASE, 0xfee00000));
	CHECK(!lapic_matches(c->lapic, 0xffffffff, false));
}

/* Other threads post while the CPU takes and ends interrupts: none is lost, none appears twice. */
enum { POSTERS = 2, ROUNDS = 20000 };
static volatile bool taken[POSTERS];

static void *poster(void *arg)
{
	unsigned n = (unsigned)(uintptr_t)arg;
	for (unsigned i = 0; i < ROUNDS; i++) {
		lapic_deliver(&cpus[0], 0, (u8)(0x42 + n), false);
		while (!__atomic_exchange_n(&taken[n], false, __ATOMIC_ACQ_REL))
			sched_yield();
	}
	return NULL;
}

static void test_threads(void)
{
	struct cpu *c = fresh(0, true);
	pthread_t t[POSTERS];
	unsigned count[POSTERS] = { 0 };
	for (unsigned n = 0; n < POSTERS; n++)
		CHECK(!pthread_create(&t[n], NULL, poster, (void *)(uintptr_t)n));
	for (unsigned i = 0; i < POSTERS * ROUNDS;) {
		int v = lapic_pending(c);
		if (v < 0) {
			sched_yield();
			continue;
		}
		lapic_ack(c, (u8)v);
		msr_write(c, X2(EOI), 0);
		count[v - 0x42]++;
		i++;
		__atomic_store_n(&taken[v - 0x42], true, __ATOMIC_RELEASE);
	}
	for (unsigned n = 0; n < POSTERS; n++) {
		pthread_join(t[n], NULL);
		CHECK_EQ(count[n], ROUNDS);
	}
	CHECK_EQ(lapic_pending(c), -1);
}

int main(void)
{
	table.ncpus = 1;
	table.apic_div = 1;
	test_priorities();
	test_level();
	test_registers();
	test_modes();
	test_oneshot();
	test_periodic();
	test_deadline();
	test_ipi();
	test_destinations();
	test_threads();
	return check_result();
}
