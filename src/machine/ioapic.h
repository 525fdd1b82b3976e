/* 82093AA I/O APIC, version 0x20 (EOI register).  Above the local APICs: it
 * turns pin changes into MSIs. */
#ifndef MACHINE_IOAPIC_H
#define MACHINE_IOAPIC_H

#include <linux/kvm.h>
#include <pthread.h>

#include "core/base.h"
#include "machine/bus.h"

#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_PINS 24

struct ioapic {
	pthread_mutex_t lock;
	void (*send)(void *ctx, const struct kvm_msi *msi); /* any thread */
	void *ctx;

	u32 select;             /* IOREGSEL, low 8 bits */
	u32 id;                 /* bits 24-27 */
	u64 redir[IOAPIC_PINS];
	bool level[IOAPIC_PINS];   /* the pin as the device drives it: true = asserted */
	u64 sent;
};

void ioapic_init(struct ioapic *io, void (*send)(void *ctx, const struct kvm_msi *msi), void *ctx);
void ioapic_add(struct ioapic *io, struct bus_space *mmio);

/* A device drives its line.  Any thread. */
void ioapic_set_irq(struct ioapic *io, unsigned gsi, bool asserted);

/* EOI broadcast of a local APIC for a level-triggered vector (KVM_EXIT_IOAPIC_EOI). */
void ioapic_eoi(struct ioapic *io, u8 vector);

#endif
