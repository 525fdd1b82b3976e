/* Powers the machine off as the FADT says: the VM must end with status 0. */
#include "lib/acpi.h"

CASE(power_off)
{
	const struct sdt *fadt = acpi_find("FACP");
	CHECK(fadt != NULL);
	if (!fadt)
		return;
	const u8 *f = (const u8 *)fadt;
	u32 flags = *(const u32 *)(f + 112);
	const struct sdt *dsdt = (void *)(uword)(*(const u32 *)(f + 40) ? *(const u32 *)(f + 40) : *(const u64 *)(f + 140));
	int s5 = acpi_s5(dsdt);
	CHECK(s5 >= 0);
	print("powering off\n");
	if (flags >> 20 & 1) { /* HW_REDUCED_ACPI: SLEEP_CONTROL_REG */
		const u8 *gas = f + 244;
		u64 addr = *(const u64 *)(gas + 4);
		u8 v = (u8)(s5 << 2 | 1 << 5);
		if (gas[0] == 1)
			outb((u16)addr, v);
		else
			*(volatile u8 *)(uword)addr = v;
	} else {
		u32 smi = *(const u32 *)(f + 48), pm1a = *(const u32 *)(f + 64);
		u8 enable = f[52];
		if (smi && enable && !(inw((u16)pm1a) & 1))
			outb((u16)smi, enable);
		outw((u16)pm1a, (u16)(s5 << 10 | 1 << 13));
	}
	for (int i = 0; i < 100000000; i++)
		asm volatile("pause");
	check_failed(__FILE__, __LINE__, "still running", 1, 0);
}
