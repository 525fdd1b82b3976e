/* Random instances of a form: operands are drawn first, then the registers that the memory operands depend on are
 * solved so that most accesses land in the arena, at places where something can go wrong (page ends, the read-only
 * page, the pages that are not there). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"
#include "gen_internal.h"

/* --- random numbers --- */

static u64 splitmix(u64 *x)
{
	u64 z = (*x += 0x9e3779b97f4a7c15ull);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

void rng_seed(struct rng *r, u64 a, u64 b)
{
	u64 x = a * 0xd1342543de82ef95ull + b;
	for (unsigned i = 0; i < 4; i++)
		r->s[i] = splitmix(&x);
}

u64 rng_u64(struct rng *r)
{
	u64 *s = r->s;
	u64 m = s[1] * 5;
	u64 result = (m << 7 | m >> 57) * 9, t = s[1] << 17;
	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = s[3] << 45 | s[3] >> 19;
	return result;
}

/* Integers that are near something: zero, sign boundaries of every width, powers of two. */
static u64 rng_edge(struct rng *r)
{
	static const u64 special[] = {
		0, 1, 2, 3, 0x7f, 0x80, 0x81, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000,
		0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 0xfffffffffffffffe,
		0xffffffff80000000, 0xffffffffffff8000, 0xffffffffffffff80, 0xffff, 0x0101010101010101, 0x8080808080808080,
		0x00007fffffffffff, 0x0000800000000000, 0xffff800000000000, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa,
	};
	switch (rng_below(r, 8)) {
	case 0: case 1: case 2: return special[rng_below(r, ARRAY_SIZE(special))];
	case 3: return 1ull << rng_below(r, 64);
	case 4: return rng_below(r, 70);
	case 5: return rng_u64(r) >> rng_below(r, 64);
	default: return rng_u64(r);
	}
}

/* Fractions and exponents that matter, for any IEEE format of ebits/fbits. */
static u64 rng_float(struct rng *r, unsigned ebits, unsigned fbits)
{
	u64 sign = rng_u64(r) & 1, emax = MASK(ebits), bias = emax >> 1, e, f = rng_u64(r) & MASK(fbits);
	switch (rng_below(r, 14)) {
	case 0: e = 0; f = 0; break;
	case 1: e = 0; break;
	case 2: e = emax; f = 0; break;
	case 3: e = emax; f |= 1ull << (fbits - 1); break;
	case 4: e = emax; f &= ~(1ull << (fbits - 1)); break;
	case 5: e = bias; f = 0; break;
	case 6: e = 0; f = 1; break;
	case 7: e = emax - 1; f = MASK(fbits); break;
	case 8: e = rng_below(r, emax + 1); break;
	case 9: e = bias + rng_below(r, 70); f &= ~MASK(rng_below(r, fbits)); break;
	case 10: e = bias + rng_below(r, 8); f = 0; break;
	default: e = bias - 4 + rng_below(r, 9); break;
	}
	return sign << (ebits + fbits) | (e & emax) << fbits | f;
}

static void rng_fill(struct rng *r, u64 *q, unsigned n)
{
	unsigned kind = (unsigned)rng_below(r, 7);
	for (unsigned i = 0; i < n; i++)
		switch (kind) {
		case 0: case 1: q[i] = rng_float(r, 11, 52); break;
		case 2: case 3: q[i] = rng_float(r, 8, 23) | rng_float(r, 8, 23) << 32; break;
		case 4:
			q[i] = rng_float(r, 5, 10) | rng_float(r, 5, 10) << 16 | rng_float(r, 5, 10) << 32 | rng_float(r, 5, 10) << 48;
			break;
		case 5: q[i] = rng_edge(r); break;
		default: q[i] = rng_u64(r); break;
		}
}

static void rng_x87(struct rng *r, u8 *st)
{
	u64 m = rng_u64(r) | 1ull << 63;
	u16 e = 0x3fff;
	switch (rng_below(r, 12)) {
	case 0: m = 0; e = 0; break;
	case 1: e = 0x7fff; m = 1ull << 63; break;
	case 2: e = 0x7fff; m |= 3ull << 62; break;
	case 3: e = 0x7fff; m &= ~(1ull << 62); break;
	case 4: e = 0; m &= MASK(63); break;
	case 5: e = (u16)rng_below(r, 0x8000); break;
	case 6: m = rng_u64(r); e = (u16)rng_below(r, 0x8000); break; /* unnormals and pseudo-denormals among them */
	case 7: m = 1ull << 63; e = (u16)(0x3fff + rng_below(r, 8)); break;
	case 8: m &= ~MASK(40); e = (u16)(0x3fff + rng_below(r, 70)); break;
	default: e = (u16)(0x3fff - 4 + rng_below(r, 9)); break;
	}
	e |= (u16)(rng_u64(r) & 0x8000);
	memcpy(st, &m, 8);
	memcpy(st + 8, &e, 2);
}

static void gen_vec_state(u8 *img, struct rng *r)
{
	memset(img, 0, XSAVE_MAX);
	u16 fcw = 0x37f, fsw = 0;
	if (rng_one_in(r, 2))
		fcw = (u16)((rng_u64(r) & 0xf00) | 0x7f);
	if (rng_one_in(r, 8))
		fcw = (u16)((fcw & ~0x3fu) | (rng_u64(r) & 0x3f));
	fsw = (u16)(rng_u64(r) & 0x7f00);
	if (rng_one_in(r, 8))
		fsw |= (u16)(rng_u64(r) & 0x7f);
	/* ES and B follow from the unmasked exceptions (SDM vol. 1, 8.1.3). */
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	u8 ftw = (u8)rng_u64(r);
	switch (rng_below(r, 4)) {
	case 0: ftw = 0xff; break;
	case 1: ftw = 0; break;
	}
	memcpy(img, &fcw, 2);
	memcpy(img + 2, &fsw, 2);
	img[4] = ftw;
	u16 fop = (u16)(rng_u64(r) & 0x7ff);
	u64 fip = CODE_BASE + rng_below(r, CODE_SIZE), fdp = DATA_BASE + rng_below(r, DATA_SIZE);
	memcpy(img + 6, &fop, 2);
	memcpy(img + 8, &fip, 8);
	memcpy(img + 16, &fdp, 8);
	u32 mxcsr = 0x1f80;
	if (rng_one_in(r, 2))
		mxcsr = (u32)((rng_u64(r) & 0xe040) | 0x1f80 | (rng_one_in(r, 4) ? rng_u64(r) & 0x3f : 0));
	if (rng_one_in(r, 8))
		mxcsr = (u32)(rng_u64(r) & 0xffff);
	memcpy(img + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++)
		rng_x87(r, img + 32 + i * 16);
	for (unsigned i = 0; i < 32; i++) {
		u64 v[8];
		rng_fill(r, v, 8);
		xsave_set_vec(img, i, v);
	}
	if (host.off_opmask)
		for (unsigned i = 0; i < 8; i++) {
			u64 k = rng_one_in(r, 3) ? ~0ull : rng_one_in(r, 4) ? 1ull << rng_below(r, 64) : rng_u64(r);
			memcpy(img + host.off_opmask + i * 8, &k, 8);
		}
	memcpy(img + 512, &host.xcr0, 8);
}

void gen_batch(struct insn_batch *b, struct rng *r)
{
	for (unsigned i = 0; i < VEC_STATES; i++)
		gen_vec_state(b->vec[i], r);
	memset(b->arena, 0xcc, CODE_SIZE);
	for (u64 off = CODE_SIZE; off < ARENA_SIZE; off += 64) {
		u64 q[8];
		rng_fill(r, q, 8);
		if (rng_one_in(r, 4))
			for (unsigned i = 0; i < 4; i++)
				rng_x87(r, (u8 *)q + i * 16);
		memcpy(b->arena + off, q, 64);
	}
}

/* --- addresses --- */

u64 pick_target(struct rng *r, unsigned size, bool locked, bool addr64)
{
	u64 end = DATA_BASE + DATA_SIZE, rw_end = DATA_BASE + DATA_RW_SIZE, k = rng_below(r, 128);
	if (!size)
		size = 8;
	u64 align = size > 64 ? 64 : size;
	if (align & (align - 1))
		align = 2;
	u64 within = DATA_BASE + rng_below(r, DATA_RW_SIZE - size + 1);
	u64 part = rng_below(r, size + 1);
	if (k < 64 || (locked && k < 100 && !rng_one_in(r, 16)))
		return ALIGN_DOWN(within, align);
	if (k < 88)
		return within;
	if (k < 97)
		return DATA_BASE + PAGE_SIZE - part;
	if (k < 102)
		return rw_end + rng_below(r, PAGE_SIZE - size + 1);
	if (k < 105)
		return rw_end - part;
	if (k < 109)
		return end - size;
	if (k < 114)
		return end - part;
	if (k < 117)
		return DATA_BASE - part;
	if (k < 119)
		return end + rng_below(r, 0x10000);
	if (k < 120)
		return DATA_BASE - 1 - rng_below(r, 0x10000);
	if (k < 121)
		return CODE_BASE + ALIGN_DOWN(rng_below(r, CODE_SIZE - 64), align);
	if (k < 122)
		return CODE_BASE + CODE_SIZE - part;
	if (k < 123)
		return rng_below(r, 0x10000);
	if (!addr64)
		return ALIGN_DOWN(within, align);
	static const u64 far[] = { 0x0000800000000000, 0x8000000000000000, 0xffff7fffffffffff, 0xffff800000000000,
				   0xffffffff81000000, 0x00007ffffffffffc, 0x4000000000000000, 0x0000800000000010 };
	u64 a = far[rng_below(r, ARRAY_SIZE(far))];
	return a == 0x00007ffffffffffc ? 0x0000800000000000 + rng_below(r, 64) : a + (rng_one_in(r, 2) ? 0 : part);
}

/* Where a branch may go without meeting the instruction under test again. */
static u64 pick_branch_target(struct rng *r, const struct insn_case *c)
{
	u64 t;
	switch (rng_below(r, 12)) {
	case 0: return DATA_BASE + rng_below(r, DATA_SIZE);
	case 1: return CODE_BASE + CODE_SIZE + rng_below(r, 0x1000);
	case 2: return CODE_BASE - 1 - rng_below(r, 0x1000);
	case 3:
		if (rng_one_in(r, 2))
			return 0x0000800000000000 << rng_below(r, 4);
		return 0xffffffff81000000 + rng_below(r, 4096);
	default:
		do
			t = CODE_BASE + rng_below(r, CODE_SIZE);
		while (t - (c->rip - 8) < 48);
		return t;
	}
}

u64 reg_of_case(const struct insn_case *c, ZydisRegister reg, int *num)
{
	if (num)
		*num = -1;
	if (reg == ZYDIS_REGISTER_NONE || reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
		return 0;
	ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
	int n = ZydisRegisterGetId(full);
	if (ZydisRegisterGetClass(full) != ZYDIS_REGCLASS_GPR64 || n < 0 || n > 15)
		return 0;
	if (num)
		*num = n;
	return c->gpr[n];
}

/* Zydis 4.0 names R13D as base where ModRM.mod = 0 and SIB.base = 5 mean "no base" (address-size prefix, REX.B). */
ZydisRegister real_base(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
	if (o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT && (z->attributes & ZYDIS_ATTRIB_HAS_SIB) && z->raw.modrm.mod == 0 &&
	    z->raw.sib.base == 5)
		return ZYDIS_REGISTER_NONE;
	return o->mem.base;
}

/* ... and forgets the displacement that takes its place. */
u64 real_disp(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
	return (u64)(real_base(z, o) != o->mem.base ? z->raw.disp.value : o->mem.disp.value);
}

u64 seg_base(const struct insn_case *c, ZydisRegister seg)
{
	return seg == ZYDIS_REGISTER_FS ? c->fs_base : seg == ZYDIS_REGISTER_GS ? c->gs_base : 0;
}

/* The bytes an access may touch, as [*lo, *lo + *len); slack included for hidden movements of RSP, strings, XSAVE. */
bool operand_range_ok(u64 addr)
{
	const u64 slack = 0x20000;
	if (addr >= 0xffff800000000000ull)
		return addr < 0xffffffffff600000ull - slack || addr >= 0xffffffffff602000ull + slack;
	if (addr >= 0x0000800000000000ull)
		return true;
	return addr < 0x100000000ull - slack && !host_maps_near(addr, slack);
}

/* Solves the registers of one memory operand for target.  Bits of index registers stay as they are. */
static void solve_operand(struct insn_case *c, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o, u64 target,
			  struct rng *r)
{
	u64 mask = MASK(z->address_width);
	int bn, in;
	u64 idx = reg_of_case(c, o->mem.index, &in);
	reg_of_case(c, real_base(z, o), &bn);
	u64 disp = real_disp(z, o);
	u64 sb = seg_base(c, o->mem.segment);
	if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP ||
	    (bn < 0 && in < 0)) {
		unsigned off = z->raw.disp.offset, bytes = z->raw.disp.size / 8u;
		u64 want = target - sb - (bn < 0 && o->mem.base != ZYDIS_REGISTER_NONE ? c->rip + z->length : 0);
		if (bytes == 4 || bytes == 8)
			memcpy(c->bytes + off, &want, bytes);
		return;
	}
	if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
		if (bn >= 0)
			c->gpr[bn] = target - disp - sb;
		return;
	}
	u64 scale = o->mem.scale ? o->mem.scale : 1;
	if (bn < 0) {
		c->gpr[in] = ((target - disp - sb) & mask) / scale;
	} else if (bn == in) {
		c->gpr[bn] = ((target - disp - sb) & mask) / (1 + scale);
	} else {
		if (in >= 0 && in != 4 && rng_one_in(r, 2)) {
			c->gpr[in] &= 0xfff; /* small index, so that addresses look like those of programs */
			idx = c->gpr[in];
		}
		u64 v = target - disp - sb - idx * scale;
		if (z->address_width == 32 && rng_one_in(r, 2))
			v = (v & mask) | rng_u64(r) << 32; /* upper half must be ignored */
		c->gpr[bn] = v;
	}
}

/* Access size in bytes for choosing the target. */
static unsigned operand_size(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: case ZYDIS_MNEMONIC_XSAVES: case ZYDIS_MNEMONIC_XRSTORS:
		return host.xsave_size;
	case ZYDIS_MNEMONIC_MOVDIR64B: return 64;
	default: return o->size / 8u;
	}
}

static bool is_stack_pointer(ZydisRegister r)
{
	return r == ZYDIS_REGISTER_RSP || r == ZYDIS_REGISTER_ESP || r == ZYDIS_REGISTER_SP;
}

static void add_patch(struct insn_case *c, u64 addr, const void *b, u8 len)
{
	if (c->n_patches == CASE_PATCHES)
		return;
	struct case_patch *p = &c->patch[c->n_patches++];
	p->addr = addr;
	p->len = len;
	memcpy(p->b, b, len);
}

static const u16 selectors[] = { 0, 1, 2, 3, 0x08, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x2b, 0x2a, 0x30, 0x33, 0x32,
				 0x40, 0x43, 0x60, 0x63, 0x80, 0x83, 0xfff8, 0x37, 0x2f };

static u16 pick_selector(struct rng *r)
{
	return selectors[rng_below(r, ARRAY_SIZE(selectors))];
}

/* Initial position of the instruction: mostly amid the page, at times across pages or against the end. */
static u64 pick_rip(struct rng *r, unsigned len)
{
	switch (rng_below(r, 32)) {
	case 0: return CODE_BASE + PAGE_SIZE - rng_below(r, len + 1);  /* across */
	case 1: return CODE_BASE + CODE_SIZE - len;                    /* next instruction not present */
	case 2: return CODE_BASE + CODE_SIZE - rng_below(r, len) - 1;  /* itself not wholly present */
	default: return CODE_BASE + 0x200 + rng_below(r, 8) * 0x40 + rng_below(r, 64);
	}
}

void gen_state(struct insn_case *c, struct rng *r)
{
	for (unsigned i = 0; i < 16; i++) {
		if (rng_one_in(r, 4))
			c->gpr[i] = DATA_BASE + rng_below(r, DATA_RW_SIZE);
		else
			c->gpr[i] = rng_edge(r);
	}
	c->gpr[4] = ALIGN_DOWN(DATA_BASE + 256 + rng_below(r, DATA_RW_SIZE - 512), 8);
	switch (rng_below(r, 32)) {
	case 0: c->gpr[4] += rng_below(r, 8); break;
	case 1: c->gpr[4] = DATA_BASE + rng_below(r, 40); break;
	case 2: c->gpr[4] = DATA_BASE + DATA_RW_SIZE + rng_below(r, 40); break;
	case 3: c->gpr[4] = DATA_BASE + DATA_SIZE - rng_below(r, 40); break;
	case 4:
		if (rng_one_in(r, 2))
			c->gpr[4] = 0x0000800000000000 + rng_below(r, 16);
		break;
	case 5: c->gpr[4] = DATA_BASE + PAGE_SIZE + rng_below(r, 40) - 20; break;
	}
	c->rflags = (rng_u64(r) & 0x8d5) | 2;
	if (rng_one_in(r, 8))
		c->rflags |= BIT(10); /* DF */
	if (rng_one_in(r, 32))
		c->rflags |= BIT(18); /* AC */
	if (rng_one_in(r, 32))
		c->rflags |= BIT(8); /* TF */
	if (rng_one_in(r, 16))
		c->rflags |= BIT(21); /* ID */
	c->fs_base = rng_one_in(r, 2) ? DATA_BASE + rng_below(r, 4096) : rng_below(r, 0x1000);
	c->gs_base = rng_one_in(r, 2) ? DATA_BASE + rng_below(r, 4096) : 0xffffffffffff0000 + rng_below(r, 0x10000);
	c->vec = (u16)rng_below(r, VEC_STATES);
	c->vec_reg = 0xff;
	c->n_patches = 0;
}

/* Random operand bits for template t into c->bytes. */
u32 randomise_bytes(struct insn_case *c, const struct tmpl *t0, struct rng *r, unsigned attempt)
{
	struct tmpl t = *t0;
	u8 buf[32];
	u8 modrm = t.modrm, rex = (u8)rng_below(r, 8), sib = (u8)rng_u64(r);
	bool r2 = rng_one_in(r, 2), v2 = rng_one_in(r, 2);
	bool keep = attempt > 5, evex = t.enc == ZYDIS_INSTRUCTION_ENCODING_EVEX;
	if (rng_one_in(r, 3))
		rex = 0;
	if (t.has_modrm) {
		bool mem = modrm >> 6 != 3;
		unsigned reg = keep || rng_one_in(r, 4) ? (modrm >> 3 & 7) : (unsigned)rng_below(r, 8);
		if (attempt > 2 && rng_one_in(r, 2))
			reg = modrm >> 3 & 7;
		unsigned rm = keep && !mem ? (modrm & 7u) : (unsigned)rng_below(r, 8);
		unsigned mod = mem ? (unsigned)rng_below(r, 3) : 3;
		if (mem && t.vsib)
			rm = 4;
		modrm = (u8)(mod << 6 | reg << 3 | rm);
	}
	if (attempt > 8)
		rex = 0;
	if (!evex)
		r2 = v2 = false;
	if (attempt > 4)
		r2 = v2 = false;
	if (t.enc != ZYDIS_INSTRUCTION_ENCODING_LEGACY && t.vvvv != 15)
		t.vvvv = (u8)rng_below(r, 16);
	if (evex && t.aaa)
		t.aaa = (u8)(1 + rng_below(r, 7));
	u32 n = 0;
	if (rng_one_in(r, 12)) {
		static const u8 segs[] = { 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x64, 0x65 };
		buf[n++] = segs[rng_below(r, ARRAY_SIZE(segs))];
	}
	if (!t.addr32 && rng_one_in(r, 16))
		buf[n++] = 0x67;
	/* Redundant prefixes: ignored ones must be ignored, forbidden ones must raise #UD. */
	if (rng_one_in(r, 40))
		buf[n++] = (u8)(rng_one_in(r, 2) ? 0x66 : rng_one_in(r, 2) ? 0xf2 : 0xf3);
	if (rng_one_in(r, 200))
		while (n < 12 && !rng_one_in(r, 8))
			buf[n++] = 0x3e;
	n += tmpl_emit(&t, rex, modrm, sib, r2, v2, buf + n);
	/* Two-byte VEX where it can say the same. */
	for (u32 i = 0; i + 3 <= n && t.enc == ZYDIS_INSTRUCTION_ENCODING_VEX; i++)
		if (buf[i] == 0xc4 && (buf[i + 1] & 0x7f) == 0x61 && !(buf[i + 2] & 0x80) && rng_one_in(r, 2)) {
			buf[i + 1] = (u8)((buf[i + 1] & 0x80) | buf[i + 2]);
			buf[i] = 0xc5;
			memmove(buf + i + 2, buf + i + 3, n - i - 3);
			n--;
			break;
		} else if (buf[i] == 0xc4) {
			break;
		}
	for (unsigned i = 0; i < 9 && n < 31; i++) {
		u64 v = rng_u64(r);
		buf[n++] = (u8)(rng_one_in(r, 3) ? v & 7 : v);
	}
	memcpy(c->bytes, buf, n);
	memset(c->bytes + n, 0xcc, sizeof(c->bytes) - n);
	return n;
}

/* Gathers and scatters: an index register whose elements stay near the arena. */
static void solve_vsib(struct insn_case *c, const ZydisDecodedOperand *o, bool qword, struct rng *r)
{
	ZydisRegister reg = o->mem.index;
	c->vec_reg = (u8)ZydisRegisterGetId(reg);
	u32 spread = (u32)(rng_one_in(r, 4) ? 0x2800 : 0x600);
	u64 scale = o->mem.scale ? o->mem.scale : 1;
	for (unsigned i = 0; i < 16; i++) {
		s64 v = (s64)rng_below(r, spread) - (s64)(spread / 8);
		v /= (s64)scale;
		if (qword) {
			if (i < 8)
				c->vec_val[i] = (u64)v;
		} else {
			((u32 *)c->vec_val)[i] = (u32)v;
		}
	}
}

static void gen_branch(struct insn_case *c, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, struct rng *r)
{
	if (z->raw.imm[0].is_relative) {
		unsigned bytes = z->raw.imm[0].size / 8u;
		u64 next = c->rip + z->length, target = pick_branch_target(r, c);
		u64 rel = target - next;
		if (bytes == 1) {
			do
				rel = (u64)(s64)(s8)rng_u64(r);
			while (next + rel - (c->rip - 8) < 48);
		}
		if ((s64)rel != (s64)(s32)rel)
			rel = 0;
		memcpy(c->bytes + z->raw.imm[0].offset, &rel, bytes);
		if (rng_one_in(r, 4) && z->mnemonic != ZYDIS_MNEMONIC_JMP && z->mnemonic != ZYDIS_MNEMONIC_CALL)
			c->gpr[1] = rng_below(r, 3) | (rng_one_in(r, 2) ? rng_u64(r) << 32 : 0);
		return;
	}
	u64 words[5];
	u64 target = pick_branch_target(r, c);
	unsigned width = z->operand_width / 8u;
	bool far = z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
	u16 sel = rng_one_in(r, 2) ? SEL_USER_CS : pick_selector(r);
	if (z->mnemonic == ZYDIS_MNEMONIC_IRET || z->mnemonic == ZYDIS_MNEMONIC_IRETD || z->mnemonic == ZYDIS_MNEMONIC_IRETQ) {
		words[0] = target;
		words[1] = sel;
		/* No AC: Linux takes the #AC of an IRET that sets it for a split lock, and tries again for ever. */
		words[2] = (rng_u64(r) & 0x200cd5) | (rng_one_in(r, 2) ? 0x202 : (rng_u64(r) & 0x3b2a) | 2);
		words[3] = DATA_BASE + rng_below(r, DATA_RW_SIZE);
		words[4] = rng_one_in(r, 2) ? SEL_USER_DS : pick_selector(r);
		u8 b[40];
		for (unsigned i = 0; i < 5; i++)
			memcpy(b + i * width, &words[i], width);
		add_patch(c, c->gpr[4], b, (u8)(5 * width));
		return;
	}
	if (z->mnemonic == ZYDIS_MNEMONIC_RET) {
		u8 b[16];
		if (!far)
			width = 8;
		memcpy(b, &target, width);
		u64 s = sel;
		memcpy(b + width, &s, width);
		add_patch(c, c->gpr[4], b, (u8)(far ? 2 * width : width));
		return;
	}
	for (unsigned i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *o = &ops[i];
		if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		int n;
		reg_of_case(c, o->type == ZYDIS_OPERAND_TYPE_REGISTER ? o->reg.value : ZYDIS_REGISTER_NONE, &n);
		if (n >= 0)
			c->gpr[n] = target;
	}
}

/* Sets the content of an indirect branch's memory operand, known to lie at addr. */
static void patch_branch_operand(struct insn_case *c, const ZydisDecodedInstruction *z, u64 addr, struct rng *r)
{
	u8 b[10];
	u64 target = pick_branch_target(r, c);
	if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
		unsigned w = z->operand_width / 8u;
		u16 sel = rng_one_in(r, 2) ? SEL_USER_CS : pick_selector(r);
		memcpy(b, &target, w);
		memcpy(b + w, &sel, 2);
		add_patch(c, addr, b, (u8)(w + 2));
	} else {
		memcpy(b, &target, 8);
		add_patch(c, addr, b, 8);
	}
}

static u64 operand_address(const struct insn_case *c, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
	u64 a = real_disp(z, o);
	if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
		a += c->rip + z->length;
	a += reg_of_case(c, real_base(z, o), NULL);
	if (o->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		a += reg_of_case(c, o->mem.index, NULL) * o->mem.scale;
	if (z->mnemonic == ZYDIS_MNEMONIC_XLAT)
		a = c->gpr[3] + (u8)c->gpr[0];
	return (a & MASK(z->address_width)) + seg_base(c, o->mem.segment);
}

static bool is_bit_string(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	return (z->mnemonic == ZYDIS_MNEMONIC_BT || z->mnemonic == ZYDIS_MNEMONIC_BTS || z->mnemonic == ZYDIS_MNEMONIC_BTR ||
		z->mnemonic == ZYDIS_MNEMONIC_BTC) &&
	       ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static bool is_branch(const ZydisDecodedInstruction *z)
{
	return z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || z->mnemonic == ZYDIS_MNEMONIC_RET ||
	       z->mnemonic == ZYDIS_MNEMONIC_IRET || z->mnemonic == ZYDIS_MNEMONIC_IRETD || z->mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

/* Operands whose random values would only ever fault, or that must be drawn from a list. */
static void special_operands(struct insn_case *c, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, struct rng *r)
{
	u64 a = z->attributes;
	if ((a & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) && !rng_one_in(r, 8)) {
		c->gpr[1] = rng_below(r, rng_one_in(r, 4) ? 3000 : 40);
		if (rng_one_in(r, 4)) {
			/* Make the two sides of CMPS and SCAS equal for a while. */
			u8 v[48];
			memset(v, (int)rng_below(r, 3), sizeof(v));
			memset(&c->gpr[0], v[0], 8);
			add_patch(c, c->gpr[6], v, sizeof(v));
			add_patch(c, c->gpr[7], v, sizeof(v));
		}
	}
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_LLDT: case ZYDIS_MNEMONIC_LTR: {
		bool sreg = z->mnemonic != ZYDIS_MNEMONIC_MOV || (ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			     ZydisRegisterGetClass(ops[0].reg.value) == ZYDIS_REGCLASS_SEGMENT);
		const ZydisDecodedOperand *src = z->mnemonic == ZYDIS_MNEMONIC_VERR || z->mnemonic == ZYDIS_MNEMONIC_VERW ? &ops[0] : &ops[1];
		if (!sreg)
			break;
		u16 sel = pick_selector(r);
		int n = -1;
		if (src->type == ZYDIS_OPERAND_TYPE_REGISTER)
			reg_of_case(c, src->reg.value, &n);
		if (n >= 0)
			c->gpr[n] = (c->gpr[n] & ~0xffffull) | sel;
		else if (src->type == ZYDIS_OPERAND_TYPE_MEMORY)
			add_patch(c, operand_address(c, z, src), &sel, 2);
		break;
	}
	case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LFS: case ZYDIS_MNEMONIC_LGS: {
		u16 sel = pick_selector(r);
		add_patch(c, operand_address(c, z, &ops[1]) + z->operand_width / 8u, &sel, 2);
		break;
	}
	case ZYDIS_MNEMONIC_POP:
		if (ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(ops[0].reg.value) == ZYDIS_REGCLASS_SEGMENT) {
			u16 sel = pick_selector(r);
			add_patch(c, c->gpr[4], &sel, 2);
		}
		break;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR: {
		u32 v = (u32)(rng_u64(r) & (rng_one_in(r, 8) ? 0xffffffff : 0xffff));
		add_patch(c, operand_address(c, z, &ops[0]), &v, 4);
		break;
	}
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64: {
		u32 v = (u32)(rng_u64(r) & (rng_one_in(r, 8) ? 0xffffffff : 0xffff));
		add_patch(c, operand_address(c, z, &ops[0]) + 24, &v, 4);
		break;
	}
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: {
		u32 v = (u32)(rng_u64(r) & 0xffff);
		u64 hdr[3] = { rng_u64(r) & host.xcr0, 0, 0 };
		if (rng_one_in(r, 16))
			hdr[0] = rng_u64(r);
		if (rng_one_in(r, 16))
			hdr[1] = rng_u64(r);
		else if (rng_one_in(r, 4))
			hdr[1] = BIT(63) | (hdr[0] | (rng_u64(r) & host.xcr0));
		add_patch(c, operand_address(c, z, &ops[0]) + 24, &v, 4);
		u8 b[CASE_PATCH_MAX] = { 0 };
		memcpy(b, hdr, sizeof(hdr));
		add_patch(c, operand_address(c, z, &ops[0]) + 512, b, sizeof(b));
		/* The rest of the header (bytes 24..63) must be zero: the patch covers 48 bytes, the arena's line the rest. */
		if (rng_one_in(r, 2)) {
			c->gpr[0] = 0xffffffff;
			c->gpr[2] = 0xffffffff;
		}
		break;
	}
	default:
		break;
	}
	(void)a;
}

bool gen_case(struct insn_case *c, const struct insn_batch *b, u32 fi, struct rng *r)
{
	const struct form *f = &forms[fi];
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	for (unsigned attempt = 0; attempt < 16; attempt++) {
		const struct tmpl *t = &f->t[rng_below(r, f->n_templates)];
		memset(c, 0, offsetof(struct insn_case, vec_val));
		randomise_bytes(c, t, r, attempt);
		gen_state(c, r);
		if (!gen_decode(c->bytes, 15, &z, ops))
			continue;
		s64 form = gen_form_of_decoded(&z, ops);
		if (form != fi && attempt < 12)
			continue;
		if (form < 0 || gen_excluded(&z, ops))
			continue;
		c->form = (u32)form;
		c->len = z.length;
		memset(c->bytes + c->len, 0xcc, sizeof(c->bytes) - c->len);
		c->rip = pick_rip(r, z.length);
		bool locked = z.attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_XACQUIRE | ZYDIS_ATTRIB_HAS_XRELEASE);
		locked |= z.mnemonic == ZYDIS_MNEMONIC_XCHG;
		/* Hidden operands first: explicit ones then have the last word on shared registers. */
		for (int pass = 0; pass < 2; pass++)
			for (unsigned i = 0; i < z.operand_count; i++) {
				const ZydisDecodedOperand *o = &ops[i];
				if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
					continue;
				if ((o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) != pass)
					continue;
				if (is_stack_pointer(o->mem.base) && (!pass || !rng_one_in(r, 3)) && o->mem.disp.value < 4096 &&
				    o->mem.disp.value > -4096 && o->mem.index == ZYDIS_REGISTER_NONE)
					continue; /* RSP is already a good address */
				u64 target = pick_target(r, operand_size(&z, o), locked, z.address_width == 64);
				if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
					solve_vsib(c, o, z.opcode & 1, r);
				solve_operand(c, &z, o, target, r);
			}
		if (is_bit_string(&z, ops)) {
			int n;
			reg_of_case(c, ops[1].reg.value, &n);
			s64 bit = (s64)rng_below(r, 0x4000) - 0x2000;
			if (rng_one_in(r, 8))
				bit = (s64)(s16)rng_u64(r);
			if (n >= 0)
				c->gpr[n] = (u64)bit;
		}
		/* The displacement may have been rewritten: decode again. */
		if (!gen_decode(c->bytes, 15, &z, ops) || z.length != c->len)
			continue;
		if (is_branch(&z)) {
			gen_branch(c, &z, ops, r);
			for (unsigned i = 0; i < z.operand_count; i++)
				if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
					patch_branch_operand(c, &z, operand_address(c, &z, &ops[i]), r);
			if (!gen_decode(c->bytes, 15, &z, ops))
				continue;
		}
		special_operands(c, &z, ops, r);
		bool ok = operand_range_ok(c->gpr[4]);
		/* Fast strings that overwrite themselves stop somewhere in a cache line, with registers that do not say where
		 * (seen on Intel): no oracle. */
		if ((z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) &&
		    (c->gpr[7] & MASK(z.address_width)) - (CODE_BASE - PAGE_SIZE) < CODE_SIZE + 2 * PAGE_SIZE)
			ok = false;
		bool split = false;
		for (unsigned i = 0; i < z.operand_count; i++) {
			const ZydisDecodedOperand *o = &ops[i];
			if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
				continue;
			u64 addr = operand_address(c, &z, o);
			ok &= operand_range_ok(addr);
			unsigned size = operand_size(&z, o);
			if (size && (addr & 63) + size > 64)
				split = true;
			if (o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT && addr < c->rip + c->len && addr + size > c->rip)
				ok = false; /* would rewrite itself: directed.c does that on purpose */
		}
		/* Split locks are slow for everybody on the machine (and #AC where the kernel says so): a few only. */
		if (locked && split && !rng_one_in(r, 8))
			continue;
		if (ok)
			return true;
	}
	return false;
}

bool gen_garbage(struct insn_case *c, const struct insn_batch *b, struct rng *r)
{
	memset(c, 0, offsetof(struct insn_case, vec_val));
	gen_state(c, r);
	unsigned n = 0;
	static const u8 pfx[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x3e, 0x64, 0x40, 0x48, 0x4f };
	memset(c->bytes, 0xcc, sizeof(c->bytes));
	while (rng_one_in(r, 3) && n < 18)
		c->bytes[n++] = pfx[rng_below(r, ARRAY_SIZE(pfx))];
	if (rng_one_in(r, 16))
		while (n < 14)
			c->bytes[n++] = pfx[rng_below(r, ARRAY_SIZE(pfx))];
	switch (rng_below(r, 6)) {
	case 0: c->bytes[n++] = 0x0f; break;
	case 1: c->bytes[n++] = 0x0f; c->bytes[n++] = 0x38; break;
	case 2: c->bytes[n++] = 0x0f; c->bytes[n++] = 0x3a; break;
	case 3: c->bytes[n++] = 0xc4; break;
	case 4: c->bytes[n++] = 0x62; break;
	default: break;
	}
	while (n < 24)
		c->bytes[n++] = (u8)rng_u64(r);
	c->len = (u8)n;
	c->form = FORM_GARBAGE;
	c->rip = CODE_BASE + 0x200 + rng_below(r, 512);
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	/* Only what Zydis does not know: everything else has operands to take care of. */
	if (gen_decode(c->bytes, 15, &z, ops))
		return false;
	/* Zydis 4.0 has no APX (REX2, map 4) and no 3DNow! suffix checks; hosts may execute those. */
	for (unsigned i = 0; i < n; i++)
		if (c->bytes[i] == 0xd5 || (c->bytes[i] == 0x62 && (c->bytes[i + 1] & 7) == 4))
			return false;
	return true;
}
