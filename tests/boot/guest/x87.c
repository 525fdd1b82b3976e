/* x87: results, control word, tags, exceptions, and the pointers to the last instruction and operand: they point into
 * this program.  Formats: FSAVE, FXSAVE, XSAVE. */
#include <cpuid.h>
#include <math.h>

#include "t.h"

struct fxsave {
	u16 fcw, fsw;
	u8 ftw, reserved;
	u16 fop;
	u64 fip, fdp;
	u32 mxcsr, mask;
	u8 st[8][16], xmm[16][16], rest[96];
} __attribute__((aligned(64)));

static struct fxsave fx;
static double one_and_half = 1.5;

int main(void)
{
	char *at;
	unsigned a, b, c, d;
	__cpuid_count(7, 0, a, b, c, d);
	bool fdp_excptn_only = b & 1u << 6;
	asm volatile("fninit; lea 1f(%%rip), %0; 1: fldl %1; fxsave64 %2" : "=&r"(at) : "m"(one_and_half), "m"(fx) : "memory");
	CHECK(1, fx.fip == (u64)at, "FIP %#" PRIx64 " instead of %p", fx.fip, at);
	if (!fdp_excptn_only)
		CHECK(2, fx.fdp == (u64)&one_and_half, "FDP %#" PRIx64 " instead of %p", fx.fdp, (void *)&one_and_half);
	CHECK(3, fx.fcw == 0x37f && (fx.fsw >> 11 & 7) == 7 && fx.ftw == 0x80, "%#x %#x %#x", fx.fcw, fx.fsw, fx.ftw);
	/* an unmasked exception: both pointers are exact on every CPU, for FSAVE and FNSTENV too */
	static u16 cw = 0x37f & ~4u;
	static double zero;
	asm volatile("fninit; fldcw %3; fld1; lea 1f(%%rip), %0; 1: fdivl %1; fxsave64 %2; fnclex; fninit"
		     : "=&r"(at) : "m"(zero), "m"(fx), "m"(cw) : "memory");
	CHECK(4, fx.fip == (u64)at && fx.fdp == (u64)&zero && fx.fsw & 4 && fx.fsw & 0x8080, "FIP %#" PRIx64 " FDP %#" PRIx64 " FSW %#x", fx.fip, fx.fdp, fx.fsw);
	CHECK(5, fx.fop == 0x435 || fx.fop == 0x4b5 || fx.fop == (((0xdc & 7) << 8) | 0x35) || fx.fop >> 8 == 4, "FOP %#x", fx.fop);
	u32 env[7];
	asm volatile("fninit; lea 1f(%%rip), %0; 1: fldpi; fnstenv %1" : "=&r"(at), "=m"(env)::"memory");
	CHECK(6, env[3] == (u32)(u64)at, "FNSTENV's FIP %#x instead of %p", env[3], at);
	asm volatile("fninit");
	/* FXRSTOR brings back what it is given */
	fx.fip = 0x123456789a;
	fx.fdp = 0x234567;
	struct fxsave back;
	asm volatile("fxrstor64 %1; fxsave64 %0; fninit" : "=m"(back) : "m"(fx) : "memory");
	CHECK(7, back.fip == fx.fip || back.fip == 0, "%#" PRIx64, back.fip);
	/* functions against the values everybody knows */
	static const struct { long double x, want; } sines[] = {
		{ 0.5L, 0.479425538604203000273287935215571388L }, { 1.0L, 0.841470984807896506652502321630298999L },
		{ 3.0L, 0.141120008059867222100744802808110279L },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(sines); i++) {
		long double r;
		asm volatile("fsin" : "=t"(r) : "0"(sines[i].x));
		CHECK(10, fabsl(r - sines[i].want) < 1e-18L);
	}
	long double r;
	asm volatile("fldln2; fldl %1; fyl2x" : "=t"(r) : "m"(one_and_half));
	CHECK(11, fabsl(r - 0.405465108108164381978013115464349137L) < 1e-18L);
	asm volatile("fbstp %1" :: "t"(1234567.0L), "m"(fx) : "st", "memory");
	CHECK(12, !memcmp(&fx, "\x67\x45\x23\x01\0\0\0\0\0\0", 10));
	long long ll;
	asm volatile("fistpll %0" : "=m"(ll) : "t"(-9.007199254740993e15L) : "st");
	CHECK(13, ll == -9007199254740993ll);
	u16 fsw;
	asm volatile("fninit; fldz; fldz; fdivp; fnstsw %0; fninit" : "=m"(fsw));
	CHECK(14, (fsw & 0x3f) == 1, "%#x", fsw);
	asm volatile("fninit; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fnstsw %0; fninit" : "=m"(fsw));
	CHECK(15, (fsw & 0x241) == 0x241, "stack overflow %#x", fsw);
	/* rounding and precision control */
	static const u16 round[4] = { 0x33f, 0x73f, 0xb3f, 0xf3f };
	static const int want[4] = { 2, 2, 3, 2 }, want_neg[4] = { -2, -3, -2, -2 };
	for (unsigned i = 0; i < 4; i++) {
		int up, down;
		double x = 2.5, y = -2.5;
		asm volatile("fldcw %2; fldl %3; fistpl %0; fldl %4; fistpl %1; fninit" : "=m"(up), "=m"(down) : "m"(round[i]), "m"(x), "m"(y));
		CHECK(16, up == want[i] && down == want_neg[i], "rounding %u: %d %d", i, up, down);
	}
	/* MMX shares the registers and marks all as used; EMMS frees them */
	asm volatile("fninit; movq %0, %%mm3; fxsave64 %1; emms" :: "m"(one_and_half), "m"(fx) : "memory");
	CHECK(17, fx.ftw == 0xff && fx.st[3][8] == 0xff && fx.st[3][9] == 0xff && !memcmp(fx.st[3], &one_and_half, 8));
	asm volatile("fxsave64 %0" : "=m"(fx));
	CHECK(18, fx.ftw == 0);
	return 0;
}
