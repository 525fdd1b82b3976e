/* The PVH entry point: 32-bit protected mode with a start_info structure (Xen docs/misc/pvh.pandoc). */
#include "lib/acpi.h"

CASE(start_info)
{
	CHECK_EQ(boot_magic, 0);
	const u32 *si = (const u32 *)(uword)boot_info;
	CHECK_EQ(si[0], 0x336ec578);
	CHECK(si[1] >= 1);
	const u8 *rsdp = acpi_rsdp();
	CHECK_EQ(memcmp(rsdp, "RSD PTR ", 8), 0);
	CHECK_EQ(acpi_sum(rsdp, 20), 0);
	CHECK(acpi_find("FACP") != NULL);
	/* memory map: this program's own address is RAM */
	const u64 *map = (const u64 *)(uword) * (const u64 *)(si + 10);
	u32 n = si[12];
	CHECK(n > 0 && n < 128);
	bool found = false;
	for (u32 i = 0; i < n; i++, map += 3)
		found = found || ((u32)map[2] == 1 && map[0] <= 0x100000 && map[0] + map[1] > 0x200000);
	CHECK(found);
}
