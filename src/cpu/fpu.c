/* Moving the guest's x87 and vector state between the host's registers and c->xsave. */
#include "cpu/fpu.h"
#include "cpu/native_op.h"

static void host_cpuid(u32 leaf, u32 sub, u32 r[4])
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

u64 fpu_host_xcr0(void)
{
	u32 r[4];
	host_cpuid(1, 0, r);
	if (!(r[2] & BIT(27))) /* OSXSAVE */
		return 0;
	u32 lo, hi;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo & XCR0_OFFERED;
}

u32 fpu_state_size(void)
{
	u64 xcr0 = fpu_host_xcr0();
	u32 size = XS_HEADER_END;
	for (u32 i = XC_AVX; i < NATIVE_COMPONENTS; i++) {
		u32 r[4];
		if (!(xcr0 & BIT(i)))
			continue;
		host_cpuid(0xd, i, r);
		if (r[0] + r[1] > size)
			size = r[0] + r[1];
	}
	return ALIGN_UP(size, 64u);
}

/* Does the host keep FOP and FDP for every instruction or only for unmasked exceptions? (SDM 8.1.8, 8.1.9) */
static void probe_x87(struct native *n)
{
	u8 env[28];
	u32 one = 0x3f800000;
	__asm__ volatile("fninit; flds %1; fnstenv %0; fninit" : "=m"(env) : "m"(one));
	n->fop_always = *(u16 *)(env + 18) & 0x7ff;
	n->fdp_always = *(u32 *)(env + 20) != 0;
}

void native_init(struct native *n, void *rw, void *rx, size_t size, void *scratch)
{
	u32 r[4];
	*n = (struct native){ .rw = rw, .rx = rx, .size = (u32)size, .scratch = scratch, .host_xcr0 = fpu_host_xcr0() };
	ASSERT(n->host_xcr0 & BIT(XC_SSE)); /* the caller has checked the host: XSAVE is a requirement */
	n->comp_offset[XC_SSE] = FX_XMM;
	n->comp_size[XC_SSE] = 256;
	n->comp_size[XC_X87] = FX_XMM;
	for (u32 i = XC_AVX; i < NATIVE_COMPONENTS; i++) {
		if (!(n->host_xcr0 & BIT(i)))
			continue;
		host_cpuid(0xd, i, r);
		n->comp_size[i] = r[0];
		n->comp_offset[i] = r[1];
		n->comp_aligned[i] = r[2] & BIT(1);
	}
	host_cpuid(0x80000008, 0, r);
	n->linear_unused = (u8)(64 - (r[0] >> 8 & 0xff));
	host_cpuid(7, 0, r);
	n->fcs_fds = !(r[1] & BIT(13));
	n->avx2 = r[1] & BIT(5);
	host_cpuid(0xd, 1, r);
	n->xsave_features = r[0];
	probe_x87(n);

	/* MXCSR_MASK as FXSAVE reports it; 0 means 0xffbf (SDM 11.6.6). */
	u8 *img = n->scratch + PAGE_SIZE;
	native_fill(img, 0, 512);
	__asm__ volatile("fxsave64 %0" : "=m"(*(u8(*)[512])img));
	n->mxcsr_mask = *(u32 *)(img + FX_MXCSR_MASK);
	if (!n->mxcsr_mask)
		n->mxcsr_mask = 0xffbf;
}

void native_reset(struct native *n)
{
	n->used = 0;
	n->running = NULL;
}

void fpu_reset(struct cpu *c, bool init)
{
	if (init)
		return;
	c->fpu_live = false;
	native_fill(c->xsave, 0, c->xsave_size);
	*(u16 *)(c->xsave + FX_FCW) = FCW_RESET;
	c->xsave[FX_FTW] = 0xff; /* power-on: all registers valid, +0.0 */
	*(u32 *)(c->xsave + FX_MXCSR) = MXCSR_INIT;
	*(u64 *)(c->xsave + XS_BV) = BIT(XC_X87) | BIT(XC_SSE);
	c->fip = c->fdp = 0;
}

void fpu_load_slow(struct cpu *c)
{
	struct native *n = c->native;
	u8 *x = c->xsave;
	*(u64 *)(x + FX_FIP) = c->fip;
	*(u64 *)(x + FX_FDP) = c->fdp;
	n->fop = *(u16 *)(x + FX_FOP);
	__asm__ volatile("xrstor64 %0"
			 :
			 : "m"(*(u8(*)[XS_HEADER_END])x), "a"((u32)n->host_xcr0), "d"((u32)(n->host_xcr0 >> 32))
			 : "memory");
	c->fpu_live = true;
}

void fpu_save_slow(struct cpu *c)
{
	struct native *n = c->native;
	u8 *x = c->xsave;
	u32 mxcsr = MXCSR_INIT;
	__asm__ volatile("xsave64 %0"
			 : "+m"(*(u8(*)[XS_HEADER_END])x)
			 : "a"((u32)n->host_xcr0), "d"((u32)(n->host_xcr0 >> 32))
			 : "memory");
	__asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
	if (n->host_xcr0 & BIT(XC_AVX))
		__asm__ volatile("vzeroupper");
	/* The host's addresses of stubs and buffers end here. */
	*(u64 *)(x + FX_FIP) = c->fip;
	*(u64 *)(x + FX_FDP) = c->fdp;
	*(u16 *)(x + FX_FOP) = n->fop;
	c->fpu_live = false;
}

u8 *fpu_component(struct cpu *c, enum xcomp comp)
{
	struct native *n = c->native;
	fpu_save(c);
	if (!(n->host_xcr0 & BIT(comp)))
		return NULL;
	u8 *p = c->xsave + n->comp_offset[comp];
	u64 *bv = (u64 *)(c->xsave + XS_BV);
	if (!(*bv & BIT(comp))) {
		if (comp == XC_X87) {
			native_fill(p, 0, FX_MXCSR);
			native_fill(p + FX_ST, 0, FX_XMM - FX_ST);
			*(u16 *)(p + FX_FCW) = FCW_INIT;
		} else {
			native_fill(p, 0, n->comp_size[comp]);
		}
		*bv |= BIT(comp);
	}
	return p;
}

void fpu_get_vector(struct cpu *c, unsigned v, u8 out[64])
{
	u8 *p;
	native_fill(out, 0, 64);
	if (v >= 16) {
		p = fpu_component(c, XC_HI16_ZMM);
		if (p && v < 32)
			native_copy(out, p + (v - 16) * 64, 64);
		return;
	}
	native_copy(out, fpu_component(c, XC_SSE) + v * 16, 16);
	p = fpu_component(c, XC_AVX);
	if (p)
		native_copy(out + 16, p + v * 16, 16);
	p = fpu_component(c, XC_ZMM_HI256);
	if (p)
		native_copy(out + 32, p + v * 32, 32);
}

void fpu_set_vector(struct cpu *c, unsigned v, const u8 in[64])
{
	u8 *p;
	if (v >= 16) {
		p = fpu_component(c, XC_HI16_ZMM);
		if (p && v < 32)
			native_copy(p + (v - 16) * 64, in, 64);
		return;
	}
	native_copy(fpu_component(c, XC_SSE) + v * 16, in, 16);
	p = fpu_component(c, XC_AVX);
	if (p)
		native_copy(p + v * 16, in + 16, 16);
	p = fpu_component(c, XC_ZMM_HI256);
	if (p)
		native_copy(p + v * 32, in + 32, 32);
}

u64 fpu_get_k(struct cpu *c, unsigned k)
{
	const u8 *p = fpu_component(c, XC_OPMASK);
	return p ? ((const u64 *)p)[k & 7] : 0;
}

void fpu_set_k(struct cpu *c, unsigned k, u64 v)
{
	u8 *p = fpu_component(c, XC_OPMASK);
	if (p)
		((u64 *)p)[k & 7] = v;
}

void fpu_get_st(struct cpu *c, unsigned r, u8 out[10])
{
	native_copy(out, fpu_component(c, XC_X87) + FX_ST + (r & 7) * 16, 10);
}

void fpu_set_st(struct cpu *c, unsigned r, const u8 in[10])
{
	native_copy(fpu_component(c, XC_X87) + FX_ST + (r & 7) * 16, in, 10);
}

u32 fpu_get_mxcsr(struct cpu *c)
{
	fpu_save(c);
	return *(u32 *)(c->xsave + FX_MXCSR);
}

bool fpu_set_mxcsr(struct cpu *c, u32 v)
{
	fpu_save(c);
	if (v & ~c->native->mxcsr_mask)
		return false;
	*(u32 *)(c->xsave + FX_MXCSR) = v;
	return true;
}

u16 fpu_get_fcw(struct cpu *c)
{
	return *(u16 *)(fpu_component(c, XC_X87) + FX_FCW);
}

u16 fpu_get_fsw(struct cpu *c)
{
	return *(u16 *)(fpu_component(c, XC_X87) + FX_FSW);
}
