/* Far transfers of control: CALL, JMP, RET, IRET between segments and privilege levels
 * (SDM vol. 2 under each instruction; vol. 3 chapters 5.8, 6.14, 20.3).  Hardware task switches name themselves
 * and end the VM. */
#include "cpu/seg.h"

/* Flags an IRET or a task may load at this CPL; IF, IOPL and VM are added by privilege. */
#define FL_IRET (FL_ARITH | FL_TF | FL_DF | FL_NT)

/* Is *off a valid instruction pointer for cs?  0 or #GP(0).  Of a 64-bit offset compatibility mode takes the lower half. */
static int check_target(struct cpu *c, const struct insn *i, const struct seg *cs, u64 *off)
{
	if (cpu_long_mode(c) && cs->l)
		return gva_canonical(*off) ? 0 : exc_gp(c, i, 0);
	if (cpu_long_mode(c))
		*off = (u32)*off;
	return *off <= cs->limit ? 0 : exc_gp(c, i, 0);
}

/* Real-address and virtual-8086 mode. */
static int far_real(struct cpu *c, const struct insn *i, u16 sel, u64 off, bool call)
{
	struct stk stk;
	int st;
	if (off > c->seg[CS].limit)
		return exc_gp(c, i, 0);
	if (call) {
		stk_current(c, &stk);
		if ((st = stk_push(c, i, &stk, i->opsize, c->seg[CS].sel)) ||
		    (st = stk_push(c, i, &stk, i->opsize, insn_next_rip(c, i))))
			return st;
		stk_commit(c, &stk);
	}
	if (cpu_vm86(c))
		seg_set_vm86(c, CS, sel);
	else
		seg_set_real(c, CS, sel);
	return step_mode(c, off);
}

static int call_gate(struct cpu *c, const struct insn *i, u16 gate_sel, u64 gate, bool call)
{
	bool lm = cpu_long_mode(c);
	u8 type = (gate >> 40) & 15, gate_dpl = (gate >> 45) & 3;
	unsigned size = lm ? 8 : type == SYS_CALL ? 4 : 2;
	u64 high = 0, d, gva;
	struct seg cs;
	struct stk stk;
	int st;

	if (gate_dpl < c->cpl || gate_dpl < SEL_RPL(gate_sel))
		return exc_gp(c, i, SEL_ERR(gate_sel));
	if (!((gate >> 47) & 1))
		return exc_raise_error(c, i, VEC_NP, SEL_ERR(gate_sel));
	if (lm) {
		st = desc_read_high(c, gate_sel, &high);
		if (st)
			return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(gate_sel)) : st;
		if ((high >> 40) & 31)
			return exc_gp(c, i, SEL_ERR(gate_sel));
	}
	u16 sel = (u16)(gate >> 16);
	u64 target = (gate & 0xffff) | (size > 2 ? (gate >> 32) & 0xffff0000 : 0) | high << 32;
	unsigned params = lm ? 0 : (unsigned)(gate >> 32) & 31;

	if (SEL_NULL(sel))
		return exc_gp(c, i, 0);
	st = desc_read(c, sel, &d, &gva);
	if (st)
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(&cs, d, sel);
	if (!seg_is_code(&cs) || cs.dpl > c->cpl)
		return exc_gp(c, i, SEL_ERR(sel));
	if (lm && (!cs.l || cs.db))
		return exc_gp(c, i, SEL_ERR(sel));
	if (!call && !seg_is_conforming(&cs) && cs.dpl != c->cpl)
		return exc_gp(c, i, SEL_ERR(sel));
	if (!cs.present)
		return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
	u8 cpl = call && !seg_is_conforming(&cs) ? cs.dpl : c->cpl;
	if ((st = check_target(c, i, &cs, &target)))
		return st;
	cs.sel = (u16)((sel & ~3u) | cpl);
	cs.type |= SEG_ACCESSED;
	u16 old_ss = c->seg[SS].sel;

	if (cpl < c->cpl) {
		struct stk old;
		stk_current(c, &old);
		if (lm) {
			u64 rsp;
			if ((st = tss_rsp64(c, i, cpl, 0, &rsp)))
				return st;
			stk = (struct stk){ .sp = rsp, .mask = ~0ull, .sys = true, .flat = true };
			/* Null SS with the new RPL; as seg_set_null() makes it. */
			stk.ss = (struct seg){ .sel = cpl, .unusable = true, .dpl = cpl, .db = true, .type = 3, .s = true };
		} else if ((st = tss_stack(c, i, cpl, 0, &stk))) {
			return st;
		}
		if ((st = desc_set_accessed(c, d, gva)) || (st = stk_push(c, i, &stk, size, old_ss)) ||
		    (st = stk_push(c, i, &stk, size, c->r[RSP])))
			return st;
		/* Parameters, highest address first. */
		for (unsigned k = params; k-- > 0;) {
			struct stk from = old;
			u64 v;
			from.sp = (old.sp + k * size) & old.mask;
			if ((st = stk_pop(c, i, &from, size, &v)) || (st = stk_push(c, i, &stk, size, v)))
				return st;
		}
	} else {
		stk_current(c, &stk);
		if ((st = desc_set_accessed(c, d, gva)))
			return st;
	}
	if (call) {
		if ((st = stk_push(c, i, &stk, size, c->seg[CS].sel)) ||
		    (st = stk_push(c, i, &stk, size, insn_next_rip(c, i))))
			return st;
		c->cpl = cpl;
		stk_commit(c, &stk);
	}
	c->seg[CS] = cs;
	return step_mode(c, target);
}

static int far_transfer(struct cpu *c, const struct insn *i, u16 sel, u64 off, unsigned size, bool call)
{
	u64 d, gva;
	struct seg cs;
	struct stk stk;
	int st;

	c->rip = insn_rip(c, i);
	if (cpu_real(c) || cpu_vm86(c))
		return far_real(c, i, sel, off, call);
	if (SEL_NULL(sel))
		return exc_gp(c, i, 0);
	st = desc_read(c, sel, &d, &gva);
	if (st)
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(&cs, d, sel);
	if (!cs.s) {
		if (cs.type == SYS_CALL || (cs.type == SYS_CALL16 && !cpu_long_mode(c)))
			return call_gate(c, i, sel, d, call);
		if (!cpu_long_mode(c) && (cs.type == SYS_TASK_GATE || cs.type == SYS_TSS || cs.type == SYS_TSS16)) {
			if (cs.dpl < c->cpl || cs.dpl < SEL_RPL(sel))
				return exc_gp(c, i, SEL_ERR(sel));
			if (!cs.present)
				return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
			return cpu_unimplemented(c, i, "hardware task switch by a far transfer");
		}
		return exc_gp(c, i, SEL_ERR(sel));
	}
	if (!seg_is_code(&cs) || (cpu_long_mode(c) && cs.l && cs.db))
		return exc_gp(c, i, SEL_ERR(sel));
	if (seg_is_conforming(&cs) ? cs.dpl > c->cpl : SEL_RPL(sel) > c->cpl || cs.dpl != c->cpl)
		return exc_gp(c, i, SEL_ERR(sel));
	if (!cs.present)
		return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
	stk_current(c, &stk);
	if ((st = check_target(c, i, &cs, &off)) || (st = desc_set_accessed(c, d, gva)))
		return st;
	if (call) {
		if ((st = stk_push(c, i, &stk, size, c->seg[CS].sel)) ||
		    (st = stk_push(c, i, &stk, size, insn_next_rip(c, i))))
			return st;
		stack_set_rsp(c, stk.mask, stk.sp);
	}
	cs.sel = (u16)((sel & ~3u) | c->cpl);
	cs.type |= SEG_ACCESSED;
	c->seg[CS] = cs;
	return step_mode(c, off);
}

/* m16:16, m16:32, m16:64 (the last on Intel only: APM vol. 3, CALL (Far)). */
static int far_mem(struct cpu *c, const struct insn *i, bool call)
{
	unsigned n = i->opsize == 8 && !c->vendor_intel ? 4 : i->opsize;
	u8 b[10];
	int fault = 0;
	u64 ea = insn_ea(c, i, n + 2, ACC_R, &fault), off = 0;
	/* Two accesses, as alignment checks show. */
	if (fault || (fault = mem_read_slow(c, i, ea, b, n)) || (fault = mem_read_slow(c, i, ea + n, b + n, 2)))
		return fault;
	for (unsigned k = 0; k < n; k++)
		off |= (u64)b[k] << (8 * k);
	return far_transfer(c, i, (u16)(b[n] | b[n + 1] << 8), off, n, call);
}

int op_call_far_mem(struct cpu *c, const struct insn *i)
{
	return far_mem(c, i, true);
}
int op_jmp_far_mem(struct cpu *c, const struct insn *i)
{
	return far_mem(c, i, false);
}
int op_call_far_imm(struct cpu *c, const struct insn *i)
{
	return far_transfer(c, i, (u16)(i->imm >> 32), (u32)i->imm & MASK(i->opsize * 8u), i->opsize, true);
}
int op_jmp_far_imm(struct cpu *c, const struct insn *i)
{
	return far_transfer(c, i, (u16)(i->imm >> 32), (u32)i->imm & MASK(i->opsize * 8u), i->opsize, false);
}

/* ---- returns ---- */

/* The code segment a RETF or IRET returns to: checks (SDM vol. 2, IRET, "return to ..."). */
static int return_cs(struct cpu *c, const struct insn *i, u16 sel, struct seg *cs, u64 *d, u64 *gva)
{
	if (SEL_NULL(sel))
		return exc_gp(c, i, 0);
	int st = desc_read(c, sel, d, gva);
	if (unlikely(st))
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(cs, *d, sel);
	u8 rpl = SEL_RPL(sel);
	if (!seg_is_code(cs) || rpl < c->cpl || (seg_is_conforming(cs) ? cs->dpl > rpl : cs->dpl != rpl) ||
	    (cpu_long_mode(c) && cs->l && cs->db))
		return exc_gp(c, i, SEL_ERR(sel));
	if (!cs->present)
		return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
	cs->type |= SEG_ACCESSED;
	return 0;
}

/* The stack segment a return to level rpl loads; to64: the target runs in 64-bit mode. */
static int return_ss(struct cpu *c, const struct insn *i, u16 sel, u8 rpl, bool to64, struct seg *ss)
{
	u64 d, gva;
	if (SEL_NULL(sel)) {
		if (!to64 || rpl == 3 || SEL_RPL(sel) != rpl)
			return exc_gp(c, i, 0);
		*ss = (struct seg){ .sel = sel, .unusable = true, .dpl = rpl, .db = true, .type = 3, .s = true };
		return 0;
	}
	int st = desc_read(c, sel, &d, &gva);
	if (unlikely(st))
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(ss, d, sel);
	if (SEL_RPL(sel) != rpl || !seg_is_writable(ss) || ss->dpl != rpl)
		return exc_gp(c, i, SEL_ERR(sel));
	if (!ss->present)
		return exc_raise_error(c, i, VEC_SS, SEL_ERR(sel));
	ss->type |= SEG_ACCESSED;
	return desc_set_accessed(c, d, gva);
}

/* Width of the stack pointer once code runs with these segments. */
static u64 return_mask(const struct cpu *c, const struct seg *cs, const struct seg *ss)
{
	return cpu_long_mode(c) && cs->l ? ~0ull : ss->db ? 0xffffffffull : 0xffffull;
}

int op_ret_far(struct cpu *c, const struct insn *i)
{
	unsigned size = i->opsize;
	u64 off, v, d, gva, sp;
	struct seg cs, ss;
	struct stk stk;
	int st;

	c->rip = insn_rip(c, i);
	stk_current(c, &stk);
	if ((st = stk_pop(c, i, &stk, size, &off)) || (st = stk_pop(c, i, &stk, size, &v)))
		return st;
	u16 sel = (u16)v;
	stk.sp = (stk.sp + (u16)i->imm) & stk.mask;
	if (cpu_real(c) || cpu_vm86(c)) {
		if (off > c->seg[CS].limit)
			return exc_gp(c, i, 0);
		if (cpu_vm86(c))
			seg_set_vm86(c, CS, sel);
		else
			seg_set_real(c, CS, sel);
		stack_set_rsp(c, stk.mask, stk.sp);
		return step_mode(c, off);
	}
	if ((st = return_cs(c, i, sel, &cs, &d, &gva)))
		return st;
	u8 rpl = SEL_RPL(sel);
	if (rpl == c->cpl) {
		if ((st = check_target(c, i, &cs, &off)) || (st = desc_set_accessed(c, d, gva)))
			return st;
		stack_set_rsp(c, stk.mask, stk.sp);
		c->seg[CS] = cs;
		return step_mode(c, off);
	}
	if ((st = stk_pop(c, i, &stk, size, &sp)) || (st = stk_pop(c, i, &stk, size, &v)))
		return st;
	if ((st = return_ss(c, i, (u16)v, rpl, cpu_long_mode(c) && cs.l, &ss)) || (st = check_target(c, i, &cs, &off)) ||
	    (st = desc_set_accessed(c, d, gva)))
		return st;
	u64 mask = return_mask(c, &cs, &ss);
	c->seg[CS] = cs;
	c->seg[SS] = ss;
	c->cpl = rpl;
	stack_set_rsp(c, mask, sp + (u16)i->imm);
	seg_drop_inner(c, rpl);
	return step_mode(c, off);
}

/* Replaces the flags in mask, of an image popped with operand size size (SDM vol. 2, IRET). */
static void iret_flags(struct cpu *c, u64 image, unsigned size, u8 old_cpl)
{
	u64 mask = FL_IRET;
	if (size > 2)
		mask |= FL_RF | FL_AC | FL_ID;
	if (old_cpl <= ((c->sflags & FL_IOPL) >> FL_IOPL_SHIFT))
		mask |= FL_IF;
	if (old_cpl == 0) {
		mask |= FL_IOPL;
		if (size > 2)
			mask |= FL_VIF | FL_VIP;
	}
	/* RF matters to the next instruction's breakpoints only; without any, setting it would cost a slow step. */
	if (!(c->dr7 & 0xff))
		image &= ~FL_RF;
	cpu_set_rflags(c, (cpu_rflags(c) & ~mask) | (image & mask));
}

static int iret_real(struct cpu *c, const struct insn *i)
{
	struct stk stk;
	u64 ip, cs, fl;
	int st;
	stk_current(c, &stk);
	if ((st = stk_pop(c, i, &stk, i->opsize, &ip)) || (st = stk_pop(c, i, &stk, i->opsize, &cs)) ||
	    (st = stk_pop(c, i, &stk, i->opsize, &fl)))
		return st;
	if (ip > c->seg[CS].limit)
		return exc_gp(c, i, 0);
	c->nmi_blocked = false;
	seg_set_real(c, CS, (u16)cs);
	stack_set_rsp(c, stk.mask, stk.sp);
	u64 mask = FL_IRET | FL_IF | FL_IOPL | (i->opsize > 2 ? FL_RF | FL_AC | FL_ID : 0);
	cpu_set_rflags(c, (cpu_rflags(c) & ~mask) | (fl & mask));
	return step_mode(c, ip);
}

static int iret_vm86(struct cpu *c, const struct insn *i)
{
	struct stk stk;
	u64 ip, cs, fl;
	int st;
	unsigned iopl = (unsigned)(c->sflags >> FL_IOPL_SHIFT) & 3;
	bool vme = iopl < 3 && (c->cr4 & CR4_VME) && i->opsize == 2;
	if (iopl < 3 && !vme)
		return exc_gp(c, i, 0);
	stk_current(c, &stk);
	if ((st = stk_pop(c, i, &stk, i->opsize, &ip)) || (st = stk_pop(c, i, &stk, i->opsize, &cs)) ||
	    (st = stk_pop(c, i, &stk, i->opsize, &fl)))
		return st;
	if (ip > 0xffff)
		return exc_gp(c, i, 0);
	u64 mask = FL_IRET | (i->opsize > 2 ? FL_RF | FL_AC | FL_ID : 0);
	if (vme) {
		if ((fl & FL_TF) || ((fl & FL_IF) && (c->sflags & FL_VIP)))
			return exc_gp(c, i, 0);
		fl = (fl & ~FL_VIF) | (fl & FL_IF ? FL_VIF : 0);
		mask |= FL_VIF;
	} else {
		mask |= FL_IF;
	}
	c->nmi_blocked = false;
	seg_set_vm86(c, CS, (u16)cs);
	stack_set_rsp(c, stk.mask, stk.sp);
	cpu_set_rflags(c, (cpu_rflags(c) & ~mask) | (fl & mask));
	return step_mode(c, ip);
}

/* From CPL 0 of legacy protected mode back into virtual-8086 mode; stk stands behind EFLAGS. */
static int iret_to_vm86(struct cpu *c, const struct insn *i, struct stk *stk, u64 ip, u16 cs, u64 fl)
{
	u64 v[6]; /* ESP SS ES DS FS GS */
	int st;
	for (unsigned k = 0; k < 6; k++)
		if ((st = stk_pop(c, i, stk, 4, &v[k])))
			return st;
	if (ip > 0xffff)
		return exc_gp(c, i, 0);
	c->nmi_blocked = false;
	cpu_set_rflags(c, fl);
	seg_set_vm86(c, CS, cs);
	seg_set_vm86(c, SS, (u16)v[1]);
	seg_set_vm86(c, ES, (u16)v[2]);
	seg_set_vm86(c, DS, (u16)v[3]);
	seg_set_vm86(c, FS, (u16)v[4]);
	seg_set_vm86(c, GS, (u16)v[5]);
	c->r[RSP] = (u32)v[0];
	c->cpl = 3;
	return step_mode(c, ip);
}

int op_iret(struct cpu *c, const struct insn *i)
{
	unsigned size = i->opsize;
	u64 f[5], d, gva; /* IP CS FLAGS SP SS */
	struct seg cs, ss;
	struct stk stk;
	int st;

	c->rip = insn_rip(c, i);
	if (unlikely(cpu_real(c)))
		return iret_real(c, i);
	if (unlikely(cpu_vm86(c)))
		return iret_vm86(c, i);
	if (unlikely(c->sflags & FL_NT))
		return cpu_long_mode(c) ? exc_gp(c, i, 0) : cpu_unimplemented(c, i, "IRET from a nested task");

	bool from64 = cpu_code64(c);
	stk_current(c, &stk);
	const u64 *hot;
	if (likely(from64 && size == 8) && (hot = tlb_read_ptr(c, stk.sp, 40))) {
		for (unsigned k = 0; k < 5; k++)
			f[k] = hot[k];
		stk.sp += 40;
	} else {
		for (unsigned k = 0; k < (from64 ? 5 : 3); k++)
			if ((st = stk_pop(c, i, &stk, size, &f[k])))
				return st;
	}
	if (unlikely((f[2] & FL_VM) && c->cpl == 0 && size == 4 && !cpu_long_mode(c)))
		return iret_to_vm86(c, i, &stk, f[0], (u16)f[1], f[2]);
	u16 sel = (u16)f[1];
	if ((st = return_cs(c, i, sel, &cs, &d, &gva)))
		return st;
	u8 rpl = SEL_RPL(sel), old_cpl = c->cpl;
	bool outer = rpl > old_cpl, to64 = cpu_long_mode(c) && cs.l, new_stack = outer || from64;
	if (outer && !from64)
		for (unsigned k = 3; k < 5; k++)
			if ((st = stk_pop(c, i, &stk, size, &f[k])))
				return st;
	if (new_stack && (st = return_ss(c, i, (u16)f[4], rpl, to64, &ss)))
		return st;
	if ((st = check_target(c, i, &cs, &f[0])) || (st = desc_set_accessed(c, d, gva)))
		return st;

	c->nmi_blocked = false;
	if (new_stack) {
		c->seg[SS] = ss;
		stack_set_rsp(c, return_mask(c, &cs, &ss), f[3]);
	} else {
		stack_set_rsp(c, stk.mask, stk.sp);
	}
	c->seg[CS] = cs;
	c->cpl = rpl;
	iret_flags(c, f[2], size, old_cpl);
	if (outer)
		seg_drop_inner(c, rpl);
	return step_mode(c, f[0]);
}
