/* PCI bus 0: configuration mechanism #1 (ports 0xcf8/0xcfc) over a table of
 * functions.  Devices fill a struct pci_function and add it. */
#ifndef MACHINE_PCI_H
#define MACHINE_PCI_H

#include <pthread.h>

#include "core/base.h"
#include "machine/bus.h"
#include "machine/platform.h"

#define PCI_CONFIG_SIZE 256
#define PCI_MMIO_BASE 0xc0000000ull /* window of 32-bit BARs; dsdt.asl names the same */
#define PCI_MMIO_END 0xfec00000ull

struct pci_function {
	u8 devfn;
	u8 config[PCI_CONFIG_SIZE];
	u8 writable[PCI_CONFIG_SIZE]; /* which bits the guest may change */
	/* Called with the bus lock held after bytes [off, off+len) were written; may be NULL. */
	void (*written)(struct pci_function *f, unsigned off, unsigned len);
};

struct pci_bus {
	pthread_mutex_t lock;
	struct platform *platform; /* owns 0xcf9 */
	u32 address;               /* CONFIG_ADDRESS */
	struct pci_function *function[256]; /* by devfn */
	struct pci_function host_bridge;
};

void pci_init(struct pci_bus *b, struct platform *platform);
void pci_add(struct pci_bus *b, struct pci_function *f);
void pci_add_ports(struct pci_bus *b, struct bus_space *pio);

#endif
