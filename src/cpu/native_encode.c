/* Builds the machine code of a native instruction.
 *
 * A stub is an ordinary System V function (struct cpu *c in rdi, host address of the memory operand in rsi):
 *
 *	push callee-saved registers the guest's instruction uses
 *	mov ctx, rdi; mov base, rsi            ctx, base: registers the guest's instruction does not use
 *	push [ctx+aflags]; popf                when it reads or does not fully write the flags
 *	mov reg, [ctx+reg]                     all general registers it uses
 *	<the instruction>                      memory operand [base], RSP renamed to a free register
 *	pushf; pop [ctx+aflags]
 *	mov [ctx+reg], reg                     all general registers it writes
 *	xor eax, eax                           or, x87: eax = FSW.ES
 *	pop ...; ret
 * abort:
 *	mov eax, 1; pop ...; ret
 *
 * The instruction is re-encoded from its parts, prefixes that only concerned the address dropped.  32-bit and 16-bit
 * code is brought to the 64-bit meaning: operand size prefix, and the VEX/EVEX bits that those modes ignore. */
#include <Zydis/Zydis.h>

#include "cpu/native_op.h"

struct code {
	u8 b[NATIVE_OP_MAX];
	unsigned n;
};

static void put(struct code *e, u8 v)
{
	if (e->n < sizeof(e->b))
		e->b[e->n] = v;
	e->n++;
}

static void put32(struct code *e, u32 v)
{
	for (unsigned k = 0; k < 4; k++)
		put(e, (u8)(v >> (8 * k)));
}

/* op is 8B (load) or 89 (store); base is never RSP or R12. */
static void put_mov_mem(struct code *e, u8 op, unsigned reg, unsigned base, unsigned disp)
{
	put(e, (u8)(0x48 | (reg >> 3) << 2 | base >> 3));
	put(e, op);
	if (disp < 128) {
		put(e, (u8)(0x40 | (reg & 7) << 3 | (base & 7)));
		put(e, (u8)disp);
	} else {
		put(e, (u8)(0x80 | (reg & 7) << 3 | (base & 7)));
		put32(e, disp);
	}
}

static void put_mov_reg(struct code *e, unsigned dst, unsigned src)
{
	put(e, (u8)(0x48 | (src >> 3) << 2 | dst >> 3));
	put(e, 0x89);
	put(e, (u8)(0xc0 | (src & 7) << 3 | (dst & 7)));
}

static void put_push(struct code *e, unsigned reg)
{
	if (reg >= 8)
		put(e, 0x41);
	put(e, (u8)(0x50 | (reg & 7)));
}

static void put_pop(struct code *e, unsigned reg)
{
	if (reg >= 8)
		put(e, 0x41);
	put(e, (u8)(0x58 | (reg & 7)));
}

/* FF /6 and 8F /0 with [base+disp32] */
static void put_push_pop_mem(struct code *e, u8 op, u8 ext, unsigned base, unsigned disp)
{
	if (base >= 8)
		put(e, 0x41);
	put(e, op);
	put(e, (u8)(0x80 | ext << 3 | (base & 7)));
	put32(e, disp);
}

u16 native_gpr_bit(unsigned reg)
{
	switch (ZydisRegisterGetClass((ZydisRegister)reg)) {
	case ZYDIS_REGCLASS_GPR8:
		if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
			return (u16)(1u << (reg - ZYDIS_REGISTER_AH));
		return (u16)(1u << (unsigned)(ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64,
												  (ZydisRegister)reg)) &
					      15));
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		return (u16)(1u << (ZydisRegisterGetId((ZydisRegister)reg) & 15));
	default:
		return 0;
	}
}

/* Where the guest's RSP is named, to be renamed. */
struct rename {
	bool reg, rm, vvvv, opcode;
	u8 to; /* 0..7, not 4 */
};

static bool find_rename(const struct native_form *f, struct rename *r)
{
	const ZydisDecodedInstruction *z = f->z;
	const ZydisDecodedOperand *ops = f->ops;
	for (unsigned k = 0; k < z->operand_count; k++) {
		if (ops[k].type != ZYDIS_OPERAND_TYPE_REGISTER || native_gpr_bit(ops[k].reg.value) != 1u << RSP ||
		    ops[k].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			continue;
		switch (ops[k].encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG: r->reg = true; break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM: r->rm = true; break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD: r->vvvv = true; break;
		case ZYDIS_OPERAND_ENCODING_OPCODE: r->opcode = true; break;
		default: return false;
		}
	}
	return true;
}

/* VEX.W and EVEX.W are ignored outside 64-bit mode by instructions with a general register or a memory operand of that
 * size; W = 1 would mean 64 bits here. */
static bool w_selects_gpr(unsigned map, u8 opcode)
{
	switch (map) {
	case 1: return opcode == 0x6e || opcode == 0x7e || (opcode >= 0x2a && opcode <= 0x2d) || opcode == 0x78 ||
		       opcode == 0x79 || opcode == 0x7b;
	case 2: return opcode >= 0xf0 && opcode <= 0xf7;
	case 3: return opcode == 0x16 || opcode == 0x22 || opcode == 0xf0;
	case 5: return (opcode >= 0x2a && opcode <= 0x2d) || opcode == 0x78 || opcode == 0x79 || opcode == 0x7b;
	default: return false;
	}
}

static bool is_legacy_prefix(u8 b)
{
	return b == 0x66 || b == 0x67 || b == 0xf0 || b == 0xf2 || b == 0xf3 || b == 0x2e || b == 0x36 || b == 0x3e ||
	       b == 0x26 || b == 0x64 || b == 0x65;
}

/* 16-bit code: is the operand size prefix about general registers (its sense is inverted there)? */
static bool opsize_matters(const struct native_form *f)
{
	const ZydisDecodedInstruction *z = f->z;
	const ZydisDecodedOperand *ops = f->ops;
	bool general = false;
	for (unsigned k = 0; k < z->operand_count; k++) {
		if (ops[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		switch (ZydisRegisterGetClass(ops[k].reg.value)) {
		case ZYDIS_REGCLASS_GPR16:
		case ZYDIS_REGCLASS_GPR32: general = true; break;
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_MMX:
		case ZYDIS_REGCLASS_X87: return false;
		default: break;
		}
	}
	for (unsigned k = 0; k < z->raw.prefix_count; k++)
		if (z->raw.prefixes[k].value == 0x66 && z->raw.prefixes[k].type == ZYDIS_PREFIX_TYPE_MANDATORY)
			return false;
	return general || z->meta.isa_ext == ZYDIS_ISA_EXT_BASE;
}

/* The instruction itself; false: not expressible. */
static bool put_insn(struct code *e, const struct native_form *f, const struct rename *rn, unsigned base)
{
	const ZydisDecodedInstruction *z = f->z;
	const u8 *b = f->bytes;
	bool mode64 = z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
	bool mode16 = z->machine_mode == ZYDIS_MACHINE_MODE_LONG_COMPAT_16 ||
		      z->machine_mode == ZYDIS_MACHINE_MODE_LEGACY_16 || z->machine_mode == ZYDIS_MACHINE_MODE_REAL_16;
	bool modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	unsigned p = 0;   /* read position */
	int rex = -1;
	bool fix_66 = mode16 && opsize_matters(f);

	if (fix_66 && z->operand_width == 16)
		put(e, 0x66);
	for (; p < z->length; p++) {
		if (is_legacy_prefix(b[p])) {
			bool opsize = b[p] == 0x66 && !f->drop_66 && !fix_66;
			if (opsize || b[p] == 0xf0 || b[p] == 0xf2 || b[p] == 0xf3)
				put(e, b[p]);
			rex = -1;
		} else if (mode64 && (b[p] & 0xf0) == 0x40) {
			rex = b[p];
		} else {
			break;
		}
	}

	bool is_is4 = false;
	switch (z->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
	case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
		if (rex >= 0) {
			if (f->mem)
				rex &= ~3; /* X, B */
			put(e, (u8)rex);
		}
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
	case ZYDIS_INSTRUCTION_ENCODING_XOP:
		if (b[p] == 0xc5) {
			u8 v = b[p + 1];
			if (!mode64)
				v |= 0x40;
			if (rn->vvvv)
				v = (u8)((v & ~0x78) | (~rn->to & 15) << 3);
			put(e, 0xc5);
			put(e, v);
			p += 2;
		} else {
			u8 v1 = b[p + 1], v2 = b[p + 2];
			if (!mode64) {
				v1 |= 0x20;
				v2 |= 0x40;
				if ((v2 & 0x80) && b[p] == 0xc4 && w_selects_gpr(v1 & 31, b[p + 3]))
					v2 &= 0x7f;
			}
			if (f->mem)
				v1 |= 0x60;
			if (rn->vvvv)
				v2 = (u8)((v2 & ~0x78) | (~rn->to & 15) << 3);
			put(e, b[p]);
			put(e, v1);
			put(e, v2);
			p += 3;
		}
		for (unsigned k = 0; k < z->operand_count_visible; k++)
			is_is4 |= ((const ZydisDecodedOperand *)f->ops)[k].encoding == ZYDIS_OPERAND_ENCODING_IS4;
		break;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX: {
		u8 p0 = b[p + 1], p1 = b[p + 2], p2 = b[p + 3];
		if (!mode64) {
			p0 |= 0xf0;
			p1 |= 0x40;
			p2 |= 0x08;
			if ((p1 & 0x80) && (w_selects_gpr(p0 & 7, b[p + 4]) ||
					    ((p0 & 7) == 2 && b[p + 4] == 0x7c)))
				p1 &= 0x7f;
		}
		if (f->mem)
			p0 |= 0x60;
		if (rn->vvvv) {
			p1 = (u8)((p1 & ~0x78) | (~rn->to & 15) << 3);
			p2 |= 0x08;
		}
		put(e, 0x62);
		put(e, p0);
		put(e, p1);
		put(e, p2);
		p += 4;
		break;
	}
	default:
		return false;
	}

	if (!modrm) {
		for (; p < z->length; p++) {
			u8 v = b[p];
			if (rn->opcode && p == (unsigned)z->length - 1)
				v = (u8)((v & ~7) | rn->to);
			put(e, v);
		}
		return true;
	}
	for (; p < z->raw.modrm.offset; p++)
		put(e, b[p]);
	u8 m = b[p++];
	if (rn->reg)
		m = (u8)((m & ~0x38) | rn->to << 3);
	if (f->mem) {
		m = (u8)((m & 0x38) | base); /* mod 0, base is not RSP or RBP */
		if (z->attributes & ZYDIS_ATTRIB_HAS_SIB)
			p++;
		p += z->raw.disp.size / 8;
	} else if (rn->rm) {
		m = (u8)((m & ~7) | rn->to);
	}
	put(e, m);
	for (; p < z->length; p++)
		put(e, !mode64 && is_is4 ? b[p] & 0x7f : b[p]);
	return true;
}

/* First register of the list that is not in used. */
static int pick(const u8 *list, unsigned n, u32 used)
{
	for (unsigned k = 0; k < n; k++)
		if (!(used & 1u << list[k]))
			return list[k];
	return -1;
}

const struct native_op *native_place(struct native *n, const struct native_op *op)
{
	u32 at = ALIGN_UP(n->used, 16u);
	if (n->size < sizeof(*op) || at > n->size - sizeof(*op))
		return NULL;
	native_copy(n->rw + at, op, sizeof(*op));
	n->used = at + sizeof(*op);
	return (const struct native_op *)(n->rx + at);
}

static const u8 callee_saved[] = { RBX, RBP, R12, R13, R14, R15 };

/* Both returns, then into the arena. */
static const struct native_op *finish(struct native *n, struct native_op *op, struct code *e, u32 pushed)
{
	for (unsigned pass = 0;; pass++) {
		for (unsigned k = ARRAY_SIZE(callee_saved); k-- > 0;)
			if (pushed & 1u << callee_saved[k])
				put_pop(e, callee_saved[k]);
		put(e, 0xc3);
		if (pass)
			break;
		op->abort_off = (u8)e->n;
		put(e, 0xb8); /* mov eax, 1 */
		put32(e, STUB_FAULT);
	}
	if (e->n > 255 || e->n + sizeof(*op) + 16 > NATIVE_OP_MAX)
		return NULL;
	op->len = (u8)e->n;

	u32 at = ALIGN_UP(n->used, 16u);
	u32 total = offsetof(struct native_op, code) + e->n;
	if (at > n->size || total > n->size - at)
		return NULL;
	native_copy(n->rw + at, op, offsetof(struct native_op, code));
	native_copy(n->rw + at + offsetof(struct native_op, code), e->b, e->n);
	n->used = at + total;
	return (const struct native_op *)(n->rx + at);
}

const struct native_op *native_emit(struct native *n, struct native_op op, const struct native_form *f)
{
	static const u8 ctx_list[] = { RDI, R8, R9, R10, R11, RSI, RDX, RCX };
	static const u8 low_list[] = { RSI, RDX, RCX, RAX, RDI, RBX }; /* encodable without REX; [RBP] is not */
	struct code e;
	struct rename rn = { 0 };
	u32 used = f->used;
	int base = -1, ctx;

	e.n = 0;
	if (f->rdi_mem)
		used |= 1u << RDI;
	if (f->mem) {
		base = pick(low_list, ARRAY_SIZE(low_list), used | 1u << RSP);
		if (base < 0)
			return NULL;
		used |= 1u << base;
	}
	if (f->used & 1u << RSP) {
		if (!find_rename(f, &rn))
			return NULL;
		int to = pick(low_list, ARRAY_SIZE(low_list), used);
		if (to < 0)
			return NULL;
		rn.to = (u8)to;
		used |= 1u << to;
	}
	ctx = pick(ctx_list, ARRAY_SIZE(ctx_list), used);
	if (ctx < 0)
		return NULL;

	u32 pushed = used & ~(1u << RSP);
	for (unsigned k = 0; k < ARRAY_SIZE(callee_saved); k++)
		if (pushed & 1u << callee_saved[k])
			put_push(&e, callee_saved[k]);
	if (ctx != RDI)
		put_mov_reg(&e, (unsigned)ctx, RDI);
	if (f->mem && base != RSI)
		put_mov_reg(&e, (unsigned)base, RSI);
	if (f->rdi_mem)
		put_mov_reg(&e, RDI, RSI);
	if (f->flags_in) {
		put_push_pop_mem(&e, 0xff, 6, (unsigned)ctx, offsetof(struct cpu, aflags));
		put(&e, 0x9d);
	}
	for (unsigned r = 0; r < 16; r++)
		if (f->used & 1u << r)
			put_mov_mem(&e, 0x8b, r == RSP ? rn.to : r, (unsigned)ctx, 8 * r);
	op.insn_off = (u8)e.n;
	if (!put_insn(&e, f, &rn, (unsigned)base))
		return NULL;
	if (f->flags_out) {
		put(&e, 0x9c);
		put_push_pop_mem(&e, 0x8f, 0, (unsigned)ctx, offsetof(struct cpu, aflags));
	}
	for (unsigned r = 0; r < 16; r++)
		if (f->written & 1u << r)
			put_mov_mem(&e, 0x89, r == RSP ? rn.to : r, (unsigned)ctx, 8 * r);
	put(&e, 0x31); /* xor eax, eax */
	put(&e, 0xc0);
	if (op.flags & NF_X87) {
		static const u8 es[] = { 0xdf, 0xe0, 0x25, 0x80, 0, 0, 0 }; /* fnstsw ax; and eax, 0x80 */
		for (unsigned k = 0; k < sizeof(es); k++)
			put(&e, es[k]);
	}
	return finish(n, &op, &e, pushed);
}

const struct native_op *native_emit_movdir64b(struct native *n, struct native_op op)
{
	struct code e;
	e.n = 0;
	put_mov_mem(&e, 0x8b, RAX, RDI, offsetof(struct cpu, native));
	put_mov_mem(&e, 0x8b, RAX, RAX, offsetof(struct native, movdir));
	op.insn_off = (u8)e.n;
	put(&e, 0x66);
	put(&e, 0x0f);
	put(&e, 0x38);
	put(&e, 0xf8);
	put(&e, RAX << 3 | RSI);
	put(&e, 0x31);
	put(&e, 0xc0);
	return finish(n, &op, &e, 0);
}
