/* Data movement, flag bits, conditional moves. */
#include "cpu/exec.h"

#define SET8(c, off, v) (REG8(c, off) = (u8)(v))
#define SET16(c, off, v) (REG16(c, off) = (u16)(v))
#define SET64(c, off, v) (REG64(c, off) = (u64)(v))

#define EA(size, acc)                                                                                                  \
	int fault = 0;                                                                                                 \
	u64 ea = insn_ea(c, i, size, acc, &fault);                                                                     \
	if (unlikely(fault))                                                                                           \
	return fault

#define MOVS(bits)                                                                                                     \
	static H(mov_rr##bits) { SET##bits(c, i->ra, REG##bits(c, i->rb)); NEXT(c, i); }                               \
	static H(mov_ri##bits) { SET##bits(c, i->ra, i->imm); NEXT(c, i); }                                            \
	static H(mov_rm##bits)                                                                                         \
	{                                                                                                              \
		EA(bits / 8, ACC_R);                                                                                   \
		u##bits v;                                                                                             \
		fault = mem_read##bits(c, i, ea, &v);                                                                  \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		SET##bits(c, i->ra, v);                                                                                \
		NEXT(c, i);                                                                                            \
	}                                                                                                              \
	static H(mov_mr##bits)                                                                                         \
	{                                                                                                              \
		EA(bits / 8, ACC_W);                                                                                   \
		fault = mem_write##bits(c, i, ea, REG##bits(c, i->rb));                                                \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		NEXT(c, i);                                                                                            \
	}                                                                                                              \
	static H(mov_mi##bits)                                                                                         \
	{                                                                                                              \
		EA(bits / 8, ACC_W);                                                                                   \
		fault = mem_write##bits(c, i, ea, (u##bits)i->imm);                                                    \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		NEXT(c, i);                                                                                            \
	}
MOVS(8)
MOVS(16)
MOVS(32)
MOVS(64)
#define ROW(form) { mov_##form##8, mov_##form##16, mov_##form##32, mov_##form##64 }
const insn_fn exec_mov[FORM_COUNT][4] = { ROW(rr), ROW(rm), ROW(mr), ROW(ri), ROW(mi) };

/* ---- widening moves ---- */

#define WIDEN(name, type, from, to, styp)                                                                              \
	static H(name##_r##from##_##to) { SET##to(c, i->ra, (u##to)(styp)(type)REG##from(c, i->rb)); NEXT(c, i); }      \
	static H(name##_m##from##_##to)                                                                                \
	{                                                                                                              \
		EA(from / 8, ACC_R);                                                                                   \
		u##from v;                                                                                             \
		fault = mem_read##from(c, i, ea, &v);                                                                  \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		SET##to(c, i->ra, (u##to)(styp)(type)v);                                                               \
		NEXT(c, i);                                                                                            \
	}
#define WIDEN_BOTH(from, to) WIDEN(movzx, u##from, from, to, u64) WIDEN(movsx, s##from, from, to, s64)
WIDEN_BOTH(8, 16)
WIDEN_BOTH(8, 32)
WIDEN_BOTH(8, 64)
WIDEN_BOTH(16, 16)
WIDEN_BOTH(16, 32)
WIDEN_BOTH(16, 64)
WIDEN_BOTH(32, 32)
WIDEN_BOTH(32, 64)
#define TABLE(name, k)                                                                                                 \
	{                                                                                                              \
		{ NULL, name##_##k##8_16, name##_##k##8_32, name##_##k##8_64 },                                        \
		{ NULL, name##_##k##16_16, name##_##k##16_32, name##_##k##16_64 },                                     \
		{ NULL, NULL, name##_##k##32_32, name##_##k##32_64 },                                                  \
	}
const insn_fn exec_movzx[2][4][4] = { TABLE(movzx, r), TABLE(movzx, m) };
const insn_fn exec_movsx[2][4][4] = { TABLE(movsx, r), TABLE(movsx, m) };

/* ---- conditions ---- */

#define CMOV(bits)                                                                                                     \
	static H(cmov_r##bits)                                                                                         \
	{                                                                                                              \
		u##bits v = cond_true(c->aflags, i->aux) ? REG##bits(c, i->rb) : REG##bits(c, i->ra);                  \
		SET##bits(c, i->ra, v);                                                                                \
		NEXT(c, i);                                                                                            \
	}                                                                                                              \
	static H(cmov_m##bits) /* the load happens, and may fault, whatever the condition */                           \
	{                                                                                                              \
		EA(bits / 8, ACC_R);                                                                                   \
		u##bits v;                                                                                             \
		fault = mem_read##bits(c, i, ea, &v);                                                                  \
		if (unlikely(fault))                                                                                   \
			return fault;                                                                                  \
		if (!cond_true(c->aflags, i->aux))                                                                     \
			v = REG##bits(c, i->ra);                                                                       \
		SET##bits(c, i->ra, v);                                                                                \
		NEXT(c, i);                                                                                            \
	}
CMOV(16)
CMOV(32)
CMOV(64)
const insn_fn exec_cmov[2][4] = { { NULL, cmov_r16, cmov_r32, cmov_r64 }, { NULL, cmov_m16, cmov_m32, cmov_m64 } };

H(op_setcc_r) { REG8(c, i->ra) = cond_true(c->aflags, i->aux); NEXT(c, i); }
H(op_setcc_m)
{
	EA(1, ACC_W);
	fault = mem_write8(c, i, ea, cond_true(c->aflags, i->aux));
	if (unlikely(fault))
		return fault;
	NEXT(c, i);
}

/* ---- the rest ---- */

H(op_lea) { reg_write(c, i->ra, i->opsize, insn_lea(c, i)); NEXT(c, i); }
H(op_nop) { NEXT(c, i); }
H(op_xchg_rr)
{
	u64 a = reg_read(c, i->ra, i->opsize), b = reg_read(c, i->rb, i->opsize);
	reg_write(c, i->ra, i->opsize, b);
	reg_write(c, i->rb, i->opsize, a);
	NEXT(c, i);
}
H(op_cbw) /* CBW, CWDE, CDQE: opsize is the result's */
{
	switch (i->opsize) {
	case 2: REG16(c, 0) = (u16)(s8)REG8(c, 0); break;
	case 4: SET32(c, 0, (s16)REG16(c, 0)); break;
	default: REG64(c, 0) = (u64)(s64)(s32)REG32(c, 0);
	}
	NEXT(c, i);
}
H(op_cwd) /* CWD, CDQ, CQO */
{
	switch (i->opsize) {
	case 2: REG16(c, 8 * RDX) = (u16)((s16)REG16(c, 0) >> 15); break;
	case 4: SET32(c, 8 * RDX, (s32)REG32(c, 0) >> 31); break;
	default: c->r[RDX] = (u64)((s64)c->r[RAX] >> 63);
	}
	NEXT(c, i);
}
H(op_lahf) { REG8(c, 1) = (u8)((c->aflags & (FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF)) | FL_FIXED); NEXT(c, i); }
H(op_sahf)
{
	const u64 m = FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF;
	c->aflags = (c->aflags & ~m) | (REG8(c, 1) & m);
	NEXT(c, i);
}
H(op_xlat)
{
	u64 off = c->r[RBX] + REG8(c, 0), lin;
	off = i->addrsize == 8 ? off : i->addrsize == 4 ? (u32)off : (u16)off;
	int r = seg_linear(c, i, i->seg, off, 1, ACC_R, &lin);
	u8 v;
	if (r || (r = mem_read8(c, i, lin, &v)))
		return r;
	REG8(c, 0) = v;
	NEXT(c, i);
}
H(op_clc) { c->aflags &= ~FL_CF; NEXT(c, i); }
H(op_stc) { c->aflags |= FL_CF; NEXT(c, i); }
H(op_cmc) { c->aflags ^= FL_CF; NEXT(c, i); }
H(op_cld) { c->sflags &= ~FL_DF; NEXT(c, i); }
H(op_std) { c->sflags |= FL_DF; NEXT(c, i); }
H(op_salc) { REG8(c, 0) = c->aflags & FL_CF ? 0xff : 0; NEXT(c, i); }
