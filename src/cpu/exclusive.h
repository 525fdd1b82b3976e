/* Moments at which no other CPU of the machine runs guest code.
 *
 * Needed where one CPU must change what others keep to themselves (write tags of a page that becomes code, blocks of code
 * that is overwritten), and for what must be atomic but takes several accesses (a locked operand across two pages).
 * The back end stops and resumes the others (engine/exclusive.c); a machine with one CPU pays a test.
 *
 * While exclusive_begin() waits, another CPU may have had its moment: it may have killed blocks of this CPU, the running one
 * included.  That one stays allocated and may run to its end, as instructions a processor has fetched already; whatever
 * was looked up before that depends on ram_slot.code must be looked up again. *
 * Processors that wait for each other say so by PAUSE.  When there are fewer of them on the host the one waited for may not be
 * running at all, so every so many PAUSEs the host's processor is given up (op_pause). */
#ifndef CPU_EXCLUSIVE_H
#define CPU_EXCLUSIVE_H

#include "cpu/cpu.h"

#define CPU_GROUP_MAX 8

struct cpu_group {
	unsigned n;
	struct cpu *cpu[CPU_GROUP_MAX];
	void (*begin)(struct cpu *self); /* not called with one CPU; FPU state saved */
	void (*end)(struct cpu *self);
	void (*yield)(struct cpu *self); /* waits in vain: others may use the host's processor.  FPU state saved */
};

static inline bool cpu_alone(const struct cpu *c) { return !c->group || c->group->n == 1; }

/* May be nested.  Guest vector state that was live is so again after the outermost end. */
void exclusive_begin(struct cpu *c);
void exclusive_end(struct cpu *c);

#endif
