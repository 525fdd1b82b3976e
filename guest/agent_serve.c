/* The agent's end of the protocol (core/agent_proto.h): one poll loop between
 * the link to the host and the command's descriptors.
 *
 * Nothing here blocks.  Towards the host everything goes through one buffer,
 * into which a stream is only read as far as the host gave credit; from the
 * host, stdin goes into a buffer as large as the credit we gave, so frames
 * behind it (signals) are always reached. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "core/agent_proto.h"

#define OUT_SIZE (64u << 10)
#define CREDIT_STEP (AGENT_STREAM_WINDOW / 4) /* returned in steps: fewer frames, never less than 3/4 of the window */
#define LINK_STEP (AGENT_LINK_WINDOW / 2)

struct agent {
	int link;
	const char *broken; /* what the host did wrong; ends everything */

	/* Towards the host. */
	u8 out[OUT_SIZE];
	size_t out_start, out_end;
	u8 out_seq;
	u32 give[AGENT_STREAMS]; /* credit to return: AGENT_STDIN and AGENT_LINK */
	u32 may[AGENT_STREAMS];  /* credit we have: AGENT_STDOUT and AGENT_STDERR */

	/* From the host. */
	struct agent_frame head;
	size_t head_got, body_got;
	u8 in_seq;
	u8 *body; /* of a frame other than DATA: head.len bytes */

	/* stdin, a ring. */
	u8 in[AGENT_STREAM_WINDOW];
	size_t in_start, in_len;
	bool in_eof;

	/* The command. */
	bool started, tty, ended, told;
	pid_t pid;
	u32 status;
	int fd[3]; /* our ends: stdin to write, stdout and stderr to read; -1: closed.  A tty is in [0] and [1]. */
	int sigfd;
};

static struct agent a0;

static size_t out_room(const struct agent *a) { return OUT_SIZE - a->out_end; }

static void out_compact(struct agent *a)
{
	if (a->out_start == a->out_end) {
		a->out_start = a->out_end = 0;
	} else if (a->out_start > OUT_SIZE / 2) {
		memmove(a->out, a->out + a->out_start, a->out_end - a->out_start);
		a->out_end -= a->out_start;
		a->out_start = 0;
	}
}

/* The caller has seen to the room. */
static void out_frame(struct agent *a, u8 type, u8 stream, const void *body, u32 len)
{
	struct agent_frame f = { AGENT_FRAME_MARK, type, stream, a->out_seq++, len };
	memcpy(a->out + a->out_end, &f, sizeof f);
	a->out_end += sizeof f;
	if (body)
		memcpy(a->out + a->out_end, body, len);
	a->out_end += len;
}

static void out_error(struct agent *a, u32 status, const char *what, const char *why)
{
	u8 b[4 + AGENT_TEXT_MAX];
	memcpy(b, &status, 4);
	int n = snprintf((char *)b + 4, AGENT_TEXT_MAX, "%s: %s", what, why);
	if (n >= (int)AGENT_TEXT_MAX)
		n = AGENT_TEXT_MAX - 1;
	out_frame(a, AGENT_ERROR, 0, b, 4 + (u32)n);
	a->told = true;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- starting the command ---- */

/* What the child reports when it cannot become the command. */
struct failure {
	u32 status;
	int errnum;
	char what[400];
};

static _Noreturn void child_fail(int fd, u32 status, const char *what)
{
	struct failure f = { .status = status, .errnum = errno };
	snprintf(f.what, sizeof f.what, "%s", what);
	if (write(fd, &f, sizeof f) != sizeof f)
		_exit(125);
	_exit((int)status);
}

static _Noreturn void child(const struct agent_run *r, char *root, char *cwd, char **argv, char **envp, int report)
{
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (*root && (chroot(root) || chdir("/")))
		child_fail(report, 126, root);
	if (r->gid || r->uid) {
		if (setgroups(0, NULL) || setgid(r->gid) || setuid(r->uid))
			child_fail(report, 126, "cannot become the user");
	}
	if (chdir(*cwd ? cwd : "/"))
		child_fail(report, 126, cwd);
	environ = envp;
	if (!argv[0]) {
		char shells[][16] = { "/bin/bash", "/bin/sh" };
		for (unsigned i = 0; i < ARRAY_SIZE(shells); i++)
			execv(shells[i], (char *[]){ shells[i], NULL });
		child_fail(report, errno == ENOENT ? 127 : 126, "/bin/sh");
	}
	execvp(argv[0], argv);
	child_fail(report, errno == ENOENT || errno == ENOTDIR ? 127 : 126, argv[0]);
}

static void set_nonblock(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/* Points into the body for every string; false: malformed. */
static bool next_string(char **p, const char *end, char **out)
{
	char *nul = *p < end ? memchr(*p, 0, (size_t)(end - *p)) : NULL;
	if (!nul)
		return false;
	*out = *p;
	*p = nul + 1;
	return true;
}

/* body: payload of RUN, at least its fixed part. */
static void start(struct agent *a, u8 *body, u32 len)
{
	struct agent_run r;
	memcpy(&r, body, sizeof r);
	char *p = (char *)body + sizeof r, *end = (char *)body + len;
	char *root, *cwd, *host;
	if (a->started || r.argc > AGENT_RUN_MAX || r.envc > AGENT_RUN_MAX || !next_string(&p, end, &root) ||
	    !next_string(&p, end, &cwd) || !next_string(&p, end, &host)) {
		a->broken = "malformed RUN";
		return;
	}
	char **argv = calloc(r.argc + 1, sizeof *argv), **envp = calloc(r.envc + 1, sizeof *envp);
	bool ok = argv && envp;
	for (u32 i = 0; ok && i < r.argc; i++)
		ok = next_string(&p, end, &argv[i]);
	for (u32 i = 0; ok && i < r.envc; i++)
		ok = next_string(&p, end, &envp[i]);
	if (!ok || p != end) {
		a->broken = "malformed RUN";
		goto out;
	}
	a->started = true;
	a->tty = r.flags & AGENT_RUN_TTY;
	a->in_eof = r.flags & AGENT_RUN_NO_STDIN;
	if (*host && getpid() == 1 && sethostname(host, strlen(host))) {
		out_error(a, 125, "cannot set the host name", strerror(errno));
		goto out;
	}
	int report[2], sin[2] = { -1, -1 }, sout[2] = { -1, -1 }, serr[2] = { -1, -1 }, master = -1;
	struct winsize ws = { .ws_row = r.winsize.rows, .ws_col = r.winsize.cols };
	if (pipe2(report, O_CLOEXEC) ||
	    (!a->tty && (pipe2(sin, O_CLOEXEC) || pipe2(sout, O_CLOEXEC) || pipe2(serr, O_CLOEXEC)))) {
		out_error(a, 125, "no pipe", strerror(errno));
		goto out;
	}
	if (a->tty) {
		a->pid = forkpty(&master, NULL, NULL, &ws); /* setsid and controlling terminal included */
	} else {
		a->pid = fork();
		if (!a->pid) {
			setsid();
			dup2(sin[0], 0);
			dup2(sout[1], 1);
			dup2(serr[1], 2);
		}
	}
	if (!a->pid)
		child(&r, root, cwd, argv, envp, report[1]);
	int fork_errno = errno;
	close(report[1]);
	close_fd(&sin[0]);
	close_fd(&sout[1]);
	close_fd(&serr[1]);
	if (a->pid < 0) {
		a->pid = 0;
		out_error(a, 125, "cannot start a process", strerror(fork_errno));
		close_fd(&sin[1]);
		close_fd(&sout[0]);
		close_fd(&serr[0]);
		close(report[0]);
		goto out;
	}
	if (a->tty) {
		fcntl(master, F_SETFD, FD_CLOEXEC);
		a->fd[0] = a->fd[1] = master;
	} else {
		a->fd[0] = sin[1];
		a->fd[1] = sout[0];
		a->fd[2] = serr[0];
	}
	for (int i = 0; i < 3; i++)
		if (a->fd[i] >= 0)
			set_nonblock(a->fd[i]);
	/* End of file here means that the command runs. */
	struct failure f;
	ssize_t n;
	do
		n = read(report[0], &f, sizeof f);
	while (n < 0 && errno == EINTR);
	close(report[0]);
	if (n == (ssize_t)sizeof f) {
		f.what[sizeof f.what - 1] = 0;
		out_error(a, f.status, f.what, f.status == 127 ? "not found" : strerror(f.errnum));
	}
out:
	free(argv);
	free(envp);
}

/* ---- frames from the host ---- */

static void got_frame(struct agent *a)
{
	const struct agent_frame *f = &a->head;
	u32 n;
	switch (f->type) {
	case AGENT_RUN: start(a, a->body, a->head.len); break;
	case AGENT_WINSIZE: {
		struct agent_winsize w;
		memcpy(&w, a->body, sizeof w);
		struct winsize ws = { .ws_row = w.rows, .ws_col = w.cols };
		if (a->tty && a->fd[1] >= 0)
			ioctl(a->fd[1], TIOCSWINSZ, &ws);
		break;
	}
	case AGENT_SIGNAL:
		memcpy(&n, a->body, 4);
		if (n < 1 || n >= NSIG)
			a->broken = "bad signal number";
		else if (a->pid > 0 && !a->ended)
			kill(-a->pid, (int)n);
		break;
	case AGENT_CREDIT:
		memcpy(&n, a->body, 4);
		if ((f->stream != AGENT_STDOUT && f->stream != AGENT_STDERR) ||
		    n > AGENT_STREAM_WINDOW - a->may[f->stream])
			a->broken = "bad credit";
		else
			a->may[f->stream] += n;
		break;
	}
}

static void got_data_end(struct agent *a)
{
	if (a->head.len)
		return;
	if (a->head.stream == AGENT_STDIN) {
		a->in_eof = true;
	} else if (!a->tty) {
		close_fd(&a->fd[a->head.stream]); /* the command gets SIGPIPE or EPIPE */
	} else if (a->pid > 0 && !a->ended) {
		kill(-a->pid, SIGHUP); /* the terminal is gone */
	}
}

/* Consumes n bytes from the link. */
static void got_bytes(struct agent *a, const u8 *p, size_t n)
{
	while (n && !a->broken) {
		if (a->head_got < sizeof a->head) {
			((u8 *)&a->head)[a->head_got++] = *p++;
			n--;
			if (a->head_got < sizeof a->head)
				continue;
			a->broken = agent_frame_check(&a->head, false, a->in_seq++);
			if (!a->broken && !a->started && a->head.type != AGENT_RUN)
				a->broken = "RUN must come first";
			if (!a->broken && a->head.type == AGENT_DATA &&
			    (a->head.stream == AGENT_LINK || (a->head.stream != AGENT_STDIN && a->head.len)))
				a->broken = "data for an output";
			if (!a->broken && a->head.type == AGENT_DATA && a->head.stream == AGENT_STDIN &&
			    (a->in_eof || a->head.len > AGENT_STREAM_WINDOW - a->in_len))
				a->broken = "more stdin than credit";
			if (a->broken)
				return;
			a->body_got = 0;
			if (a->head.type != AGENT_DATA && !(a->body = malloc(a->head.len))) {
				a->broken = "no memory for a frame";
				return;
			}
		} else {
			size_t k = a->head.len - a->body_got;
			if (k > n)
				k = n;
			if (a->head.type == AGENT_DATA) {
				size_t at = (a->in_start + a->in_len) % AGENT_STREAM_WINDOW;
				if (k > AGENT_STREAM_WINDOW - at)
					k = AGENT_STREAM_WINDOW - at;
				memcpy(a->in + at, p, k);
				a->in_len += k;
			} else {
				memcpy(a->body + a->body_got, p, k);
			}
			a->body_got += k;
			p += k;
			n -= k;
		}
		if (a->head_got == sizeof a->head && a->body_got == a->head.len) {
			if (a->head.type == AGENT_DATA)
				got_data_end(a);
			else
				got_frame(a);
			free(a->body);
			a->body = NULL;
			a->head_got = 0;
		}
	}
}

/* ---- the descriptors ---- */

static void link_read(struct agent *a)
{
	u8 buf[4096];
	ssize_t n = read(a->link, buf, sizeof buf);
	if (n > 0) {
		a->give[AGENT_LINK] += (u32)n;
		got_bytes(a, buf, (size_t)n);
	} else if (!n || (errno != EAGAIN && errno != EINTR)) {
		a->broken = n ? strerror(errno) : "the host closed the link";
	}
}

static void link_write(struct agent *a)
{
	ssize_t n = write(a->link, a->out + a->out_start, a->out_end - a->out_start);
	if (n > 0)
		a->out_start += (size_t)n;
	else if (n < 0 && errno != EAGAIN && errno != EINTR)
		a->broken = strerror(errno);
	out_compact(a);
}

/* One read of stdout or stderr, as far as credit and room go. */
static void stream_read(struct agent *a, int i)
{
	size_t max = out_room(a) - sizeof(struct agent_frame);
	if (max > a->may[i])
		max = a->may[i];
	if (max > AGENT_DATA_MAX)
		max = AGENT_DATA_MAX;
	ssize_t n = read(a->fd[i], a->out + a->out_end + sizeof(struct agent_frame), max);
	if (n > 0) {
		out_frame(a, AGENT_DATA, (u8)i, NULL, (u32)n);
		a->may[i] -= (u32)n;
	} else if (!n || (errno != EAGAIN && errno != EINTR)) { /* EIO: no process has the terminal any more */
		if (a->tty)
			a->fd[0] = -1;
		close_fd(&a->fd[i]);
	}
}

static void stdin_write(struct agent *a)
{
	while (a->in_len) {
		size_t k = a->in_len;
		if (k > AGENT_STREAM_WINDOW - a->in_start)
			k = AGENT_STREAM_WINDOW - a->in_start;
		ssize_t n = a->fd[0] < 0 ? (ssize_t)k : write(a->fd[0], a->in + a->in_start, k);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) { /* nobody reads it: swallow it and all that comes */
			if (!a->tty)
				close_fd(&a->fd[0]);
			n = (ssize_t)k;
		}
		a->in_start = (a->in_start + (size_t)n) % AGENT_STREAM_WINDOW;
		a->in_len -= (size_t)n;
		a->give[AGENT_STDIN] += (u32)n;
	}
	if (a->in_eof && a->fd[0] >= 0) {
		if (!a->tty) {
			close_fd(&a->fd[0]);
		} else {
			struct termios t;
			u8 eof = 4;
			if (!tcgetattr(a->fd[0], &t) && t.c_cc[VEOF])
				eof = t.c_cc[VEOF];
			if (write(a->fd[0], &eof, 1) < 0 && errno == EAGAIN)
				return;
			a->in_eof = false;
		}
	}
}

/* As init we are everybody's parent. */
static void reap(struct agent *a)
{
	struct signalfd_siginfo si;
	while (read(a->sigfd, &si, sizeof si) > 0)
		;
	int w;
	for (pid_t p; (p = waitpid(-1, &w, WNOHANG)) > 0;) {
		if (p != a->pid || a->ended)
			continue;
		a->ended = true;
		a->status = WIFEXITED(w) ? (u32)WEXITSTATUS(w) : 128 + (u32)WTERMSIG(w);
		/* The machine ends with its command: what is left is killed now, so that every pipe comes to its
		 * end with all that was written to it. */
		if (getpid() == 1)
			kill(-1, SIGKILL);
		else
			kill(-a->pid, SIGKILL);
	}
}

static void return_credit(struct agent *a, u8 stream, u32 step)
{
	if (a->give[stream] < step || out_room(a) < sizeof(struct agent_frame) + 4 + 1024)
		return;
	out_frame(a, AGENT_CREDIT, stream, &a->give[stream], 4);
	a->give[stream] = 0;
}

const char *agent_serve(int link, const void *run, u32 run_len)
{
	struct agent *a = &a0;
	*a = (struct agent){ .link = link, .fd = { -1, -1, -1 } };
	a->may[AGENT_STDOUT] = a->may[AGENT_STDERR] = AGENT_STREAM_WINDOW;
	set_nonblock(link);
	sigset_t chld;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	a->sigfd = signalfd(-1, &chld, SFD_NONBLOCK | SFD_CLOEXEC);
	if (a->sigfd < 0)
		return "no signalfd";
	struct agent_hello hello = { AGENT_HELLO_MAGIC, AGENT_PROTO_VERSION };
	out_frame(a, AGENT_HELLO, 0, &hello, sizeof hello);
	u8 *own = run && run_len >= agent_len_min(AGENT_RUN) ? malloc(run_len) : NULL;
	if (own) {
		memcpy(own, run, run_len);
		start(a, own, run_len);
		free(own);
	}

	while (!a->broken) {
		if (a->ended && !a->told && a->fd[1] < 0 && a->fd[2] < 0 && out_room(a) > 1024) {
			struct agent_exited e = { a->status };
			out_frame(a, AGENT_EXITED, 0, &e, sizeof e);
			a->told = true;
		}
		if (a->told && a->out_start == a->out_end)
			break;
		return_credit(a, AGENT_LINK, LINK_STEP);
		return_credit(a, AGENT_STDIN, CREDIT_STEP);

		struct pollfd p[5];
		p[0] = (struct pollfd){ .fd = link, .events = POLLIN };
		if (a->out_start < a->out_end)
			p[0].events |= POLLOUT;
		p[1] = (struct pollfd){ .fd = a->sigfd, .events = POLLIN };
		/* Room is kept for what is not data. */
		bool room = out_room(a) > 4096;
		bool want_in = a->in_len || (a->in_eof && a->fd[0] >= 0);
		p[2] = (struct pollfd){ .fd = want_in ? a->fd[0] : -1, .events = POLLOUT };
		for (int i = AGENT_STDOUT; i <= AGENT_STDERR; i++)
			p[2 + i] = (struct pollfd){ .fd = room && a->may[i] ? a->fd[i] : -1, .events = POLLIN };
		if (a->fd[0] < 0 && a->in_len)
			stdin_write(a);
		if (poll(p, 5, -1) < 0) {
			if (errno == EINTR)
				continue;
			return strerror(errno);
		}
		if (p[0].revents & (POLLIN | POLLHUP | POLLERR))
			link_read(a);
		if (a->broken)
			break;
		if (p[1].revents)
			reap(a);
		if (p[2].revents)
			stdin_write(a);
		for (int i = AGENT_STDOUT; i <= AGENT_STDERR; i++)
			if (p[2 + i].revents && a->fd[i] >= 0 && out_room(a) > 4096)
				stream_read(a, i);
		if (a->out_start < a->out_end)
			link_write(a);
	}
	return a->broken;
}
