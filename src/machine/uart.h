/* 16550A.  Bytes go to and come from a ring the host side (serial.c) empties
 * and fills.  Output is infinitely fast, input comes in paced bursts (uart.c). */
#ifndef MACHINE_UART_H
#define MACHINE_UART_H

#include <pthread.h>

#include "core/base.h"
#include "machine/bus.h"
#include "machine/byteq.h"

#define UART_FIFO 16u

struct uart {
	pthread_mutex_t lock;
	pthread_cond_t room;  /* tx gained room */
	void (*set_irq)(void *ctx, unsigned gsi, bool asserted);
	void (*wake)(void *ctx); /* the host side has something to do */
	void (*pace)(void *ctx, u64 delay_ns); /* call uart_rx_grant after so long; NULL: input is not paced */
	void *ctx;
	unsigned gsi;
	bool connected; /* a host descriptor takes the output; else it is thrown away */
	bool lossless;  /* deterministic mode: a full ring stops the vCPU instead of clearing THRE */
	bool closing;   /* the VM ends: nobody waits for room any more */

	u8 ier, lcr, mcr, scr, dll, dlm;
	u8 msr_delta; /* bits 0-3 of MSR */
	u8 fcr;       /* FIFO enable and trigger bits as last written */
	u8 lsr_err;   /* OE of LSR; no line errors can happen otherwise */
	bool thre;         /* transmitter holding register empty */
	bool thre_pending; /* its interrupt, cleared by reading IIR or writing THR */
	bool irq;

	u8 fifo[UART_FIFO]; /* receive FIFO; one entry in 8250 mode */
	unsigned fifo_n;
	u32 credit;           /* bytes that may still enter the FIFO in this burst */
	u64 burst_ns;         /* when the burst began, CLOCK_MONOTONIC */
	bool granting;        /* a pause runs: uart_rx_grant will come */
	struct byteq rx, tx;
	u64 tx_bytes, rx_bytes, tx_stalls, tx_lost;
};

void uart_init(struct uart *u, unsigned gsi, void (*set_irq)(void *, unsigned, bool), void (*wake)(void *), void *ctx);
void uart_add(struct uart *u, struct bus_space *pio, u16 base, const char *name);

/* Host side; all take the lock. */

/* Copies up to len pending output bytes; uart_tx_consume() then removes them. */
u32 uart_tx_peek(struct uart *u, u8 *buf, u32 len);
void uart_tx_consume(struct uart *u, u32 n);
/* Input: how many bytes fit now, and giving them. */
u32 uart_rx_room(struct uart *u);
void uart_rx_put(struct uart *u, const u8 *buf, u32 n);
/* The pause asked for by pace() is over. */
void uart_rx_grant(struct uart *u);
/* Output that did not come through the registers (debug console); waits for room. */
void uart_put(struct uart *u, u8 b);
/* Lets every vCPU that waits for room go on. */
void uart_close(struct uart *u);

#endif
