/* libFuzzer entry: what roles say to the supervisor (core/msg.c, super/proto.c and its handlers), raw and in the form of
 * every known message, descriptors included.  Starting and killing processes and writing the report are replaced.
 *
 * Input: a byte of settings, then datagrams, each: a byte (index of the message in the table, 4 bits; sender; form), a byte of
 * length, so many bytes.  A known message is filled up with the last byte.  What follows the byte FORM_REPORT is the memory that the
 * vm left as its report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define report_write_file fuzz_report_write_file
#include "../../src/super/supervisor.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(c) do { if (!(c)) { fprintf(stderr, "fuzz_msg.c:%d: %s\n", __LINE__, #c); abort(); } } while (0)

enum { FROM_SESSION = 0x10, FORM_RAW = 0x20, FORM_LEN = 0x40, FORM_FDS = 0x80, FORM_REPORT = 0xff };

/* ---- in place of processes and files ---- */

int spawn_role(const struct spawn_config *cfg, struct spawned *out, struct err *e)
{
	(void)cfg;
	(void)out;
	return err_set(e, ENOSYS, "no processes here");
}
int spawn_arm_death(struct err *e) { return err_set(e, ENOSYS, "no processes here"); }
int spawn_reap(struct spawned *s, bool block, int *wstatus)
{
	(void)block;
	*wstatus = 0;
	s->pid = 0;
	return 0;
}
void spawn_kill(struct spawned *s) { (void)s; }
void spawn_describe(int wstatus, char *text, size_t size) { snprintf(text, size, "ended with %d", wstatus); }

static void check_line(const char *s, size_t size)
{
	CHECK(memchr(s, 0, size));
	for (; *s; s++)
		CHECK((u8)*s >= 0x20 && *s != 0x7f);
}

int fuzz_report_write_file(const char *header, const char *text, size_t len, char *path, size_t path_size, struct err *e)
{
	u32 sum = 0;
	CHECK(len <= REPORT_SIZE + PROTO_TAIL_MAX + 64);
	for (size_t i = 0; i < len; i++)
		sum += (u8)text[i]; /* all of it is there */
	for (const char *p = header; *p; p++)
		CHECK((u8)*p >= 0x20 || *p == '\n');
	if (sum == 1)
		return err_set(e, ENOSPC, "no room");
	snprintf(path, path_size, "/report");
	return 0;
}

static void check_log(void *arg, enum log_level level, const char *line)
{
	(void)arg;
	CHECK(level <= LOG_DEBUG);
	check_line(line, 4096);
}

/* ---- datagrams ---- */

/* A table that asks for descriptors, as no role's does today. */
static const struct msg_spec with_fds[] = {
	{ .type = 1, .name = "file and socket", .max_len = 8, .n_fds = 2, .fd_kind = { MSG_FD_FILE, MSG_FD_SOCKET } },
	{ .type = 2, .name = "pipe", .min_len = 4, .max_len = 4, .n_fds = 1, .fd_kind = { MSG_FD_PIPE } },
	{ .type = 3, .name = "many", .max_len = MSG_MAX_BODY, .n_fds = MSG_MAX_FDS },
};
static int file_fd = -1, pipe_fd[2];

static void send_raw(int sock, const void *p, size_t n, const int *fds, unsigned n_fds)
{
	struct iovec iov = { (void *)(uintptr_t)p, n };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 32)] = { 0 };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (n_fds) {
		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	(void)!sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Descriptors as the bytes say, up to more than a message may have. */
static unsigned pick_fds(int fds[32], const u8 *p, size_t n, int sock)
{
	unsigned k = 0;
	for (; k < n && k < 32; k++)
		fds[k] = p[k] % 3 == 0 ? file_fd : p[k] % 3 == 1 ? sock : pipe_fd[0];
	return k;
}

static void recv_with_fds(const u8 *p, size_t n)
{
	static struct msg m;
	int sv[2], fds[32];
	if (n < 4)
		return;
	CHECK(!msg_pair(sv));
	unsigned n_fds = pick_fds(fds, p + 4, p[1] % 33 < n - 4 ? p[1] % 33 : n - 4, sv[0]);
	struct { u32 magic, type, len, n_fds; u8 body[64 + 4]; } d = { 0x4d424d55, p[0] % 5, p[2] % 65, n_fds + (p[3] == 1), { 0 } };
	send_raw(sv[0], &d, 16 + d.len + (p[3] == 2), fds, n_fds);
	int r = msg_recv(sv[1], &m, with_fds, ARRAY_SIZE(with_fds), true);
	CHECK(r == 1 || r == -EBADMSG);
	if (r == 1) {
		CHECK(m.type >= 1 && m.type <= ARRAY_SIZE(with_fds));
		const struct msg_spec *s = &with_fds[m.type - 1];
		CHECK(m.len >= s->min_len && m.len <= s->max_len && m.n_fds == s->n_fds);
		int taken = msg_take_fd(&m, 0);
		CHECK(taken >= 0 && !close(taken));
		msg_close(&m);
	}
	CHECK(!m.n_fds);
	close(sv[0]);
	close(sv[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (file_fd < 0) {
		file_fd = memfd_create("file", 0);
		CHECK(file_fd >= 0 && !pipe(pipe_fd));
		log_set_level(LOG_DEBUG);
		log_set_sink(check_log, NULL);
	}
	if (size < 1)
		return 0;
	int lowest = dup(file_fd);
	close(lowest);

	static struct super s;
	static struct super_result res;
	static u8 buf[16 + MSG_MAX_BODY + 8];
	const struct super_config cfg = { .kernel_name = "kernel", .cmdline = "", .memory = 512 * MiB, .cpus = 1, .exit_by_vm = data[0] & 1,
					  .checkpoint_fd = -1, .stdin_fd = -1 };
	int vm[2], session[2];
	memset(&s, 0, sizeof s);
	memset(&res, 0, sizeof res);
	CHECK(!msg_pair(vm) && !msg_pair(session) && !loop_create(&s.loop));
	s.cfg = &cfg;
	s.res = &res;
	s.vm = (struct super_peer){ .name = "vm", .proc = { .pid = 2, .pidfd = -1 }, .sock = vm[0] };
	s.session = (struct super_peer){ .name = "session", .proc = { .pid = 3, .pidfd = -1 }, .sock = session[0] };
	s.ram_fd = s.kernel_fd = s.trace_fd = s.checkpoint_fd = s.report_fd = -1;
	loop_timer_init(&s.timer, s.loop, super_on_timer, &s);

	const u8 *p = data + 1, *end = data + size;
	while (end - p >= 2 && *p != FORM_REPORT) {
		u8 op = *p++;
		size_t n = *p++;
		if (n > (size_t)(end - p))
			n = (size_t)(end - p);
		bool of_session = op & FROM_SESSION;
		int sock = of_session ? session[1] : vm[1], *at = of_session ? &s.session.sock : &s.vm.sock;
		if ((op & (FORM_FDS | FORM_RAW)) == (FORM_FDS | FORM_RAW)) {
			recv_with_fds(p, n);
		} else if (op & FORM_RAW) {
			send_raw(sock, p, n, NULL, 0);
		} else {
			const struct msg_spec *specs = of_session ? proto_from_session : proto_from_vm;
			const struct msg_spec *m = &specs[(op & 15) % (of_session ? proto_from_session_n : proto_from_vm_n)];
			u32 len = m->min_len == m->max_len ? m->max_len : n ? p[0] * 33u : 0;
			if (op & FORM_LEN)
				len += n ? p[n - 1] : 1;
			if (len > MSG_MAX_BODY)
				len = MSG_MAX_BODY;
			const u32 head[4] = { 0x4d424d55, m->type, len, op & FORM_FDS ? 1 : 0 };
			memcpy(buf, head, sizeof head);
			memset(buf + 16, n ? p[n - 1] : 0, MSG_MAX_BODY);
			memcpy(buf + 16, p, n);
			send_raw(sock, buf, 16 + len, &pipe_fd[0], op & FORM_FDS ? 1 : 0);
		}
		p += n;
		if (*at >= 0)
			(of_session ? super_on_session : super_on_vm)(&s, *at, EPOLLIN);
	}
	if (data[0] & 2)
		s.vm.proc.pid = 0;
	super_judge(&s);
	if (end - p > 1) {
		s.report_fd = memfd_create("report", 0);
		CHECK(s.report_fd >= 0 && !ftruncate(s.report_fd, REPORT_SIZE) && pwrite(s.report_fd, p + 1, (size_t)(end - p - 1), 0) >= 0);
		super_write_report(&s);
		close(s.report_fd);
	}

	check_line(res.error, sizeof res.error);
	CHECK(!res.error[0] || res.status == SUPER_STATUS_FAILED);
	CHECK(!s.have_status || (s.status >= 0 && s.status <= 255));
	CHECK(!(s.have_status && res.error[0]));
	CHECK(res.n_stats <= SUPER_MAX_STATS && s.tail_len <= sizeof s.tail);
	for (unsigned i = 0; i < res.n_stats; i++)
		check_line(res.stat[i].name, sizeof res.stat[i].name);

	loop_timer_cancel(&s.timer);
	loop_destroy(s.loop);
	super_close(&s.vm.sock);
	super_close(&s.session.sock);
	close(vm[1]);
	close(session[1]);
	int now = dup(file_fd); /* no descriptor was left open */
	CHECK(now == lowest);
	close(now);
	return 0;
}
