/* The life of a VM with stand-ins for its roles: whatever process dies or
 * misbehaves in whatever way, super_run() comes back soon with the right
 * status and one line, and no process, descriptor or file is left.
 *
 * This program is its own roles (--role=…).  What the fake vm and session do
 * is in the kernel command line and the session's configuration. */
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <errno.h>
#include <string.h>

#include "../unit/check.h"
#include "core/loop.h"
#include "core/report.h"
#include "roles/roles.h"
#include "super/proto.h"
#include "super/super.h"

/* --- the fake roles --- */

static struct msg m;

static void say(u32 type, const void *body, u32 len) { (void)msg_send(ROLE_FD_CONTROL, type, body, len, NULL, 0); }

static void fake_end(u32 ending, u32 code, const char *text)
{
	struct proto_vm_ended x = { .ending = ending, .code = code };
	snprintf(x.text, sizeof x.text, "%s", text);
	say(PROTO_VM_ENDED, &x, sizeof x);
	_exit(0);
}

static bool word(const char *list, const char *w)
{
	const char *p = strstr(list, w);
	return p && (p[strlen(w)] == 0 || p[strlen(w)] == ' ');
}

static int fake_vm(void)
{
	if (msg_recv(ROLE_FD_CONTROL, &m, proto_to_vm, proto_to_vm_n, false) != 1)
		return 1;
	struct proto_vm_config c;
	memcpy(&c, m.body, sizeof c);
	if (word(c.cmdline, "early-exit"))
		return 3;
	if (word(c.cmdline, "setup-fails")) {
		struct proto_failed f = { .errnum = ENOEXEC, .text = "cannot load\033 the kernel: bad" };
		say(PROTO_FAILED, &f, sizeof f);
		return 125;
	}
	say(PROTO_VM_READY, NULL, 0);
	struct report *r = report_map(VM_FD_REPORT);
	if (word(c.cmdline, "crash")) {
		report_reset(r);
		report_cause(r, "internal error: assertion x failed");
		report_printf(r, "rip 1234\n");
		raise(SIGSEGV);
	}
	if (word(c.cmdline, "hostile-report")) {
		memset(r, 0xff, REPORT_SIZE);
		r->magic = REPORT_MAGIC;
		raise(SIGKILL);
	}
	if (word(c.cmdline, "malformed"))
		say(PROTO_VM_ENDED, "x", 1);
	if (word(c.cmdline, "flood"))
		for (;;) {
			struct proto_log l = { .level = 3, .text = "flood" };
			say(PROTO_LOG, &l, sizeof l);
		}
	if (word(c.cmdline, "triple"))
		fake_end(PROTO_END_TRIPLE_FAULT, 0, "triple fault at rip ffffffff81000000");
	if (word(c.cmdline, "poweroff"))
		fake_end(PROTO_END_POWEROFF, 0, "");
	if (word(c.cmdline, "code"))
		fake_end(PROTO_END_EXIT_CODE, 43, "");
	if (word(c.cmdline, "talk")) { /* what fits the socket, for the session to write out after our end */
		static char buf[65536];
		memset(buf, 't', sizeof buf);
		fcntl(VM_FD_CONSOLE, F_SETFL, 0);
		for (int i = 0; i < 1; i++)
			if (write(VM_FD_CONSOLE, buf, sizeof buf) < 0)
				return 9;
		fake_end(PROTO_END_POWEROFF, 0, "");
	}
	/* Otherwise as a guest does: until told, or until the session's agent socket says so. */
	while (msg_recv(ROLE_FD_CONTROL, &m, proto_to_vm, proto_to_vm_n, false) == 1) {
		if (word(c.cmdline, "deaf"))
			continue;
		struct proto_stats st = { .n = 1, .stat = { { "insns", 77 } } };
		say(PROTO_VM_STATS, &st, sizeof st);
		fake_end(PROTO_END_STOPPED, 0, "");
	}
	if (word(c.cmdline, "deaf"))
		pause();
	return 0;
}

static int fake_session(void)
{
	char what[128] = "";
	(void)!pread(SESSION_FD_CONFIG, what, sizeof what - 1, 0);
	if (word(what, "dies"))
		raise(SIGBUS);
	if (word(what, "leaves"))
		return 0;
	if (word(what, "started") || word(what, "exits"))
		say(PROTO_SESSION_STARTED, NULL, 0);
	if (word(what, "exits")) {
		struct proto_exited x = { .status = 42 };
		say(PROTO_SESSION_EXITED, &x, sizeof x);
	}
	if (word(what, "bad-status")) {
		struct proto_exited x = { .status = 4242 };
		say(PROTO_SESSION_EXITED, &x, sizeof x);
	}
	if (word(what, "fails")) {
		struct proto_text t = { .text = "the agent spoke nonsense" };
		say(PROTO_SESSION_FAILED, &t, sizeof t);
	}
	for (;;) {
		int r = msg_recv(ROLE_FD_CONTROL, &m, proto_to_session, proto_to_session_n, false);
		if (r != 1)
			return 1;
		if (m.type == PROTO_SESSION_SIGNAL && word(what, "obeys")) {
			struct proto_signal sig;
			memcpy(&sig, m.body, sizeof sig);
			struct proto_exited x = { .status = 128 + sig.signo };
			say(PROTO_SESSION_EXITED, &x, sizeof x);
		}
		if (m.type == PROTO_SESSION_STOP) {
			static char buf[65536];
			ssize_t n;
			fcntl(SESSION_FD_CONSOLE, F_SETFL, 0);
			while ((n = read(SESSION_FD_CONSOLE, buf, sizeof buf)) > 0)
				if (write(1, buf, (size_t)n) != n)
					return 1;
			return 0;
		}
	}
}

/* --- the supervisor under test --- */

static int kernel_fd;

static struct super_config config(const char *vm, const char *session)
{
	int sfd = memfd_create("session", MFD_CLOEXEC);
	CHECK(write(sfd, session, strlen(session)) >= 0);
	return (struct super_config){ .kernel_fd = kernel_fd, .kernel_name = "fake", .initrd_fd = -1, .cmdline = vm,
				      .memory = 16 * MiB, .cpus = 1, .session_fd = sfd, .stdin_fd = 0, .stdout_fd = 1,
				      .stderr_fd = 2, .trace_fd = -1, .checkpoint_fd = -1, .grace_ns = 50000000 };
}

static unsigned open_fds(void)
{
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void run(const char *vm, const char *session, bool by_vm, int status, const char *error)
{
	static struct super_result res;
	struct super_config cfg = config(vm, session);
	cfg.exit_by_vm = by_vm;
	unsigned before = open_fds();
	u64 t0 = loop_now_ns();
	int got = super_run(&cfg, &res);
	u64 ms = (loop_now_ns() - t0) / 1000000;
	close(cfg.session_fd);
	bool ok = got == status && (error ? strstr(res.error, error) != NULL : !res.error[0]);
	check_count++;
	if (!ok) {
		check_failed++;
		fprintf(stderr, "vm '%s' session '%s': status %d, error '%s'; wanted %d, '%s'\n", vm, session, got, res.error,
			status, error ? error : "");
	}
	CHECK(ms < 10000); /* the longest wait of a supervisor is 1 s; the machine may be busy */
	CHECK_EQ(open_fds() + 1, before);
	CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD); /* this process is a subreaper: orphans would be here */
	if (res.report[0])
		CHECK_EQ(unlink(res.report), 0);
}

static void test_endings(void)
{
	run("ok", "started exits", false, 42, NULL);
	run("deaf", "started exits", false, 42, NULL);
	run("poweroff", "", true, 0, NULL);
	run("code", "", true, 43, NULL);
	run("code", "", false, 125, "exit code 43 before the command had ended");
	run("poweroff", "started", false, 125, "the guest powered off before the command had ended");
	run("triple", "started", false, 125, "triple fault at rip ffffffff81000000 (report: /");
	run("crash", "started", false, 125, "killed by signal 11 (SIGSEGV): internal error: assertion x failed (report: /");
	run("hostile-report", "started", false, 125, "signal 9 (SIGKILL)");
	run("early-exit", "", false, 125, "exited with status 3");
	run("setup-fails", "", false, 125, "cannot load? the kernel: bad");
	run("malformed", "started", false, 125, "malformed message");
	run("ok", "dies", false, 125, "its session process was killed by signal 7 (SIGBUS)");
	run("ok", "leaves", false, 125, "ended before the command");
	run("ok", "leaves", true, 0, NULL);
	run("ok", "fails", false, 125, "the agent spoke nonsense");
	run("ok", "bad-status", false, 125, "session process sent a malformed message");
	run("flood", "started exits", false, 42, NULL);
}

static void test_stats_and_limits(void)
{
	static struct super_result res;
	struct super_config cfg = config("ok", "exits");
	CHECK_EQ(super_run(&cfg, &res), 42);
	bool seen = false;
	for (unsigned i = 0; i < res.n_stats; i++)
		seen |= !strcmp(res.stat[i].name, "insns") && res.stat[i].value == 77;
	CHECK(seen);
	close(cfg.session_fd);

	cfg = config("ok", "started");
	cfg.timeout_ns = 100000000;
	CHECK_EQ(super_run(&cfg, &res), 125);
	CHECK(strstr(res.error, "time limit"));
	cfg.memory = 1ull << 50;
	CHECK_EQ(super_run(&cfg, &res), 125);
	CHECK(strstr(res.error, "cannot give the VM"));
	cfg.memory = 16 * MiB;
	int dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cfg.kernel_fd = dir;
	CHECK_EQ(super_run(&cfg, &res), 125);
	CHECK(strstr(res.error, "not a regular file"));
	close(dir);
	close(cfg.session_fd);
}

/* All that the VM's console said is written, though the vm role is gone. */
static void test_drain(void)
{
	static struct super_result res;
	struct super_config cfg = config("talk", "");
	cfg.exit_by_vm = true;
	cfg.stdout_fd = memfd_create("out", MFD_CLOEXEC);
	CHECK_EQ(super_run(&cfg, &res), 0);
	struct stat st;
	CHECK(fstat(cfg.stdout_fd, &st) == 0);
	CHECK_EQ(st.st_size, 65536);
	close(cfg.stdout_fd);
	close(cfg.session_fd);
}

/* Starts a supervisor in a child; returns its pid. */
static pid_t start_supervisor(const char *vm, const char *session, int tty)
{
	struct super_config cfg = config(vm, session);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_CHILD_SUBREAPER, 0);
		static struct super_result res;
		if (tty >= 0) {
			cfg.stdin_fd = tty;
			cfg.raw_tty = true;
		}
		int r = super_run(&cfg, &res);
		_exit(r);
	}
	close(cfg.session_fd);
	return pid;
}

static void sleep_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
	nanosleep(&ts, NULL);
}

/* Everything below us is gone within 2 s. */
static bool all_gone(void)
{
	for (int i = 0; i < 200; i++) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD)
			return true;
		sleep_ms(10);
	}
	return false;
}

/* Children of a process, from /proc. */
static unsigned children(pid_t pid, pid_t *out, unsigned max)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
	FILE *f = fopen(path, "r");
	unsigned n = 0;
	while (f && n < max && fscanf(f, "%d", &out[n]) == 1)
		n++;
	if (f)
		fclose(f);
	return n;
}

/* Waits until a supervisor has so many children with the role's name, that is, past exec; false: it took too long. */
static bool wait_children(pid_t sup, unsigned want, pid_t kids[8])
{
	for (int i = 0; i < 500; i++) {
		unsigned n = children(sup, kids, 8), roles_up = 0;
		for (unsigned k = 0; k < n; k++) {
			char path[64], line[64] = "";
			snprintf(path, sizeof path, "/proc/%d/cmdline", kids[k]);
			int fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd >= 0 && read(fd, line, sizeof line - 1) > 6 && !strcmp(line, "umbra"))
				roles_up++;
			if (fd >= 0)
				close(fd);
		}
		if (roles_up == want) {
			sleep_ms(100); /* their first messages */
			return true;
		}
		sleep_ms(10);
	}
	return false;
}

static void test_kill(void)
{
	/* The supervisor. */
	pid_t sup = start_supervisor("deaf", "started", -1);
	pid_t kids[8];
	CHECK(wait_children(sup, 2, kids));
	kill(sup, SIGKILL);
	CHECK(all_gone());
	/* Each role. */
	for (unsigned i = 0; i < 2; i++) {
		sup = start_supervisor("ok", "started", -1);
		bool up = wait_children(sup, 2, kids);
		CHECK(up);
		kill(up ? kids[i] : sup, SIGKILL);
		int wstatus = 0;
		CHECK(waitpid(sup, &wstatus, 0) == sup);
		CHECK(WIFEXITED(wstatus) && WEXITSTATUS(wstatus) == 125);
		CHECK(all_gone());
	}
	/* In the middle of starting. */
	for (int ms = 0; ms < 40; ms += 4) {
		sup = start_supervisor("deaf", "started", -1);
		sleep_ms(ms);
		kill(sup, SIGKILL);
		CHECK(all_gone());
	}
}

static void test_signals(void)
{
	static const struct {
		const char *vm, *session;
		unsigned times;
		int status;
	} t[] = { { "ok", "", 1, 128 + SIGTERM }, { "ok", "started obeys", 1, 128 + SIGTERM },
		  { "ok", "started", 3, 128 + SIGTERM }, { "flood", "", 1, 128 + SIGTERM } };
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		pid_t sup = start_supervisor(t[i].vm, t[i].session, -1), kids[8];
		CHECK(wait_children(sup, 2, kids));
		for (unsigned k = 0; k < t[i].times; k++) {
			kill(sup, SIGTERM);
			sleep_ms(20);
		}
		int wstatus = 0;
		CHECK(waitpid(sup, &wstatus, 0) == sup);
		CHECK(WIFEXITED(wstatus));
		CHECK_EQ(WEXITSTATUS(wstatus), t[i].status);
		CHECK(all_gone());
	}
}

static bool is_raw(int tty)
{
	struct termios tio;
	return tcgetattr(tty, &tio) == 0 && !(tio.c_lflag & ICANON);
}

static void test_terminal(void)
{
	int master, slave;
	CHECK_EQ(openpty(&master, &slave, NULL, NULL, NULL), 0);
	fcntl(master, F_SETFD, FD_CLOEXEC);
	fcntl(slave, F_SETFD, FD_CLOEXEC);
	CHECK(!is_raw(slave));
	/* 0: the supervisor, 1 …: its children in turn, -1: an ordinary end. */
	for (int victim = -1; victim < 4; victim++) {
		pid_t sup = start_supervisor("ok", victim < 0 ? "exits" : "started", slave), kids[8];
		if (victim >= 0) {
			bool up = wait_children(sup, 3, kids); /* session, vm, ttyguard */
			CHECK(up);
			CHECK(is_raw(slave));
			if (victim == 0 || !up)
				kill(sup, SIGKILL);
			else
				kill(kids[victim - 1], SIGKILL);
			if (victim == 3) { /* the guard alone is not the VM */
				sleep_ms(50);
				CHECK(is_raw(slave));
				kill(sup, SIGTERM);
				sleep_ms(50);
				kill(sup, SIGTERM);
				kill(sup, SIGTERM);
				sleep_ms(50);
				kill(sup, SIGTERM);
			}
		}
		CHECK(all_gone());
		CHECK(!is_raw(slave));
	}
	close(master);
	close(slave);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--role=vm"))
		return fake_vm();
	if (argc > 1 && !strcmp(argv[1], "--role=session"))
		return fake_session();
	if (argc > 1 && !strcmp(argv[1], "--role=ttyguard")) {
		struct role r = { "ttyguard", role_ttyguard, &policy_ttyguard };
		return role_ttyguard(&r);
	}
	char dir[] = "/tmp/umbra-super-test-XXXXXX";
	CHECK(mkdtemp(dir) != NULL);
	CHECK_EQ(chmod(dir, 0777), 0);
	if (geteuid() == 0)
		CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
	setenv("XDG_STATE_HOME", dir, 1);
	setenv("XDG_CACHE_HOME", dir, 1);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	kernel_fd = memfd_create("kernel", MFD_CLOEXEC);
	CHECK(write(kernel_fd, "\177ELF", 4) == 4);
	test_endings();
	test_stats_and_limits();
	test_drain();
	test_signals();
	test_kill();
	test_terminal();
	char cmd[100];
	snprintf(cmd, sizeof cmd, "rm -rf %s/*; test -z \"$(ls %s)\"", dir, dir);
	CHECK_EQ(system(cmd), 0);
	rmdir(dir);
	return check_result();
}
