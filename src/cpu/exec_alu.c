/* Integer arithmetic.  The host's own instruction computes result and flags, so
 * undefined flags come out as the host's too; the flags image is taken with
 * PUSHF and kept whole in c->aflags. */
#include "cpu/exclusive.h"
#include "cpu/exec.h"

#define SET8(c, off, v) (REG8(c, off) = (v))
#define SET16(c, off, v) (REG16(c, off) = (v))
#define SET64(c, off, v) (REG64(c, off) = (v))

#define TAKE_FLAGS "\n\tpushfq\n\tpopq %[f]"
#define LOAD_CF "btl $0, %k[in]\n\t"

/* ---- kernels: one per operation and size ---- */

#define KERNEL(op, bits, sfx)                                                                                          \
	static inline u##bits k_##op##bits(struct cpu *c, u##bits a, u##bits b)                                        \
	{                                                                                                              \
		u64 f;                                                                                                 \
		__asm__(#op sfx " %[b], %[a]" TAKE_FLAGS : [a] "+q"(a), [f] "=r"(f) : [b] "q"(b) : "cc");              \
		c->aflags = f;                                                                                         \
		return a;                                                                                              \
	}
#define KERNEL_CF(op, bits, sfx)                                                                                       \
	static inline u##bits k_##op##bits(struct cpu *c, u##bits a, u##bits b)                                        \
	{                                                                                                              \
		u64 f;                                                                                                 \
		__asm__(LOAD_CF #op sfx " %[b], %[a]" TAKE_FLAGS                                                       \
			: [a] "+q"(a), [f] "=r"(f)                                                                     \
			: [b] "q"(b), [in] "r"(c->aflags)                                                              \
			: "cc");                                                                                       \
		c->aflags = f;                                                                                         \
		return a;                                                                                              \
	}
#define SIZES(M, op) M(op, 8, "b") M(op, 16, "w") M(op, 32, "l") M(op, 64, "q")
SIZES(KERNEL, add)
SIZES(KERNEL, or)
SIZES(KERNEL, and)
SIZES(KERNEL, sub)
SIZES(KERNEL, xor)
SIZES(KERNEL, cmp)
SIZES(KERNEL, test)
SIZES(KERNEL_CF, adc)
SIZES(KERNEL_CF, sbb)

/* Read-modify-write of memory: directly when the page allows it, else through a
 * buffer (page crossing, MMIO); flags are put back when the write leaves for MMIO. */
#define RMW(bits, expr)                                                                                                \
	int fault = 0;                                                                                                 \
	u64 ea = insn_ea(c, i, bits / 8, ACC_W, &fault);                                                               \
	if (unlikely(fault))                                                                                           \
		return fault;                                                                                          \
	void *p = tlb_write_ptr(c, ea, bits / 8);                                                                      \
	if (unlikely(!p)) {                                                                                            \
		int r = mem_ptr(c, i, ea, bits / 8, ACC_W, &p);                                                        \
		if (r)                                                                                                 \
			return r;                                                                                      \
	}                                                                                                              \
	if (likely(p != NULL)) {                                                                                       \
		u##bits v = *(volatile u##bits *)p;                                                                    \
		*(volatile u##bits *)p = (expr);                                                                       \
	} else {                                                                                                       \
		u64 flags = c->aflags;                                                                                 \
		u##bits v;                                                                                             \
		int r = mem_read_slow(c, i, ea, &v, bits / 8);                                                         \
		if (r)                                                                                                 \
			return r;                                                                                      \
		v = (expr);                                                                                            \
		r = mem_write_slow(c, i, ea, &v, bits / 8);                                                            \
		if (r) {                                                                                               \
			c->aflags = flags;                                                                             \
			return r;                                                                                      \
		}                                                                                                      \
	}                                                                                                              \
	NEXT(c, i)

#define LOAD(bits, v)                                                                                                  \
	u##bits v;                                                                                                     \
	{                                                                                                              \
		int fault = 0;                                                                                         \
		u64 ea = insn_ea(c, i, bits / 8, ACC_R, &fault);                                                       \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		fault = mem_read##bits(c, i, ea, &v);                                                                  \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
	}

#define FORMS_WRITE(op, bits, sfx)                                                                                     \
	static H(op##_rr##bits) { SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra), REG##bits(c, i->rb))); NEXT(c, i); } \
	static H(op##_ri##bits) { SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra), (u##bits)i->imm)); NEXT(c, i); }     \
	static H(op##_rm##bits)                                                                                        \
	{                                                                                                              \
		LOAD(bits, v);                                                                                         \
		SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra), v));                                          \
		NEXT(c, i);                                                                                            \
	}                                                                                                              \
	static H(op##_mr##bits) { RMW(bits, k_##op##bits(c, v, REG##bits(c, i->rb))); }                                \
	static H(op##_mi##bits) { RMW(bits, k_##op##bits(c, v, (u##bits)i->imm)); }
#define FORMS_READ(op, bits, sfx)                                                                                      \
	static H(op##_rr##bits) { k_##op##bits(c, REG##bits(c, i->ra), REG##bits(c, i->rb)); NEXT(c, i); }             \
	static H(op##_ri##bits) { k_##op##bits(c, REG##bits(c, i->ra), (u##bits)i->imm); NEXT(c, i); }                 \
	static H(op##_rm##bits) { LOAD(bits, v); k_##op##bits(c, REG##bits(c, i->ra), v); NEXT(c, i); }                \
	static H(op##_mr##bits) { LOAD(bits, v); k_##op##bits(c, v, REG##bits(c, i->rb)); NEXT(c, i); }                \
	static H(op##_mi##bits) { LOAD(bits, v); k_##op##bits(c, v, (u##bits)i->imm); NEXT(c, i); }
SIZES(FORMS_WRITE, add)
SIZES(FORMS_WRITE, or)
SIZES(FORMS_WRITE, adc)
SIZES(FORMS_WRITE, sbb)
SIZES(FORMS_WRITE, and)
SIZES(FORMS_WRITE, sub)
SIZES(FORMS_WRITE, xor)
SIZES(FORMS_READ, cmp)
SIZES(FORMS_READ, test)

#define ROW(op, form) { op##_##form##8, op##_##form##16, op##_##form##32, op##_##form##64 }
#define ALU_ROWS(op) { ROW(op, rr), ROW(op, rm), ROW(op, mr), ROW(op, ri), ROW(op, mi) }
const insn_fn exec_alu[ALU_COUNT][FORM_COUNT][4] = {
	[ALU_ADD] = ALU_ROWS(add), [ALU_OR] = ALU_ROWS(or),   [ALU_ADC] = ALU_ROWS(adc),
	[ALU_SBB] = ALU_ROWS(sbb), [ALU_AND] = ALU_ROWS(and), [ALU_SUB] = ALU_ROWS(sub),
	[ALU_XOR] = ALU_ROWS(xor), [ALU_CMP] = ALU_ROWS(cmp), [ALU_TEST] = ALU_ROWS(test),
};

/* ---- one operand; INC and DEC keep CF, NOT keeps all ---- */

#define KERNEL1(op, bits, sfx)                                                                                         \
	static inline u##bits k_##op##bits(struct cpu *c, u##bits a)                                                   \
	{                                                                                                              \
		u64 f;                                                                                                 \
		__asm__(LOAD_CF #op sfx " %[a]" TAKE_FLAGS : [a] "+q"(a), [f] "=r"(f) : [in] "r"(c->aflags) : "cc");   \
		c->aflags = f;                                                                                         \
		return a;                                                                                              \
	}
#define KERNEL_NOT(op, bits, sfx) static inline u##bits k_not##bits(struct cpu *c, u##bits a) { return (u##bits)~a; }
SIZES(KERNEL1, inc)
SIZES(KERNEL1, dec)
SIZES(KERNEL1, neg)
SIZES(KERNEL_NOT, not)
#define FORMS1(op, bits, sfx)                                                                                          \
	static H(op##_r##bits) { SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra))); NEXT(c, i); }              \
	static H(op##_m##bits) { RMW(bits, k_##op##bits(c, v)); }
SIZES(FORMS1, inc)
SIZES(FORMS1, dec)
SIZES(FORMS1, neg)
SIZES(FORMS1, not)
#define ROWS1(op) { ROW(op, r), ROW(op, m) }
const insn_fn exec_unary[UN_COUNT][2][4] = { [UN_INC] = ROWS1(inc), [UN_DEC] = ROWS1(dec), [UN_NEG] = ROWS1(neg), [UN_NOT] = ROWS1(not) };

/* ---- shifts and rotates; a masked count of 0 changes no flag ---- */

#define SHIFT_FLAGS_ALL(old, f) (f)
#define SHIFT_FLAGS_ROT(old, f) (((old) & ~(FL_CF | FL_OF)) | ((f) & (FL_CF | FL_OF)))
#define KERNEL_SHIFT(op, bits, sfx, merge)                                                                             \
	static inline u##bits k_##op##bits(struct cpu *c, u##bits a, u64 n)                                            \
	{                                                                                                              \
		n &= bits == 64 ? 63 : 31;                                                                             \
		if (!n)                                                                                                \
			return a;                                                                                      \
		u64 f;                                                                                                 \
		__asm__(#op sfx " %%cl, %[a]" TAKE_FLAGS : [a] "+q"(a), [f] "=r"(f) : "c"(n) : "cc");                  \
		c->aflags = merge(c->aflags, f);                                                                       \
		return a;                                                                                              \
	}
#define SHIFT_SIZES(op, merge)                                                                                         \
	KERNEL_SHIFT(op, 8, "b", merge) KERNEL_SHIFT(op, 16, "w", merge) KERNEL_SHIFT(op, 32, "l", merge)              \
	KERNEL_SHIFT(op, 64, "q", merge)
SHIFT_SIZES(shl, SHIFT_FLAGS_ALL)
SHIFT_SIZES(shr, SHIFT_FLAGS_ALL)
SHIFT_SIZES(sar, SHIFT_FLAGS_ALL)
SHIFT_SIZES(rol, SHIFT_FLAGS_ROT)
SHIFT_SIZES(ror, SHIFT_FLAGS_ROT)
#define FORMS_SHIFT(op, bits, sfx)                                                                                     \
	static H(op##_ri##bits) { SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra), i->imm)); NEXT(c, i); }     \
	static H(op##_rc##bits) { SET##bits(c, i->ra, k_##op##bits(c, REG##bits(c, i->ra), c->r[RCX])); NEXT(c, i); }  \
	static H(op##_mi##bits) { RMW(bits, k_##op##bits(c, v, i->imm)); }                                             \
	static H(op##_mc##bits) { RMW(bits, k_##op##bits(c, v, c->r[RCX])); }
SIZES(FORMS_SHIFT, shl)
SIZES(FORMS_SHIFT, shr)
SIZES(FORMS_SHIFT, sar)
SIZES(FORMS_SHIFT, rol)
SIZES(FORMS_SHIFT, ror)
#define ROWS_SHIFT(op) { { ROW(op, ri), ROW(op, mi) }, { ROW(op, rc), ROW(op, mc) } }
const insn_fn exec_shift[SH_COUNT][2][2][4] = {
	[SH_SHL] = ROWS_SHIFT(shl), [SH_SHR] = ROWS_SHIFT(shr), [SH_SAR] = ROWS_SHIFT(sar),
	[SH_ROL] = ROWS_SHIFT(rol), [SH_ROR] = ROWS_SHIFT(ror),
};

/* ---- multiplication ---- */

#define KERNEL_IMUL(bits, sfx)                                                                                         \
	static inline u##bits k_imul##bits(struct cpu *c, u##bits a, u##bits b)                                        \
	{                                                                                                              \
		u64 f;                                                                                                 \
		__asm__("imul" sfx " %[b], %[a]" TAKE_FLAGS : [a] "+r"(a), [f] "=r"(f) : [b] "r"(b) : "cc");           \
		c->aflags = f;                                                                                         \
		return a;                                                                                              \
	}                                                                                                              \
	static H(imul2_r##bits) { SET##bits(c, i->ra, k_imul##bits(c, REG##bits(c, i->ra), REG##bits(c, i->rb))); NEXT(c, i); } \
	static H(imul2_m##bits) { LOAD(bits, v); SET##bits(c, i->ra, k_imul##bits(c, REG##bits(c, i->ra), v)); NEXT(c, i); }    \
	static H(imul3_r##bits) { SET##bits(c, i->ra, k_imul##bits(c, REG##bits(c, i->rb), (u##bits)i->imm)); NEXT(c, i); }     \
	static H(imul3_m##bits) { LOAD(bits, v); SET##bits(c, i->ra, k_imul##bits(c, v, (u##bits)i->imm)); NEXT(c, i); }
KERNEL_IMUL(16, "w")
KERNEL_IMUL(32, "l")
KERNEL_IMUL(64, "q")
const insn_fn exec_imul2[2][4] = { { NULL, imul2_r16, imul2_r32, imul2_r64 }, { NULL, imul2_m16, imul2_m32, imul2_m64 } };
const insn_fn exec_imul3[2][4] = { { NULL, imul3_r16, imul3_r32, imul3_r64 }, { NULL, imul3_m16, imul3_m32, imul3_m64 } };

#define KERNEL_MUL1(op, bits, sfx)                                                                                     \
	static inline void k_##op##1_##bits(struct cpu *c, u##bits b)                                                  \
	{                                                                                                              \
		u64 f;                                                                                                 \
		u##bits lo = REG##bits(c, 8 * RAX), hi;                                                                \
		__asm__(#op sfx " %[b]" TAKE_FLAGS : "+a"(lo), "=&d"(hi), [f] "=r"(f) : [b] "r"(b) : "cc");            \
		c->aflags = f;                                                                                         \
		SET##bits(c, 8 * RAX, lo);                                                                             \
		SET##bits(c, 8 * RDX, hi);                                                                             \
	}
#define KERNEL_MUL1_8(op)                                                                                              \
	static inline void k_##op##1_8(struct cpu *c, u8 b)                                                            \
	{                                                                                                              \
		u64 f;                                                                                                 \
		u16 ax = REG8(c, 8 * RAX);                                                                             \
		__asm__(#op "b %[b]" TAKE_FLAGS : "+a"(ax), [f] "=r"(f) : [b] "q"(b) : "cc");                          \
		c->aflags = f;                                                                                         \
		REG16(c, 8 * RAX) = ax;                                                                                \
	}
#define FORMS_MUL1(op, bits)                                                                                           \
	static H(op##1_r##bits) { k_##op##1_##bits(c, REG##bits(c, i->ra)); NEXT(c, i); }                              \
	static H(op##1_m##bits) { LOAD(bits, v); k_##op##1_##bits(c, v); NEXT(c, i); }
#define MUL1_ALL(op)                                                                                                   \
	KERNEL_MUL1_8(op) KERNEL_MUL1(op, 16, "w") KERNEL_MUL1(op, 32, "l") KERNEL_MUL1(op, 64, "q")                   \
	FORMS_MUL1(op, 8) FORMS_MUL1(op, 16) FORMS_MUL1(op, 32) FORMS_MUL1(op, 64)
MUL1_ALL(mul)
MUL1_ALL(imul)
const insn_fn exec_mul1[2][2][4] = { { ROW(mul1, r), ROW(mul1, m) }, { ROW(imul1, r), ROW(imul1, m) } };

/* ---- bit tests with a register offset into memory: the operand may lie far from the effective address ---- */

H(op_bt_mem)
{
	const unsigned size = i->opsize;
	s64 bit = size == 2 ? (s16)REG16(c, i->rb) : size == 4 ? (s32)REG32(c, i->rb) : (s64)REG64(c, i->rb);
	/* The displacement is added to the offset, before the segment. */
	struct insn moved = *i;
	moved.disp += (bit >> (size == 2 ? 4 : size == 4 ? 5 : 6)) * (s64)size;
	const unsigned n = (unsigned)bit & (size * 8 - 1);
	const enum access a = i->aux ? ACC_W : ACC_R;
	int fault = 0;
	u64 ea = insn_ea(c, &moved, size, a, &fault);
	if (unlikely(fault)) {
		c->rip = insn_rip(c, i);
		return fault;
	}
	u64 v = 0, old;
	void *p;
	int r = mem_ptr(c, i, ea, size, a, &p);
	if (r)
		return r;
	const u64 mask = BIT(n);
	if (p && (i->flags & IF_LOCK)) {
		/* Only the addressed byte changes; locked access of the operand's own size. */
		u64 set = i->aux == 1 ? mask : 0, clr = i->aux == 2 ? mask : 0, flip = i->aux == 3 ? mask : 0;
#define LOCKED(bits)                                                                                                   \
	{                                                                                                              \
		u##bits o = *(volatile u##bits *)p;                                                                    \
		while (!__atomic_compare_exchange_n((u##bits *)p, &o, (u##bits)(((o | set) & ~clr) ^ flip), false,     \
						    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {                             \
		}                                                                                                      \
		old = o;                                                                                               \
	}
		if (size == 2)
			LOCKED(16)
		else if (size == 4)
			LOCKED(32)
		else
			LOCKED(64)
#undef LOCKED
	} else {
		const bool split = !p && (i->flags & IF_LOCK); /* across two pages, or MMIO */
		if (split)
			exclusive_begin(c);
		if (p)
			v = size == 2 ? *(volatile u16 *)p : size == 4 ? *(volatile u32 *)p : *(volatile u64 *)p;
		else
			r = mem_read_slow(c, i, ea, &v, size);
		old = v;
		v = i->aux == 1 ? v | mask : i->aux == 2 ? v & ~mask : i->aux == 3 ? v ^ mask : v;
		if (!r && i->aux && p) {
			if (size == 2)
				*(volatile u16 *)p = (u16)v;
			else if (size == 4)
				*(volatile u32 *)p = (u32)v;
			else
				*(volatile u64 *)p = v;
		} else if (!r && i->aux) {
			r = mem_write_slow(c, i, ea, &v, size);
		}
		if (split)
			exclusive_end(c);
		if (r)
			return r;
	}
	c->aflags = (c->aflags & ~FL_CF) | ((old >> n) & 1);
	NEXT(c, i);
}

/* ---- decimal adjust (legacy modes only; SDM vol. 2) ---- */

static void set_szp(struct cpu *c, u8 v)
{
	u64 f;
	__asm__("testb %[v], %[v]" TAKE_FLAGS : [f] "=r"(f) : [v] "q"(v) : "cc");
	c->aflags = (c->aflags & ~(FL_SF | FL_ZF | FL_PF)) | (f & (FL_SF | FL_ZF | FL_PF));
}

static int decimal_adjust(struct cpu *c, const struct insn *i, int sign)
{
	u8 al = REG8(c, 0), old = al;
	bool cf = c->aflags & FL_CF, af = (al & 0xf) > 9 || (c->aflags & FL_AF), carry = false;
	if (af) {
		carry = cf || (sign > 0 ? al > 0xf9 : al < 6);
		al = (u8)(al + sign * 6);
	}
	if (old > 0x99 || cf) {
		al = (u8)(al + sign * 0x60);
		carry = true;
	}
	REG8(c, 0) = al;
	c->aflags = (c->aflags & ~(FL_CF | FL_AF | FL_OF)) | (carry ? FL_CF : 0) | (af ? FL_AF : 0);
	set_szp(c, al);
	NEXT(c, i);
}
H(op_daa) { return decimal_adjust(c, i, 1); }
H(op_das) { return decimal_adjust(c, i, -1); }

static int ascii_adjust(struct cpu *c, const struct insn *i, int sign)
{
	bool adjust = (REG8(c, 0) & 0xf) > 9 || (c->aflags & FL_AF);
	if (adjust)
		REG16(c, 0) = (u16)(REG16(c, 0) + sign * 0x106);
	REG8(c, 0) &= 0xf;
	c->aflags = (c->aflags & ~(FL_CF | FL_AF | FL_OF)) | (adjust ? FL_CF | FL_AF : 0);
	set_szp(c, REG8(c, 0));
	NEXT(c, i);
}
H(op_aaa) { return ascii_adjust(c, i, 1); }
H(op_aas) { return ascii_adjust(c, i, -1); }

H(op_aam)
{
	u8 base = (u8)i->imm, al = REG8(c, 0);
	if (!base)
		return exc_raise(c, i, VEC_DE);
	REG8(c, 1) = al / base;
	REG8(c, 0) = al % base;
	c->aflags &= ~(FL_CF | FL_AF | FL_OF);
	set_szp(c, REG8(c, 0));
	NEXT(c, i);
}
H(op_aad)
{
	u8 al = (u8)(REG8(c, 0) + REG8(c, 1) * (u8)i->imm);
	REG16(c, 0) = al;
	c->aflags &= ~(FL_CF | FL_AF | FL_OF);
	set_szp(c, al);
	NEXT(c, i);
}
