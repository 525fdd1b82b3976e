/* Starts a role: this program's own executable once more with --role=NAME,
 * an empty environment, and no descriptors but those handed over. */
#ifndef CORE_SPAWN_H
#define CORE_SPAWN_H

#include <sys/types.h>

#include "core/base.h"
#include "core/error.h"

#define SPAWN_MAX_FDS 16

struct spawn_fd {
	int from; /* here */
	int to;   /* there: 0 … SPAWN_MAX_FDS - 1; numbers 0-2 not named become /dev/null */
};

struct spawn_config {
	const char *role;
	const struct spawn_fd *fds;
	unsigned n_fds;
	bool new_session; /* setsid(): away from the terminal's signals */
	bool outlive;     /* no death signal: the role ends by its own socket's hang-up (ttyguard only) */
};

struct spawned {
	pid_t pid; /* 0: not running (or reaped) */
	int pidfd; /* readable when it ended; close-on-exec */
};

/* 0 or -errno with words. */
int spawn_role(const struct spawn_config *cfg, struct spawned *out, struct err *e);

/* First thing a role does: asks for SIGKILL when the parent dies, notices a
 * parent that is dead already, no_new_privs, not dumpable.  Must be repeated
 * (spawn_arm_death) after a change of user namespace, which clears it. */
int spawn_arm_death(struct err *e);

/* Reaps; wstatus as of waitpid().  With block false: -EAGAIN while it runs. */
int spawn_reap(struct spawned *s, bool block, int *wstatus);
void spawn_kill(struct spawned *s); /* SIGKILL through the pidfd; harmless when it is gone */

/* "exited with status 3", "was killed by signal 31 (SIGSYS)". */
void spawn_describe(int wstatus, char *text, size_t size);

#endif
