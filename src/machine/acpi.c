/* ACPI specification 6.4, chapter 5.2.  Offsets of table fields are the
 * specification's, beside each value. */
#include "machine/acpi.h"

#include <string.h>

#include "dsdt.hex"
#include "machine/ioapic.h"
#include "machine/machine.h"
#include "machine/platform.h"

#define LAPIC_BASE 0xfee00000u
#define CMOS_CENTURY 0x32

enum { HEADER_SIZE = 36, RSDP_SIZE = 36, FADT_SIZE = 276 };

enum { /* FADT flags */
	FADT_WBINVD = 1 << 0,
	FADT_PROC_C1 = 1 << 2,
	FADT_CONTROL_METHOD_POWER_BUTTON = 1 << 4,
	FADT_SLEEP_BUTTON_ABSENT = 1 << 5,
	FADT_RTC_NOT_FIXED = 1 << 6,
	FADT_RESET_REG_SUP = 1 << 10,
	FADT_HW_REDUCED = 1 << 20,
};

enum { BOOT_LEGACY_DEVICES = 1 << 0, BOOT_NO_VGA = 1 << 2 }; /* no bit 1: no 8042 */

enum { MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_LAPIC_NMI = 4, MADT_X2APIC = 9 };
enum { MADT_ENABLED = 1 };

struct builder {
	u8 *buf;
	u32 used;
};

static void put(u8 *p, u64 v, unsigned len) { memcpy(p, &v, len); }

static void *append(struct builder *b, u32 len)
{
	ASSERT(len <= ACPI_TABLES_SIZE - b->used);
	u8 *p = b->buf + b->used;
	memset(p, 0, len);
	b->used += len;
	return p;
}

static u64 address(const struct builder *b, const u8 *p) { return ACPI_TABLES_BASE + (u64)(p - b->buf); }

static void checksum(u8 *p, u32 len, u32 at)
{
	u8 sum = 0;
	p[at] = 0;
	for (u32 i = 0; i < len; i++)
		sum = (u8)(sum + p[i]);
	p[at] = (u8)-sum;
}

/* 5.2.6 */
static u8 *table(struct builder *b, const char sig[4], u8 revision, u32 len)
{
	b->used = ALIGN_UP(b->used, 16u);
	u8 *p = append(b, len);
	memcpy(p, sig, 4);
	p[8] = revision;
	memcpy(p + 10, "UMBRA ", 6);
	memcpy(p + 16, "UMBRAPC ", 8);
	put(p + 24, 1, 4);
	memcpy(p + 28, "UMBR", 4);
	put(p + 32, 1, 4);
	return p;
}

static void finish(struct builder *b, u8 *p)
{
	u32 len = b->used - (u32)(p - b->buf);
	put(p + 4, len, 4);
	checksum(p, len, 9);
}

/* 5.2.3.2: generic address of an 8-bit port. */
static void port_gas(u8 *p, u16 port)
{
	p[0] = 1; /* system I/O */
	p[1] = 8; /* bits */
	p[3] = 1; /* byte access */
	put(p + 4, port, 8);
}

/* 5.2.9 */
static u64 build_fadt(struct builder *b, u64 dsdt)
{
	u8 *p = table(b, "FACP", 6, FADT_SIZE);
	put(p + 40, dsdt, 4);
	put(p + 108, CMOS_CENTURY, 1);
	put(p + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA, 2);
	put(p + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_CONTROL_METHOD_POWER_BUTTON | FADT_SLEEP_BUTTON_ABSENT |
			     FADT_RTC_NOT_FIXED | FADT_RESET_REG_SUP | FADT_HW_REDUCED, 4);
	port_gas(p + 116, PLATFORM_RESET_PORT);
	put(p + 128, PLATFORM_RESET_VALUE, 1);
	put(p + 131, 4, 1); /* minor version */
	put(p + 140, dsdt, 8);
	port_gas(p + 244, PLATFORM_SLEEP_CONTROL);
	port_gas(p + 256, PLATFORM_SLEEP_STATUS);
	memcpy(p + 268, "UMBRA\0\0", 8);
	finish(b, p);
	return address(b, p);
}

/* 5.2.12.  No PCAT_COMPAT: there are no 8259s. */
static u64 build_madt(struct builder *b, unsigned ncpus)
{
	u8 *p = table(b, "APIC", 5, HEADER_SIZE + 8), *e;
	put(p + 36, LAPIC_BASE, 4);
	for (unsigned i = 0; i < ncpus; i++) {
		if (i < 255) {
			e = append(b, 8);
			e[0] = MADT_LAPIC;
			e[1] = 8;
			e[2] = (u8)i; /* processor UID */
			e[3] = (u8)i; /* APIC id */
			put(e + 4, MADT_ENABLED, 4);
		} else {
			e = append(b, 16);
			e[0] = MADT_X2APIC;
			e[1] = 16;
			put(e + 4, i, 4);
			put(e + 8, MADT_ENABLED, 4);
			put(e + 12, i, 4);
		}
	}
	e = append(b, 12);
	e[0] = MADT_IOAPIC;
	e[1] = 12;
	put(e + 4, IOAPIC_BASE, 4);
	e = append(b, 6); /* NMI at LINT1 of every processor, edge, active high: as on a PC */
	e[0] = MADT_LAPIC_NMI;
	e[1] = 6;
	e[2] = 0xff;
	put(e + 3, 5, 2);
	e[5] = 1;
	finish(b, p);
	return address(b, p);
}

u32 acpi_build(u8 *buf, unsigned ncpus)
{
	struct builder b = { .buf = buf };
	u8 *rsdp = append(&b, RSDP_SIZE);

	b.used = ALIGN_UP(b.used, 16u);
	u8 *dsdt = append(&b, sizeof(dsdt_aml_code));
	memcpy(dsdt, dsdt_aml_code, sizeof(dsdt_aml_code)); /* with iasl's checksum */

	const u64 tables[] = { build_fadt(&b, address(&b, dsdt)), build_madt(&b, ncpus) };
	u8 *xsdt = table(&b, "XSDT", 1, HEADER_SIZE + sizeof(tables));
	memcpy(xsdt + HEADER_SIZE, tables, sizeof(tables));
	finish(&b, xsdt);

	memcpy(rsdp, "RSD PTR ", 8); /* 5.2.5.3 */
	memcpy(rsdp + 9, "UMBRA ", 6);
	rsdp[15] = 2;
	put(rsdp + 20, RSDP_SIZE, 4);
	put(rsdp + 24, address(&b, xsdt), 8);
	checksum(rsdp, 20, 8);
	checksum(rsdp, RSDP_SIZE, 32);
	return b.used;
}
