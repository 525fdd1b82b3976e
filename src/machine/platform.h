/* The small fixed ports of the board. */
#ifndef MACHINE_PLATFORM_H
#define MACHINE_PLATFORM_H

#include <pthread.h>

#include "core/base.h"
#include "machine/bus.h"
#include "machine/machine.h"

/* ACPI register block; the FADT and dsdt.asl name the same numbers. */
#define PLATFORM_SLEEP_CONTROL 0x600
#define PLATFORM_SLEEP_STATUS 0x601
#define PLATFORM_EVENTS 0x602 /* read: pending events, and clears them */
#define PLATFORM_EVENT_POWER_BUTTON 1
#define PLATFORM_GED_GSI 9
#define PLATFORM_SLP_TYP_S5 5
#define PLATFORM_RESET_PORT 0xcf9
#define PLATFORM_RESET_VALUE 6
#define PLATFORM_PVPANIC 0x505

struct platform {
	void (*end)(void *ctx, enum machine_end end, u32 code, const char *text);
	void (*set_irq)(void *ctx, unsigned gsi, bool asserted);
	void (*debug_out)(void *ctx, u8 byte); /* may be NULL */
	void *ctx;
	pthread_mutex_t lock;
	u8 events;
	u8 port61, reset_control;
};

void platform_init(struct platform *p);
void platform_add(struct platform *p, struct bus_space *pio, bool debug_exit);
void platform_power_button(struct platform *p);

/* Writes to the reset control register at 0xcf9, which lies inside PCI's ports. */
void platform_reset_control(struct platform *p, u8 v);

#endif
