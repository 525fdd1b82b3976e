#include "machine/serial.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OUT_PIECE 16384u
#define OUT_PIECE_BLOCKING 4096u /* PIPE_BUF: fits whenever epoll reports a pipe writable */
#define IN_PIECE 16384u

#define FLUSH_NS 100000u

static void on_ready(void *arg, int fd, u32 events);

bool serial_drained(struct serial *s)
{
	pthread_mutex_lock(&s->uart.lock);
	bool empty = byteq_used(&s->uart.tx) == 0;
	pthread_mutex_unlock(&s->uart.lock);
	return empty;
}

static void watch(struct serial *s, struct serial_end *e, u32 events)
{
	if (e->fd < 0 || e->regular || e->watched == events)
		return;
	if (!events)
		loop_remove(s->loop, e->fd);
	else if (e->watched)
		loop_modify(s->loop, e->fd, events);
	else if (loop_add(s->loop, e->fd, events, on_ready, s) == -EPERM)
		e->regular = true;
	e->watched = events;
}

/* Hang-ups are reported even when nothing is asked for, so an end that nothing is wanted of is not watched. */
static void rewatch(struct serial *s)
{
	u32 in = s->in.fd >= 0 && uart_rx_room(&s->uart) ? EPOLLIN : 0;
	u32 out = s->out.fd >= 0 && s->want_out ? EPOLLOUT : 0;
	if (s->same) {
		watch(s, &s->in, in | out);
	} else {
		watch(s, &s->in, in);
		watch(s, &s->out, out);
	}
}

static void close_out(struct serial *s)
{
	if (!s->same)
		watch(s, &s->out, 0);
	s->out.fd = -1;
	s->want_out = false;
	pthread_mutex_lock(&s->uart.lock);
	s->uart.connected = false;
	pthread_mutex_unlock(&s->uart.lock);
	u8 sink[256];
	for (u32 n; (n = uart_tx_peek(&s->uart, sink, sizeof(sink)));)
		uart_tx_consume(&s->uart, n);
}

static void close_in(struct serial *s)
{
	bool both = s->same;
	watch(s, &s->in, 0);
	s->in.fd = -1;
	if (both) {
		/* One end of a socket said "end of file": the other direction may still live. */
		s->same = false;
		s->out.watched = 0;
	}
}

/* ready: epoll has said so, one write may be made on a blocking descriptor. */
static void pump_out(struct serial *s, bool ready)
{
	u8 buf[OUT_PIECE];
	u32 n;
	s->want_out = false;
	while ((n = uart_tx_peek(&s->uart, buf, s->out.blocking ? OUT_PIECE_BLOCKING : OUT_PIECE))) {
		if (s->out.fd < 0) {
			uart_tx_consume(&s->uart, n);
			continue;
		}
		if (s->out.blocking && !s->out.regular && !ready) {
			s->want_out = true;
			break;
		}
		ssize_t w = write(s->out.fd, buf, n);
		if (w > 0) {
			uart_tx_consume(&s->uart, (u32)w);
			ready = false;
		} else if (w < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			s->want_out = true;
			break;
		} else if (w < 0 && errno == EINTR) {
			continue;
		} else {
			close_out(s); /* the reader is gone */
			break;
		}
	}
	if (!s->want_out && s->idle)
		s->idle(s->idle_ctx);
}

static void pump_in(struct serial *s)
{
	u8 buf[IN_PIECE];
	do {
		u32 room = uart_rx_room(&s->uart);
		if (s->in.fd < 0 || !room)
			return;
		ssize_t n = read(s->in.fd, buf, room < sizeof(buf) ? room : sizeof(buf));
		if (n > 0)
			uart_rx_put(&s->uart, buf, (u32)n);
		else if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		else
			close_in(s);
	} while (s->in.regular);
}

static void on_ready(void *arg, int fd, u32 events)
{
	struct serial *s = arg;
	if (fd == s->in.fd && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && (s->in.watched & EPOLLIN))
		pump_in(s);
	if (fd == s->out.fd && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && s->want_out) {
		pump_out(s, true);
		if (!s->want_out)
			loop_timer_set(&s->flush, loop_now_ns() + FLUSH_NS);
	}
	rewatch(s);
}

/* A guest writes byte by byte.  The first is sent at once; while more keeps
 * coming the loop looks every FLUSH_NS by itself, and nobody has to wake it. */
static void on_wake(void *arg)
{
	struct serial *s = arg;
	bool output = !serial_drained(s);
	if (!output) {
		atomic_store(&s->woken, false);
		output = !serial_drained(s); /* what came before the flag was down woke nobody */
	}
	if (output) {
		atomic_store(&s->woken, true);
		if (!s->want_out)
			pump_out(s, false);
		if (!s->want_out) /* else the descriptor's readiness goes on with it */
			loop_timer_set(&s->flush, loop_now_ns() + FLUSH_NS);
	} else if (s->idle) {
		s->idle(s->idle_ctx);
	}
	if (s->in.regular)
		pump_in(s);
	rewatch(s);
}

void serial_wake(void *arg)
{
	struct serial *s = arg;
	if (!atomic_exchange(&s->woken, true))
		loop_event_signal(&s->wake);
}

static void on_pause_over(void *arg)
{
	struct serial *s = arg;
	uart_rx_grant(&s->uart);
}

static void start_pause(void *arg, u64 delay_ns)
{
	struct serial *s = arg;
	loop_timer_set(&s->pause, loop_now_ns() + delay_ns);
}

static int open_end(struct serial_end *e, int fd)
{
	struct stat st;
	*e = (struct serial_end){ .fd = fd };
	if (fd < 0)
		return 0;
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	e->blocking = !(flags & O_NONBLOCK);
	e->regular = S_ISREG(st.st_mode);
	return 0;
}

int serial_init(struct serial *s, struct loop *loop, int in_fd, int out_fd)
{
	s->loop = loop;
	loop_timer_init(&s->pause, loop, on_pause_over, s);
	loop_timer_init(&s->flush, loop, on_wake, s);
	s->uart.pace = start_pause;
	int r = open_end(&s->in, in_fd);
	if (!r)
		r = open_end(&s->out, out_fd);
	if (!r)
		r = loop_event_init(&s->wake, loop, on_wake, s);
	if (r)
		return r;
	s->same = in_fd >= 0 && in_fd == out_fd;
	s->uart.connected = out_fd >= 0;
	serial_wake(s); /* first look at the descriptors, from the loop */
	return 0;
}

void serial_destroy(struct serial *s)
{
	if (!s->wake.loop)
		return; /* serial_init failed before */
	loop_timer_cancel(&s->pause);
	loop_timer_cancel(&s->flush);
	watch(s, &s->in, 0);
	if (!s->same)
		watch(s, &s->out, 0);
	loop_event_destroy(&s->wake);
}
