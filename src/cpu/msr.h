/* Model-specific registers, CPUID and the local APIC as the interpreter sees them. */
#ifndef CPU_MSR_H
#define CPU_MSR_H

#include "cpu/cpu.h"

/* RDMSR/WRMSR.  False: #GP(0) is due (unknown MSR, reserved bits, non-canonical address); unknown ones are counted.
 * On true, c->exit may be set (CPU_EXIT_IPI, _EOI, _MSR_HOOK): the instruction completes, then cpu_run returns. */
bool msr_read(struct cpu *c, u32 index, u64 *value);
bool msr_write(struct cpu *c, u32 index, u64 value);

/* CPUID of this CPU (leaf in eax, subleaf in ecx), dynamic bits (OSXSAVE, APIC id, XSAVE size) included. */
void cpuid_get(const struct cpu *c, u32 leaf, u32 subleaf, u32 out[4]);

/* Guest TSC now (host RDTSC natively, or virtual). */
u64 cpu_tsc(const struct cpu *c);

/* ---- local APIC state machine (lapic.c) ---- */
struct lapic;
/* xAPIC page at c->apic_base: 32-bit accesses.  False: no effect. */
u32 lapic_mmio_read(struct cpu *c, u32 offset);
void lapic_mmio_write(struct cpu *c, u32 offset, u32 value);
/* x2APIC MSRs 0x800..0x8ff.  False: #GP. */
bool lapic_msr_read(struct cpu *c, u32 index, u64 *value);
bool lapic_msr_write(struct cpu *c, u32 index, u64 value);
/* CR8 <-> TPR */
void lapic_set_tpr(struct cpu *c, u8 tpr);
u8 lapic_get_tpr(const struct cpu *c);

void lapic_reset(struct lapic *l, unsigned id, bool is_bsp);
size_t lapic_size(void);

/* Highest deliverable vector (above PPR), or -1.  Cheap: called at every interrupt check.  Also fires due timers. */
int lapic_pending(struct cpu *c);
/* Acknowledge: IRR -> ISR.  The vector must be what lapic_pending returned. */
void lapic_ack(struct cpu *c, u8 vector);
/* Sets IRR bit (TMR when level).  Any thread (atomic); the caller sets c->attn and wakes the CPU. */
void lapic_post(struct lapic *l, u8 vector, bool level);
/* Guest TSC value at which the timer fires next, ~0 when idle.  The interpreter polls it (poll_at). */
u64 lapic_deadline(const struct cpu *c);
/* Does this APIC accept a message with this destination?  Any thread. */
bool lapic_matches(const struct lapic *l, u32 dest, bool logical);
/* Delivers a fixed/NMI/INIT/SIPI message to c, any thread; true when c must be woken. */
bool lapic_deliver(struct cpu *c, u8 mode, u8 vector, bool level);

#endif
