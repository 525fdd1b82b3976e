/* The event loop of a process: descriptors, timers, wake-ups from other
 * threads.  One thread runs it; it sleeps in epoll_wait and in nothing else,
 * so an idle process uses no CPU.
 *
 * Threads: loop_timer_set/cancel, loop_event_signal and loop_stop from any
 * thread; everything else from the loop's own thread (or before it runs).
 * Callbacks run on the loop's thread without any lock held and may add,
 * change and remove anything, themselves included. */
#ifndef CORE_LOOP_H
#define CORE_LOOP_H

#include <pthread.h>
#include <sys/epoll.h>

#include "core/base.h"

#define LOOP_MAX_FDS 256 /* descriptors are numbered below this: confined roles have RLIMIT_NOFILE below it */

struct loop;

typedef void loop_fd_fn(void *arg, int fd, u32 events);
typedef void loop_fn(void *arg);

int loop_create(struct loop **out);
void loop_destroy(struct loop *loop);

/* Calls fn when one of events (EPOLLIN, EPOLLOUT, EPOLLET; EPOLLHUP/EPOLLERR
 * always) is there.  0 or -errno; -EPERM: a regular file cannot be watched. */
int loop_add(struct loop *loop, int fd, u32 events, loop_fd_fn *fn, void *arg);
int loop_modify(struct loop *loop, int fd, u32 events);
void loop_remove(struct loop *loop, int fd); /* before fd is closed; harmless when not added */

/* Runs until loop_stop().  0 or -errno. */
int loop_run(struct loop *loop);
void loop_stop(struct loop *loop); /* async-signal-safe */

/* CLOCK_MONOTONIC in nanoseconds. */
u64 loop_now_ns(void);

/* One-shot timer; memory is the caller's and stays valid until cancelled or
 * fired.  Cancelling from another thread does not wait for a running callback. */
struct loop_timer {
	struct loop *loop;
	loop_fn *fn;
	void *arg;
	u64 deadline_ns; /* CLOCK_MONOTONIC; valid while armed */
	bool armed;
	struct loop_timer *next;
};
void loop_timer_init(struct loop_timer *t, struct loop *loop, loop_fn *fn, void *arg);
void loop_timer_set(struct loop_timer *t, u64 deadline_ns); /* also moves an armed one */
void loop_timer_cancel(struct loop_timer *t);

/* A wake-up: signal() from any thread makes fn run once on the loop's thread
 * (several signals may become one call). */
struct loop_event {
	struct loop *loop;
	loop_fn *fn;
	void *arg;
	int fd; /* eventfd, non-blocking */
};
int loop_event_init(struct loop_event *e, struct loop *loop, loop_fn *fn, void *arg);
void loop_event_signal(struct loop_event *e); /* async-signal-safe */
void loop_event_destroy(struct loop_event *e);

#endif
