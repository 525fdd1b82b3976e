/* The guest's x87 and vector state: where it is and how to look at it.
 *
 * While c->fpu_live it is in the host's registers; otherwise in c->xsave (XSAVE standard format, 64-bit FXSAVE header
 * with the guest's FIP/FDP/FOP).  All of the host's XCR0 that the guest may have is saved, whatever the guest's XCR0
 * says: a component that the guest disabled keeps its contents, as on hardware. */
#ifndef CPU_FPU_H
#define CPU_FPU_H

#include "cpu/cpu.h"

#define MXCSR_INIT 0x1f80u
#define FCW_INIT 0x037f
#define FCW_RESET 0x0040 /* SDM table 9-1 */

/* XSAVE state components (SDM 13.1) */
enum xcomp { XC_X87, XC_SSE, XC_AVX, XC_BNDREGS, XC_BNDCSR, XC_OPMASK, XC_ZMM_HI256, XC_HI16_ZMM };
#define XCR0_SSE_AVX (BIT(XC_SSE) | BIT(XC_AVX))
#define XCR0_AVX512 (BIT(XC_OPMASK) | BIT(XC_ZMM_HI256) | BIT(XC_HI16_ZMM))
/* What a guest can have. PKRU would act on our own memory, AMX needs the kernel's permission. */
#define XCR0_OFFERED (BIT(XC_X87) | XCR0_SSE_AVX | XCR0_AVX512)

/* Offsets in the legacy region of an XSAVE or FXSAVE64 image (SDM 10.5.1, 13.4) */
enum {
	FX_FCW = 0, FX_FSW = 2, FX_FTW = 4, FX_FOP = 6, FX_FIP = 8, FX_FCS = 12, FX_FDP = 16, FX_FDS = 20, FX_MXCSR = 24,
	FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160, FX_XMM_END = 416, XS_BV = 512, XS_COMP_BV = 520, XS_HEADER_END = 576,
};

/* Bytes c->xsave must have on this host (a multiple of 64). */
u32 fpu_state_size(void);
/* XCR0 bits the guest can be offered on this host. */
u64 fpu_host_xcr0(void);

/* Power-on state, or what INIT leaves (SDM table 9-1: INIT changes nothing here). */
void fpu_reset(struct cpu *c, bool init);

void fpu_load_slow(struct cpu *c);
void fpu_save_slow(struct cpu *c);

/* Guest state into the host's registers. */
static inline void fpu_load(struct cpu *c)
{
	if (unlikely(!c->fpu_live))
		fpu_load_slow(c);
}
/* Guest state into c->xsave; the host's registers are then fit for C code (MXCSR, FNINIT, VZEROUPPER). */
static inline void fpu_save(struct cpu *c)
{
	if (c->fpu_live)
		fpu_save_slow(c);
}

/* Views of the saved state; they save it first.  Registers the host lacks read as zero and cannot be set. */
void fpu_get_vector(struct cpu *c, unsigned n, u8 out[64]); /* ZMM n, with YMM and XMM within */
void fpu_set_vector(struct cpu *c, unsigned n, const u8 in[64]);
u64 fpu_get_k(struct cpu *c, unsigned n);
void fpu_set_k(struct cpu *c, unsigned n, u64 v);
void fpu_get_st(struct cpu *c, unsigned n, u8 out[10]); /* ST(n), also MM n when TOP is 0 */
void fpu_set_st(struct cpu *c, unsigned n, const u8 in[10]);
u32 fpu_get_mxcsr(struct cpu *c);
bool fpu_set_mxcsr(struct cpu *c, u32 v); /* false: reserved bits */
u16 fpu_get_fcw(struct cpu *c);
u16 fpu_get_fsw(struct cpu *c);

#endif
