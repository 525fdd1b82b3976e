#include "core/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void err_sanitize(char *text, size_t size)
{
	size_t i;
	for (i = 0; i + 1 < size && text[i]; i++)
		if ((u8)text[i] < 0x20 || (u8)text[i] >= 0x7f)
			text[i] = '?';
	if (size)
		text[i] = 0;
}

int err_set(struct err *e, int errnum, const char *fmt, ...)
{
	if (e) {
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(e->text, sizeof e->text, fmt, ap);
		va_end(ap);
		err_sanitize(e->text, sizeof e->text);
	}
	return errnum ? -errnum : -EINVAL;
}

int err_sys(struct err *e, int errnum, const char *fmt, ...)
{
	if (e) {
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(e->text, sizeof e->text, fmt, ap);
		va_end(ap);
		size_t n = strlen(e->text);
		snprintf(e->text + n, sizeof e->text - n, ": %s", strerror(errnum));
		err_sanitize(e->text, sizeof e->text);
	}
	return errnum ? -errnum : -EINVAL;
}

void err_hint(struct err *e, const char *fmt, ...)
{
	if (!e)
		return;
	char hint[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(hint, sizeof hint, fmt, ap);
	va_end(ap);
	size_t n = strlen(e->text);
	snprintf(e->text + n, sizeof e->text - n, " (%s)", hint);
	err_sanitize(e->text, sizeof e->text);
}
