#include "super/copy_out.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"

void copy_out(int from, int to, u64 size, const char *what)
{
	static char buf[64 * 1024];
	off_t at = 0;
	ssize_t n = 0;
	bool hole = false;
	while ((u64)at < size && (n = pread(from, buf, size - (u64)at < sizeof buf ? size - (u64)at : sizeof buf, at)) > 0) {
		bool zero = !buf[0] && !memcmp(buf, buf + 1, (size_t)n - 1);
		if (zero && lseek(to, n, SEEK_CUR) >= 0) { /* a hole: most of a trace's rings are never used */
			at += n;
			hole = true;
			continue;
		}
		hole = false;
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, buf + done, (size_t)(n - done));
			if (w < 0 && errno != EINTR) {
				log_warn("cannot write the %s: %s", what, strerror(errno));
				return;
			}
			done += w > 0 ? w : 0;
		}
		at += n;
	}
	if (n < 0)
		log_warn("cannot read the %s: %s", what, strerror(errno));
	off_t end = hole ? lseek(to, 0, SEEK_CUR) : -1;
	if (end > 0 && ftruncate(to, end))
		log_warn("cannot write the %s: %s", what, strerror(errno));
}
