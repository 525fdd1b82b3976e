/* String instructions.  Registers are updated after every element (or run of
 * elements within a page), so a fault in the middle leaves exactly the progress
 * made and the instruction restartable.  REP gives way to pending events and to
 * single-stepping between elements: STEP_EARLY with RIP still at itself. */
#include "cpu/exec.h"

enum { REP_BURST = 1u << 16 }; /* elements before pending events are looked at again */

struct str {
	u64 count;
	bool rep;
	s64 step; /* +-size */
	unsigned size;
	u64 aflags; /* as the instruction found them */
};

/* Registers that are cut to the address size at the start. */
#define STR_COUNT BIT(RCX)
#define STR_SRC (BIT(RCX) | BIT(RSI))
#define STR_DST (BIT(RCX) | BIT(RDI))

static struct str str_begin(struct cpu *c, const struct insn *i, unsigned regs)
{
	struct str s = { .size = i->opsize, .aflags = c->aflags, .rep = i->flags & (IF_REP | IF_REPNE) };
	s.count = s.rep ? reg_read(c, 8 * RCX, i->addrsize) : 1;
	/* A 32-bit count, and in MOVS and STOS the pointers, lose their upper halves even when nothing is done or a fault
	 * comes, as on hardware (Intel, seen by tests/insn). */
	if (s.rep && i->addrsize == 4 && cpu_code64(c))
		for (unsigned r = RCX; r <= RDI; r++)
			if (regs & BIT(r))
				c->r[r] = (u32)c->r[r];
	s.step = c->sflags & FL_DF ? -(s64)s.size : (s64)s.size;
	return s;
}

static u64 index_reg(const struct cpu *c, const struct insn *i, enum gpr r) { return reg_read(c, (u8)(8 * r), i->addrsize); }

static void advance(struct cpu *c, const struct insn *i, enum gpr r, s64 by)
{
	reg_write(c, (u8)(8 * r), i->addrsize, reg_read(c, (u8)(8 * r), i->addrsize) + (u64)by);
}

static void consumed(struct cpu *c, const struct insn *i, struct str *s, u64 n)
{
	s->count -= n;
	if (s->rep)
		reg_write(c, 8 * RCX, i->addrsize, s->count);
}

/* A fault, or an event between elements: the flags are those from before the instruction (SDM vol. 2, REP). */
static int rep_fault(struct cpu *c, const struct str *s, int step)
{
	if (s->rep && step == STEP_FAULT)
		c->aflags = s->aflags;
	return step;
}

/* Between elements: must the rest wait? */
static bool give_way(struct cpu *c, const struct insn *i, const struct str *s, u64 *burst)
{
	if (!s->rep || !s->count)
		return false;
	/* c->patched: an element was stored into code, maybe this very instruction's */
	if (likely(!c->slow && !c->attn && !c->patched && *burst < REP_BURST))
		return false;
	c->aflags = s->aflags;
	c->rip = insn_rip(c, i);
	if (!c->deterministic)
		c->poll_at = c->insns;
	return true;
}

static int load_elem(struct cpu *c, const struct insn *i, u64 lin, unsigned size, u64 *v)
{
	*v = 0;
	switch (size) {
	case 1: return mem_read8(c, i, lin, (u8 *)v);
	case 2: return mem_read16(c, i, lin, (u16 *)v);
	case 4: return mem_read32(c, i, lin, (u32 *)v);
	default: return mem_read64(c, i, lin, v);
	}
}

static int store_elem(struct cpu *c, const struct insn *i, u64 lin, unsigned size, u64 v)
{
	switch (size) {
	case 1: return mem_write8(c, i, lin, (u8)v);
	case 2: return mem_write16(c, i, lin, (u16)v);
	case 4: return mem_write32(c, i, lin, (u32)v);
	default: return mem_write64(c, i, lin, v);
	}
}

/* Elements that fit between lin and the end of its page. */
static u64 room(u64 lin, unsigned size) { return (PAGE_SIZE - (lin & ~PAGE_MASK)) / size; }

static bool runs_allowed(const struct cpu *c, const struct insn *i, const struct str *s)
{
	return s->rep && s->step > 0 && !c->slow && cpu_code64(c) && i->addrsize == 8;
}

H(op_movs)
{
	struct str s = str_begin(c, i, STR_SRC | STR_DST);
	u64 burst = 0;
	while (s.count) {
		u64 src, dst;
		int r = seg_linear(c, i, i->seg, index_reg(c, i, RSI), s.size, ACC_R, &src);
		if (r || (r = seg_linear(c, i, ES, index_reg(c, i, RDI), s.size, ACC_W, &dst)))
			return rep_fault(c, &s, r);
		u64 n = 1;
		const void *p = tlb_read_ptr(c, src, s.size);
		void *q = tlb_write_ptr(c, dst, s.size);
		if (p && q && runs_allowed(c, i, &s)) {
			n = s.count;
			if (n > room(src, s.size))
				n = room(src, s.size);
			if (n > room(dst, s.size))
				n = room(dst, s.size);
			/* The host's own string instruction: same order of elements, so overlap behaves the same. */
			u64 k = n;
			if (s.size == 1)
				__asm__ volatile("rep movsb" : "+S"(p), "+D"(q), "+c"(k)::"memory");
			else if (s.size == 2)
				__asm__ volatile("rep movsw" : "+S"(p), "+D"(q), "+c"(k)::"memory");
			else if (s.size == 4)
				__asm__ volatile("rep movsl" : "+S"(p), "+D"(q), "+c"(k)::"memory");
			else
				__asm__ volatile("rep movsq" : "+S"(p), "+D"(q), "+c"(k)::"memory");
		} else {
			u64 v;
			if ((r = load_elem(c, i, src, s.size, &v)) || (r = store_elem(c, i, dst, s.size, v)))
				return rep_fault(c, &s, r);
		}
		advance(c, i, RSI, s.step * (s64)n);
		advance(c, i, RDI, s.step * (s64)n);
		consumed(c, i, &s, n);
		burst += n;
		c->mmio.n = c->mmio.next = 0; /* each element is its own access */
		if (give_way(c, i, &s, &burst))
			return STEP_EARLY;
	}
	NEXT(c, i);
}

H(op_stos)
{
	struct str s = str_begin(c, i, STR_DST);
	u64 burst = 0;
	while (s.count) {
		u64 dst, n = 1;
		int r = seg_linear(c, i, ES, index_reg(c, i, RDI), s.size, ACC_W, &dst);
		if (r)
			return rep_fault(c, &s, r);
		void *q = tlb_write_ptr(c, dst, s.size);
		if (q && runs_allowed(c, i, &s)) {
			n = s.count < room(dst, s.size) ? s.count : room(dst, s.size);
			u64 k = n, v = c->r[RAX];
			if (s.size == 1)
				__asm__ volatile("rep stosb" : "+D"(q), "+c"(k) : "a"(v) : "memory");
			else if (s.size == 2)
				__asm__ volatile("rep stosw" : "+D"(q), "+c"(k) : "a"(v) : "memory");
			else if (s.size == 4)
				__asm__ volatile("rep stosl" : "+D"(q), "+c"(k) : "a"(v) : "memory");
			else
				__asm__ volatile("rep stosq" : "+D"(q), "+c"(k) : "a"(v) : "memory");
		} else if ((r = store_elem(c, i, dst, s.size, c->r[RAX]))) {
			return rep_fault(c, &s, r);
		}
		advance(c, i, RDI, s.step * (s64)n);
		consumed(c, i, &s, n);
		burst += n;
		c->mmio.n = c->mmio.next = 0;
		if (give_way(c, i, &s, &burst))
			return STEP_EARLY;
	}
	NEXT(c, i);
}

H(op_lods)
{
	struct str s = str_begin(c, i, STR_COUNT);
	u64 burst = 0;
	while (s.count) {
		u64 src, v;
		int r = seg_linear(c, i, i->seg, index_reg(c, i, RSI), s.size, ACC_R, &src);
		if (r || (r = load_elem(c, i, src, s.size, &v)))
			return rep_fault(c, &s, r);
		reg_write(c, 8 * RAX, s.size, v);
		advance(c, i, RSI, s.step);
		consumed(c, i, &s, 1);
		burst++;
		c->mmio.n = c->mmio.next = 0;
		if (give_way(c, i, &s, &burst))
			return STEP_EARLY;
	}
	NEXT(c, i);
}

/* Flags of a - b in the element's size. */
static void compare(struct cpu *c, u64 a, u64 b, unsigned size)
{
	u64 f;
	switch (size) {
	case 1: __asm__("cmpb %b2, %b1\n\tpushfq\n\tpopq %0" : "=r"(f) : "q"(a), "q"(b) : "cc"); break;
	case 2: __asm__("cmpw %w2, %w1\n\tpushfq\n\tpopq %0" : "=r"(f) : "r"(a), "r"(b) : "cc"); break;
	case 4: __asm__("cmpl %k2, %k1\n\tpushfq\n\tpopq %0" : "=r"(f) : "r"(a), "r"(b) : "cc"); break;
	default: __asm__("cmpq %q2, %q1\n\tpushfq\n\tpopq %0" : "=r"(f) : "r"(a), "r"(b) : "cc");
	}
	c->aflags = f;
}

static bool repeat_ends(const struct cpu *c, const struct insn *i)
{
	return i->flags & IF_REPNE ? c->aflags & FL_ZF : !(c->aflags & FL_ZF);
}

H(op_scas)
{
	struct str s = str_begin(c, i, STR_COUNT);
	u64 burst = 0;
	while (s.count) {
		u64 dst, v;
		int r = seg_linear(c, i, ES, index_reg(c, i, RDI), s.size, ACC_R, &dst);
		if (r || (r = load_elem(c, i, dst, s.size, &v)))
			return rep_fault(c, &s, r);
		compare(c, c->r[RAX], v, s.size);
		advance(c, i, RDI, s.step);
		consumed(c, i, &s, 1);
		burst++;
		c->mmio.n = c->mmio.next = 0;
		if (s.rep && repeat_ends(c, i))
			break;
		if (give_way(c, i, &s, &burst))
			return STEP_EARLY;
	}
	NEXT(c, i);
}

H(op_cmps)
{
	struct str s = str_begin(c, i, STR_COUNT);
	u64 burst = 0;
	while (s.count) {
		u64 src, dst, a, b;
		int r = seg_linear(c, i, i->seg, index_reg(c, i, RSI), s.size, ACC_R, &src);
		if (r || (r = seg_linear(c, i, ES, index_reg(c, i, RDI), s.size, ACC_R, &dst)) ||
		    (r = load_elem(c, i, dst, s.size, &b)) || (r = load_elem(c, i, src, s.size, &a)))
			return rep_fault(c, &s, r);
		compare(c, a, b, s.size);
		advance(c, i, RSI, s.step);
		advance(c, i, RDI, s.step);
		consumed(c, i, &s, 1);
		burst++;
		c->mmio.n = c->mmio.next = 0;
		if (s.rep && repeat_ends(c, i))
			break;
		if (give_way(c, i, &s, &burst))
			return STEP_EARLY;
	}
	NEXT(c, i);
}

/* ---- port strings: one element per exit ---- */

static int after_element(struct cpu *c, const struct insn *i, const struct str *s)
{
	if (s->rep && s->count) {
		c->rip = insn_rip(c, i);
		return STEP_EARLY;
	}
	c->rip = insn_next_rip(c, i);
	return STEP_NEXT;
}

H(op_ins)
{
	const u16 port = REG16(c, 8 * RDX);
	u64 dst;
	int r = io_check(c, i, port, i->opsize); /* even when the count is 0 */
	if (r)
		return r;
	struct str s = str_begin(c, i, STR_COUNT);
	if (!s.count)
		NEXT(c, i);
	if ((r = seg_linear(c, i, ES, index_reg(c, i, RDI), s.size, ACC_W, &dst)) ||
	    (r = mem_probe(c, i, dst, s.size, ACC_W))) /* before the device is touched */
		return r;
	if (!c->io.done) {
		c->io.port = port;
		c->io.size = (u8)s.size;
		c->io.write = false;
		c->exit = CPU_EXIT_IO;
		c->rip = insn_rip(c, i);
		c->stats.exits_io++;
		return STEP_EXIT;
	}
	if ((r = store_elem(c, i, dst, s.size, c->io.data)))
		return r;
	c->io.done = false;
	io_breakpoint(c, port, s.size);
	advance(c, i, RDI, s.step);
	consumed(c, i, &s, 1);
	return after_element(c, i, &s);
}

H(op_outs)
{
	const u16 port = REG16(c, 8 * RDX);
	u64 src, v;
	int r = io_check(c, i, port, i->opsize);
	if (r)
		return r;
	struct str s = str_begin(c, i, STR_COUNT);
	if (!s.count)
		NEXT(c, i);
	if ((r = seg_linear(c, i, i->seg, index_reg(c, i, RSI), s.size, ACC_R, &src)) ||
	    (r = load_elem(c, i, src, s.size, &v)))
		return r;
	c->io.port = port;
	c->io.size = (u8)s.size;
	c->io.write = true;
	c->io.data = (u32)v;
	c->io.done = false;
	c->exit = CPU_EXIT_IO;
	c->stats.exits_io++;
	io_breakpoint(c, port, s.size);
	advance(c, i, RSI, s.step);
	consumed(c, i, &s, 1);
	after_element(c, i, &s);
	return STEP_EXIT;
}
