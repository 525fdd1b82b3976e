/* National Semiconductor PC16550D datasheet; register names as there.
 *
 * Transmit: a byte written to THR leaves at once into the tx ring, so THRE is
 * set again at once, unless the ring is nearly full: then THRE stays clear until
 * the host has taken half of it.  The reserve (one FIFO and more) holds what a
 * driver writes after having seen THRE once.
 *
 * Receive: bytes wait in the rx ring and enter the FIFO while it has room and
 * RTS is on; a guest that drops RTS (hardware flow control) is not fed.  They
 * come in bursts with pauses at least as long as the guest took for the burst:
 * a driver stays in its interrupt handler while there is input (Linux gives up
 * after 512 rounds, and then waits for an edge that never comes), and moves
 * the bytes on, and drops RTS when it is full, only outside of it.
 *
 * The interrupt line of a PC's port is gated by OUT2. */
#include "machine/uart.h"

#include <errno.h>
#include <string.h>
#include <time.h>

enum { REG_RBR_THR_DLL, REG_IER_DLM, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR, REG_COUNT };

enum { IER_RDA = 1, IER_THRE = 2, IER_RLS = 4, IER_MS = 8, IER_MASK = 15 };
enum { IIR_MS = 0x00, IIR_NONE = 0x01, IIR_THRE = 0x02, IIR_RDA = 0x04, IIR_RLS = 0x06, IIR_TIMEOUT = 0x0c, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 1, FCR_RX_RESET = 2, FCR_TX_RESET = 4, FCR_TRIGGER = 0xc0 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16, MCR_MASK = 31 };
enum { LSR_DR = 1, LSR_OE = 2, LSR_THRE = 0x20, LSR_TEMT = 0x40 };
enum { MSR_DCTS = 1, MSR_DDSR = 2, MSR_TERI = 4, MSR_DDCD = 8, MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

#define TX_RESERVE 256u       /* room kept when THRE goes off */
#define RX_BURST 512u
#define RX_PAUSE_MIN_NS 200000u
#define RX_PAUSE_MAX_NS 1000000u
#define TX_WAIT_NS 100000000L /* how long a byte written against THRE waits for room before it is lost */

static unsigned trigger(const struct uart *u)
{
	static const u8 level[4] = { 1, 4, 8, 14 };
	return u->fcr & FCR_ENABLE ? level[u->fcr >> 6] : 1;
}

static unsigned fifo_size(const struct uart *u) { return u->fcr & FCR_ENABLE ? UART_FIFO : 1; }

/* Highest-priority pending interrupt, table 4-1 of the datasheet. */
static u8 iir_source(const struct uart *u)
{
	if ((u->ier & IER_RLS) && u->lsr_err)
		return IIR_RLS;
	if ((u->ier & IER_RDA) && u->fifo_n >= trigger(u))
		return IIR_RDA;
	if ((u->ier & IER_RDA) && u->fifo_n)
		return IIR_TIMEOUT; /* four character times pass at once on an infinitely fast line */
	if ((u->ier & IER_THRE) && u->thre_pending)
		return IIR_THRE;
	if ((u->ier & IER_MS) && u->msr_delta)
		return IIR_MS;
	return IIR_NONE;
}

static void update_irq(struct uart *u)
{
	/* In loopback the OUT2 pin is forced off, and with it the PC's interrupt gate. */
	bool on = iir_source(u) != IIR_NONE && (u->mcr & MCR_OUT2) && !(u->mcr & MCR_LOOP);
	if (on != u->irq) {
		u->irq = on;
		u->set_irq(u->ctx, u->gsi, on);
	}
}

static u8 modem_lines(const struct uart *u)
{
	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (u8)((u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
		    (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static u64 now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

static void begin_burst(struct uart *u)
{
	u->credit = RX_BURST;
	u->burst_ns = now_ns();
}

/* The burst is used up: the next one comes after a pause. */
static void end_burst(struct uart *u)
{
	if (u->granting)
		return;
	u64 took = now_ns() - u->burst_ns;
	u->granting = true;
	u->pace(u->ctx, took < RX_PAUSE_MIN_NS ? RX_PAUSE_MIN_NS : took > RX_PAUSE_MAX_NS ? RX_PAUSE_MAX_NS : took);
}

/* Moves input into the FIFO; tells the host side when the ring has drained. */
static void feed(struct uart *u)
{
	u32 before = byteq_used(&u->rx);
	while (u->fifo_n < fifo_size(u) && byteq_used(&u->rx) && (u->mcr & MCR_RTS) && !(u->mcr & MCR_LOOP)) {
		if (u->pace && !u->credit) {
			end_burst(u);
			break;
		}
		u->fifo[u->fifo_n++] = byteq_get(&u->rx);
		u->rx_bytes++;
		u->credit -= u->credit != 0;
	}
	if (before >= BYTEQ_SIZE / 2 && byteq_used(&u->rx) < BYTEQ_SIZE / 2)
		u->wake(u->ctx);
}

/* A byte written although THRE said no: a real chip overwrites; here it waits a while first. */
static bool wait_room(struct uart *u)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += TX_WAIT_NS;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	u->wake(u->ctx);
	while (!byteq_room(&u->tx) && !u->closing) {
		int r = u->lossless ? pthread_cond_wait(&u->room, &u->lock)
				    : pthread_cond_timedwait(&u->room, &u->lock, &until);
		if (r == ETIMEDOUT)
			break;
	}
	return byteq_room(&u->tx) != 0;
}

static void loop_receive(struct uart *u, u8 b)
{
	if (u->fifo_n == fifo_size(u)) {
		u->lsr_err |= LSR_OE;
		if (!(u->fcr & FCR_ENABLE))
			u->fifo[0] = b;
		return;
	}
	u->fifo[u->fifo_n++] = b;
}

static void transmit(struct uart *u, u8 b)
{
	u->thre_pending = false;
	update_irq(u); /* the line falls, so that an edge-triggered pin sees the next rise */
	if (u->mcr & MCR_LOOP) {
		loop_receive(u, b);
	} else {
		u->tx_bytes++;
		if (u->connected) {
			if (!byteq_room(&u->tx) && !wait_room(u)) {
				u->tx_lost++;
			} else {
				byteq_put(&u->tx, b);
				u->wake(u->ctx);
			}
			if (byteq_room(&u->tx) < TX_RESERVE && !u->lossless) {
				u->tx_stalls += u->thre;
				u->thre = false;
			}
		}
	}
	if (u->thre)
		u->thre_pending = true;
	update_irq(u);
}

static u64 reg_read(void *dev, u64 off, unsigned len)
{
	struct uart *u = dev;
	u8 v = 0;
	pthread_mutex_lock(&u->lock);
	switch (off) {
	case REG_RBR_THR_DLL:
		if (u->lcr & LCR_DLAB) {
			v = u->dll;
		} else if (u->fifo_n) {
			v = u->fifo[0];
			memmove(u->fifo, u->fifo + 1, --u->fifo_n);
			feed(u);
		}
		break;
	case REG_IER_DLM:
		v = u->lcr & LCR_DLAB ? u->dlm : u->ier;
		break;
	case REG_IIR_FCR:
		v = iir_source(u);
		if (v == IIR_THRE)
			u->thre_pending = false;
		if (u->fcr & FCR_ENABLE)
			v |= IIR_FIFO;
		break;
	case REG_LCR:
		v = u->lcr;
		break;
	case REG_MCR:
		v = u->mcr;
		break;
	case REG_LSR:
		v = (u8)((u->fifo_n ? LSR_DR : 0) | u->lsr_err | (u->thre ? LSR_THRE | LSR_TEMT : 0));
		u->lsr_err = 0;
		break;
	case REG_MSR:
		v = modem_lines(u) | u->msr_delta;
		u->msr_delta = 0;
		break;
	case REG_SCR:
		v = u->scr;
		break;
	}
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
	return v;
}

static void write_fcr(struct uart *u, u8 v)
{
	/* Switching FIFO mode empties the FIFOs.  The transmit FIFO is always empty. */
	if (((v ^ u->fcr) & FCR_ENABLE) || (v & FCR_RX_RESET))
		u->fifo_n = 0;
	/* The other bits are programmed only together with the enable bit. */
	u->fcr = v & FCR_ENABLE ? v & (FCR_ENABLE | FCR_TRIGGER) : 0;
	feed(u);
}

static void write_mcr(struct uart *u, u8 v)
{
	u8 old = modem_lines(u);
	u->mcr = v & MCR_MASK;
	u8 now = modem_lines(u), changed = old ^ now;
	u->msr_delta |= (u8)((changed & MSR_CTS ? MSR_DCTS : 0) | (changed & MSR_DSR ? MSR_DDSR : 0) |
			     (changed & MSR_DCD ? MSR_DDCD : 0) | (changed & ~now & MSR_RI ? MSR_TERI : 0));
	feed(u);
}

static void reg_write(void *dev, u64 off, unsigned len, u64 val)
{
	struct uart *u = dev;
	u8 v = (u8)val;
	pthread_mutex_lock(&u->lock);
	switch (off) {
	case REG_RBR_THR_DLL:
		if (u->lcr & LCR_DLAB)
			u->dll = v;
		else
			transmit(u, v);
		break;
	case REG_IER_DLM:
		if (u->lcr & LCR_DLAB) {
			u->dlm = v;
			break;
		}
		/* Enabling the THRE interrupt while the register is empty raises it. */
		if ((v & ~u->ier & IER_THRE) && u->thre)
			u->thre_pending = true;
		u->ier = v & IER_MASK;
		break;
	case REG_IIR_FCR:
		write_fcr(u, v);
		break;
	case REG_LCR:
		u->lcr = v;
		break;
	case REG_MCR:
		write_mcr(u, v);
		break;
	case REG_SCR:
		u->scr = v;
		break;
	}
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
}

u32 uart_tx_peek(struct uart *u, u8 *buf, u32 len)
{
	pthread_mutex_lock(&u->lock);
	u32 n = 0;
	u32 used = byteq_used(&u->tx);
	if (len > used)
		len = used;
	while (n < len) {
		u32 at = (u->tx.tail + n) % BYTEQ_SIZE, span = BYTEQ_SIZE - at;
		if (span > len - n)
			span = len - n;
		memcpy(buf + n, u->tx.buf + at, span);
		n += span;
	}
	pthread_mutex_unlock(&u->lock);
	return n;
}

void uart_tx_consume(struct uart *u, u32 n)
{
	pthread_mutex_lock(&u->lock);
	ASSERT(n <= byteq_used(&u->tx));
	u->tx.tail += n;
	if (!u->thre && byteq_used(&u->tx) <= BYTEQ_SIZE / 2) {
		u->thre = u->thre_pending = true;
		update_irq(u);
	}
	pthread_cond_broadcast(&u->room);
	pthread_mutex_unlock(&u->lock);
}

u32 uart_rx_room(struct uart *u)
{
	pthread_mutex_lock(&u->lock);
	u32 n = byteq_room(&u->rx);
	pthread_mutex_unlock(&u->lock);
	return n;
}

void uart_rx_put(struct uart *u, const u8 *buf, u32 n)
{
	pthread_mutex_lock(&u->lock);
	for (u32 i = 0; i < n; i++)
		byteq_put(&u->rx, buf[i]);
	if (!u->granting && now_ns() - u->burst_ns > RX_PAUSE_MAX_NS)
		begin_burst(u); /* it was quiet for a while */
	feed(u);
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
}

void uart_rx_grant(struct uart *u)
{
	pthread_mutex_lock(&u->lock);
	u->granting = false;
	begin_burst(u);
	feed(u);
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
}

void uart_put(struct uart *u, u8 b)
{
	pthread_mutex_lock(&u->lock);
	u->tx_bytes++;
	if (u->connected) {
		if (byteq_room(&u->tx) || wait_room(u)) {
			byteq_put(&u->tx, b);
			u->wake(u->ctx);
		} else {
			u->tx_lost++;
		}
	}
	pthread_mutex_unlock(&u->lock);
}

void uart_close(struct uart *u)
{
	pthread_mutex_lock(&u->lock);
	u->closing = true;
	pthread_cond_broadcast(&u->room);
	pthread_mutex_unlock(&u->lock);
}

void uart_init(struct uart *u, unsigned gsi, void (*set_irq)(void *, unsigned, bool), void (*wake)(void *), void *ctx)
{
	pthread_condattr_t attr;
	memset(u, 0, sizeof(*u));
	pthread_mutex_init(&u->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&u->room, &attr);
	pthread_condattr_destroy(&attr);
	u->gsi = gsi;
	u->set_irq = set_irq;
	u->wake = wake;
	u->ctx = ctx;
	u->thre = true;
	u->dll = 12; /* 9600 baud, as firmware leaves it */
}

void uart_add(struct uart *u, struct bus_space *pio, u16 base, const char *name)
{
	bus_add(pio, &(struct bus_region){ .base = base, .size = REG_COUNT, .name = name, .max_access = 1,
					   .read = reg_read, .write = reg_write, .dev = u });
}
