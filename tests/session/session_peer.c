/* Both ends of the agent protocol against each other, without a VM: a session
 * (this process's child) and the guest's agent as an ordinary process, over a
 * socket pair that stands for the serial port.  This process plays the supervisor.
 *
 *   session_peer AGENT [-t] [-n] [-s SIGNAL:MS] [-x FILE] [-e N=V] [-d DIR] [--] [COMMAND [ARG…]]
 *
 * stdin, stdout and stderr are the session's; the exit status is the command's.  -n: no stdin;
 * -x: the bytes of FILE instead of an agent, for what a hostile guest may say. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session/session.h"
#include "super/proto.h"

static _Noreturn void die(const char *what)
{
	perror(what);
	_exit(99);
}

int main(int argc, char **argv)
{
	u32 flags = SESSION_STDIN, sig = 0;
	int sig_ms = -1;
	const char *cwd = "", *script = NULL;
	char *env[64];
	u32 n_env = 0;
	if (argc < 2)
		return 99;
	const char *agent = argv[1];
	optind = 2;
	for (int c; (c = getopt(argc, argv, "+tns:x:e:d:")) >= 0;)
		switch (c) {
		case 't': flags |= SESSION_TTY; break;
		case 'n': flags &= ~(u32)SESSION_STDIN; break;
		case 's':
			if (sscanf(optarg, "%u:%d", &sig, &sig_ms) != 2)
				return 99;
			break;
		case 'x': script = optarg; break;
		case 'e': env[n_env++ % 64] = optarg; break;
		case 'd': cwd = optarg; break;
		default: return 99;
		}
	argv += optind;
	argc -= optind;
	if (argc && !strcmp(argv[0], "--")) {
		argv++;
		argc--;
	}

	static char run[AGENT_RUN_MAX];
	struct agent_run r = { .flags = (flags & SESSION_TTY ? AGENT_RUN_TTY : 0) | (flags & SESSION_STDIN ? 0 : AGENT_RUN_NO_STDIN), .winsize = { 24, 80 },
			       .argc = (u32)argc, .envc = n_env };
	memcpy(run, &r, sizeof r);
	size_t len = sizeof r;
	const char *fixed[] = { "", cwd, "" };
	for (unsigned i = 0; i < 3 + (unsigned)argc + n_env; i++) {
		const char *s = i < 3 ? fixed[i] : i < 3 + (unsigned)argc ? argv[i - 3] : env[i - 3 - (unsigned)argc];
		if (len + strlen(s) + 1 > sizeof run)
			return 99;
		strcpy(run + len, s);
		len += strlen(s) + 1;
	}

	int link[2], console[2], control[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) || msg_pair(control))
		die("socketpair");
	pid_t guest = fork();
	if (!guest && script) {
		int fd = open(script, O_RDONLY);
		close(link[0]);
		close(control[0]); /* else nobody sees its end */
		close(control[1]);
		char buf[4096];
		for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
			if (write(link[1], buf, (size_t)n) != n)
				break;
		shutdown(link[1], SHUT_WR);
		while (read(link[1], buf, sizeof buf) > 0)
			;
		_exit(0);
	}
	if (!guest) {
		char number[16];
		snprintf(number, sizeof number, "%d", link[1]);
		fcntl(link[1], F_SETFD, 0);
		execl(agent, agent, "--serve", number, (char *)NULL);
		die(agent);
	}
	close(link[1]);
	pid_t session = fork();
	if (!session) {
		close(console[1]);
		close(control[1]);
		struct session_fds fds = { 0, 1, 2, control[0], console[0], link[0] };
		struct session_config cfg = { SESSION_CONFIG_MAGIC, flags, (u32)len };
		session_init(&fds, &cfg, run);
		session_loop();
		_exit(0);
	}
	close(link[0]);
	close(control[0]);
	int status = 98;
	for (;;) {
		struct pollfd p = { .fd = control[1], .events = POLLIN };
		if (!poll(&p, 1, sig_ms)) {
			struct proto_signal ps = { sig };
			msg_send(control[1], PROTO_SESSION_SIGNAL, &ps, sizeof ps, NULL, 0);
			sig_ms = -1;
			continue;
		}
		static struct msg m;
		if (msg_recv(control[1], &m, proto_from_session, proto_from_session_n, false) <= 0)
			break;
		if (m.type == PROTO_SESSION_EXITED) {
			struct proto_exited x;
			memcpy(&x, m.body, sizeof x);
			status = (int)x.status;
		} else if (m.type == PROTO_SESSION_FAILED) {
			fprintf(stderr, "session: %.500s\n", (char *)m.body);
			status = 125;
		} else {
			continue;
		}
		msg_send(control[1], PROTO_SESSION_STOP, NULL, 0, NULL, 0);
	}
	kill(guest, SIGKILL);
	waitpid(guest, NULL, 0);
	waitpid(session, NULL, 0);
	return status;
}
