/* The session role: the confined process between the user's stdin, stdout and
 * stderr and the guest.  It speaks the agent protocol (core/agent_proto.h) over
 * the second serial port, or passes the first one through (raw console). */
#ifndef SESSION_SESSION_H
#define SESSION_SESSION_H

#include "core/agent_proto.h"
#include "core/base.h"

#define SESSION_CONFIG_MAGIC 0x53534553u

enum session_flag {
	SESSION_TTY = 1,     /* the user's terminal is in raw mode, the command gets one of its own */
	SESSION_STDIN = 2,   /* pass stdin on; else the command sees its end at once */
	SESSION_CONSOLE = 4, /* no command: first serial port <-> stdin, stdout */
	SESSION_NO_RUN = 16, /* the agent has the command already (AGENT_RUN_FILE) */
	SESSION_VERBOSE = 8, /* the console's output goes to stderr */
};

/* What the command line leaves in SESSION_FD_CONFIG (a memfd): this, then the payload of AGENT_RUN. */
struct session_config {
	u32 magic;   /* SESSION_CONFIG_MAGIC */
	u32 flags;   /* enum session_flag */
	u32 run_len; /* bytes that follow; 0 with SESSION_CONSOLE and when the payload is in the initramfs */
};

/* The descriptors of one session. */
struct session_fds {
	int in, out, err; /* the user's; never made non-blocking: they are shared with the user's shell */
	int control;      /* messages of super/proto.h */
	int console;      /* first serial port */
	int agent;        /* second serial port */
};

/* Before confinement: looks at the descriptors, copies the configuration (untrusted memory is not kept). */
void session_init(const struct session_fds *fds, const struct session_config *cfg, const void *run);

/* Serves until the supervisor says stop or is gone.  Needs only read, write, poll, recvfrom, sendto, recvmsg, sendmsg. */
void session_loop(void);

#endif
