/* FXSAVE, FXRSTOR, the XSAVE family, FNSTENV, FNSAVE, FLDENV, FRSTOR.
 *
 * All work on the saved state (c->xsave), never on live registers: the guest's x87 pointers are in it instead of the
 * host's, and XSAVEOPT's "modified" optimization, which the processor ties to addresses, cannot go wrong.  The images are
 * those of SDM vol. 1, 8.1.10 (environments), 10.5.1 (FXSAVE) and 13.4 to 13.12 (XSAVE). */
#include "cpu/native_op.h"

enum { FX_SIZE = 512 };

/* ---- guest memory of any length; everything is checked before the first byte is written ---- */

static int check_area(struct cpu *c, const struct insn *i, u64 ea, unsigned size, enum access a)
{
	/* Where processors look first is the address of a page fault: FXSAVE and the XSAVE family at the last byte, other
	 * stores at the first and then at the last. */
	int r = size >= FX_SIZE ? 0 : mem_probe(c, i, ea, 1, a);
	if (!r && (size >= FX_SIZE || a == ACC_W))
		r = mem_probe(c, i, ea + size - 1, 1, a);
	if (r)
		return r;
	for (unsigned k = 0; k < size;) {
		unsigned n = (unsigned)(PAGE_SIZE - ((ea + k) & ~PAGE_MASK));
		if (n > size - k)
			n = size - k;
		r = mem_probe(c, i, ea + k, 1, a);
		if (r)
			return r;
		k += n;
	}
	return 0;
}

static int copy_area(struct cpu *c, const struct insn *i, u64 ea, void *buf, unsigned size, enum access a)
{
	for (unsigned k = 0; k < size;) {
		unsigned n = (unsigned)(PAGE_SIZE - ((ea + k) & ~PAGE_MASK));
		void *p;
		if (n > size - k)
			n = size - k;
		int r = mem_ptr(c, i, ea + k, n, a, &p);
		if (r)
			return r;
		if (!p) { /* not RAM */
			if (n > 64)
				n = 64;
			r = a == ACC_W ? mem_write_slow(c, i, ea + k, (u8 *)buf + k, n) :
					 mem_read_slow(c, i, ea + k, (u8 *)buf + k, n);
			if (r)
				return r;
		} else if (a == ACC_W) {
			native_copy(p, (u8 *)buf + k, n);
		} else {
			native_copy((u8 *)buf + k, p, n);
		}
		k += n;
	}
	return 0;
}

/* Vector registers that exist in the current mode. */
static unsigned vectors(const struct cpu *c)
{
	return cpu_code64(c) ? 16 : 8;
}

/* ---- x87 pointers in the two FXSAVE layouts ---- */

static void put_pointers(struct cpu *c, u8 *img, bool form64)
{
	struct native *n = c->native;
	*(u16 *)(img + FX_FOP) = *(u16 *)(c->xsave + FX_FOP);
	if (form64) {
		*(u64 *)(img + FX_FIP) = c->fip;
		*(u64 *)(img + FX_FDP) = c->fdp;
		return;
	}
	*(u32 *)(img + FX_FIP) = (u32)c->fip;
	*(u32 *)(img + FX_FCS) = n->fcs_fds ? n->fcs : 0;
	*(u32 *)(img + FX_FDP) = (u32)c->fdp;
	*(u32 *)(img + FX_FDS) = n->fcs_fds ? n->fds : 0;
}

static void get_pointers(struct cpu *c, const u8 *img, bool form64)
{
	struct native *n = c->native;
	*(u16 *)(c->xsave + FX_FOP) = *(const u16 *)(img + FX_FOP) & 0x7ff;
	if (form64) {
		/* FIP is kept as a linear address of the host's width. */
		c->fip = (u64)(*(const s64 *)(img + FX_FIP) << n->linear_unused >> n->linear_unused);
		c->fdp = *(const u64 *)(img + FX_FDP);
		n->fcs = n->fds = 0;
	} else {
		c->fip = *(const u32 *)(img + FX_FIP);
		c->fdp = *(const u32 *)(img + FX_FDP);
		n->fcs = *(const u16 *)(img + FX_FCS);
		n->fds = *(const u16 *)(img + FX_FDS);
	}
}

/* x87 part of the saved state into a legacy region and back: everything but MXCSR and XMM. */
static void x87_out(struct cpu *c, u8 *img, bool form64)
{
	const u8 *x = fpu_component(c, XC_X87);
	*(u32 *)(img + FX_FCW) = *(const u32 *)(x + FX_FCW);
	img[FX_FTW] = x[FX_FTW];
	img[FX_FTW + 1] = 0;
	put_pointers(c, img, form64);
	native_copy(img + FX_ST, x + FX_ST, FX_XMM - FX_ST);
}

static void x87_in(struct cpu *c, const u8 *img, bool form64)
{
	u8 *x = fpu_component(c, XC_X87);
	*(u32 *)(x + FX_FCW) = *(const u32 *)(img + FX_FCW);
	x[FX_FTW] = img[FX_FTW];
	get_pointers(c, img, form64);
	native_copy(x + FX_ST, img + FX_ST, FX_XMM - FX_ST);
}

static void x87_init(struct cpu *c)
{
	fpu_component(c, XC_X87);
	*(u64 *)(c->xsave + XS_BV) &= ~BIT(XC_X87);
	*(u16 *)(c->xsave + FX_FOP) = 0;
	c->fip = c->fdp = 0;
	c->native->fcs = c->native->fds = 0;
}

static int begin(struct cpu *c, const struct insn *i, unsigned size, unsigned align, enum access a, u64 *ea)
{
	const struct native_op *op = i->stub;
	int fault = native_enabled_slow(c, i, op->check);
	if (fault)
		return fault;
	*ea = insn_ea(c, i, size, a, &fault);
	if (fault)
		return fault;
	if (cpu_long_mode(c) && !gva_canonical(*ea)) {
		fault = mem_probe(c, i, *ea, 1, a);
		if (fault)
			return fault;
	}
	/* With alignment checks on, #AC takes the place of #PF, not of #GP. */
	if (native_alignment_due(c, *ea, align) && mem_probe(c, i, *ea, 1, a) == STEP_FAULT)
		return exc_raise_error(c, i, VEC_AC, 0);
	return *ea & (align - 1) ? exc_gp(c, i, 0) : 0;
}

int fpu_op_fxsave(struct cpu *c, const struct insn *i)
{
	u8 img[FX_XMM_END];
	u64 ea;
	int r = begin(c, i, FX_SIZE, 16, ACC_W, &ea);
	if (r)
		return r;
	/* Bytes behind the XMM registers, and XMM8-15 outside 64-bit mode, are not written. */
	unsigned size = FX_XMM + 16 * vectors(c);
	r = check_area(c, i, ea, FX_SIZE, ACC_W);
	if (r)
		return r;
	x87_out(c, img, i->aux & FORM_64);
	native_copy(img + FX_XMM, fpu_component(c, XC_SSE), 256);
	*(u32 *)(img + FX_MXCSR) = *(u32 *)(c->xsave + FX_MXCSR);
	*(u32 *)(img + FX_MXCSR_MASK) = c->native->mxcsr_mask;
	r = copy_area(c, i, ea, img, size, ACC_W);
	if (r)
		return r;
	NEXT(c, i);
}

int fpu_op_fxrstor(struct cpu *c, const struct insn *i)
{
	u8 img[FX_SIZE];
	u64 ea;
	int r = begin(c, i, FX_SIZE, 16, ACC_R, &ea);
	if (r)
		return r;
	r = check_area(c, i, ea, FX_SIZE, ACC_R);
	if (!r)
		r = copy_area(c, i, ea, img, FX_SIZE, ACC_R);
	if (r)
		return r;
	u32 mxcsr = *(u32 *)(img + FX_MXCSR);
	if (mxcsr & ~c->native->mxcsr_mask)
		return exc_gp(c, i, 0);
	x87_in(c, img, i->aux & FORM_64);
	native_copy(fpu_component(c, XC_SSE), img + FX_XMM, 16 * vectors(c));
	*(u32 *)(c->xsave + FX_MXCSR) = mxcsr;
	fpu_load(c); /* reserved and derived bits become what the processor makes of them */
	NEXT(c, i);
}

/* ---- XSAVE family ---- */

/* Offset of each component of bv's format in an area, and the area's size.  compact: XCOMP_BV's components packed. */
static unsigned layout(const struct native *n, u64 xcomp, bool compact, unsigned off[NATIVE_COMPONENTS])
{
	unsigned end = XS_HEADER_END;
	for (unsigned k = XC_AVX; k < NATIVE_COMPONENTS; k++) {
		off[k] = 0;
		if (!(xcomp & BIT(k)))
			continue;
		if (compact) {
			if (n->comp_aligned[k])
				end = ALIGN_UP(end, 64u);
			off[k] = end;
			end += n->comp_size[k];
		} else {
			off[k] = n->comp_offset[k];
			if (off[k] + n->comp_size[k] > end)
				end = off[k] + n->comp_size[k];
		}
	}
	return end;
}

/* Bytes of a component beyond XMM that exist in the current mode. */
static unsigned mode_size(const struct cpu *c, unsigned comp)
{
	unsigned size = c->native->comp_size[comp];
	if (cpu_code64(c))
		return size;
	switch (comp) {
	case XC_AVX: return 8 * 16;
	case XC_ZMM_HI256: return 8 * 32;
	case XC_HI16_ZMM: return 0;
	default: return size;
	}
}

int fpu_op_xsave(struct cpu *c, const struct insn *i)
{
	struct native *n = c->native;
	bool compact = i->aux & FORM_COMPACT, form64 = i->aux & FORM_64;
	u64 rfbm = ((u64)(u32)c->r[RDX] << 32 | (u32)c->r[RAX]) & c->xcr0;
	unsigned off[NATIVE_COMPONENTS];
	unsigned size = layout(n, rfbm, compact, off);
	u8 legacy[FX_XMM_END], header[64];
	u64 ea;
	int r = native_enabled_slow(c, i, NCHK_XSAVE);
	if (r)
		return r;
	if ((i->aux & FORM_SUPERVISOR) && CPL(c))
		return exc_gp(c, i, 0);
	r = begin(c, i, size, 64, ACC_W, &ea);
	if (r)
		return r;
	r = check_area(c, i, ea, size, ACC_W);
	if (r)
		return r;
	fpu_save(c);
	u64 inuse = *(u64 *)(c->xsave + XS_BV);
	u32 mxcsr = *(u32 *)(c->xsave + FX_MXCSR);
	if (mxcsr != MXCSR_INIT)
		inuse |= BIT(XC_SSE);
	/* Components in their initial state: plain XSAVE writes them, the others leave them out. */
	u64 data = i->aux & (FORM_OPT | FORM_COMPACT) ? rfbm & inuse : rfbm;

	/* The header: XSAVE and XSAVEOPT change only XSTATE_BV's requested bits. */
	native_fill(header, 0, sizeof(header));
	u64 *bv = (u64 *)header;
	if (compact) {
		bv[0] = rfbm & inuse;
		bv[1] = rfbm | BIT(63);
	} else {
		r = copy_area(c, i, ea + XS_BV, header, 8, ACC_R);
		if (r)
			return r;
		bv[0] = (bv[0] & ~rfbm) | (rfbm & inuse);
	}

	if (data & BIT(XC_X87)) {
		x87_out(c, legacy, form64);
		r = copy_area(c, i, ea, legacy, FX_MXCSR, ACC_W);
		if (!r)
			r = copy_area(c, i, ea + FX_ST, legacy + FX_ST, FX_XMM - FX_ST, ACC_W);
		if (!(inuse & BIT(XC_X87)))
			*(u64 *)(c->xsave + XS_BV) &= ~BIT(XC_X87); /* set by looking at it */
		if (r)
			return r;
	}
	if (compact ? data & BIT(XC_SSE) : rfbm & (BIT(XC_SSE) | BIT(XC_AVX))) {
		u32 m[2] = { mxcsr, n->mxcsr_mask };
		r = copy_area(c, i, ea + FX_MXCSR, m, 8, ACC_W);
		if (r)
			return r;
	}
	for (unsigned k = XC_SSE; k < NATIVE_COMPONENTS; k++) {
		if (!(data & BIT(k)))
			continue;
		u8 *p = fpu_component(c, k);
		if (!p)
			continue;
		r = k == XC_SSE ? copy_area(c, i, ea + FX_XMM, p, 16 * vectors(c), ACC_W) :
				  copy_area(c, i, ea + off[k], p, mode_size(c, k), ACC_W);
		if (!(inuse & BIT(k)))
			*(u64 *)(c->xsave + XS_BV) &= ~BIT(k);
		if (r)
			return r;
	}
	/* XSAVEC leaves bytes 63:16 of the header alone, XSAVES clears them. */
	r = copy_area(c, i, ea + XS_BV, header, i->aux & FORM_SUPERVISOR ? 64 : compact ? 16 : 8, ACC_W);
	if (r)
		return r;
	NEXT(c, i);
}

int fpu_op_xrstor(struct cpu *c, const struct insn *i)
{
	struct native *n = c->native;
	bool form64 = i->aux & FORM_64;
	u64 rfbm = ((u64)(u32)c->r[RDX] << 32 | (u32)c->r[RAX]) & c->xcr0;
	unsigned off[NATIVE_COMPONENTS];
	u8 legacy[XS_HEADER_END];
	u64 ea;
	int r = native_enabled_slow(c, i, NCHK_XSAVE);
	if (r)
		return r;
	if ((i->aux & FORM_SUPERVISOR) && CPL(c))
		return exc_gp(c, i, 0);
	r = begin(c, i, XS_HEADER_END, 64, ACC_R, &ea);
	if (r)
		return r;
	r = copy_area(c, i, ea, legacy, XS_HEADER_END, ACC_R);
	if (r)
		return r;

	/* Header (SDM 13.8.1, 13.8.2, 13.12) */
	const u64 *h = (const u64 *)(legacy + XS_BV);
	u64 bv = h[0], xcomp = h[1];
	bool compact = xcomp & BIT(63);
	bool bad;
	if (compact)
		bad = (xcomp & ~BIT(63) & ~c->xcr0) || (bv & ~xcomp) || (h[2] | h[3] | h[4] | h[5] | h[6] | h[7]);
	else
		bad = (bv & ~c->xcr0) || xcomp || h[2] || (i->aux & FORM_SUPERVISOR);
	if (bad)
		return exc_gp(c, i, 0);
	u64 from_memory = rfbm & bv;
	u32 mxcsr = *(u32 *)(legacy + FX_MXCSR);
	bool load_mxcsr = compact ? from_memory & BIT(XC_SSE) : rfbm & (BIT(XC_SSE) | BIT(XC_AVX));
	if (load_mxcsr && (mxcsr & ~n->mxcsr_mask))
		return exc_gp(c, i, 0);

	/* All of what will be read, before anything changes. */
	unsigned size = layout(n, compact ? xcomp : rfbm, compact, off);
	r = check_area(c, i, ea, size, ACC_R);
	if (r)
		return r;
	fpu_save(c);
	u64 *live_bv = (u64 *)(c->xsave + XS_BV);
	for (unsigned k = XC_AVX; k < NATIVE_COMPONENTS; k++) {
		if (!(rfbm & BIT(k)) || !(n->host_xcr0 & BIT(k)))
			continue;
		u8 *p = fpu_component(c, k);
		if (from_memory & BIT(k)) {
			r = copy_area(c, i, ea + off[k], p, mode_size(c, k), ACC_R);
			if (r)
				return r;
		} else if (cpu_code64(c)) {
			*live_bv &= ~BIT(k);
		} else {
			native_fill(p, 0, mode_size(c, k));
		}
	}
	if (rfbm & BIT(XC_X87)) {
		if (from_memory & BIT(XC_X87))
			x87_in(c, legacy, form64);
		else
			x87_init(c);
	}
	if (rfbm & BIT(XC_SSE)) {
		u8 *p = fpu_component(c, XC_SSE);
		if (from_memory & BIT(XC_SSE))
			native_copy(p, legacy + FX_XMM, 16 * vectors(c));
		else
			native_fill(p, 0, 16 * vectors(c));
		if (compact && !(from_memory & BIT(XC_SSE)))
			*(u32 *)(c->xsave + FX_MXCSR) = MXCSR_INIT;
	}
	if (load_mxcsr)
		*(u32 *)(c->xsave + FX_MXCSR) = mxcsr;
	fpu_load(c); /* reserved and derived bits become what the processor makes of them */
	NEXT(c, i);
}

/* ---- x87 environments (SDM vol. 1, figures 8-9 to 8-12) ---- */

/* The host's image is always the 32-bit protected-mode one: seven dwords (control, status, tag, FIP, FCS and FOP, FDP,
 * FDS), for FNSAVE followed by the eight registers. */
enum { ENV32 = 28, ENV16 = 14, REGS = 80 };

static bool real_format(const struct cpu *c)
{
	return cpu_real(c) || cpu_vm86(c);
}

static unsigned env_size(const struct insn *i, unsigned *env)
{
	const struct native_op *op = i->stub;
	*env = i->opsize == 2 ? ENV16 : ENV32;
	return op->size >= REGS ? *env + REGS : *env;
}

int fpu_op_fnstenv(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	struct native *n = c->native;
	unsigned env, size = env_size(i, &env);
	u8 *raw = n->scratch + PAGE_SIZE, out[ENV32 + REGS];
	int fault = native_enabled_slow(c, i, op->check);
	if (fault)
		return fault;
	u64 ea = insn_ea(c, i, size, ACC_W, &fault);
	if (fault)
		return fault;
	fault = native_alignment_due(c, ea, i->opsize == 2 ? 2 : 4) ? exc_raise_error(c, i, VEC_AC, 0) :
								      check_area(c, i, ea, size, ACC_W);
	if (fault)
		return fault;
	fpu_load(c);
	if (native_run(c, op, raw) == STUB_FAULT)
		return native_raise(c, i);
	const u32 *r = (const u32 *)raw;
	u64 fip = c->fip, fdp = c->fdp;
	u32 fcs = n->fcs_fds ? n->fcs : 0, fds = n->fcs_fds ? n->fds : 0, fop = n->fop & 0x7ff;
	if (real_format(c)) {
		fip += (u64)fcs << 4;
		fdp += (u64)fds << 4;
	}
	if (env == ENV32) {
		u32 *o = (u32 *)out;
		o[0] = r[0];
		o[1] = r[1];
		o[2] = r[2];
		if (real_format(c)) {
			o[3] = 0xffff0000 | (fip & 0xffff);
			o[4] = (u32)(fip >> 16) << 12 | fop;
			o[5] = 0xffff0000 | (fdp & 0xffff);
			o[6] = (u32)(fdp >> 16) << 12;
		} else {
			o[3] = (u32)fip;
			o[4] = fop << 16 | fcs;
			o[5] = (u32)fdp;
			o[6] = 0xffff0000 | fds;
		}
	} else {
		u16 *o = (u16 *)out;
		o[0] = (u16)r[0];
		o[1] = (u16)r[1];
		o[2] = (u16)r[2];
		o[3] = (u16)fip;
		o[4] = real_format(c) ? (u16)((fip >> 16 & 15) << 12 | fop) : (u16)fcs;
		o[5] = (u16)fdp;
		o[6] = real_format(c) ? (u16)((fdp >> 16 & 15) << 12) : (u16)fds;
	}
	if (size > env) {
		native_copy(out + env, raw + ENV32, REGS);
		c->fip = c->fdp = 0; /* FNSAVE initializes */
		n->fop = n->fcs = n->fds = 0;
	}
	fault = copy_area(c, i, ea, out, size, ACC_W);
	if (fault)
		return fault;
	NEXT(c, i);
}

/* FLDENV and FRSTOR wait: a pending x87 exception comes before a fault of their operand. */
static int pending_first(struct cpu *c, const struct insn *i, int fault)
{
	u16 fsw;
	if (fault != STEP_FAULT)
		return fault;
	fpu_load(c);
	__asm__ volatile("fnstsw %0" : "=m"(fsw));
	if (!(fsw & 0x80))
		return fault;
	c->native->fault.trapno = VEC_MF;
	return native_raise(c, i);
}

int fpu_op_fldenv(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	struct native *n = c->native;
	unsigned env, size = env_size(i, &env);
	u8 *raw = n->scratch + PAGE_SIZE, in[ENV32 + REGS];
	u64 fip, fdp;
	u32 fcs = 0, fds = 0, fop = 0;
	int fault = native_enabled_slow(c, i, op->check);
	if (fault)
		return fault;
	u64 ea = insn_ea(c, i, size, ACC_R, &fault);
	if (!fault)
		fault = native_alignment_due(c, ea, i->opsize == 2 ? 2 : 4) ? exc_raise_error(c, i, VEC_AC, 0) :
									      check_area(c, i, ea, size, ACC_R);
	if (!fault)
		fault = copy_area(c, i, ea, in, size, ACC_R);
	if (fault)
		return pending_first(c, i, fault);
	u32 *r = (u32 *)raw;
	native_fill(raw, 0, ENV32);
	if (env == ENV32) {
		const u32 *v = (const u32 *)in;
		r[0] = v[0];
		r[1] = v[1];
		r[2] = v[2];
		if (real_format(c)) {
			fip = (v[3] & 0xffff) | (v[4] >> 12 & 0xffff) << 16;
			fop = v[4];
			fdp = (v[5] & 0xffff) | (v[6] >> 12 & 0xffff) << 16;
		} else {
			fip = v[3];
			fcs = v[4] & 0xffff;
			fop = v[4] >> 16;
			fdp = v[5];
			fds = v[6] & 0xffff;
		}
	} else {
		const u16 *v = (const u16 *)in;
		r[0] = v[0];
		r[1] = v[1];
		r[2] = v[2];
		fip = v[3];
		fdp = v[5];
		if (real_format(c)) {
			fip |= (u64)(v[4] >> 12) << 16;
			fop = v[4];
			fdp |= (u64)(v[6] >> 12) << 16;
		} else {
			fcs = v[4];
			fds = v[6];
		}
	}
	if (size > env)
		native_copy(raw + ENV32, in + env, REGS);
	fpu_load(c);
	if (native_run(c, op, raw) == STUB_FAULT)
		return native_raise(c, i);
	c->fip = fip;
	c->fdp = fdp;
	n->fop = fop & 0x7ff;
	n->fcs = (u16)fcs;
	n->fds = (u16)fds;
	NEXT(c, i);
}
