/* The report of a death: text assembled in a bounded buffer.  The vm process
 * cannot open files, so its buffer is a shared mapping of a memfd that the
 * supervisor made; the supervisor writes the file afterwards, also when the
 * process was killed in the middle.  Everything here but report_write_file()
 * may be called from a signal handler. */
#ifndef CORE_REPORT_H
#define CORE_REPORT_H

#include "core/base.h"
#include "core/error.h"

#define REPORT_SIZE (256 * KiB) /* of the memfd */
#define REPORT_MAGIC 0x54524f5045524d55ull

struct report {
	u64 magic;
	u32 len;           /* bytes of text; a reader clamps it */
	u32 complete;      /* 1: the writer came to its end */
	char cause[512];   /* one line: why the VM ended; terminated */
	char text[];       /* up to REPORT_SIZE - sizeof(struct report) */
};

/* Maps the report memfd fd of this process (or anonymous memory with -1). */
struct report *report_map(int fd);

void report_reset(struct report *r);
__attribute__((format(printf, 2, 3))) void report_cause(struct report *r, const char *fmt, ...); /* the first one stays */
__attribute__((format(printf, 2, 3))) void report_printf(struct report *r, const char *fmt, ...);
void report_section(struct report *r, const char *title);
void report_hex(struct report *r, u64 address, const void *data, size_t n);
void report_done(struct report *r);

/* Writes header and the text (made printable: it comes from a process that
 * may be the guest's by now) to a new file in
 * ${XDG_STATE_HOME:-~/.local/state}/umbra/reports/, else in /tmp.  path gets
 * its name.  0 or -errno. */
int report_write_file(const char *header, const char *text, size_t len, char *path, size_t path_size, struct err *e);

#endif
