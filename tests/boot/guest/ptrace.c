/* A debugger's life: single steps over every kind of instruction (each lands exactly where it must), registers read and
 * written, memory poked, breakpoints by int3 and by debug registers (execute, write, read-write), system-call stops. */
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>

#include "t.h"

/* The program under test.  Every label is one single step; rep movsb steps once per iteration, as hardware does. */
asm(".text\n"
    ".globl steps_begin, steps_after_syscall, steps_rep, steps_after_rep, steps_end, steps_popf\n"
    "steps_begin:\n"
    "	mov $39, %eax\n"           /* getpid */
    "	syscall\n"
    "steps_after_syscall:\n"
    "	nop\n"
    "	lea steps_from(%rip), %rsi\n"
    "	lea steps_to(%rip), %rdi\n"
    "	mov $5, %ecx\n"
    "steps_rep:\n"
    "	rep movsb\n"
    "steps_after_rep:\n"
    "	pushf\n"
    "	pop %rax\n"                /* TF is seen by PUSHF; Linux hides it from the program */
    "	push %rax\n"
    "steps_popf:\n"
    "	popf\n"
    "	call 1f\n"
    "	jmp 2f\n"
    "1:	ret\n"
    "2:	mov %ss, %edx\n"
    "	mov %edx, %ss\n"           /* no trap behind this one: the next instruction belongs to it */
    "	nop\n"
    "	movq %rax, %xmm0\n"
    "	paddd %xmm0, %xmm0\n"
    "	cpuid\n"
    "	xor %ecx, %ecx\n"
    "	jecxz 3f\n"
    "	ud2\n"
    "3:	nop\n"
    "steps_end:\n"
    "	int3\n"
    ".data\nsteps_from: .ascii \"hello\"\nsteps_to: .ascii \".....\"\n.text\n");
extern char steps_begin[], steps_after_syscall[], steps_rep[], steps_after_rep[], steps_popf[], steps_end[];
extern char steps_to[] asm("steps_to");

static volatile u64 watched[4];
static __attribute__((noinline)) void touch(unsigned i, u64 v) { watched[i] = v; }
static __attribute__((noinline)) u64 peek(unsigned i) { return watched[i]; }

static pid_t child;
static struct user_regs_struct regs;

static int resume(int how)
{
	int status;
	CHECK(1, !ptrace(how, child, NULL, NULL));
	CHECK(2, waitpid(child, &status, 0) == child);
	if (WIFSTOPPED(status))
		CHECK(3, !ptrace(PTRACE_GETREGS, child, NULL, &regs));
	return status;
}

static void set_debug(unsigned n, u64 v)
{
	CHECK(4, !ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[n]), v), "debug register %u", n);
}

static u64 dr6(void)
{
	errno = 0;
	u64 v = (u64)ptrace(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg[6]), NULL);
	CHECK(5, !errno);
	return v;
}

static void expect_trap(int status, int code)
{
	CHECK(code, WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "%#x at %#llx", status, regs.rip);
}

static void start(void (*body)(void))
{
	child = fork();
	CHECK(6, child >= 0);
	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		raise(SIGSTOP);
		body();
		_exit(0);
	}
	int status;
	CHECK(7, waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	CHECK(8, !ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
}

static void body_steps(void)
{
	((void (*)(void))steps_begin)();
}

static void steps(void)
{
	start(body_steps);
	CHECK(10, !ptrace(PTRACE_GETREGS, child, NULL, &regs));
	regs.rip = (u64)steps_begin;
	regs.orig_rax = (u64)-1;
	regs.rsp &= ~15ull;
	CHECK(11, !ptrace(PTRACE_SETREGS, child, NULL, &regs));
	unsigned n = 0, rep = 0;
	u64 last = regs.rip;
	bool saw_after_syscall = false;
	while (regs.rip != (u64)steps_end) {
		expect_trap(resume(PTRACE_SINGLESTEP), 12);
		siginfo_t si;
		CHECK(13, !ptrace(PTRACE_GETSIGINFO, child, NULL, &si) && si.si_signo == SIGTRAP);
		CHECK(14, regs.rip >= (u64)steps_begin && regs.rip <= (u64)steps_end, "step %u to %#llx", n, regs.rip);
		if (regs.rip == (u64)steps_rep && last == regs.rip)
			CHECK(15, regs.rcx == 5 - ++rep, "rcx %llu after %u iterations", regs.rcx, rep);
		if (regs.rip == (u64)steps_after_syscall) {
			saw_after_syscall = true;
			CHECK(16, regs.rax == (u64)child);
		}
		if (regs.rip == (u64)steps_popf)
			CHECK(17, !(regs.eflags & 0x100), "TF seen in the registers");
		last = regs.rip;
		CHECK(18, ++n < 100);
	}
	/* 23 instructions and 4 further iterations of rep movsb, less the one behind mov to ss */
	CHECK(19, n == 26, "%u steps", n);
	CHECK(20, rep == 4 && saw_after_syscall);
	errno = 0;
	long word = ptrace(PTRACE_PEEKDATA, child, steps_to, NULL);
	CHECK(21, !errno && !memcmp(&word, "hello", 5));
	expect_trap(resume(PTRACE_CONT), 22);
	CHECK(23, regs.rip == (u64)steps_end + 1);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void body_watch(void)
{
	touch(0, 1);
	touch(1, 2);
	(void)peek(2);
	touch(3, 4);
	touch(0, 5);
	watched[3] += peek(1);
	_exit((int)(watched[0] + watched[1] + watched[3]));
}

static void breakpoints(void)
{
	int status;
	start(body_watch);
	set_debug(0, (u64)touch);           /* execute */
	set_debug(1, (u64)&watched[1]);     /* write, 8 bytes */
	set_debug(2, (u64)&watched[2] + 4); /* read or write, 4 bytes */
	set_debug(7, 1 | 4 | 16 | (u64)(1 | 2 << 2) << 20 | (u64)(3 | 3 << 2) << 24);
	/* touch(0), touch(1) is entered, then writes; the next byte-wise neighbours do not count */
	unsigned executed = 0, written = 0, read = 0;
	for (;;) {
		status = resume(PTRACE_CONT);
		if (WIFEXITED(status))
			break;
		expect_trap(status, 30);
		u64 d = dr6();
		CHECK(31, !(d & 8));
		if (d & 1) {
			CHECK(32, regs.rip == (u64)touch, "%#llx", regs.rip);
			executed++;
		}
		if (d & 2) {
			CHECK(33, (u64)ptrace(PTRACE_PEEKDATA, child, &watched[1], NULL) == 2);
			written++;
		}
		read += !!(d & 4);
		set_debug(6, 0);
		CHECK(34, executed + written + read < 20);
	}
	CHECK(35, executed == 4, "%u", executed);
	CHECK(36, written == 1, "%u", written);
	CHECK(37, read == 1, "%u", read);
	CHECK(38, WEXITSTATUS(status) == 5 + 2 + 6, "%#x", status);
}

static void body_syscalls(void)
{
	syscall(SYS_getppid);
	_exit(syscall(SYS_getpid) == 777 ? 0 : 1);
}

static void syscalls(void)
{
	int status;
	start(body_syscalls);
	status = resume(PTRACE_SYSCALL);
	CHECK(40, WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80) && regs.orig_rax == SYS_getppid, "%#x", status);
	status = resume(PTRACE_SYSCALL);
	CHECK(41, regs.rax == (u64)getpid());
	status = resume(PTRACE_SYSCALL);
	CHECK(42, regs.orig_rax == SYS_getpid);
	status = resume(PTRACE_SYSCALL);
	regs.rax = 777;
	CHECK(43, !ptrace(PTRACE_SETREGS, child, NULL, &regs));
	status = resume(PTRACE_CONT);
	CHECK(44, WIFEXITED(status) && WEXITSTATUS(status) == 0, "%#x", status);
}

/* Steps through the C library's own code until the end: thousands of steps, through PLTs, strings, vectors. */
static void body_long(void)
{
	char a[200];
	int n = snprintf(a, sizeof a, "%d %s %f %lld", 42, "forty-two", 4.2, 42000000000ll);
	_exit(n == 32 && !strcmp(a, "42 forty-two 4.200000 42000000000") ? 0 : n == 33 ? 0 : 3);
}

static void long_way(void)
{
	int status;
	unsigned n = 0;
	start(body_long);
	for (;;) {
		status = resume(PTRACE_SINGLESTEP);
		if (!WIFSTOPPED(status))
			break;
		CHECK(50, WSTOPSIG(status) == SIGTRAP, "%#x", status);
		CHECK(51, ++n < 100000);
	}
	CHECK(52, WIFEXITED(status) && WEXITSTATUS(status) == 0, "%#x after %u steps", status, n);
	CHECK(53, n > 300, "%u", n);
}

int main(void)
{
	steps();
	breakpoints();
	syscalls();
	long_way();
	return 0;
}
