/* The protocol between the guest agent (guest/agent.c, PID 1 of the guest) and
 * the session role (src/session), over the second serial port, raw 8-bit.
 *
 * Theory of operation.  Both directions carry frames: an 8-byte header, then
 * length bytes.  The header holds a constant and a running number, so a lost,
 * inserted or repeated byte is noticed at the next header; there is no
 * resynchronising: any violation ends the VM with a clear message.
 *
 *   agent -> host   HELLO first, once; then DATA of stdout and stderr, CREDIT; EXITED or ERROR last.
 *   host -> agent   RUN once after HELLO, unless its payload lies in the initramfs as AGENT_RUN_FILE (so that a
 *                   deterministic run depends on no byte that comes at a time of its own); then DATA of stdin, WINSIZE, SIGNAL, CREDIT.
 * Empty DATA from the host: of stdin, its end; of stdout or stderr, nobody reads it any more (the agent closes
 * the pipe, the command gets SIGPIPE as it would on the host).
 *
 * Flow control is by credit, so that nothing is ever dropped by a tty buffer and
 * no stream can starve another or a signal:
 *   AGENT_LINK    every byte, headers included, from host to agent.  The agent returns what it
 *                 has read from the tty; at most AGENT_LINK_WINDOW bytes are under way, less
 *                 than the guest's tty buffers hold (N_TTY: 4096).
 *   AGENT_STDIN   payload of STDIN frames; returned as the command reads it.
 *   AGENT_STDOUT, AGENT_STDERR   payload towards the host; returned when written out.
 * Credit for the link is not itself counted towards any window.
 *
 * All integers are little-endian.  Each end treats the other as hostile: bounded
 * lengths, known types only, never more data than credit was given for. */
#ifndef CORE_AGENT_PROTO_H
#define CORE_AGENT_PROTO_H

#include "core/base.h"

#define AGENT_PROTO_VERSION 1
#define AGENT_FRAME_MARK 0xa7
#define AGENT_HELLO_MAGIC 0x41524d55u /* "UMRA", little-endian */

#define AGENT_LINK_WINDOW 2048u
#define AGENT_STREAM_WINDOW (128u << 10)
#define AGENT_DATA_MAX (16u << 10) /* payload of one STDIN, STDOUT or STDERR frame */
#define AGENT_RUN_MAX (2u << 20)   /* as much as the kernel takes for argv + envp with the default stack limit */
#define AGENT_TEXT_MAX 512u
#define AGENT_RUN_FILE "/.umbra/run"

enum agent_stream { AGENT_STDIN, AGENT_STDOUT, AGENT_STDERR, AGENT_LINK, AGENT_STREAMS };

enum agent_type {
	/* agent -> host */
	AGENT_HELLO = 1,   /* struct agent_hello */
	AGENT_EXITED = 2,  /* struct agent_exited; all output precedes it */
	AGENT_ERROR = 3,   /* u32 exit status (126, 127 or 125), then text without NUL */
	/* both */
	AGENT_DATA = 16,   /* stream: bytes */
	AGENT_CREDIT = 17, /* stream: u32 bytes */
	/* host -> agent */
	AGENT_RUN = 32,    /* struct agent_run and strings */
	AGENT_WINSIZE = 33,/* struct agent_winsize */
	AGENT_SIGNAL = 34, /* u32 signal number (Linux x86-64) for the command's process group */
};

struct agent_frame {
	u8 mark;   /* AGENT_FRAME_MARK */
	u8 type;   /* enum agent_type */
	u8 stream; /* enum agent_stream for DATA and CREDIT, else 0 */
	u8 seq;    /* counts frames of this direction from 0, modulo 256 */
	u32 len;   /* payload bytes that follow */
};
_Static_assert(sizeof(struct agent_frame) == 8, "wire format");

struct agent_hello {
	u32 magic;   /* AGENT_HELLO_MAGIC */
	u32 version; /* AGENT_PROTO_VERSION; must be equal at both ends */
};

struct agent_winsize {
	u16 rows, cols; /* characters */
};

enum agent_run_flag {
	AGENT_RUN_TTY = 1,     /* the command gets a pseudo-terminal; its output is all on AGENT_STDOUT */
	AGENT_RUN_NO_STDIN = 2,/* stdin is at its end from the start: no DATA of it follows */
};

struct agent_run {
	u32 flags;
	struct agent_winsize winsize; /* of the pseudo-terminal */
	u32 uid, gid;                 /* of the command */
	u32 argc, envc;
	/* Followed by NUL-terminated strings: root directory ("" = the initramfs itself), working directory
	 * ("" = /), host name ("" = keep), argc arguments, envc NAME=VALUE.  The last NUL ends the frame. */
};
_Static_assert(sizeof(struct agent_run) == 24, "wire format");

struct agent_exited {
	u32 status; /* as a shell's $?: exit status, or 128 + signal number */
};

/* Largest payload the named end may send in a frame of this type; -1: not a type it may send. */
static inline s64 agent_len_max(bool from_agent, u8 type)
{
	switch (type) {
	case AGENT_HELLO: return from_agent ? (s64)sizeof(struct agent_hello) : -1;
	case AGENT_EXITED: return from_agent ? (s64)sizeof(struct agent_exited) : -1;
	case AGENT_ERROR: return from_agent ? (s64)(4 + AGENT_TEXT_MAX) : -1;
	case AGENT_DATA: return AGENT_DATA_MAX;
	case AGENT_CREDIT: return 4;
	case AGENT_RUN: return from_agent ? -1 : (s64)AGENT_RUN_MAX;
	case AGENT_WINSIZE: return from_agent ? -1 : (s64)sizeof(struct agent_winsize);
	case AGENT_SIGNAL: return from_agent ? -1 : 4;
	default: return -1;
	}
}

/* Smallest payload: the fixed part must be there. */
static inline u32 agent_len_min(u8 type)
{
	switch (type) {
	case AGENT_HELLO: return sizeof(struct agent_hello);
	case AGENT_EXITED: return sizeof(struct agent_exited);
	case AGENT_RUN: return sizeof(struct agent_run) + 3;
	case AGENT_WINSIZE: return sizeof(struct agent_winsize);
	case AGENT_ERROR:
	case AGENT_CREDIT:
	case AGENT_SIGNAL: return 4;
	default: return 0;
	}
}

/* NULL, or what is wrong with a header that came from the named end. */
static inline const char *agent_frame_check(const struct agent_frame *f, bool from_agent, u8 seq)
{
	if (f->mark != AGENT_FRAME_MARK)
		return "not a frame header";
	s64 max = agent_len_max(from_agent, f->type);
	if (max < 0)
		return "unknown frame type";
	if (f->seq != seq)
		return "frame number out of order";
	if (f->len > max)
		return "frame too long";
	if (f->len < agent_len_min(f->type))
		return "frame too short";
	if (f->stream >= AGENT_STREAMS || (f->stream && f->type != AGENT_DATA && f->type != AGENT_CREDIT))
		return "bad stream number";
	return NULL;
}

#endif
