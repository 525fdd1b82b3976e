/* Pipes, socket pairs, unix sockets with descriptors, loopback TCP and UDP (checksums included), poll, epoll, eventfd. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "t.h"

enum { BULK = 3 << 20 };

/* The same bytes on both ends, of every length of piece. */
static void send_bulk(int fd, size_t total, int code)
{
	static u8 buf[70000];
	u64 seed = 5;
	size_t done = 0;
	while (done < total) {
		size_t n = 1 + t_random(&seed) % sizeof buf;
		if (n > total - done)
			n = total - done;
		for (size_t i = 0; i < n; i++)
			buf[i] = (u8)((done + i) * 131 >> 3);
		for (size_t at = 0; at < n;) {
			ssize_t w = write(fd, buf + at, n - at);
			CHECK(code, w > 0);
			at += (size_t)w;
		}
		done += n;
	}
}

static void receive_bulk(int fd, size_t total, int code)
{
	static u8 buf[50001];
	size_t done = 0;
	for (;;) {
		ssize_t n = read(fd, buf, sizeof buf);
		CHECK(code, n >= 0);
		if (!n)
			break;
		for (size_t i = 0; i < (size_t)n; i++)
			CHECK(code, buf[i] == (u8)((done + i) * 131 >> 3), "byte %zu", done + i);
		done += (size_t)n;
	}
	CHECK(code, done == total, "%zu of %zu", done, total);
}

static void transfer(int to, int from, int code)
{
	pid_t pid = fork();
	int status;
	if (!pid) {
		close(from);
		send_bulk(to, BULK, code);
		_exit(0);
	}
	close(to);
	receive_bulk(from, BULK, code + 1);
	CHECK(code, waitpid(pid, &status, 0) == pid && !status, "%#x", status);
	close(from);
}

static void tcp(int family, int code)
{
	struct sockaddr_storage a = { .ss_family = (sa_family_t)family };
	socklen_t n = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	if (family == AF_INET)
		((struct sockaddr_in *)&a)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		((struct sockaddr_in6 *)&a)->sin6_addr = in6addr_loopback;
	int l = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l < 0 && errno == EAFNOSUPPORT)
		return;
	CHECK(code, l >= 0);
	if (bind(l, (struct sockaddr *)&a, n) && family == AF_INET6 && errno == EADDRNOTAVAIL)
		return;
	CHECK(code + 1, !listen(l, 5) && !getsockname(l, (struct sockaddr *)&a, &n));
	int c = socket(family, SOCK_STREAM, 0), one = 1;
	CHECK(code + 2, !connect(c, (struct sockaddr *)&a, n));
	int s = accept(l, NULL, NULL);
	CHECK(code + 3, s >= 0 && !setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
	close(l);
	transfer(c, s, code + 4);
}

int main(void)
{
	int p[2], status;
	CHECK(1, !pipe2(p, O_CLOEXEC));
	transfer(p[1], p[0], 2);
	CHECK(4, !socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	transfer(p[1], p[0], 5);
	tcp(AF_INET, 10);
	tcp(AF_INET6, 20);
	/* UDP: sizes around every checksum remainder and a fragmented one */
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, from;
	socklen_t n = sizeof a;
	int u1 = socket(AF_INET, SOCK_DGRAM, 0), u2 = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(30, u1 >= 0 && u2 >= 0 && !bind(u1, (struct sockaddr *)&a, n) && !getsockname(u1, (struct sockaddr *)&a, &n));
	static u8 out[60000], in[60000];
	for (size_t i = 0; i < sizeof out; i++)
		out[i] = (u8)(i * 7 + (i >> 8));
	static const size_t sizes[] = { 0, 1, 2, 3, 63, 64, 65, 1471, 1472, 1473, 30000, 60000 };
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		CHECK(31, sendto(u2, out, sizes[i], 0, (struct sockaddr *)&a, sizeof a) == (ssize_t)sizes[i]);
		n = sizeof from;
		memset(in, 0xff, sizeof in);
		struct pollfd pf = { .fd = u1, .events = POLLIN };
		CHECK(32, poll(&pf, 1, 10000) == 1);
		CHECK(33, recvfrom(u1, in, sizeof in, 0, (struct sockaddr *)&from, &n) == (ssize_t)sizes[i]);
		CHECK(34, !memcmp(in, out, sizes[i]) && from.sin_addr.s_addr == a.sin_addr.s_addr);
	}
	CHECK(35, recv(u1, in, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	/* a descriptor through an abstract unix socket */
	struct sockaddr_un ua = { .sun_family = AF_UNIX, .sun_path = "\0t-sockets" };
	int l = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	CHECK(40, !bind(l, (struct sockaddr *)&ua, sizeof(sa_family_t) + 10) && !listen(l, 1));
	pid_t pid = fork();
	if (!pid) {
		int c = socket(AF_UNIX, SOCK_SEQPACKET, 0), q[2];
		if (connect(c, (struct sockaddr *)&ua, sizeof(sa_family_t) + 10) || pipe(q) || write(q[1], "through", 7) != 7)
			_exit(1);
		union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr h; } control = { 0 };
		struct iovec iov = { "fd", 2 };
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &q[0], sizeof(int));
		_exit(sendmsg(c, &m, 0) == 2 ? 0 : 2);
	}
	int s = accept(l, NULL, NULL), fd = -1;
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr h; } control;
	char text[16] = "";
	struct iovec iov = { text, sizeof text };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	CHECK(41, recvmsg(s, &m, 0) == 2 && CMSG_FIRSTHDR(&m));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	CHECK(42, read(fd, text, sizeof text) == 7 && !memcmp(text, "through", 7));
	CHECK(43, waitpid(pid, &status, 0) == pid && !status, "%#x", status);
	struct ucred cred;
	n = sizeof cred;
	CHECK(44, !getsockopt(s, SOL_SOCKET, SO_PEERCRED, &cred, &n) && cred.pid == pid);
	/* epoll with an eventfd, edge-triggered */
	int ep = epoll_create1(0), ev = eventfd(0, EFD_NONBLOCK);
	struct epoll_event e = { .events = EPOLLIN | EPOLLET, .data.u64 = 0x123456789abcdefull };
	CHECK(50, ep >= 0 && ev >= 0 && !epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e) && epoll_wait(ep, &e, 1, 0) == 0);
	u64 v = 5;
	CHECK(51, write(ev, &v, 8) == 8 && epoll_wait(ep, &e, 1, 1000) == 1 && e.data.u64 == 0x123456789abcdefull);
	CHECK(52, epoll_wait(ep, &e, 1, 0) == 0 && write(ev, &v, 8) == 8 && epoll_wait(ep, &e, 1, 0) == 1);
	CHECK(53, read(ev, &v, 8) == 8 && v == 10);
	/* splice and vectored writes through a pipe */
	CHECK(54, !pipe(p));
	struct iovec w[3] = { { "one", 3 }, { "", 0 }, { "three", 5 } };
	CHECK(55, writev(p[1], w, 3) == 8 && read(p[0], text, 16) == 8 && !memcmp(text, "onethree", 8));
	signal(SIGPIPE, SIG_IGN);
	close(p[0]);
	CHECK(56, write(p[1], "x", 1) == -1 && errno == EPIPE);
	return 0;
}
