/* A 32-bit program (built with -m32 where the compiler can) in a 64-bit kernel: C library, signals, threads' TLS through
 * segment descriptors, int $0x80 and the vdso's fast system call, x87 as the default arithmetic, far jump to 64-bit code
 * and back. */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/auxv.h>
#include <ucontext.h>

#include "t.h"

#ifndef __i386__
#error "for -m32"
#endif

static sigjmp_buf back;
static volatile siginfo_t got;
static __thread int tls = 5;

static void fault(int s, siginfo_t *si, void *uc)
{
	*(siginfo_t *)&got = *si;
	siglongjmp(back, 1);
}

static void *thread(void *arg)
{
	CHECK(1, tls == 5);
	tls = (int)(long)arg;
	for (int i = 0; i < 100; i++)
		sched_yield();
	return (void *)(long)tls;
}

static volatile double third = 1.0 / 3;

int main(void)
{
	CHECK(2, sizeof(void *) == 4 && sizeof(long) == 4);
	int r;
	asm volatile("int $0x80" : "=a"(r) : "0"(SYS_getpid) : "memory");
	CHECK(3, r == getpid());
	/* __kernel_vsyscall: SYSENTER or SYSCALL as the vendor has it; six arguments */
	u32 ehdr = getauxval(AT_SYSINFO_EHDR), entry = getauxval(32 /* AT_SYSINFO */);
	CHECK(4, ehdr && entry);
	for (int i = 0; i < 100; i++) {
		asm volatile("call *%1" : "=a"(r) : "r"(entry), "0"(SYS_getpid) : "memory");
		CHECK(5, r == getpid());
	}
	void *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(6, m != MAP_FAILED && !munmap((char *)m + 4096, 4096));
	t_signal(SIGSEGV, fault, 0);
	t_signal(SIGFPE, fault, 0);
	if (!sigsetjmp(back, 1)) {
		((volatile char *)m)[4096] = 1;
		CHECK(7, !"no fault");
	}
	CHECK(8, got.si_code == SEGV_MAPERR && got.si_addr == (char *)m + 4096);
	if (!sigsetjmp(back, 1)) {
		volatile int zero = 0;
		volatile int quotient = 5 / zero;
		(void)quotient;
		CHECK(9, !"no fault");
	}
	CHECK(10, got.si_signo == SIGFPE && got.si_code == FPE_INTDIV);
	pthread_t t[4];
	void *result;
	for (long i = 0; i < 4; i++)
		CHECK(11, !pthread_create(&t[i], NULL, thread, (void *)(i + 50)));
	for (long i = 0; i < 4; i++)
		CHECK(12, !pthread_join(t[i], &result) && (long)result == i + 50);
	CHECK(13, tls == 5);
	int status;
	pid_t pid = fork();
	if (!pid)
		_exit(33);
	CHECK(14, waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 33);
	char text[64];
	snprintf(text, sizeof text, "%.17g %.6f", (double)third, sin(third));
	CHECK(15, !strcmp(text, "0.33333333333333331 0.327195"), "%s", text);
	u64 product = (u64)0xfedcba98u * 0x12345678u;
	volatile u64 divisor = 0x12345678u;
	CHECK(16, product / divisor == 0xfedcba98u && (product + 5) % divisor == 5);
	/* old-style BCD, BOUND, PUSHA, segment prefixes: instructions that 64-bit mode does not have */
	u32 a = 0x39, before = 0, after = 0;
	asm volatile("addb $0x48, %%al; daa" : "+a"(a)::"cc");
	CHECK(17, (a & 0xff) == 0x87, "%#x", a);
	a = 0x0103;
	asm volatile("aad" : "+a"(a)::"cc");
	CHECK(18, (a & 0xffff) == 13, "%#x", a);
	asm volatile("mov %%esp, %0; pusha; popa; mov %%esp, %1" : "=&r"(before), "=&r"(after)::"memory");
	CHECK(19, before == after);
	u32 self;
	asm volatile("mov %%gs:0, %0" : "=r"(self));
	CHECK(20, self != 0 && *(u32 *)(long)self == self);
	/* into 64-bit code and back */
	u32 high = 0;
	asm volatile("lcall $0x33, $1f; jmp 2f\n\t"
		     "1: .byte 0x48, 0xb8; .long 0x55667788, 0x11223344\n\t" /* mov $0x1122334455667788, %rax */
		     ".byte 0x48, 0xc1, 0xe8, 0x20\n\t"                     /* shr $32, %rax */
		     "lret\n\t"
		     "2: mov %%eax, %0" : "=r"(high)::"eax", "memory", "cc");
	CHECK(21, high == 0x11223344, "%#x", high);
	struct timespec ts;
	CHECK(22, !clock_gettime(CLOCK_MONOTONIC, &ts) && ts.tv_sec >= 0);
	CHECK(23, execl("/proc/self/nosuch", "x", (char *)NULL) == -1 && errno == ENOENT);
	return 0;
}
