/* Messages between processes: one SOCK_SEQPACKET datagram each, a fixed
 * header, a body, descriptors.  The other end may be hostile: length, type,
 * number and kind of the descriptors are checked against a table before
 * anything looks at the body, and descriptors nobody asked for are closed. */
#ifndef CORE_MSG_H
#define CORE_MSG_H

#include "core/base.h"

#define MSG_MAX_BODY 16384
#define MSG_MAX_FDS 12

enum msg_fd_kind {
	MSG_FD_ANY,
	MSG_FD_FILE, /* regular file or memfd */
	MSG_FD_SOCKET,
	MSG_FD_PIPE,
};

/* One line per message somebody accepts. */
struct msg_spec {
	u32 type;
	const char *name;
	u32 min_len, max_len; /* of the body, bytes */
	u8 n_fds;             /* exactly so many descriptors */
	u8 fd_kind[MSG_MAX_FDS];
};

struct msg {
	u32 type;
	u32 len;
	unsigned n_fds;
	int fd[MSG_MAX_FDS]; /* owned by the receiver, close-on-exec; msg_close() drops what is left (>= 0) */
	u8 body[MSG_MAX_BODY] __attribute__((aligned(16)));
};

/* A connected pair, close-on-exec, blocking.  0 or -errno. */
int msg_pair(int sv[2]);

/* Sends one message; never raises SIGPIPE, never waits (a peer that does not
 * read must not stop us).  0 or -errno (-EPIPE: peer gone; -EAGAIN: it does not read). */
int msg_send(int sock, u32 type, const void *body, u32 len, const int *fds, unsigned n_fds);

/* Receives one message and checks it against the table.  1: m is valid;
 * 0: end of file; -EAGAIN with dontwait; -EBADMSG: what came is refused (and
 * every descriptor in it closed): treat the peer as broken. */
int msg_recv(int sock, struct msg *m, const struct msg_spec *specs, unsigned n_specs, bool dontwait);

/* Takes descriptor i out of the message, so that msg_close() leaves it. */
int msg_take_fd(struct msg *m, unsigned i);
void msg_close(struct msg *m);

#endif
