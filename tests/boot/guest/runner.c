/* Runs the programs of this test one after the other, in the guest or natively:
 * runner [-t SECONDS] DIR [NAME...].  Without names: every executable of DIR but itself, sorted.
 * One line each on stdout: "NAME STATUS MILLISECONDS", where STATUS is the exit
 * code, or sigN, or timeout.  Exit status: the number of failures, at most 99. */
#include <dirent.h>
#include <sys/prctl.h>

#include "t.h"

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool run(const char *dir, const char *name, unsigned seconds)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	u64 start = t_now_ns(CLOCK_MONOTONIC);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setpgid(0, 0);
		execl(path, path, (char *)NULL);
		perror(path);
		_exit(127);
	}
	setpgid(pid, pid);
	char status[32];
	siginfo_t si = { 0 };
	sigset_t chld;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	for (;;) {
		if (!waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG) && si.si_pid == pid)
			break;
		if (t_now_ns(CLOCK_MONOTONIC) - start > seconds * 1000000000ull) {
			kill(-pid, SIGKILL);
			kill(pid, SIGKILL);
			waitid(P_PID, (id_t)pid, &si, WEXITED);
			si.si_code = 0;
			break;
		}
		struct timespec second = { .tv_sec = 1 };
		sigtimedwait(&chld, NULL, &second);
	}
	kill(-pid, SIGKILL); /* what it left behind */
	if (!si.si_code)
		strcpy(status, "timeout");
	else if (si.si_code == CLD_EXITED)
		snprintf(status, sizeof status, "%d", si.si_status);
	else
		snprintf(status, sizeof status, "sig%d", si.si_status);
	printf("%s %s %" PRIu64 "\n", name, status, (t_now_ns(CLOCK_MONOTONIC) - start) / 1000000);
	return si.si_code == CLD_EXITED && !si.si_status;
}

int main(int argc, char **argv)
{
	unsigned seconds = 60;
	if (argc > 2 && !strcmp(argv[1], "-t")) {
		seconds = (unsigned)atoi(argv[2]);
		argc -= 2;
		argv += 2;
	}
	if (argc < 2)
		return 100;
	sigset_t chld;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	char *names[100];
	int n = 0, failed = 0;
	if (argc > 2) {
		for (int i = 2; i < argc && n < 100; i++)
			names[n++] = argv[i];
	} else {
		DIR *d = opendir(argv[1]);
		if (!d)
			return 101;
		for (struct dirent *e; (e = readdir(d)) && n < 100;)
			if (e->d_name[0] != '.' && strcmp(e->d_name, "runner") && !strchr(e->d_name, '.'))
				names[n++] = strdup(e->d_name);
		closedir(d);
		qsort(names, (size_t)n, sizeof *names, by_name);
	}
	for (int i = 0; i < n; i++)
		failed += !run(argv[1], names[i], seconds);
	printf("done %d of %d\n", n - failed, n);
	return failed > 99 ? 99 : failed;
}
