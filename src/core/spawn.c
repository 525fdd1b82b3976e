#include "core/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A descriptor of this very executable, so that a role is the same program
 * even when the file was replaced meanwhile. */
static int spawn_executable(struct err *e)
{
	int fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	if (fd < 0) { /* no /proc: the path the kernel started us with */
		const char *path = (const char *)(uintptr_t)getauxval(AT_EXECFN);
		fd = path ? open(path, O_PATH | O_CLOEXEC) : -1;
	}
	if (fd < 0)
		return err_sys(e, errno, "cannot open umbra's own executable");
	return fd;
}

static void spawn_close_from(unsigned first)
{
	if (syscall(__NR_close_range, first, ~0u, 0) == 0)
		return;
	struct rlimit rl; /* before Linux 5.9 */
	unsigned end = 65536;
	if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_max != RLIM_INFINITY && rl.rlim_max > end)
		end = (unsigned)rl.rlim_max;
	for (unsigned fd = first; fd < end; fd++)
		close((int)fd);
}

/* Between fork and exec: async-signal-safe calls only.  Returns errno. */
static int spawn_child(const struct spawn_config *cfg, int exe, int *status_pipe, pid_t parent, const char *role_arg)
{
	if (cfg->new_session && setsid() < 0)
		return errno;
	/* Signals the supervisor ignores or blocks are its own affair. */
	for (int s = 1; s < NSIG; s++)
		if (s != SIGKILL && s != SIGSTOP)
			signal(s, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	if (!cfg->outlive) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL))
			return errno;
		if (getppid() != parent)
			return ESRCH;
	}

	/* Out of the way of the target numbers first, then into place. */
	int high[SPAWN_MAX_FDS];
	exe = fcntl(exe, F_DUPFD_CLOEXEC, 2 * SPAWN_MAX_FDS);
	int pipe_high = fcntl(*status_pipe, F_DUPFD_CLOEXEC, 2 * SPAWN_MAX_FDS);
	if (exe < 0 || pipe_high < 0)
		return errno;
	*status_pipe = pipe_high;
	for (unsigned i = 0; i < cfg->n_fds; i++) {
		high[i] = fcntl(cfg->fds[i].from, F_DUPFD_CLOEXEC, 2 * SPAWN_MAX_FDS);
		if (high[i] < 0)
			return errno;
	}
	for (int fd = 0; fd < 2 * SPAWN_MAX_FDS; fd++)
		close(fd);
	for (unsigned i = 0; i < cfg->n_fds; i++)
		if (dup2(high[i], cfg->fds[i].to) < 0)
			return errno;
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return ENODEV; /* the lowest free number is fd: 0 … fd-1 are open */
	if (dup3(exe, SPAWN_MAX_FDS, O_CLOEXEC) < 0 || dup3(pipe_high, SPAWN_MAX_FDS + 1, O_CLOEXEC) < 0)
		return errno;
	*status_pipe = SPAWN_MAX_FDS + 1;
	spawn_close_from(SPAWN_MAX_FDS + 2);

	char *argv[] = { "umbra", (char *)(uintptr_t)role_arg, NULL };
	char *envp[] = { NULL };
	syscall(__NR_execveat, SPAWN_MAX_FDS, "", argv, envp, AT_EMPTY_PATH);
	return errno;
}

int spawn_role(const struct spawn_config *cfg, struct spawned *out, struct err *e)
{
	ASSERT(cfg->n_fds <= SPAWN_MAX_FDS);
	for (unsigned i = 0; i < cfg->n_fds; i++)
		ASSERT(cfg->fds[i].to >= 0 && cfg->fds[i].to < SPAWN_MAX_FDS);
	*out = (struct spawned){ .pidfd = -1 };
	char role_arg[64];
	snprintf(role_arg, sizeof role_arg, "--role=%s", cfg->role);
	int exe = spawn_executable(e);
	if (exe < 0)
		return exe;
	int sp[2];
	if (pipe2(sp, O_CLOEXEC)) {
		int r = err_sys(e, errno, "cannot start the %s process", cfg->role);
		close(exe);
		return r;
	}
	/* No signal handler of ours may run in the child. */
	sigset_t all, old;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	pid_t parent = getpid();
	pid_t pid = fork();
	if (pid == 0) {
		int failed = spawn_child(cfg, exe, &sp[1], parent, role_arg);
		if (write(sp[1], &failed, sizeof failed) != sizeof failed)
			_exit(126);
		_exit(125);
	}
	int fork_errno = errno;
	sigprocmask(SIG_SETMASK, &old, NULL);
	close(exe);
	close(sp[1]);
	if (pid < 0) {
		close(sp[0]);
		int r = err_sys(e, fork_errno, "cannot start the %s process", cfg->role);
		if (fork_errno == EAGAIN)
			err_hint(e, "raise the limit of processes: ulimit -u");
		return r;
	}
	int failed = 0;
	ssize_t n;
	do
		n = read(sp[0], &failed, sizeof failed);
	while (n < 0 && errno == EINTR);
	close(sp[0]);
	if (n != 0) {
		waitpid(pid, NULL, 0);
		failed = n == sizeof failed ? failed : EIO;
		int r = err_sys(e, failed == EINVAL ? EMFILE : failed, "cannot start the %s process", cfg->role);
		if (failed == EINVAL || failed == EMFILE) /* F_DUPFD says EINVAL for numbers above the limit */
			err_hint(e, "raise the limit of open files: ulimit -n 256");
		return r;
	}
	int pidfd = (int)syscall(__NR_pidfd_open, pid, 0);
	if (pidfd < 0) {
		int r = err_sys(e, errno, "cannot watch the %s process", cfg->role);
		err_hint(e, "umbra needs Linux 5.3 or newer");
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return r;
	}
	*out = (struct spawned){ .pid = pid, .pidfd = pidfd };
	return 0;
}

int spawn_arm_death(struct err *e)
{
	/* The signal is armed since before exec, so the parent of this moment is the one that started us. */
	static pid_t parent;
	if (!parent)
		parent = getppid();
	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		return err_sys(e, errno, "cannot ask for a signal at the supervisor's death");
	if (getppid() != parent)
		_exit(125);
	return 0;
}

int spawn_reap(struct spawned *s, bool block, int *wstatus)
{
	if (!s->pid)
		return -ECHILD;
	pid_t r;
	do
		r = waitpid(s->pid, wstatus, block ? 0 : WNOHANG);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	if (r == 0)
		return -EAGAIN;
	s->pid = 0;
	close(s->pidfd);
	s->pidfd = -1;
	return 0;
}

void spawn_kill(struct spawned *s)
{
	if (s->pid && syscall(__NR_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0))
		kill(s->pid, SIGKILL); /* not reaped, so the number is still its */
}

void spawn_describe(int wstatus, char *text, size_t size)
{
	if (WIFEXITED(wstatus)) {
		snprintf(text, size, "exited with status %d", WEXITSTATUS(wstatus));
	} else if (WIFSIGNALED(wstatus)) {
		const char *name = sigabbrev_np(WTERMSIG(wstatus));
		snprintf(text, size, "was killed by signal %d (SIG%s)", WTERMSIG(wstatus), name ? name : "?");
	} else {
		snprintf(text, size, "ended with status %#x", (unsigned)wstatus);
	}
}
