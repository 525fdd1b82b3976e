/* Theory of operation: one epoll instance, one timerfd armed for the earliest
 * of a sorted list of timers, one eventfd that stops the loop.  A mutex guards
 * the descriptor table and the timer list; callbacks run without it.
 *
 * epoll's user data is (generation << 32 | fd): an event fetched in one batch
 * for a descriptor that an earlier callback of that batch removed (and perhaps
 * added again under the same number) has an old generation and is dropped. */
#include "core/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define LOOP_BATCH 16

struct loop_entry {
	loop_fd_fn *fn; /* NULL: free */
	void *arg;
	u32 generation;
};

struct loop {
	int epfd, timerfd, stopfd;
	bool stop;
	pthread_mutex_t lock;
	u32 generation;
	struct loop_timer *timers; /* armed ones, earliest first */
	struct loop_entry entry[LOOP_MAX_FDS];
};

u64 loop_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
}

/* Arms the timerfd for the head of the list.  Under the lock. */
static void loop_arm(struct loop *loop)
{
	struct itimerspec its = { 0 };
	if (loop->timers) {
		u64 t = loop->timers->deadline_ns ? loop->timers->deadline_ns : 1; /* 0 would disarm */
		its.it_value.tv_sec = (time_t)(t / 1000000000u);
		its.it_value.tv_nsec = (long)(t % 1000000000u);
	}
	ASSERT(timerfd_settime(loop->timerfd, TFD_TIMER_ABSTIME, &its, NULL) == 0);
}

static void loop_on_timer(void *arg, int fd, u32 events)
{
	struct loop *loop = arg;
	u64 n;
	if (read(fd, &n, sizeof n) < 0 && errno != EAGAIN)
		ASSERT(errno == EINTR);
	pthread_mutex_lock(&loop->lock);
	u64 now = loop_now_ns();
	while (loop->timers && loop->timers->deadline_ns <= now && !loop->stop) {
		struct loop_timer *t = loop->timers;
		loop->timers = t->next;
		t->armed = false;
		loop_fn *fn = t->fn;
		void *fn_arg = t->arg;
		pthread_mutex_unlock(&loop->lock);
		fn(fn_arg); /* may free t */
		pthread_mutex_lock(&loop->lock);
	}
	loop_arm(loop);
	pthread_mutex_unlock(&loop->lock);
}

static void loop_on_stop(void *arg, int fd, u32 events)
{
	u64 n;
	if (read(fd, &n, sizeof n) < 0)
		ASSERT(errno == EAGAIN || errno == EINTR);
}

int loop_create(struct loop **out)
{
	struct loop *loop = calloc(1, sizeof *loop);
	if (!loop)
		return -ENOMEM;
	pthread_mutex_init(&loop->lock, NULL);
	loop->epfd = epoll_create1(EPOLL_CLOEXEC);
	loop->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	loop->stopfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = loop->epfd < 0 || loop->timerfd < 0 || loop->stopfd < 0 ? -errno : 0;
	if (!r)
		r = loop_add(loop, loop->timerfd, EPOLLIN, loop_on_timer, loop);
	if (!r)
		r = loop_add(loop, loop->stopfd, EPOLLIN, loop_on_stop, loop);
	if (r) {
		loop_destroy(loop);
		return r;
	}
	*out = loop;
	return 0;
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	if (loop->epfd >= 0)
		close(loop->epfd);
	if (loop->timerfd >= 0)
		close(loop->timerfd);
	if (loop->stopfd >= 0)
		close(loop->stopfd);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

int loop_add(struct loop *loop, int fd, u32 events, loop_fd_fn *fn, void *arg)
{
	if (fd < 0)
		return -EBADF;
	if (fd >= LOOP_MAX_FDS)
		return -EMFILE;
	pthread_mutex_lock(&loop->lock);
	struct loop_entry *e = &loop->entry[fd];
	int r = -EEXIST;
	if (!e->fn) {
		u32 g = ++loop->generation;
		struct epoll_event ev = { .events = events, .data.u64 = (u64)g << 32 | (u32)fd };
		r = epoll_ctl(loop->epfd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
		if (!r)
			*e = (struct loop_entry){ .fn = fn, .arg = arg, .generation = g };
	}
	pthread_mutex_unlock(&loop->lock);
	return r;
}

int loop_modify(struct loop *loop, int fd, u32 events)
{
	if (fd < 0 || fd >= LOOP_MAX_FDS)
		return -EBADF;
	pthread_mutex_lock(&loop->lock);
	const struct loop_entry *e = &loop->entry[fd];
	int r = -ENOENT;
	if (e->fn) {
		struct epoll_event ev = { .events = events, .data.u64 = (u64)e->generation << 32 | (u32)fd };
		r = epoll_ctl(loop->epfd, EPOLL_CTL_MOD, fd, &ev) ? -errno : 0;
	}
	pthread_mutex_unlock(&loop->lock);
	return r;
}

void loop_remove(struct loop *loop, int fd)
{
	if (fd < 0 || fd >= LOOP_MAX_FDS)
		return;
	pthread_mutex_lock(&loop->lock);
	if (loop->entry[fd].fn) {
		epoll_ctl(loop->epfd, EPOLL_CTL_DEL, fd, NULL);
		loop->entry[fd] = (struct loop_entry){ 0 };
	}
	pthread_mutex_unlock(&loop->lock);
}

int loop_run(struct loop *loop)
{
	while (!__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE)) {
		struct epoll_event ev[LOOP_BATCH];
		int n = epoll_wait(loop->epfd, ev, LOOP_BATCH, -1);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		for (int i = 0; i < n && !__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE); i++) {
			int fd = (int)(u32)ev[i].data.u64;
			pthread_mutex_lock(&loop->lock);
			struct loop_entry e = loop->entry[fd];
			pthread_mutex_unlock(&loop->lock);
			if (e.fn && e.generation == (u32)(ev[i].data.u64 >> 32))
				e.fn(e.arg, fd, ev[i].events);
		}
	}
	__atomic_store_n(&loop->stop, false, __ATOMIC_RELEASE);
	return 0;
}

void loop_stop(struct loop *loop)
{
	__atomic_store_n(&loop->stop, true, __ATOMIC_RELEASE);
	int saved = errno; /* may be a signal handler */
	u64 one = 1;
	if (write(loop->stopfd, &one, sizeof one) < 0 && errno != EAGAIN)
		__builtin_trap();
	errno = saved;
}

void loop_timer_init(struct loop_timer *t, struct loop *loop, loop_fn *fn, void *arg)
{
	*t = (struct loop_timer){ .loop = loop, .fn = fn, .arg = arg };
}

/* Takes t out of the list when it is in.  Under the lock. */
static void loop_timer_unlink(struct loop_timer *t)
{
	if (!t->armed)
		return;
	for (struct loop_timer **p = &t->loop->timers; *p; p = &(*p)->next)
		if (*p == t) {
			*p = t->next;
			break;
		}
	t->armed = false;
}

void loop_timer_set(struct loop_timer *t, u64 deadline_ns)
{
	struct loop *loop = t->loop;
	pthread_mutex_lock(&loop->lock);
	const struct loop_timer *head = loop->timers;
	loop_timer_unlink(t);
	t->deadline_ns = deadline_ns;
	struct loop_timer **p = &loop->timers;
	while (*p && (*p)->deadline_ns <= deadline_ns)
		p = &(*p)->next;
	t->next = *p;
	*p = t;
	t->armed = true;
	if (loop->timers == t || head == t)
		loop_arm(loop);
	pthread_mutex_unlock(&loop->lock);
}

void loop_timer_cancel(struct loop_timer *t)
{
	struct loop *loop = t->loop;
	pthread_mutex_lock(&loop->lock);
	bool head = loop->timers == t;
	loop_timer_unlink(t);
	if (head)
		loop_arm(loop);
	pthread_mutex_unlock(&loop->lock);
}

static void loop_on_event(void *arg, int fd, u32 events)
{
	const struct loop_event *e = arg;
	u64 n;
	if (read(fd, &n, sizeof n) == sizeof n)
		e->fn(e->arg);
}

int loop_event_init(struct loop_event *e, struct loop *loop, loop_fn *fn, void *arg)
{
	*e = (struct loop_event){ .loop = loop, .fn = fn, .arg = arg };
	e->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->fd < 0)
		return -errno;
	int r = loop_add(loop, e->fd, EPOLLIN, loop_on_event, e);
	if (r) {
		close(e->fd);
		e->fd = -1;
	}
	return r;
}

void loop_event_signal(struct loop_event *e)
{
	int saved = errno;
	u64 one = 1;
	if (write(e->fd, &one, sizeof one) < 0 && errno != EAGAIN) /* EAGAIN: signalled 2^64 - 2 times already */
		__builtin_trap();
	errno = saved;
}

void loop_event_destroy(struct loop_event *e)
{
	if (e->fd < 0)
		return;
	loop_remove(e->loop, e->fd);
	close(e->fd);
	e->fd = -1;
}
