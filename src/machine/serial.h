/* The host side of a UART: moves bytes between its rings and descriptors, on
 * the thread of the event loop only. */
#ifndef MACHINE_SERIAL_H
#define MACHINE_SERIAL_H

#include <stdatomic.h>

#include "core/loop.h"
#include "machine/uart.h"

struct serial_end {
	int fd;         /* -1: closed or never there */
	bool regular;   /* a file: always ready, cannot be watched */
	bool blocking;  /* not O_NONBLOCK: only touched when epoll said ready */
	u32 watched;    /* events asked of the loop; 0: not added */
};

struct serial {
	struct uart uart;
	struct loop *loop;
	struct serial_end in, out;
	bool same;      /* in.fd == out.fd: one registration, kept in `in` */
	bool want_out;  /* output waits for the descriptor */
	struct loop_event wake;
	struct loop_timer pause; /* between bursts of input */
	struct loop_timer flush; /* between writes of output that keeps coming */
	atomic_bool woken;       /* the loop will look by itself: wake or flush is under way */
	void (*idle)(void *ctx); /* all output has left; may be NULL */
	void *idle_ctx;
};

/* fds may be -1.  0 or -errno. */
int serial_init(struct serial *s, struct loop *loop, int in_fd, int out_fd);
void serial_destroy(struct serial *s);
bool serial_drained(struct serial *s);

/* uart_init's wake callback, for the uart inside. */
void serial_wake(void *serial);

#endif
