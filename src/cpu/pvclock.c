/* kvmclock pages.  Pure arithmetic on the raw TSC; see pvclock.h. */
#include "cpu/pvclock.h"

#include "cpu/block.h"
#include "cpu/msr.h"

/* struct pvclock_vcpu_time_info and pvclock_wall_clock: the guest's ABI, little endian, packed. */
struct vcpu_time_info {
	u32 version; /* odd: being written */
	u32 pad0;
	u64 tsc_timestamp;
	u64 system_time;
	u32 mul;
	s8 shift;
	u8 flags;
	u8 pad[2];
};
_Static_assert(sizeof(struct vcpu_time_info) == 32, "pvclock ABI");
struct wall_clock {
	u32 version, sec, nsec;
};
_Static_assert(sizeof(struct wall_clock) == 12, "pvclock ABI");

#define PVCLOCK_TSC_STABLE 1
#define SYSTEM_TIME_ENABLE 1ull

struct pvclock_scale pvclock_scale(u64 tsc_khz)
{
	/* mul / 2^32 * 2^shift = 10^6 / tsc_khz with mul in [2^31, 2^32) */
	struct pvclock_scale s = { 0, 0 };
	u64 num = 1000000, den = tsc_khz;
	while (num >= den) {
		den <<= 1;
		s.shift++;
	}
	while (num * 2 < den) {
		num <<= 1;
		s.shift--;
	}
	s.mul = (u32)pvclock_muldiv(num, BIT(32), den); /* num < den: below 2^32 */
	return s;
}

u64 pvclock_cycles_to_ns(struct pvclock_scale s, u64 cycles)
{
	u64 d = s.shift >= 0 ? cycles << s.shift : cycles >> -s.shift;
	return (u64)((u128)d * s.mul >> 32);
}

u64 pvclock_ns(const struct cpu *c)
{
	return pvclock_cycles_to_ns(pvclock_scale(c->tsc_khz), cpu_raw_tsc(c) - c->boot_tsc);
}

/* The structure in guest RAM, about to be written, or NULL when it is not wholly plain writable RAM.  Decoded code in
 * the way is forgotten. */
static void *guest_struct(struct cpu *c, u64 gpa, u64 size)
{
	if (gpa & 3) /* unaligned: stores below could not be atomic */
		return NULL;
	const struct ram_slot *s = ram_find(c->ram, GPA(gpa));
	if (!s || s->readonly)
		return NULL;
	void *p = ram_ptr(c->ram, GPA(gpa), size);
	if (p)
		block_invalidate(c, GPA(gpa), size);
	return p;
}

void pvclock_update(struct cpu *c)
{
	if (!(c->kvm_system_time & SYSTEM_TIME_ENABLE))
		return;
	volatile struct vcpu_time_info *p = guest_struct(c, c->kvm_system_time & ~SYSTEM_TIME_ENABLE, sizeof(*p));
	if (!p)
		return;
	struct pvclock_scale s = pvclock_scale(c->tsc_khz);
	u32 version = p->version & ~1u;
	p->version = version + 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	p->tsc_timestamp = c->boot_tsc + c->tsc_offset;
	p->system_time = 0;
	p->mul = s.mul;
	p->shift = s.shift;
	p->flags = PVCLOCK_TSC_STABLE;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	p->version = version + 2;
}

void pvclock_set_system_time(struct cpu *c, u64 value)
{
	c->kvm_system_time = value;
	pvclock_update(c);
}

void pvclock_set_wall_clock(struct cpu *c, u64 value)
{
	c->kvm_wall_clock = value;
	volatile struct wall_clock *p = value ? guest_struct(c, value, sizeof(*p)) : NULL;
	if (!p)
		return;
	u32 version = p->version & ~1u;
	p->version = version + 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	p->sec = (u32)(c->boot_wall_ns / 1000000000);
	p->nsec = (u32)(c->boot_wall_ns % 1000000000);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	p->version = version + 2;
}
