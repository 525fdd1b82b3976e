/* kvmclock (Documentation/virt/kvm/x86/msr.rst): the guest reads time from a page that says how its TSC maps to
 * nanoseconds since the start of the VM.
 *
 * All vCPUs use one constant mapping (raw TSC boot_tsc = 0 ns; one multiplier), hence PVCLOCK_TSC_STABLE: readers on
 * different vCPUs never see time go back, and the page changes only when the guest moves its TSC. */
#ifndef CPU_PVCLOCK_H
#define CPU_PVCLOCK_H

#include "cpu/cpu.h"

/* a * b / d with a 128-bit product, saturating.  By hand because the compiler's 128-bit division is a library call,
 * and libraries may use vector registers. */
static inline u64 pvclock_muldiv(u64 a, u64 b, u64 d)
{
	u128 p = (u128)a * b;
	if ((u64)(p >> 64) >= d)
		return UINT64_MAX;
	u64 q, rest;
	__asm__("divq %4" : "=a"(q), "=d"(rest) : "a"((u64)p), "d"((u64)(p >> 64)), "r"(d) : "cc");
	return q;
}

/* nanoseconds = ((cycles << shift) * mul) >> 32; a negative shift shifts right. */
struct pvclock_scale {
	u32 mul;
	s8 shift;
};
struct pvclock_scale pvclock_scale(u64 tsc_khz);
u64 pvclock_cycles_to_ns(struct pvclock_scale s, u64 cycles);

/* kvmclock now: nanoseconds since c->boot_tsc. */
u64 pvclock_ns(const struct cpu *c);

/* Writes of MSR_KVM_SYSTEM_TIME(_NEW): address | 1 to enable.  Address that is not RAM: remembered, nothing written. */
void pvclock_set_system_time(struct cpu *c, u64 value);
/* MSR_KVM_WALL_CLOCK(_NEW): fills the structure at that address once. */
void pvclock_set_wall_clock(struct cpu *c, u64 value);
/* Writes the page again (TSC offset changed). */
void pvclock_update(struct cpu *c);

#endif
