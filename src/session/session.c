/* The session's loop: see session.h.
 *
 * Theory of operation.  One thread, one poll.  The user's descriptors are
 * blocking and shared with other programs, so they are written only when poll
 * says so and only as much as then cannot block (one page for a pipe); what
 * waits is in rings as large as the credit given to the guest, so the links are
 * always read and nothing is ever lost or unbounded.  Everything that comes
 * over the two links is hostile: every length and state is checked, and the
 * first violation ends the session. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "session/session.h"
#include "super/proto.h"

#define TAIL_SIZE PROTO_TAIL_MAX /* of the console's output, to find a panic message in */
#define KEY_INTERRUPT 0x03 /* Ctrl-C while the guest boots */
#define KEY_ESCAPE 0x1d    /* Ctrl-]: leaves the raw console */

/* Bytes on their way to one of the user's descriptors. */
struct sink {
	int fd;
	size_t at_once; /* may be written after POLLOUT without blocking */
	bool dead;      /* nobody reads it any more: what comes is dropped */
	size_t start, len;
	u8 buf[AGENT_STREAM_WINDOW];
};

/* Bytes on their way to the guest over a stream socket. */
struct queue {
	size_t start, end;
	u8 buf[8192];
};

static struct session {
	struct session_fds fd;
	u32 flags;
	const u8 *run; /* payload of AGENT_RUN */
	u32 run_len;
	u32 run_sent;  /* of header and payload; the header comes out of run_head */
	struct agent_frame run_head;

	struct sink out, err;
	struct sink aside; /* to stderr, too, but not the command's: console with -v, umbra's own words */
	struct queue to_agent, to_console;

	/* To the agent. */
	u8 out_seq;
	bool hello, in_eof;
	u32 may_link, may_stdin; /* credit we have */
	u32 give[AGENT_STREAMS]; /* credit to return, stdout and stderr */

	/* From the agent. */
	struct agent_frame head;
	size_t head_got, body_got;
	u8 in_seq;
	u8 body[4 + AGENT_TEXT_MAX];

	bool closed_told[AGENT_STREAMS]; /* the agent knows that this sink is dead */
	bool exited, failed, reported, stop;
	u32 status;
	char cause[512];

	char tail[TAIL_SIZE];
	size_t tail_len;
} s0;

static void tell(struct session *s, u32 type, const void *body, u32 len)
{
	/* The supervisor always reads; when it does not, it is gone and so are we soon. */
	struct pollfd p = { .fd = s->fd.control, .events = POLLOUT };
	while (msg_send(s->fd.control, type, body, len, NULL, 0) == -EAGAIN)
		poll(&p, 1, 1000);
}

__attribute__((format(printf, 2, 3))) static void fail(struct session *s, const char *fmt, ...)
{
	if (s->failed || s->exited)
		return;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(s->cause, sizeof s->cause, fmt, ap);
	va_end(ap);
	err_sanitize(s->cause, sizeof s->cause);
	s->failed = true;
}

/* ---- the user's side ---- */

static void sink_init(struct sink *k, int fd)
{
	struct stat st;
	*k = (struct sink){ .fd = fd, .at_once = 4096 };
	if (fstat(fd, &st))
		k->dead = true;
	else if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))
		k->at_once = sizeof k->buf;
	else if (isatty(fd))
		k->at_once = 256; /* a terminal says "writable" from so much room on */
}

static size_t sink_room(const struct sink *k) { return sizeof k->buf - k->len; }

/* False: more than fits. */
static bool sink_put(struct sink *k, const u8 *p, size_t n)
{
	if (k->dead)
		return true;
	if (n > sink_room(k))
		return false;
	while (n) {
		size_t at = (k->start + k->len) % sizeof k->buf, m = sizeof k->buf - at;
		if (m > n)
			m = n;
		memcpy(k->buf + at, p, m);
		k->len += m;
		p += m;
		n -= m;
	}
	return true;
}

/* Writes what does not block; returns how much left the ring. */
static size_t sink_write(struct sink *k)
{
	size_t m = sizeof k->buf - k->start;
	if (m > k->len)
		m = k->len;
	if (m > k->at_once)
		m = k->at_once;
	ssize_t n = write(k->fd, k->buf + k->start, m);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) { /* EPIPE, ENOSPC, EIO: there is no use in more */
		size_t all = k->len;
		k->dead = true;
		k->len = 0;
		return all;
	}
	k->start = (k->start + (size_t)n) % sizeof k->buf;
	k->len -= (size_t)n;
	return (size_t)n;
}

/* ---- towards the guest ---- */

static size_t queue_room(const struct queue *q) { return sizeof q->buf - (q->end - q->start); }

static void queue_put(struct queue *q, const void *p, size_t n)
{
	if (q->end + n > sizeof q->buf) {
		memmove(q->buf, q->buf + q->start, q->end - q->start);
		q->end -= q->start;
		q->start = 0;
	}
	memcpy(q->buf + q->end, p, n);
	q->end += n;
}

/* The caller has seen to the room. */
static void put_frame(struct session *s, u8 type, u8 stream, const void *body, u32 len)
{
	struct agent_frame f = { AGENT_FRAME_MARK, type, stream, s->out_seq++, len };
	queue_put(&s->to_agent, &f, sizeof f);
	if (len)
		queue_put(&s->to_agent, body, len);
}

/* Sends up to max bytes of p; returns how many went. */
static size_t link_send(int fd, const u8 *p, size_t n)
{
	ssize_t r = send(fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	return r > 0 ? (size_t)r : 0; /* errors show at the reading end */
}

static bool run_pending(const struct session *s)
{
	return s->hello && !(s->flags & SESSION_NO_RUN) && s->run_sent < sizeof s->run_head + s->run_len;
}

static void agent_write(struct session *s)
{
	/* RUN goes out of its own memory before anything of the queue. */
	while (run_pending(s) && s->may_link) {
		const u8 *p;
		size_t n;
		if (s->run_sent < sizeof s->run_head) {
			p = (const u8 *)&s->run_head + s->run_sent;
			n = sizeof s->run_head - s->run_sent;
		} else {
			p = s->run + (s->run_sent - sizeof s->run_head);
			n = sizeof s->run_head + s->run_len - s->run_sent;
		}
		n = link_send(s->fd.agent, p, n < s->may_link ? n : s->may_link);
		if (!n)
			return;
		s->run_sent += (u32)n;
		s->may_link -= (u32)n;
	}
	struct queue *q = &s->to_agent;
	size_t n = q->end - q->start;
	if (run_pending(s) || !n || !s->may_link)
		return;
	n = link_send(s->fd.agent, q->buf + q->start, n < s->may_link ? n : s->may_link);
	q->start += n;
	s->may_link -= (u32)n;
	if (q->start == q->end)
		q->start = q->end = 0;
}

static bool agent_wants_write(const struct session *s)
{
	return s->hello && s->may_link && (run_pending(s) || s->to_agent.start < s->to_agent.end);
}

/* Room kept free in the queue for frames that are not stdin. */
#define QUEUE_RESERVE 1024

static void return_credit(struct session *s, u8 stream, u32 step)
{
	if (!s->hello || s->give[stream] < step || queue_room(&s->to_agent) < 64)
		return;
	put_frame(s, AGENT_CREDIT, stream, &s->give[stream], 4);
	s->give[stream] = 0;
}

static void tell_dead(struct session *s, u8 stream, const struct sink *k)
{
	if (!s->hello || !k->dead || s->closed_told[stream] || queue_room(&s->to_agent) < 64)
		return;
	put_frame(s, AGENT_DATA, stream, NULL, 0);
	s->closed_told[stream] = true;
}

/* ---- stdin ---- */

static bool stdin_wanted(const struct session *s)
{
	if (s->in_eof || s->exited || s->failed)
		return false;
	if (s->flags & SESSION_CONSOLE)
		return s->fd.console >= 0 && queue_room(&s->to_console) >= 256;
	if (!s->hello) /* while it boots only to notice Ctrl-C, and not more than fits */
		return (s->flags & SESSION_TTY) && queue_room(&s->to_agent) > QUEUE_RESERVE + 512;
	return s->may_stdin && queue_room(&s->to_agent) > QUEUE_RESERVE + sizeof(struct agent_frame);
}

static void stdin_end(struct session *s)
{
	s->in_eof = true;
	if (!(s->flags & SESSION_CONSOLE))
		put_frame(s, AGENT_DATA, AGENT_STDIN, NULL, 0);
}

static void stdin_read(struct session *s)
{
	u8 buf[2048];
	size_t max = sizeof buf;
	struct queue *q = s->flags & SESSION_CONSOLE ? &s->to_console : &s->to_agent;
	size_t room = queue_room(q) - (s->flags & SESSION_CONSOLE ? 0 : QUEUE_RESERVE + sizeof(struct agent_frame));
	if (max > room)
		max = room;
	if (!(s->flags & SESSION_CONSOLE) && max > s->may_stdin)
		max = s->may_stdin;
	ssize_t n = read(s->fd.in, buf, max);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		stdin_end(s);
		return;
	}
	if (s->flags & SESSION_CONSOLE) {
		const u8 *esc = (s->flags & SESSION_TTY) ? memchr(buf, KEY_ESCAPE, (size_t)n) : NULL;
		if (esc) {
			n = esc - buf;
			s->exited = true;
			s->status = 0;
		}
		queue_put(q, buf, (size_t)n);
		return;
	}
	if (!s->hello && memchr(buf, KEY_INTERRUPT, (size_t)n)) {
		fail(s, "interrupted while the guest was booting");
		return;
	}
	put_frame(s, AGENT_DATA, AGENT_STDIN, buf, (u32)n);
	s->may_stdin -= (u32)n;
}

/* ---- from the guest's agent ---- */

static const char *got_frame(struct session *s)
{
	u32 n;
	switch (s->head.type) {
	case AGENT_HELLO: {
		struct agent_hello h;
		memcpy(&h, s->body, sizeof h);
		if (s->hello)
			return "second HELLO";
		if (h.magic != AGENT_HELLO_MAGIC)
			return "not an agent of umbra";
		if (h.version != AGENT_PROTO_VERSION)
			return "another version of the protocol (is the initramfs from another umbra?)";
		s->hello = true;
		/* Numbers of frames queued while it booted come after RUN's. */
		tell(s, PROTO_SESSION_STARTED, NULL, 0);
		return NULL;
	}
	case AGENT_CREDIT:
		memcpy(&n, s->body, 4);
		if (s->head.stream == AGENT_LINK && n <= AGENT_LINK_WINDOW - s->may_link)
			s->may_link += n;
		else if (s->head.stream == AGENT_STDIN && n <= AGENT_STREAM_WINDOW - s->may_stdin)
			s->may_stdin += n;
		else
			return "credit for nothing";
		return NULL;
	case AGENT_EXITED:
		memcpy(&n, s->body, 4);
		if (n > 255)
			return "impossible exit status";
		s->exited = true;
		s->status = n;
		return NULL;
	case AGENT_ERROR:
		memcpy(&n, s->body, 4);
		if (n < 125 || n > 127)
			return "impossible error status";
		/* The status is the command's; the words are ours to print, as a shell does. */
		{
			char text[AGENT_TEXT_MAX + 32];
			int k = snprintf(text, sizeof text, "umbra: cannot run %.*s", (int)(s->head.len - 4),
					 (const char *)s->body + 4);
			if (k < 0 || k > (int)sizeof text - 2)
				k = (int)sizeof text - 2;
			err_sanitize(text, sizeof text);
			text[k] = '\r';
			if (!(s->flags & SESSION_TTY))
				text[k] = '\n';
			sink_put(&s->aside, (const u8 *)text, (size_t)k + 1);
			if (s->flags & SESSION_TTY)
				sink_put(&s->aside, (const u8 *)"\n", 1);
		}
		s->exited = true;
		s->status = n;
		return NULL;
	}
	return NULL;
}

static const char *got_data(struct session *s, const u8 *p, size_t n)
{
	struct sink *k = s->head.stream == AGENT_STDOUT ? &s->out : &s->err;
	if (!sink_put(k, p, n))
		return "more output than credit";
	if (k->dead)
		s->give[s->head.stream] += (u32)n;
	return NULL;
}

static const char *agent_bytes(struct session *s, const u8 *p, size_t n)
{
	const char *bad = NULL;
	while (n && !bad) {
		if (s->exited)
			return "data after the end";
		if (s->head_got < sizeof s->head) {
			((u8 *)&s->head)[s->head_got++] = *p++;
			n--;
			if (s->head.mark != AGENT_FRAME_MARK)
				return "not a frame header"; /* at once: the rest may never come */
			if (s->head_got < sizeof s->head)
				continue;
			bad = agent_frame_check(&s->head, true, s->in_seq++);
			if (!bad && !s->hello && s->head.type != AGENT_HELLO)
				bad = "no HELLO";
			if (!bad && s->head.type == AGENT_DATA &&
			    (!s->head.len || (s->head.stream != AGENT_STDOUT && s->head.stream != AGENT_STDERR)))
				bad = "data of no output";
			s->body_got = 0;
		} else {
			size_t k = s->head.len - s->body_got;
			if (k > n)
				k = n;
			if (s->head.type == AGENT_DATA)
				bad = got_data(s, p, k);
			else
				memcpy(s->body + s->body_got, p, k); /* agent_frame_check() bounds it by sizeof body */
			s->body_got += k;
			p += k;
			n -= k;
		}
		if (!bad && s->head_got == sizeof s->head && s->body_got == s->head.len) {
			if (s->head.type != AGENT_DATA)
				bad = got_frame(s);
			s->head_got = 0;
		}
	}
	return bad;
}
_Static_assert(sizeof((struct session *)0)->body >= 4 + AGENT_TEXT_MAX, "longest frame that is not DATA");

/* False: nothing more is there now. */
static bool agent_read(struct session *s)
{
	u8 buf[16384];
	ssize_t n = recv(s->fd.agent, buf, sizeof buf, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		s->fd.agent = -1; /* the VM has ended; the supervisor will say why */
		return false;
	}
	if (s->failed || (s->flags & SESSION_CONSOLE)) /* no command: the second port is the guest's own, nobody listens */
		return true;
	const char *bad = agent_bytes(s, buf, (size_t)n);
	if (bad)
		fail(s, "the guest's agent broke the protocol: %s", bad);
	return true;
}

/* ---- the console ---- */

static bool console_wanted(const struct session *s)
{
	if (s->flags & SESSION_CONSOLE)
		return sink_room(&s->out) >= 4096 || s->out.dead;
	if (s->flags & SESSION_VERBOSE)
		return sink_room(&s->aside) >= 4096 || s->aside.dead;
	return true;
}

static bool console_read(struct session *s)
{
	u8 buf[4096];
	ssize_t n = recv(s->fd.console, buf, sizeof buf, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		s->fd.console = -1;
		return false;
	}
	size_t k = (size_t)n;
	if (s->flags & SESSION_CONSOLE)
		sink_put(&s->out, buf, k);
	else if (s->flags & SESSION_VERBOSE)
		sink_put(&s->aside, buf, k);
	if (s->tail_len + k > TAIL_SIZE) {
		size_t drop = s->tail_len + k - TAIL_SIZE;
		memmove(s->tail, s->tail + drop, s->tail_len - drop);
		s->tail_len -= drop;
	}
	memcpy(s->tail + s->tail_len, buf, k);
	s->tail_len += k;
	return true;
}

/* The guest kernel's last words, when it panicked. */
static void find_panic(struct session *s)
{
	static const char mark[] = "Kernel panic - not syncing: ";
	const char *p = memmem(s->tail, s->tail_len, mark, sizeof mark - 1);
	if (!p)
		return;
	p += sizeof mark - 1;
	size_t max = (size_t)(s->tail + s->tail_len - p), n = 0;
	while (n < max && n < 300 && p[n] != '\r' && p[n] != '\n')
		n++;
	fail(s, "the guest kernel panicked: %.*s", (int)n, p);
}

/* ---- the supervisor ---- */

static void control_read(struct session *s)
{
	static struct msg m;
	int r = msg_recv(s->fd.control, &m, proto_to_session, proto_to_session_n, true);
	if (r == -EAGAIN)
		return;
	if (r <= 0) {
		s->stop = true;
		return;
	}
	switch (m.type) {
	case PROTO_SESSION_SIGNAL: {
		struct proto_signal sig;
		memcpy(&sig, m.body, sizeof sig);
		if (s->exited || s->failed)
			break;
		if (!s->hello)
			fail(s, "ended by signal %u%s", sig.signo,
			     s->flags & SESSION_CONSOLE ? "" : " before the command started");
		else if (sig.signo >= 1 && sig.signo <= 64 && queue_room(&s->to_agent) >= 64)
			put_frame(s, AGENT_SIGNAL, 0, &sig.signo, 4);
		break;
	}
	case PROTO_SESSION_WINSIZE: {
		struct proto_winsize w;
		memcpy(&w, m.body, sizeof w);
		struct agent_winsize aw = { w.rows, w.cols };
		if (w.rows && w.cols && (s->flags & SESSION_TTY) && !(s->flags & SESSION_CONSOLE) && queue_room(&s->to_agent) >= 64)
			put_frame(s, AGENT_WINSIZE, 0, &aw, sizeof aw);
		break;
	}
	case PROTO_SESSION_STOP: s->stop = true; break;
	}
	msg_close(&m);
}

static void report(struct session *s)
{
	if (s->reported)
		return;
	if (s->failed) {
		struct proto_text t = { 0 };
		memcpy(t.text, s->cause, sizeof t.text);
		tell(s, PROTO_SESSION_TAIL, s->tail, (u32)s->tail_len);
		tell(s, PROTO_SESSION_FAILED, &t, sizeof t);
		s->reported = true;
	} else if (s->exited && !s->out.len && !s->err.len && !s->aside.len) {
		struct proto_exited x = { s->status };
		tell(s, PROTO_SESSION_EXITED, &x, sizeof x);
		s->reported = true;
	}
}

void session_init(const struct session_fds *fds, const struct session_config *cfg, const void *run)
{
	struct session *s = &s0;
	signal(SIGPIPE, SIG_IGN);
	/* The terminal sends these to the whole job; the supervisor passes them on. */
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	s->fd = *fds;
	s->flags = cfg->flags;
	s->run = run;
	s->run_len = cfg->run_len;
	if (!(s->flags & SESSION_NO_RUN))
		s->run_head = (struct agent_frame){ AGENT_FRAME_MARK, AGENT_RUN, 0, s->out_seq++, cfg->run_len };
	s->may_link = AGENT_LINK_WINDOW;
	s->may_stdin = AGENT_STREAM_WINDOW;
	sink_init(&s->out, fds->out);
	sink_init(&s->err, fds->err);
	sink_init(&s->aside, fds->err);
	if (!(s->flags & SESSION_STDIN))
		s->in_eof = true; /* AGENT_RUN_NO_STDIN told the agent */
}

/* The VM is gone: whatever it still wrote is in the sockets. */
static void drain(struct session *s)
{
	bool more = true;
	while (more) {
		more = s->fd.agent >= 0 && agent_read(s);
		if (s->fd.console >= 0 && console_wanted(s))
			more |= console_read(s);
	}
	if (!s->exited)
		find_panic(s);
	struct sink *const k[] = { &s->out, &s->err, &s->aside };
	for (unsigned i = 0; i < ARRAY_SIZE(k); i++)
		while (k[i]->len && !k[i]->dead) {
			struct pollfd p = { .fd = k[i]->fd, .events = POLLOUT };
			if (poll(&p, 1, -1) > 0)
				sink_write(k[i]);
		}
	report(s);
}

void session_loop(void)
{
	struct session *s = &s0;
	while (!s->stop) {
		return_credit(s, AGENT_STDOUT, AGENT_STREAM_WINDOW / 4);
		return_credit(s, AGENT_STDERR, AGENT_STREAM_WINDOW / 4);
		tell_dead(s, AGENT_STDOUT, &s->out);
		tell_dead(s, AGENT_STDERR, &s->err);
		report(s);
		enum { CONTROL, AGENT, CONSOLE, IN, OUT, ERR, ASIDE, N };
		struct pollfd p[N] = {
			[CONTROL] = { .fd = s->fd.control, .events = POLLIN },
			[AGENT] = { .fd = s->fd.agent, .events = POLLIN },
			[CONSOLE] = { .fd = s->fd.console },
			[IN] = { .fd = stdin_wanted(s) ? s->fd.in : -1, .events = POLLIN },
			[OUT] = { .fd = s->out.len ? s->out.fd : -1, .events = POLLOUT },
			[ERR] = { .fd = s->err.len ? s->err.fd : -1, .events = POLLOUT },
			[ASIDE] = { .fd = s->aside.len ? s->aside.fd : -1, .events = POLLOUT },
		};
		if (agent_wants_write(s))
			p[AGENT].events |= POLLOUT;
		if (console_wanted(s))
			p[CONSOLE].events |= POLLIN;
		if (s->to_console.start < s->to_console.end)
			p[CONSOLE].events |= POLLOUT;
		if (!p[CONSOLE].events)
			p[CONSOLE].fd = -1;
		if (poll(p, N, -1) < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		if (p[OUT].revents) {
			size_t n = sink_write(&s->out);
			if (!(s->flags & SESSION_CONSOLE))
				s->give[AGENT_STDOUT] += (u32)n;
		}
		if (p[ERR].revents)
			s->give[AGENT_STDERR] += (u32)sink_write(&s->err);
		if (p[ASIDE].revents)
			sink_write(&s->aside);
		if (p[AGENT].revents & (POLLIN | POLLHUP | POLLERR))
			agent_read(s);
		if (p[AGENT].revents & POLLOUT && s->fd.agent >= 0)
			agent_write(s);
		if (p[CONSOLE].revents & (POLLIN | POLLHUP | POLLERR))
			console_read(s);
		if (p[CONSOLE].revents & POLLOUT && s->fd.console >= 0) {
			struct queue *q = &s->to_console;
			q->start += link_send(s->fd.console, q->buf + q->start, q->end - q->start);
			if (q->start == q->end)
				q->start = q->end = 0;
		}
		if (p[IN].revents)
			stdin_read(s);
		if (p[CONTROL].revents)
			control_read(s);
	}
	drain(s);
}
