/* Motorola MC146818A datasheet.  The time registers are not counted up but
 * computed from the host's clock; register C is brought up to date at every
 * look.  The chip counts UTC. */
#include "machine/rtc.h"

#include <string.h>
#include <time.h>

enum { SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D };
enum { CENTURY = 0x32 }; /* FADT names it */
enum { A_UIP = 0x80, A_RATE = 0x0f };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 4, B_24H = 2 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };
enum { D_VALID = 0x80 };

#define SECOND_NS 1000000000ll
#define UIP_NS 2228000ll /* UIP rises 244 µs before an update that takes 1984 µs (table 4) */

#define MAX_SECONDS 9000000000ll

static s64 clock_ns(struct rtc *r) { return r->offset_ns + (s64)r->now_ns(r->ctx); }

static s64 floor_div(s64 a, s64 b) { return a / b - (a % b < 0); }

static u8 encode(const struct rtc *r, int v)
{
	return (u8)(r->ram[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

static int decode(const struct rtc *r, u8 v)
{
	return r->ram[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 15);
}

static u8 encode_hour(const struct rtc *r, int h)
{
	if (r->ram[REG_B] & B_24H)
		return encode(r, h);
	return (u8)(encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0));
}

static int decode_hour(const struct rtc *r, u8 v)
{
	if (r->ram[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

static void broken_down(struct rtc *r, struct tm *tm)
{
	time_t t = r->ram[REG_B] & B_SET ? r->set_seconds : floor_div(clock_ns(r), SECOND_NS);
	gmtime_r(&t, tm);
}

/* Period of the periodic interrupt for rate 1…15 with the 32768 Hz time base. */
static s64 period_ns(const struct rtc *r)
{
	unsigned rate = r->ram[REG_A] & A_RATE;
	if (!rate)
		return 0;
	if (rate <= 2)
		rate += 7;
	return SECOND_NS * (1ll << (rate - 1)) / 32768;
}

static bool alarm_field(const struct rtc *r, u8 alarm, u8 now) { return (alarm & 0xc0) == 0xc0 || alarm == now; }

static bool alarm_at(struct rtc *r, s64 second)
{
	int of_day = (int)(second - floor_div(second, 86400) * 86400);
	return alarm_field(r, r->ram[SECONDS_ALARM], encode(r, of_day % 60)) &&
	       alarm_field(r, r->ram[MINUTES_ALARM], encode(r, of_day / 60 % 60)) &&
	       alarm_field(r, r->ram[HOURS_ALARM], encode_hour(r, of_day / 3600));
}

/* The next second after `second` at which the alarm matches; within a day or never. */
static s64 next_alarm(struct rtc *r, s64 second)
{
	for (s64 s = second + 1; s <= second + 86400; s++)
		if (alarm_at(r, s))
			return s;
	return -1;
}

/* Collects the events between the last look and now, then drives the line. */
static void update(struct rtc *r)
{
	s64 now = clock_ns(r), from = r->checked_ns;
	if (now > from) {
		s64 period = period_ns(r), s0 = floor_div(from, SECOND_NS), s1 = floor_div(now, SECOND_NS);
		if (period && floor_div(now, period) != floor_div(from, period))
			r->flags |= C_PF;
		if (s1 != s0 && !(r->ram[REG_B] & B_SET)) {
			r->flags |= C_UF;
			if (s1 - s0 > 86400)
				s0 = s1 - 86400;
			if (!(r->flags & C_AF)) {
				s64 a = next_alarm(r, s0);
				if (a >= 0 && a <= s1)
					r->flags |= C_AF;
			}
		}
		r->checked_ns = now;
	}
	bool on = r->flags & r->ram[REG_B] & (C_PF | C_AF | C_UF); /* enable bits lie where the flags lie */
	if (on != r->irq) {
		r->irq = on;
		r->set_irq(r->ctx, RTC_GSI, on);
	}
}

/* Arms the timer for the next event whose interrupt is enabled. */
static void arm(struct rtc *r)
{
	if (!r->timers)
		return;
	u8 b = r->ram[REG_B];
	s64 now = clock_ns(r), next = INT64_MAX, s = floor_div(now, SECOND_NS);
	if ((b & B_PIE) && period_ns(r))
		next = (floor_div(now, period_ns(r)) + 1) * period_ns(r);
	if ((b & B_UIE) && !(b & B_SET) && (s + 1) * SECOND_NS < next)
		next = (s + 1) * SECOND_NS;
	if ((b & B_AIE) && !(b & B_SET)) {
		s64 a = next_alarm(r, s);
		if (a >= 0 && a * SECOND_NS < next)
			next = a * SECOND_NS;
	}
	/* A line already up gives no new edge: nothing to be early for until register C is read. */
	if (next == INT64_MAX || r->irq)
		loop_timer_cancel(&r->timer);
	else
		loop_timer_set(&r->timer, loop_now_ns() + (u64)(next - now));
}

static void on_timer(void *arg)
{
	struct rtc *r = arg;
	pthread_mutex_lock(&r->lock);
	update(r);
	arm(r);
	pthread_mutex_unlock(&r->lock);
}

static u8 read_register(struct rtc *r, u8 i)
{
	struct tm tm;
	u8 v;
	switch (i) {
	case SECONDS: case MINUTES: case HOURS: case WEEKDAY: case DAY: case MONTH: case YEAR: case CENTURY:
		broken_down(r, &tm);
		switch (i) {
		case SECONDS: return encode(r, tm.tm_sec);
		case MINUTES: return encode(r, tm.tm_min);
		case HOURS: return encode_hour(r, tm.tm_hour);
		case WEEKDAY: return encode(r, tm.tm_wday + 1);
		case DAY: return encode(r, tm.tm_mday);
		case MONTH: return encode(r, tm.tm_mon + 1);
		case YEAR: return encode(r, tm.tm_year % 100);
		default: return encode(r, (tm.tm_year + 1900) / 100);
		}
	case REG_A:
		v = r->ram[REG_A];
		if (!(r->ram[REG_B] & B_SET) && SECOND_NS - clock_ns(r) % SECOND_NS <= UIP_NS)
			v |= A_UIP;
		return v;
	case REG_C:
		v = r->flags;
		if (r->irq)
			v |= C_IRQF;
		r->flags = 0;
		update(r);
		arm(r);
		return v;
	case REG_D:
		return D_VALID;
	default:
		return r->ram[i];
	}
}

/* The guest sets one field of the time. */
static void set_field(struct rtc *r, u8 i, u8 v)
{
	struct tm tm;
	s64 now = clock_ns(r), frac = now - floor_div(now, SECOND_NS) * SECOND_NS;
	int n = decode(r, v);
	broken_down(r, &tm);
	switch (i) {
	case SECONDS: tm.tm_sec = n; break;
	case MINUTES: tm.tm_min = n; break;
	case HOURS: tm.tm_hour = decode_hour(r, v); break;
	case DAY: tm.tm_mday = n; break;
	case MONTH: tm.tm_mon = n - 1; break;
	case YEAR: tm.tm_year = (tm.tm_year + 1900) / 100 * 100 + n - 1900; break;
	case CENTURY: tm.tm_year = n * 100 + (tm.tm_year + 1900) % 100 - 1900; break;
	default: return; /* weekday follows from the date */
	}
	/* What nanoseconds in 64 bits hold: 1970 to 2255. */
	s64 t = timegm(&tm);
	t = t < 0 ? 0 : t > MAX_SECONDS ? MAX_SECONDS : t;
	if (r->ram[REG_B] & B_SET)
		r->set_seconds = t;
	else
		r->offset_ns += t * SECOND_NS + frac - now;
	r->checked_ns = clock_ns(r);
}

static void write_register(struct rtc *r, u8 i, u8 v)
{
	switch (i) {
	case SECONDS: case MINUTES: case HOURS: case WEEKDAY: case DAY: case MONTH: case YEAR: case CENTURY:
		set_field(r, i, v);
		break;
	case REG_A:
		r->ram[REG_A] = v & ~A_UIP;
		break;
	case REG_B:
		if (v & ~r->ram[REG_B] & B_SET) {
			r->set_seconds = floor_div(clock_ns(r), SECOND_NS);
			v &= (u8)~B_UIE; /* datasheet: setting SET clears UIE */
		} else if (~v & r->ram[REG_B] & B_SET) {
			s64 now = clock_ns(r);
			if (r->set_seconds != floor_div(now, SECOND_NS))
				r->offset_ns += r->set_seconds * SECOND_NS - now;
			r->checked_ns = clock_ns(r);
		}
		r->ram[REG_B] = v;
		break;
	case REG_C: case REG_D:
		return;
	default:
		r->ram[i] = v;
		if (i > REG_D)
			return;
	}
	update(r);
	arm(r);
}

static u64 port_read(void *dev, u64 off, unsigned len)
{
	struct rtc *r = dev;
	if (off == 0)
		return 0xff; /* the index is write-only */
	pthread_mutex_lock(&r->lock);
	update(r);
	u8 v = read_register(r, r->index);
	pthread_mutex_unlock(&r->lock);
	return v;
}

static void port_write(void *dev, u64 off, unsigned len, u64 val)
{
	struct rtc *r = dev;
	pthread_mutex_lock(&r->lock);
	if (off == 0) {
		r->index = val & 0x7f; /* bit 7 masks NMI on a PC: no NMI source here */
	} else {
		update(r);
		write_register(r, r->index, (u8)val);
	}
	pthread_mutex_unlock(&r->lock);
}

void rtc_init(struct rtc *r, struct loop *loop, u64 start_ns, bool timers,
	      void (*set_irq)(void *, unsigned, bool), u64 (*now_ns)(void *), void *ctx)
{
	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	r->set_irq = set_irq;
	r->now_ns = now_ns;
	r->ctx = ctx;
	r->timers = timers;
	r->offset_ns = (s64)start_ns - (s64)now_ns(ctx);
	r->ram[REG_A] = 0x26; /* 32768 Hz, 1024 Hz periodic: as firmware leaves it */
	r->ram[REG_B] = B_24H;
	r->checked_ns = clock_ns(r);
	loop_timer_init(&r->timer, loop, on_timer, r);
}

void rtc_add(struct rtc *r, struct bus_space *pio)
{
	bus_add(pio, &(struct bus_region){ .base = 0x70, .size = 2, .name = "rtc", .max_access = 1,
					   .read = port_read, .write = port_write, .dev = r });
}
