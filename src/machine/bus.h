/* Port I/O and MMIO address spaces: a table of regions each, filled while the
 * machine is made and constant afterwards (no lock). */
#ifndef MACHINE_BUS_H
#define MACHINE_BUS_H

#include <stdatomic.h>

#include "core/base.h"

#define BUS_MAX_REGIONS 48
#define BUS_UNCLAIMED_LOG 16

struct bus_region {
	u64 base, size;
	const char *name;
	unsigned max_access; /* widest access in bytes; wider ones are split into these, low address first */
	/* off + len never passes size; values are in the low len bytes. */
	u64 (*read)(void *dev, u64 off, unsigned len);
	void (*write)(void *dev, u64 off, unsigned len, u64 val);
	void *dev;
};

struct bus_space {
	const char *name;
	unsigned n;
	struct bus_region region[BUS_MAX_REGIONS];
	_Atomic u64 unclaimed;
	_Atomic u64 log[BUS_UNCLAIMED_LOG]; /* address | write << 63, newest at (unclaimed - 1) % size */
};

/* Overlap with another region or a full table: ASSERT (our bug, not the guest's). */
void bus_add(struct bus_space *s, const struct bus_region *r);

/* One access of len = 1…8 bytes.  What no region claims reads as ones and
 * ignores writes, as the ISA and PCI buses do; it is counted. */
void bus_access(struct bus_space *s, u64 addr, unsigned len, bool write, void *data);

#endif
