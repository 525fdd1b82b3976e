/* Intel 82093AA datasheet, section 3; EOI register as in ICH9 (version 0x20).
 *
 * Edge pins send at the rising edge unless masked (an edge at a masked pin is
 * lost, as on the chip).  Level pins send while asserted with remote IRR clear;
 * remote IRR is set by sending and cleared by EOI, after which a pin still
 * asserted sends again. */
#include "machine/ioapic.h"

#include <string.h>

enum {
	REG_SELECT = 0x00,
	REG_WINDOW = 0x10,
	REG_EOI = 0x40,
};

enum {
	INDEX_ID = 0,
	INDEX_VERSION = 1,
	INDEX_ARBITRATION = 2,
	INDEX_REDIR = 0x10,
};

#define VERSION 0x20u

#define REDIR_VECTOR(r) ((u8)(r))
#define REDIR_DELIVERY(r) ((u32)((r) >> 8) & 7)
#define REDIR_LOGICAL BIT(11)
#define REDIR_STATUS BIT(12)     /* read only; delivery is immediate here: 0 */
#define REDIR_ACTIVE_LOW BIT(13) /* devices drive "asserted", so polarity changes nothing */
#define REDIR_REMOTE_IRR BIT(14)
#define REDIR_LEVEL BIT(15)
#define REDIR_MASKED BIT(16)
#define REDIR_DEST(r) ((u32)((r) >> 56))
#define REDIR_EXT_DEST(r) ((u32)((r) >> 48) & 0x7f) /* bits 8-14 of the destination, KVM_FEATURE_MSI_EXT_DEST_ID */
#define REDIR_WRITABLE (0xffff00000001ffffull & ~(REDIR_STATUS | REDIR_REMOTE_IRR))

static void send(struct ioapic *io, unsigned pin)
{
	u64 r = io->redir[pin];
	struct kvm_msi msi = {
		.address_lo = 0xfee00000u | REDIR_DEST(r) << 12 | REDIR_EXT_DEST(r) << 5 | (r & REDIR_LOGICAL ? 4u : 0),
		.data = REDIR_VECTOR(r) | REDIR_DELIVERY(r) << 8 | (r & REDIR_LEVEL ? 0xc000u : 0),
	};
	io->sent++;
	io->send(io->ctx, &msi);
}

/* Level pins: sends when the state calls for it. */
static void evaluate(struct ioapic *io, unsigned pin)
{
	u64 r = io->redir[pin];
	if ((r & REDIR_LEVEL) && io->level[pin] && !(r & (REDIR_MASKED | REDIR_REMOTE_IRR))) {
		io->redir[pin] |= REDIR_REMOTE_IRR;
		send(io, pin);
	}
}

void ioapic_set_irq(struct ioapic *io, unsigned gsi, bool asserted)
{
	ASSERT(gsi < IOAPIC_PINS);
	pthread_mutex_lock(&io->lock);
	bool rose = asserted && !io->level[gsi];
	io->level[gsi] = asserted;
	u64 r = io->redir[gsi];
	if (r & REDIR_LEVEL)
		evaluate(io, gsi);
	else if (rose && !(r & REDIR_MASKED))
		send(io, gsi);
	pthread_mutex_unlock(&io->lock);
}

static void eoi_locked(struct ioapic *io, u8 vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		u64 r = io->redir[pin];
		if (REDIR_VECTOR(r) == vector && (r & REDIR_LEVEL) && (r & REDIR_REMOTE_IRR)) {
			io->redir[pin] &= ~REDIR_REMOTE_IRR;
			evaluate(io, pin);
		}
	}
}

void ioapic_eoi(struct ioapic *io, u8 vector)
{
	pthread_mutex_lock(&io->lock);
	eoi_locked(io, vector);
	pthread_mutex_unlock(&io->lock);
}

static u32 window_read(const struct ioapic *io)
{
	u32 i = io->select;
	if (i >= INDEX_REDIR && i < INDEX_REDIR + 2 * IOAPIC_PINS)
		return (u32)(io->redir[(i - INDEX_REDIR) / 2] >> (i & 1 ? 32 : 0));
	switch (i) {
	case INDEX_ID:
	case INDEX_ARBITRATION:
		return io->id;
	case INDEX_VERSION:
		return VERSION | (IOAPIC_PINS - 1) << 16;
	default:
		return 0;
	}
}

static void window_write(struct ioapic *io, u32 v)
{
	u32 i = io->select;
	if (i == INDEX_ID)
		io->id = v & 0x0f000000;
	if (i < INDEX_REDIR || i >= INDEX_REDIR + 2 * IOAPIC_PINS)
		return;
	unsigned pin = (i - INDEX_REDIR) / 2;
	u64 r = io->redir[pin];
	u64 n = i & 1 ? (r & MASK(32)) | (u64)v << 32 : (r & ~MASK(32)) | v;
	n = (n & REDIR_WRITABLE) | (r & ~REDIR_WRITABLE);
	/* Switching to edge forgets remote IRR: Linux's way to clear a stuck pin. */
	if (!(n & REDIR_LEVEL))
		n &= ~REDIR_REMOTE_IRR;
	io->redir[pin] = n;
	evaluate(io, pin);
}

static u64 mmio_read(void *dev, u64 off, unsigned len)
{
	struct ioapic *io = dev;
	u32 v = 0;
	pthread_mutex_lock(&io->lock);
	switch (off & ~3ull) {
	case REG_SELECT:
		v = io->select;
		break;
	case REG_WINDOW:
		v = window_read(io);
		break;
	}
	pthread_mutex_unlock(&io->lock);
	return v >> (off & 3) * 8;
}

static void mmio_write(void *dev, u64 off, unsigned len, u64 val)
{
	struct ioapic *io = dev;
	pthread_mutex_lock(&io->lock);
	switch (off) {
	case REG_SELECT:
		io->select = val & 0xff;
		break;
	case REG_WINDOW:
		if (len == 4) /* the datasheet allows no narrower write */
			window_write(io, (u32)val);
		break;
	case REG_EOI:
		eoi_locked(io, (u8)val);
		break;
	}
	pthread_mutex_unlock(&io->lock);
}

void ioapic_init(struct ioapic *io, void (*fn)(void *ctx, const struct kvm_msi *msi), void *ctx)
{
	memset(io, 0, sizeof(*io));
	pthread_mutex_init(&io->lock, NULL);
	io->send = fn;
	io->ctx = ctx;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		io->redir[i] = REDIR_MASKED;
}

void ioapic_add(struct ioapic *io, struct bus_space *mmio)
{
	bus_add(mmio, &(struct bus_region){ .base = IOAPIC_BASE, .size = 0x1000, .name = "ioapic", .max_access = 4,
					    .read = mmio_read, .write = mmio_write, .dev = io });
}
