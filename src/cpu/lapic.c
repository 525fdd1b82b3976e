/* The local APIC (SDM vol. 3 chapter 11), one per CPU.
 *
 * Register numbers are the x2APIC ones (MSR 0x800 + n); the xAPIC page has register n at offset 16 * n.  Threads: only
 * IRR, TMR and what lapic_matches() and lapic_post() read are touched by other threads, as atomics; everything else
 * belongs to the thread that runs the CPU.
 *
 * Time: the counting timer (one-shot, periodic) runs at the crystal frequency of CPUID leaf 0x15, which is the TSC's (see
 * cpuid.c), divided by the divide configuration, on the raw TSC, which the guest cannot move; the deadline timer
 * compares the guest's TSC.  Nothing ticks: lapic_pending() looks at the clock.
 *
 * Reserved bits of SVR and of the LVT are dropped rather than faulted in x2APIC mode, as KVM does. */
#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/trace.h"

enum reg {
	REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0a, REG_EOI = 0x0b,
	REG_LDR = 0x0d, REG_DFR = 0x0e, REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20,
	REG_ESR = 0x28, REG_ICR = 0x30, REG_ICR2 = 0x31, REG_LVT = 0x32, REG_INITIAL = 0x38,
	REG_CURRENT = 0x39, REG_DIVIDE = 0x3e, REG_SELF_IPI = 0x3f,
};

enum lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

/* Integrated APIC, LVT_COUNT entries, no EOI-broadcast suppression. */
#define VERSION (0x14u | (LVT_COUNT - 1) << 16)

#define LVT_MASKED BIT(16)
#define SVR_ENABLE BIT(8)
#define ESR_SEND_ILLEGAL BIT(5)
#define ESR_RECV_ILLEGAL BIT(6)
#define ESR_ILLEGAL_REG BIT(7)

enum { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_DEADLINE }; /* LVT timer bits 18:17 */
enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_RESERVED, DM_NMI, DM_INIT, DM_SIPI, DM_EXTINT };

/* Writable bits of each LVT entry. */
static const u32 lvt_writable[LVT_COUNT] = {
	[LVT_TIMER] = 0x700ff,
	[LVT_THERMAL] = 0x107ff,
	[LVT_PERF] = 0x107ff,
	[LVT_LINT0] = 0x1a7ff,
	[LVT_LINT1] = 0x1a7ff,
	[LVT_ERROR] = 0x100ff,
};

#define IDLE (~0ull)

struct lapic {
	/* --- any thread, atomic --- */
	u64 irr[4], tmr[4];
	u32 id;   /* APIC id, constant */
	u32 mode; /* APIC_BASE_EN | APIC_BASE_EXTD bits of IA32_APIC_BASE */
	u32 ldr;  /* xAPIC: bits 31:24 */
	u32 dfr;
	u32 svr;
	u32 esr_pending; /* errors since the last write of ESR */
	u64 dropped;     /* messages of kinds that are not delivered (SMI, ExtINT, reserved) */

	/* --- the CPU's own thread --- */
	u64 isr[4];
	u8 tpr;
	u32 esr;
	u64 icr;
	u32 lvt[LVT_COUNT];
	u32 initial, divide;
	u64 due;      /* raw TSC of the counting timer's next expiration, or IDLE */
	u64 deadline; /* guest TSC, 0: not armed */
};

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), v, __ATOMIC_RELAXED)

size_t lapic_size(void) { return sizeof(struct lapic); }

static bool is_x2apic(const struct lapic *l) { return LOAD(l->mode) & APIC_BASE_EXTD; }
static bool hw_enabled(const struct lapic *l) { return LOAD(l->mode) & APIC_BASE_EN; }
static bool sw_enabled(const struct lapic *l) { return hw_enabled(l) && LOAD(l->svr) & SVR_ENABLE; }

/* x2APIC logical id: cluster = id / 16, one bit within it (SDM 11.12.10.2). */
static u32 x2apic_ldr(u32 id) { return (id >> 4) << 16 | 1u << (id & 15); }

/* State that INIT also resets. */
static void reset_registers(struct lapic *l)
{
	for (unsigned i = 0; i < 4; i++) {
		STORE(l->irr[i], 0);
		STORE(l->tmr[i], 0);
		l->isr[i] = 0;
	}
	STORE(l->ldr, 0);
	STORE(l->dfr, 0xffffffff);
	STORE(l->svr, 0xff);
	STORE(l->esr_pending, 0);
	l->tpr = 0;
	l->esr = 0;
	l->icr = 0;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = LVT_MASKED;
	l->initial = l->divide = 0;
	l->due = IDLE;
	l->deadline = 0;
}

void lapic_reset(struct lapic *l, unsigned id, bool is_bsp)
{
	(void)is_bsp; /* lives in IA32_APIC_BASE alone */
	l->id = id;
	STORE(l->mode, APIC_BASE_EN);
	STORE(l->dropped, 0);
	reset_registers(l);
}

void lapic_init_signal(struct cpu *c)
{
	if (!c->lapic)
		return;
	reset_registers(c->lapic);
	c->cr8 = 0;
}

/* ---- interrupt request, service and priority ---- */

static int highest(const u64 *w, bool atomic)
{
	for (int i = 3; i >= 0; i--) {
		u64 v = atomic ? LOAD(w[i]) : w[i];
		if (v)
			return i * 64 + 63 - __builtin_clzll(v);
	}
	return -1;
}

static void post_error(struct lapic *l, u32 bit);

void lapic_post(struct lapic *l, u8 vector, bool level)
{
	if (!sw_enabled(l))
		return;
	if (vector < 16) {
		post_error(l, ESR_RECV_ILLEGAL);
		return;
	}
	u64 bit = BIT(vector & 63);
	if (level)
		__atomic_fetch_or(&l->tmr[vector >> 6], bit, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(&l->tmr[vector >> 6], ~bit, __ATOMIC_RELAXED);
	__atomic_fetch_or(&l->irr[vector >> 6], bit, __ATOMIC_RELEASE);
}

/* Latches an error; the error interrupt comes once per newly latched bit. */
static void post_error(struct lapic *l, u32 bit)
{
	u32 old = __atomic_fetch_or(&l->esr_pending, bit, __ATOMIC_RELAXED);
	u32 lvt = LOAD(l->lvt[LVT_ERROR]);
	if (!(old & bit) && !(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
		lapic_post(l, (u8)lvt, false);
}

/* Processor priority (SDM 11.8.3.1). */
static u8 ppr(const struct lapic *l)
{
	int isr = highest(l->isr, false);
	u8 isrv = isr < 0 ? 0 : (u8)isr;
	return (l->tpr & 0xf0) >= (isrv & 0xf0) ? l->tpr : isrv & 0xf0;
}

static void timer_run(struct cpu *c);

int lapic_pending(struct cpu *c)
{
	struct lapic *l = c->lapic;
	if (!l || !hw_enabled(l))
		return -1;
	if (l->due != IDLE || l->deadline)
		timer_run(c);
	int v = highest(l->irr, true);
	if (v < 0 || (v & 0xf0) <= (ppr(l) & 0xf0))
		return -1;
	return v;
}

void lapic_ack(struct cpu *c, u8 vector)
{
	struct lapic *l = c->lapic;
	u64 bit = BIT(vector & 63);
	__atomic_fetch_and(&l->irr[vector >> 6], ~bit, __ATOMIC_ACQUIRE);
	l->isr[vector >> 6] |= bit;
}

static void eoi(struct cpu *c)
{
	struct lapic *l = c->lapic;
	int v = highest(l->isr, false);
	if (v < 0)
		return;
	l->isr[v >> 6] &= ~BIT(v & 63);
	if (LOAD(l->tmr[v >> 6]) & BIT(v & 63)) {
		c->eoi_vector = (u8)v;
		c->exit = CPU_EXIT_EOI;
	}
}

void lapic_set_tpr(struct cpu *c, u8 tpr)
{
	c->cr8 = tpr >> 4;
	if (c->lapic)
		c->lapic->tpr = tpr;
}

u8 lapic_get_tpr(const struct cpu *c)
{
	return c->lapic ? c->lapic->tpr : (u8)(c->cr8 << 4);
}

/* ---- messages ---- */

bool lapic_matches(const struct lapic *l, u32 dest, bool logical)
{
	if (!hw_enabled(l))
		return false;
	bool x2 = is_x2apic(l);
	if (!logical) /* 0xff: broadcast of xAPIC senders and of MSIs; there is no APIC with that id */
		return dest == 0xffffffff || dest == 0xff || dest == (x2 ? l->id : (l->id & 0xff));
	if (dest == 0xffffffff)
		return true;
	if (x2) {
		u32 ldr = x2apic_ldr(l->id);
		return dest >> 16 == ldr >> 16 && dest & ldr & 0xffff;
	}
	if (dest > 0xff)
		return false;
	if (dest == 0xff)
		return true;
	u32 mine = LOAD(l->ldr) >> 24;
	if (LOAD(l->dfr) >> 28 == 0xf) /* flat */
		return dest & mine;
	return dest >> 4 == mine >> 4 && dest & mine & 0xf; /* cluster */
}

bool lapic_deliver(struct cpu *c, u8 mode, u8 vector, bool level)
{
	struct lapic *l = c->lapic;
	switch (mode) {
	case DM_FIXED:
	case DM_LOWEST:
		if (!sw_enabled(l))
			return false;
		lapic_post(l, vector, level);
		return true;
	case DM_NMI:
		__atomic_store_n(&c->nmi_pending, true, __ATOMIC_RELEASE);
		return true;
	case DM_INIT:
		__atomic_store_n(&c->sipi_pending, false, __ATOMIC_RELAXED); /* a start-up before this INIT is void */
		__atomic_store_n(&c->init_pending, true, __ATOMIC_RELEASE);
		return true;
	case DM_SIPI:
		__atomic_store_n(&c->sipi_vector, vector, __ATOMIC_RELAXED);
		__atomic_store_n(&c->sipi_pending, true, __ATOMIC_RELEASE);
		return true;
	default: /* there is no SMM and no 8259 */
		__atomic_fetch_add(&l->dropped, 1, __ATOMIC_RELAXED);
		return false;
	}
}

/* ICR written: icr in the x2APIC layout. */
static void send_ipi(struct cpu *c, u64 icr)
{
	struct lapic *l = c->lapic;
	u8 mode = icr >> 8 & 7, vector = (u8)icr;
	bool logical = icr >> 11 & 1, assert = icr >> 14 & 1, level = icr >> 15 & 1;
	unsigned shorthand = icr >> 18 & 3;
	u32 dest = (u32)(icr >> 32);

	if (mode == DM_INIT && level && !assert) /* the INIT level de-assert of old APICs */
		return;
	if ((mode == DM_FIXED || mode == DM_LOWEST) && vector < 16) {
		post_error(l, ESR_SEND_ILLEGAL);
		return;
	}
	/* IPIs are edge triggered whatever bit 15 says, but for INIT's de-assert (SDM 11.6.1). */
	bool self = shorthand == 1 || shorthand == 2 || (shorthand == 0 && lapic_matches(l, dest, logical));
	bool others = shorthand != 1;
	if (self && (mode == DM_INIT || mode == DM_SIPI) && shorthand == 2)
		self = false; /* not valid with "all including self": treated as "all excluding self" */
	if (self) {
		lapic_deliver(c, mode, vector, false);
		if (shorthand == 0 && (mode == DM_LOWEST || (!logical && dest != 0xffffffff)))
			others = false;
	}
	if (!others || (c->cpuid && c->cpuid->ncpus == 1))
		return;
	if (shorthand)
		icr |= 3ull << 18;
	c->ipi_icr = icr & ~BIT(15);
	c->exit = CPU_EXIT_IPI;
}

/* ---- timer ---- */

static u32 apic_div(const struct cpu *c) { return c->cpuid ? c->cpuid->apic_div : 1; }

static unsigned timer_mode(const struct lapic *l) { return l->lvt[LVT_TIMER] >> 17 & 3; }

/* Divide configuration bits 3,1,0: 0..6 = 2..128, 7 = 1. */
static unsigned divisor(const struct lapic *l)
{
	unsigned v = (l->divide & 3) | (l->divide >> 1 & 4);
	return v == 7 ? 1 : 2u << v;
}

/* Raw TSC cycles of one count. */
static u64 tick(const struct cpu *c) { return (u64)divisor(c->lapic) * apic_div(c); }
/* Raw TSC cycles from the initial count to 0: at most 2^32 * 128 * 2. */
static u64 period(const struct cpu *c) { return c->lapic->initial * tick(c); }

static void timer_start(struct cpu *c)
{
	struct lapic *l = c->lapic;
	l->due = l->initial ? cpu_raw_tsc(c) + period(c) : IDLE;
	cpu_trace(c, TRACE_TIMER, l->initial ? l->due + c->tsc_offset : 0, cpu_tsc(c),
		  l->initial ? TRACE_TIMER_ARMED : TRACE_TIMER_STOPPED);
}

/* Makes the interpreter look at the clock again: it polls at c->poll_at. */
static void timer_changed(struct cpu *c) { c->poll_at = 0; }

static void timer_fire(struct cpu *c, u64 due)
{
	struct lapic *l = c->lapic;
	cpu_trace(c, TRACE_TIMER, due, cpu_tsc(c), TRACE_TIMER_FIRED);
	if (!(l->lvt[LVT_TIMER] & LVT_MASKED))
		lapic_post(l, (u8)l->lvt[LVT_TIMER], false);
}

static void timer_run(struct cpu *c)
{
	struct lapic *l = c->lapic;
	u64 now = cpu_raw_tsc(c);
	if (l->deadline && now + c->tsc_offset >= l->deadline) {
		timer_fire(c, l->deadline);
		l->deadline = 0;
	}
	if (l->due == IDLE || now < l->due)
		return;
	timer_fire(c, l->due + c->tsc_offset);
	if (timer_mode(l) != TIMER_PERIODIC) {
		l->due = IDLE;
		return;
	}
	/* Expirations that were missed are one interrupt, as on hardware (one IRR bit). */
	l->due += ((now - l->due) / period(c) + 1) * period(c);
}

u64 lapic_deadline(const struct cpu *c)
{
	const struct lapic *l = c->lapic;
	if (!l || !hw_enabled(l) || l->lvt[LVT_TIMER] & LVT_MASKED)
		return IDLE;
	if (l->deadline)
		return l->deadline;
	return l->due == IDLE ? IDLE : l->due + c->tsc_offset;
}

static u32 timer_current(struct cpu *c)
{
	struct lapic *l = c->lapic;
	timer_run(c);
	if (timer_mode(l) == TIMER_DEADLINE || l->due == IDLE)
		return 0;
	u64 left = l->due - cpu_raw_tsc(c);
	if ((s64)left < 0)
		return 0;
	u64 count = (left + tick(c) - 1) / tick(c);
	return count > l->initial ? l->initial : (u32)count;
}

u64 lapic_get_tsc_deadline(struct cpu *c)
{
	struct lapic *l = c->lapic;
	if (!l || timer_mode(l) != TIMER_DEADLINE)
		return 0;
	timer_run(c);
	return l->deadline;
}

void lapic_set_tsc_deadline(struct cpu *c, u64 tsc)
{
	struct lapic *l = c->lapic;
	if (!l || !hw_enabled(l) || timer_mode(l) != TIMER_DEADLINE)
		return;
	l->deadline = tsc;
	cpu_trace(c, TRACE_TIMER, tsc, cpu_tsc(c), tsc ? TRACE_TIMER_ARMED : TRACE_TIMER_STOPPED);
	timer_changed(c);
}

static void write_lvt(struct cpu *c, unsigned i, u32 value)
{
	struct lapic *l = c->lapic;
	timer_run(c); /* what was due is due under the old settings */
	value &= lvt_writable[i];
	if (!sw_enabled(l))
		value |= LVT_MASKED;
	if (i == LVT_TIMER) {
		unsigned before = timer_mode(l), after = value >> 17 & 3;
		if (before != after && (before == TIMER_DEADLINE || after == TIMER_DEADLINE)) {
			l->deadline = 0;
			l->due = IDLE;
			l->initial = 0;
		}
		timer_changed(c);
	}
	STORE(l->lvt[i], value);
}

static void write_divide(struct cpu *c, u32 value)
{
	struct lapic *l = c->lapic;
	u32 left = timer_current(c); /* the count goes on at the new rate */
	l->divide = value & 0xb;
	if (l->due != IDLE)
		l->due = cpu_raw_tsc(c) + left * tick(c);
	timer_changed(c);
}

/* ---- registers ---- */

static u32 bitmap_word(const u64 *w, u32 i) { return (u32)(LOAD(w[i >> 1]) >> (i & 1) * 32); }

static bool read_reg(struct cpu *c, u32 reg, u64 *value)
{
	struct lapic *l = c->lapic;
	bool x2 = is_x2apic(l);
	switch (reg) {
	case REG_ID: *value = x2 ? l->id : l->id << 24; return true;
	case REG_VERSION: *value = VERSION; return true;
	case REG_TPR: *value = l->tpr; return true;
	case REG_PPR: *value = ppr(l); return true;
	case REG_LDR: *value = x2 ? x2apic_ldr(l->id) : l->ldr; return true;
	case REG_SVR: *value = l->svr; return true;
	case REG_ISR ... REG_ISR + 7: *value = bitmap_word(l->isr, reg - REG_ISR); return true;
	case REG_TMR ... REG_TMR + 7: *value = bitmap_word(l->tmr, reg - REG_TMR); return true;
	case REG_IRR ... REG_IRR + 7:
		timer_run(c);
		*value = bitmap_word(l->irr, reg - REG_IRR);
		return true;
	case REG_ESR: *value = l->esr; return true;
	case REG_ICR: *value = x2 ? l->icr : (u32)l->icr; return true;
	case REG_LVT ... REG_LVT + LVT_COUNT - 1: *value = l->lvt[reg - REG_LVT]; return true;
	case REG_INITIAL: *value = l->initial; return true;
	case REG_CURRENT: *value = timer_current(c); return true;
	case REG_DIVIDE: *value = l->divide; return true;
	}
	if (x2)
		return false;
	switch (reg) { /* xAPIC only */
	case REG_DFR: *value = l->dfr; return true;
	case REG_ICR2: *value = l->icr >> 32 << 24; return true;
	case REG_APR:
	case REG_EOI: *value = 0; return true;
	}
	return false;
}

static bool write_reg(struct cpu *c, u32 reg, u64 value)
{
	struct lapic *l = c->lapic;
	bool x2 = is_x2apic(l);
	u32 v = (u32)value;
	switch (reg) {
	case REG_TPR:
		if (x2 && v > 0xff)
			return false;
		lapic_set_tpr(c, (u8)v);
		return true;
	case REG_EOI:
		if (x2 && v)
			return false;
		eoi(c);
		return true;
	case REG_SVR:
		timer_run(c);
		STORE(l->svr, v & 0x3ff);
		if (!(v & SVR_ENABLE))
			for (unsigned i = 0; i < LVT_COUNT; i++)
				STORE(l->lvt[i], l->lvt[i] | LVT_MASKED);
		return true;
	case REG_ESR:
		if (x2 && v)
			return false;
		l->esr = __atomic_exchange_n(&l->esr_pending, 0, __ATOMIC_RELAXED);
		return true;
	case REG_LVT ... REG_LVT + LVT_COUNT - 1:
		write_lvt(c, reg - REG_LVT, v);
		return true;
	case REG_INITIAL:
		timer_run(c);
		if (timer_mode(l) != TIMER_DEADLINE) {
			l->initial = v;
			timer_start(c);
			timer_changed(c);
		}
		return true;
	case REG_DIVIDE:
		if (x2 && v & ~0xbu)
			return false;
		write_divide(c, v);
		return true;
	case REG_ICR:
		if (x2) {
			if (value & 0xfff32000) /* reserved: 31:20, 17:16, 13 */
				return false;
			l->icr = value & ~BIT(12);
			send_ipi(c, l->icr);
		} else {
			l->icr = (l->icr & 0xff00000000ull) | (v & 0xccfff);
			l->icr &= ~BIT(12); /* delivery status: always idle */
			u64 dest = l->icr >> 32;
			if (dest == 0xff) /* broadcast */
				dest = 0xffffffff;
			send_ipi(c, dest << 32 | (u32)l->icr);
		}
		return true;
	case REG_SELF_IPI:
		if (!x2 || v > 0xff)
			return false;
		send_ipi(c, 1ull << 18 | BIT(14) | v);
		return true;
	}
	if (x2)
		return false;
	switch (reg) { /* xAPIC only */
	case REG_ID: return true; /* the id is fixed, as on newer processors */
	case REG_LDR: STORE(l->ldr, v & 0xff000000); return true;
	case REG_DFR: STORE(l->dfr, v | 0x0fffffff); return true;
	case REG_ICR2: l->icr = (u32)l->icr | (u64)(v >> 24) << 32; return true;
	}
	return false;
}

u32 lapic_mmio_read(struct cpu *c, u32 offset)
{
	struct lapic *l = c->lapic;
	u64 value = 0;
	if (!l || !hw_enabled(l) || is_x2apic(l) || offset & 15 || offset > 0xff0)
		return 0;
	if (!read_reg(c, offset >> 4, &value))
		post_error(l, ESR_ILLEGAL_REG);
	return (u32)value;
}

void lapic_mmio_write(struct cpu *c, u32 offset, u32 value)
{
	struct lapic *l = c->lapic;
	if (!l || !hw_enabled(l) || is_x2apic(l) || offset & 15 || offset > 0xff0)
		return;
	if (!write_reg(c, offset >> 4, value))
		post_error(l, ESR_ILLEGAL_REG);
}

bool lapic_msr_read(struct cpu *c, u32 index, u64 *value)
{
	struct lapic *l = c->lapic;
	return l && is_x2apic(l) && index - 0x800 <= 0xff && read_reg(c, index - 0x800, value);
}

bool lapic_msr_write(struct cpu *c, u32 index, u64 value)
{
	struct lapic *l = c->lapic;
	if (!l || !is_x2apic(l) || index - 0x800 > 0xff)
		return false;
	if (index - 0x800 != REG_ICR && value >> 32)
		return false;
	return write_reg(c, index - 0x800, value);
}

/* ---- IA32_APIC_BASE: modes (SDM 11.12.5) ---- */

bool lapic_set_base(struct cpu *c, u64 value)
{
	const u64 mode_bits = APIC_BASE_EN | APIC_BASE_EXTD;
	u64 allowed = APIC_BASE_BSP | mode_bits | (MASK(c->maxphyaddr) & PAGE_MASK);
	u64 from = c->apic_base & mode_bits, to = value & mode_bits;
	if (value & ~allowed || to == APIC_BASE_EXTD)
		return false;
	if (to == mode_bits && from == 0) /* disabled -> x2APIC */
		return false;
	if (to == APIC_BASE_EN && from == mode_bits) /* x2APIC -> xAPIC */
		return false;
	bool page_changed = (value ^ c->apic_base) & (mode_bits | PAGE_MASK);
	c->apic_base = value;
	struct lapic *l = c->lapic;
	if (l && to != from) {
		if (!to) { /* disabled: state is lost */
			reset_registers(l);
			c->cr8 = 0;
		}
		if (to == mode_bits)
			l->icr = (u32)l->icr; /* the destination has another layout */
		STORE(l->mode, (u32)to);
		timer_changed(c);
	}
	if (page_changed)
		mmu_flush_all(c); /* the register page appears or goes: translations of it are stale */
	return true;
}
