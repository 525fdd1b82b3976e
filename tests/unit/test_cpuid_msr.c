/* CPUID invariants against the host, MSR rules, kvmclock. */
#include "check.h"

#include <string.h>

#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/pvclock.h"
#include "cpu_stubs.h"

static struct cpu cpu;
static struct cpuid_table table;
static struct ram ram;
static u8 memory[8192] __attribute__((aligned(4096)));

static struct cpu *fresh(unsigned ncpus)
{
	struct cpu *c = &cpu;
	struct lapic *l = c->lapic ? c->lapic : calloc(1, lapic_size());
	memset(c, 0, sizeof(*c));
	cpuid_table_init(&table, ncpus, 2100000);
	c->lapic = l;
	c->cpuid = &table;
	c->vendor_intel = table.intel;
	c->maxphyaddr = table.maxphyaddr;
	c->tsc_khz = 2100000;
	c->deterministic = true;
	c->insns = 1000;
	c->ram = &ram;
	c->xcr0 = 1;
	lapic_reset(l, 0, true);
	msr_reset(c, true);
	return c;
}

static void host(u32 leaf, u32 sub, u32 r[4])
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static bool guest_bit(const struct cpu *c, const struct cpuid_bit *b)
{
	u32 r[4];
	cpuid_get(c, b->leaf, b->subleaf, r);
	return r[b->reg] >> b->bit & 1;
}

static bool is_feature_leaf(u32 leaf)
{
	return leaf == 1 || leaf == 6 || leaf == 7 || leaf == 0xd || leaf == 0x80000001 || leaf == 0x80000007 ||
	       leaf == 0x80000008 || leaf == 0x80000021 || leaf == 0x40000001;
}

static void test_table(void)
{
	struct cpu *c = fresh(1);
	for (unsigned i = 0; i < cpuid_bits_count; i++) {
		const struct cpuid_bit *b = &cpuid_bits[i];
		u32 h[4] = { 0 };
		CHECK(is_feature_leaf(b->leaf));
		CHECK(b->name && b->why && b->bit < 32 && b->reg < 4);
		for (unsigned k = 0; k < i; k++)
			CHECK(cpuid_bits[k].leaf != b->leaf || cpuid_bits[k].subleaf != b->subleaf ||
			      cpuid_bits[k].reg != b->reg || cpuid_bits[k].bit != b->bit);
		if (b->leaf >> 28 != 4)
			host(b->leaf, b->subleaf, h);
		bool mine = b->vendor == CPUID_ANY || (b->vendor == CPUID_INTEL) == table.intel;
		bool have = guest_bit(c, b);
		if (b->policy == CPUID_OFF || !mine)
			CHECK(!have);
		else if (b->policy == CPUID_ON && (b->leaf != 0x80000021 || !table.intel))
			CHECK(have);
		else if (b->policy == CPUID_HOST && (b->leaf != 7 || b->subleaf == 0))
			CHECK_EQ(have, h[b->reg] >> b->bit & 1);
	}
	/* a bit that the table does not name is absent, in every register of feature bits */
	static const struct { u32 leaf, sub; u8 reg; } regs[] = {
		{ 1, 0, CPUID_ECX }, { 1, 0, CPUID_EDX }, { 6, 0, CPUID_EAX }, { 7, 0, CPUID_EBX }, { 7, 0, CPUID_ECX },
		{ 7, 0, CPUID_EDX }, { 7, 1, CPUID_EAX }, { 7, 1, CPUID_EDX }, { 7, 2, CPUID_EDX }, { 0xd, 1, CPUID_EAX },
		{ 0x80000001, 0, CPUID_ECX }, { 0x80000001, 0, CPUID_EDX }, { 0x80000007, 0, CPUID_EDX },
		{ 0x80000008, 0, CPUID_EBX }, { 0x40000001, 0, CPUID_EAX },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++) {
		u32 known = 0, r[4];
		for (unsigned k = 0; k < cpuid_bits_count; k++)
			if (cpuid_bits[k].leaf == regs[i].leaf && cpuid_bits[k].subleaf == regs[i].sub &&
			    cpuid_bits[k].reg == regs[i].reg)
				known |= 1u << cpuid_bits[k].bit;
		cpuid_get(c, regs[i].leaf, regs[i].sub, r);
		CHECK_EQ(r[regs[i].reg] & ~known, 0);
	}
}

static void test_identity(void)
{
	struct cpu *c = fresh(1);
	u32 g[4], h[4];
	cpuid_get(c, 0, 0, g);
	host(0, 0, h);
	CHECK(g[1] == h[1] && g[2] == h[2] && g[3] == h[3]);
	CHECK(g[0] >= 0xd && g[0] <= 0x1f);
	cpuid_get(c, 1, 0, g);
	host(1, 0, h);
	CHECK_EQ(g[0], h[0]);
	CHECK_EQ(g[1] & 0xff00, h[1] & 0xff00);
	for (u32 leaf = 0x80000002; leaf <= 0x80000004; leaf++) {
		cpuid_get(c, leaf, 0, g);
		host(leaf, 0, h);
		CHECK(!memcmp(g, h, sizeof(g)));
	}
	cpuid_get(c, 0x40000000, 0, g);
	CHECK(!memcmp(&g[1], "KVMKVMKVM\0\0\0", 12));
	cpuid_get(c, 0x80000008, 0, g);
	CHECK_EQ(g[0] & 0xff, table.maxphyaddr);
	CHECK(table.maxphyaddr >= 36 && table.maxphyaddr <= 46);
	/* out of range: the vendor's way */
	u32 last[4];
	cpuid_get(c, table.max_basic, 0, last);
	cpuid_get(c, 0x100, 0, g);
	if (table.intel)
		CHECK(!memcmp(g, last, sizeof(g)));
	else
		CHECK(!(g[0] | g[1] | g[2] | g[3]));
	cpuid_get(c, 0x40000500, 0, g);
	CHECK(!(g[0] | g[1] | g[2] | g[3]));
}

static void test_dynamic(void)
{
	struct cpu *c = fresh(4);
	u32 r[4];
	c->id = 3;
	cpuid_get(c, 1, 0, r);
	CHECK_EQ(r[CPUID_EBX] >> 24, 3);
	CHECK_EQ(r[CPUID_EBX] >> 16 & 0xff, 4);
	CHECK(r[CPUID_EDX] & BIT(28)); /* HTT */
	CHECK(!(r[CPUID_ECX] & BIT(27)));
	CHECK(r[CPUID_EDX] & BIT(9));
	c->cr4 = CR4_OSXSAVE;
	c->apic_base &= ~APIC_BASE_EN;
	cpuid_get(c, 1, 0, r);
	CHECK(r[CPUID_ECX] & BIT(27));
	CHECK(!(r[CPUID_EDX] & BIT(9)));
	cpuid_get(c, 0xb, 0, r);
	CHECK(r[0] == 0 && r[1] == 1 && r[2] == 0x100 && r[3] == 3);
	cpuid_get(c, 0xb, 1, r);
	CHECK(r[0] == 2 && r[1] == 4 && r[2] == 0x201 && r[3] == 3);
	cpuid_get(c, 0xb, 2, r);
	CHECK(r[0] == 0 && r[1] == 0 && r[2] == 2 && r[3] == 3);
	/* caches: private L1/L2, cores per package */
	if (table.intel) {
		cpuid_get(c, 4, 0, r);
		CHECK_EQ(r[0] >> 14 & 0xfff, 0);
		CHECK_EQ(r[0] >> 26, 3);
		cpuid_get(c, 4, 3, r);
		CHECK(!(r[0] & 0x1f) || (r[0] >> 14 & 0xfff) == 3);
	} else {
		cpuid_get(c, 0x8000001e, 0, r);
		CHECK(r[0] == 3 && r[1] == 3);
		cpuid_get(c, 0x80000008, 0, r);
		CHECK_EQ(r[2], 3 | 2 << 12);
	}
}

static void test_xsave(void)
{
	struct cpu *c = fresh(1);
	u32 r[4], h[4];
	cpuid_get(c, 0xd, 0, r);
	host(0xd, 0, h);
	CHECK_EQ(table.xcr0 & ~CPUID_XCR0_OFFERED, 0);
	CHECK_EQ(r[CPUID_EAX], table.xcr0);
	CHECK_EQ(r[CPUID_EAX] & ~h[CPUID_EAX], 0);
	CHECK_EQ(r[CPUID_EBX], 576); /* x87 only: legacy area and header */
	CHECK_EQ(r[CPUID_ECX], table.xsave_size);
	c->xcr0 = table.xcr0;
	cpuid_get(c, 0xd, 0, r);
	CHECK_EQ(r[CPUID_EBX], table.xsave_size);
	if (h[CPUID_EAX] == table.xcr0)
		CHECK_EQ(r[CPUID_EBX], h[CPUID_EBX]);
	u32 end = 576;
	for (u32 i = 2; i < 64; i++) {
		cpuid_get(c, 0xd, i, r);
		host(0xd, i, h);
		if (i < 32 && table.xcr0 & BIT(i)) {
			CHECK(r[0] == h[0] && r[1] == h[1] && r[2] == (h[2] & 2) && !r[3]);
			if (r[0] + r[1] > end)
				end = r[0] + r[1];
		} else {
			CHECK(!(r[0] | r[1] | r[2] | r[3]));
		}
	}
	CHECK_EQ(end, table.xsave_size);
	cpuid_get(c, 0xd, 1, r);
	CHECK(!(r[0] & ~7u) && !r[2] && !r[3]);
	if (r[0] & 2)
		CHECK(r[1] >= 576 && r[1] <= table.xsave_size);
}

/* What Linux computes from leaf 0x15, in its 32-bit arithmetic. */
static void test_tsc_frequency(void)
{
	static const u32 khz[] = { 1000000, 1999998, 2000000, 2100000, 2099999, 2593906, 2994374, 3187201, 3699850, 4199997, 800001, 4294967,
		4294968, 5100001 };
	for (unsigned i = 0; i < ARRAY_SIZE(khz); i++) {
		cpuid_table_init(&table, 1, khz[i]);
		if (!table.intel)
			break;
		const struct cpuid_leaf *e = cpuid_find(&table, 0x15, 0);
		CHECK(e != NULL);
		u32 crystal_khz = e->r[2] / 1000;
		CHECK((u64)crystal_khz * e->r[1] <= UINT32_MAX);
		u32 got = crystal_khz * e->r[1] / e->r[0];
		CHECK(khz[i] > 4294967 ? khz[i] - got < 2 : got == khz[i]);
	}
}

static void test_msr_rules(void)
{
	struct cpu *c = fresh(1);
	u64 v;
	CHECK(!msr_read(c, 0x12345678, &v));
	CHECK(!msr_write(c, 0x12345678, 0));
	CHECK_EQ(c->stats.unknown_msr, 2);
	CHECK_EQ(c->unknown_msr.n, 1); /* one line for the log, however often */
	CHECK_EQ(c->unknown_msr.e[0].count, 2);
	CHECK(!msr_read(c, 0xc1, &v)); /* no PMU */
	CHECK(!msr_read(c, 0x186, &v));
	CHECK(!msr_read(c, 0x38f, &v));
	CHECK(!msr_read(c, 0x480, &v)); /* no VMX */

	/* EFER */
	CHECK(msr_read(c, MSR_EFER, &v) && v == 0);
	CHECK(!msr_write(c, MSR_EFER, BIT(1)));
	CHECK(!msr_write(c, MSR_EFER, BIT(12)));
	CHECK_EQ(msr_write(c, MSR_EFER, BIT(21)), !table.intel);
	unsigned before = flushes;
	CHECK(msr_write(c, MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE));
	CHECK_EQ(flushes, before + 1);
	c->cr0 |= CR0_PG | CR0_PE;
	c->efer |= EFER_LMA;
	CHECK(!msr_write(c, MSR_EFER, EFER_SCE | EFER_NXE)); /* LME under paging */
	CHECK(msr_write(c, MSR_EFER, EFER_LME | EFER_SCE));
	CHECK_EQ(c->efer, EFER_LME | EFER_LMA | EFER_SCE);

	/* canonical addresses */
	static const u32 canon[] = { MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_LSTAR, MSR_CSTAR, MSR_SYSENTER_ESP,
		MSR_SYSENTER_EIP };
	for (unsigned i = 0; i < ARRAY_SIZE(canon); i++) {
		CHECK(msr_write(c, canon[i], 0xffff800000000000 + canon[i]));
		CHECK(msr_read(c, canon[i], &v) && v == 0xffff800000000000 + canon[i]);
		CHECK(!msr_write(c, canon[i], 0x800000000000));
	}
	CHECK_EQ(c->seg[FS].base, 0xffff800000000000 + MSR_FS_BASE);
	CHECK_EQ(c->seg[GS].base, 0xffff800000000000 + MSR_GS_BASE);
	CHECK(!msr_write(c, MSR_SFMASK, BIT(32)));
	CHECK(!msr_write(c, MSR_TSC_AUX, BIT(32)));
	CHECK(msr_write(c, MSR_TSC_AUX, 0xabcd) && c->tsc_aux == 0xabcd);

	/* PAT, MTRRs */
	CHECK(msr_write(c, MSR_PAT, 0x0007010600070106));
	CHECK(!msr_write(c, MSR_PAT, 2));
	CHECK(!msr_write(c, MSR_PAT, 8));
	CHECK(msr_read(c, 0xfe, &v));
	CHECK_EQ(v & 0xff, 8);
	CHECK(!msr_write(c, 0xfe, v));
	CHECK(msr_write(c, 0x200, 0x80000000 | 6));
	CHECK(!msr_write(c, 0x200, 7));
	CHECK(!msr_write(c, 0x200, BIT(table.maxphyaddr)));
	CHECK(msr_write(c, 0x20f, 0xc0000800));
	CHECK(!msr_write(c, 0x20f, 1));
	CHECK(!msr_read(c, 0x210, &v));
	CHECK(msr_write(c, 0x26f, 0x0505050505050505));
	CHECK(!msr_write(c, 0x26f, 7));
	CHECK(!msr_read(c, 0x251, &v));
	CHECK(msr_write(c, 0x2ff, 0xc06));
	CHECK(!msr_write(c, 0x2ff, 0x1006));
	CHECK(!msr_write(c, 0x2ff, 2));

	/* machine check: architectural, empty */
	CHECK(msr_read(c, 0x179, &v) && v == 0);
	CHECK(!msr_read(c, 0x400, &v));
	CHECK(!msr_write(c, 0x17a, 8));

	/* speculation control */
	CHECK(msr_write(c, 0x49, 1));
	CHECK(!msr_write(c, 0x49, 2));
	CHECK(!msr_read(c, 0x49, &v));
	if (table.intel) {
		CHECK(msr_write(c, 0x48, 1) && msr_read(c, 0x48, &v) && v == 1);
		CHECK(!msr_write(c, 0x48, 2));
		CHECK(msr_read(c, 0x10a, &v));
		CHECK_EQ(v & 3, 3);
		CHECK(!msr_read(c, 0xc0010015, &v));
		CHECK(msr_read(c, 0x3a, &v) && v == 1);
	} else {
		CHECK(!msr_read(c, 0x48, &v));
		CHECK(!msr_read(c, 0x10a, &v));
		CHECK(msr_read(c, 0xc0010015, &v) && v == BIT(24));
		CHECK(msr_read(c, 0xc0011029, &v) && v == 2);
	}
	CHECK(msr_name(MSR_EFER) && !strcmp(msr_name(MSR_EFER), "IA32_EFER"));
	CHECK(!msr_name(0x12345678));
	/* every row is found by both ends of its range: the table is sorted and free of overlaps */
	u32 first, last;
	const char *name;
	unsigned vendor;
	for (unsigned i = 0; msr_row(i, &first, &last, &name, &vendor); i++) {
		CHECK(first <= last && name);
		CHECK(msr_name(first) == name && msr_name(last) == name);
	}
	CHECK(!strcmp(msr_name(0), msr_name(1)));
	CHECK(!strcmp(msr_name(0x20f), msr_name(0x200)));
	CHECK(msr_name(0xc001102a) && msr_name(0x4b564d01) && msr_name(0x8ff) && msr_name(0x10));
}

static void test_tsc(void)
{
	struct cpu *c = fresh(1);
	u64 v;
	CHECK(msr_read(c, MSR_TSC, &v) && v == 1000);
	CHECK(msr_write(c, MSR_TSC, 50));
	CHECK_EQ(cpu_tsc(c), 50);
	CHECK_EQ(cpu_raw_tsc(c), 1000);
	CHECK(msr_read(c, 0x3b, &v) && v == (u64)-950);
	CHECK(msr_write(c, 0x3b, 0));
	CHECK_EQ(cpu_tsc(c), 1000);
	c->det_tsc_skew = 500;
	CHECK_EQ(cpu_tsc(c), 1500);
	c->deterministic = false;
	u64 a = cpu_tsc(c), b = cpu_tsc(c);
	CHECK(b >= a);
}

/* A Zen host (values shortened to what matters; 2 threads per core there), AMX and PKRU in XCR0 for good measure. */
static void zen_cpuid(u32 leaf, u32 sub, u32 r[4])
{
	static const struct cpuid_leaf zen[] = {
		{ 0, 0, { 0x10, 0x68747541, 0x444d4163, 0x69746e65 } },
		{ 1, 0, { 0x00b40f40, 0x05100800, 0xfef83203, 0x178bfbff } },
		{ 5, 0, { 0x40, 0x40, 3, 0x11 } },
		{ 6, 0, { 4, 0, 0, 0 } },
		{ 7, 0, { 1, 0xf1bf97a9, 0x18405fde, 0x00000110 } },
		{ 7, 1, { 0x30, 0, 0, 0 } },
		{ 0xd, 0, { 0x2e7, 0x988, 0x988, 0 } },
		{ 0xd, 1, { 0xf, 0x988, 0x1800, 0 } },
		{ 0xd, 2, { 0x100, 0x240, 0, 0 } },
		{ 0xd, 5, { 0x40, 0x340, 0, 0 } },
		{ 0xd, 6, { 0x200, 0x380, 0, 0 } },
		{ 0xd, 7, { 0x400, 0x580, 0, 0 } },
		{ 0xd, 9, { 8, 0x980, 0, 0 } },
		{ 0x80000000, 0, { 0x80000028, 0x68747541, 0x444d4163, 0x69746e65 } },
		{ 0x80000001, 0, { 0x00b40f40, 0x40000000, 0x75c237ff, 0x2fd3fbff } },
		{ 0x80000002, 0, { 0x20444d41, 0x43595045, 0x33352039, 0x43203536 } },
		{ 0x80000007, 0, { 0, 0x3b, 0, 0x6799 } },
		{ 0x80000008, 0, { 0x3934, 0x791ef257, 0xd05f, 0x10007 } },
		{ 0x8000001d, 0, { 0x4121, 0x2c0003f, 0x3f, 0 } },
		{ 0x8000001d, 1, { 0x4122, 0x1c0003f, 0x3f, 0 } },
		{ 0x8000001d, 2, { 0x4143, 0x3c0003f, 0x3ff, 2 } },
		{ 0x8000001d, 3, { 0x3c163, 0x3c0003f, 0x7fff, 1 } },
		{ 0x80000021, 0, { 0x3a001c5f, 0, 0, 0 } },
	};
	r[0] = r[1] = r[2] = r[3] = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(zen); i++)
		if (zen[i].leaf == leaf && zen[i].subleaf == sub)
			memcpy(r, zen[i].r, sizeof(zen[i].r));
}

static void test_amd(void)
{
	const struct cpuid_host h = { zen_cpuid, 0x602e7 };
	struct cpu *c = fresh(1);
	u32 r[4];
	u64 v;
	cpuid_table_init_from(&table, &h, 3, 2600000);
	c->vendor_intel = table.intel;
	c->maxphyaddr = table.maxphyaddr;
	c->id = 2;
	CHECK(!table.intel);
	CHECK_EQ(table.maxphyaddr, 46);
	CHECK_EQ(table.xcr0, 0xe7);
	CHECK_EQ(table.xsave_size, 0x980); /* without PKRU */
	for (unsigned i = 0; i < cpuid_bits_count; i++) {
		const struct cpuid_bit *b = &cpuid_bits[i];
		if (b->policy == CPUID_OFF || b->vendor == CPUID_INTEL)
			CHECK(!guest_bit(c, b));
		else if (b->policy == CPUID_ON)
			CHECK(guest_bit(c, b));
	}
	cpuid_get(c, 0, 0, r);
	CHECK(r[0] == 0x10 && r[1] == 0x68747541);
	cpuid_get(c, 1, 0, r);
	CHECK(r[0] == 0x00b40f40 && r[1] == 0x02040800);
	u32 leaf1_edx = r[3];
	cpuid_get(c, 0x80000001, 0, r);
	CHECK_EQ(r[0], 0x00b40f40);
	CHECK_EQ((r[3] ^ leaf1_edx) & 0x0183f3ff, 0); /* the mirror */
	CHECK(r[2] & 2); /* CmpLegacy */
	cpuid_get(c, 4, 0, r);
	CHECK(!(r[0] | r[1] | r[2] | r[3]));
	cpuid_get(c, 0x15, 0, r);
	CHECK(!(r[0] | r[1] | r[2] | r[3]));
	cpuid_get(c, 0x80000022, 0, r); /* beyond the last: zeros */
	CHECK(!(r[0] | r[1] | r[2] | r[3]));
	cpuid_get(c, 0x8000001d, 0, r);
	CHECK_EQ(r[0], 0x121);
	cpuid_get(c, 0x8000001d, 2, r);
	CHECK_EQ(r[0], 0x143);
	cpuid_get(c, 0x8000001d, 3, r);
	CHECK_EQ(r[0], 0x163 | 3 << 14);
	cpuid_get(c, 0x8000001e, 0, r);
	CHECK(r[0] == 2 && r[1] == 2 && r[2] == 0);
	cpuid_get(c, 0x80000008, 0, r);
	CHECK(r[0] == 0x302e && r[2] == (2 | 2 << 12));
	c->xcr0 = 0xe7;
	cpuid_get(c, 0xd, 0, r);
	CHECK(r[0] == 0xe7 && r[1] == 0x980 && r[2] == 0x980);
	cpuid_get(c, 0xd, 1, r);
	CHECK(r[0] == 7 && r[1] == 0x980);
	/* its MSRs */
	CHECK(msr_write(c, MSR_EFER, BIT(21)));
	CHECK(!msr_read(c, 0x48, &v) && !msr_read(c, 0x10a, &v) && !msr_read(c, 0xce, &v) && !msr_read(c, 0x3a, &v));
	CHECK(msr_read(c, 0xc0010015, &v) && v == BIT(24));
	CHECK(msr_write(c, 0xc0010015, BIT(24) | BIT(6)));
	CHECK(msr_read(c, 0xc0011029, &v) && v == 2);
	CHECK(msr_read(c, 0xc0010000, &v) && v == 0);
	CHECK(msr_write(c, 0xc0010114, BIT(4)) && !msr_write(c, 0xc0010114, 0));
	CHECK(msr_read(c, 0x8b, &v) && v == 0x01000065);
}

struct time_info { u32 version, pad; u64 tsc, ns; u32 mul; s8 shift; u8 flags, pad2[2]; };

static void test_kvmclock(void)
{
	ram.n = 1;
	ram.slot[0] = (struct ram_slot){ .gpa = GPA(0x10000), .size = sizeof(memory), .hva = memory, .fd = -1 };
	struct cpu *c = fresh(1);
	struct time_info *t = (struct time_info *)(void *)(memory + 64);
	c->boot_tsc = 400;
	c->boot_wall_ns = 1700000000123456789ull;
	t->version = 7; /* rubbish of the guest's */
	CHECK(msr_write(c, 0x4b564d01, 0x10040 | 1));
	CHECK_EQ(t->version, 8);
	CHECK_EQ(t->flags, 1);
	CHECK_EQ(t->tsc, 400);
	CHECK_EQ(t->ns, 0);
	/* the guest's own formula, an hour and a year on */
	struct pvclock_scale s = { t->mul, t->shift };
	u64 hour = 2100000000ull * 3600, got = pvclock_cycles_to_ns(s, hour);
	CHECK(got <= 3600000000000ull && 3600000000000ull - got < 2000);
	got = pvclock_cycles_to_ns(s, hour * 24 * 365);
	CHECK(31536000000000000ull - got < 20000000);
	/* a TSC write moves the page along */
	CHECK(msr_write(c, MSR_TSC, 0));
	CHECK_EQ(t->version, 10);
	CHECK_EQ(t->tsc, (u64)400 - 1000);
	/* disabled: not touched any more */
	CHECK(msr_write(c, 0x4b564d01, 0));
	CHECK(msr_write(c, MSR_TSC, 77));
	CHECK_EQ(t->version, 10);
	/* hostile addresses */
	CHECK(msr_write(c, 0x4b564d01, ~0ull));
	CHECK(msr_write(c, 0x4b564d01, (0x10000 + sizeof(memory) - 16) | 1));
	CHECK(msr_write(c, 0x12, 0x1));
	CHECK(msr_write(c, 0x4b564d00, ~0ull & ~3ull));
	/* wall clock */
	u32 *w = (u32 *)(void *)(memory + 256);
	CHECK(msr_write(c, 0x4b564d00, 0x10100));
	CHECK_EQ(w[0], 2);
	CHECK_EQ(w[1], 1700000000);
	CHECK_EQ(w[2], 123456789);
	CHECK(msr_write(c, 0x11, 0x10100));
	CHECK_EQ(w[0], 4);
	/* scale: every frequency, 1 ppb */
	for (u64 khz = 1000; khz < 20000000; khz += 99991) {
		s = pvclock_scale(khz);
		u64 ns = pvclock_cycles_to_ns(s, khz * 1000000);
		CHECK(ns <= 1000000000000ull && 1000000000000ull - ns <= 1001);
	}
	CHECK_EQ(pvclock_ns(c), pvclock_cycles_to_ns(pvclock_scale(2100000), 600));
}

int main(void)
{
	test_table();
	test_identity();
	test_dynamic();
	test_xsave();
	test_tsc_frequency();
	test_msr_rules();
	test_tsc();
	test_amd();
	test_kvmclock();
	return check_result();
}
