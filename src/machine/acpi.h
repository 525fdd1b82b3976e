/* ACPI tables for the guest: hardware-reduced (no PM timer, no SCI, no PIC). */
#ifndef MACHINE_ACPI_H
#define MACHINE_ACPI_H

#include "core/base.h"

#define ACPI_TABLES_BASE 0xe0000ull /* where guests search for the RSDP */
#define ACPI_TABLES_SIZE 0x10000u

/* Builds all tables for addresses from ACPI_TABLES_BASE on into buf (of
 * ACPI_TABLES_SIZE bytes); the RSDP comes first.  Returns the bytes used. */
u32 acpi_build(u8 *buf, unsigned ncpus);

#endif
