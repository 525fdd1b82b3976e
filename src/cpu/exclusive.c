#include "cpu/exclusive.h"

#include "cpu/exec.h"
#include "cpu/fpu.h"

#define PAUSES_PER_YIELD 64 /* some microseconds of waiting */

void exclusive_begin(struct cpu *c)
{
	if (likely(cpu_alone(c)) || c->exclusive_depth++)
		return;
	c->exclusive_fpu = c->fpu_live;
	fpu_save(c);
	c->stats.exclusive++;
	c->group->begin(c);
}

void exclusive_end(struct cpu *c)
{
	if (likely(cpu_alone(c)) || --c->exclusive_depth)
		return;
	c->group->end(c);
	if (c->exclusive_fpu)
		fpu_load(c);
}

H(op_pause)
{
	__asm__ volatile("pause");
	if (unlikely(++c->pauses % PAUSES_PER_YIELD == 0)) {
		const bool live = c->fpu_live;
		fpu_save(c);
		c->group->yield(c);
		if (live)
			fpu_load(c);
	}
	NEXT(c, i);
}
