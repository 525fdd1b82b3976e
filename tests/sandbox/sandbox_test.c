/* Every role tries everything it must not be able to do, in its exact sandbox,
 * and has to die of SIGSYS (or, where a limit or a wall answers first, be
 * refused); then what it needs, which has to work.
 *
 * One process per attempt: stage 1 is done once per role, each attempt forks
 * from there, enters stage 2 and tries.  Run as root it becomes nobody. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../unit/check.h"
#include "core/sandbox.h"
#include "core/spawn.h"
#include "roles/roles.h"
#include "super/proto.h"

#define FD_SOCKET 20 /* an inherited socket, as the attack of doc/trust.md has one */
#define FD_EVENT 21
#define FD_EPOLL 22
#define FD_TIMER 23
#define FD_MEMFD 24

/* Return from the kernel's own probe trampolines: exempt from every filter since Linux 6.13, and of no use to
 * anybody else (they fail with a signal or ENXIO). */
#define NR_URETPROBE 335
#define NR_UPROBE 336

static const struct sandbox_policy *policy;
static pid_t victim; /* an unrelated process of the same user */
static void *page;

static const struct sandbox_policy *const all_policies[] = { &policy_vm, &policy_extract, &policy_session,
							     &policy_ttyguard };

/* --- one attempt --- */

enum outcome { DIED, SURVIVED, OTHER };

/* Runs fn in the sandbox in a child; *ret gets what it returned when it survived (0 or an errno, below 125). */
static enum outcome attempt(int (*fn)(const void *arg), const void *arg, int *ret)
{
	pid_t pid = fork();
	if (pid == 0) {
		struct sandbox_layers l;
		struct err e;
		if (sandbox_enter(policy, &l, &e)) {
			fprintf(stderr, "%s\n", e.text);
			syscall(SYS_exit_group, 126);
		}
		int r = fn(arg);
		syscall(SYS_exit_group, r & 127);
	}
	int ws = 0;
	while (waitpid(pid, &ws, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(ws) && WTERMSIG(ws) == SIGSYS)
		return DIED;
	*ret = WIFEXITED(ws) ? WEXITSTATUS(ws) : 128 + WTERMSIG(ws);
	return WIFEXITED(ws) && WEXITSTATUS(ws) != 126 ? SURVIVED : OTHER;
}

static int result(long r) { return r < 0 ? (errno < 125 ? errno : 124) : 0; }

/* --- by number --- */

static bool listed(u32 nr)
{
	for (unsigned i = 0; i < policy->n_rules; i++)
		if (policy->rules[i].nr == nr)
			return true;
	return false;
}

static int do_nr(const void *arg)
{
	/* Arguments that make most calls harmless should one pass. */
	return result(syscall(*(const long *)arg, -1l, -1l, -1l, -1l, -1l, -1l));
}

static void test_numbers(void)
{
	for (long nr = 0; nr <= 470; nr++) {
		if (listed((u32)nr) || nr == NR_URETPROBE || nr == NR_UPROBE)
			continue;
		int ret = 0;
		enum outcome o = attempt(do_nr, &nr, &ret);
		check_count++;
		if (o != DIED) {
			check_failed++;
			printf("%s: system call %ld was not fatal (%d)\n", policy->role, nr, ret);
		}
	}
	/* The x32 numbers of calls that are allowed. */
	for (long nr = 0; nr < 10; nr++) {
		long x32 = nr | 0x40000000;
		int ret = 0;
		CHECK(attempt(do_nr, &x32, &ret) == DIED);
	}
}

/* --- by argument --- */

struct call {
	const char *what;
	long nr;
	unsigned long a[6];
};

static int do_call(const void *arg)
{
	const struct call *c = arg;
	return result(syscall(c->nr, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]));
}

static int do_int80(const void *arg)
{
	long r;
	/* getpid (20) of the 32-bit table: another architecture to the filter. */
	__asm__ volatile("int $0x80" : "=a"(r) : "0"(20) : "memory", "r8", "r9", "r10", "r11");
	return r < 0 ? (int)-r & 127 : 0;
}

static int do_fork(const void *arg) { return result(fork()); }

static void *thread_main(void *arg) { return NULL; }

static int do_thread(const void *arg)
{
	pthread_t t;
	return pthread_create(&t, NULL, thread_main, NULL);
}

static int do_exec(const void *arg)
{
	char *argv[] = { "true", NULL };
	return result(execv("/bin/true", argv));
}

#define PAGE ((unsigned long)page)

static void test_arguments(void)
{
	const unsigned long big = 0x100000000ul; /* high halves must not hide a value the kernel reads as 32 bits */
	const struct call calls[] = {
		/* The attack: a signal to any process of the same user, through the owner of a descriptor. */
		{ "F_SETOWN", SYS_fcntl, { FD_SOCKET, F_SETOWN, (unsigned long)victim } },
		{ "F_SETOWN with high bits", SYS_fcntl, { FD_SOCKET, big | F_SETOWN, (unsigned long)victim } },
		{ "F_SETOWN_EX", SYS_fcntl, { FD_SOCKET, F_SETOWN_EX, PAGE } },
		{ "F_SETSIG", SYS_fcntl, { FD_SOCKET, F_SETSIG, SIGKILL } },
		{ "F_SETFL O_ASYNC", SYS_fcntl, { FD_SOCKET, F_SETFL, O_ASYNC } },
		{ "F_SETFL", SYS_fcntl, { FD_SOCKET, F_SETFL, 0 } },
		{ "F_DUPFD", SYS_fcntl, { FD_SOCKET, F_DUPFD, 0 } },
		{ "F_SETLEASE", SYS_fcntl, { FD_MEMFD, F_SETLEASE, F_WRLCK } },
		{ "F_NOTIFY", SYS_fcntl, { FD_MEMFD, F_NOTIFY, 1 } },
		{ "F_SETLK", SYS_fcntl, { FD_MEMFD, F_SETLK, PAGE } },
		{ "F_ADD_SEALS", SYS_fcntl, { FD_MEMFD, F_ADD_SEALS, F_SEAL_WRITE } },
		{ "F_SETPIPE_SZ", SYS_fcntl, { FD_MEMFD, F_SETPIPE_SZ, 1 << 20 } },
		{ "FIOASYNC", SYS_ioctl, { FD_SOCKET, FIOASYNC, PAGE } },
		{ "FIOSETOWN", SYS_ioctl, { FD_SOCKET, FIOSETOWN, PAGE } },
		{ "SIOCSPGRP", SYS_ioctl, { FD_SOCKET, SIOCSPGRP, PAGE } },
		{ "TIOCSTI", SYS_ioctl, { 0, TIOCSTI, PAGE } },
		{ "TIOCLINUX", SYS_ioctl, { 0, TIOCLINUX, PAGE } },
		{ "TIOCSCTTY", SYS_ioctl, { 0, TIOCSCTTY, 0 } },
		{ "TIOCSWINSZ", SYS_ioctl, { 0, TIOCSWINSZ, PAGE } },
		/* Executable memory. */
		{ "mmap exec", SYS_mmap, { 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1ul, 0 } },
		{ "mmap write+exec", SYS_mmap,
		  { 0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1ul, 0 } },
		{ "mmap of a file", SYS_mmap, { 0, 4096, PROT_READ, MAP_PRIVATE, FD_MEMFD, 0 } },
		{ "mmap of a file as anonymous", SYS_mmap,
		  { 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, FD_MEMFD, 0 } },
		{ "mmap shared", SYS_mmap, { 0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1ul, 0 } },
		{ "mmap growsdown prot", SYS_mmap,
		  { 0, 4096, PROT_READ | PROT_GROWSDOWN, MAP_PRIVATE | MAP_ANONYMOUS, -1ul, 0 } },
		{ "mprotect exec", SYS_mprotect, { PAGE, 4096, PROT_READ | PROT_EXEC } },
		{ "mprotect exec with high bits", SYS_mprotect, { PAGE, 4096, big | PROT_EXEC } },
		{ "mremap fixed", SYS_mremap, { PAGE, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, PAGE + 8192 } },
		{ "madvise remove", SYS_madvise, { PAGE, 4096, MADV_REMOVE } },
		{ "madvise hwpoison", SYS_madvise, { PAGE, 4096, MADV_HWPOISON } },
		/* Other processes. */
		{ "tgkill of another", SYS_tgkill, { (unsigned long)victim, (unsigned long)victim, SIGKILL } },
		{ "tgkill of all", SYS_tgkill, { -1ul, (unsigned long)victim, SIGKILL } },
		{ "kill", SYS_kill, { (unsigned long)victim, SIGKILL } },
		{ "tkill", SYS_tkill, { (unsigned long)victim, SIGKILL } },
		{ "rt_sigqueueinfo", SYS_rt_sigqueueinfo, { (unsigned long)victim, SIGKILL, PAGE } },
		{ "pidfd_open", SYS_pidfd_open, { (unsigned long)victim, 0 } },
		{ "pidfd_getfd", SYS_pidfd_getfd, { FD_SOCKET, 0, 0 } },
		{ "pidfd_send_signal", SYS_pidfd_send_signal, { FD_SOCKET, SIGKILL, 0, 0 } },
		{ "process_vm_writev", SYS_process_vm_writev, { (unsigned long)victim, PAGE, 1, PAGE, 1, 0 } },
		{ "ptrace", SYS_ptrace, { 16 /* ATTACH */, (unsigned long)victim } },
		{ "prlimit64", SYS_prlimit64, { (unsigned long)victim, RLIMIT_CPU, PAGE, 0 } },
		{ "sched_setaffinity", SYS_sched_setaffinity, { (unsigned long)victim, 8, PAGE } },
		{ "sched_getaffinity of another", SYS_sched_getaffinity, { (unsigned long)victim, 8, PAGE } },
		/* Processes, files, sockets, privileges. */
		{ "clone thread", SYS_clone, { 0x3d0f00, PAGE, 0, 0, 0 } },
		{ "clone process", SYS_clone, { SIGCHLD, 0, 0, 0, 0 } },
		{ "vfork", SYS_vfork, { 0 } },
		{ "clone3", SYS_clone3, { PAGE, 64 } },
		{ "open", SYS_open, { (unsigned long)"/etc/passwd", O_RDONLY } },
		{ "openat", SYS_openat, { (unsigned long)AT_FDCWD, (unsigned long)"/etc/passwd", O_RDONLY } },
		{ "newfstatat", SYS_newfstatat, { (unsigned long)AT_FDCWD, (unsigned long)"/etc/passwd", PAGE, AT_EMPTY_PATH } },
		{ "socket", SYS_socket, { AF_INET, SOCK_STREAM, 0 } },
		{ "connect", SYS_connect, { FD_SOCKET, PAGE, 16 } },
		{ "sendmsg elsewhere", SYS_sendmsg, { FD_SOCKET, PAGE, 0 } },
		{ "recvmsg elsewhere", SYS_recvmsg, { FD_SOCKET, PAGE, 0 } },
		{ "sendto with an address", SYS_sendto, { SESSION_FD_AGENT, PAGE, 1, 0, PAGE, 16 } },
		{ "prctl", SYS_prctl, { PR_SET_DUMPABLE, 1 } },
		{ "prctl death signal", SYS_prctl, { PR_SET_PDEATHSIG, 0 } },
		{ "seccomp", SYS_seccomp, { 0, 0, 0 } },
		{ "memfd_create", SYS_memfd_create, { PAGE, 0 } },
		{ "userfaultfd", SYS_userfaultfd, { 0 } },
		{ "io_uring_setup", SYS_io_uring_setup, { 1, PAGE } },
		{ "bpf", SYS_bpf, { 0, PAGE, 64 } },
		{ "perf_event_open", SYS_perf_event_open, { PAGE, 0, -1ul, -1ul, 0 } },
		{ "keyctl", SYS_keyctl, { 0 } },
		{ "shmget", SYS_shmget, { 0, 4096, 0600 } },
		{ "setrlimit", SYS_setrlimit, { RLIMIT_CORE, PAGE } },
		{ "unshare", SYS_unshare, { 0x10000000 } },
		{ "arch_prctl", SYS_arch_prctl, { 0x1002, PAGE } },
		{ "modify_ldt", SYS_modify_ldt, { 0, PAGE, 16 } },
		{ "personality", SYS_personality, { 0x0400000 /* READ_IMPLIES_EXEC */ } },
		{ "setsid", SYS_setsid, { 0 } },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
		int ret = 0;
		enum outcome o = attempt(do_call, &calls[i], &ret);
		check_count++;
		if (o != DIED) {
			check_failed++;
			printf("%s: %s was not fatal (%d)\n", policy->role, calls[i].what, ret);
		}
	}
	int ret = 0;
	CHECK(attempt(do_int80, NULL, &ret) == DIED);
	CHECK(attempt(do_fork, NULL, &ret) == DIED);
	CHECK(attempt(do_thread, NULL, &ret) == DIED);
	CHECK(attempt(do_exec, NULL, &ret) == DIED);
}

/* --- what must work --- */

static int do_needed(const void *arg)
{
	/* malloc in every size class, realloc, free. */
	for (size_t n = 1; n < 8 * MiB; n *= 3) {
		char *p = malloc(n);
		if (!p)
			return 1;
		p[n - 1] = 1;
		p = realloc(p, n * 2);
		if (!p)
			return 2;
		free(p);
	}
	struct timespec ts = { .tv_nsec = 1000 };
	nanosleep(&ts, NULL);
	if (syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts))
		return 3;
	struct stat st;
	if (fstat(FD_MEMFD, &st))
		return 4;
	char c;
	if (pread(FD_MEMFD, &c, 1, 0) != 1 || lseek(FD_MEMFD, 0, SEEK_SET))
		return 5;
	static struct msg m;
	static const struct msg_spec spec = { .type = 1, .max_len = 4 };
	if (msg_send(ROLE_FD_CONTROL, 1, "abcd", 4, NULL, 0))
		return 6;
	if (msg_recv(ROLE_FD_CONTROL, &m, &spec, 1, true) != -EAGAIN)
		return 7;
	signal(SIGUSR1, SIG_IGN);
	if (fcntl(FD_MEMFD, F_GETFL) < 0 || fcntl(FD_MEMFD, F_GET_SEALS) < 0)
		return 8;
	return 0;
}

static int do_needed_vm(const void *arg)
{
	struct epoll_event ev = { .events = EPOLLIN };
	if (epoll_ctl(FD_EPOLL, EPOLL_CTL_ADD, FD_EVENT, &ev) || epoll_wait(FD_EPOLL, &ev, 1, 0))
		return 1;
	u64 one = 1;
	if (write(FD_EVENT, &one, 8) != 8 || epoll_wait(FD_EPOLL, &ev, 1, 0) != 1)
		return 2;
	struct itimerspec its = { .it_value.tv_nsec = 1000 };
	if (timerfd_settime(FD_TIMER, 0, &its, NULL))
		return 3;
	signal(SIGUSR1, SIG_IGN);
	if (syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1))
		return 4;
	return do_needed(arg);
}

/* Files grow nowhere, not even a memfd it has. */
static int do_write_memfd(const void *arg)
{
	signal(SIGXFSZ, SIG_IGN);
	return write(FD_MEMFD, "x", 1) == 1 ? 0 : result(-1);
}

static void test_needed(void)
{
	int ret = 0;
	CHECK(attempt(do_needed, NULL, &ret) == SURVIVED);
	CHECK_EQ(ret, 0);
	if (policy == &policy_vm) {
		CHECK(attempt(do_needed_vm, NULL, &ret) == SURVIVED);
		CHECK_EQ(ret, 0);
	}
	if (policy == &policy_vm || policy == &policy_ttyguard) {
		CHECK(attempt(do_write_memfd, NULL, &ret) == SURVIVED);
		CHECK_EQ(ret, EFBIG);
	}
}

/* A thread that was there before is confined, too. */
static void *late_thread(void *arg)
{
	volatile int *go = arg;
	while (!*go)
		syscall(SYS_sched_yield);
	syscall(SYS_getppid);
	syscall(SYS_exit_group, 0);
	return NULL;
}

static void test_threads(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		static volatile int go;
		pthread_t t;
		struct sandbox_layers l;
		struct err e;
		if (pthread_create(&t, NULL, late_thread, (void *)(uintptr_t)&go) || sandbox_enter(policy, &l, &e))
			_exit(1);
		go = 1;
		for (;;)
			syscall(SYS_sched_yield);
	}
	int ws = 0;
	waitpid(pid, &ws, 0);
	CHECK(WIFSIGNALED(ws) && WTERMSIG(ws) == SIGSYS);
}

/* --- stage 1 --- */

static void test_stage1(void)
{
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	CHECK(prctl(PR_GET_DUMPABLE) == 0);
	int death = 0;
	CHECK(prctl(PR_GET_PDEATHSIG, &death) == 0);
	CHECK_EQ(death, policy->outlive ? 0 : SIGKILL);
	struct rlimit rl;
	CHECK(getrlimit(RLIMIT_CORE, &rl) == 0 && rl.rlim_max == 0);
	CHECK(getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_max == policy->max_fds);
}

static void test_role(void)
{
	/* A process of its own: stage 1 cannot be undone. */
	fflush(stdout);
	pid_t pid = fork();
	if (pid) {
		int ws = 0;
		waitpid(pid, &ws, 0);
		CHECK(WIFEXITED(ws) && WEXITSTATUS(ws) == 0);
		return;
	}
	check_count = check_failed = 0;
	struct sandbox_layers l;
	struct err e = { 0 };
	int r = sandbox_prepare(policy, &l, &e);
	CHECK(r == 0);
	if (r)
		printf("%s\n", e.text);
	test_stage1();
	test_needed();
	test_numbers();
	test_arguments();
	test_threads();
	printf("%s: landlock %d, namespaces %d: ", policy->role, l.landlock_abi, l.namespaces);
	exit(check_result());
}

int main(void)
{
	if (geteuid() == 0)
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			return 1;
	/* The descriptors a role may have. */
	int sv[2], st[2];
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, st) == 0);
	int mem = memfd_create("m", MFD_ALLOW_SEALING);
	CHECK(write(mem, "abc", 3) == 3);
	const int from[] = { st[0], eventfd(0, EFD_NONBLOCK), epoll_create1(0),
			     timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), mem };
	for (unsigned i = 0; i < ARRAY_SIZE(from); i++)
		CHECK(dup2(from[i], FD_SOCKET + (int)i) >= 0);
	int peer = fcntl(sv[1], F_DUPFD, 30);
	CHECK(dup2(fcntl(sv[0], F_DUPFD, 31), ROLE_FD_CONTROL) == ROLE_FD_CONTROL);
	CHECK(peer >= 0);
	page = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	victim = fork();
	if (victim == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	struct sandbox_layers l;
	struct err e = { 0 };
	CHECK(sandbox_probe(&l, &e) == 0);
	CHECK(l.seccomp && l.tsync && l.no_new_privs);
	for (unsigned i = 0; i < ARRAY_SIZE(all_policies); i++) {
		policy = all_policies[i];
		test_role();
	}
	CHECK(waitpid(victim, NULL, WNOHANG) == 0); /* nobody touched it */
	kill(victim, SIGKILL);
	return check_result();
}
