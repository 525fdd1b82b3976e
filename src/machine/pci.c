/* PCI Local Bus specification 3.0, 3.2.2.3.2 (configuration mechanism #1) and 6.1. */
#include "machine/pci.h"

#include <string.h>

enum { PORT_BASE = 0xcf8, ADDRESS = 0, RESET = 1, DATA = 4 };

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_BITS 0x80fffffcu

static struct pci_function *selected(struct pci_bus *b)
{
	u32 a = b->address;
	if (!(a & ADDRESS_ENABLE) || (a >> 16 & 0xff) != 0) /* one bus */
		return NULL;
	return b->function[a >> 8 & 0xff];
}

static u64 port_read(void *dev, u64 off, unsigned len)
{
	struct pci_bus *b = dev;
	u64 v = MASK(8 * len);
	pthread_mutex_lock(&b->lock);
	if (off == ADDRESS && len == 4) {
		v = b->address;
	} else if (off == RESET && len == 1) {
		v = b->platform->reset_control;
	} else if (off >= DATA) {
		struct pci_function *f = selected(b);
		if (f) {
			v = 0;
			memcpy(&v, f->config + (b->address & 0xfc) + (off - DATA), len); /* off + len <= 8: inside the dword */
		}
	}
	pthread_mutex_unlock(&b->lock);
	return v;
}

static void config_write(struct pci_function *f, unsigned at, unsigned len, u64 v)
{
	for (unsigned i = 0; i < len; i++) {
		u8 w = f->writable[at + i], n = (u8)(v >> 8 * i);
		f->config[at + i] = (u8)((f->config[at + i] & ~w) | (n & w));
	}
	if (f->written)
		f->written(f, at, len);
}

static void port_write(void *dev, u64 off, unsigned len, u64 v)
{
	struct pci_bus *b = dev;
	/* Only a 32-bit access reaches CONFIG_ADDRESS; a byte at 0xcf9 is the reset register. */
	if (off == RESET && len == 1) {
		platform_reset_control(b->platform, (u8)v);
		return;
	}
	pthread_mutex_lock(&b->lock);
	if (off == ADDRESS && len == 4) {
		b->address = (u32)v & ADDRESS_BITS;
	} else if (off >= DATA) {
		struct pci_function *f = selected(b);
		if (f)
			config_write(f, (b->address & 0xfc) + (unsigned)(off - DATA), len, v);
	}
	pthread_mutex_unlock(&b->lock);
}

void pci_add(struct pci_bus *b, struct pci_function *f)
{
	ASSERT(!b->function[f->devfn]);
	b->function[f->devfn] = f;
}

void pci_init(struct pci_bus *b, struct platform *platform)
{
	/* Vendor Red Hat, device "generic host bridge"; class host bridge. */
	static const u8 header[] = { 0x36, 0x1b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x06 };
	memset(b, 0, sizeof(*b));
	pthread_mutex_init(&b->lock, NULL);
	b->platform = platform;
	memcpy(b->host_bridge.config, header, sizeof(header));
	pci_add(b, &b->host_bridge);
}

void pci_add_ports(struct pci_bus *b, struct bus_space *pio)
{
	bus_add(pio, &(struct bus_region){ .base = PORT_BASE, .size = 8, .name = "pci-config", .max_access = 4,
					   .read = port_read, .write = port_write, .dev = b });
}
