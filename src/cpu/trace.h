/* Trace events of the CPU.  Off: one test of c->trace_mask, which the back end sets with c->trace. */
#ifndef CPU_TRACE_H
#define CPU_TRACE_H

#include "core/trace.h"
#include "cpu/cpu.h"

/* What TRACE_TLB_FLUSH says was flushed. */
enum trace_flush { TRACE_FLUSH_ALL, TRACE_FLUSH_SPACE, TRACE_FLUSH_PAGE };
/* What TRACE_TIMER says of the local APIC's timer. */
enum trace_timer { TRACE_TIMER_ARMED, TRACE_TIMER_STOPPED, TRACE_TIMER_FIRED };

static inline void cpu_trace(struct cpu *c, enum trace_event event, u64 a, u64 b, u64 d)
{
	if (unlikely(c->trace_mask & BIT(event)))
		trace_emit(c->trace, event, c->id, a, b, d);
}

#endif
