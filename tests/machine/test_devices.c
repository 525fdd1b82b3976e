/* Each device through its registers, with a bus and nothing else around it. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../unit/check.h"
#include "machine/ioapic.h"
#include "machine/pci.h"
#include "machine/platform.h"
#include "machine/rtc.h"
#include "machine/uart.h"

static struct bus_space pio, mmio;

static u32 in(u16 port, unsigned len)
{
	u32 v = 0;
	bus_access(&pio, port, len, false, &v);
	return v;
}

static void out(u16 port, unsigned len, u32 v) { bus_access(&pio, port, len, true, &v); }

static u32 in8(u16 port) { return in(port, 1); }
static void out8(u16 port, u32 v) { out(port, 1, v); }

/* ---- interrupt lines ---- */

static bool line[32];
static unsigned edges[32];

static void set_line(void *ctx, unsigned gsi, bool on)
{
	edges[gsi] += on && !line[gsi];
	line[gsi] = on;
}

/* ---- bus ---- */

static u64 bus_log[8];
static unsigned bus_n;
static u64 log_read(void *dev, u64 off, unsigned len) { return 0x10 * len + off; }
static void log_write(void *dev, u64 off, unsigned len, u64 v) { bus_log[bus_n++ % 8] = off << 32 | (u64)len << 24 | v; }

static void test_bus(void)
{
	static struct bus_space s;
	bus_add(&s, &(struct bus_region){ 0x100, 4, "narrow", 1, log_read, log_write, NULL });
	bus_add(&s, &(struct bus_region){ 0x200, 8, "wide", 4, log_read, log_write, NULL });
	u64 v = 0;
	bus_access(&s, 0x100, 4, false, &v);
	CHECK_EQ(v, 0x13121110); /* four byte accesses */
	v = 0;
	bus_access(&s, 0x200, 8, false, &v);
	CHECK_EQ(v, 0x4400000040ull);
	v = 0;
	bus_access(&s, 0x103, 2, false, &v); /* runs out of the region: the rest floats */
	CHECK_EQ(v, 0xff13);
	v = 0;
	bus_access(&s, 0x300, 4, false, &v);
	CHECK_EQ(v, 0xffffffff);
	CHECK_EQ(s.unclaimed, 2);
	v = 0xaabb;
	bus_access(&s, 0x101, 2, true, &v);
	CHECK_EQ(bus_log[0], 1ull << 32 | 1u << 24 | 0xbb);
	CHECK_EQ(bus_log[1], 2ull << 32 | 1u << 24 | 0xaa);
}

/* ---- IOAPIC ---- */

static struct kvm_msi msi;
static unsigned msis;
static void got_msi(void *ctx, const struct kvm_msi *m) { msi = *m; msis++; }

static void mm(u32 off, u32 v) { bus_access(&mmio, IOAPIC_BASE + off, 4, true, &v); }
static u32 mr(u32 off)
{
	u32 v = 0;
	bus_access(&mmio, IOAPIC_BASE + off, 4, false, &v);
	return v;
}
static void redir(unsigned pin, u64 v)
{
	mm(0, 0x11 + 2 * pin);
	mm(0x10, (u32)(v >> 32));
	mm(0, 0x10 + 2 * pin);
	mm(0x10, (u32)v);
}
static u32 redir_low(unsigned pin)
{
	mm(0, 0x10 + 2 * pin);
	return mr(0x10);
}

static void test_ioapic(void)
{
	static struct ioapic io;
	ioapic_init(&io, got_msi, NULL);
	ioapic_add(&io, &mmio);
	mm(0, 1);
	CHECK_EQ(mr(0x10), 0x170020); /* 24 pins, version 0x20 */
	mm(0, 0);
	mm(0x10, 0xffffffff);
	CHECK_EQ(mr(0x10), 0x0f000000);
	CHECK_EQ(redir_low(5), 0x10000); /* masked at reset */

	/* edge */
	redir(4, 3ull << 56 | 0x41);
	ioapic_set_irq(&io, 4, true);
	CHECK_EQ(msis, 1);
	CHECK_EQ(msi.address_lo, 0xfee03000);
	CHECK_EQ(msi.data, 0x41);
	ioapic_set_irq(&io, 4, true);
	CHECK_EQ(msis, 1);
	ioapic_set_irq(&io, 4, false);
	ioapic_set_irq(&io, 4, true);
	CHECK_EQ(msis, 2);
	redir(4, 0x10041); /* masked: the edge is lost */
	ioapic_set_irq(&io, 4, false);
	ioapic_set_irq(&io, 4, true);
	redir(4, 0x41);
	CHECK_EQ(msis, 2);

	/* level: remote IRR, EOI, still asserted */
	redir(9, 1ull << 56 | BIT(15) | BIT(11) | 0x52);
	ioapic_set_irq(&io, 9, true);
	CHECK_EQ(msis, 3);
	CHECK_EQ(msi.data, 0xc052);
	CHECK_EQ(msi.address_lo, 0xfee01004);
	CHECK_EQ(redir_low(9), 0x8852 | BIT(14));
	ioapic_set_irq(&io, 9, false);
	ioapic_set_irq(&io, 9, true);
	CHECK_EQ(msis, 3);
	ioapic_eoi(&io, 0x51);
	CHECK_EQ(msis, 3);
	ioapic_eoi(&io, 0x52);
	CHECK_EQ(msis, 4);
	ioapic_set_irq(&io, 9, false);
	mm(0x40, 0x52); /* EOI register */
	CHECK_EQ(redir_low(9), 0x8852);
	CHECK_EQ(msis, 4);
	/* asserted while masked, sent at unmask */
	redir(9, BIT(16) | BIT(15) | 0x52);
	ioapic_set_irq(&io, 9, true);
	CHECK_EQ(msis, 4);
	redir(9, BIT(15) | 0x52);
	CHECK_EQ(msis, 5);
	/* switching to edge and back clears remote IRR */
	redir(9, BIT(16) | 0x52);
	CHECK_EQ(redir_low(9) & BIT(14), 0);
	/* read-only bits */
	redir(10, BIT(16) | BIT(14) | BIT(12));
	CHECK_EQ(redir_low(10), 0x10000);
}

/* ---- UART ---- */

static unsigned wakes;
static void woke(void *ctx) { wakes++; }

enum { BASE = 0x3f8, DATA = BASE, IER, IIR, LCR, MCR, LSR, MSR, SCR };

static void test_uart(void)
{
	static struct uart u;
	u8 buf[64];
	uart_init(&u, 4, set_line, woke, NULL);
	u.connected = true;
	uart_add(&u, &pio, BASE, "ttyS0");

	/* what Linux's autoconfig looks at */
	CHECK_EQ(in8(LSR), 0x60);
	CHECK_EQ(in8(IIR), 0x01);
	out8(IER, 0xff);
	CHECK_EQ(in8(IER), 0x0f);
	out8(IER, 0);
	out8(IIR, 1);
	CHECK_EQ(in8(IIR), 0xc1);
	out8(SCR, 0x5a);
	CHECK_EQ(in8(SCR), 0x5a);
	out8(LCR, 0x80);
	out8(DATA, 0x34);
	out8(IER, 0x12);
	CHECK_EQ(in8(DATA), 0x34);
	CHECK_EQ(in8(IER), 0x12);
	out8(LCR, 3);
	CHECK_EQ(in8(IER), 0);
	out8(MCR, 0x1a); /* loopback, OUT2, RTS */
	CHECK_EQ(in8(MSR) & 0xf0, 0x90);
	CHECK(!line[4]);
	out8(DATA, 'L');
	CHECK_EQ(in8(LSR), 0x61);
	CHECK_EQ(in8(DATA), 'L');
	CHECK_EQ(uart_tx_peek(&u, buf, sizeof buf), 0);
	out8(MCR, 0);
	CHECK_EQ(in8(MSR) & 0xf0, 0xb0);
	in8(MSR);
	CHECK_EQ(in8(MSR), 0xb0); /* deltas are cleared by reading */

	/* THRE interrupt: raised by enabling it, cleared by reading IIR, raised again by a write */
	out8(MCR, 0x0b);
	out8(IER, 2);
	CHECK(line[4]);
	CHECK_EQ(in8(IIR), 0xc2);
	CHECK(!line[4]);
	CHECK_EQ(in8(IIR), 0xc1);
	unsigned e = edges[4];
	out8(DATA, 'a');
	out8(DATA, 'b');
	CHECK(line[4] && edges[4] > e);
	CHECK_EQ(uart_tx_peek(&u, buf, sizeof buf), 2);
	CHECK(!memcmp(buf, "ab", 2));
	uart_tx_consume(&u, 2);
	out8(IER, 0);
	CHECK(!line[4]);
	/* OUT2 gates the line */
	out8(MCR, 3);
	out8(IER, 2);
	CHECK(!line[4]);
	out8(MCR, 0x0b);
	CHECK(line[4]);
	out8(IER, 0);

	/* receive: trigger level, timeout, priority over THRE */
	out8(IIR, 0x41); /* trigger at 4 */
	out8(IER, 3);
	in8(IIR);
	uart_rx_put(&u, (const u8 *)"xyz", 3);
	CHECK(line[4]);
	CHECK_EQ(in8(IIR), 0xcc);
	uart_rx_put(&u, (const u8 *)"w", 1);
	CHECK_EQ(in8(IIR), 0xc4);
	CHECK_EQ(in8(DATA), 'x');
	CHECK_EQ(in8(IIR), 0xcc);
	CHECK_EQ(in8(DATA), 'y');
	CHECK_EQ(in8(DATA), 'z');
	CHECK_EQ(in8(DATA), 'w');
	CHECK_EQ(in8(LSR), 0x60);
	CHECK(!line[4]);

	/* RTS off: nothing comes; nothing is lost */
	out8(MCR, 0x09);
	u8 many[1000];
	for (unsigned i = 0; i < sizeof many; i++)
		many[i] = (u8)(i * 7);
	uart_rx_put(&u, many, sizeof many);
	CHECK_EQ(in8(LSR), 0x60);
	out8(MCR, 0x0b);
	CHECK_EQ(u.fifo_n, 16);
	bool same = true;
	for (unsigned i = 0; i < sizeof many; i++)
		same &= in8(LSR) == 0x61 && in8(DATA) == many[i];
	CHECK(same);
	CHECK_EQ(in8(LSR), 0x60);

	/* FIFO reset empties the FIFO only */
	uart_rx_put(&u, many, 20);
	out8(IIR, 0x43);
	CHECK_EQ(in8(DATA), many[16]);
	while (in8(LSR) & 1)
		in8(DATA);

	/* output the host does not take: THRE goes off before anything is lost, comes back with an interrupt */
	out8(IER, 0);
	unsigned n = 0;
	while (in8(LSR) & 0x20) {
		for (unsigned i = 0; i < 16; i++)
			out8(DATA, n++ & 0xff);
		CHECK(n <= BYTEQ_SIZE);
	}
	CHECK(n > BYTEQ_SIZE - 1024);
	out8(IER, 2);
	CHECK(!line[4]);
	unsigned taken = 0, got;
	same = true;
	while ((got = uart_tx_peek(&u, buf, sizeof buf))) {
		for (unsigned i = 0; i < got; i++)
			same &= buf[i] == ((taken + i) & 0xff);
		taken += got;
		uart_tx_consume(&u, got);
	}
	CHECK(same);
	CHECK_EQ(taken, n);
	CHECK(line[4]);
	CHECK_EQ(u.tx_lost, 0);
	CHECK_EQ(in8(LSR), 0x60);
}

static u64 pause_ns;
static void pace(void *ctx, u64 ns) { pause_ns = ns; }

static void test_uart_pacing(void)
{
	static struct uart u;
	u8 many[2000] = { 0 };
	uart_init(&u, 3, set_line, woke, NULL);
	u.pace = pace;
	uart_add(&u, &pio, 0x2f8, "ttyS1");
	out8(0x2f8 + 2, 1);
	out8(0x2f8 + 4, 0x0b);
	out8(0x2f8 + 1, 1);
	uart_rx_put(&u, many, sizeof many);
	unsigned n = 0;
	while (in8(0x2f8 + 5) & 1) {
		in8(0x2f8);
		n++;
	}
	CHECK_EQ(n, 512);
	CHECK(pause_ns >= 200000 && pause_ns <= 1000000);
	CHECK(!line[3]); /* so that the next burst is an edge */
	unsigned e = edges[3];
	uart_rx_grant(&u);
	CHECK_EQ(edges[3], e + 1);
}

/* ---- RTC ---- */

static u64 fake_now;
static u64 rtc_time(void *ctx) { return fake_now; }
static u32 cmos(u8 i)
{
	out8(0x70, i);
	return in8(0x71);
}
static void cmos_set(u8 i, u8 v)
{
	out8(0x70, i);
	out8(0x71, v);
}

static void test_rtc(void)
{
	static struct rtc r;
	struct loop *loop;
	const u64 s = 1000000000ull;
	CHECK_EQ(loop_create(&loop), 0);
	fake_now = 5 * s;
	/* 2024-02-29 23:59:58 UTC, a Thursday */
	rtc_init(&r, loop, 1709251198 * s, false, set_line, rtc_time, NULL);
	rtc_add(&r, &pio);
	CHECK_EQ(cmos(13), 0x80);
	CHECK_EQ(cmos(0), 0x58);
	CHECK_EQ(cmos(2), 0x59);
	CHECK_EQ(cmos(4), 0x23);
	CHECK_EQ(cmos(6), 5);
	CHECK_EQ(cmos(7), 0x29);
	CHECK_EQ(cmos(8), 2);
	CHECK_EQ(cmos(9), 0x24);
	CHECK_EQ(cmos(0x32), 0x20);
	CHECK_EQ(cmos(10) & 0x80, 0);
	fake_now += s - 1000000; /* 1 ms before the second */
	CHECK_EQ(cmos(10) & 0x80, 0x80);
	fake_now += 1000000 + s;
	CHECK_EQ(cmos(0), 0);
	CHECK_EQ(cmos(7), 1);
	CHECK_EQ(cmos(8), 3);
	/* binary, 12 hours */
	cmos_set(11, 0x04);
	fake_now += 13 * 3600 * s;
	CHECK_EQ(cmos(4), 0x81); /* 1 pm */
	cmos_set(11, 0x06);
	CHECK_EQ(cmos(4), 13);
	/* update-ended interrupt, flags cleared by reading C */
	cmos(12);
	cmos_set(11, 0x16);
	CHECK(!line[8]);
	fake_now += s;
	CHECK_EQ(cmos(0), 1);
	CHECK(line[8]);
	CHECK_EQ(cmos(12) & 0xb0, 0x90);
	CHECK(!line[8]);
	CHECK_EQ(cmos(12), 0);
	/* alarm at xx:xx:10 */
	cmos_set(11, 0x26);
	cmos_set(1, 10);
	cmos_set(3, 0xff);
	cmos_set(5, 0xff);
	fake_now += 5 * s;
	cmos(0);
	CHECK(!line[8]);
	fake_now += 5 * s;
	cmos(0);
	CHECK(line[8]);
	CHECK_EQ(cmos(12) & 0xa0, 0xa0);
	/* setting the time */
	cmos_set(11, 0x86);
	cmos_set(9, 30);
	cmos_set(8, 12);
	cmos_set(7, 31);
	cmos_set(4, 6);
	cmos_set(2, 7);
	cmos_set(0, 8);
	fake_now += 3 * s; /* the clock stands still while SET is on */
	CHECK_EQ(cmos(0), 8);
	cmos_set(11, 0x06);
	fake_now += 2 * s;
	CHECK_EQ(cmos(0), 10);
	CHECK_EQ(cmos(2), 7);
	CHECK_EQ(cmos(9), 30);
	CHECK_EQ(cmos(7), 31);
	CHECK_EQ(cmos(6), 3); /* 2030-12-31 is a Tuesday */
	/* nonsense and RAM */
	for (unsigned i = 0; i < 256; i++)
		for (unsigned k = 0; k < 128; k++)
			cmos_set((u8)k, (u8)(i * 37 + k * 11));
	cmos_set(0x40, 0xa5);
	CHECK_EQ(cmos(0x40), 0xa5);
	loop_destroy(loop);
}

/* ---- board, PCI ---- */

static enum machine_end ended;
static u32 end_code;
static unsigned ends;
static void on_end(void *ctx, enum machine_end e, u32 code, const char *text)
{
	ended = e;
	end_code = code;
	ends++;
}
static u8 debug_byte;
static void on_debug(void *ctx, u8 b) { debug_byte = b; }

static void test_platform(void)
{
	static struct platform p;
	static struct pci_bus pci;
	platform_init(&p);
	p.end = on_end;
	p.set_irq = set_line;
	p.debug_out = on_debug;
	platform_add(&p, &pio, true);
	pci_init(&pci, &p);
	pci_add_ports(&pci, &pio);

	out8(0x600, 0x20 | 4 << 2); /* S4: not offered */
	CHECK_EQ(ends, 0);
	out8(0x600, 0x20 | 5 << 2);
	CHECK(ends == 1 && ended == MACHINE_END_POWEROFF);
	out8(0xcf9, 2);
	CHECK_EQ(ends, 1);
	out8(0xcf9, 6);
	CHECK(ends == 2 && ended == MACHINE_END_RESET);
	CHECK_EQ(in8(0x64), 0);
	out8(0x64, 0xfe);
	CHECK_EQ(ends, 3);
	out8(0x64, 0xff);
	CHECK_EQ(ends, 3);
	out8(0x92, 3);
	CHECK_EQ(ends, 4);
	out(0xf4, 4, 0x1234);
	CHECK(ended == MACHINE_END_DEBUG_EXIT && end_code == 0x1234);
	out8(0x501, 7);
	CHECK_EQ(end_code, 7);
	CHECK_EQ(in8(0x505), 3);
	out8(0x505, 1);
	CHECK(ended == MACHINE_END_PANIC);
	CHECK_EQ(in8(0xe9), 0xe9);
	out8(0x402, 'q');
	CHECK_EQ(debug_byte, 'q');
	platform_power_button(&p);
	CHECK(line[9]);
	CHECK_EQ(in8(0x602), 1);
	CHECK(!line[9]);
	CHECK_EQ(in8(0x602), 0);
	CHECK_EQ(in8(0x21), 0xff); /* no 8259 */

	/* configuration mechanism #1 */
	out(0xcf8, 4, 0x80000000);
	CHECK_EQ(in(0xcf8, 4), 0x80000000);
	CHECK_EQ(in(0xcfc, 4), 0x00081b36);
	CHECK_EQ(in(0xcfe, 2), 0x0008);
	out(0xcfc, 4, 0);
	CHECK_EQ(in(0xcfc, 4), 0x00081b36);
	out(0xcf8, 4, 0x80000008);
	CHECK_EQ(in(0xcfc, 4), 0x06000000);
	out(0xcf8, 4, 0x80000800); /* 0:1.0: nobody */
	CHECK_EQ(in(0xcfc, 4), 0xffffffff);
	out(0xcf8, 4, 0x80010000); /* bus 1 */
	CHECK_EQ(in(0xcfc, 4), 0xffffffff);
	out(0xcf8, 4, 0);
	CHECK_EQ(in(0xcfc, 4), 0xffffffff);
	out8(0xcf8, 0x55); /* a byte does not reach the address register */
	CHECK_EQ(in(0xcf8, 4), 0);
}

int main(void)
{
	test_bus();
	test_ioapic();
	test_uart();
	test_uart_pacing();
	test_rtc();
	test_platform();
	return check_result();
}
