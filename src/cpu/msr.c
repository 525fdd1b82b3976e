/* Model-specific registers: one table of everything that exists.  What is not in it does not exist: #GP, as on
 * hardware, counted in stats.unknown_msr.  The MSRs and their answers are those KVM gives a guest with the CPUID of
 * cpuid.c, so that a kernel finds what it expects of "a CPU under KVM". */
#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/pvclock.h"
#include "cpu/trace.h"

struct msr;
typedef bool (*msr_read_fn)(struct cpu *c, const struct msr *m, u32 index, u64 *value);
typedef bool (*msr_write_fn)(struct cpu *c, const struct msr *m, u32 index, u64 value);

enum msr_vendor { ANY, INTEL, AMD };

struct msr {
	u32 first, last;
	const char *name;
	u8 vendor;
	msr_read_fn read;
	msr_write_fn write;
	u32 field;    /* read_field/write_field: byte offset of the first u64 in struct cpu, consecutive ones for a range */
	u64 reserved; /* bits that must be 0 in a write */
	u64 reset;    /* of a field; what read_const returns */
};

/* ---- generic handlers ---- */

static u64 *field(struct cpu *c, const struct msr *m, u32 index)
{
	return (u64 *)(void *)((char *)c + m->field) + (index - m->first);
}
static bool read_field(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = *field(c, m, index);
	return true;
}
static bool write_field(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	*field(c, m, index) = value;
	return true;
}
static bool write_canonical(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	if (!gva_canonical(value))
		return false;
	*field(c, m, index) = value;
	return true;
}
static bool read_const(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = m->reset;
	return true;
}
static bool write_ignored(struct cpu *c, const struct msr *m, u32 index, u64 value) { return true; }
/* The value it has may be written, nothing else. */
static bool write_same(struct cpu *c, const struct msr *m, u32 index, u64 value) { return value == m->reset; }
static bool no_read(struct cpu *c, const struct msr *m, u32 index, u64 *value) { return false; }
static bool no_write(struct cpu *c, const struct msr *m, u32 index, u64 value) { return false; }

/* ---- time ---- */

static bool read_tsc(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = cpu_tsc(c);
	return true;
}
/* Moves the guest's TSC by delta; IA32_TSC_ADJUST follows (SDM 18.17.3). */
static void move_tsc(struct cpu *c, u64 delta)
{
	c->tsc_offset += delta;
	c->tsc_adjust += delta;
	c->poll_at = 0;
	pvclock_update(c);
}
static bool write_tsc(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	move_tsc(c, value - cpu_tsc(c));
	return true;
}
static bool write_tsc_adjust(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	move_tsc(c, value - c->tsc_adjust);
	return true;
}
static bool read_tsc_deadline(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = lapic_get_tsc_deadline(c);
	return true;
}
static bool write_tsc_deadline(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	lapic_set_tsc_deadline(c, value);
	return true;
}
static bool write_system_time(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	pvclock_set_system_time(c, value);
	return true;
}
static bool write_wall_clock(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	pvclock_set_wall_clock(c, value);
	return true;
}

/* ---- local APIC ---- */

static bool write_apic_base(struct cpu *c, const struct msr *m, u32 index, u64 value) { return lapic_set_base(c, value); }
static bool read_x2apic(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	return lapic_msr_read(c, index, value);
}
static bool write_x2apic(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	return lapic_msr_write(c, index, value);
}

/* ---- system state ---- */

#define EFER_AUTOIBRS BIT(21)

static bool write_efer(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	u64 allowed = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	if (c->cpuid && cpuid_has(c->cpuid, 0x80000021, 0, CPUID_EAX, 8))
		allowed |= EFER_AUTOIBRS;
	if (value & ~allowed)
		return false;
	if ((value ^ c->efer) & EFER_LME && c->cr0 & CR0_PG)
		return false;
	value = (value & ~EFER_LMA) | (c->efer & EFER_LMA); /* LMA follows paging alone */
	u64 changed = value ^ c->efer;
	c->efer = value;
	cpu_trace(c, TRACE_MODE, c->cr0, c->cr4, value);
	if (changed & EFER_NXE)
		mmu_flush_all(c); /* bit 63 of page-table entries changes its meaning */
	if (changed)
		cpu_update_mode(c);
	return true;
}
static bool read_fs_base(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = c->seg[index == MSR_FS_BASE ? FS : GS].base;
	return true;
}
static bool write_fs_base(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	if (!gva_canonical(value))
		return false;
	c->seg[index == MSR_FS_BASE ? FS : GS].base = value;
	return true;
}

/* Memory types (SDM table 12-10): 0 UC, 1 WC, 4 WT, 5 WP, 6 WB, 7 UC- (PAT only). */
static bool valid_types(u64 value, u8 types)
{
	for (unsigned i = 0; i < 8; i++) {
		u64 t = value >> i * 8 & 0xff;
		if (t > 7 || !(types >> t & 1))
			return false;
	}
	return true;
}
static bool write_pat(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	if (!valid_types(value, 0xf3))
		return false;
	c->pat = value;
	return true;
}
static const u32 mtrr_fixed_index[11] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
static u64 *mtrr_fixed(struct cpu *c, u32 index)
{
	for (unsigned i = 0; i < ARRAY_SIZE(mtrr_fixed_index); i++)
		if (mtrr_fixed_index[i] == index)
			return &c->mtrr_fixed[i];
	return NULL;
}
static bool read_mtrr_fixed(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	const u64 *p = mtrr_fixed(c, index);
	if (p)
		*value = *p;
	return p;
}
static bool write_mtrr_fixed(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	u64 *p = mtrr_fixed(c, index);
	if (!p || !valid_types(value, 0x73))
		return false;
	*p = value;
	return true;
}
static bool write_mtrr_var(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	u64 allowed = (MASK(c->maxphyaddr) & PAGE_MASK) | (index & 1 ? BIT(11) : 0xff);
	if (value & ~allowed)
		return false;
	if (!(index & 1) && ((value & 0xff) > 7 || !(0x73 >> (value & 0xff) & 1)))
		return false;
	*field(c, m, index) = value;
	return true;
}
static bool write_mtrr_def(struct cpu *c, const struct msr *m, u32 index, u64 value)
{
	if ((value & 0xff) > 7 || !(0x73 >> (value & 0xff) & 1))
		return false;
	c->mtrr_def = value;
	return true;
}
/* Revision of the microcode, as KVM answers by default; no update can be loaded. */
static bool read_microcode(struct cpu *c, const struct msr *m, u32 index, u64 *value)
{
	*value = c->vendor_intel ? 1ull << 32 : 0x01000065;
	return true;
}

/* ---- speculation control ---- */

/* "This CPU is not affected": Linux arch/x86/kernel/cpu/common.c, cpu_set_bug_bits(). */
#define ARCH_CAPABILITIES                                                                                     \
	(BIT(0)    /* RDCL_NO: no page-table isolation */                                                     \
	 | BIT(1)  /* IBRS_ALL: enhanced IBRS instead of retpolines */                                        \
	 | BIT(3)  /* SKIP_L1DFL_VMENTRY */                                                                   \
	 | BIT(4)  /* SSB_NO */                                                                               \
	 | BIT(5)  /* MDS_NO */                                                                               \
	 | BIT(6)  /* PSCHANGE_MC_NO */                                                                       \
	 | BIT(8)  /* TAA_NO */                                                                               \
	 | BIT(13) /* SBDR_SSDP_NO */                                                                         \
	 | BIT(14) /* FBSDP_NO */                                                                             \
	 | BIT(15) /* PSDP_NO */                                                                              \
	 | BIT(20) /* BHI_NO */                                                                               \
	 | BIT(24) /* PBRSB_NO */                                                                             \
	 | BIT(26) /* GDS_NO */                                                                               \
	 | BIT(27) /* RFDS_NO */                                                                              \
	 | BIT(62) /* ITS_NO */)

#define HWCR_TSC_FREQ_SEL BIT(24) /* TSC counts at the P0 frequency; Linux complains without it */
#define MISC_ENABLE_RESET (BIT(0) /* fast strings */ | BIT(11) | BIT(12) /* no BTS, no PEBS */)

/* MTRRs: 8 variable ranges, fixed ranges, write combining. */
#define MTRR_CAP (8 | BIT(8) | BIT(10))
#define MTRR_DEF_RESET (BIT(11) | 6) /* enabled, write-back: what firmware leaves */

#define F(name) offsetof(struct cpu, name)
#define RW(lo, hi, name, vendor, fld, resv, rst) { lo, hi, name, vendor, read_field, write_field, F(fld), resv, rst }
#define RW1(idx, name, vendor, fld, resv, rst) RW(idx, idx, name, vendor, fld, resv, rst)
#define CANON(idx, name, fld) { idx, idx, name, ANY, read_field, write_canonical, F(fld), 0, 0 }
#define CONST(lo, hi, name, vendor, wr, value) { lo, hi, name, vendor, read_const, wr, 0, 0, value }
#define FN(lo, hi, name, vendor, rd, wr, fld, resv, rst) { lo, hi, name, vendor, rd, wr, fld, resv, rst }
#define NOF 0

/* Sorted by index. */
static const struct msr msrs[] = {
	CONST(0x0, 0x1, "IA32_P5_MC_ADDR/TYPE", ANY, write_ignored, 0),
	FN(0x10, 0x10, "IA32_TSC", ANY, read_tsc, write_tsc, NOF, 0, 0),
	FN(0x11, 0x11, "KVM_WALL_CLOCK", ANY, read_field, write_wall_clock, F(kvm_wall_clock), 0, 0),
	FN(0x12, 0x12, "KVM_SYSTEM_TIME", ANY, read_field, write_system_time, F(kvm_system_time), 0, 0),
	CONST(0x17, 0x17, "IA32_PLATFORM_ID", INTEL, no_write, 0),
	FN(0x1b, 0x1b, "IA32_APIC_BASE", ANY, read_field, write_apic_base, F(apic_base), 0, 0xfee00000 | APIC_BASE_EN),
	CONST(0x2a, 0x2a, "EBL_CR_POWERON", INTEL, write_ignored, 0),
	CONST(0x33, 0x33, "TEST_CTRL", INTEL, write_same, 0),
	CONST(0x34, 0x34, "SMI_COUNT", INTEL, no_write, 0),
	CONST(0x3a, 0x3a, "IA32_FEATURE_CONTROL", INTEL, write_same, 1), /* locked: no VMX, no SGX */
	FN(0x3b, 0x3b, "IA32_TSC_ADJUST", ANY, read_field, write_tsc_adjust, F(tsc_adjust), 0, 0),
	RW1(0x48, "IA32_SPEC_CTRL", INTEL, spec_ctrl, ~(BIT(0) | BIT(10)), 0), /* IBRS, BHI_DIS_S: all that is offered */
	FN(0x49, 0x49, "IA32_PRED_CMD", ANY, no_read, write_ignored, NOF, ~BIT(0), 0), /* IBPB */
	FN(0x8b, 0x8b, "IA32_BIOS_SIGN_ID/PATCH_LEVEL", ANY, read_microcode, write_ignored, NOF, 0, 0),
	CONST(0xce, 0xce, "PLATFORM_INFO", INTEL, write_same, 0), /* no CPUID faulting */
	CONST(0xfe, 0xfe, "IA32_MTRRCAP", ANY, no_write, MTRR_CAP),
	CONST(0x10a, 0x10a, "IA32_ARCH_CAPABILITIES", INTEL, no_write, ARCH_CAPABILITIES),
	CONST(0x140, 0x140, "MISC_FEATURES_ENABLES", INTEL, write_same, 0),
	RW1(0x174, "IA32_SYSENTER_CS", ANY, sysenter_cs, 0, 0),
	CANON(0x175, "IA32_SYSENTER_ESP", sysenter_esp),
	CANON(0x176, "IA32_SYSENTER_EIP", sysenter_eip),
	CONST(0x179, 0x179, "IA32_MCG_CAP", ANY, no_write, 0), /* no bank, no MCG_CTL */
	RW1(0x17a, "IA32_MCG_STATUS", ANY, mcg_status, ~7ull, 0),
	CONST(0x198, 0x198, "IA32_PERF_STATUS", INTEL, no_write, 0x1000000000 | 4 << 8), /* as KVM: ratio 4, 1 V */
	RW1(0x1a0, "IA32_MISC_ENABLE", INTEL, misc_enable, ~0x851889ull, MISC_ENABLE_RESET),
	/* Last-branch records do not exist; BTF is ignored, so block steps are single steps (as under KVM without it). */
	RW1(0x1d9, "IA32_DEBUGCTL", ANY, debugctl, ~(DEBUGCTL_LBR | DEBUGCTL_BTF), 0),
	CONST(0x1db, 0x1de, "LASTBRANCH/LASTINT FROM/TO", ANY, no_write, 0),
	FN(0x200, 0x20f, "IA32_MTRR_PHYSBASE/PHYSMASK", ANY, read_field, write_mtrr_var, F(mtrr_var), 0, 0),
	FN(0x250, 0x26f, "IA32_MTRR_FIX", ANY, read_mtrr_fixed, write_mtrr_fixed, NOF, 0, 0),
	FN(0x277, 0x277, "IA32_PAT", ANY, read_field, write_pat, F(pat), 0, 0x0007040600070406),
	FN(0x2ff, 0x2ff, "IA32_MTRR_DEF_TYPE", ANY, read_field, write_mtrr_def, F(mtrr_def), ~0xcffull, MTRR_DEF_RESET),
	FN(0x6e0, 0x6e0, "IA32_TSC_DEADLINE", ANY, read_tsc_deadline, write_tsc_deadline, NOF, 0, 0),
	FN(0x800, 0x8ff, "x2APIC", ANY, read_x2apic, write_x2apic, NOF, 0, 0),
	FN(0x4b564d00, 0x4b564d00, "KVM_WALL_CLOCK_NEW", ANY, read_field, write_wall_clock, F(kvm_wall_clock), 0, 0),
	FN(0x4b564d01, 0x4b564d01, "KVM_SYSTEM_TIME_NEW", ANY, read_field, write_system_time, F(kvm_system_time), 0, 0),
	FN(0xc0000080, 0xc0000080, "IA32_EFER", ANY, read_field, write_efer, F(efer), 0, 0),
	RW1(0xc0000081, "IA32_STAR", ANY, star, 0, 0),
	CANON(0xc0000082, "IA32_LSTAR", lstar),
	CANON(0xc0000083, "IA32_CSTAR", cstar),
	RW1(0xc0000084, "IA32_FMASK", ANY, sfmask, ~MASK(32), 0),
	FN(0xc0000100, 0xc0000101, "IA32_FS_BASE/GS_BASE", ANY, read_fs_base, write_fs_base, NOF, 0, 0),
	CANON(0xc0000102, "IA32_KERNEL_GS_BASE", kernel_gs_base),
	RW1(0xc0000103, "IA32_TSC_AUX", ANY, tsc_aux, ~MASK(32), 0),
	CONST(0xc0010000, 0xc0010007, "K7_EVNTSEL/PERFCTR", AMD, write_ignored, 0), /* no counters, yet no #GP (as KVM) */
	CONST(0xc0010010, 0xc0010010, "SYSCFG", AMD, write_same, 0),
	/* Writable: TscFreqSel, and the cache and TLB flush filters that old kernels set (6, 3, 8). */
	RW1(0xc0010015, "HWCR", AMD, hwcr, ~(BIT(3) | BIT(6) | BIT(8) | BIT(18) | BIT(24)), HWCR_TSC_FREQ_SEL),
	CONST(0xc001001a, 0xc001001a, "TOP_MEM", AMD, write_ignored, 0),
	CONST(0xc001001d, 0xc001001d, "TOP_MEM2", AMD, write_ignored, 0),
	CONST(0xc001001f, 0xc001001f, "NB_CFG", AMD, write_ignored, 0),
	FN(0xc0010020, 0xc0010020, "PATCH_LOADER", AMD, no_read, write_ignored, NOF, 0, 0),
	CONST(0xc0010055, 0xc0010055, "INT_PENDING_MSG", AMD, write_ignored, 0),
	CONST(0xc0010058, 0xc0010058, "FAM10H_MMIO_CONF_BASE", AMD, write_same, 0),
	CONST(0xc0010112, 0xc0010113, "SMM_ADDR/SMM_MASK", AMD, write_ignored, 0),
	CONST(0xc0010114, 0xc0010114, "VM_CR", AMD, write_same, BIT(4)), /* SVM disabled */
	CONST(0xc0010117, 0xc0010117, "VM_HSAVE_PA", AMD, write_ignored, 0),
	CONST(0xc0011020, 0xc0011020, "LS_CFG", AMD, write_ignored, 0),
	CONST(0xc0011022, 0xc0011022, "DC_CFG", AMD, write_ignored, 0),
	CONST(0xc0011029, 0xc0011029, "DE_CFG", AMD, write_ignored, BIT(1)), /* LFENCE is serializing */
	CONST(0xc001102a, 0xc001102a, "BU_CFG2", AMD, write_ignored, 0),
};

static const struct msr *find(u32 index)
{
	unsigned lo = 0, hi = ARRAY_SIZE(msrs);
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		if (index < msrs[mid].first)
			hi = mid;
		else if (index > msrs[mid].last)
			lo = mid + 1;
		else
			return &msrs[mid];
	}
	return NULL;
}

/* For whoever wonders why a guest does not find what it looks for: the back end logs these. */
static void note_unknown(struct cpu *c, u32 index, bool write, u64 value)
{
	c->stats.unknown_msr++;
	unsigned k = 0;
	while (k < c->unknown_msr.n && c->unknown_msr.e[k].index != index)
		k++;
	if (k == CPU_UNKNOWN_MSRS)
		return;
	struct cpu_unknown_msr *u = &c->unknown_msr.e[k];
	if (k == c->unknown_msr.n) {
		*u = (struct cpu_unknown_msr){ .index = index, .write = write, .value = value, .rip = c->rip };
		c->unknown_msr.n++;
	}
	u->count++;
}

static const struct msr *lookup(struct cpu *c, u32 index, bool write, u64 value)
{
	const struct msr *m = find(index);
	c->stats.msr_accesses++;
	if (m && (m->vendor == ANY || (m->vendor == INTEL) == c->vendor_intel))
		return m;
	note_unknown(c, index, write, value);
	return NULL;
}

bool msr_read(struct cpu *c, u32 index, u64 *value)
{
	const struct msr *m = lookup(c, index, false, 0);
	return m && m->read(c, m, index, value);
}

bool msr_write(struct cpu *c, u32 index, u64 value)
{
	const struct msr *m = lookup(c, index, true, value);
	return m && !(value & m->reserved) && m->write(c, m, index, value);
}

const char *msr_name(u32 index)
{
	const struct msr *m = find(index);
	return m ? m->name : NULL;
}

bool msr_row(unsigned i, u32 *first, u32 *last, const char **name, unsigned *vendor)
{
	if (i >= ARRAY_SIZE(msrs))
		return false;
	*first = msrs[i].first;
	*last = msrs[i].last;
	*name = msrs[i].name;
	*vendor = msrs[i].vendor;
	return true;
}

void msr_reset(struct cpu *c, bool is_bsp)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msrs); i++) {
		const struct msr *m = &msrs[i];
		if (m->read == read_field)
			for (u32 index = m->first; index <= m->last; index++)
				*field(c, m, index) = m->reset;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(c->mtrr_fixed); i++)
		c->mtrr_fixed[i] = 0x0606060606060606; /* write-back, as firmware leaves it */
	c->xss = 0;
	if (is_bsp)
		c->apic_base |= APIC_BASE_BSP;
}

u64 cpu_raw_tsc(const struct cpu *c)
{
	if (c->deterministic)
		return c->insns + c->det_tsc_skew;
	u32 lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (u64)hi << 32 | lo;
}

u64 cpu_tsc(const struct cpu *c) { return cpu_raw_tsc(c) + c->tsc_offset; }
