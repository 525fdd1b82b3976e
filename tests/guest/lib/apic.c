/* Local APIC access in either mode. */
#include "guest.h"

bool apic_x2;

u32 apic_read(u32 reg)
{
	if (apic_x2)
		return (u32)rdmsr(0x800 + reg / 16);
	return *(volatile u32 *)(uword)(0xfee00000u + reg);
}

void apic_write(u32 reg, u32 v)
{
	if (apic_x2)
		wrmsr(0x800 + reg / 16, v);
	else
		*(volatile u32 *)(uword)(0xfee00000u + reg) = v;
}

void apic_init(void)
{
	u64 base = rdmsr(MSR_APIC_BASE);
	if (!(base & BIT(11)))
		wrmsr(MSR_APIC_BASE, base | BIT(11));
	apic_x2 = base >> 10 & 1;
	apic_write(0xf0, 0x1ff); /* SVR: enabled, spurious vector 0xff */
	for (u32 lvt = 0x320; lvt <= 0x370; lvt += 16)
		if (lvt != 0x330 && lvt != 0x340) /* thermal and performance may not exist */
			apic_write(lvt, BIT(16));
	apic_write(0x80, 0); /* TPR */
}
