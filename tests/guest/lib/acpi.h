/* The ACPI tables (ACPI 6, chapter 5): search and checksums. */
#ifndef GUEST_ACPI_H
#define GUEST_ACPI_H

#include "guest.h"

struct sdt {
	char sig[4];
	u32 length;
	u8 revision, checksum;
	char oem[6], oem_table[8];
	u32 oem_revision, creator, creator_revision;
} __attribute__((packed));

static inline u8 acpi_sum(const void *p, u32 n)
{
	u8 s = 0;
	for (u32 i = 0; i < n; i++)
		s = (u8)(s + ((const u8 *)p)[i]);
	return s;
}

/* RSDP from PVH's start_info, else from the BIOS area; NULL: none. */
static inline const u8 *acpi_rsdp(void)
{
	if (boot_magic == 0 && *(const u32 *)(uword)boot_info == 0x336ec578)
		return (const u8 *)(uword)*(const u64 *)(uword)(boot_info + 32);
	uword ebda = (uword)*(volatile u16 *)0x40e << 4;
	for (uword at = 0xe0000; at < 0x100000; at += 16)
		if (!memcmp((void *)at, "RSD PTR ", 8))
			return (const u8 *)at;
	for (uword at = ebda; ebda >= 0x80000 && at < ebda + 1024 && at < 0xa0000; at += 16)
		if (!memcmp((void *)at, "RSD PTR ", 8))
			return (const u8 *)at;
	return NULL;
}

static inline const struct sdt *acpi_find(const char *sig)
{
	const u8 *rsdp = acpi_rsdp();
	if (!rsdp)
		return NULL;
	const struct sdt *x = rsdp[15] >= 2 && *(const u64 *)(rsdp + 24) ? (void *)(uword) * (const u64 *)(rsdp + 24)
									     : (void *)(uword) * (const u32 *)(rsdp + 16);
	u32 width = memcmp(x->sig, "XSDT", 4) ? 4 : 8;
	for (u32 i = 0; i < (x->length - sizeof(*x)) / width; i++) {
		const u8 *e = (const u8 *)(x + 1) + i * width;
		const struct sdt *t = (void *)(uword)(width == 8 ? *(const u64 *)e : *(const u32 *)e);
		if (!memcmp(t->sig, sig, 4))
			return t;
	}
	return NULL;
}

/* The value of \_S5's first element, or -1: the package as iasl writes it (ACPI 6, 20.2). */
static inline int acpi_s5(const struct sdt *dsdt)
{
	const u8 *p = (const u8 *)dsdt;
	for (u32 i = sizeof(*dsdt); i + 16 < dsdt->length; i++) {
		if (memcmp(p + i, "_S5_", 4) || p[i + 4] != 0x12)
			continue;
		u32 at = i + 5;
		at += (p[at] >> 6) + 1u; /* PkgLength */
		at++;                    /* number of elements */
		return p[at] == 0x0a ? p[at + 1] : p[at] <= 1 ? p[at] : -1;
	}
	return -1;
}

#endif
