/* MSRs, CPUID, time stamp counter, XCR0, FS/GS bases, random numbers, transactional memory
 * (SDM vol. 2 under each instruction). */
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/seg.h"
#include "cpu/trace.h"

static bool has(const struct cpu *c, u32 leaf, enum cpuid_reg reg, unsigned bit)
{
	return cpuid_has(c->cpuid, leaf, 0, reg, bit);
}

/* ---- MSRs ---- */

/* An MSR access may leave an exit behind: the instruction is complete then, and the caller acts. */
static int msr_done(struct cpu *c, const struct insn *i)
{
	c->rip = insn_next_rip(c, i);
	return c->exit != CPU_EXIT_NONE ? STEP_EXIT : STEP_MODE;
}

int op_rdmsr(struct cpu *c, const struct insn *i)
{
	u64 v = 0;
	REQUIRE_CPL0(c, i);
	c->rip = insn_rip(c, i);
	if (!msr_read(c, (u32)c->r[RCX], &v))
		return exc_gp(c, i, 0);
	cpu_trace(c, TRACE_RDMSR, (u32)c->r[RCX], v, c->rip);
	c->r[RAX] = (u32)v;
	c->r[RDX] = v >> 32;
	if (unlikely(c->exit != CPU_EXIT_NONE))
		return msr_done(c, i);
	NEXT(c, i);
}

int op_wrmsr(struct cpu *c, const struct insn *i)
{
	u32 index = (u32)c->r[RCX];
	u64 v = (u32)c->r[RAX] | c->r[RDX] << 32;
	REQUIRE_CPL0(c, i);
	c->rip = insn_rip(c, i);
	cpu_trace(c, TRACE_WRMSR, index, v, c->rip);
	if (!msr_write(c, index, v))
		return exc_gp(c, i, 0);
	if (index == MSR_FS_BASE || index == MSR_GS_BASE || index == MSR_KERNEL_GS_BASE)
		NEXT(c, i); /* hot, and part of nothing derived */
	return msr_done(c, i);
}

int op_cpuid(struct cpu *c, const struct insn *i)
{
	u32 r[4];
	cpu_trace(c, TRACE_CPUID, (u32)c->r[RAX], (u32)c->r[RCX], insn_rip(c, i));
	cpuid_get(c, (u32)c->r[RAX], (u32)c->r[RCX], r);
	c->r[RAX] = r[0];
	c->r[RBX] = r[1];
	c->r[RCX] = r[2];
	c->r[RDX] = r[3];
	NEXT(c, i);
}

/* ---- time ---- */

int op_rdtsc(struct cpu *c, const struct insn *i)
{
	if (unlikely((c->cr4 & CR4_TSD) && c->cpl && !cpu_real(c)))
		return exc_gp(c, i, 0);
	u64 t = cpu_tsc(c);
	c->r[RAX] = (u32)t;
	c->r[RDX] = t >> 32;
	NEXT(c, i);
}

int op_rdtscp(struct cpu *c, const struct insn *i)
{
	if (!has(c, 0x80000001, CPUID_EDX, 27))
		return exc_ud(c, i);
	if (unlikely((c->cr4 & CR4_TSD) && c->cpl && !cpu_real(c)))
		return exc_gp(c, i, 0);
	u64 t = cpu_tsc(c);
	c->r[RAX] = (u32)t;
	c->r[RDX] = t >> 32;
	c->r[RCX] = (u32)c->tsc_aux;
	NEXT(c, i);
}

/* No performance counters are offered (CPUID leaf 0AH is empty): every index is invalid. */
int op_rdpmc(struct cpu *c, const struct insn *i)
{
	return exc_gp(c, i, 0);
}

int op_rdpid(struct cpu *c, const struct insn *i)
{
	if (!has(c, 7, CPUID_ECX, 22))
		return exc_ud(c, i);
	REG64(c, i->ra) = (u32)c->tsc_aux;
	NEXT(c, i);
}

/* ---- XCR0 ---- */

/* XCR0 components that only go together (SDM vol. 1, 13.3). */
#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)
#define XCR0_MPX (BIT(3) | BIT(4))
#define XCR0_AVX512 (BIT(5) | BIT(6) | BIT(7))
#define XCR0_AMX (BIT(17) | BIT(18))

static bool xcr0_legal(const struct cpu *c, u64 v)
{
	if (v & ~c->cpuid->xcr0)
		return false;
	if (!(v & XCR0_X87) || ((v & XCR0_AVX) && !(v & XCR0_SSE)))
		return false;
	if ((v & XCR0_AVX512) && (!(v & XCR0_AVX) || (v & XCR0_AVX512) != XCR0_AVX512))
		return false;
	if ((v & XCR0_MPX) && (v & XCR0_MPX) != XCR0_MPX)
		return false;
	return !(v & XCR0_AMX) || (v & XCR0_AMX) == XCR0_AMX;
}

int op_xsetbv(struct cpu *c, const struct insn *i)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	u64 v = (u32)c->r[RAX] | c->r[RDX] << 32;
	if ((u32)c->r[RCX] != 0 || !xcr0_legal(c, v))
		return exc_gp(c, i, 0);
	c->xcr0 = v;
	return step_mode(c, insn_next_rip(c, i));
}

/* XINUSE: components not in their initial state, of the live registers or of the saved image. */
static u64 xinuse(const struct cpu *c)
{
	u64 v;
	if (c->fpu_live) {
		u32 lo, hi;
		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
		v = lo | (u64)hi << 32;
	} else {
		const volatile u64 *xstate_bv = (const volatile u64 *)(const void *)(c->xsave + 512);
		v = *xstate_bv;
	}
	return v;
}

int op_xgetbv(struct cpu *c, const struct insn *i)
{
	u64 v;
	if (!(c->cr4 & CR4_OSXSAVE))
		return exc_ud(c, i);
	u32 index = (u32)c->r[RCX];
	if (index == 0) {
		v = c->xcr0;
	} else {
		if (index != 1 || !cpuid_has(c->cpuid, 0xd, 1, CPUID_EAX, 2))
			return exc_gp(c, i, 0);
		v = c->xcr0 & xinuse(c);
	}
	c->r[RAX] = (u32)v;
	c->r[RDX] = v >> 32;
	NEXT(c, i);
}

/* ---- FS and GS bases ---- */

static int fsgsbase(struct cpu *c, const struct insn *i)
{
	return unlikely(!cpu_code64(c) || !(c->cr4 & CR4_FSGSBASE)) ? exc_ud(c, i) : 0;
}
static int read_base(struct cpu *c, const struct insn *i, enum sreg r)
{
	int st = fsgsbase(c, i);
	if (st)
		return st;
	reg_write(c, i->ra, i->opsize, c->seg[r].base);
	NEXT(c, i);
}
static int write_base(struct cpu *c, const struct insn *i, enum sreg r)
{
	int st = fsgsbase(c, i);
	if (st)
		return st;
	u64 v = reg_read(c, i->ra, i->opsize);
	if (unlikely(!gva_canonical(v)))
		return exc_gp(c, i, 0);
	c->seg[r].base = v;
	NEXT(c, i);
}
int op_rdfsbase(struct cpu *c, const struct insn *i)
{
	return read_base(c, i, FS);
}
int op_rdgsbase(struct cpu *c, const struct insn *i)
{
	return read_base(c, i, GS);
}
int op_wrfsbase(struct cpu *c, const struct insn *i)
{
	return write_base(c, i, FS);
}
int op_wrgsbase(struct cpu *c, const struct insn *i)
{
	return write_base(c, i, GS);
}

/* ---- random numbers: the host's, or in deterministic mode splitmix64 over the seed ---- */

static u64 det_random(struct cpu *c)
{
	u64 z = c->det_rng += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static int random_done(struct cpu *c, const struct insn *i, u64 v, bool ok)
{
	reg_write(c, i->ra, i->opsize, ok ? v : 0);
	c->aflags = ok ? FL_CF : 0;
	NEXT(c, i);
}

int op_rdrand(struct cpu *c, const struct insn *i)
{
	u64 v;
	bool ok = true;
	if (!has(c, 1, CPUID_ECX, 30))
		return exc_ud(c, i);
	if (c->deterministic)
		v = det_random(c);
	else
		__asm__ volatile("rdrand %0" : "=r"(v), "=@ccc"(ok));
	return random_done(c, i, v, ok);
}

int op_rdseed(struct cpu *c, const struct insn *i)
{
	u64 v;
	bool ok = true;
	if (!has(c, 7, CPUID_EBX, 18))
		return exc_ud(c, i);
	if (c->deterministic)
		v = det_random(c);
	else
		__asm__ volatile("rdseed %0" : "=r"(v), "=@ccc"(ok));
	return random_done(c, i, v, ok);
}

/* ---- transactional memory: a transaction aborts where it begins, as the architecture always permits ---- */

static bool has_rtm(const struct cpu *c)
{
	return has(c, 7, CPUID_EBX, 11) || has(c, 7, CPUID_EDX, 11); /* RTM, RTM_ALWAYS_ABORT */
}

int op_xbegin(struct cpu *c, const struct insn *i)
{
	if (!has_rtm(c))
		return exc_ud(c, i);
	u64 target = c->r[R_RIP] + i->imm;
	if (!cpu_code64(c)) {
		target = (u32)target;
		if (i->opsize == 2)
			target = (u16)target;
		if (target > c->seg[CS].limit)
			return exc_gp(c, i, 0);
	} else if (!gva_canonical(target)) {
		return exc_gp(c, i, 0);
	}
	c->r[RAX] = 0; /* status 0: no reason given */
	c->rip = target;
	return STEP_NEXT;
}
int op_xend(struct cpu *c, const struct insn *i)
{
	return has_rtm(c) ? exc_gp(c, i, 0) : exc_ud(c, i);
}
int op_xabort(struct cpu *c, const struct insn *i)
{
	if (!has_rtm(c))
		return exc_ud(c, i);
	NEXT(c, i);
}
int op_xtest(struct cpu *c, const struct insn *i)
{
	if (!has_rtm(c))
		return exc_ud(c, i);
	c->aflags = FL_ZF;
	NEXT(c, i);
}

/* ---- MONITOR/MWAIT ----
 * Offered only when CPUID says so; MWAIT may wake at any time (SDM vol. 2), so it is a no-operation then: a store by
 * another CPU must end it, and nothing watches stores here.  Not offered: #UD, and guests idle with HLT. */

static int monitor_check(struct cpu *c, const struct insn *i, u32 ecx_legal)
{
	if (!has(c, 1, CPUID_ECX, 3) || c->cpl)
		return exc_ud(c, i);
	return (u32)c->r[RCX] & ~ecx_legal ? exc_gp(c, i, 0) : 0;
}

int op_monitor(struct cpu *c, const struct insn *i)
{
	int st = monitor_check(c, i, 0);
	if (st)
		return st;
	/* A byte load at DS:rAX; the operand is implied, so the address is formed here (no override: never offered). */
	u64 ea = i->addrsize == 8 ? c->r[RAX] : i->addrsize == 4 ? (u32)c->r[RAX] : (u16)c->r[RAX];
	if (!cpu_code64(c)) {
		if (!seg_range_ok(&c->seg[DS], ea, 1))
			return exc_gp(c, i, 0);
		ea = (u32)(ea + c->seg[DS].base);
	}
	u8 byte;
	if ((st = mem_read8(c, i, ea, &byte)))
		return st;
	NEXT(c, i);
}

int op_mwait(struct cpu *c, const struct insn *i)
{
	int st = monitor_check(c, i, 1);
	if (st)
		return st;
	NEXT(c, i);
}
