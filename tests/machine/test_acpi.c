/* Walks the tables as a guest does; with a directory as argument writes each
 * table there, for iasl (test_acpi.sh). */
#include <stdlib.h>
#include <string.h>

#include "../unit/check.h"
#include "machine/acpi.h"
#include "machine/platform.h"

static u8 buf[ACPI_TABLES_SIZE];
static const char *dir;

static u8 sum(const u8 *p, u32 n)
{
	u8 s = 0;
	while (n--)
		s = (u8)(s + *p++);
	return s;
}
static u32 r32(const u8 *p) { u32 v; memcpy(&v, p, 4); return v; }
static u64 r64(const u8 *p) { u64 v; memcpy(&v, p, 8); return v; }

static u8 *table(u64 address, u32 used, const char *sig)
{
	CHECK(address >= ACPI_TABLES_BASE && address + 36 <= ACPI_TABLES_BASE + used);
	u8 *p = buf + (address - ACPI_TABLES_BASE);
	u32 len = r32(p + 4);
	CHECK(address + len <= ACPI_TABLES_BASE + used);
	CHECK(!memcmp(p, sig, 4));
	CHECK_EQ(sum(p, len), 0);
	if (dir) {
		char name[512];
		snprintf(name, sizeof name, "%s/%.4s.dat", dir, sig);
		FILE *f = fopen(name, "w");
		CHECK(f && fwrite(p, len, 1, f) == 1 && !fclose(f));
	}
	return p;
}

int main(int argc, char **argv)
{
	dir = argc > 1 ? argv[1] : NULL;
	for (unsigned ncpus = 1; ncpus <= 300; ncpus += ncpus < 8 ? 1 : 73) {
		memset(buf, 0, sizeof buf);
		u32 used = acpi_build(buf, ncpus);
		CHECK(!memcmp(buf, "RSD PTR ", 8));
		CHECK_EQ(sum(buf, 20), 0);
		CHECK_EQ(sum(buf, 36), 0);
		u8 *xsdt = table(r64(buf + 24), used, "XSDT");
		CHECK_EQ(r32(xsdt + 4), 36 + 16);
		u8 *fadt = table(r64(xsdt + 36), used, "FACP");
		CHECK_EQ(r32(fadt + 4), 276);
		CHECK(r32(fadt + 112) & 1u << 20);
		CHECK_EQ(r64(fadt + 120), 0xcf9);
		CHECK_EQ(fadt[128], 6);
		CHECK_EQ(r64(fadt + 248), PLATFORM_SLEEP_CONTROL);
		CHECK_EQ(r64(fadt + 260), PLATFORM_SLEEP_STATUS);
		table(r64(fadt + 140), used, "DSDT");
		u8 *madt = table(r64(xsdt + 44), used, "APIC");
		unsigned cpus = 0, ioapics = 0;
		for (u32 at = 44, len = r32(madt + 4); at < len; at += madt[at + 1]) {
			CHECK(madt[at + 1] >= 6 && at + madt[at + 1] <= len);
			if (!madt[at + 1])
				break;
			if (madt[at] == 0)
				CHECK_EQ(madt[at + 3], cpus++);
			if (madt[at] == 9)
				CHECK_EQ(r32(madt + at + 4), cpus++);
			ioapics += madt[at] == 1;
		}
		CHECK_EQ(cpus, ncpus);
		CHECK_EQ(ioapics, 1);
	}
	return check_result();
}
