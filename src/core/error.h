/* Errors of set-up code: a negative errno for the program, words for the
 * person.  The words read "what failed: why (what to do)"; the command line
 * puts "umbra: " in front and ends with status 125.  Code that runs while the
 * guest runs returns -errno only. */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include "core/base.h"

struct err {
	char text[512]; /* one line, printable, always terminated; empty: no error */
};

/* Sets the words and returns -errnum (-EINVAL when errnum is 0), so that
 * `return err_set(e, errno, "cannot open %s: %s", ...)` is one statement.
 * errnum is not appended to the text: see err_sys().  e may be NULL. */
__attribute__((format(printf, 3, 4))) int err_set(struct err *e, int errnum, const char *fmt, ...);

/* The same with ": strerror(errnum)" appended. */
__attribute__((format(printf, 3, 4))) int err_sys(struct err *e, int errnum, const char *fmt, ...);

/* Appends " (hint)". */
__attribute__((format(printf, 2, 3))) void err_hint(struct err *e, const char *fmt, ...);

/* Makes n bytes of text from somebody else fit to print on one line of a
 * terminal: control and non-ASCII bytes become '?', the end is terminated. */
void err_sanitize(char *text, size_t size);

#endif
