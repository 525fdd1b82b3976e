/* Near branches and the stack. */
#include "cpu/exec.h"

/* ---- targets ---- */

/* Intel checks the target at the branch, AMD faults at the fetch (SDM vol. 2 "JMP", "RET"). */
static inline bool target_faults(const struct cpu *c, u64 t) { return unlikely(!gva_canonical(t)) && c->vendor_intel; }

static u64 truncate_target(const struct insn *i, u64 t) { return i->opsize == 2 ? (u16)t : (u32)t; }

/* Outside 64-bit mode: operand size truncates, the limit is checked at the branch. */
static int legacy_target(struct cpu *c, const struct insn *i, u64 *t)
{
	*t = truncate_target(i, *t);
	if (*t > c->seg[CS].limit)
		return exc_gp(c, i, 0);
	return 0;
}

static inline int branch_target(struct cpu *c, const struct insn *i, u64 *t)
{
	if (likely(cpu_code64(c)))
		return target_faults(c, *t) ? exc_gp(c, i, 0) : 0;
	return legacy_target(c, i, t);
}

static inline u64 relative(const struct cpu *c, const struct insn *i) { return c->r[R_RIP] + i->imm; }

static int not_taken(struct cpu *c, const struct insn *i)
{
	c->rip = insn_next_rip(c, i);
	return STEP_FALL;
}

static inline int taken(struct cpu *c, const struct insn *i)
{
	u64 t = relative(c, i);
	int r = branch_target(c, i, &t);
	if (unlikely(r))
		return r;
	c->rip = t;
	return STEP_TAKEN;
}

#define JCC(cc) static H(jcc_##cc) { return cond_true(c->aflags, cc) ? taken(c, i) : not_taken(c, i); }
JCC(0) JCC(1) JCC(2) JCC(3) JCC(4) JCC(5) JCC(6) JCC(7) JCC(8) JCC(9) JCC(10) JCC(11) JCC(12) JCC(13) JCC(14) JCC(15)
const insn_fn exec_jcc[16] = { jcc_0, jcc_1, jcc_2,  jcc_3,  jcc_4,  jcc_5,  jcc_6,  jcc_7,
			       jcc_8, jcc_9, jcc_10, jcc_11, jcc_12, jcc_13, jcc_14, jcc_15 };

H(op_jmp) { return taken(c, i); }

H(op_loop)
{
	u64 count = reg_read(c, 8 * RCX, i->addrsize);
	bool go;
	if (i->aux == 3) {
		go = count == 0;
	} else {
		count--;
		bool zf = c->aflags & FL_ZF;
		u64 left = i->addrsize == 8 ? count : i->addrsize == 4 ? (u32)count : (u16)count;
		go = left && (i->aux == 0 || (i->aux == 1 ? zf : !zf));
	}
	int r = STEP_FALL;
	if (go)
		r = taken(c, i);
	else
		not_taken(c, i);
	if (r != STEP_FAULT && i->aux != 3)
		reg_write(c, 8 * RCX, i->addrsize, count);
	return r;
}

/* ---- stack ---- */

static u64 stack_mask(const struct cpu *c) { return cpu_code64(c) ? ~0ull : c->seg[SS].db ? 0xffffffff : 0xffff; }
static void set_sp(struct cpu *c, u64 mask, u64 sp) { c->r[RSP] = mask == 0xffff ? (c->r[RSP] & ~mask) | (sp & mask) : sp & mask; }

/* Writes v below the stack pointer, without moving it. */
static int stack_store(struct cpu *c, const struct insn *i, u64 sp, u64 v, unsigned size)
{
	u64 lin;
	int r = seg_linear(c, i, SS, sp, size, ACC_W, &lin);
	if (r)
		return r;
	if (cpu_long_mode(c) && (!gva_canonical(lin) || !gva_canonical(lin + size - 1)))
		return exc_raise_error(c, i, VEC_SS, 0);
	return size == 8 ? mem_write64(c, i, lin, v) : size == 4 ? mem_write32(c, i, lin, (u32)v) : mem_write16(c, i, lin, (u16)v);
}

static int stack_load(struct cpu *c, const struct insn *i, u64 sp, u64 *v, unsigned size)
{
	u64 lin;
	int r = seg_linear(c, i, SS, sp, size, ACC_R, &lin);
	if (r)
		return r;
	if (cpu_long_mode(c) && (!gva_canonical(lin) || !gva_canonical(lin + size - 1)))
		return exc_raise_error(c, i, VEC_SS, 0);
	*v = 0;
	return size == 8 ? mem_read64(c, i, lin, v) : size == 4 ? mem_read32(c, i, lin, (u32 *)v) : mem_read16(c, i, lin, (u16 *)v);
}

/* Would stack_store succeed? */
static int stack_probe(struct cpu *c, const struct insn *i, u64 sp, unsigned size)
{
	u64 lin;
	int r = seg_linear(c, i, SS, sp, size, ACC_W, &lin);
	if (r)
		return r;
	if (cpu_long_mode(c) && (!gva_canonical(lin) || !gva_canonical(lin + size - 1)))
		return exc_raise_error(c, i, VEC_SS, 0);
	return mem_probe(c, i, lin, size, ACC_W);
}

static int push_general(struct cpu *c, const struct insn *i, u64 v, unsigned size)
{
	u64 mask = stack_mask(c), sp = (c->r[RSP] - size) & mask;
	int r = stack_store(c, i, sp, v, size);
	if (!r)
		set_sp(c, mask, sp);
	return r;
}

static int pop_general(struct cpu *c, const struct insn *i, u64 *v, unsigned size)
{
	u64 mask = stack_mask(c), sp = c->r[RSP] & mask;
	int r = stack_load(c, i, sp, v, size);
	if (!r)
		set_sp(c, mask, sp + size);
	return r;
}

static inline int push(struct cpu *c, const struct insn *i, u64 v, unsigned size)
{
	if (likely(size == 8)) {
		u64 *p = tlb_write_ptr(c, c->r[RSP] - 8, 8);
		if (likely(p != NULL)) {
			*(volatile u64 *)p = v;
			c->r[RSP] -= 8;
			return 0;
		}
	}
	return push_general(c, i, v, size);
}

static inline int pop(struct cpu *c, const struct insn *i, u64 *v, unsigned size)
{
	if (likely(size == 8)) {
		const u64 *p = tlb_read_ptr(c, c->r[RSP], 8);
		if (likely(p != NULL)) {
			*v = *(const volatile u64 *)p;
			c->r[RSP] += 8;
			return 0;
		}
	}
	return pop_general(c, i, v, size);
}

H(op_push_r)
{
	int r = push(c, i, reg_read(c, i->ra, i->opsize), i->opsize);
	if (unlikely(r))
		return r;
	NEXT(c, i);
}
H(op_push_i)
{
	int r = push(c, i, i->imm, i->opsize);
	if (unlikely(r))
		return r;
	NEXT(c, i);
}
H(op_pop_r)
{
	u64 v;
	int r = pop(c, i, &v, i->opsize);
	if (unlikely(r))
		return r;
	reg_write(c, i->ra, i->opsize, v);
	NEXT(c, i);
}

static int load_operand(struct cpu *c, const struct insn *i, u64 *v)
{
	int fault = 0;
	u64 ea = insn_ea(c, i, i->opsize, ACC_R, &fault);
	if (fault)
		return fault;
	*v = 0;
	return i->opsize == 8 ? mem_read64(c, i, ea, v) :
	       i->opsize == 4 ? mem_read32(c, i, ea, (u32 *)v) :
				mem_read16(c, i, ea, (u16 *)v);
}

H(op_push_m)
{
	u64 v;
	int r = load_operand(c, i, &v);
	if (!r)
		r = push(c, i, v, i->opsize);
	if (unlikely(r))
		return r;
	NEXT(c, i);
}

H(op_pop_m) /* the address is computed with the stack pointer already moved (SDM "POP") */
{
	u64 mask = stack_mask(c), old = c->r[RSP], v;
	int r = stack_load(c, i, old & mask, &v, i->opsize);
	if (r)
		return r;
	set_sp(c, mask, (old & mask) + i->opsize);
	int fault = 0;
	u64 ea = insn_ea(c, i, i->opsize, ACC_W, &fault);
	r = fault      ? fault :
	    i->opsize == 8 ? mem_write64(c, i, ea, v) :
	    i->opsize == 4 ? mem_write32(c, i, ea, (u32)v) :
			     mem_write16(c, i, ea, (u16)v);
	if (r) {
		c->r[RSP] = old;
		return r;
	}
	NEXT(c, i);
}

H(op_pusha)
{
	u64 old = c->r[RSP];
	for (unsigned n = RAX; n <= RDI; n++) {
		int r = push_general(c, i, n == RSP ? old : c->r[n], i->opsize);
		if (r) {
			c->r[RSP] = old;
			return r;
		}
	}
	NEXT(c, i);
}
H(op_popa)
{
	u64 old = c->r[RSP], v[8];
	for (int n = RDI; n >= RAX; n--) {
		int r = pop_general(c, i, &v[n], i->opsize);
		if (r) {
			c->r[RSP] = old;
			return r;
		}
	}
	for (unsigned n = RAX; n <= RDI; n++)
		if (n != RSP)
			reg_write(c, (u8)(8 * n), i->opsize, v[n]);
	NEXT(c, i);
}

H(op_leave)
{
	u64 mask = stack_mask(c), sp = c->r[RBP] & mask, v;
	int r = stack_load(c, i, sp, &v, i->opsize);
	if (r)
		return r;
	set_sp(c, mask, sp + i->opsize);
	reg_write(c, 8 * RBP, i->opsize, v);
	NEXT(c, i);
}

H(op_enter) /* imm: bytes of locals | level << 16 */
{
	const unsigned size = i->opsize, level = (i->imm >> 16) & 31;
	const u64 locals = i->imm & 0xffff, mask = stack_mask(c);
	u64 sp = (c->r[RSP] - size) & mask, bp = c->r[RBP];
	int r = stack_store(c, i, sp, bp, size);
	if (r)
		return r;
	const u64 frame = sp;
	for (unsigned n = 1; n < level; n++) {
		u64 v;
		bp = c->r[RBP] - n * size;
		r = stack_load(c, i, bp & mask, &v, size);
		sp = (sp - size) & mask;
		if (r || (r = stack_store(c, i, sp, v, size)))
			return r;
	}
	if (level) {
		sp = (sp - size) & mask;
		if ((r = stack_store(c, i, sp, frame, size)))
			return r;
	}
	sp = (sp - locals) & mask;
	/* The new top must be writable: ENTER faults otherwise (SDM "ENTER"). */
	if ((r = stack_probe(c, i, sp, size)))
		return r;
	set_sp(c, mask, sp);
	reg_write(c, 8 * RBP, size, size == 2 ? frame & 0xffff : mask == 0xffff ? (c->r[RBP] & ~mask & 0xffffffff) | frame : frame);
	NEXT(c, i);
}

/* ---- calls ---- */

static inline int call_to(struct cpu *c, const struct insn *i, u64 t, int step)
{
	int r = branch_target(c, i, &t);
	if (unlikely(r)) {
		/* A stack that cannot be written is reported before a target that cannot be reached. */
		const struct exception e = c->exc;
		int s = stack_probe(c, i, (c->r[RSP] - i->opsize) & stack_mask(c), i->opsize);
		if (!s)
			c->exc = e;
		return s ? s : r;
	}
	r = push(c, i, insn_next_rip(c, i), i->opsize);
	if (unlikely(r))
		return r;
	c->rip = t;
	return step;
}

H(op_call) { return call_to(c, i, relative(c, i), STEP_TAKEN); }
H(op_call_r) { return call_to(c, i, reg_read(c, i->ra, i->opsize), STEP_NEXT); }
H(op_call_m)
{
	u64 t;
	int r = load_operand(c, i, &t);
	return unlikely(r) ? r : call_to(c, i, t, STEP_NEXT);
}

static inline int jump_to(struct cpu *c, const struct insn *i, u64 t)
{
	int r = branch_target(c, i, &t);
	if (unlikely(r))
		return r;
	c->rip = t;
	return STEP_NEXT;
}
H(op_jmp_r) { return jump_to(c, i, reg_read(c, i->ra, i->opsize)); }
H(op_jmp_m)
{
	u64 t;
	int r = load_operand(c, i, &t);
	return unlikely(r) ? r : jump_to(c, i, t);
}

H(op_ret) /* imm: bytes of parameters to drop */
{
	u64 t, old = c->r[RSP];
	int r = pop(c, i, &t, i->opsize);
	if (unlikely(r))
		return r;
	r = branch_target(c, i, &t);
	if (unlikely(r)) {
		c->r[RSP] = old;
		return r;
	}
	if (i->imm) {
		u64 mask = stack_mask(c);
		set_sp(c, mask, c->r[RSP] + i->imm);
	}
	c->rip = t;
	return STEP_NEXT;
}
