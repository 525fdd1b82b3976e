/* MC146818 real-time clock and CMOS RAM at ports 0x70/0x71, IRQ 8. */
#ifndef MACHINE_RTC_H
#define MACHINE_RTC_H

#include <pthread.h>

#include "core/base.h"
#include "core/loop.h"
#include "machine/bus.h"

#define RTC_GSI 8
#define RTC_SIZE 128

struct rtc {
	pthread_mutex_t lock;
	void (*set_irq)(void *ctx, unsigned gsi, bool asserted);
	u64 (*now_ns)(void *ctx); /* nanoseconds since the VM's start */
	void *ctx;
	struct loop_timer timer;  /* next interrupt wanted */
	bool timers;              /* false in deterministic mode: flags, but no interrupts by host time */

	s64 offset_ns;   /* clock = offset + now_ns; nanoseconds since 1970 UTC */
	u8 index;
	u8 ram[RTC_SIZE]; /* time registers are computed; alarm, A, B and the RAM live here */
	u8 flags;        /* register C: PF, AF, UF */
	s64 checked_ns;  /* events up to here are in flags */
	bool irq;
	s64 set_seconds; /* broken-down time while SET is on: seconds since 1970 */
};

void rtc_init(struct rtc *r, struct loop *loop, u64 start_ns, bool timers,
	      void (*set_irq)(void *, unsigned, bool), u64 (*now_ns)(void *), void *ctx);
void rtc_add(struct rtc *r, struct bus_space *pio);

#endif
