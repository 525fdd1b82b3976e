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

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	static bool failing;
	if (!__atomic_test_and_set(&failing, __ATOMIC_SEQ_CST)) {
		log_error("internal error: assertion %s failed at %s:%d", expr, file, line);
		if (assert_hook)
			assert_hook(assert_hook_arg, expr, file, line);
	}
	/* Not abort(): it needs tgkill and signal calls a confined role may not make. */
	__builtin_trap();
}
