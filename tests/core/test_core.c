/* core: every part that can be tried inside one process (and spawn, with this
 * program as its own role). */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <errno.h>
#include <string.h>

#include "../unit/check.h"
#include "core/error.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/msg.h"
#include "core/ram.h"
#include "core/report.h"
#include "core/sha256.h"
#include "core/spawn.h"
#include "core/trace.h"
#include "core/tsc.h"

static void test_error(void)
{
	struct err e;
	CHECK_EQ(err_sys(&e, ENOENT, "cannot open %s", "a\nb\033"), -ENOENT);
	CHECK(!strcmp(e.text, "cannot open a?b?: No such file or directory"));
	err_hint(&e, "name %d", 3);
	CHECK(!strcmp(e.text, "cannot open a?b?: No such file or directory (name 3)"));
	CHECK_EQ(err_set(NULL, 0, "x"), -EINVAL);
	char big[2000];
	memset(big, 'x', sizeof big - 1);
	big[sizeof big - 1] = 0;
	err_set(&e, 1, "%s", big);
	err_hint(&e, "%s", big);
	CHECK_EQ(strlen(e.text), sizeof e.text - 1);
}

static void test_sha256(void)
{
	/* FIPS 180-4 examples. */
	static const struct {
		const char *text, *hex;
	} v[] = {
		{ "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
		int fd = memfd_create("t", MFD_CLOEXEC);
		CHECK(write(fd, v[i].text, strlen(v[i].text)) == (ssize_t)strlen(v[i].text));
		char hex[65];
		CHECK_EQ(sha256_fd(fd, hex), 0);
		CHECK(!strcmp(hex, v[i].hex));
		close(fd);
	}
	/* Plain C and the CPU's extensions agree (where there are none, both are the former). */
	static u8 much[100000];
	for (unsigned i = 0; i < sizeof much; i++)
		much[i] = (u8)(i * i >> 3);
	for (unsigned n = sizeof much - 130; n <= sizeof much; n++) {
		u8 sum[2][32];
		for (unsigned k = 0; k < 2; k++) {
			struct sha256 s;
			sha256_init(&s);
			s.ni = s.ni && k;
			sha256_update(&s, much, n);
			sha256_final(&s, sum[k]);
		}
		CHECK(!memcmp(sum[0], sum[1], 32));
	}
	/* Any way of cutting the input gives the same. */
	u8 data[300], one[32], two[32];
	for (unsigned i = 0; i < sizeof data; i++)
		data[i] = (u8)(i * 7);
	for (unsigned n = 0; n <= sizeof data; n += 13) {
		struct sha256 s;
		sha256_init(&s);
		sha256_update(&s, data, n);
		sha256_final(&s, one);
		sha256_init(&s);
		for (unsigned i = 0; i < n; i++)
			sha256_update(&s, data + i, 1);
		sha256_final(&s, two);
		CHECK(!memcmp(one, two, 32));
	}
}

static void test_ram(void)
{
	int fd = ram_memfd_create("t", 4 * PAGE_SIZE);
	CHECK(fd >= 0);
	CHECK_EQ(ram_memfd_check(fd, 4 * PAGE_SIZE), 0);
	CHECK_EQ(ram_memfd_check(fd, 5 * PAGE_SIZE), -EFBIG);
	CHECK(ftruncate(fd, 0) < 0 && errno == EPERM);
	int plain = memfd_create("p", MFD_CLOEXEC);
	CHECK_EQ(ram_memfd_check(plain, 0), -EPERM);
	close(plain);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(ram_memfd_check(null, 0) < 0);
	close(null);

	struct ram r = { 0 };
	CHECK_EQ(ram_add(&r, 1, GPA(0x3000), 2 * PAGE_SIZE, fd, 2 * PAGE_SIZE, false), 0);
	CHECK_EQ(ram_add(&r, 0, GPA(0x1000), 2 * PAGE_SIZE, fd, 0, false), 0);
	CHECK_EQ(ram_add(&r, 2, GPA(0x2000), PAGE_SIZE, fd, 0, false), -EEXIST);
	CHECK_EQ(ram_add(&r, 2, GPA(0x4000), 4 * PAGE_SIZE, fd, 0, false), -EEXIST);
	CHECK_EQ(ram_add(&r, 2, GPA(0x8001), PAGE_SIZE, fd, 0, false), -EINVAL);
	CHECK_EQ(ram_add(&r, 2, GPA(0x8000), 0, fd, 0, false), -EINVAL);
	CHECK_EQ(ram_add(&r, 2, GPA(0x8000), 5 * PAGE_SIZE, fd, 0, false), -EINVAL); /* beyond the memfd */
	CHECK_EQ(ram_add(&r, 2, GPA(~PAGE_MASK ? ~0xfffull : 0), 2 * PAGE_SIZE, fd, 0, false), -EINVAL);
	CHECK_EQ(r.n, 2);
	CHECK_EQ(r.slot[0].gpa.v, 0x1000);
	char buf[64], back[64];
	memset(buf, 'a', sizeof buf);
	CHECK(ram_write(&r, GPA(0x3000 - 32), buf, 64)); /* across slots */
	CHECK(ram_read(&r, GPA(0x3000 - 32), back, 64) && !memcmp(buf, back, 64));
	CHECK(!ram_ptr(&r, GPA(0x3000 - 32), 64));
	CHECK(ram_ptr(&r, GPA(0x3000), 64) != NULL);
	CHECK(!ram_write(&r, GPA(0x5000 - 32), buf, 64));
	CHECK(ram_read(&r, GPA(0x5000 - 32), back, 32) && back[0] == 0); /* nothing was written */
	CHECK(!ram_read(&r, GPA(0), back, 1));
	CHECK(!ram_read(&r, GPA(~0ull), back, 2));
	CHECK(!ram_ptr(&r, GPA(0x1000), ~0ull));
	ram_destroy(&r);
	close(fd);
}

struct loop_test {
	struct loop *loop;
	struct loop_timer t[3];
	struct loop_event ev;
	int order[8], n;
	int pipe[2];
	int events;
};

static void on_t0(void *arg) { struct loop_test *t = arg; t->order[t->n++] = 0; }
static void on_t1(void *arg) { struct loop_test *t = arg; t->order[t->n++] = 1; loop_timer_cancel(&t->t[2]); }
static void on_t2(void *arg) { struct loop_test *t = arg; t->order[t->n++] = 2; }
static void on_ev(void *arg) { struct loop_test *t = arg; t->events++; loop_stop(t->loop); }

static void *signaller(void *arg)
{
	struct loop_test *t = arg;
	struct timespec ts = { .tv_nsec = 30000000 };
	nanosleep(&ts, NULL);
	loop_event_signal(&t->ev);
	return NULL;
}

static void on_pipe(void *arg, int fd, u32 events)
{
	struct loop_test *t = arg;
	char c;
	CHECK(read(fd, &c, 1) == 1);
	t->order[t->n++] = 9;
	loop_remove(t->loop, fd);
}

static void test_loop(void)
{
	struct loop_test t = { 0 };
	CHECK_EQ(loop_create(&t.loop), 0);
	loop_timer_init(&t.t[0], t.loop, on_t0, &t);
	loop_timer_init(&t.t[1], t.loop, on_t1, &t);
	loop_timer_init(&t.t[2], t.loop, on_t2, &t);
	u64 now = loop_now_ns();
	loop_timer_set(&t.t[2], now + 15000000);
	loop_timer_set(&t.t[0], now + 20000000);
	loop_timer_set(&t.t[1], now + 5000000);
	loop_timer_set(&t.t[0], now + 2000000); /* moved before the others */
	CHECK_EQ(loop_event_init(&t.ev, t.loop, on_ev, &t), 0);
	CHECK_EQ(pipe2(t.pipe, O_CLOEXEC), 0);
	CHECK_EQ(loop_add(t.loop, t.pipe[0], EPOLLIN, on_pipe, &t), 0);
	CHECK_EQ(loop_add(t.loop, t.pipe[0], EPOLLIN, on_pipe, &t), -EEXIST);
	CHECK(write(t.pipe[1], "xy", 2) == 2);
	pthread_t th;
	pthread_create(&th, NULL, signaller, &t);
	CHECK_EQ(loop_run(t.loop), 0);
	pthread_join(th, NULL);
	CHECK_EQ(t.events, 1);
	CHECK_EQ(t.n, 3); /* pipe once, timers 0 and 1; 2 was cancelled */
	CHECK(t.order[0] == 9 && t.order[1] == 0 && t.order[2] == 1);
	/* Idle means asleep. */
	struct timespec c0, c1;
	loop_timer_set(&t.t[0], loop_now_ns() + 50000000);
	t.t[0].fn = on_ev;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c0);
	CHECK_EQ(loop_run(t.loop), 0);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c1);
	CHECK((c1.tv_sec - c0.tv_sec) * 1000000000l + c1.tv_nsec - c0.tv_nsec < 2000000);
	loop_event_destroy(&t.ev);
	loop_destroy(t.loop);
	close(t.pipe[0]);
	close(t.pipe[1]);
}

static unsigned open_fds(void)
{
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* A raw datagram, as a hostile peer sends it. */
static void send_raw(int sock, const void *p, size_t n, const int *fds, unsigned n_fds)
{
	struct iovec iov = { (void *)(uintptr_t)p, n };
	char control[CMSG_SPACE(sizeof(int) * 32)] = { 0 };
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
	CHECK(sendmsg(sock, &mh, 0) == (ssize_t)n);
}

static void test_msg(void)
{
	static const struct msg_spec specs[] = {
		{ .type = 1, .min_len = 4, .max_len = 8 },
		{ .type = 2, .n_fds = 2, .fd_kind = { MSG_FD_FILE, MSG_FD_PIPE } },
	};
	static struct msg m;
	int sv[2], p[2];
	CHECK_EQ(msg_pair(sv), 0);
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	int file = memfd_create("t", MFD_CLOEXEC);
	unsigned before = open_fds();
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EAGAIN);
	CHECK_EQ(msg_send(sv[0], 1, "abcdef", 6, NULL, 0), 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), 1);
	CHECK(m.type == 1 && m.len == 6 && !memcmp(m.body, "abcdef", 6));
	CHECK_EQ(msg_send(sv[0], 2, NULL, 0, (int[]){ file, p[0] }, 2), 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), 1);
	CHECK_EQ(m.n_fds, 2);
	CHECK(fcntl(m.fd[0], F_GETFD) & FD_CLOEXEC);
	int taken = msg_take_fd(&m, 0);
	msg_close(&m);
	CHECK_EQ(open_fds(), before + 1);
	close(taken);
	/* Refused: too short, too long, unknown type, wrong number and kind of descriptors; nothing leaks. */
	msg_send(sv[0], 1, "abc", 3, NULL, 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	msg_send(sv[0], 1, "abcdefghi", 9, NULL, 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	msg_send(sv[0], 3, NULL, 0, NULL, 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	msg_send(sv[0], 1, "abcd", 4, (int[]){ file }, 1);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	msg_send(sv[0], 2, NULL, 0, (int[]){ p[0], file }, 2);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	msg_send(sv[0], 2, NULL, 0, (int[]){ file }, 1);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	/* Not our framing at all; more descriptors than fit. */
	send_raw(sv[0], "x", 1, NULL, 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	int many[24];
	for (unsigned i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = file;
	u8 junk[64] = { 0 };
	send_raw(sv[0], junk, sizeof junk, many, ARRAY_SIZE(many));
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	static u8 huge[MSG_MAX_BODY + 4096];
	send_raw(sv[0], huge, sizeof huge, NULL, 0);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	/* An empty datagram with descriptors is not an end of file. */
	send_raw(sv[0], "", 0, many, 3);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), -EBADMSG);
	CHECK_EQ(open_fds(), before);
	CHECK_EQ(msg_send(sv[0], 1, huge, MSG_MAX_BODY + 1, NULL, 0), -EMSGSIZE);
	/* A peer that does not read does not stop us. */
	int r = 0;
	for (int i = 0; i < 100000 && !r; i++)
		r = msg_send(sv[0], 1, "abcd", 4, NULL, 0);
	CHECK_EQ(r, -EAGAIN);
	while (msg_recv(sv[1], &m, specs, 2, true) == 1)
		;
	close(sv[0]);
	CHECK_EQ(msg_recv(sv[1], &m, specs, 2, true), 0);
	CHECK_EQ(msg_send(sv[1], 1, "abcd", 4, NULL, 0), -EPIPE);
	close(sv[1]);
	close(p[0]);
	close(p[1]);
	close(file);
}

/* What a freshly started role finds, as one line on descriptor 3. */
static int role_probe(void)
{
	extern char **environ;
	char line[256];
	int death = 0;
	prctl(PR_GET_PDEATHSIG, &death);
	u64 fds = 0;
	for (int fd = 0; fd < 64; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			fds |= BIT(fd);
	int n = snprintf(line, sizeof line, "fds=%llx env=%d death=%d sid=%d", (unsigned long long)fds, environ[0] != NULL,
			 death, getsid(0) == getpid());
	return write(3, line, (size_t)n) == n ? 7 : 1;
}

static void test_spawn(void)
{
	int p[2], wstatus;
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	int secret = open("/dev/zero", O_RDONLY); /* deliberately not close-on-exec */
	struct spawned s;
	struct err e;
	struct spawn_fd fds[] = { { p[1], 3 }, { p[0], 5 } };
	struct spawn_config cfg = { .role = "probe", .fds = fds, .n_fds = 2, .new_session = true };
	unsigned before = open_fds();
	CHECK_EQ(spawn_role(&cfg, &s, &e), 0);
	CHECK_EQ(open_fds(), before + 1);
	CHECK_EQ(spawn_reap(&s, true, &wstatus), 0);
	CHECK_EQ(open_fds(), before);
	CHECK(WIFEXITED(wstatus) && WEXITSTATUS(wstatus) == 7);
	char line[256] = "", want[256];
	CHECK(read(p[0], line, sizeof line - 1) > 0);
	snprintf(want, sizeof want, "fds=2f env=0 death=%d sid=1", SIGKILL);
	CHECK(!strcmp(line, want));
	/* Kill and describe. */
	cfg.role = "sleep";
	CHECK_EQ(spawn_role(&cfg, &s, &e), 0);
	CHECK_EQ(spawn_reap(&s, false, &wstatus), -EAGAIN);
	spawn_kill(&s);
	CHECK_EQ(spawn_reap(&s, true, &wstatus), 0);
	char how[64];
	spawn_describe(wstatus, how, sizeof how);
	CHECK(!strcmp(how, "was killed by signal 9 (SIGKILL)"));
	spawn_kill(&s);
	/* A descriptor that is not there. */
	fds[0].from = 200;
	CHECK_EQ(spawn_role(&cfg, &s, &e), -EBADF);
	CHECK(strstr(e.text, "cannot start the sleep process: Bad file descriptor"));
	CHECK_EQ(open_fds(), before);
	close(secret);
	close(p[0]);
	close(p[1]);
}

/* The death of whoever spawned kills the role. */
static void test_death(void)
{
	int p[2];
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct spawned s;
		struct err e;
		struct spawn_fd fds[] = { { p[1], 3 } };
		struct spawn_config cfg = { .role = "sleep", .fds = fds, .n_fds = 1, .new_session = true };
		_exit(spawn_role(&cfg, &s, &e) ? 1 : (pause(), 0));
	}
	close(p[1]);
	char c;
	CHECK(read(p[0], &c, 1) == 1); /* the role runs */
	kill(pid, SIGKILL);
	CHECK(read(p[0], &c, 1) == 0); /* and is gone: nobody holds the pipe */
	waitpid(pid, NULL, 0);
	close(p[0]);
}

static void test_tsc(void)
{
	struct tsc_info a, b;
	struct err e;
	u64 t0 = loop_now_ns();
	CHECK_EQ(tsc_calibrate(NULL, &a, &e), 0);
	u64 took = loop_now_ns() - t0;
	CHECK(took < 200000000); /* 20 ms and scheduling */
	struct tsc_moment m;
	tsc_moment(&m);
	struct timespec ts = { .tv_nsec = 300000000 };
	nanosleep(&ts, NULL);
	CHECK_EQ(tsc_calibrate(&m, &b, &e), 0); /* 15 times the window: 15 times as exact */
	u64 diff = a.khz > b.khz ? a.khz - b.khz : b.khz - a.khz;
	CHECK(diff * 1000000u <= b.khz * 20);
	printf("tsc: %llu kHz, source %d, error < %u ppm, invariant %d; over 300 ms %llu kHz\n", (unsigned long long)a.khz,
	       a.source, a.error_ppm, a.invariant, (unsigned long long)b.khz);
}

static void test_trace(void)
{
	u64 mask;
	struct err e;
	CHECK_EQ(trace_parse_list("all", &mask, &e), 0);
	CHECK_EQ(mask, MASK(TRACE_EVENT_COUNT) & ~BIT(TRACE_BLOCK));
	CHECK_EQ(trace_parse_list("irq,page-fault", &mask, &e), 0);
	CHECK(mask & BIT(TRACE_INTERRUPT) && mask & BIT(TRACE_PAGE_FAULT) && !(mask & BIT(TRACE_CR3)));
	CHECK_EQ(trace_parse_list("irq,,x", &mask, &e), -EINVAL);
	CHECK(strstr(e.text, "groups: all life exit"));
	u64 size = TRACE_SIZE(TRACE_MAX_RINGS);
	int fd = ram_memfd_create("trace", size);
	CHECK(trace_map(fd, size) == NULL); /* no header yet */
	struct trace *t = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	trace_init(t, TRACE_MAX_RINGS, BIT(TRACE_MARK), 1000000);
	munmap(t, size);
	t = trace_map(fd, size);
	CHECK(t != NULL);
	trace_emit(t, TRACE_CR3, 0, 1, 2, 3); /* not wanted */
	for (u64 i = 0; i < TRACE_RING_RECORDS + 10; i++)
		trace_emit(t, TRACE_MARK, i == 40 ? 1 : 0, i, 0, 0);
	t->ring[2].head = 1;
	t->ring[2].rec[0].event = 999; /* rubbish is printed, not believed */
	trace_emit(NULL, TRACE_MARK, 0, 1, 2, 3);
	int out = memfd_create("out", MFD_CLOEXEC);
	CHECK_EQ(trace_decode(fd, out, &e), 0);
	struct stat st;
	fstat(out, &st);
	char *text = malloc((size_t)st.st_size + 1);
	CHECK(pread(out, text, (size_t)st.st_size, 0) == st.st_size);
	text[st.st_size] = 0;
	CHECK(strstr(text, "; 9 older events were") || strstr(text, " 9 older"));
	CHECK(strstr(text, "event-999") != NULL);
	unsigned lines = 0;
	for (char *p = text; *p; p++)
		lines += *p == '\n';
	CHECK_EQ(lines, TRACE_RING_RECORDS + 1 + 1 + 1);
	free(text);
	CHECK(trace_decode(out, out, &e) < 0);
	munmap(t, size);
	close(fd);
	close(out);
}

static void test_report(void)
{
	int fd = ram_memfd_create("report", REPORT_SIZE);
	struct report *r = report_map(fd);
	CHECK(r != NULL);
	report_reset(r);
	report_cause(r, "first %d", 1);
	report_cause(r, "second");
	CHECK(!strcmp(r->cause, "first 1"));
	for (int i = 0; i < 100000; i++)
		report_printf(r, "line %d\n", i);
	CHECK(r->len < REPORT_SIZE - sizeof *r);
	CHECK(r->text[r->len] == 0);
	report_done(r);
	char dir[] = "/tmp/umbra-core-test-XXXXXX", path[512];
	CHECK(mkdtemp(dir) != NULL);
	setenv("XDG_STATE_HOME", dir, 1);
	struct err e;
	CHECK_EQ(report_write_file("head\n", "a\033b\n", 4, path, sizeof path, &e), 0);
	CHECK(!strncmp(path, dir, strlen(dir)));
	char buf[32] = "";
	int f = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(read(f, buf, sizeof buf - 1) == 9 && !strcmp(buf, "head\na?b\n"));
	struct stat st;
	CHECK(fstat(f, &st) == 0 && (st.st_mode & 0777) == 0600);
	close(f);
	char cmd[600];
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	CHECK_EQ(system(cmd), 0);
	/* No state directory: /tmp. */
	setenv("XDG_STATE_HOME", "/proc/nowhere", 1);
	CHECK_EQ(report_write_file("head\n", "", 0, path, sizeof path, &e), 0);
	CHECK(!strncmp(path, "/tmp/umbra-", 11));
	unlink(path);
	munmap(r, REPORT_SIZE);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--role=probe"))
		return role_probe();
	if (argc > 1 && !strcmp(argv[1], "--role=sleep")) {
		if (write(3, "r", 1) != 1)
			return 1;
		pause();
		return 0;
	}
	signal(SIGPIPE, SIG_IGN);
	test_error();
	test_sha256();
	test_ram();
	test_loop();
	test_msg();
	test_spawn();
	test_death();
	test_tsc();
	test_trace();
	test_report();
	return check_result();
}
