#include "core/tsc.h"

#include <cpuid.h>
#include <errno.h>
#include <time.h>

#define TSC_WINDOW_NS 20000000u
#define TSC_TRIES 40
#define TSC_AGREE_PPM 20

static u64 tsc_raw_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
}

/* The narrowest of several readings of the clock between two of the counter:
 * interrupts and preemption only ever widen one. */
void tsc_moment(struct tsc_moment *m)
{
	u64 best = ~0ull;
	for (int i = 0; i < TSC_TRIES; i++) {
		__builtin_ia32_lfence();
		u64 a = __builtin_ia32_rdtsc();
		u64 ns = tsc_raw_ns();
		__builtin_ia32_lfence();
		u64 b = __builtin_ia32_rdtsc();
		if (b - a >= best)
			continue;
		best = b - a;
		m->tsc = a + (b - a) / 2;
		m->raw_ns = ns;
	}
	/* In nanoseconds at a guess of 1 GHz or more: an upper bound. */
	m->width_ns = best;
}

static u64 tsc_khz_cpuid(enum tsc_source *source)
{
	u32 a, b, c, d;
	__cpuid(1, a, b, c, d);
	if (c & (1u << 31)) { /* a hypervisor: its timing leaf */
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			if (a) {
				*source = TSC_CPUID_40000010H;
				return a;
			}
		}
	}
	if (__get_cpuid_max(0, NULL) >= 0x15) {
		__cpuid_count(0x15, 0, a, b, c, d);
		if (a && b && c) {
			*source = TSC_CPUID_15H;
			return (u64)c * b / a / 1000;
		}
	}
	return 0;
}

int tsc_calibrate(const struct tsc_moment *since, struct tsc_info *out, struct err *e)
{
	struct tsc_moment first, last;
	if (since)
		first = *since;
	else
		tsc_moment(&first);
	for (;;) {
		u64 passed = tsc_raw_ns() - first.raw_ns;
		if (passed >= TSC_WINDOW_NS)
			break;
		struct timespec ts = { .tv_nsec = (long)(TSC_WINDOW_NS - passed) };
		nanosleep(&ts, NULL);
	}
	tsc_moment(&last);
	u64 ns = last.raw_ns - first.raw_ns, ticks = last.tsc - first.tsc;
	u64 khz = (u64)(((u128)ticks * 1000000u + ns / 2) / ns);
	if (last.tsc <= first.tsc || khz < 100000 || khz > 20000000)
		return err_set(e, EOPNOTSUPP, "cannot measure the time-stamp counter: %llu ticks in %llu ns",
			       (unsigned long long)ticks, (unsigned long long)ns);
	u32 a, b, c, d;
	*out = (struct tsc_info){ .khz = khz, .source = TSC_MEASURED };
	out->invariant = __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8));
	out->error_ppm = (u32)((first.width_ns + last.width_ns) * 1000000u / khz * 1000u / ns) + 1;
	enum tsc_source source;
	u64 said = tsc_khz_cpuid(&source);
	u64 diff = said > khz ? said - khz : khz - said;
	if (said && diff * 1000000u <= khz * TSC_AGREE_PPM) {
		out->khz = said;
		out->source = source;
	}
	return 0;
}
