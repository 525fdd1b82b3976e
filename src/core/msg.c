#include "core/msg.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct msg_header {
	u32 magic;
	u32 type;
	u32 len;
	u32 n_fds;
};
#define MSG_HEADER_MAGIC 0x4d424d55u

int msg_pair(int sv[2])
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) ? -errno : 0;
}

int msg_send(int sock, u32 type, const void *body, u32 len, const int *fds, unsigned n_fds)
{
	if (len > MSG_MAX_BODY || n_fds > MSG_MAX_FDS)
		return -EMSGSIZE;
	struct msg_header h = { .magic = MSG_HEADER_MAGIC, .type = type, .len = len, .n_fds = n_fds };
	struct iovec iov[2] = { { &h, sizeof h }, { (void *)(uintptr_t)body, len } };
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * MSG_MAX_FDS)];
	} control = { 0 };
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = len ? 2 : 1 };
	if (n_fds) {
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	ssize_t n;
	do
		n = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return (size_t)n == sizeof h + len ? 0 : -EIO;
}

/* Descriptors that came, whatever else is wrong with the message: they must be closed. */
static void msg_collect_fds(struct msghdr *mh, struct msg *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
			if (m->n_fds < MSG_MAX_FDS)
				m->fd[m->n_fds++] = fd;
			else
				close(fd);
		}
	}
}

static bool msg_fd_is(int fd, enum msg_fd_kind kind)
{
	struct stat st;
	if (fstat(fd, &st))
		return false;
	switch (kind) {
	case MSG_FD_ANY: return true;
	case MSG_FD_FILE: return S_ISREG(st.st_mode);
	case MSG_FD_SOCKET: return S_ISSOCK(st.st_mode);
	case MSG_FD_PIPE: return S_ISFIFO(st.st_mode);
	}
	return false;
}

static bool msg_valid(const struct msg *m, const struct msg_spec *specs, unsigned n_specs)
{
	for (unsigned i = 0; i < n_specs; i++) {
		const struct msg_spec *s = &specs[i];
		if (s->type != m->type)
			continue;
		if (m->len < s->min_len || m->len > s->max_len || m->n_fds != s->n_fds)
			return false;
		for (unsigned k = 0; k < m->n_fds; k++)
			if (!msg_fd_is(m->fd[k], (enum msg_fd_kind)s->fd_kind[k]))
				return false;
		return true;
	}
	return false;
}

int msg_recv(int sock, struct msg *m, const struct msg_spec *specs, unsigned n_specs, bool dontwait)
{
	struct msg_header h = { 0 };
	struct iovec iov[2] = { { &h, sizeof h }, { m->body, sizeof m->body } };
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * MSG_MAX_FDS)];
	} control;
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2, .msg_control = control.buf,
			     .msg_controllen = sizeof control.buf };
	m->n_fds = 0;
	m->len = 0;
	ssize_t n;
	do
		n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC | (dontwait ? MSG_DONTWAIT : 0));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? 0 : -errno;
	msg_collect_fds(&mh, m);
	if (n == 0 && !m->n_fds)
		return 0;
	bool ok = !(mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && (size_t)n >= sizeof h && h.magic == MSG_HEADER_MAGIC &&
		  h.len == (size_t)n - sizeof h && h.n_fds == m->n_fds;
	m->type = h.type;
	m->len = h.len;
	if (!ok || !msg_valid(m, specs, n_specs)) {
		msg_close(m);
		return -EBADMSG;
	}
	return 1;
}

int msg_take_fd(struct msg *m, unsigned i)
{
	ASSERT(i < m->n_fds);
	int fd = m->fd[i];
	m->fd[i] = -1;
	return fd;
}

void msg_close(struct msg *m)
{
	for (unsigned i = 0; i < m->n_fds; i++)
		if (m->fd[i] >= 0)
			close(m->fd[i]);
	m->n_fds = 0;
}
