/* The one interface between the machine model and whatever executes guest
 * instructions.  It is the kernel's KVM API (Documentation/virt/kvm/api.rst)
 * as C functions: same structures, same exits, same meaning of memory slots,
 * MSIs, irqfds and ioeventfds; "split irqchip" (local APICs below this line,
 * IOAPIC above it).  A back end on /dev/kvm is therefore a thin wrapper and
 * the software engine can be offered to other VMMs.
 *
 * Every function returns 0 or -errno unless it says otherwise. */
#ifndef VCPU_VCPU_H
#define VCPU_VCPU_H

#include <linux/kvm.h>

#include "core/base.h"
#include "core/ram.h"

struct hv;   /* one virtual machine, owned by its back end */
struct vcpu; /* one virtual CPU, owned by its back end */

/* Exits beyond KVM's own that only the software engine gives. */
#define UMBRA_EXIT_UNIMPLEMENTED 1000 /* hv_last_error() names instruction, MSR or mode */

/* Deterministic mode: guest time is the count of retired instructions, timer
 * interrupts come at counted points, RDRAND/RDSEED are a fixed sequence. */
struct hv_checkpoints;

struct hv_config {
	unsigned max_vcpus;
	u64 tsc_khz;          /* measured frequency of the host's TSC; 0: measure */
	bool deterministic;
	u64 det_seed;         /* seed of entropy in deterministic mode */
	u64 stop_at_insns;    /* deterministic mode: leave with KVM_EXIT_DEBUG after so many; 0: never */
	u64 checkpoint_every; /* deterministic mode: record a checkpoint each time so many more have retired; 0: never */
	u64 checkpoint_from;  /* but none before so many have: keeps a long run with a small interval within the buffer */
	struct hv_checkpoints *checkpoints; /* where to, shared memory */
	unsigned block_limit; /* most instructions in a decoded block, 0: the engine's own choice (lockstep tests vary it) */
	unsigned translate_after; /* executions before a block is translated, 0: the engine's own choice (tests: 1) */
	struct trace *trace;  /* may be NULL */
};

#define HV_CHECKPOINTS_MAGIC 0x31544e494f504b43ull /* "CKPOINT1" */

/* The state after `insns` retired instructions.  Two deterministic runs of the same VM, on whatever engine and with
 * whatever block sizes, write identical files; `umbra compare` finds the first difference, and a run with a smaller
 * interval (stop_at_insns behind the difference) narrows it down to one instruction. */
struct hv_checkpoint {
	u64 insns;
	u64 rip, rflags, r[16];
	u64 cr0, cr2, cr3, cr4, efer, fs_base, gs_base, kernel_gs_base;
	u64 seg_hash;  /* selectors and hidden parts, descriptor tables, TR, LDTR */
	u64 fpu_hash;  /* x87, MXCSR, vector and mask registers */
	u64 apic_hash; /* interrupt state */
	u64 ram_hash;  /* all of RAM, in the last record only; else 0 */
};

/* A file of checkpoints. */
struct hv_checkpoints {
	u64 magic, record_size;
	u64 cap; /* records there is room for */
	u64 n;   /* records; recording stops silently when full: the last one tells how far it went */
	struct hv_checkpoint rec[];
};

/* Counters of the engine; the names in hv_stat_names[] are the product's. */
enum hv_stat {
	HV_STAT_INSNS, HV_STAT_BLOCKS, HV_STAT_BLOCKS_DECODED, HV_STAT_INSNS_DECODED, HV_STAT_DECODE_FLUSHES,
	HV_STAT_TLB_MISSES, HV_STAT_TLB_FLUSHES, HV_STAT_PAGE_FAULTS, HV_STAT_EXCEPTIONS, HV_STAT_INTERRUPTS,
	HV_STAT_SYSCALLS, HV_STAT_EXITS_IO, HV_STAT_EXITS_MMIO, HV_STAT_HALTS, HV_STAT_SMC, HV_STAT_NATIVE_STUBS,
	HV_STAT_CR3_LOADS, HV_STAT_MSR_ACCESSES, HV_STAT_UNKNOWN_MSR, HV_STAT_SIGNALS, HV_STAT_EXCLUSIVE,
	HV_STAT_COUNT,
};
extern const char *const hv_stat_names[HV_STAT_COUNT];

#define HV_UNKNOWN_MSRS 16
struct hv_unknown_msr {
	u32 index;
	bool write;       /* first access */
	u64 value, rip;   /* of the first access */
	u64 count;
	const char *name; /* may be NULL */
};

/* A back end. */
struct hv_ops {
	const char *name; /* as in --engine */

	int (*create)(const struct hv_config *cfg, struct hv **out);
	void (*destroy)(struct hv *hv);

	/* KVM_SET_USER_MEMORY_REGION: userspace_addr is memory of this process. */
	int (*set_memory_region)(struct hv *hv, const struct kvm_userspace_memory_region *r);

	/* KVM_SIGNAL_MSI.  Any thread. */
	int (*signal_msi)(struct hv *hv, const struct kvm_msi *msi);

	/* KVM_SET_GSI_ROUTING, entries of type KVM_IRQ_ROUTING_MSI: what an irqfd of that GSI sends. */
	int (*set_gsi_routing)(struct hv *hv, const struct kvm_irq_routing *r);

	/* KVM_IRQFD (flags: KVM_IRQFD_FLAG_DEASSIGN only): a write to the eventfd sends the GSI's MSI.  The first call makes
	 * a thread: before a sandbox forbids that. */
	int (*irqfd)(struct hv *hv, const struct kvm_irqfd *f);

	/* KVM_IOEVENTFD (PIO and MMIO, datamatch, length 0 to 8): a matching guest write signals the eventfd and the vCPU
	 * goes on without an exit.  Any thread; the eventfd is non-blocking. */
	int (*ioeventfd)(struct hv *hv, const struct kvm_ioeventfd *f);

	/* DMA: [gpa, gpa+len) was written by somebody else than a vCPU; decoded
	 * code in it is forgotten before this returns.  Any thread. */
	void (*invalidate)(struct hv *hv, gpa_t gpa, u64 len);

	/* kvmclock at "now", for tests and for the RTC: nanoseconds since the VM's start. */
	u64 (*clock_ns)(struct hv *hv);

	int (*vcpu_create)(struct hv *hv, unsigned id, struct vcpu **out);
	void (*vcpu_destroy)(struct vcpu *v);

	/* The shared page of KVM_RUN; valid from create to destroy. */
	struct kvm_run *(*vcpu_shared)(struct vcpu *v);

	/* KVM_RUN: runs until an exit the caller must handle; the reason is in
	 * vcpu_shared()->exit_reason.  -EINTR after vcpu_kick().  HLT is handled
	 * inside (the thread sleeps), as are the local APIC, MSRs and CPUID.
	 * Exits: KVM_EXIT_HLT (the only CPU, interrupts disabled: nothing can wake it), KVM_EXIT_IO, _MMIO, _IOAPIC_EOI, _SHUTDOWN (triple fault),
	 * _DEBUG, _INTERNAL_ERROR, UMBRA_EXIT_UNIMPLEMENTED.  I/O and MMIO reads
	 * complete at the next vcpu_run, as in KVM. */
	int (*vcpu_run)(struct vcpu *v);

	/* Makes a running or the next vcpu_run return -EINTR.  Any thread, async-signal-safe. */
	void (*vcpu_kick)(struct vcpu *v);

	int (*get_regs)(struct vcpu *v, struct kvm_regs *r);
	int (*set_regs)(struct vcpu *v, const struct kvm_regs *r);
	int (*get_sregs)(struct vcpu *v, struct kvm_sregs *s);
	int (*set_sregs)(struct vcpu *v, const struct kvm_sregs *s);

	/* Reads n bytes at guest-virtual address with the vCPU's page tables, supervisor rights,
	 * no side effects (reports, back traces).  Returns bytes read. */
	u64 (*read_virt)(struct vcpu *v, gva_t gva, void *buf, u64 n);

	/* What went wrong, one line, for UMBRA_EXIT_UNIMPLEMENTED / _INTERNAL_ERROR / _SHUTDOWN;
	 * names RIP, bytes and mode. */
	const char *(*last_error)(struct vcpu *v);

	/* Last executed guest RIPs, newest first; returns how many were stored. */
	unsigned (*last_rips)(struct vcpu *v, u64 *rip, unsigned max);

	/* MSRs the guest touched that do not exist, in the order of their first use; how many were stored.  May be NULL. */
	unsigned (*unknown_msrs)(struct vcpu *v, struct hv_unknown_msr *out, unsigned max);
	void (*stats)(struct vcpu *v, u64 out[HV_STAT_COUNT]);
};

extern const struct hv_ops hv_interpreter; /* src/cpu alone */
/* Does this host offer what the translator needs (BMI2, FSGSBASE)? */
bool hv_translator_usable(void);
extern const struct hv_ops hv_translator;  /* the same with hot code translated (src/engine/tr) */

#endif
