/* Control and debug registers, TLB invalidation (SDM vol. 3 chapters 2.5, 4.10, 17.2; vol. 2 MOV CR, MOV DR). */
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/seg.h"
#include "cpu/trace.h"

/* ---- control registers ---- */

#define CR0_WRITABLE (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)

/* Which CPUID bit makes which bit of CR4 legal; everything else in CR4 is reserved. */
static const struct { u64 bit; u32 leaf; enum cpuid_reg reg; unsigned shift; } cr4_features[] = {
	{ CR4_VME | CR4_PVI, 1, CPUID_EDX, 1 },
	{ CR4_TSD, 1, CPUID_EDX, 4 },
	{ CR4_DE, 1, CPUID_EDX, 2 },
	{ CR4_PSE, 1, CPUID_EDX, 3 },
	{ CR4_PAE, 1, CPUID_EDX, 6 },
	{ CR4_MCE, 1, CPUID_EDX, 7 },
	{ CR4_PGE, 1, CPUID_EDX, 13 },
	{ CR4_OSFXSR, 1, CPUID_EDX, 24 },
	{ CR4_OSXMMEXCPT, 1, CPUID_EDX, 25 },
	{ CR4_UMIP, 7, CPUID_ECX, 2 },
	{ CR4_FSGSBASE, 7, CPUID_EBX, 0 },
	{ CR4_PCIDE, 1, CPUID_ECX, 17 },
	{ CR4_OSXSAVE, 1, CPUID_ECX, 26 },
	{ CR4_SMEP, 7, CPUID_EBX, 7 },
	{ CR4_SMAP, 7, CPUID_EBX, 20 },
	{ CR4_PKE, 7, CPUID_ECX, 3 },
};

static u64 cr4_legal(const struct cpu *c)
{
	u64 legal = CR4_PCE; /* architectural since the Pentium MMX; RDPMC itself has no counters */
	for (unsigned k = 0; k < ARRAY_SIZE(cr4_features); k++)
		if (cpuid_has(c->cpuid, cr4_features[k].leaf, 0, cr4_features[k].reg, cr4_features[k].shift))
			legal |= cr4_features[k].bit;
	return legal;
}

/* PAE paging outside IA-32e mode: loading CR3 (or switching to it) checks and loads the four PDPTEs, which the page walk
 * then uses until the next load (SDM 4.4.1).  False: a reserved bit, nothing is loaded.  Nothing after it may fail. */
static bool pdptes_load(struct cpu *c, u64 cr0, u64 cr3, u64 cr4)
{
	u64 loaded[4];
	if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (c->efer & EFER_LME))
		return true;
	const u64 reserved = BIT(1) | BIT(2) | (MASK(9) & ~MASK(5)) | ~MASK(c->maxphyaddr);
	for (unsigned k = 0; k < 4; k++) {
		const volatile u64 *e = ram_ptr(c->ram, GPA((cr3 & 0xffffffe0) + 8 * k), 8);
		loaded[k] = e ? *e : ~0ull;
		if ((loaded[k] & PTE_P) && (loaded[k] & reserved))
			return false;
	}
	for (unsigned k = 0; k < 4; k++)
		c->pdpte[k] = loaded[k];
	return true;
}

void cpu_pdptes_reload(struct cpu *c) { (void)pdptes_load(c, c->cr0, c->cr3, c->cr4); }

static int write_cr0(struct cpu *c, const struct insn *i, u64 v)
{
	u64 old = c->cr0;
	if (v >> 32)
		return exc_gp(c, i, 0);
	if (((v & CR0_PG) && !(v & CR0_PE)) || ((v & CR0_NW) && !(v & CR0_CD)))
		return exc_gp(c, i, 0);
	v = (v & CR0_WRITABLE) | CR0_ET;
	u64 changed = old ^ v;
	u64 efer = c->efer;
	if ((changed & v & CR0_PG) && (efer & EFER_LME)) {
		if (!(c->cr4 & CR4_PAE) || c->seg[CS].l)
			return exc_gp(c, i, 0);
		if (!c->tr.unusable && (c->tr.type == SYS_TSS16 || c->tr.type == SYS_TSS16_BUSY))
			return exc_gp(c, i, 0);
		efer |= EFER_LMA;
	}
	if (changed & old & CR0_PG) {
		if (cpu_code64(c) || (c->cr4 & CR4_PCIDE))
			return exc_gp(c, i, 0);
		efer &= ~EFER_LMA;
	}
	if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && !pdptes_load(c, v, c->cr3, c->cr4))
		return exc_gp(c, i, 0);
	u64 next = insn_next_rip(c, i);
	c->cr0 = v;
	c->efer = efer;
	cpu_trace(c, TRACE_MODE, v, c->cr4, efer);
	if ((changed & v & CR0_PE) || (changed & old & CR0_PE))
		c->cpl = 0; /* 0 already, but for a guest that left protected mode at another level by LOADALL-like means */
	if (changed & (CR0_PG | CR0_PE | CR0_WP))
		mmu_flush_all(c);
	return step_mode(c, next);
}

static int write_cr3(struct cpu *c, const struct insn *i, u64 v)
{
	if (cpu_long_mode(c)) {
		if (c->cr4 & CR4_PCIDE)
			v &= ~BIT(63); /* "do not flush" is a permission, and our TLB has no tags */
		if (v >> c->maxphyaddr)
			return exc_gp(c, i, 0);
	} else {
		v = (u32)v;
		if (!pdptes_load(c, c->cr0, v, c->cr4))
			return exc_gp(c, i, 0);
	}
	c->cr3 = v;
	c->stats.cr3_loads++;
	cpu_trace(c, TRACE_CR3, v, insn_rip(c, i), 0);
	mmu_flush_nonglobal(c);
	c->rip = insn_next_rip(c, i);
	return STEP_MODE;
}

static int write_cr4(struct cpu *c, const struct insn *i, u64 v)
{
	u64 changed = c->cr4 ^ v;
	if (v & ~cr4_legal(c))
		return exc_gp(c, i, 0);
	if (cpu_long_mode(c) && !(v & CR4_PAE))
		return exc_gp(c, i, 0);
	if ((changed & v & CR4_PCIDE) && (!cpu_long_mode(c) || (c->cr3 & 0xfff)))
		return exc_gp(c, i, 0);
	if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) && !pdptes_load(c, c->cr0, c->cr3, v))
		return exc_gp(c, i, 0);
	u64 next = insn_next_rip(c, i);
	c->cr4 = v;
	cpu_trace(c, TRACE_MODE, c->cr0, v, c->efer);
	if (changed & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE))
		mmu_flush_all(c);
	return step_mode(c, next);
}

int op_mov_from_cr(struct cpu *c, const struct insn *i)
{
	u64 v;
	REQUIRE_CPL0(c, i);
	switch (i->aux) {
	case 0: v = c->cr0; break;
	case 2: v = c->cr2; break;
	case 3: v = c->cr3; break;
	case 4: v = c->cr4; break;
	case 8:
		v = c->lapic ? (u64)lapic_get_tpr(c) >> 4 : c->cr8;
		break;
	default: return exc_ud(c, i);
	}
	REG64(c, i->ra) = cpu_code64(c) ? v : (u32)v;
	NEXT(c, i);
}

int op_mov_to_cr(struct cpu *c, const struct insn *i)
{
	u64 v = cpu_code64(c) ? REG64(c, i->ra) : REG32(c, i->ra);
	REQUIRE_CPL0(c, i);
	switch (i->aux) {
	case 0: return write_cr0(c, i, v);
	case 2: c->cr2 = v; NEXT(c, i);
	case 3: return write_cr3(c, i, v);
	case 4: return write_cr4(c, i, v);
	case 8:
		if (v > 15)
			return exc_gp(c, i, 0);
		c->cr8 = v;
		if (c->lapic)
			lapic_set_tpr(c, (u8)(v << 4));
		c->rip = insn_next_rip(c, i);
		return STEP_MODE;
	default: return exc_ud(c, i);
	}
}

int op_clts(struct cpu *c, const struct insn *i)
{
	REQUIRE_CPL0(c, i);
	c->cr0 &= ~CR0_TS;
	return step_mode(c, insn_next_rip(c, i));
}

int op_smsw(struct cpu *c, const struct insn *i)
{
	if (c->cpl && (c->cr4 & CR4_UMIP))
		return exc_gp(c, i, 0);
	if (i->flags & IF_MEM) {
		int fault = 0;
		u64 ea = insn_ea(c, i, 2, ACC_W, &fault);
		if (fault || (fault = mem_write16(c, i, ea, (u16)c->cr0)))
			return fault;
	} else {
		reg_write(c, i->ra, i->opsize, c->cr0);
	}
	NEXT(c, i);
}

int op_lmsw(struct cpu *c, const struct insn *i)
{
	u16 v;
	REQUIRE_CPL0(c, i);
	if (i->flags & IF_MEM) {
		int fault = 0;
		u64 ea = insn_ea(c, i, 2, ACC_R, &fault);
		if (fault || (fault = mem_read16(c, i, ea, &v)))
			return fault;
	} else {
		v = REG16(c, i->ra);
	}
	/* PE can be set but not cleared. */
	u64 set = CR0_PE | CR0_MP | CR0_EM | CR0_TS;
	return write_cr0(c, i, (c->cr0 & ~(set & ~CR0_PE)) | (v & set));
}

/* ---- debug registers ---- */

#define DR6_WRITABLE 0xe00full     /* B0-B3, BD, BS, BT */
#define DR7_WRITABLE 0xffff23ffull /* L/G, LE/GE, GD, R/W and LEN */

/* Privilege, DR4/DR5 and general-detect checks.  *n: the register after aliasing. */
static int dr_check(struct cpu *c, const struct insn *i, unsigned *n)
{
	*n = i->aux;
	if (*n > 7)
		return exc_ud(c, i);
	if (*n == 4 || *n == 5) {
		if (c->cr4 & CR4_DE)
			return exc_ud(c, i);
		*n += 2;
	}
	REQUIRE_CPL0(c, i);
	if (c->dr7 & DR7_GD) {
		int st = exc_raise(c, i, VEC_DB);
		c->exc.dr6 = DR6_BD;
		return st;
	}
	return 0;
}

int op_mov_from_dr(struct cpu *c, const struct insn *i)
{
	unsigned n;
	int st = dr_check(c, i, &n);
	if (st)
		return st;
	u64 v = n < 4 ? c->dr[n] : n == 6 ? c->dr6 : c->dr7;
	REG64(c, i->ra) = cpu_code64(c) ? v : (u32)v;
	NEXT(c, i);
}

int op_mov_to_dr(struct cpu *c, const struct insn *i)
{
	unsigned n;
	u64 v = cpu_code64(c) ? REG64(c, i->ra) : REG32(c, i->ra);
	int st = dr_check(c, i, &n);
	if (st)
		return st;
	if (n >= 6 && v >> 32)
		return exc_gp(c, i, 0);
	u64 next = insn_next_rip(c, i);
	if (n < 4)
		c->dr[n] = v;
	else if (n == 6)
		c->dr6 = DR6_FIXED | (v & DR6_WRITABLE);
	else
		c->dr7 = DR7_FIXED | (v & DR7_WRITABLE);
	return step_mode(c, next);
}

/* ---- TLB and caches ---- */

int op_invlpg(struct cpu *c, const struct insn *i)
{
	REQUIRE_CPL0(c, i);
	/* No limit, type or canonical check: SDM vol. 2, INVLPG. */
	u64 gva = insn_lea(c, i);
	if (!cpu_code64(c))
		gva = (u32)(gva + c->seg[i->seg].base);
	else if (i->seg == FS || i->seg == GS)
		gva += c->seg[i->seg].base;
	if (i->base == R_RIP && !cpu_code64(c))
		gva = (u32)gva;
	if (likely(gva_canonical(gva)))
		mmu_flush_page(c, gva);
	c->rip = insn_next_rip(c, i);
	return STEP_NEXT;
}

int op_invpcid(struct cpu *c, const struct insn *i)
{
	if (!cpuid_has(c->cpuid, 7, 0, CPUID_EBX, 10))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	u64 type = cpu_code64(c) ? REG64(c, i->ra) : REG32(c, i->ra);
	u64 d[2];
	int fault = 0;
	u64 ea = insn_ea(c, i, 16, ACC_R, &fault);
	if (fault || (fault = mem_read_slow(c, i, ea, d, 16)))
		return fault;
	if (type > 3 || d[0] >> 12)
		return exc_gp(c, i, 0);
	if (type < 2 && !(c->cr4 & CR4_PCIDE) && d[0])
		return exc_gp(c, i, 0);
	if (type == 0 && !gva_canonical(d[1]))
		return exc_gp(c, i, 0);
	/* Only the current PCID is ever cached: every load of CR3 flushes. */
	bool current = !(c->cr4 & CR4_PCIDE) || (c->cr3 & 0xfff) == d[0];
	switch (type) {
	case 0:
		if (current)
			mmu_flush_page(c, d[1]);
		break;
	case 1:
		if (current)
			mmu_flush_nonglobal(c);
		break;
	case 2: mmu_flush_all(c); break;
	default: mmu_flush_nonglobal(c); break;
	}
	c->rip = insn_next_rip(c, i);
	return STEP_NEXT;
}

/* Guest caches are the host's, always coherent with its memory: nothing to do. */
int op_invd(struct cpu *c, const struct insn *i)
{
	REQUIRE_CPL0(c, i);
	NEXT(c, i);
}
int op_wbinvd(struct cpu *c, const struct insn *i)
{
	REQUIRE_CPL0(c, i);
	NEXT(c, i);
}
