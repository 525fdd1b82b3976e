/* An execution engine that executes nothing: it keeps registers and memory
 * slots, and its vCPUs give the exits a test scripts. */
#ifndef TESTS_MACHINE_FAKE_HV_H
#define TESTS_MACHINE_FAKE_HV_H

#include "vcpu/vcpu.h"

struct fake_exit {
	u32 reason;
	bool write;
	u8 size, count;
	u64 addr, data; /* what is written; what a read must give */
	u64 mask;       /* of a read's comparison; 0: not compared */
	u32 sleep_us;   /* before this exit */
};

struct fake {
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct kvm_userspace_memory_region region[4];
	unsigned nregions;
	const struct fake_exit *script; /* ends with reason 0: then the vCPU sleeps until kicked */
	unsigned step, msis, mismatches;
	struct kvm_msi msi;
};
extern struct fake fake;
extern const struct hv_ops fake_hv;

#endif
