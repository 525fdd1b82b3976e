#include "core/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct trace_event_info {
	const char *group, *name, *format;
};

static const struct trace_event_info trace_events[TRACE_EVENT_COUNT] = {
#define X(id, grp, nm, fmt) { .group = #grp, .name = nm, .format = fmt },
	TRACE_EVENTS(X)
#undef X
};

/* The formats of the table are string literals with up to three u64 conversions: let the compiler check them. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-extra-args"
__attribute__((unused)) static void trace_check_formats(u64 a)
{
#define X(id, grp, nm, fmt) (void)snprintf(NULL, 0, fmt, a, a, a);
	TRACE_EVENTS(X)
#undef X
}
#pragma GCC diagnostic pop

void trace_init(struct trace *t, unsigned n_rings, u64 mask, u64 tsc_khz)
{
	ASSERT(n_rings == TRACE_MAX_RINGS); /* trace_emit() relies on it; untouched rings cost no memory */
	t->record_size = sizeof(struct trace_record);
	t->ring_records = TRACE_RING_RECORDS;
	t->n_rings = n_rings;
	t->tsc_khz = tsc_khz;
	t->mask = mask;
	t->magic = TRACE_MAGIC;
}

static bool trace_valid(const struct trace *t, u64 size)
{
	return size >= sizeof *t && t->magic == TRACE_MAGIC && t->record_size == sizeof(struct trace_record) &&
	       t->ring_records == TRACE_RING_RECORDS && t->n_rings == TRACE_MAX_RINGS && size >= TRACE_SIZE(t->n_rings);
}

static struct trace *trace_map_prot(int fd, u64 size, int prot)
{
	struct stat st;
	if (fstat(fd, &st) || st.st_size < 0 || (u64)st.st_size < size || size < sizeof(struct trace))
		return NULL;
	struct trace *t = mmap(NULL, size, prot, MAP_SHARED, fd, 0);
	if (t == MAP_FAILED)
		return NULL;
	if (!trace_valid(t, size)) {
		munmap(t, size);
		return NULL;
	}
	return t;
}

struct trace *trace_map(int fd, u64 size) { return trace_map_prot(fd, size, PROT_READ | PROT_WRITE); }

int trace_parse_list(const char *list, u64 *mask, struct err *e)
{
	*mask = 0;
	for (const char *p = list;;) {
		size_t n = strcspn(p, ",");
		u64 found = 0;
		for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++) {
			const struct trace_event_info *ev = &trace_events[i];
			if ((strlen(ev->group) == n && !memcmp(ev->group, p, n)) ||
			    (strlen(ev->name) == n && !memcmp(ev->name, p, n)) || (n == 3 && !memcmp("all", p, 3) && i != TRACE_BLOCK))
				found |= BIT(i);
		}
		if (!found) {
			char names[400] = "";
			size_t used = 0;
			for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++)
				if (!strstr(names, trace_events[i].group) && used < sizeof names)
					used += (size_t)snprintf(names + used, sizeof names - used, " %s",
								 trace_events[i].group);
			return err_set(e, EINVAL, "bad trace list: no event or group '%.*s' (groups: all%s)", (int)n, p,
				       names);
		}
		*mask |= found;
		if (!p[n])
			return 0;
		p += n + 1;
	}
}

/* Reader's view of one ring. */
struct trace_cursor {
	const struct trace_ring *ring;
	u64 next, end;
};

static int trace_print(FILE *f, const struct trace *t, const struct trace_record *rec, u64 tsc0)
{
	u64 khz = t->tsc_khz ? t->tsc_khz : 1000000;
	double us = (double)(s64)(rec->tsc - tsc0) * 1000.0 / (double)khz;
	if (fprintf(f, "%14.3f %2u ", us, rec->vcpu) < 0)
		return -errno;
	if (rec->event >= TRACE_EVENT_COUNT)
		return fprintf(f, "event-%u %" PRIx64 " %" PRIx64 " %" PRIx64 "\n", rec->event, rec->a, rec->b, rec->c) < 0
			       ? -errno
			       : 0;
	const struct trace_event_info *ev = &trace_events[rec->event];
	fprintf(f, "%-14s ", ev->name);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	fprintf(f, ev->format, rec->a, rec->b, rec->c); /* checked above */
#pragma GCC diagnostic pop
	return fputc('\n', f) == EOF ? -errno : 0;
}

/* Merges the rings by time. */
static int trace_decode_to(const struct trace *t, FILE *f)
{
	struct trace_cursor cur[TRACE_MAX_RINGS];
	u64 lost = 0, tsc0 = ~0ull;
	for (unsigned i = 0; i < TRACE_MAX_RINGS; i++) {
		u64 head = t->ring[i].head;
		u64 first = head > TRACE_RING_RECORDS ? head - TRACE_RING_RECORDS : 0;
		lost += first;
		cur[i] = (struct trace_cursor){ .ring = &t->ring[i], .next = first, .end = head };
		if (head != first && t->ring[i].rec[first % TRACE_RING_RECORDS].tsc < tsc0)
			tsc0 = t->ring[i].rec[first % TRACE_RING_RECORDS].tsc;
	}
	fprintf(f, "# time in us, vcpu, event; %" PRIu64 " older events were overwritten; tsc %" PRIu64 " kHz\n", lost,
		t->tsc_khz);
	for (;;) {
		int best = -1;
		for (int i = 0; i < TRACE_MAX_RINGS; i++) {
			if (cur[i].next == cur[i].end)
				continue;
			const struct trace_record *r = &cur[i].ring->rec[cur[i].next % TRACE_RING_RECORDS];
			if (best < 0 || r->tsc < cur[best].ring->rec[cur[best].next % TRACE_RING_RECORDS].tsc)
				best = i;
		}
		if (best < 0)
			break;
		struct trace_record rec = cur[best].ring->rec[cur[best].next % TRACE_RING_RECORDS];
		int r = trace_print(f, t, &rec, tsc0);
		if (r)
			return r;
		cur[best].next++;
	}
	return fflush(f) ? -errno : 0;
}

int trace_decode(int fd, int out_fd, struct err *e)
{
	struct stat st;
	if (fstat(fd, &st))
		return err_sys(e, errno, "cannot read the trace");
	u64 size = TRACE_SIZE(TRACE_MAX_RINGS);
	const struct trace *t = S_ISREG(st.st_mode) ? trace_map_prot(fd, size, PROT_READ) : NULL;
	if (!t)
		return err_set(e, EINVAL, "cannot read the trace: not a trace file of this version, or cut short");
	int dup_fd = dup(out_fd);
	FILE *f = dup_fd < 0 ? NULL : fdopen(dup_fd, "w");
	int r = f ? trace_decode_to(t, f) : -errno;
	if (f ? fclose(f) && !r : 0)
		r = -errno;
	if (r)
		err_sys(e, -r, "cannot write the decoded trace");
	munmap((void *)(uintptr_t)t, size);
	return r;
}
