/* Signals: handlers, masks, alternate stack, siginfo of every fault with the exact address, trap number and error
 * code, SA_RESTART, sigqueue, sigwaitinfo, signalfd. */
#include <setjmp.h>
#include <sys/signalfd.h>
#include <ucontext.h>

#include "t.h"

static sigjmp_buf back;
static volatile siginfo_t got;
static volatile greg_t got_trap, got_error, got_cr2, got_rip, got_rsp, got_fl;
static volatile unsigned count;

static void fault(int s, siginfo_t *si, void *uc)
{
	const greg_t *g = ((ucontext_t *)uc)->uc_mcontext.gregs;
	*(siginfo_t *)&got = *si;
	got_trap = g[REG_TRAPNO];
	got_error = g[REG_ERR];
	got_cr2 = g[REG_CR2];
	got_rip = g[REG_RIP];
	got_rsp = g[REG_RSP];
	got_fl = g[REG_EFL];
	count++;
	siglongjmp(back, 1);
}

static void counted(int s, siginfo_t *si, void *uc)
{
	*(siginfo_t *)&got = *si;
	count++;
}

/* Runs code, which must fault with this signal, code, trap and error. */
#define FAULTS(exit_code, signal, code, trap, error, ...)                                                              \
	do {                                                                                                           \
		count = 0;                                                                                             \
		if (!sigsetjmp(back, 1)) {                                                                             \
			__VA_ARGS__;                                                                                   \
			CHECK(exit_code, !"no fault");                                                                 \
		}                                                                                                      \
		CHECK(exit_code, count == 1 && got.si_signo == signal && got.si_code == code && got_trap == trap &&    \
				 (got_error & ~0x8000ll) == error,                                                     \
		      "signal %d code %d trap %lld error %#llx address %p rip %#llx", got.si_signo, got.si_code,       \
		      got_trap, got_error, got.si_addr, got_rip);                                                      \
	} while (0)
#define AT(exit_code, address)                                                                                         \
	CHECK(exit_code, (u64)got.si_addr == (u64)(address), "address %p instead of %#llx", got.si_addr,               \
	      (unsigned long long)(u64)(address))

static void __attribute__((noinline)) page_faults(void)
{
	u8 *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(1, p != MAP_FAILED);
	memset(p, 0xc3, 2 * PAGE);
	CHECK(1, !munmap(p + 2 * PAGE, PAGE));
	/* error code: 1 present, 2 write, 4 user, 16 fetch */
	FAULTS(2, SIGSEGV, SEGV_MAPERR, 14, 4, (void)*(volatile u8 *)0x123);
	AT(2, 0x123);
	CHECK(2, got_cr2 == 0x123);
	FAULTS(3, SIGSEGV, SEGV_MAPERR, 14, 6, *(volatile u64 *)(p + 2 * PAGE - 3) = 1);
	AT(3, p + 2 * PAGE); /* the second page of the access */
	CHECK(3, p[2 * PAGE - 1] == 0xc3);
	CHECK(4, !mprotect(p + PAGE, PAGE, PROT_READ));
	FAULTS(5, SIGSEGV, SEGV_ACCERR, 14, 7, *(volatile u8 *)(p + PAGE + 5) = 1);
	AT(5, p + PAGE + 5);
	FAULTS(6, SIGSEGV, SEGV_ACCERR, 14, 7, *(volatile u32 *)(p + PAGE - 2) = 0x12345678);
	AT(6, p + PAGE);
	CHECK(6, p[PAGE - 1] == 0xc3);
	FAULTS(7, SIGSEGV, SEGV_ACCERR, 14, 0x15, ((void (*)(void))(p + 16))());
	AT(7, p + 16);
	CHECK(7, got_rip == (greg_t)(p + 16));
	CHECK(8, !mprotect(p, PAGE, PROT_NONE));
	FAULTS(8, SIGSEGV, SEGV_ACCERR, 14, 4, (void)*(volatile u8 *)(p + 1));
	/* string instructions stop exactly at the page that faults */
	CHECK(9, !mprotect(p, PAGE, PROT_READ | PROT_WRITE));
	u64 di = (u64)p, cx = 2 * PAGE;
	if (!sigsetjmp(back, 1)) {
		asm volatile("rep stosb" : "+D"(di), "+c"(cx) : "a"(0x55) : "memory");
		CHECK(9, !"no fault");
	}
	AT(9, p + PAGE);
	CHECK(9, got_error == 7 && p[PAGE - 1] == 0x55 && p[PAGE] == 0xc3);
	/* a kernel address: never present for user code, non-canonical: #GP */
	FAULTS(10, SIGSEGV, SEGV_MAPERR, 14, 5, (void)*(volatile u8 *)0xffffffff81000000ull);
	FAULTS(11, SIGSEGV, SI_KERNEL, 13, 0, (void)*(volatile u8 *)0x8000000000000000ull);
	AT(11, 0);
	FAULTS(12, SIGBUS, SI_KERNEL, 12, 0, asm volatile("mov %0, %%rbp; mov (%%rbp), %%rax" ::"r"(0x8000000000000000ull) : "rax", "memory"));
	/* a shared file mapping beyond the end of the file */
	int fd = memfd_create("short", 0);
	u8 *f = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(13, fd >= 0 && f != MAP_FAILED);
	FAULTS(13, SIGBUS, BUS_ADRERR, 14, 4, (void)*(volatile u8 *)f);
	AT(13, f);
	munmap(f, PAGE);
	munmap(p, 2 * PAGE);
	close(fd);
}

static void __attribute__((noinline)) other_faults(void)
{
	void *label;
	asm volatile("lea 1f(%%rip), %0" : "=r"(label));
	FAULTS(20, SIGFPE, FPE_INTDIV, 0, 0, asm volatile("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx" ::: "eax", "ecx", "edx"));
	AT(20, got_rip);
	FAULTS(21, SIGFPE, FPE_INTDIV, 0, 0, asm volatile("mov $0x80000000, %%eax; cdq; mov $-1, %%ecx; idiv %%ecx" ::: "eax", "ecx", "edx"));
	FAULTS(22, SIGFPE, FPE_INTDIV, 0, 0, asm volatile("mov $1, %%rdx; xor %%eax, %%eax; mov $1, %%rcx; div %%rcx" ::: "rax", "rcx", "rdx"));
	FAULTS(23, SIGILL, ILL_ILLOPN, 6, 0, asm volatile("1: ud2"));
	AT(23, label);
	FAULTS(24, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("hlt"));
	FAULTS(25, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("mov %%cr0, %%rax" ::: "rax"));
	FAULTS(26, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("in $0x80, %%al" ::: "rax"));
	FAULTS(27, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("rdmsr" ::"c"(0x10) : "rax", "rdx"));
	FAULTS(28, SIGSEGV, SI_KERNEL, 13, 0x20 * 8 + 2, asm volatile("int $0x20"));
	FAULTS(29, SIGSEGV, SI_KERNEL, 13, 0x1230, asm volatile("mov %0, %%fs" ::"r"(0x1233)));
	FAULTS(30, SIGTRAP, SI_KERNEL, 3, 0, asm volatile("int3"));
	asm volatile("lea 2f(%%rip), %0" : "=r"(label));
	FAULTS(31, SIGTRAP, TRAP_TRACE, 1, 0, asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; 2: nop" ::: "memory", "cc"));
	CHECK(31, got_rip == (greg_t)label, "trap after the instruction behind POPF: %#llx", got_rip);
	CHECK(31, got_fl & 0x100);
	asm volatile("pushf; andl $~0x100, (%%rsp); popf" ::: "memory", "cc");
	FAULTS(32, SIGTRAP, TRAP_BRKPT, 1, 0, asm volatile(".byte 0xf1"));
	/* alignment checking, on and off again */
	static u64 words[2];
	FAULTS(33, SIGBUS, BUS_ADRALN, 17, 0, asm volatile("pushf; orl $0x40000, (%%rsp); popf; mov %0, %%eax" ::"m"(*((u8 *)words + 1)) : "rax", "memory", "cc"));
	asm volatile("pushf; andl $~0x40000, (%%rsp); popf" ::: "memory", "cc");
	/* SSE: masked off exceptions fault, misaligned vector operands are #GP */
	u32 mxcsr = 0x1f80 & ~0x200u;
	FAULTS(34, SIGFPE, FPE_FLTDIV, 19, 0, asm volatile("ldmxcsr %0; pxor %%xmm1, %%xmm1; movsd %1, %%xmm0; divsd %%xmm1, %%xmm0" ::"m"(mxcsr), "m"((double){ 1.0 }) : "xmm0", "xmm1"));
	mxcsr = 0x1f80 & ~0x80u;
	FAULTS(35, SIGFPE, FPE_FLTINV, 19, 0, asm volatile("ldmxcsr %0; movsd %1, %%xmm0; sqrtsd %%xmm0, %%xmm0" ::"m"(mxcsr), "m"((double){ -1.0 }) : "xmm0"));
	mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" ::"m"(mxcsr));
	FAULTS(36, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("movaps %0, %%xmm0" ::"m"(*((u8 *)words + 1)) : "xmm0"));
	/* x87: the exception comes with the next waiting instruction */
	u16 cw = 0x37f & ~4u;
	FAULTS(37, SIGFPE, FPE_FLTDIV, 16, 0, asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" ::"m"(cw)));
	asm volatile("fninit");
}

static void __attribute__((noinline)) bad_returns(void)
{
	/* popping a wrong stack segment */
	FAULTS(40, SIGSEGV, SI_KERNEL, 13, 0, asm volatile("push %0; push %%rax; pushf; push $0x33; push %0; iretq" ::"r"(0ll) : "memory"));
}

static void alternate_stack(void)
{
	static u8 stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	CHECK(50, !sigaltstack(&ss, NULL));
	t_signal(SIGSEGV, fault, SA_ONSTACK);
	/* with a stack pointer that is no good the handler can only run on the other stack */
	u64 saved;
	count = 0;
	if (!sigsetjmp(back, 1)) {
		asm volatile("mov %%rsp, %0; mov $16, %%rsp; push %%rax; mov %0, %%rsp" : "=&r"(saved)::"memory");
		CHECK(51, !"no fault");
	}
	CHECK(52, count == 1 && got_rsp == 16 && got_cr2 == 8, "%lld %llx", got_rsp, got_cr2);
	ss.ss_flags = SS_DISABLE;
	CHECK(53, !sigaltstack(&ss, NULL));
	t_signal(SIGSEGV, fault, 0);
}

static void queues(void)
{
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN);
	t_signal(SIGUSR1, counted, 0);
	CHECK(60, !sigprocmask(SIG_BLOCK, &set, &old));
	count = 0;
	for (int i = 0; i < 3; i++) {
		CHECK(60, !sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 7 + i }));
		CHECK(60, !raise(SIGUSR1));
	}
	CHECK(61, !count);
	siginfo_t si;
	struct timespec zero = { 0 };
	for (int i = 0; i < 3; i++) {
		sigset_t rt;
		sigemptyset(&rt);
		sigaddset(&rt, SIGRTMIN);
		CHECK(62, sigtimedwait(&rt, &si, &zero) == SIGRTMIN && si.si_value.sival_int == 7 + i && si.si_code == SI_QUEUE);
	}
	int fd = signalfd(-1, &set, SFD_NONBLOCK);
	struct signalfd_siginfo fi;
	CHECK(63, fd >= 0 && read(fd, &fi, sizeof fi) == sizeof fi && fi.ssi_signo == SIGUSR1 && (pid_t)fi.ssi_pid == getpid());
	CHECK(64, read(fd, &fi, sizeof fi) == -1 && errno == EAGAIN);
	close(fd);
	raise(SIGUSR1);
	CHECK(65, !sigprocmask(SIG_SETMASK, &old, NULL) && count == 1 && got.si_code == SI_TKILL);
}

int main(void)
{
	t_signal(SIGSEGV, fault, 0);
	t_signal(SIGBUS, fault, 0);
	t_signal(SIGFPE, fault, 0);
	t_signal(SIGILL, fault, 0);
	t_signal(SIGTRAP, fault, 0);
	page_faults();
	other_faults();
	bad_returns();
	alternate_stack();
	queues();
	return 0;
}
