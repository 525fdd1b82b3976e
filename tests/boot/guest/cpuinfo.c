/* What the kernel says of the CPU fits CPUID, and what is advertised works: every flag in /proc/cpuinfo that a program
 * can use is executed once.  Also: no bug and taint lines that would tell of a CPU the kernel finds inconsistent. */
#include <cpuid.h>
#include <ctype.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/auxv.h>

#include "t.h"

static char text[65536];
static sigjmp_buf back;
static void fault(int s, siginfo_t *si, void *uc) { siglongjmp(back, 1); }

static bool has(const char *flags, const char *name)
{
	size_t n = strlen(name);
	for (const char *p = flags; (p = strstr(p, name)); p += n)
		if (p[-1] == ' ' && (p[n] == ' ' || p[n] == '\n'))
			return true;
	return false;
}

static u8 area[64] __attribute__((aligned(64)));
#define TRY(flag, code) static void try_##flag(void) { asm volatile(code ::"r"(area) : "rax", "rbx", "rcx", "rdx", "memory", "cc", "xmm0", "xmm1"); }
TRY(rdrand, "rdrand %%rax")
TRY(rdseed, "rdseed %%rax")
TRY(rdpid, "rdpid %%rax")
TRY(rdtscp, "rdtscp")
TRY(movbe, "movbe (%0), %%eax")
TRY(popcnt, "popcnt %%rax, %%rax")
TRY(adx, "adcx %%rax, %%rax; adox %%rax, %%rax")
TRY(bmi1, "andn %%rax, %%rax, %%rax; tzcnt %%rax, %%rax")
TRY(bmi2, "bzhi %%rax, %%rax, %%rax; rorx $3, %%rax, %%rax")
TRY(abm, "lzcnt %%rax, %%rax")
TRY(fsgsbase, "rdfsbase %%rax; wrfsbase %%rax; rdgsbase %%rax; wrgsbase %%rax")
TRY(clflushopt, "clflushopt (%0)")
TRY(clwb, "clwb (%0)")
TRY(clflush, "clflush (%0)")
TRY(xsaveopt, "xor %%eax, %%eax; xor %%edx, %%edx; sub $4096, %%rsp; and $-64, %%rsp; xsaveopt (%%rsp)")
TRY(sha_ni, "sha256msg1 %%xmm0, %%xmm1")
TRY(aes, "aesenc %%xmm0, %%xmm1")
TRY(pclmulqdq, "pclmulqdq $0, %%xmm0, %%xmm1")
TRY(avx, "vaddps %%ymm0, %%ymm1, %%ymm0")
TRY(avx2, "vpaddd %%ymm0, %%ymm1, %%ymm0")
TRY(fma, "vfmadd132ps %%ymm0, %%ymm1, %%ymm0")
TRY(f16c, "vcvtph2ps %%xmm0, %%ymm1")
TRY(avx512f, "vaddps %%zmm0, %%zmm1, %%zmm16")
TRY(cx16, "lock cmpxchg16b (%0)")
TRY(lahf_lm, "lahf; sahf")
TRY(movdiri, "movdiri %%rax, (%0)")
TRY(serialize, ".byte 0x0f, 0x01, 0xe8")
TRY(gfni, "gf2p8mulb %%xmm0, %%xmm1")
TRY(erms, "mov %0, %%rdi; mov $64, %%ecx; rep stosb")
TRY(waitpkg, ".byte 0xf3, 0x0f, 0xae, 0xf0") /* umonitor %rax */
TRY(pku, "xor %%ecx, %%ecx; rdpkru")
TRY(prefetchw_, "prefetchw (%0)")
#define T(flag) { #flag, try_##flag }
static const struct { const char *flag; void (*fn)(void); } tries[] = {
	T(rdrand), T(rdseed), T(rdpid), T(rdtscp), T(movbe), T(popcnt), T(adx), T(bmi1), T(bmi2), T(abm), T(clflushopt), T(clwb),
	T(clflush), T(sha_ni), T(aes), T(pclmulqdq), T(avx), T(avx2), T(fma), T(f16c), T(avx512f), T(cx16), T(lahf_lm),
	T(movdiri), T(serialize), T(gfni),
};

static void instruction_tries(const char *flags)
{
	(void)try_fsgsbase, (void)try_xsaveopt, (void)try_erms, (void)try_waitpkg, (void)try_pku, (void)try_prefetchw_;
	t_signal(SIGILL, fault, 0);
	t_signal(SIGSEGV, fault, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(tries); i++) {
		if (!has(flags, tries[i].flag))
			continue;
		if (sigsetjmp(back, 1))
			CHECK(20, !"an advertised instruction faults", "%s", tries[i].flag);
		tries[i].fn();
	}
	if (has(flags, "fsgsbase")) {
		CHECK(21, getauxval(AT_HWCAP2) & 2);
		u64 fs, gs = 0x123456000, gs2;
		asm volatile("rdfsbase %0; wrgsbase %2; rdgsbase %1" : "=&r"(fs), "=&r"(gs2) : "r"(gs));
		CHECK(22, fs == *(u64 *)fs && gs2 == gs);
		sched_yield();
		usleep(1000);
		asm volatile("rdgsbase %0" : "=r"(gs2));
		CHECK(23, gs2 == gs);
	}
	if (!has(flags, "pku")) {
		if (!sigsetjmp(back, 1)) {
			try_pku();
			CHECK(24, !"RDPKRU without pku");
		}
	}
}

int main(void)
{
	int fd = open("/proc/cpuinfo", O_RDONLY);
	ssize_t n = read(fd, text, sizeof text - 1);
	CHECK(1, n > 500);
	close(fd);
	char *flags = strstr(text, "\nflags");
	CHECK(2, flags && strchr(flags, ':'));
	flags = strchr(flags, ':');
	*strchr(flags, '\n') = ' ';
	static const char *const must[] = { "fpu", "tsc", "msr", "pae", "cx8", "apic", "sep", "pge", "cmov", "pat", "clflush", "mmx",
					    "fxsr", "sse", "sse2", "syscall", "nx", "lm", "constant_tsc", "hypervisor" };
	for (unsigned i = 0; i < ARRAY_SIZE(must); i++)
		CHECK(3, has(flags, must[i]) || getenv("T_NATIVE"), "%s", must[i]);
	static const char *const must_not[] = { "vmx", "svm", "amx_tile", "la57" };
	if (has(flags, "hypervisor") && !getenv("T_NATIVE"))
		for (unsigned i = 0; i < ARRAY_SIZE(must_not); i++)
			CHECK(4, !has(flags, must_not[i]), "%s", must_not[i]);
	unsigned a, b, c, d;
	char vendor[13] = "", brand[49] = "";
	__cpuid(0, a, b, c, d);
	memcpy(vendor, &b, 4);
	memcpy(vendor + 4, &d, 4);
	memcpy(vendor + 8, &c, 4);
	CHECK(5, strstr(text, vendor));
	for (unsigned i = 0; i < 3; i++) {
		__cpuid(0x80000002 + i, a, b, c, d);
		memcpy(brand + 16 * i, (unsigned[]){ a, b, c, d }, 16);
	}
	char *p = brand;
	while (*p == ' ')
		p++;
	for (char *e = p + strlen(p); e > p && isspace((u8)e[-1]);)
		*--e = 0;
	CHECK(6, strstr(text, p), "%s", p);
	char *mhz = strstr(text, "cpu MHz");
	CHECK(7, mhz && strtod(strchr(mhz, ':') + 1, NULL) > 500 && strtod(strchr(mhz, ':') + 1, NULL) < 10000);
	/* the XSAVE area of CPUID fits XCR0 */
	if (has(flags, "xsave")) {
		u32 xcr0;
		asm volatile("xgetbv" : "=a"(xcr0) : "c"(0) : "edx");
		__cpuid_count(13, 0, a, b, c, d);
		CHECK(8, (xcr0 & ~a) == 0 && b >= 576 && b <= c, "XCR0 %#x of %#x, %u of %u bytes", xcr0, a, b, c);
		CHECK(9, has(flags, "avx") == ((xcr0 & 6) == 6) && has(flags, "avx512f") == ((xcr0 & 0xe6) == 0xe6));
	}
	instruction_tries(flags);
	return 0;
}
