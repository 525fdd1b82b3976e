/* Model-specific registers, CPUID and the local APIC as the interpreter sees them. */
#ifndef CPU_MSR_H
#define CPU_MSR_H

#include "cpu/cpu.h"

/* RDMSR/WRMSR.  False: #GP(0) is due (unknown MSR, reserved bits, non-canonical address); unknown ones are counted.
 * On true, c->exit may be set (CPU_EXIT_IPI, _EOI): the instruction completes, then cpu_run returns.  A write may
 * have changed EFER or the APIC page: the instruction leaves its block with STEP_MODE (TLB and mode are already
 * re-derived). */
bool msr_read(struct cpu *c, u32 index, u64 *value);
bool msr_write(struct cpu *c, u32 index, u64 value);
/* Power-on values of every MSR in the table (cpu_reset calls it; INIT leaves MSRs alone). */
void msr_reset(struct cpu *c, bool is_bsp);
/* Name from the table ("IA32_EFER"), or NULL. */
const char *msr_name(u32 index);
/* The i-th row of the table, for documentation; vendor 0: any, 1: Intel, 2: AMD.  False: no such row. */
bool msr_row(unsigned i, u32 *first, u32 *last, const char **name, unsigned *vendor);

/* CPUID of this CPU (leaf in eax, subleaf in ecx), dynamic bits (OSXSAVE, APIC id, XSAVE size) included. */
void cpuid_get(const struct cpu *c, u32 leaf, u32 subleaf, u32 out[4]);

/* The clock below the guest TSC: host RDTSC, or in deterministic mode retired instructions + skipped cycles.
 * No write of the guest moves it; kvmclock and the APIC's counting timers run on it. */
u64 cpu_raw_tsc(const struct cpu *c);
/* Guest TSC now = raw + c->tsc_offset. */
u64 cpu_tsc(const struct cpu *c);

/* ---- local APIC state machine (lapic.c) ---- */
struct lapic;
#define APIC_BASE_BSP BIT(8)
#define APIC_BASE_EXTD BIT(10) /* x2APIC mode */
#define APIC_BASE_EN BIT(11)
/* Is gpa in the xAPIC register page?  (Never in x2APIC mode or while disabled.) */
static inline bool lapic_in_page(const struct cpu *c, u64 gpa)
{
	return (c->apic_base & (APIC_BASE_EN | APIC_BASE_EXTD)) == APIC_BASE_EN &&
	       ((c->apic_base ^ gpa) & PAGE_MASK) == 0;
}
/* xAPIC page at c->apic_base: 32-bit accesses at 16-byte aligned offsets (others: 0, no effect).  A write may set
 * c->exit (CPU_EXIT_IPI, _EOI) as msr_write does. */
u32 lapic_mmio_read(struct cpu *c, u32 offset);
void lapic_mmio_write(struct cpu *c, u32 offset, u32 value);
/* x2APIC MSRs 0x800..0x8ff.  False: #GP. */
bool lapic_msr_read(struct cpu *c, u32 index, u64 *value);
bool lapic_msr_write(struct cpu *c, u32 index, u64 value);
/* CR8 <-> TPR */
void lapic_set_tpr(struct cpu *c, u8 tpr);
u8 lapic_get_tpr(const struct cpu *c);

/* IA32_APIC_BASE: enabling, x2APIC, base.  False: #GP (illegal transition, reserved bits). */
bool lapic_set_base(struct cpu *c, u64 value);
/* IA32_TSC_DEADLINE: 0 and no effect unless the timer is in that mode. */
u64 lapic_get_tsc_deadline(struct cpu *c);
void lapic_set_tsc_deadline(struct cpu *c, u64 tsc);

/* Power-on state (xAPIC mode); is_bsp is what APIC_BASE says too. */
void lapic_reset(struct lapic *l, unsigned id, bool is_bsp);
/* INIT: everything but the APIC id and the mode (SDM 11.4.7.3, 11.12.5.1). */
void lapic_init_signal(struct cpu *c);
size_t lapic_size(void);

/* Highest deliverable vector (above PPR), or -1.  Cheap: called at every interrupt check.  Also fires due timers. */
int lapic_pending(struct cpu *c);
/* Acknowledge: IRR -> ISR.  The vector must be what lapic_pending returned. */
void lapic_ack(struct cpu *c, u8 vector);
/* Sets IRR bit (TMR when level).  Any thread (atomic); the caller sets c->attn and wakes the CPU. */
void lapic_post(struct lapic *l, u8 vector, bool level);
/* Guest TSC value at which the timer fires next, ~0 when idle.  The interpreter polls it (poll_at). */
u64 lapic_deadline(const struct cpu *c);
/* CPU_EXIT_IPI: c->ipi_icr in the x2APIC layout (vector 7:0, delivery mode 10:8, logical 11, level 14, trigger 15 always
 * edge, destination 63:32).  The sender itself was already served where it is a destination.  Shorthand bits 19:18 are
 * 3 (every OTHER vCPU) or 0 (every OTHER vCPU for which lapic_matches says yes; lowest priority: any one of them). */
/* Does this APIC accept a message with this destination?  Any thread. */
bool lapic_matches(const struct lapic *l, u32 dest, bool logical);
/* Delivers a fixed/lowest/NMI/INIT/SIPI message to c, any thread; true when c must be woken (the caller sets c->attn).
 * mode: the 3-bit delivery mode of ICR and MSI.  SMI, ExtINT and the reserved mode are dropped and counted. */
bool lapic_deliver(struct cpu *c, u8 mode, u8 vector, bool level);

#endif
