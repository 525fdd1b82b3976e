/* Staged confinement of a role.
 *
 * Stage 1, sandbox_prepare(), first thing in the role, still one thread: not
 * dumpable, no_new_privs, death signal, resource limits; user + network +
 * mount + IPC + UTS namespaces and Landlock where the host permits them.
 * Stage 2, sandbox_enter(), before the first byte of the guest is looked at:
 * the seccomp filter, for every thread of the process.
 *
 * Only no_new_privs, limits and seccomp are required; without them the role
 * refuses to run.  The rest is an attempt; sandbox_probe() tells doctor. */
#ifndef CORE_SANDBOX_H
#define CORE_SANDBOX_H

#include "core/base.h"
#include "core/error.h"
#include "core/seccomp.h"

struct sandbox_policy {
	const char *role;
	const struct seccomp_rule *rules;
	unsigned n_rules;
	u32 max_fds;         /* RLIMIT_NOFILE */
	u64 max_file_size;   /* RLIMIT_FSIZE, bytes */
	u64 max_data;        /* RLIMIT_DATA, bytes; 0: leave */
	u32 max_cpu_s;       /* RLIMIT_CPU, seconds; 0: leave */
	bool outlive;        /* no death signal (struct spawn_config) */
};

/* What is in force in this process. */
struct sandbox_layers {
	bool no_new_privs;
	bool seccomp;
	bool tsync;
	int landlock_abi;   /* 0: none */
	bool namespaces;    /* user + net + mount + ipc + uts */
	bool cannot_ptrace; /* kernel.yama.ptrace_scope or not dumpable */
};

int sandbox_prepare(const struct sandbox_policy *p, struct sandbox_layers *got, struct err *e);
int sandbox_enter(const struct sandbox_policy *p, struct sandbox_layers *got, struct err *e);

/* Tries every layer in a child process of its own; takes some milliseconds.
 * 0 when the required ones work, else -errno with words. */
int sandbox_probe(struct sandbox_layers *got, struct err *e);

#endif
