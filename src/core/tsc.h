/* The host's time-stamp counter without privileges. */
#ifndef CORE_TSC_H
#define CORE_TSC_H

#include "core/base.h"
#include "core/error.h"

enum tsc_source { TSC_MEASURED, TSC_CPUID_15H, TSC_CPUID_40000010H };

struct tsc_info {
	u64 khz;
	enum tsc_source source;
	bool invariant; /* CPUID 80000007H:EDX[8] */
	u32 error_ppm;  /* bound of the measurement's error (not of the crystal's) */
};

/* Takes up to 25 ms when it must measure (against CLOCK_MONOTONIC_RAW). */
int tsc_calibrate(struct tsc_info *out, struct err *e);

#endif
