/* Messages for the person at the terminal, one line each, on stderr:
 * "umbra: ...".  A confined role has no stderr; it sets a sink. */
#ifndef CORE_LOG_H
#define CORE_LOG_H

#include "core/base.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Lines above this level are dropped; default LOG_WARN, -v gives LOG_INFO, -vv LOG_DEBUG. */
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

/* Where lines go instead of stderr; line has no newline. */
void log_set_sink(void (*sink)(void *arg, enum log_level level, const char *line), void *arg);

__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *fmt, ...);

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* What assert_failed() (base.h) does before it ends the process: the hook may
 * write a report.  It runs once; an assertion inside it ends at once. */
void assert_set_hook(void (*hook)(void *arg, const char *what, const char *file, int line), void *arg);

/* The hook alone, for a death that is not an assertion (a host signal in our
 * own code); once per process, from a signal handler too. */
void assert_report(const char *what, const char *file, int line);

#endif
