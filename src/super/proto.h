/* What the processes of one VM say to each other: descriptors at fixed
 * numbers, messages on the control sockets (core/msg.h).  Both ends are the
 * same executable, so structures need no version. */
#ifndef SUPER_PROTO_H
#define SUPER_PROTO_H

#include "core/msg.h"

/* Descriptors every role starts with.  0-2 are /dev/null unless said. */
#define ROLE_FD_CONTROL 3 /* SOCK_SEQPACKET to the supervisor; hang-up: end */

/* vm */
#define VM_FD_RAM 4     /* sealed memfd, memory bytes */
#define VM_FD_KERNEL 5  /* ELF, as image_extract() writes it */
#define VM_FD_INITRD 6  /* or /dev/null: none */
#define VM_FD_CONSOLE 7 /* SOCK_STREAM, O_NONBLOCK, to the session: first serial port, debug console */
#define VM_FD_AGENT 8   /* SOCK_STREAM, O_NONBLOCK, to the session: the agent's channel (second serial port) */
#define VM_FD_REPORT 9  /* memfd, REPORT_SIZE */
#define VM_FD_TRACE 10  /* memfd, TRACE_SIZE(); only with a trace */
#define VM_FD_CHECKPOINTS 11 /* memfd, struct hv_checkpoints; only with checkpoints */

/* extract */
#define EXTRACT_FD_IN 4  /* bzImage, read-only */
#define EXTRACT_FD_OUT 5 /* memfd or file, empty, for the ELF */

/* session: 0, 1, 2 are the user's */
#define SESSION_FD_CONSOLE 4 /* other end of VM_FD_CONSOLE, O_NONBLOCK */
#define SESSION_FD_AGENT 5   /* other end of VM_FD_AGENT, O_NONBLOCK */
#define SESSION_FD_CONFIG 6  /* struct super_config.session_fd; may be missing */

/* ttyguard: 0 is the terminal */

enum proto_type {
	/* supervisor → vm */
	PROTO_VM_CONFIG = 1, /* struct proto_vm_config */
	PROTO_VM_STOP,       /* end now: send counters, PROTO_VM_ENDED, exit */

	/* vm → supervisor */
	PROTO_VM_READY, /* confined and loaded, guest starts */
	PROTO_VM_STATS, /* struct proto_stats, before PROTO_VM_ENDED */
	PROTO_VM_ENDED, /* struct proto_vm_ended; the process exits next */

	/* supervisor → session */
	PROTO_SESSION_SIGNAL, /* struct proto_signal: send it to the guest's command */
	PROTO_SESSION_WINSIZE, /* struct proto_winsize */
	PROTO_SESSION_STOP,   /* the VM is gone: write out what is buffered, exit */

	/* session → supervisor */
	PROTO_SESSION_STARTED, /* the guest's agent answered; the command starts (boot time ends here) */
	PROTO_SESSION_EXITED,  /* struct proto_exited: the command ended and all its output is written */
	PROTO_SESSION_TAIL,    /* the last of the console's output, raw, for the report; before PROTO_SESSION_FAILED */
	PROTO_SESSION_FAILED,  /* struct proto_text: one line of cause */

	/* any role → supervisor */
	PROTO_LOG,    /* struct proto_log */
	PROTO_FAILED, /* struct proto_failed: set-up failed, the role exits next */

	/* supervisor → ttyguard */
	PROTO_TTY_SAVED, /* struct termios: put this back when the supervisor is gone */
	PROTO_TTY_DONE, /* the terminal is restored: exit without touching it */

	/* extract → supervisor */
	PROTO_EXTRACTED, /* struct proto_extracted */
};

struct proto_vm_config {
	u64 memory;
	u32 cpus;
	u32 engine; /* enum super_engine */
	u8 deterministic, has_initrd, has_trace, verbose;
	u8 exit_by_vm, pad[3]; /* exit_by_vm: also offers the debug-exit ports */
	u64 det_seed, stop_at_insns;
	u64 checkpoint_every, checkpoint_from, checkpoint_size; /* bytes of VM_FD_CHECKPOINTS, 0: none */
	u32 block_limit, translate_after;
	u64 tsc_khz; /* measured by the supervisor while other things went on */
	u64 trace_size;
	u8 seed[64]; /* struct machine_config; all zero: none */
	char cmdline[2048 + 2048]; /* terminated */
};

struct proto_stats {
	u32 n, pad;
	struct {
		char name[32];
		u64 value;
	} stat[64];
};

enum proto_ending {
	PROTO_END_POWEROFF = 1, /* ACPI S5 */
	PROTO_END_RESET,        /* reset register, keyboard controller, or triple fault asked for by reboot=t */
	PROTO_END_EXIT_CODE,    /* isa-debug-exit: code as QEMU gives it, value << 1 | 1 */
	PROTO_END_TRIPLE_FAULT,
	PROTO_END_ENGINE,       /* unimplemented or internal error: cause in text and the report */
	PROTO_END_STOPPED,      /* PROTO_VM_STOP */
	PROTO_END_INSN_LIMIT,   /* stop_at_insns reached */
	PROTO_END_PANIC,        /* the guest said so (pvpanic) */
};

struct proto_vm_ended {
	u32 ending; /* enum proto_ending */
	u32 code;
	char text[512];
};

struct proto_signal {
	u32 signo;
};

struct proto_winsize {
	u16 rows, cols;
};

struct proto_exited {
	u32 status; /* 0 … 255, as a shell shows it (128 + signal) */
};

struct proto_text {
	char text[512];
};

struct proto_log {
	u32 level; /* enum log_level */
	char text[508];
};

struct proto_failed {
	s32 errnum;
	char text[508];
};

#define PROTO_TAIL_MAX 8192

struct proto_extracted {
	u64 size; /* of the ELF */
};

/* What the supervisor accepts from each role. */
extern const struct msg_spec proto_from_vm[], proto_from_session[], proto_from_extract[];
extern const unsigned proto_from_vm_n, proto_from_session_n, proto_from_extract_n;

/* What each role accepts from the supervisor. */
extern const struct msg_spec proto_to_vm[], proto_to_session[], proto_to_ttyguard[];
extern const unsigned proto_to_vm_n, proto_to_session_n, proto_to_ttyguard_n;

#endif
