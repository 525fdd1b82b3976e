/* The supervisor: the life of one VM, from the user's wish as plain data to
 * one exit status.  It has the user's own rights and parses nothing the guest
 * or a role wrote beyond the small fixed messages of proto.h. */
#ifndef SUPER_SUPER_H
#define SUPER_SUPER_H

#include "core/base.h"
#include "core/error.h"

#define SUPER_STATUS_FAILED 125 /* umbra's own failures */

enum super_engine { SUPER_ENGINE_AUTO, SUPER_ENGINE_INTERPRET, SUPER_ENGINE_TRANSLATE };

struct super_config {
	/* Boot.  Descriptors stay the caller's. */
	int kernel_fd;           /* regular file: bzImage, ELF vmlinux, PVH or multiboot ELF */
	const char *kernel_name; /* for messages */
	int initrd_fd;           /* regular file or memfd, or -1 */
	const char *initrd_name;
	const char *cmdline;     /* the guest kernel's, complete */

	u64 memory;    /* bytes, page aligned */
	unsigned cpus; /* 1 */
	enum super_engine engine;

	bool deterministic; /* vcpu.h: struct hv_config */
	u64 det_seed;
	u64 stop_at_insns;
	u64 checkpoint_every; /* record the state each time so many instructions have retired; 0: never */
	u64 checkpoint_from;  /* but not before so many have */
	int checkpoint_fd;    /* gets struct hv_checkpoints at the end; -1: off */
	unsigned translate_after; /* struct hv_config */
	unsigned block_limit; /* most instructions per decoded block, 0: the engine's own choice */

	/* The session role.  session_fd: memfd with its configuration (command, environment …), opaque here,
	 * handed to it as SESSION_FD_CONFIG; -1: none. */
	int session_fd;
	int stdin_fd, stdout_fd, stderr_fd; /* handed to the session as 0, 1, 2 */
	bool raw_tty;      /* put stdin_fd's terminal into raw mode for the time of the run, send window sizes */
	bool exit_by_vm;   /* no command: the ending of the VM gives the status (raw console, bare-metal kernels):
	                    * power-off 0, isa-debug-exit its code; else a VM that ends before the command did is a failure */

	int trace_fd;      /* gets the trace file's bytes at the end; -1: off */
	u64 trace_mask;    /* trace_parse_list() */
	unsigned verbose;  /* 0, 1, 2: log level */
	u64 timeout_ns;    /* end with a failure after so long; 0: never */
	u64 grace_ns;      /* given to the guest to power off after its command ended; 0: 3 s */

	const char *cache_dir; /* NULL: ${XDG_CACHE_HOME:-~/.cache}/umbra */
};

#define SUPER_MAX_STATS 64

struct super_stat {
	char name[32];
	u64 value;
};

struct super_result {
	int status;       /* the process's exit status */
	char error[768];  /* one line without "umbra: "; empty when the status is the guest's own */
	char report[512]; /* path of the report file, or empty (error names it already) */
	unsigned n_stats; /* counters of the engine, and times of the supervisor's: "boot_ns", "wall_ns", "vm_cpu_ns" … */
	struct super_stat stat[SUPER_MAX_STATS];
};

/* Runs one VM to its end.  Returns result->status.  Blocks and forwards
 * SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH meanwhile; the terminal is as
 * before when it returns, and no process of the VM is left. */
int super_run(const struct super_config *cfg, struct super_result *res);

#endif
