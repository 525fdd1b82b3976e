/* Ports: IN/OUT forms, INS/OUTS, permissions; UART, CMOS clock, PCI configuration, ACPI tables. */
#include "lib/acpi.h"

#define COM1 0x3f8
#define SCRATCH (COM1 + 7)

CASE(forms)
{
	outb(SCRATCH, 0x5a);
	CHECK_EQ(inb(SCRATCH), 0x5a);
	u64 rax;
	/* AL and AX leave the rest of RAX, EAX clears the upper half */
	asm volatile("mov $-1, %%rax; mov $0x3ff, %%edx; in %%dx, %%al" : "=&a"(rax) : : "rdx");
	CHECK_EQ(rax, 0xffffffffffffff5a);
	asm volatile("mov $-1, %%rax; mov $0xffffff, %%edx; mov $0x3ff, %%dx; in %%dx, %%al" : "=&a"(rax) : : "rdx");
	CHECK_EQ(rax & 0xff, 0x5a); /* only DX counts */
	asm volatile("mov $-1, %%rax; mov $0x70, %%edx; in %%dx, %%eax" : "=&a"(rax) : : "rdx");
	CHECK_EQ(rax >> 32, 0);
	asm volatile("mov $-1, %%rax; in $0x71, %%al" : "=&a"(rax));
	CHECK_EQ(rax >> 8, 0xffffffffffffff);
	/* a port nobody has reads as ones */
	CHECK_EQ(inb(0xeee0), 0xff);
	CHECK_EQ(inw(0xeee0), 0xffff);
	CHECK_EQ(inl(0xeee0), 0xffffffff);
	outl(0xeee0, 1);
}

CASE(string_io)
{
	static u8 buf[16];
	u64 si = (u64) "abcde", di, cx = 5;
	asm volatile("cld; rep outsb" : "+S"(si), "+c"(cx) : "d"(SCRATCH) : "memory");
	CHECK_EQ(cx, 0);
	CHECK_EQ(inb(SCRATCH), 'e');
	di = (u64)buf;
	cx = 4;
	asm volatile("cld; rep insb" : "+D"(di), "+c"(cx) : "d"(SCRATCH) : "memory");
	CHECK_EQ(di, (u64)buf + 4);
	CHECK_EQ(buf[0], 'e');
	CHECK_EQ(buf[3], 'e');
	CHECK_EQ(buf[4], 0);
	di = (u64)buf + 8;
	cx = 3;
	asm volatile("std; rep insb; cld" : "+D"(di), "+c"(cx) : "d"(SCRATCH) : "memory");
	CHECK_EQ(di, (u64)buf + 5);
	CHECK_EQ(buf[6], 'e');
	CHECK_EQ(buf[5], 0);
	cx = 0;
	di = 0x800000000000; /* count 0: no access */
	asm volatile("rep insb" : "+D"(di), "+c"(cx) : "d"(SCRATCH) : "memory");
	/* a page fault in the middle: registers show the progress, and it goes on */
	u8 *page = page_alloc(1);
	u64 T = 0x8000000000;
	pt_map(boot_pml4, T, (u64)page, PTE_P | PTE_W);
	SNIPPET(s_insb, "cld; s_insb_rep: rep insb; int $0x80");
	extern const char s_insb_rep[];
	struct frame f = kernel_frame(s_insb);
	f.r[RDX] = SCRATCH;
	f.r[RDI] = T + PAGE - 3;
	f.r[RCX] = 10;
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last.r[RCX], 7);
	CHECK_EQ(last.r[RDI], T + PAGE);
	CHECK_EQ(last.ip, (uword)s_insb_rep);
	CHECK_EQ(page[PAGE - 1], 'e');
	f = last;
	pt_map(boot_pml4, T + PAGE, (u64)page, PTE_P | PTE_W);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RCX], 0);
	CHECK_EQ(page[6], 'e');
}

CASE(permissions)
{
	SNIPPET(s_out, "outb %al, %dx; int $0x80"); SNIPPET(s_outw, "outw %ax, %dx; int $0x80");
	SNIPPET(s_outl, "outl %eax, %dx; int $0x80"); SNIPPET(s_in, "inb %dx, %al; int $0x80");
	struct frame f = user_frame(s_out);
	f.r[RDX] = SCRATCH;
	CHECK_EQ(run(&f), VEC_GP); /* no bitmap */
	f.flags |= FL_IOPL; /* IOPL 3 */
	CHECK_EQ(run(&f), VEC_DONE);
	f.flags &= ~FL_IOPL;
	tss.iomap = (u16)((uword)tss.bitmap - (uword)&tss);
	memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
	CHECK_EQ(run(&f), VEC_GP);
	tss.bitmap[0xee0 / 8] = 0xf0; /* ports ee0…ee3 */
	f.r[RDX] = 0xee3;
	CHECK_EQ(run(&f), VEC_DONE);
	f.r[RDX] = 0xee4;
	CHECK_EQ(run(&f), VEC_GP);
	f.ip = U(s_outw);
	f.r[RDX] = 0xee2;
	CHECK_EQ(run(&f), VEC_DONE);
	f.r[RDX] = 0xee3; /* one of its bytes is not allowed */
	CHECK_EQ(run(&f), VEC_GP);
	f.ip = U(s_outl);
	f.r[RDX] = 0xee0;
	CHECK_EQ(run(&f), VEC_DONE);
	/* across bytes of the bitmap */
	tss.bitmap[0xee0 / 8] = 0x3f;
	tss.bitmap[0xee0 / 8 + 1] = 0xfc;
	f.r[RDX] = 0xee6;
	CHECK_EQ(run(&f), VEC_DONE);
	/* the last port needs the byte behind the bitmap */
	tss.bitmap[8191] = 0;
	f.ip = U(s_in);
	f.r[RDX] = 0xffff;
	CHECK_EQ(run(&f), VEC_DONE);
	/* beyond the TSS limit: refused */
	gdt[SEL_TSS / 8] = desc((u32)(uword)&tss, 0x68 + 0x1000, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
	CHECK_EQ(run(&f), VEC_GP);
	gdt[SEL_TSS / 8] = desc((u32)(uword)&tss, sizeof(tss) - 1, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
	tss.iomap = sizeof(tss);
	CHECK_EQ(run(&f), VEC_GP);
}

static u8 cmos(u8 reg)
{
	outb(0x70, reg);
	return inb(0x71);
}
CASE(clock)
{
	/* status D: valid; status A: not updating for long */
	CHECK_EQ(cmos(0x0d) & 0x80, 0x80);
	int tries = 0;
	while (cmos(0x0a) & 0x80 && tries < 10000000)
		tries++;
	CHECK(tries < 10000000);
	bool bcd = !(cmos(0x0b) & 4);
	u8 sec = cmos(0), min = cmos(2), hour = cmos(4) & 0x7f, day = cmos(7), month = cmos(8), year = cmos(9);
#define N(v) (bcd ? (v >> 4) * 10 + (v & 15) : v)
	CHECK(N(sec) < 60 && N(min) < 60 && N(hour) < 24);
	CHECK(N(day) >= 1 && N(day) <= 31 && N(month) >= 1 && N(month) <= 12 && N(year) >= 24);
}

CASE(pci)
{
	outl(0xcf8, 0x80000000);
	CHECK_EQ(inl(0xcf8), 0x80000000);
	u32 id = inl(0xcfc);
	CHECK(id != 0xffffffff && id != 0);
	CHECK_EQ(inw(0xcfc), id & 0xffff);
	CHECK_EQ(inw(0xcfe), id >> 16);
	CHECK_EQ(inb(0xcff), id >> 24);
	outl(0xcf8, 0x80000008);
	CHECK_EQ(inl(0xcfc) >> 16, 0x0600); /* host bridge */
	outl(0xcf8, 0x80000000 | 0xfeu << 8 | 0xf800); /* nobody there */
	CHECK_EQ(inl(0xcfc), 0xffffffff);
	outl(0xcf8, 0); /* not enabled: no configuration cycle */
	CHECK_EQ(inl(0xcfc), 0xffffffff);
}

CASE(acpi_tables)
{
	const u8 *rsdp = acpi_rsdp();
	CHECK(rsdp != NULL);
	if (!rsdp)
		return;
	CHECK_EQ(memcmp(rsdp, "RSD PTR ", 8), 0);
	CHECK_EQ(acpi_sum(rsdp, 20), 0);
	if (rsdp[15] >= 2)
		CHECK_EQ(acpi_sum(rsdp, *(const u32 *)(rsdp + 20)), 0);
	const struct sdt *fadt = acpi_find("FACP"), *madt = acpi_find("APIC");
	CHECK(fadt != NULL);
	CHECK(madt != NULL);
	if (!fadt || !madt)
		return;
	CHECK_EQ(acpi_sum(fadt, fadt->length), 0);
	CHECK_EQ(acpi_sum(madt, madt->length), 0);
	const u8 *f = (const u8 *)fadt;
	const struct sdt *dsdt = (void *)(uword)(*(const u32 *)(f + 40) ? *(const u32 *)(f + 40) : *(const u64 *)(f + 140));
	CHECK_EQ(memcmp(dsdt->sig, "DSDT", 4), 0);
	CHECK_EQ(acpi_sum(dsdt, dsdt->length), 0);
	CHECK(acpi_s5(dsdt) >= 0);
	/* one enabled local APIC, one IOAPIC */
	CHECK_EQ(*(const u32 *)((const u8 *)madt + 36), 0xfee00000);
	unsigned cpus = 0, ioapics = 0;
	for (u32 at = 44; at + 2 <= madt->length; at += ((const u8 *)madt)[at + 1]) {
		const u8 *e = (const u8 *)madt + at;
		if (!e[1])
			break;
		cpus += e[0] == 0 && (*(const u32 *)(e + 4) & 1);
		ioapics += e[0] == 1;
	}
	CHECK_EQ(cpus, 1);
	CHECK_EQ(ioapics, 1);
}
