/* Threads: creation and join, mutexes and conditions (futex), thread-local storage, atomics, robust death, signals to
 * one thread, futex time-outs, thread-specific FS base after many switches. */
#include <linux/futex.h>
#include <pthread.h>

#include "t.h"

enum { THREADS = 8, ROUNDS = 2000 };
static __thread u64 tls_value = 0x1234;
static __thread char tls_big[5000];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static u64 counter, atomic_counter, turn;

static void *worker(void *arg)
{
	u64 id = (u64)arg;
	CHECK(1, tls_value == 0x1234 && tls_big[4999] == 0);
	tls_value = id;
	memset(tls_big, (int)id, sizeof tls_big);
	for (unsigned i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&lock);
		counter++;
		pthread_mutex_unlock(&lock);
		__atomic_fetch_add(&atomic_counter, 3, __ATOMIC_SEQ_CST);
		if (!(i % 64))
			sched_yield();
	}
	/* strict turns through one condition */
	for (unsigned i = 0; i < 20; i++) {
		pthread_mutex_lock(&lock);
		while (turn % THREADS != id)
			pthread_cond_wait(&cond, &lock);
		turn++;
		pthread_cond_broadcast(&cond);
		pthread_mutex_unlock(&lock);
	}
	CHECK(2, tls_value == id && tls_big[0] == (char)id && tls_big[4999] == (char)id);
	return (void *)(id + 100);
}

static __thread unsigned signals_here;
static void count_signal(int s, siginfo_t *si, void *uc) { signals_here++; }
static volatile bool go_on = true;

static void *signalled(void *arg)
{
	while (go_on)
		sched_yield();
	return (void *)(u64)signals_here;
}

static void *waker(void *arg)
{
	u32 *word = arg;
	usleep(20000);
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return NULL;
}

static void *die_with_lock(void *m)
{
	pthread_mutex_lock(m);
	return NULL;
}

int main(void)
{
	pthread_t t[THREADS];
	void *result;
	for (u64 i = 0; i < THREADS; i++)
		CHECK(3, !pthread_create(&t[i], NULL, worker, (void *)i));
	for (u64 i = 0; i < THREADS; i++)
		CHECK(4, !pthread_join(t[i], &result) && (u64)result == i + 100);
	CHECK(5, counter == THREADS * ROUNDS, "%" PRIu64, counter);
	CHECK(6, atomic_counter == 3 * THREADS * ROUNDS, "%" PRIu64, atomic_counter);
	CHECK(7, turn == 20 * THREADS && tls_value == 0x1234);
	t_signal(SIGUSR1, count_signal, 0);
	CHECK(8, !pthread_create(&t[0], NULL, signalled, NULL));
	for (unsigned i = 0; i < 50; i++) {
		CHECK(9, !pthread_kill(t[0], SIGUSR1));
		sched_yield();
	}
	usleep(10000);
	go_on = false;
	CHECK(10, !pthread_join(t[0], &result) && (u64)result > 0 && signals_here == 0, "%" PRIu64, (u64)result);
	u32 word = 0;
	struct timespec ts = { .tv_nsec = 30000000 };
	u64 start = t_now_ns(CLOCK_MONOTONIC);
	CHECK(11, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0) == -1 && errno == ETIMEDOUT);
	CHECK(12, t_now_ns(CLOCK_MONOTONIC) - start >= 30000000);
	CHECK(13, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &ts, NULL, 0) == -1 && errno == EAGAIN);
	CHECK(14, !pthread_create(&t[0], NULL, waker, &word));
	ts.tv_sec = 20;
	CHECK(15, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0) == 0 || errno == EAGAIN);
	CHECK(16, word == 1 && !pthread_join(t[0], NULL));
	pthread_mutex_t robust;
	pthread_mutexattr_t attr;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &attr);
	CHECK(17, !pthread_create(&t[0], NULL, die_with_lock, &robust) && !pthread_join(t[0], NULL));
	CHECK(18, pthread_mutex_lock(&robust) == EOWNERDEAD && !pthread_mutex_consistent(&robust) && !pthread_mutex_unlock(&robust));
	return 0;
}
