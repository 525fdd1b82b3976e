/* Processes: fork, vfork, exec, wait in all its forms, exit codes, orphans, process groups, pipes' EOF with them. */
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "t.h"

static int shared_var = 1;

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "child"))
		return atoi(argv[2]);
	if (argc > 3)
		return argc - 100;
	int status;
	for (int i = 0; i < 40; i++) {
		pid_t pid = fork();
		CHECK(1, pid >= 0);
		if (!pid) {
			shared_var += i;
			_exit(shared_var & 63);
		}
		CHECK(2, waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == ((i + 1) & 63), "%#x", status);
	}
	CHECK(3, shared_var == 1);
	for (int i = 0; i < 10; i++) {
		char text[16];
		snprintf(text, sizeof text, "%d", 40 + i);
		pid_t pid = i & 1 ? fork() : vfork();
		if (!pid) {
			execl("/proc/self/exe", "x", "child", text, (char *)NULL);
			_exit(111);
		}
		CHECK(4, waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 40 + i, "%#x", status);
	}
	/* a big argument list: 100 strings of 1000 bytes */
	char *args[104], *long_string = malloc(1001);
	memset(long_string, 'x', 1000);
	long_string[1000] = 0;
	for (int i = 0; i < 103; i++)
		args[i] = long_string;
	args[103] = NULL;
	pid_t pid = fork();
	if (!pid) {
		execv("/proc/self/exe", args);
		_exit(111);
	}
	CHECK(5, waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%#x", status);
	CHECK(6, execl("/nosuch", "x", (char *)NULL) == -1 && errno == ENOENT);
	/* death by signal */
	for (int s = 1; s < 16; s++) {
		if (s == SIGSTKFLT)
			continue;
		pid = fork();
		if (!pid) {
			struct rlimit none = { 0, 0 };
			setrlimit(RLIMIT_CORE, &none);
			signal(s, SIG_DFL);
			raise(s);
			pause();
		}
		CHECK(7, waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == s, "signal %d %#x", s, status);
	}
	/* stop and continue; the child lives until it has been seen to go on */
	int p[2];
	char c;
	CHECK(8, !pipe(p));
	pid = fork();
	if (!pid) {
		raise(SIGSTOP);
		_exit(read(p[0], &c, 1) == 1 ? 9 : 1);
	}
	CHECK(8, waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	CHECK(9, !kill(pid, SIGCONT) && waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status), "%#x", status);
	CHECK(10, write(p[1], "x", 1) == 1 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 9);
	close(p[0]);
	close(p[1]);
	/* many at once, collected in any order */
	for (int i = 0; i < 30; i++) {
		pid = fork();
		if (!pid) {
			sched_yield();
			_exit(i);
		}
		CHECK(11, pid > 0);
	}
	u64 seen = 0;
	while ((pid = wait(&status)) > 0)
		seen |= 1ull << WEXITSTATUS(status);
	CHECK(12, errno == ECHILD && seen == (1ull << 30) - 1, "%#" PRIx64, seen);
	/* orphans come to the subreaper */
	CHECK(13, !prctl(PR_SET_CHILD_SUBREAPER, 1));
	CHECK(14, !pipe(p));
	pid = fork();
	if (!pid) {
		pid_t parent = getpid();
		if (!fork()) {
			while (getppid() == parent)
				sched_yield();
			_exit(write(p[1], "o", 1) == 1 ? 21 : 22);
		}
		_exit(20);
	}
	CHECK(15, waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 20);
	CHECK(16, (pid = wait(&status)) > 0 && WEXITSTATUS(status) == 21);
	close(p[1]);
	CHECK(17, read(p[0], &c, 1) == 1 && read(p[0], &c, 1) == 0);
	struct rusage ru;
	CHECK(18, !getrusage(RUSAGE_CHILDREN, &ru) && ru.ru_minflt > 0);
	/* a process sees its own, not its child's, memory after fork, both ways, page by page */
	enum { N = 64 };
	u8 *m = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < N; i++)
		m[i * PAGE] = (u8)i;
	int q[2];
	CHECK(19, !pipe(p) && !pipe(q));
	pid = fork();
	if (!pid) {
		for (unsigned i = 0; i < N; i += 2)
			m[i * PAGE] = 0xee;
		if (write(p[1], "x", 1) != 1 || read(q[0], &c, 1) != 1)
			_exit(1);
		for (unsigned i = 0; i < N; i++)
			if (m[i * PAGE] != (i & 1 ? i : 0xee))
				_exit(2);
		_exit(0);
	}
	CHECK(20, read(p[0], &c, 1) == 1);
	for (unsigned i = 0; i < N; i++) {
		CHECK(21, m[i * PAGE] == i);
		m[i * PAGE] = 0xdd;
	}
	CHECK(22, write(q[1], "x", 1) == 1 && waitpid(pid, &status, 0) == pid && status == 0, "%#x", status);
	return 0;
}
