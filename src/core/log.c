#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"

static enum log_level log_max = LOG_WARN;
static void (*log_sink)(void *, enum log_level, const char *);
static void *log_sink_arg;

void log_set_level(enum log_level level) { log_max = level; }

bool log_enabled(enum log_level level) { return level <= log_max; }

void log_set_sink(void (*sink)(void *, enum log_level, const char *), void *arg)
{
	log_sink_arg = arg;
	log_sink = sink;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	if (!log_enabled(level))
		return;
	char line[1024] = "umbra: ";
	size_t prefix = strlen(line);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(line + prefix, sizeof line - prefix - 2, fmt, ap);
	va_end(ap);
	err_sanitize(line, sizeof line - 2);
	if (log_sink) {
		log_sink(log_sink_arg, level, line + prefix);
		return;
	}
	/* One write, so that lines of several processes do not mix; with a carriage return because the terminal
	 * may be in raw mode. */
	size_t n = strlen(line);
	if (isatty(STDERR_FILENO))
		line[n++] = '\r';
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return; /* nobody listens: there is nowhere to say so */
}
