/* A bounded text builder for messages of the CPU (no libc here). */
#ifndef CPU_TEXT_H
#define CPU_TEXT_H

#include "core/base.h"

struct text { char *p; size_t n, cap; };

static inline void text_init(struct text *t, char *buf, size_t cap)
{
	*t = (struct text){ .p = buf, .cap = cap };
	buf[0] = 0;
}
static inline void text_char(struct text *t, char ch)
{
	if (t->n + 1 < t->cap) {
		t->p[t->n++] = ch;
		t->p[t->n] = 0;
	}
}
static inline void text_str(struct text *t, const char *s)
{
	while (*s)
		text_char(t, *s++);
}
/* Hexadecimal with at least digits digits, no prefix. */
static inline void text_hex(struct text *t, u64 v, unsigned digits)
{
	unsigned n = 16;
	while (n > 1 && n > digits && !(v >> (4 * (n - 1))))
		n--;
	while (n--)
		text_char(t, "0123456789abcdef"[(v >> (4 * n)) & 15]);
}
static inline void text_dec(struct text *t, u64 v)
{
	char b[20];
	unsigned n = 0;
	do
		b[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		text_char(t, b[--n]);
}

#endif
