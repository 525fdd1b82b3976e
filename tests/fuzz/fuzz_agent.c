/* libFuzzer entry: the session, between a hostile guest and the user.  The real loop runs over real sockets; poll() is
 * ours, so each time it waits it gets the next piece of the input.
 *
 * Input: a byte of settings, then pieces: a byte (kind in the low 3 bits, 5 bits of size), for some kinds a second byte of
 * size, then the bytes.  What leaves the session is checked: messages to the supervisor against its own table, frames to the
 * agent against the protocol, never more than the credit given. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int fuzz_poll(struct pollfd *p, nfds_t n, int timeout);
#define poll fuzz_poll
#define signal(number, handler) ((void)0) /* keep the fuzzer's own */
#include "../../src/session/session.c"
#undef poll
#undef signal

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* The settings in the first byte. */
enum { SET_TTY = 1, SET_STDIN = 2, SET_CONSOLE = 4, SET_VERBOSE = 8, SET_NO_RUN = 16, SET_PIPES = 32, SET_OUT_DEAD = 64 };

enum { PIECE_AGENT, PIECE_AGENT_LONG, PIECE_CONSOLE, PIECE_STDIN, PIECE_CONTROL, PIECE_READ, PIECE_AGENT_FRAME, PIECE_HANG_UP };

#define CHECK(c) do { if (!(c)) { fprintf(stderr, "fuzz_agent.c:%d: %s\n", __LINE__, #c); abort(); } } while (0)

static struct {
	const u8 *p;
	size_t n;
	int control, agent, console, in, out, err; /* our ends; -1: closed */
	u8 seq;           /* of the frames we make */
	bool ended, stopped;
	unsigned idle;    /* polls since the input's end */

	/* Frames from the session. */
	struct agent_frame head;
	size_t head_got;
	u32 body_left;
	u8 head_seq;
	u64 sent, allowed; /* bytes of the link, and credit for them */
	unsigned exited, failed; /* messages */
} f;

static u8 next(void)
{
	if (!f.n)
		return 0;
	f.n--;
	return *f.p++;
}

static const u8 *take(size_t *n)
{
	const u8 *p = f.p;
	if (*n > f.n)
		*n = f.n;
	f.p += *n;
	f.n -= *n;
	return p;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* All the session wrote to the agent: frames in order, of known types, within the credit. */
static void read_agent(void)
{
	u8 buf[4096];
	ssize_t n;
	while (f.agent >= 0 && (n = recv(f.agent, buf, sizeof buf, MSG_DONTWAIT)) > 0) {
		f.sent += (u64)n;
		CHECK(f.sent <= f.allowed);
		for (ssize_t i = 0; i < n;) {
			if (f.body_left) {
				u32 k = f.body_left < (u32)(n - i) ? f.body_left : (u32)(n - i);
				f.body_left -= k;
				i += k;
				continue;
			}
			((u8 *)&f.head)[f.head_got++] = buf[i++];
			if (f.head_got < sizeof f.head)
				continue;
			const char *bad = agent_frame_check(&f.head, false, f.head_seq++);
			CHECK(!bad);
			f.head_got = 0;
			f.body_left = f.head.len;
		}
	}
}

static void read_control(void)
{
	static struct msg m;
	int r;
	while ((r = msg_recv(f.control, &m, proto_from_session, proto_from_session_n, true)) == 1) {
		if (m.type == PROTO_SESSION_EXITED) {
			struct proto_exited x;
			memcpy(&x, m.body, sizeof x);
			CHECK(x.status <= 255);
			f.exited++;
		} else if (m.type == PROTO_SESSION_FAILED) {
			CHECK(memchr(m.body, 0, m.len) && m.body[0]);
			for (const u8 *p = m.body; *p; p++)
				CHECK(*p >= 0x20 && *p != 0x7f);
			f.failed++;
		}
		CHECK(f.exited + f.failed <= 1);
		msg_close(&m);
	}
	CHECK(r == -EAGAIN || r == 0);
}

static void read_output(int fd)
{
	u8 buf[65536];
	while (fd >= 0 && read(fd, buf, sizeof buf) > 0)
		;
}

static void to_agent(const u8 *p, size_t n)
{
	/* Credit for the link counts from when it is sent; whether it is valid shows in the session. */
	if (f.agent >= 0 && n)
		(void)!send(f.agent, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void piece(void)
{
	u8 b = next();
	size_t n = b >> 3;
	const u8 *p;
	switch (b & 7) {
	case PIECE_AGENT:
		p = take(&n);
		to_agent(p, n);
		break;
	case PIECE_AGENT_LONG: { /* one frame of much data */
		static u8 buf[sizeof(struct agent_frame) + AGENT_DATA_MAX];
		size_t len = (n << 8 | next()) * 2;
		struct agent_frame h = { AGENT_FRAME_MARK, AGENT_DATA, 1 + (n & 1), f.seq++, (u32)len };
		memcpy(buf, &h, sizeof h);
		to_agent(buf, sizeof h + len);
		break;
	}
	case PIECE_CONSOLE:
		p = take(&n);
		if (f.console >= 0 && n)
			(void)!send(f.console, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case PIECE_STDIN:
		p = take(&n);
		if (f.in >= 0 && n)
			(void)!write(f.in, p, n);
		break;
	case PIECE_CONTROL:
		if (n & 1) {
			struct proto_signal sig = { next() };
			msg_send(f.control, PROTO_SESSION_SIGNAL, &sig, sizeof sig, NULL, 0);
		} else {
			struct proto_winsize w = { next(), next() };
			msg_send(f.control, PROTO_SESSION_WINSIZE, &w, sizeof w, NULL, 0);
		}
		break;
	case PIECE_READ:
		if (n & 1)
			read_output(f.out);
		if (n & 2)
			read_output(f.err);
		break;
	case PIECE_AGENT_FRAME: { /* a header with the right number, which mutations rarely hit; the body may be short */
		u8 buf[sizeof(struct agent_frame) + 31];
		struct agent_frame h = { AGENT_FRAME_MARK, next(), next(), f.seq++, (u32)n };
		p = take(&n);
		memcpy(buf, &h, sizeof h);
		memcpy(buf + sizeof h, p, n);
		to_agent(buf, sizeof h + n);
		break;
	}
	case PIECE_HANG_UP:
		switch (n & 7) {
		case 0: shut(&f.in); break;
		case 1: shut(&f.out); break;
		case 2: shut(&f.err); break;
		case 3: shut(&f.console); break;
		case 4: shut(&f.agent); break;
		case 5: f.n = 0; break;
		}
		break;
	}
}

static int fuzz_poll(struct pollfd *p, nfds_t n, int timeout)
{
	(void)timeout;
	f.allowed = f.sent + AGENT_LINK_WINDOW; /* what may be outstanding at any time: see got_frame() */
	read_agent();
	read_control();
	if (f.n) {
		piece();
	} else {
		f.ended = true;
		read_output(f.out);
		read_output(f.err);
		CHECK(++f.idle < 20000); /* it ends, whatever came */
		if (!f.stopped && f.idle > 8) {
			msg_send(f.control, PROTO_SESSION_STOP, NULL, 0, NULL, 0);
			f.stopped = true;
		}
	}
	return poll(p, n, 0);
}

static void nonblocking(int fd) { fcntl(fd, F_SETFL, O_NONBLOCK); }

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	static const u8 run[sizeof(struct agent_run) + 4096];
	u8 set = data[0];
	int control[2], agent[2], console[2], in[2], out[2] = { -1, -1 }, err[2] = { -1, -1 }, null = -1;
	if (msg_pair(control) || socketpair(AF_UNIX, SOCK_STREAM, 0, agent) || socketpair(AF_UNIX, SOCK_STREAM, 0, console) || pipe(in))
		abort();
	if (set & SET_PIPES) {
		if (pipe(out) || pipe(err))
			abort();
		nonblocking(out[0]);
		nonblocking(err[0]);
	} else {
		null = open("/dev/null", O_WRONLY);
	}
	nonblocking(in[1]);
	memset(&f, 0, sizeof f);
	f.p = data + 1;
	f.n = size - 1;
	f.control = control[1];
	f.agent = agent[1];
	f.console = console[1];
	f.in = in[1];
	f.out = out[0];
	f.err = err[0];
	if (set & SET_OUT_DEAD)
		shut(&f.out);

	u32 flags = (set & SET_TTY ? SESSION_TTY : 0) | (set & SET_STDIN ? SESSION_STDIN : 0) | (set & SET_CONSOLE ? SESSION_CONSOLE : 0) |
		    (set & SET_VERBOSE ? SESSION_VERBOSE : 0) | (set & SET_NO_RUN ? SESSION_NO_RUN : 0);
	u32 run_len = flags & (SESSION_NO_RUN | SESSION_CONSOLE) ? 0 : sizeof run;
	const struct session_config cfg = { SESSION_CONFIG_MAGIC, flags, run_len };
	const struct session_fds fds = { .in = in[0], .out = set & SET_PIPES ? out[1] : null, .err = set & SET_PIPES ? err[1] : null,
					 .control = control[0], .console = console[0], .agent = agent[0] };
	memset(&s0, 0, sizeof s0);
	session_init(&fds, &cfg, run);
	session_loop();
	read_control();

	int *const left[] = { &control[0], &f.control, &agent[0], &f.agent, &console[0], &f.console, &in[0], &f.in, &out[1], &f.out,
			      &err[1], &f.err, &null };
	for (unsigned i = 0; i < ARRAY_SIZE(left); i++)
		shut(left[i]);
	return 0;
}
