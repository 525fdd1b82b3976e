/* Our own bugs: say where, let the hook write its report, die by SIGABRT. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base.h"
#include "core/log.h"

static void (*assert_hook)(void *, const char *, const char *, int);
static void *assert_hook_arg;

void assert_set_hook(void (*hook)(void *, const char *, const char *, int), void *arg)
{
	assert_hook_arg = arg;
	assert_hook = hook;
}

void assert_report(const char *what, const char *file, int line)
{
	static bool reported;
	if (__atomic_test_and_set(&reported, __ATOMIC_SEQ_CST))
		return; /* the report itself failed, or another thread was first */
	log_error("internal error: %s at %s:%d", what, file, line);
	if (assert_hook)
		assert_hook(assert_hook_arg, what, file, line);
}

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	assert_report(expr, file, line);
	/* Not abort(): it needs tgkill and signal calls a confined role may not make. */
	__builtin_trap();
}
