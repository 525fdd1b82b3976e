/* Descriptors and segment registers: reading, checking, loading, and the instructions that only do that
 * (SDM vol. 3 chapters 3 and 5, AMD APM vol. 2 chapter 4).  Far transfers are in far.c. */
#include "cpu/block.h"
#include "cpu/seg.h"

/* ---- descriptors ---- */

static int table_of(struct cpu *c, u16 sel, u64 *base, u32 *limit)
{
	if (sel & SEL_TI) {
		if (c->ldtr.unusable)
			return DESC_OUTSIDE;
		*base = c->ldtr.base;
		*limit = c->ldtr.limit;
	} else {
		*base = c->gdtr.base;
		*limit = c->gdtr.limit;
	}
	return 0;
}

int desc_read(struct cpu *c, u16 sel, u64 *desc, u64 *gva)
{
	u64 base;
	u32 limit;
	if (table_of(c, sel, &base, &limit) || (sel | 7u) > limit)
		return DESC_OUTSIDE;
	*gva = base + (sel & 0xfff8u);
	if (!cpu_long_mode(c))
		*gva = (u32)*gva;
	return sys_read64(c, *gva, desc);
}

int desc_read_high(struct cpu *c, u16 sel, u64 *high)
{
	u64 base;
	u32 limit;
	if (table_of(c, sel, &base, &limit) || (sel | 7u) + 8 > limit)
		return DESC_OUTSIDE;
	return sys_read64(c, base + (sel & 0xfff8u) + 8, high);
}

void desc_unpack(struct seg *s, u64 d, u16 sel)
{
	u32 limit = (u32)(d & 0xffff) | (u32)((d >> 32) & 0xf0000);
	bool g = (d >> 55) & 1;
	*s = (struct seg){
		.base = ((d >> 16) & 0xffffff) | ((d >> 56) << 24),
		.limit = g ? (limit << 12) | 0xfff : limit,
		.sel = sel,
		.type = (u8)((d >> 40) & 15),
		.s = (d >> 44) & 1,
		.dpl = (u8)((d >> 45) & 3),
		.present = (d >> 47) & 1,
		.avl = (d >> 52) & 1,
		.l = (d >> 53) & 1,
		.db = (d >> 54) & 1,
		.g = g,
	};
}

int desc_set_accessed(struct cpu *c, u64 desc, u64 gva)
{
	if (likely(desc & BIT(40)))
		return 0;
	u8 b = (u8)(desc >> 40) | SEG_ACCESSED;
	return sys_write(c, gva + 5, &b, 1);
}

bool seg_range_ok(const struct seg *s, u64 off, unsigned size)
{
	if (s->unusable)
		return false;
	u64 last = off + size - 1;
	if (s->s && !(s->type & SEG_CODE) && (s->type & SEG_EXPAND_DOWN))
		return off > s->limit && last <= (s->db ? 0xffffffffull : 0xffffull);
	return last <= s->limit;
}

/* ---- loading ---- */

void seg_set_real(struct cpu *c, enum sreg r, u16 sel)
{
	/* Limit and attributes stay: "unreal" mode is what real processors do. */
	struct seg *s = &c->seg[r];
	if (s->unusable)
		*s = (struct seg){ .limit = 0xffff, .type = 3, .s = true, .present = true };
	s->sel = sel;
	s->base = (u64)sel << 4;
	s->dpl = 0;
}

void seg_set_vm86(struct cpu *c, enum sreg r, u16 sel)
{
	c->seg[r] = (struct seg){
		.base = (u64)sel << 4, .limit = 0xffff, .sel = sel, .type = 3, .s = true, .present = true, .dpl = 3,
	};
}

/* The base becomes 0 for both vendors: AMD processors that kept it in FS and GS are those without CPUID
 * Fn8000_0021_EAX[6], which we set. */
static struct seg null_segment(enum sreg r, u16 sel)
{
	struct seg s = { .sel = sel, .unusable = true };
	if (r == SS) {
		s.dpl = SEL_RPL(sel);
		s.db = true;
		s.type = 3;
		s.s = true;
	}
	return s;
}

void seg_set_null(struct cpu *c, enum sreg r, u16 sel)
{
	c->seg[r] = null_segment(r, sel);
}

void seg_set_flat_code(struct cpu *c, u16 sel, u8 dpl, bool l)
{
	c->seg[CS] = (struct seg){
		.limit = 0xffffffff, .sel = sel, .type = 11, .s = true, .present = true, .dpl = dpl, .l = l, .db = !l,
		.g = true,
	};
}

void seg_set_flat_stack(struct cpu *c, u16 sel, u8 dpl)
{
	c->seg[SS] = (struct seg){
		.limit = 0xffffffff, .sel = sel, .type = 3, .s = true, .present = true, .dpl = dpl, .db = true, .g = true,
	};
}

void seg_drop_inner(struct cpu *c, u8 new_cpl)
{
	static const u8 data_regs[] = { ES, DS, FS, GS };
	for (unsigned k = 0; k < ARRAY_SIZE(data_regs); k++) {
		struct seg *s = &c->seg[data_regs[k]];
		if (SEL_NULL(s->sel) || (s->dpl < new_cpl && !seg_is_conforming(s))) {
			/* The hidden base survives: 64-bit code has FS and GS null with a base from the MSRs. */
			s->sel = 0;
			s->unusable = true;
		}
	}
}

int seg_check(struct cpu *c, const struct insn *i, enum sreg r, u16 sel, struct seg *out)
{
	u64 d, gva;
	if (SEL_NULL(sel)) {
		if (r == SS && (!cpu_code64(c) || c->cpl == 3 || SEL_RPL(sel) != c->cpl))
			return exc_gp(c, i, 0);
		*out = null_segment(r, sel);
		return 0;
	}
	int st = desc_read(c, sel, &d, &gva);
	if (unlikely(st))
		return st == DESC_OUTSIDE ? exc_gp(c, i, SEL_ERR(sel)) : st;
	desc_unpack(out, d, sel);
	if (r == SS) {
		if (SEL_RPL(sel) != c->cpl || !seg_is_writable(out) || out->dpl != c->cpl)
			return exc_gp(c, i, SEL_ERR(sel));
		if (!out->present)
			return exc_raise_error(c, i, VEC_SS, SEL_ERR(sel));
	} else {
		if (!out->s || (seg_is_code(out) && !(out->type & SEG_READABLE)))
			return exc_gp(c, i, SEL_ERR(sel));
		if (!seg_is_conforming(out) && (SEL_RPL(sel) > out->dpl || c->cpl > out->dpl))
			return exc_gp(c, i, SEL_ERR(sel));
		if (!out->present)
			return exc_raise_error(c, i, VEC_NP, SEL_ERR(sel));
	}
	out->type |= SEG_ACCESSED;
	return desc_set_accessed(c, d, gva);
}

int seg_load(struct cpu *c, const struct insn *i, enum sreg r, u16 sel)
{
	if (i)
		c->rip = insn_rip(c, i);
	if (unlikely(cpu_real(c))) {
		seg_set_real(c, r, sel);
		return 0;
	}
	if (unlikely(cpu_vm86(c))) {
		seg_set_vm86(c, r, sel);
		return 0;
	}
	struct seg s;
	int st = seg_check(c, i, r, sel, &s);
	if (unlikely(st))
		return st;
	c->seg[r] = s;
	return 0;
}

/* ---- stacks ---- */

int stack_addr(struct cpu *c, const struct insn *i, u64 sp, unsigned size, u64 *lin)
{
	if (likely(cpu_code64(c))) {
		if (unlikely(!gva_canonical(sp) || !gva_canonical(sp + size - 1)))
			return exc_raise_error(c, i, VEC_SS, 0);
		*lin = sp;
		return 0;
	}
	const struct seg *ss = &c->seg[SS];
	sp &= stack_mask(c);
	if (unlikely(!seg_range_ok(ss, sp, size)))
		return exc_raise_error(c, i, VEC_SS, 0);
	*lin = (u32)(ss->base + sp);
	return 0;
}

void stk_current(const struct cpu *c, struct stk *s)
{
	*s = (struct stk){ .ss = c->seg[SS], .sp = c->r[RSP], .mask = stack_mask(c), .flat = cpu_code64(c) };
	s->sp &= s->mask;
}

static int stk_addr(struct cpu *c, const struct insn *i, const struct stk *s, u64 sp, unsigned size, u64 *lin)
{
	if (s->flat) {
		if (!gva_canonical(sp) || !gva_canonical(sp + size - 1))
			return exc_raise_error(c, i, VEC_SS, s->ss_error);
		*lin = sp;
		return 0;
	}
	if (!seg_range_ok(&s->ss, sp, size))
		return exc_raise_error(c, i, VEC_SS, s->ss_error);
	*lin = (u32)(s->ss.base + sp);
	return 0;
}

int stack_write_user(struct cpu *c, u64 lin, const void *buf, unsigned size)
{
	u8 *at[2];
	unsigned len[2], n = 0;
	for (unsigned done = 0; done < size; n++) {
		gpa_t gpa;
		u64 va = lin + done;
		len[n] = (unsigned)(PAGE_SIZE - (va & ~PAGE_MASK));
		if (len[n] > size - done)
			len[n] = size - done;
		if (!mmu_translate(c, va, ACC_W, true, false, &gpa, &c->exc))
			return STEP_FAULT;
		at[n] = ram_ptr(c->ram, gpa, len[n]);
		if (!at[n])
			return cpu_unimplemented(c, NULL, "exception stack outside RAM");
		block_code_write(c, gpa, len[n]);
		done += len[n];
	}
	const volatile u8 *from = buf;
	for (unsigned k = 0; k < n; k++)
		for (unsigned b = 0; b < len[k]; b++)
			((volatile u8 *)at[k])[b] = *from++;
	return 0;
}

int stk_push(struct cpu *c, const struct insn *i, struct stk *s, unsigned size, u64 v)
{
	u64 sp = (s->sp - size) & s->mask, lin = 0;
	int st = stk_addr(c, i, s, sp, size, &lin);
	if (st)
		return st;
	if (s->sys)
		st = sys_write(c, lin, &v, size);
	else
		st = i ? mem_write_slow(c, i, lin, &v, size) : stack_write_user(c, lin, &v, size);
	if (!st)
		s->sp = sp;
	return st;
}

int stk_pop(struct cpu *c, const struct insn *i, struct stk *s, unsigned size, u64 *v)
{
	u64 lin = 0;
	int st = stk_addr(c, i, s, s->sp, size, &lin);
	if (st)
		return st;
	*v = 0;
	st = s->sys ? sys_read(c, lin, v, size) : mem_read_slow(c, i, lin, v, size);
	if (!st)
		s->sp = (s->sp + size) & s->mask;
	return st;
}

void stk_commit(struct cpu *c, const struct stk *s)
{
	c->seg[SS] = s->ss;
	stack_set_rsp(c, s->mask, s->sp);
}

int tss_rsp64(struct cpu *c, const struct insn *i, unsigned n, u32 ext, u64 *rsp)
{
	u32 off = n < 3 ? 4 + 8 * n : 36 + 8 * (n - 3);
	if (c->tr.unusable || off + 7 > c->tr.limit)
		return exc_raise_error(c, i, VEC_TS, SEL_ERR(c->tr.sel) | ext);
	return sys_read64(c, c->tr.base + off, rsp);
}

int tss_stack(struct cpu *c, const struct insn *i, u8 cpl, u32 ext, struct stk *out)
{
	bool wide = c->tr.type == SYS_TSS || c->tr.type == SYS_TSS_BUSY;
	u32 off = wide ? 4 + 8u * cpl : 2 + 4u * cpl, sp = 0;
	u16 sel, sp16;
	u64 d, gva;
	int st;
	if (c->tr.unusable || off + (wide ? 5 : 3) > c->tr.limit)
		return exc_raise_error(c, i, VEC_TS, SEL_ERR(c->tr.sel) | ext);
	if (wide) {
		if ((st = sys_read(c, c->tr.base + off, &sp, 4)) || (st = sys_read(c, c->tr.base + off + 4, &sel, 2)))
			return st;
	} else {
		if ((st = sys_read(c, c->tr.base + off, &sp16, 2)) || (st = sys_read(c, c->tr.base + off + 2, &sel, 2)))
			return st;
		sp = sp16;
	}
	if (SEL_NULL(sel))
		return exc_raise_error(c, i, VEC_TS, ext);
	st = desc_read(c, sel, &d, &gva);
	if (st)
		return st == DESC_OUTSIDE ? exc_raise_error(c, i, VEC_TS, SEL_ERR(sel) | ext) : st;
	*out = (struct stk){ .sp = sp, .ss_error = SEL_ERR(sel) | ext, .sys = true };
	desc_unpack(&out->ss, d, sel);
	if (SEL_RPL(sel) != cpl || out->ss.dpl != cpl || !seg_is_writable(&out->ss))
		return exc_raise_error(c, i, VEC_TS, SEL_ERR(sel) | ext);
	if (!out->ss.present)
		return exc_raise_error(c, i, VEC_SS, SEL_ERR(sel) | ext);
	out->ss.type |= SEG_ACCESSED;
	out->mask = out->ss.db ? 0xffffffffull : 0xffffull;
	out->sp &= out->mask;
	return desc_set_accessed(c, d, gva);
}

/* ---- instructions ---- */

/* Source selector: register or 16-bit memory. */
static int source16(struct cpu *c, const struct insn *i, u8 reg, u16 *v)
{
	if (!(i->flags & IF_MEM)) {
		*v = REG16(c, reg);
		return 0;
	}
	int fault = 0;
	u64 ea = insn_ea(c, i, 2, ACC_R, &fault);
	return fault ? fault : mem_read16(c, i, ea, v);
}

/* Behind a successful segment load: outside 64-bit mode bases and limits are part of what was derived. */
#define AFTER_LOAD(c, i)                                          \
	do {                                                      \
		if (cpu_code64(c))                                \
			NEXT(c, i);                               \
		return step_mode((c), insn_next_rip((c), (i)));   \
	} while (0)

int op_mov_to_sreg(struct cpu *c, const struct insn *i)
{
	enum sreg r = i->aux;
	u16 sel;
	if (r == CS || r >= SREG_COUNT)
		return exc_ud(c, i);
	int st = source16(c, i, i->ra, &sel);
	if (st || (st = seg_load(c, i, r, sel)))
		return st;
	if (r == SS) {
		c->irq_shadow = true;
		return step_mode(c, insn_next_rip(c, i));
	}
	AFTER_LOAD(c, i);
}

int op_mov_from_sreg(struct cpu *c, const struct insn *i)
{
	u16 sel = c->seg[i->aux].sel;
	if (i->flags & IF_MEM) {
		int fault = 0;
		u64 ea = insn_ea(c, i, 2, ACC_W, &fault);
		if (fault || (fault = mem_write16(c, i, ea, sel)))
			return fault;
	} else {
		reg_write(c, i->ra, i->opsize < 2 ? 2 : i->opsize, sel);
	}
	NEXT(c, i);
}

int op_push_sreg(struct cpu *c, const struct insn *i)
{
	u64 mask = stack_mask(c), sp = (c->r[RSP] - i->opsize) & mask, lin;
	u16 sel = c->seg[i->aux].sel;
	int st = stack_addr(c, i, sp, i->opsize, &lin);
	if (st)
		return st;
	/* With a 32-bit operand size Intel processors write the selector alone and leave the upper two bytes. */
	if (i->opsize == 8)
		st = mem_write64(c, i, lin, sel);
	else if (i->opsize == 4 && !c->vendor_intel)
		st = mem_write32(c, i, lin, sel);
	else
		st = mem_write16(c, i, lin, sel);
	if (st)
		return st;
	stack_set_rsp(c, mask, sp);
	NEXT(c, i);
}

int op_pop_sreg(struct cpu *c, const struct insn *i)
{
	enum sreg r = i->aux;
	u64 mask = stack_mask(c), lin;
	u16 sel;
	int st = stack_addr(c, i, c->r[RSP], i->opsize, &lin);
	if (st || (st = mem_read16(c, i, lin, &sel)))
		return st;
	u64 sp = c->r[RSP] + i->opsize;
	if ((st = seg_load(c, i, r, sel)))
		return st;
	stack_set_rsp(c, mask, sp); /* width of the old stack segment */
	if (r == SS) {
		c->irq_shadow = true;
		return step_mode(c, insn_next_rip(c, i));
	}
	AFTER_LOAD(c, i);
}

int op_lfs(struct cpu *c, const struct insn *i)
{
	unsigned n = i->opsize == 8 && !c->vendor_intel ? 4 : i->opsize; /* AMD has no m16:64 */
	u8 b[10] = { 0 };
	int fault = 0;
	u64 ea = insn_ea(c, i, n + 2, ACC_R, &fault);
	/* Two accesses, as alignment checks show. */
	if (fault || (fault = mem_read_slow(c, i, ea, b, n)) || (fault = mem_read_slow(c, i, ea + n, b + n, 2)))
		return fault;
	u64 off = 0;
	for (unsigned k = 0; k < n; k++)
		off |= (u64)b[k] << (8 * k);
	int st = seg_load(c, i, i->aux, (u16)(b[n] | b[n + 1] << 8));
	if (st)
		return st;
	reg_write(c, i->ra, i->opsize, off);
	AFTER_LOAD(c, i);
}

static void set_zf(struct cpu *c, bool v)
{
	c->aflags = v ? c->aflags | FL_ZF : c->aflags & ~FL_ZF;
}

/* The descriptor of a selector operand as LAR, LSL, VERR and VERW see it: *ok says whether selector, table limit and
 * privilege admit it. */
static int probe_selector(struct cpu *c, const struct insn *i, u8 reg, struct seg *s, u64 *d, bool *ok)
{
	u16 sel;
	u64 gva;
	*ok = false;
	if (cpu_real(c) || cpu_vm86(c))
		return exc_ud(c, i);
	int st = source16(c, i, reg, &sel);
	if (st)
		return st;
	if (SEL_NULL(sel))
		return 0;
	c->rip = insn_rip(c, i);
	st = desc_read(c, sel, d, &gva);
	if (st)
		return st == DESC_OUTSIDE ? 0 : st;
	desc_unpack(s, *d, sel);
	*ok = seg_is_conforming(s) || (c->cpl <= s->dpl && SEL_RPL(sel) <= s->dpl);
	return 0;
}

/* Types of system descriptors LAR and LSL accept, one bit per type. */
#define TYPES_LAR_LEGACY (BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12))
#define TYPES_LAR_LONG (BIT(2) | BIT(9) | BIT(11) | BIT(12))
#define TYPES_LSL_LEGACY (BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11))
#define TYPES_LSL_LONG (BIT(2) | BIT(9) | BIT(11))

int op_lar(struct cpu *c, const struct insn *i)
{
	struct seg s;
	u64 d;
	bool ok;
	int st = probe_selector(c, i, i->rb, &s, &d, &ok);
	if (st)
		return st;
	if (ok && !s.s)
		ok = ((cpu_long_mode(c) ? TYPES_LAR_LONG : TYPES_LAR_LEGACY) >> s.type) & 1;
	if (ok)
		reg_write(c, i->ra, i->opsize, (d >> 32) & 0xffff00u); /* bits 19:16: limit, as processors give it */
	set_zf(c, ok);
	NEXT(c, i);
}

int op_lsl(struct cpu *c, const struct insn *i)
{
	struct seg s;
	u64 d;
	bool ok;
	int st = probe_selector(c, i, i->rb, &s, &d, &ok);
	if (st)
		return st;
	if (ok && !s.s)
		ok = ((cpu_long_mode(c) ? TYPES_LSL_LONG : TYPES_LSL_LEGACY) >> s.type) & 1;
	if (ok)
		reg_write(c, i->ra, i->opsize, s.limit);
	set_zf(c, ok);
	NEXT(c, i);
}

int op_verr(struct cpu *c, const struct insn *i)
{
	struct seg s;
	u64 d;
	bool ok;
	int st = probe_selector(c, i, i->ra, &s, &d, &ok);
	if (st)
		return st;
	set_zf(c, ok && s.s && (!seg_is_code(&s) || (s.type & SEG_READABLE)));
	NEXT(c, i);
}

int op_verw(struct cpu *c, const struct insn *i)
{
	struct seg s;
	u64 d;
	bool ok;
	int st = probe_selector(c, i, i->ra, &s, &d, &ok);
	if (st)
		return st;
	set_zf(c, ok && seg_is_writable(&s));
	NEXT(c, i);
}

int op_arpl(struct cpu *c, const struct insn *i)
{
	u16 dst;
	u16 src = REG16(c, i->flags & IF_MEM ? i->ra : i->rb);
	u64 ea = 0;
	int fault = 0;
	if (cpu_real(c) || cpu_vm86(c))
		return exc_ud(c, i);
	if (i->flags & IF_MEM) {
		ea = insn_ea(c, i, 2, ACC_W, &fault);
		if (fault || (fault = mem_probe(c, i, ea, 2, ACC_W)) || (fault = mem_read16(c, i, ea, &dst)))
			return fault;
	} else {
		dst = REG16(c, i->ra);
	}
	bool adjust = SEL_RPL(dst) < SEL_RPL(src);
	if (adjust) {
		dst = (u16)((dst & ~3u) | SEL_RPL(src));
		if (!(i->flags & IF_MEM))
			REG16(c, i->ra) = dst;
		else if ((fault = mem_write16(c, i, ea, dst)))
			return fault;
	}
	set_zf(c, adjust);
	NEXT(c, i);
}
