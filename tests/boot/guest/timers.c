/* Time: clocks never go backwards and agree with each other, sleeps last at least as long as asked and not absurdly
 * longer, interval timers and timerfd count right, the vdso and the system call tell the same time. */
#include <sys/auxv.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <x86intrin.h>

#include "t.h"

static volatile unsigned ticks;
static void tick(int s, siginfo_t *si, void *uc) { ticks++; }

static u64 by_syscall(clockid_t c)
{
	struct timespec t;
	CHECK(1, !syscall(SYS_clock_gettime, c, &t));
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

/* A loaded host may be this late; a wrong timer is far later, or early. */
#define LATE 3000000000ull

int main(void)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME, CLOCK_BOOTTIME,
					    CLOCK_MONOTONIC_COARSE };
	for (unsigned c = 0; c < ARRAY_SIZE(clocks); c++) {
		u64 last = 0;
		unsigned moved = 0;
		for (unsigned i = 0; i < 20000; i++) {
			u64 now = i & 7 ? t_now_ns(clocks[c]) : by_syscall(clocks[c]);
			CHECK(2, now >= last, "clock %d went back by %" PRIu64 " ns", clocks[c], last - now);
			moved += now != last;
			last = now;
		}
		CHECK(3, clocks[c] == CLOCK_MONOTONIC_COARSE || moved > 10000, "clock %d moved %u times", clocks[c], moved);
	}
	CHECK(4, getauxval(AT_SYSINFO_EHDR) != 0);
	u64 t0 = __rdtsc(), t1;
	for (unsigned i = 0; i < 10000; i++, t0 = t1) {
		t1 = __rdtsc();
		CHECK(5, t1 >= t0);
	}
	/* sleeps */
	static const unsigned ms[] = { 0, 1, 5, 20, 100, 300 };
	for (unsigned i = 0; i < ARRAY_SIZE(ms); i++) {
		struct timespec ts = { .tv_nsec = ms[i] * 1000000l };
		u64 start = t_now_ns(CLOCK_MONOTONIC), raw = t_now_ns(CLOCK_MONOTONIC_RAW), real = t_now_ns(CLOCK_REALTIME);
		CHECK(6, !clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL));
		u64 took = t_now_ns(CLOCK_MONOTONIC) - start;
		raw = t_now_ns(CLOCK_MONOTONIC_RAW) - raw;
		real = t_now_ns(CLOCK_REALTIME) - real;
		CHECK(7, took >= ms[i] * 1000000ull, "slept %" PRIu64 " ns instead of %u ms", took, ms[i]);
		CHECK(8, took < ms[i] * 1000000ull + LATE, "slept %" PRIu64 " ns instead of %u ms", took, ms[i]);
		if (ms[i] >= 100) {
			CHECK(9, raw > took - took / 10 && raw < took + took / 10 + 50000000, "raw %" PRIu64 " monotonic %" PRIu64, raw, took);
			CHECK(10, real > took - took / 10 && real < took + took / 10 + 50000000, "real %" PRIu64 " monotonic %" PRIu64, real, took);
		}
	}
	/* absolute sleep into the past returns at once; the time of day is plausible (after 2024) */
	struct timespec past = { .tv_nsec = 1 };
	CHECK(11, !clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past, NULL));
	CHECK(12, time(NULL) > 1704067200, "%lld", (long long)time(NULL));
	/* interval timer: 10 ticks of 20 ms */
	t_signal(SIGALRM, tick, SA_RESTART);
	struct itimerval it = { { 0, 20000 }, { 0, 20000 } }, off = { 0 };
	u64 start = t_now_ns(CLOCK_MONOTONIC);
	CHECK(13, !setitimer(ITIMER_REAL, &it, NULL));
	while (ticks < 10)
		pause();
	u64 took = t_now_ns(CLOCK_MONOTONIC) - start;
	CHECK(14, took >= 190000000 && took < 200000000 + LATE, "10 ticks of 20 ms took %" PRIu64 " ns", took);
	/* it also interrupts a busy loop */
	ticks = 0;
	start = t_now_ns(CLOCK_MONOTONIC);
	while (ticks < 5)
		CHECK(15, t_now_ns(CLOCK_MONOTONIC) - start < 100000000 + LATE);
	setitimer(ITIMER_REAL, &off, NULL);
	/* CPU time counts only what is used */
	u64 cpu = t_now_ns(CLOCK_PROCESS_CPUTIME_ID);
	usleep(200000);
	cpu = t_now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	CHECK(16, cpu < 100000000, "%" PRIu64 " ns of CPU time during a sleep", cpu);
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct itimerspec its = { .it_interval.tv_nsec = 10000000, .it_value.tv_nsec = 10000000 };
	u64 n;
	start = t_now_ns(CLOCK_MONOTONIC);
	CHECK(17, fd >= 0 && !timerfd_settime(fd, 0, &its, NULL));
	CHECK(18, read(fd, &n, 8) == 8 || errno == EAGAIN);
	struct pollfd pf = { .fd = fd, .events = POLLIN };
	u64 sum = 0;
	while (sum < 20) {
		CHECK(19, poll(&pf, 1, 5000) == 1 && read(fd, &n, 8) == 8 && n >= 1);
		sum += n;
	}
	took = t_now_ns(CLOCK_MONOTONIC) - start;
	CHECK(20, took >= sum * 10000000 && took < (sum + 1) * 10000000 + LATE, "%" PRIu64 " expirations in %" PRIu64 " ns", sum, took);
	/* poll and select time out, not early */
	start = t_now_ns(CLOCK_MONOTONIC);
	CHECK(21, poll(NULL, 0, 50) == 0 && t_now_ns(CLOCK_MONOTONIC) - start >= 50000000);
	timer_t timer;
	struct sigevent se = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	ticks = 0;
	its = (struct itimerspec){ .it_value.tv_nsec = 30000000 };
	CHECK(22, !timer_create(CLOCK_MONOTONIC, &se, &timer) && !timer_settime(timer, 0, &its, NULL));
	while (!ticks)
		pause();
	CHECK(23, ticks == 1 && !timer_delete(timer));
	return 0;
}
