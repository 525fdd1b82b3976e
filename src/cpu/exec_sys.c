/* Fast system calls, flags, HLT, BOUND: instructions that change privilege or RFLAGS without a descriptor
 * (SDM vol. 2; where the vendors differ, AMD APM vol. 3). */
#include "cpu/seg.h"
#include "cpu/msr.h"
#include "cpu/trace.h"

static unsigned iopl(const struct cpu *c)
{
	return (unsigned)(c->sflags >> FL_IOPL_SHIFT) & 3;
}

static void count_call(struct cpu *c, const struct insn *i)
{
	c->stats.syscalls++;
	cpu_trace(c, TRACE_SYSCALL, c->r[RAX], insn_rip(c, i), c->r[RDI]);
}

/* ---- SYSCALL, SYSRET ---- */

int op_syscall(struct cpu *c, const struct insn *i)
{
	if (unlikely(!(c->efer & EFER_SCE)))
		return exc_ud(c, i);
	if (unlikely(!cpu_code64(c))) {
		if (c->vendor_intel || cpu_real(c) || cpu_vm86(c))
			return exc_ud(c, i);
		if (!cpu_long_mode(c)) {
			/* AMD, legacy mode: target in STAR, RFLAGS not saved. */
			count_call(c, i);
			c->r[RCX] = (u32)insn_next_rip(c, i);
			c->sflags &= ~(FL_IF | FL_VM | FL_RF);
			seg_set_flat_code(c, (u16)((c->star >> 32) & 0xfffc), 0, false);
			seg_set_flat_stack(c, (u16)(((c->star >> 32) & 0xfffc) + 8), 0);
			c->cpl = 0;
			return step_mode(c, (u32)c->star);
		}
	}
	u64 target = cpu_code64(c) ? c->lstar : c->cstar;
	u64 fl = cpu_rflags(c) & ~FL_RF;
	count_call(c, i);
	c->r[RCX] = insn_next_rip(c, i);
	c->r[R11] = fl;
	cpu_set_rflags(c, fl & ~c->sfmask);
	u16 sel = (u16)((c->star >> 32) & 0xfffc);
	seg_set_flat_code(c, sel, 0, true);
	seg_set_flat_stack(c, (u16)(sel + 8), 0);
	c->cpl = 0;
	return step_mode(c, target);
}

/* Flags SYSRET takes from R11: all but VM and RF (SDM: R11 & 3C7FD7H). */
#define FL_SYSRET 0x3c7fd7ull

int op_sysret(struct cpu *c, const struct insn *i)
{
	if (unlikely(!(c->efer & EFER_SCE)))
		return exc_ud(c, i);
	if (unlikely(c->vendor_intel ? !cpu_code64(c) : cpu_real(c) || cpu_vm86(c)))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	bool wide = i->opsize == 8;
	u64 target = wide ? c->r[RCX] : (u32)c->r[RCX];
	/* Intel checks RCX while still at CPL 0; on AMD the fetch at CPL 3 faults instead. */
	if (unlikely(wide && c->vendor_intel && !gva_canonical(target)))
		return exc_gp(c, i, 0);
	u16 base = (u16)(c->star >> 48);
	if (cpu_long_mode(c))
		cpu_set_rflags(c, c->r[R11] & FL_SYSRET);
	else
		c->sflags |= FL_IF;
	cpu_trace(c, TRACE_SYSRET, target, c->r[RAX], wide);
	seg_set_flat_code(c, (u16)((wide ? base + 16 : base) | 3), 3, wide);
	if (c->vendor_intel) {
		seg_set_flat_stack(c, (u16)((base + 8) | 3), 3);
	} else {
		/* AMD loads the selector alone: hidden base, limit and attributes stay (APM vol. 3, SYSRET). */
		c->seg[SS].sel = (u16)((base + 8) | 3);
		c->seg[SS].dpl = 3;
	}
	c->cpl = 3;
	return step_mode(c, target);
}

/* ---- SYSENTER, SYSEXIT ---- */

int op_sysenter(struct cpu *c, const struct insn *i)
{
	if (!c->vendor_intel && cpu_long_mode(c))
		return exc_ud(c, i);
	if (cpu_real(c) || !(c->sysenter_cs & 0xfffc))
		return exc_gp(c, i, 0);
	bool lm = cpu_long_mode(c);
	u16 sel = (u16)(c->sysenter_cs & 0xfffc);
	count_call(c, i);
	c->sflags &= ~(FL_VM | FL_IF | FL_RF);
	seg_set_flat_code(c, sel, 0, lm);
	seg_set_flat_stack(c, (u16)(sel + 8), 0);
	c->cpl = 0;
	c->r[RSP] = lm ? c->sysenter_esp : (u32)c->sysenter_esp;
	return step_mode(c, lm ? c->sysenter_eip : (u32)c->sysenter_eip);
}

int op_sysexit(struct cpu *c, const struct insn *i)
{
	if (!c->vendor_intel && cpu_long_mode(c))
		return exc_ud(c, i);
	if (cpu_real(c) || !(c->sysenter_cs & 0xfffc) || c->cpl != 0)
		return exc_gp(c, i, 0);
	bool wide = i->opsize == 8;
	u64 rip = wide ? c->r[RDX] : (u32)c->r[RDX], rsp = wide ? c->r[RCX] : (u32)c->r[RCX];
	if (wide && (!gva_canonical(rip) || !gva_canonical(rsp)))
		return exc_gp(c, i, 0);
	cpu_trace(c, TRACE_SYSRET, rip, c->r[RAX], wide);
	u16 sel = (u16)((c->sysenter_cs & 0xfffc) + (wide ? 32 : 16));
	seg_set_flat_code(c, sel | 3, 3, wide);
	seg_set_flat_stack(c, (u16)(sel + 8) | 3, 3);
	c->cpl = 3;
	c->r[RSP] = rsp;
	return step_mode(c, rip);
}

/* ---- interrupt flag ---- */

/* May CLI/STI act on IF (0), on VIF (1, CR4.PVI or VME), or must they fault (-1)? */
static int if_rights(const struct cpu *c)
{
	if (likely(cpu_real(c) || c->cpl <= iopl(c)))
		return 0; /* virtual-8086 mode runs at CPL 3: IOPL 3 is needed there too */
	if (cpu_vm86(c))
		return c->cr4 & CR4_VME ? 1 : -1;
	return c->cpl == 3 && (c->cr4 & CR4_PVI) ? 1 : -1;
}

int op_cli(struct cpu *c, const struct insn *i)
{
	int r = if_rights(c);
	if (unlikely(r < 0))
		return exc_gp(c, i, 0);
	c->sflags &= r ? ~FL_VIF : ~FL_IF;
	NEXT(c, i);
}

int op_sti(struct cpu *c, const struct insn *i)
{
	int r = if_rights(c);
	if (unlikely(r < 0 || (r && (c->sflags & FL_VIP))))
		return exc_gp(c, i, 0);
	if (r) {
		c->sflags |= FL_VIF;
		NEXT(c, i);
	}
	if (c->sflags & FL_IF)
		NEXT(c, i);
	c->sflags |= FL_IF;
	c->irq_shadow = true;
	c->rip = insn_next_rip(c, i);
	return STEP_MODE;
}

int op_pushf(struct cpu *c, const struct insn *i)
{
	u64 fl = cpu_rflags(c) & ~(FL_VM | FL_RF);
	if (unlikely(cpu_vm86(c) && iopl(c) < 3)) {
		if (!(c->cr4 & CR4_VME) || i->opsize != 2)
			return exc_gp(c, i, 0);
		fl = (fl & ~FL_IF) | (fl & FL_VIF ? FL_IF : 0) | FL_IOPL;
	}
	u64 mask = stack_mask(c), sp = (c->r[RSP] - i->opsize) & mask, lin;
	int st = stack_addr(c, i, sp, i->opsize, &lin);
	if (st)
		return st;
	if (likely(i->opsize == 8))
		st = mem_write64(c, i, lin, fl);
	else if (i->opsize == 4)
		st = mem_write32(c, i, lin, (u32)fl);
	else
		st = mem_write16(c, i, lin, (u16)fl);
	if (st)
		return st;
	stack_set_rsp(c, mask, sp);
	NEXT(c, i);
}

int op_popf(struct cpu *c, const struct insn *i)
{
	u64 lin, fl;
	u32 v32;
	u16 v16;
	int st = stack_addr(c, i, c->r[RSP], i->opsize, &lin);
	if (st)
		return st;
	if (likely(i->opsize == 8)) {
		st = mem_read64(c, i, lin, &fl);
	} else if (i->opsize == 4) {
		st = mem_read32(c, i, lin, &v32);
		fl = v32;
	} else {
		st = mem_read16(c, i, lin, &v16);
		fl = v16;
	}
	if (st)
		return st;

	/* SDM vol. 2, POPF, "Effect of POPF/POPFD/POPFQ on the EFLAGS Register". */
	u64 mask = FL_ARITH | FL_TF | FL_DF | FL_NT, old = cpu_rflags(c);
	bool vm = cpu_vm86(c), clear_rf = i->opsize > 2;
	if (i->opsize > 2)
		mask |= FL_AC | FL_ID;
	if (likely(!vm)) {
		if (cpu_real(c) || c->cpl == 0)
			mask |= FL_IOPL;
		if (cpu_real(c) || c->cpl <= iopl(c)) {
			mask |= FL_IF;
			if (i->opsize > 2 && !cpu_real(c)) {
				mask |= FL_VIF | FL_VIP;
				fl &= ~(FL_VIF | FL_VIP);
			}
		} else if (c->cpl == 3 && (c->cr4 & CR4_PVI) && i->opsize == 2) {
			if ((fl & FL_TF) || ((fl & FL_IF) && (old & FL_VIP)))
				return exc_gp(c, i, 0);
			fl |= fl & FL_IF ? FL_VIF : 0;
			mask |= FL_VIF;
		}
	} else if (iopl(c) == 3) {
		mask |= FL_IF;
	} else {
		if (!(c->cr4 & CR4_VME) || i->opsize != 2)
			return exc_gp(c, i, 0);
		if ((fl & FL_TF) || ((fl & FL_IF) && (old & FL_VIP)))
			return exc_gp(c, i, 0);
		fl = (fl & ~FL_VIF) | (fl & FL_IF ? FL_VIF : 0);
		mask |= FL_VIF;
	}
	u64 now = (old & ~mask) | (fl & mask);
	if (clear_rf)
		now &= ~FL_RF;
	stack_set_rsp(c, stack_mask(c), c->r[RSP] + i->opsize);
	cpu_set_rflags(c, now);
	u64 changed = old ^ now;
	if (unlikely(changed & (FL_TF | FL_AC | FL_RF)))
		return step_mode(c, insn_next_rip(c, i));
	if (changed & now & FL_IF) {
		c->rip = insn_next_rip(c, i);
		return STEP_MODE;
	}
	NEXT(c, i);
}

/* SMAP's flag.  Blocks are keyed by it: leave. */
static int set_ac(struct cpu *c, const struct insn *i, bool on)
{
	REQUIRE_CPL0(c, i);
	u64 now = on ? c->sflags | FL_AC : c->sflags & ~FL_AC;
	if (now != c->sflags) {
		c->sflags = now;
		cpu_update_mode(c);
	}
	c->rip = insn_next_rip(c, i);
	return STEP_NEXT;
}
int op_stac(struct cpu *c, const struct insn *i)
{
	return c->cpl != 0 ? exc_ud(c, i) : set_ac(c, i, true);
}
int op_clac(struct cpu *c, const struct insn *i)
{
	return c->cpl != 0 ? exc_ud(c, i) : set_ac(c, i, false);
}

/* ---- others ---- */

int op_hlt(struct cpu *c, const struct insn *i)
{
	REQUIRE_CPL0(c, i);
	c->stats.halts++;
	c->irq_shadow = false; /* STI; HLT: the shadow covered this instruction */
	c->rip = insn_next_rip(c, i);
	c->exit = CPU_EXIT_HLT;
	return STEP_EXIT;
}

int op_bound(struct cpu *c, const struct insn *i)
{
	unsigned n = i->opsize;
	u8 b[8] = { 0 };
	int fault = 0;
	u64 ea = insn_ea(c, i, 2 * n, ACC_R, &fault);
	if (fault || (fault = mem_read_slow(c, i, ea, b, 2 * n)))
		return fault;
	s32 index, lower, upper;
	if (n == 2) {
		index = (s16)REG16(c, i->ra);
		lower = (s16)(b[0] | b[1] << 8);
		upper = (s16)(b[2] | b[3] << 8);
	} else {
		index = (s32)REG32(c, i->ra);
		lower = (s32)(b[0] | b[1] << 8 | b[2] << 16 | (u32)b[3] << 24);
		upper = (s32)(b[4] | b[5] << 8 | b[6] << 16 | (u32)b[7] << 24);
	}
	if (index < lower || index > upper)
		return exc_raise(c, i, VEC_BR);
	NEXT(c, i);
}

int op_swapgs(struct cpu *c, const struct insn *i)
{
	if (unlikely(!cpu_code64(c)))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	u64 base = c->seg[GS].base;
	c->seg[GS].base = c->kernel_gs_base;
	c->kernel_gs_base = base;
	NEXT(c, i);
}

int op_ud(struct cpu *c, const struct insn *i)
{
	return exc_ud(c, i);
}
