/* The user's terminal: raw mode, window size, and what undoes it. */
#ifndef SUPER_TERMINAL_H
#define SUPER_TERMINAL_H

#include <termios.h>

#include "core/base.h"
#include "core/error.h"
#include "core/spawn.h"

struct terminal {
	int fd;
	bool raw;
	struct termios saved;
	/* Restores the terminal when the supervisor is killed with SIGKILL: a role that sees only the terminal and
	 * a socket's hang-up. */
	struct spawned guard;
	int guard_sock;
};

/* Puts fd's terminal into raw mode and starts the guard.  0 or -errno. */
int terminal_raw(struct terminal *t, int fd, struct err *e);

/* Back to the saved mode; idempotent, async-signal-safe part only. */
void terminal_restore(struct terminal *t);

/* Ends the guard after terminal_restore(). */
void terminal_close(struct terminal *t);

bool terminal_size(int fd, u16 *rows, u16 *cols);

#endif
