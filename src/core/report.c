#include "core/report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REPORT_TEXT (REPORT_SIZE - sizeof(struct report))

struct report *report_map(int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	struct stat st;
	if (fd >= 0 && (fstat(fd, &st) || st.st_size < (off_t)REPORT_SIZE))
		return NULL;
	struct report *r = mmap(NULL, REPORT_SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);
	return r == MAP_FAILED ? NULL : r;
}

void report_reset(struct report *r)
{
	r->magic = REPORT_MAGIC;
	r->len = 0;
	r->complete = 0;
	r->cause[0] = 0;
}

void report_cause(struct report *r, const char *fmt, ...)
{
	if (r->cause[0])
		return;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(r->cause, sizeof r->cause, fmt, ap);
	va_end(ap);
}

void report_printf(struct report *r, const char *fmt, ...)
{
	size_t room = REPORT_TEXT - r->len;
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(r->text + r->len, room, fmt, ap);
	va_end(ap);
	if (n > 0)
		r->len += (u32)((size_t)n < room ? (size_t)n : room - 1);
}

void report_section(struct report *r, const char *title) { report_printf(r, "\n== %s ==\n", title); }

void report_hex(struct report *r, u64 address, const void *data, size_t n)
{
	const u8 *p = data;
	for (size_t i = 0; i < n; i += 16) {
		report_printf(r, "%016llx ", (unsigned long long)(address + i));
		for (size_t k = i; k < i + 16 && k < n; k++)
			report_printf(r, " %02x", p[k]);
		report_printf(r, "\n");
	}
}

void report_done(struct report *r) { __atomic_store_n(&r->complete, 1, __ATOMIC_RELEASE); }

/* Makes every directory of path up to its last slash; errors show at open. */
static void report_mkdirs(char *path)
{
	for (char *p = path + 1; (p = strchr(p, '/')); p++) {
		*p = 0;
		mkdir(path, 0700);
		*p = '/';
	}
}

/* A new file that did not exist, so that nobody's link is followed. */
static int report_open(const char *dir, char *path, size_t size)
{
	struct timespec ts;
	struct tm tm;
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	char stamp[32];
	strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &tm);
	int n = snprintf(path, size, "%s/umbra-%s-%d.txt", dir, stamp, (int)getpid());
	if (n < 0 || (size_t)n >= size)
		return -ENAMETOOLONG;
	report_mkdirs(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

static int report_write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t w = write(fd, p, n);
		if (w < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

static int report_write_in(const char *dir, const char *header, const char *text, size_t len, char *path, size_t size)
{
	int fd = report_open(dir, path, size);
	if (fd < 0)
		return fd;
	int r = report_write_all(fd, header, strlen(header));
	if (!r)
		r = report_write_all(fd, text, len);
	if (close(fd) && !r)
		r = -errno;
	if (r)
		unlink(path);
	return r;
}

int report_write_file(const char *header, const char *text, size_t len, char *path, size_t path_size, struct err *e)
{
	char *clean = malloc(len + 1);
	if (!clean)
		return err_sys(e, ENOMEM, "cannot write the report");
	for (size_t i = 0; i < len; i++) {
		char c = text[i];
		clean[i] = (c >= 0x20 && c < 0x7f) || c == '\n' || c == '\t' ? c : '?';
	}
	char dir[400];
	const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	int n = -1;
	if (state && state[0] == '/')
		n = snprintf(dir, sizeof dir, "%s/umbra/reports", state);
	else if (home && home[0] == '/')
		n = snprintf(dir, sizeof dir, "%s/.local/state/umbra/reports", home);
	int r = -ENOENT;
	if (n > 0 && (size_t)n < sizeof dir)
		r = report_write_in(dir, header, clean, len, path, path_size);
	if (r) {
		/* /tmp is shared: a name of our own directory could be anybody's, so the file lies there directly. */
		r = report_write_in("/tmp", header, clean, len, path, path_size);
	}
	free(clean);
	if (r) {
		path[0] = 0;
		return err_sys(e, -r, "cannot write the report");
	}
	return 0;
}
