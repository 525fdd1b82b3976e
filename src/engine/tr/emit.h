/* A small x86-64 emitter: the tens of forms the translator needs.
 *
 * Nothing here, and nothing translated, writes the arithmetic flags unless the name says so: guest flags are live. */
#ifndef ENGINE_TR_EMIT_H
#define ENGINE_TR_EMIT_H

#include <string.h>

#include "core/base.h"
#include "cpu/x86.h"

struct emit {
	u8 *p, *end;  /* write pointer into the writable view */
	bool overflow;
};

static inline void emit_bytes(struct emit *e, const void *b, unsigned n)
{
	if (e->end - e->p < (s64)n) {
		e->overflow = true;
		return;
	}
	memcpy(e->p, b, n);
	e->p += n;
}
static inline void emit_u8(struct emit *e, u8 v) { emit_bytes(e, &v, 1); }
static inline void emit_u32(struct emit *e, u32 v) { emit_bytes(e, &v, 4); }

#define EMIT(e, ...) do { const u8 bytes_[] = { __VA_ARGS__ }; emit_bytes(e, bytes_, sizeof bytes_); } while (0)

/* op reg, gs:[disp32] (64-bit): state in struct cpu. */
static inline void emit_gs(struct emit *e, u8 opcode, unsigned reg, u32 disp)
{
	EMIT(e, 0x65, (u8)(0x48 | (reg >> 3) << 2), opcode, (u8)(0x04 | (reg & 7) << 3), 0x25);
	emit_u32(e, disp);
}
static inline void emit_load_gs(struct emit *e, unsigned reg, size_t disp) { emit_gs(e, 0x8b, reg, (u32)disp); }
static inline void emit_store_gs(struct emit *e, size_t disp, unsigned reg) { emit_gs(e, 0x89, reg, (u32)disp); }
/* mov qword gs:[disp], simm32 */
static inline void emit_store_gs_imm(struct emit *e, size_t disp, u32 imm)
{
	EMIT(e, 0x65, 0x48, 0xc7, 0x04, 0x25);
	emit_u32(e, (u32)disp);
	emit_u32(e, imm);
}

static inline void emit_mov(struct emit *e, unsigned dst, unsigned src)
{
	EMIT(e, (u8)(0x48 | (src >> 3) << 2 | dst >> 3), 0x89, (u8)(0xc0 | (src & 7) << 3 | (dst & 7)));
}

/* ModRM + SIB + disp32 for [base + index<<scale + disp]; no_base: absolute or index only.  base/index 16: none. */
static inline void emit_modrm_mem(struct emit *e, unsigned reg, unsigned base, unsigned index, unsigned scale, s32 disp)
{
	if (base == 16) {
		EMIT(e, (u8)(0x04 | (reg & 7) << 3), (u8)(scale << 6 | (index == 16 ? 4 : (index & 7)) << 3 | 5));
		emit_u32(e, (u32)disp);
		return;
	}
	if (disp >= -128 && disp <= 127) {
		EMIT(e, (u8)(0x44 | (reg & 7) << 3), (u8)(scale << 6 | (index == 16 ? 4 : (index & 7)) << 3 | (base & 7)), (u8)disp);
		return;
	}
	EMIT(e, (u8)(0x84 | (reg & 7) << 3), (u8)(scale << 6 | (index == 16 ? 4 : (index & 7)) << 3 | (base & 7)));
	emit_u32(e, (u32)disp);
}

static inline u8 emit_rex(unsigned w, unsigned reg, unsigned base, unsigned index)
{
	return (u8)(0x40 | w << 3 | (reg < 16 ? reg >> 3 : 0) << 2 | (index < 16 ? index >> 3 : 0) << 1 | (base < 16 ? base >> 3 : 0));
}

/* lea dst, [base + index<<scale + disp] */
static inline void emit_lea(struct emit *e, unsigned dst, unsigned base, unsigned index, unsigned scale, s32 disp)
{
	EMIT(e, emit_rex(1, dst, base, index), 0x8d);
	emit_modrm_mem(e, dst, base, index, scale, disp);
}
/* mov reg64, [base + index] / mov [base + index], reg64 */
static inline void emit_load(struct emit *e, unsigned reg, unsigned base, unsigned index, s32 disp)
{
	EMIT(e, emit_rex(1, reg, base, index), 0x8b);
	emit_modrm_mem(e, reg, base, index, 0, disp);
}
static inline void emit_store(struct emit *e, unsigned base, unsigned index, s32 disp, unsigned reg)
{
	EMIT(e, emit_rex(1, reg, base, index), 0x89);
	emit_modrm_mem(e, reg, base, index, 0, disp);
}
/* mov reg64, gs:[index*8 + disp32] */
static inline void emit_load_gs_index(struct emit *e, unsigned reg, unsigned index, size_t disp)
{
	EMIT(e, 0x65, emit_rex(1, reg, 0, index), 0x8b, (u8)(0x04 | (reg & 7) << 3), (u8)(3 << 6 | (index & 7) << 3 | 5));
	emit_u32(e, (u32)disp);
}
/* mov reg64, gs:[index + disp32] and the reverse; mov qword gs:[index + disp32], simm32 */
static inline void emit_gs_at(struct emit *e, u8 opcode, unsigned reg, unsigned index, size_t disp)
{
	EMIT(e, 0x65, emit_rex(1, reg, 0, index), opcode, (u8)(0x04 | (reg & 7) << 3), (u8)((index & 7) << 3 | 5));
	emit_u32(e, (u32)disp);
}
static inline void emit_load_gs_at(struct emit *e, unsigned reg, unsigned index, size_t disp) { emit_gs_at(e, 0x8b, reg, index, disp); }
static inline void emit_store_gs_at(struct emit *e, unsigned index, size_t disp, unsigned reg) { emit_gs_at(e, 0x89, reg, index, disp); }
static inline void emit_store_gs_at_imm(struct emit *e, unsigned index, size_t disp, u32 imm)
{
	emit_gs_at(e, 0xc7, 0, index, disp);
	emit_u32(e, imm);
}
static inline void emit_jmp_gs(struct emit *e, size_t disp)
{
	EMIT(e, 0x65, 0xff, 0x24, 0x25);
	emit_u32(e, (u32)disp);
}

/* rorx dst, src, imm8 (BMI2, VEX.LZ.F2.0F3A.W1 F0 /r ib) */
static inline void emit_rorx(struct emit *e, unsigned dst, unsigned src, u8 imm)
{
	EMIT(e, 0xc4, (u8)((dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 3), 0xfb, 0xf0, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)), imm);
}
/* movzx dst32, src8 */
static inline void emit_movzx8(struct emit *e, unsigned dst, unsigned src)
{
	EMIT(e, (u8)(0x40 | (dst >> 3) << 2 | src >> 3), 0x0f, 0xb6, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)));
}
/* pext dst, src, gs:[disp32] (BMI2, VEX.LZ.F3.0F38.W1 F5 /r) */
static inline void emit_pext_gs(struct emit *e, unsigned dst, unsigned src, size_t disp)
{
	EMIT(e, 0x65, 0xc4, (u8)((dst < 8 ? 0x80 : 0) | 0x60 | 2), (u8)(0x80 | (~src & 15) << 3 | 2), 0xf5,
	     (u8)(0x04 | (dst & 7) << 3), 0x25);
	emit_u32(e, (u32)disp);
}
static inline void emit_not(struct emit *e, unsigned reg) { EMIT(e, (u8)(0x48 | reg >> 3), 0xf7, (u8)(0xd0 | (reg & 7))); }

/* jrcxz over a 5-byte jmp rel32; returns where the rel32 is to be written. */
static inline u8 *emit_jrcxz_or_jmp(struct emit *e)
{
	EMIT(e, 0xe3, 0x05, 0xe9);
	u8 *at = e->p;
	emit_u32(e, 0);
	return at;
}
static inline u8 *emit_jmp(struct emit *e)
{
	emit_u8(e, 0xe9);
	u8 *at = e->p;
	emit_u32(e, 0);
	return at;
}
/* jcc rel32 */
static inline u8 *emit_jcc(struct emit *e, unsigned cc)
{
	EMIT(e, 0x0f, (u8)(0x80 | cc));
	u8 *at = e->p;
	emit_u32(e, 0);
	return at;
}
/* Points the rel32 at `at` to target (both in the same view). */
static inline void emit_patch(u8 *at, const u8 *target)
{
	s32 rel = (s32)(target - (at + 4));
	memcpy(at, &rel, 4);
}

#endif
