/* What every program of tests/boot/guest starts with.  A program is one static
 * executable about one concept; it exits with 0, or with a code of its own for
 * every check that can fail, and says on stderr which one it was.  All of them
 * also pass natively on the host unless their head says otherwise. */
#ifndef BOOT_GUEST_T_H
#define BOOT_GUEST_T_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PAGE 4096ul

/* code: 1..99, different for each check of a program. */
#define CHECK(code, cond, ...)                                                                                         \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			t_failed(__FILE__, __LINE__, code, #cond, " " __VA_ARGS__);                                     \
	} while (0)

__attribute__((noreturn, format(printf, 5, 6), unused)) static void t_failed(const char *file, int line, int code,
									      const char *cond, const char *fmt, ...)
{
	char text[512];
	const char *slash = strrchr(file, '/');
	int n = snprintf(text, sizeof text, "%s:%d: code %d: not %s (errno %d) ", slash ? slash + 1 : file, line, code, cond,
			 errno);
	va_list ap;
	va_start(ap, fmt);
	n += vsnprintf(text + n, sizeof text - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof text - 2)
		n = sizeof text - 2;
	text[n++] = '\n';
	if (write(2, text, (size_t)n) < 0)
		_exit(99);
	_exit(code);
}

/* Installs handler h for signal s, with siginfo, on the alternate stack if there is one. */
__attribute__((unused)) static void t_signal(int s, void (*h)(int, siginfo_t *, void *), int flags)
{
	struct sigaction sa = { .sa_sigaction = h, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&sa.sa_mask);
	if (sigaction(s, &sa, NULL))
		_exit(98);
}

__attribute__((unused)) static u64 t_now_ns(clockid_t clock)
{
	struct timespec t;
	if (clock_gettime(clock, &t))
		_exit(97);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

/* A deterministic generator (xorshift64*), the same natively and in the guest. */
__attribute__((unused)) static u64 t_random(u64 *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

/* FNV-1a over bytes. */
__attribute__((unused)) static u64 t_hash(u64 h, const void *data, size_t n)
{
	const u8 *p = data;
	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 0x100000001b3ull;
	return h;
}
#define T_HASH_INIT 0xcbf29ce484222325ull

#endif
