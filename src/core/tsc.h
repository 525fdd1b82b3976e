/* The host's time-stamp counter without privileges. */
#ifndef CORE_TSC_H
#define CORE_TSC_H

#include "core/base.h"
#include "core/error.h"

/* A frequency that CPUID states is taken only when the measurement agrees. */
enum tsc_source { TSC_MEASURED, TSC_CPUID_15H, TSC_CPUID_40000010H };

struct tsc_info {
	u64 khz;
	enum tsc_source source;
	bool invariant; /* CPUID 80000007H:EDX[8] */
	u32 error_ppm;  /* bound of the measurement's error (not of the crystal's) */
};

/* A moment on both clocks.  To hide the time that measuring takes, note one
 * at the start of the program and hand it over later. */
struct tsc_moment {
	u64 tsc;
	u64 raw_ns;   /* CLOCK_MONOTONIC_RAW */
	u64 width_ns; /* how exactly the two belong together */
};
void tsc_moment(struct tsc_moment *m);

/* since may be NULL; sleeps until 20 ms after it have passed. */
int tsc_calibrate(const struct tsc_moment *since, struct tsc_info *out, struct err *e);

#endif
