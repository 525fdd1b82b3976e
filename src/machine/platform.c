#include "machine/platform.h"

#include <string.h>

enum { SLP_EN = 0x20 }; /* ACPI 6.4, 4.8.3.7: sleep control register */
enum { PVPANIC_PANICKED = 1, PVPANIC_CRASH_LOADED = 2 };

static u64 read_zero(void *dev, u64 off, unsigned len) { return 0; }
static void write_nothing(void *dev, u64 off, unsigned len, u64 v) {}

static void sleep_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	if (off == 0 && (v & SLP_EN) && (v >> 2 & 7) == PLATFORM_SLP_TYP_S5)
		p->end(p->ctx, MACHINE_END_POWEROFF, 0, "the guest powered off");
}

static u64 events_read(void *dev, u64 off, unsigned len)
{
	struct platform *p = dev;
	pthread_mutex_lock(&p->lock);
	u8 v = p->events;
	p->events = 0;
	p->set_irq(p->ctx, PLATFORM_GED_GSI, false);
	pthread_mutex_unlock(&p->lock);
	return v;
}

void platform_power_button(struct platform *p)
{
	pthread_mutex_lock(&p->lock);
	p->events |= PLATFORM_EVENT_POWER_BUTTON;
	p->set_irq(p->ctx, PLATFORM_GED_GSI, true);
	pthread_mutex_unlock(&p->lock);
}

void platform_reset_control(struct platform *p, u8 v)
{
	if (v & 4) /* RST_CPU; bit 1 chooses hard or soft */
		p->end(p->ctx, MACHINE_END_RESET, 0, "the guest reset the machine (port 0xcf9)");
	p->reset_control = v;
}

/* Of the keyboard controller only what resets machines is there.  Its status
 * says "ready, nothing to read" so that code waiting for it goes on. */
static void i8042_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	if ((v & 0xf1) == 0xf0) /* pulse output lines, line 0 (reset) among them */
		p->end(p->ctx, MACHINE_END_RESET, 0, "the guest reset the machine (keyboard controller)");
}

static u64 port92_read(void *dev, u64 off, unsigned len) { return 2; } /* A20 is always on */

static void port92_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	if (v & 1)
		p->end(p->ctx, MACHINE_END_RESET, 0, "the guest reset the machine (port 0x92)");
}

/* NMI status and speaker control: no NMI reason; bit 4 toggles as the refresh clock does. */
static u64 port61_read(void *dev, u64 off, unsigned len)
{
	struct platform *p = dev;
	pthread_mutex_lock(&p->lock);
	p->port61 ^= 0x10;
	u8 v = p->port61;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void port61_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	pthread_mutex_lock(&p->lock);
	p->port61 = (u8)((p->port61 & 0x10) | (v & 0x0f));
	pthread_mutex_unlock(&p->lock);
}

static u64 pvpanic_read(void *dev, u64 off, unsigned len) { return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED; }

static void pvpanic_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	if (v & PVPANIC_PANICKED)
		p->end(p->ctx, MACHINE_END_PANIC, 0, "the guest kernel panicked");
}

static void debug_exit_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	p->end(p->ctx, MACHINE_END_DEBUG_EXIT, (u32)v, "the guest wrote to the debug exit port");
}

static u64 debugcon_read(void *dev, u64 off, unsigned len) { return 0xe9; } /* how guests find it */

static void debugcon_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct platform *p = dev;
	p->debug_out(p->ctx, (u8)v);
}

void platform_init(struct platform *p)
{
	memset(p, 0, sizeof(*p));
	pthread_mutex_init(&p->lock, NULL);
}

void platform_add(struct platform *p, struct bus_space *pio, bool debug_exit)
{
	const struct bus_region always[] = {
		{ 0x61, 1, "port-61", 1, port61_read, port61_write, p },
		{ 0x64, 1, "i8042-reset", 1, read_zero, i8042_write, p },
		{ 0x80, 1, "post-code", 1, read_zero, write_nothing, p },
		{ 0x92, 1, "port-92", 1, port92_read, port92_write, p },
		{ 0xed, 1, "io-delay", 1, read_zero, write_nothing, p },
		{ PLATFORM_SLEEP_CONTROL, 2, "acpi-sleep", 1, read_zero, sleep_write, p },
		{ PLATFORM_EVENTS, 1, "acpi-events", 1, events_read, write_nothing, p },
		{ PLATFORM_PVPANIC, 1, "pvpanic", 1, pvpanic_read, pvpanic_write, p },
	};
	const struct bus_region exits[] = {
		{ 0xf4, 4, "isa-debug-exit", 4, read_zero, debug_exit_write, p },
		{ 0x501, 1, "isa-debug-exit", 1, read_zero, debug_exit_write, p },
	};
	const struct bus_region cons[] = {
		{ 0xe9, 1, "debugcon", 1, debugcon_read, debugcon_write, p },
		{ 0x402, 1, "debugcon", 1, debugcon_read, debugcon_write, p },
	};
	for (size_t i = 0; i < ARRAY_SIZE(always); i++)
		bus_add(pio, &always[i]);
	for (size_t i = 0; debug_exit && i < ARRAY_SIZE(exits); i++)
		bus_add(pio, &exits[i]);
	for (size_t i = 0; p->debug_out && i < ARRAY_SIZE(cons); i++)
		bus_add(pio, &cons[i]);
}
