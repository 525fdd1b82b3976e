/* The oracle: runs each case on the host CPU, in a child process that may die.
 *
 * Theory of operation.  The child waits for a batch, then raises SIGTRAP once.  The signal handler rewrites the very
 * signal frame it was called with (general registers, RFLAGS, selectors, the whole XSAVE image), so that its return,
 * rt_sigreturn, loads the first case's state exactly; IRET enters the instruction under test.  Whatever ends it, the
 * INT3 behind it or a fault of its own, is a signal again, whose frame is the result; the handler stores it, loads
 * the next case into the frame and returns.  One signal per case.  After the last one the frame of the first SIGTRAP
 * is put back and the child finds itself behind its own INT3.
 *
 * What a signal frame does not carry is handled by the assembly stub: FS/GS bases (glibc's FS base must be back before
 * any C code), the data segment selectors, RFLAGS.AC (not cleared by the kernel) and RFLAGS.ID. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "insn_case.h"

/* Saved and loaded by the stub, one instance per process. */
struct native_segs {
	u64 fs_base, gs_base; /* in: of the case that ended; out: of the next */
	u64 host_fs_base;
	u64 flags;            /* pushed into RFLAGS before the return: ID only */
	u64 ds, es, fs, gs;   /* selectors of the case that ended */
};
struct native_segs native_segs __attribute__((visibility("hidden")));

void native_handler_stub(int sig, siginfo_t *info, void *uc);
void native_handler(int sig, siginfo_t *info, void *uc);

__asm__(".text\n.globl native_handler_stub\n.hidden native_handler_stub\n.type native_handler_stub,@function\n"
	"native_handler_stub:\n"
	"	pushq $2\n	popfq\n"
	"	subq $8, %rsp\n"
	"	rdfsbase %rax\n	movq %rax, native_segs+0(%rip)\n"
	"	rdgsbase %rax\n	movq %rax, native_segs+8(%rip)\n"
	"	movl %ds, %eax\n	movq %rax, native_segs+32(%rip)\n"
	"	movl %es, %eax\n	movq %rax, native_segs+40(%rip)\n"
	"	movl %fs, %eax\n	movq %rax, native_segs+48(%rip)\n"
	"	movl %gs, %eax\n	movq %rax, native_segs+56(%rip)\n"
	"	xorl %eax, %eax\n"
	"	movl %eax, %ds\n	movl %eax, %es\n	movl %eax, %fs\n	movl %eax, %gs\n"
	"	movq native_segs+16(%rip), %rax\n	wrfsbase %rax\n"
	"	call native_handler\n"
	"	movq native_segs+0(%rip), %rax\n	wrfsbase %rax\n"
	"	movq native_segs+8(%rip), %rax\n	wrgsbase %rax\n"
	"	addq $8, %rsp\n"
	"	pushq native_segs+24(%rip)\n	popfq\n"
	"	ret\n"
	".size native_handler_stub, .-native_handler_stub\n");

struct native_shared {
	struct insn_batch batch;
	struct insn_result result[BATCH_CASES];
	u32 current; /* case being run */
	u32 first;   /* where the next command starts */
};

struct native {
	struct executor e;
	struct native_shared *sh;
	pid_t pid;
	int to_child, from_child;
};

/* --- the child --- */

static struct native_shared *sh;
static bool running;
static s64 cur = -1;
static u64 loaded, tick_loaded; /* cases begun so far; the same at the last tick */
static gregset_t home_gregs;
static u8 home_fpu[XSAVE_MAX] __attribute__((aligned(64)));
static u64 home_gs_base;

static const int greg_of[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				 REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

static void frame_put_xsave(u8 *fp, const u8 *image)
{
	/* Bytes 464..511 are the kernel's (magic numbers, size). */
	memcpy(fp, image, 464);
	memcpy(fp + 512, image + 512, host.xsave_size - 512);
}

static void native_store(ucontext_t *uc, int sig)
{
	struct insn_result *r = &sh->result[cur];
	const gregset_t *g = &uc->uc_mcontext.gregs;
	for (unsigned i = 0; i < 16; i++)
		r->gpr[i] = (u64)(*g)[greg_of[i]];
	r->rip = (u64)(*g)[REG_RIP];
	r->rflags = (u64)(*g)[REG_EFL];
	r->fs_base = native_segs.fs_base;
	r->gs_base = native_segs.gs_base;
	u64 csgsfs = (u64)(*g)[REG_CSGSFS];
	r->cs = (u16)csgsfs;
	r->ss = (u16)(csgsfs >> 48);
	r->ds = (u16)native_segs.ds;
	r->es = (u16)native_segs.es;
	r->fs = (u16)native_segs.fs;
	r->gs = (u16)native_segs.gs;
	r->end = (u32)(*g)[REG_TRAPNO];
	r->error = (u32)(*g)[REG_ERR];
	r->cr2 = r->end == 14 ? (u64)(*g)[REG_CR2] : 0;
	if (sig == SIGPROF)
		r->end = END_TIMEOUT;
	else if (sig == SIGSYS)
		r->end = END_OTHER;
	memcpy(r->xsave, uc->uc_mcontext.fpregs, host.xsave_size);
	arena_collect((u8 *)CODE_BASE, (u8 *)DATA_BASE, sh->batch.arena, r);
}

static void native_load(ucontext_t *uc)
{
	const struct insn_case *c = &sh->batch.c[cur];
	gregset_t *g = &uc->uc_mcontext.gregs;
	for (unsigned i = 0; i < 16; i++)
		(*g)[greg_of[i]] = (long long)c->gpr[i];
	(*g)[REG_RIP] = (long long)c->rip;
	(*g)[REG_EFL] = (long long)(c->rflags | 0x202);
	(*g)[REG_CSGSFS] = (long long)((u64)SEL_USER_DS << 48 | SEL_USER_CS);
	u8 *fp = (u8 *)uc->uc_mcontext.fpregs;
	frame_put_xsave(fp, sh->batch.vec[c->vec]);
	if (c->vec_reg != 0xff)
		xsave_set_vec(fp, c->vec_reg, c->vec_val);
	native_segs.fs_base = c->fs_base;
	native_segs.gs_base = c->gs_base;
	native_segs.flags = (c->rflags & BIT(21)) | 2;
	arena_place((u8 *)CODE_BASE, (u8 *)DATA_BASE, c);
	sh->current = (u32)cur;
	loaded++;
}

void native_handler(int sig, siginfo_t *info, void *ucv)
{
	ucontext_t *uc = ucv;
	native_segs.flags = ((u64)uc->uc_mcontext.gregs[REG_EFL] & BIT(21)) | 2; /* ID goes back as it came */
	if (!running) {
		if (sig != SIGTRAP)
			return;
		running = true;
		memcpy(&home_gregs, &uc->uc_mcontext.gregs, sizeof(home_gregs));
		memcpy(home_fpu, uc->uc_mcontext.fpregs, host.xsave_size);
		home_gs_base = native_segs.gs_base;
		cur = sh->first;
		native_load(uc);
		return;
	}
	if (sig == SIGPROF && tick_loaded != loaded) {
		tick_loaded = loaded;
		return;
	}
	native_store(uc, sig);
	if (++cur < sh->batch.n) {
		native_load(uc);
		return;
	}
	memcpy(&uc->uc_mcontext.gregs, &home_gregs, sizeof(home_gregs));
	frame_put_xsave((u8 *)uc->uc_mcontext.fpregs, home_fpu);
	native_segs.fs_base = native_segs.host_fs_base;
	native_segs.gs_base = home_gs_base;
	running = false;
}

static void native_fail(const char *what)
{
	perror(what);
	_exit(3);
}

static void map_at(u64 addr, u64 size, int prot)
{
	void *p = mmap((void *)addr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (p != (void *)addr)
		native_fail("insn: mmap of the arena");
}

/* glibc >= 2.35 registers restartable sequences; the kernel would write into the thread area of a process that has
 * lent its FS base to a test. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

static _Noreturn void native_child(int in, int out)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (&__rseq_offset && &__rseq_size && __rseq_size)
		syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, 1, 0x53053053);
	map_at(CODE_BASE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
	map_at(DATA_BASE, DATA_SIZE, PROT_READ | PROT_WRITE);

	size_t stack = 256 * 1024;
	void *alt = mmap(NULL, stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	stack_t ss = { .ss_sp = alt, .ss_size = stack };
	if (alt == MAP_FAILED || sigaltstack(&ss, NULL))
		native_fail("insn: sigaltstack");
	struct sigaction sa = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sa.sa_sigaction = native_handler_stub;
	sigfillset(&sa.sa_mask);
	static const int sigs[] = { SIGTRAP, SIGSEGV, SIGILL, SIGBUS, SIGFPE, SIGPROF, SIGSYS };
	for (unsigned i = 0; i < ARRAY_SIZE(sigs); i++)
		if (sigaction(sigs[i], &sa, NULL))
			native_fail("insn: sigaction");
	__asm__ volatile("rdfsbase %0" : "=r"(native_segs.host_fs_base));
	struct itimerval it = { .it_interval = { .tv_usec = 200000 }, .it_value = { .tv_usec = 200000 } };
	setitimer(ITIMER_PROF, &it, NULL);

	for (;;) {
		char cmd;
		ssize_t n = read(in, &cmd, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != 1)
			_exit(0);
		memcpy((void *)CODE_BASE, sh->batch.arena, CODE_SIZE);
		mprotect((void *)(DATA_BASE + DATA_RW_SIZE), DATA_RO_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE);
		memcpy((void *)DATA_BASE, sh->batch.arena + CODE_SIZE, DATA_SIZE);
		mprotect((void *)(DATA_BASE + DATA_RW_SIZE), DATA_RO_PAGES * PAGE_SIZE, PROT_READ);
		__asm__ volatile("int3" ::: "memory", "cc");
		while (write(out, &cmd, 1) < 0 && errno == EINTR)
			;
	}
}

/* --- the parent --- */

static void native_spawn(struct native *n)
{
	int a[2], b[2];
	if (pipe2(a, O_CLOEXEC) || pipe2(b, O_CLOEXEC))
		native_fail("insn: pipe");
	n->pid = fork();
	if (n->pid < 0)
		native_fail("insn: fork");
	if (!n->pid) {
		close(a[1]);
		close(b[0]);
		sh = n->sh;
		native_child(a[0], b[1]);
	}
	close(a[0]);
	close(b[1]);
	n->to_child = a[1];
	n->from_child = b[0];
}

static void native_reap(struct native *n)
{
	kill(n->pid, SIGKILL);
	waitpid(n->pid, NULL, 0);
	close(n->to_child);
	close(n->from_child);
	n->pid = 0;
}

static void native_kickoff(struct native *n, u32 first)
{
	n->sh->first = first;
	n->sh->current = first;
	if (!n->pid)
		native_spawn(n);
	if (write(n->to_child, "g", 1) != 1)
		native_fail("insn: write to the native child");
}

static void native_start(struct executor *e)
{
	native_kickoff((struct native *)e, 0);
}

static void native_wait(struct executor *e)
{
	struct native *n = (struct native *)e;
	for (;;) {
		u32 before = n->sh->current;
		struct pollfd p = { .fd = n->from_child, .events = POLLIN };
		int ready = poll(&p, 1, 3000);
		char cmd;
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready > 0 && read(n->from_child, &cmd, 1) == 1)
			return;
		if (!ready && n->sh->current != before)
			continue;
		/* Dead, or beyond even SIGPROF: this case is lost, go on behind it. */
		u32 k = n->sh->current;
		native_reap(n);
		n->sh->result[k].end = END_DIED;
		if (k + 1 >= n->sh->batch.n)
			return;
		native_kickoff(n, k + 1);
	}
}

static struct executor *native_create(void)
{
	struct native *n = calloc(1, sizeof(*n));
	if (!n)
		native_fail("insn: calloc");
	n->e = executor_native;
	n->sh = mmap(NULL, sizeof(*n->sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (n->sh == MAP_FAILED)
		native_fail("insn: mmap");
	n->e.batch = &n->sh->batch;
	n->e.result = n->sh->result;
	signal(SIGPIPE, SIG_IGN);
	return &n->e;
}

static void native_destroy(struct executor *e)
{
	struct native *n = (struct native *)e;
	if (n->pid)
		native_reap(n);
	munmap(n->sh, sizeof(*n->sh));
	free(n);
}

const struct executor executor_native = {
	.name = "native", .create = native_create, .destroy = native_destroy, .start = native_start, .wait = native_wait,
};
