/* Binary event trace: one ring of fixed-size records per thread that emits,
 * all in one shared mapping of a memfd made by the supervisor.  Emitting takes
 * no lock and no system call; when a process dies, whatever was emitted is
 * there.  `umbra trace FILE` decodes. */
#ifndef CORE_TRACE_H
#define CORE_TRACE_H

#include "core/base.h"
#include "core/error.h"
#include "core/trace_events.h"

enum trace_event {
#define X(id, group, name, format) TRACE_##id,
	TRACE_EVENTS(X)
#undef X
	TRACE_EVENT_COUNT,
};
_Static_assert(TRACE_EVENT_COUNT <= 64, "the mask of events is one u64");

#define TRACE_MAGIC 0x314543415254424dull /* "MBTRACE1" */
#define TRACE_MAX_RINGS 16
#define TRACE_RING_RECORDS 32768 /* a power of two */

struct trace_record {
	u64 tsc;
	u16 event;
	u16 vcpu;
	u32 seq; /* low half of the record's number in its ring */
	u64 a, b, c;
};

struct trace_ring {
	u64 head; /* records ever written; only its own thread writes it */
	u64 pad[7];
	struct trace_record rec[TRACE_RING_RECORDS];
};

/* The file. */
struct trace {
	u64 magic;
	u32 record_size, ring_records;
	u32 n_rings;
	u32 pad;
	u64 tsc_khz;
	u64 mask; /* events wanted, BIT(enum trace_event) */
	u64 reserved[58];
	struct trace_ring ring[];
};

#define TRACE_SIZE(n_rings) (sizeof(struct trace) + (u64)(n_rings) * sizeof(struct trace_ring))

/* Makes the header in memory of TRACE_SIZE(n_rings) bytes. */
void trace_init(struct trace *t, unsigned n_rings, u64 mask, u64 tsc_khz);

/* Maps a trace memfd made by the supervisor; NULL when it is not one. */
struct trace *trace_map(int fd, u64 size);

/* "exit,irq,page-fault" or "all" → mask; names of groups and of events.  "all" leaves out what would fill the rings at
 * once: every block executed. */
int trace_parse_list(const char *list, u64 *mask, struct err *e);

/* One ring per vCPU; ring vcpu % n_rings.  t may be NULL. */
static inline void trace_emit(struct trace *t, enum trace_event event, unsigned vcpu, u64 a, u64 b, u64 c)
{
	if (likely(!t) || !(t->mask & BIT(event)))
		return;
	struct trace_ring *r = &t->ring[vcpu & (TRACE_MAX_RINGS - 1)];
	u64 n = __atomic_load_n(&r->head, __ATOMIC_RELAXED);
	struct trace_record *rec = &r->rec[n & (TRACE_RING_RECORDS - 1)];
	rec->tsc = __builtin_ia32_rdtsc();
	rec->event = (u16)event;
	rec->vcpu = (u16)vcpu;
	rec->seq = (u32)n;
	rec->a = a;
	rec->b = b;
	rec->c = c;
	__atomic_store_n(&r->head, n + 1, __ATOMIC_RELEASE);
}

/* Decodes a file (untrusted) as text, oldest event first.  0 or -errno. */
int trace_decode(int fd, int out_fd, struct err *e);

#endif
