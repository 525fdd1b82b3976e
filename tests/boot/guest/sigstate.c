/* A signal at any moment leaves all registers as they were: integer, flags, x87, SSE, AVX, AVX-512, opmasks.  A timer
 * interrupts a loop that keeps known values in all of them; the handler overwrites everything it can. */
#include <cpuid.h>
#include <sys/time.h>

#include "t.h"

static volatile unsigned ticks;
static bool avx, avx512;

struct state {
	u8 zmm[32][64];
	u64 k[8];
	u8 st[8][10];
};

__attribute__((target("avx512f,avx512bw"))) static void load512(const struct state *s)
{
	asm volatile("mov %0, %%rax\n\t"
		     ".set i, 0\n\t"
		     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
		     "vmovdqu64 64*\\n(%%rax), %%zmm\\n\n\t"
		     ".endr\n\t"
		     ".irp n,0,1,2,3,4,5,6,7\n\tkmovq 2048+8*\\n(%%rax), %%k\\n\n\t.endr" ::"r"(s) : "rax", "memory");
}

__attribute__((target("avx512f,avx512bw"))) static void store512(struct state *s)
{
	asm volatile("mov %0, %%rax\n\t"
		     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
		     "vmovdqu64 %%zmm\\n, 64*\\n(%%rax)\n\t"
		     ".endr\n\t"
		     ".irp n,0,1,2,3,4,5,6,7\n\tkmovq %%k\\n, 2048+8*\\n(%%rax)\n\t.endr" ::"r"(s) : "rax", "memory");
}

#define LOAD_STORE(name, reg, insn, prefix)                                                                            \
	static void load_##name(const struct state *s)                                                                 \
	{                                                                                                              \
		asm volatile("mov %0, %%rax\n\t.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t" insn                  \
			     " 64*\\n(%%rax), %%" reg "\\n\n\t.endr" ::"r"(s) : "rax", "memory");                       \
	}                                                                                                              \
	static void store_##name(struct state *s)                                                                      \
	{                                                                                                              \
		asm volatile("mov %0, %%rax\n\t.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t" insn                  \
			     " %%" reg "\\n, 64*\\n(%%rax)\n\t.endr" ::"r"(s) : "rax", "memory");                       \
	}
LOAD_STORE(128, "xmm", "movdqu", )
LOAD_STORE(256, "ymm", "vmovdqu", )

static void load_x87(const struct state *s)
{
	asm volatile("fninit");
	for (int i = 7; i >= 0; i--)
		asm volatile("fldt %0" ::"m"(s->st[i]));
}

static void store_x87(struct state *s)
{
	for (int i = 0; i < 8; i++)
		asm volatile("fstpt %0" : "=m"(s->st[i]));
}

static void clobber(int sig, siginfo_t *si, void *uc)
{
	static struct state junk;
	memset(&junk, 0xa5 + (int)ticks, sizeof junk);
	for (int i = 0; i < 8; i++)
		junk.st[i][9] = 0x40;
	if (avx512)
		load512(&junk);
	else if (avx)
		load_256(&junk);
	else
		load_128(&junk);
	load_x87(&junk);
	ticks++;
}

int main(void)
{
	unsigned a, b, c, d;
	u64 seed = 99;
	static struct state want, have;
	__cpuid(1, a, b, c, d);
	avx = c & bit_OSXSAVE && c & bit_AVX;
	__cpuid_count(7, 0, a, b, c, d);
	avx512 = avx && b & bit_AVX512F && b & bit_AVX512BW;
	t_signal(SIGALRM, clobber, 0);
	struct itimerval it = { { 0, 4000 }, { 0, 4000 } };
	CHECK(1, !setitimer(ITIMER_REAL, &it, NULL));
	u64 deadline = t_now_ns(CLOCK_MONOTONIC) + 20000000000ull;
	for (unsigned round = 0; ticks < 60; round++) {
		for (size_t i = 0; i < sizeof want / 8; i++)
			((u64 *)&want)[i] = t_random(&seed);
		for (int i = 0; i < 8; i++) {
			want.st[i][7] |= 0x80; /* normal numbers: the integer bit is set */
			want.st[i][8] = (u8)i;
			want.st[i][9] = 0x40;
		}
		u64 r[6], fl, count = 3000;
		memcpy(&have, &want, sizeof have);
		load_x87(&want);
		if (avx512)
			load512(&want);
		else if (avx)
			load_256(&want);
		else
			load_128(&want);
		/* integer registers and flags (CF, SF, ZF = 1; DF stays 0), held over a loop */
		asm volatile("mov $0x1111111111111111, %%r8; mov $0x2222222222222222, %%r9; mov $0x3333333333333333, %%r10\n\t"
			     "mov $0x4444444444444444, %%r11; mov $0x5555555555555555, %%r12; mov $0x6666666666666666, %%r13\n\t"
			     "mov $0xd700, %%eax; sahf\n\t"
			     "1: lea -1(%%rcx), %%rcx; jrcxz 2f; jmp 1b\n"
			     "2: pushf; pop %6\n\t"
			     "mov %%r8, %0; mov %%r9, %1; mov %%r10, %2; mov %%r11, %3; mov %%r12, %4; mov %%r13, %5"
			     : "=m"(r[0]), "=m"(r[1]), "=m"(r[2]), "=m"(r[3]), "=m"(r[4]), "=m"(r[5]), "=&r"(fl), "+c"(count)::"rax", "r8",
			       "r9", "r10", "r11", "r12", "r13", "cc", "memory");
		if (avx512)
			store512(&have);
		else if (avx)
			store_256(&have);
		else
			store_128(&have);
		store_x87(&have);
		for (unsigned i = 0; i < 6; i++)
			CHECK(2, r[i] == 0x1111111111111111ull * (i + 1), "r%u %#" PRIx64, 8 + i, r[i]);
		CHECK(3, (fl & 0xcd5) == 0xd5 - 0 - 0, "flags %#" PRIx64, fl);
		unsigned regs = avx512 ? 32 : 16, bytes = avx512 ? 64 : avx ? 32 : 16;
		for (unsigned i = 0; i < regs; i++)
			CHECK(4, !memcmp(have.zmm[i], want.zmm[i], bytes), "vector register %u round %u ticks %u", i, round, ticks);
		CHECK(5, !memcmp(have.k, want.k, sizeof have.k));
		CHECK(6, !memcmp(have.st, want.st, sizeof have.st), "x87 registers, round %u ticks %u", round, ticks);
		CHECK(7, t_now_ns(CLOCK_MONOTONIC) < deadline, "only %u ticks of 4 ms in 20 s", ticks);
	}
	return 0;
}
