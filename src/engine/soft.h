/* Inside of the software back end: one virtual machine and its vCPUs. */
#ifndef ENGINE_SOFT_H
#define ENGINE_SOFT_H

#include <pthread.h>

#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/exclusive.h"
#include "engine/eventfd.h"
#include "engine/exclusive.h"
#include "engine/native_memory.h"
#include "engine/tr/translate.h"
#include "vcpu/vcpu.h"

#define SOFT_MAX_VCPUS CPU_GROUP_MAX

struct hv {
	struct hv_config cfg;
	struct cpuid_table cpuid;
	struct ram ram;
	struct vcpu *vcpu[SOFT_MAX_VCPUS];
	unsigned n_vcpus;
	struct cpu_group group;
	struct exclusive exclusive;
	bool translate;      /* hot blocks are translated (engine/tr) */
	u64 boot_tsc, boot_wall_ns;
	struct eventfds eventfds;
};

struct vcpu {
	struct hv *hv;
	unsigned id;
	struct cpu *cpu;
	void *cpu_memory;
	size_t cpu_memory_size;
	struct native_memory native;
	struct kvm_run *run; /* two pages: the structure, then the bytes of port I/O */
	enum { COMPLETE_NOTHING, COMPLETE_IN, COMPLETE_MMIO } complete;
	bool sleeping;       /* in soft_halt: posters must wake the futex */
	bool inside;         /* may run guest code, see exclusive.h */
	u64 seen;            /* hv->exclusive.sections that our translations are up to date with */
	unsigned msrs_logged; /* how many of cpu->unknown_msr the log has named */
	void *signal_stack;
	bool thread_ready;
	struct translator translator;
	char error[512];
};

/* soft.c: sets bits of c->attn and makes the vCPU look.  Any thread. */
void soft_attend(struct vcpu *v, u32 why);

/* halt.c: sleeps until an interrupt is deliverable, the vCPU is kicked, or a poster wants it.  Never returns early
 * without one of these.  Deterministic mode skips virtual time to the timer instead. */
void soft_halt(struct vcpu *v);
/* Wakes v out of soft_halt after c->attn was set.  Any thread, async-signal-safe. */
void soft_wake(struct vcpu *v);

/* fault.c: signal handlers that hand host faults of guest instructions to cpu/native.  Once per process. */
int soft_faults_install(void);
/* Per thread, before guest code runs on it. */
int soft_faults_thread(struct vcpu *v);

/* checkpoint.c: the next count at which cpu_run must return (deterministic mode). */
u64 soft_next_stop(const struct vcpu *v);
/* Records a struct hv_checkpoint when one is due or the run ends. */
void soft_checkpoint(struct vcpu *v, bool last);

/* regs.c */
int soft_get_regs(struct vcpu *v, struct kvm_regs *r);
int soft_set_regs(struct vcpu *v, const struct kvm_regs *r);
int soft_get_sregs(struct vcpu *v, struct kvm_sregs *s);
int soft_set_sregs(struct vcpu *v, const struct kvm_sregs *s);

#endif
