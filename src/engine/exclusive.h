/* Who may run guest code, and how one vCPU (or a device's thread) gets the others out of it.
 *
 * A vCPU is inside between soft_enter() and soft_leave(): it executes guest code, or C code on its behalf that looks at
 * its own blocks and TLB.  One that sleeps in HLT, waits for its start-up IPI or is in the machine model is outside.  An
 * exclusive section begins when nobody else is inside; who wants in meanwhile waits.  vCPUs inside are asked by
 * CPU_ATTN_STOP and leave at their next block.  A vCPU that waits for its own section counts as outside, so two that want one
 * at the same moment take turns. */
#ifndef ENGINE_EXCLUSIVE_H
#define ENGINE_EXCLUSIVE_H

#include <pthread.h>

#include "core/base.h"

struct hv;
struct vcpu;

struct exclusive {
	pthread_mutex_t lock; /* of the rest and of vcpu.inside */
	pthread_cond_t changed;
	bool held;
	unsigned inside;   /* vCPUs */
	unsigned entering; /* vCPUs that wait to get in: they go before the next section */
	u64 sections;      /* that have ended */
};

void soft_exclusive_init(struct exclusive *x);
void soft_exclusive_destroy(struct exclusive *x);

/* On the vCPU's thread. */
void soft_enter(struct vcpu *v);
void soft_leave(struct vcpu *v);
/* Lets somebody else's section happen. */
void soft_pause(struct vcpu *v);

/* self: the calling thread's vCPU when it is inside, else NULL. */
void soft_exclusive_begin(struct hv *hv, struct vcpu *self);
void soft_exclusive_end(struct hv *hv, struct vcpu *self);

#endif
