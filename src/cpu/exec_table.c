/* Descriptor-table registers: LGDT, LIDT, LLDT, LTR and their stores (SDM vol. 3 chapter 2.4). */
#include "cpu/seg.h"

static int umip(struct cpu *c, const struct insn *i)
{
	return unlikely(c->cpl && (c->cr4 & CR4_UMIP)) ? exc_gp(c, i, 0) : 0;
}

static int load_table(struct cpu *c, const struct insn *i, struct dtr *t)
{
	REQUIRE_CPL0(c, i);
	unsigned n = cpu_code64(c) ? 8 : 4;
	u8 b[10];
	int fault = 0;
	u64 ea = insn_ea(c, i, n + 2, ACC_R, &fault);
	if (fault || (fault = mem_read_slow(c, i, ea, b, n + 2)))
		return fault;
	u64 base = 0;
	for (unsigned k = 0; k < n; k++)
		base |= (u64)b[2 + k] << (8 * k);
	if (n == 4 && i->opsize == 2)
		base &= 0xffffff;
	if (!gva_canonical(base))
		return exc_gp(c, i, 0);
	t->limit = (u16)(b[0] | b[1] << 8);
	t->base = base;
	NEXT(c, i);
}

static int store_table(struct cpu *c, const struct insn *i, const struct dtr *t)
{
	int fault = umip(c, i);
	if (fault)
		return fault;
	unsigned n = cpu_code64(c) ? 8 : 4;
	u8 b[10] = { (u8)t->limit, (u8)(t->limit >> 8) };
	for (unsigned k = 0; k < n; k++)
		b[2 + k] = (u8)(t->base >> (8 * k));
	u64 ea = insn_ea(c, i, n + 2, ACC_W, &fault);
	if (fault || (fault = mem_write_slow(c, i, ea, b, n + 2)))
		return fault;
	NEXT(c, i);
}

int op_lgdt(struct cpu *c, const struct insn *i)
{
	return load_table(c, i, &c->gdtr);
}
int op_lidt(struct cpu *c, const struct insn *i)
{
	return load_table(c, i, &c->idtr);
}
int op_sgdt(struct cpu *c, const struct insn *i)
{
	return store_table(c, i, &c->gdtr);
}
int op_sidt(struct cpu *c, const struct insn *i)
{
	return store_table(c, i, &c->idtr);
}

static int selector_operand(struct cpu *c, const struct insn *i, u16 *v)
{
	if (!(i->flags & IF_MEM)) {
		*v = REG16(c, i->ra);
		return 0;
	}
	int fault = 0;
	u64 ea = insn_ea(c, i, 2, ACC_R, &fault);
	return fault ? fault : mem_read16(c, i, ea, v);
}

static int store_selector(struct cpu *c, const struct insn *i, u16 sel)
{
	int fault = 0;
	if (cpu_real(c) || cpu_vm86(c))
		return exc_ud(c, i);
	if ((fault = umip(c, i)))
		return fault;
	if (i->flags & IF_MEM) {
		u64 ea = insn_ea(c, i, 2, ACC_W, &fault);
		if (fault || (fault = mem_write16(c, i, ea, sel)))
			return fault;
	} else {
		reg_write(c, i->ra, i->opsize, sel);
	}
	NEXT(c, i);
}

int op_sldt(struct cpu *c, const struct insn *i)
{
	return store_selector(c, i, c->ldtr.sel);
}
int op_str(struct cpu *c, const struct insn *i)
{
	return store_selector(c, i, c->tr.sel);
}

/* Reads and checks the system descriptor for LLDT or LTR. */
static int system_segment(struct cpu *c, const struct insn *i, u16 sel, bool tss, struct seg *s, u64 *gva)
{
	u64 d, high = 0;
	if (sel & SEL_TI)
		return exc_gp(c, i, SEL_ERR(sel));
	int st = desc_read(c, sel, &d, gva);
	if (st)
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(s, d, sel);
	bool right = tss ? s->type == SYS_TSS || (s->type == SYS_TSS16 && !cpu_long_mode(c)) : s->type == SYS_LDT;
	if (s->s || !right)
		return exc_gp(c, i, SEL_ERR(sel));
	if (!s->present)
		return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
	if (cpu_long_mode(c)) {
		st = desc_read_high(c, sel, &high);
		if (st)
			return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
		s->base |= high << 32;
		if (((high >> 40) & 31) || !gva_canonical(s->base))
			return exc_gp(c, i, SEL_ERR(sel));
	}
	return 0;
}

int op_lldt(struct cpu *c, const struct insn *i)
{
	u16 sel;
	u64 gva;
	struct seg s;
	if (cpu_real(c) || cpu_vm86(c))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	int st = selector_operand(c, i, &sel);
	if (st)
		return st;
	c->rip = insn_rip(c, i);
	if (SEL_NULL(sel)) {
		c->ldtr = (struct seg){ .sel = sel, .type = SYS_LDT, .unusable = true };
		NEXT(c, i);
	}
	if ((st = system_segment(c, i, sel, false, &s, &gva)))
		return st;
	c->ldtr = s;
	NEXT(c, i);
}

int op_ltr(struct cpu *c, const struct insn *i)
{
	u16 sel;
	u64 gva;
	struct seg s;
	if (cpu_real(c) || cpu_vm86(c))
		return exc_ud(c, i);
	REQUIRE_CPL0(c, i);
	int st = selector_operand(c, i, &sel);
	if (st)
		return st;
	c->rip = insn_rip(c, i);
	if (SEL_NULL(sel))
		return exc_gp(c, i, 0);
	if ((st = system_segment(c, i, sel, true, &s, &gva)))
		return st;
	s.type |= 2; /* busy */
	u8 access = (u8)(s.type | s.dpl << 5 | 0x80);
	if ((st = sys_write(c, gva + 5, &access, 1)))
		return st;
	c->tr = s;
	NEXT(c, i);
}
