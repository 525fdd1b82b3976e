/* What processors must guarantee each other, as a user program with a thread on each: memory order, locked instructions,
 * code written by one and executed by another, page tables changed by one and used by another, one clock.
 *
 * usage: smp_user [MILLISECONDS per check]     prints a line per check; exit status: how many failed */
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 16
#define PAGE 4096

static unsigned n_cpus, n_failed;
static uint64_t check_ns = 200000000;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void pin(unsigned k)
{
	cpu_set_t s;
	CPU_ZERO(&s);
	CPU_SET(k % n_cpus, &s);
	sched_setaffinity(0, sizeof s, &s);
}

static void result(const char *name, uint64_t bad, uint64_t rounds)
{
	printf("%s %s\n", name, bad ? "FAILED" : !rounds ? "did nothing" : "ok");
	if (bad)
		fprintf(stderr, "%s: %llu of %llu rounds\n", name, (unsigned long long)bad, (unsigned long long)rounds);
	n_failed += bad || !rounds;
	fflush(stdout);
}

/* ---- n threads, each pinned, all running fn(k) until `stop` ---- */

static atomic_bool stop;
static void (*run_fn)(unsigned);
static void *runner(void *arg)
{
	unsigned k = (unsigned)(uintptr_t)arg;
	pin(k);
	run_fn(k);
	return NULL;
}
static pthread_t threads[THREADS_MAX];
static void start(unsigned n, void (*fn)(unsigned))
{
	run_fn = fn;
	stop = false;
	for (unsigned k = 0; k < n; k++)
		if (pthread_create(&threads[k], NULL, runner, (void *)(uintptr_t)k))
			exit(99);
}
static void finish(unsigned n)
{
	stop = true;
	for (unsigned k = 0; k < n; k++)
		pthread_join(threads[k], NULL);
}
static void run_for(unsigned n, void (*fn)(unsigned), uint64_t ns)
{
	start(n, fn);
	struct timespec t = { .tv_nsec = (long)ns };
	nanosleep(&t, NULL);
	finish(n);
}

/* ---- litmus tests: threads meet at a barrier, do a few accesses, meet again; one of them judges ---- */

static volatile struct { _Alignas(64) long v; } x, y;
static volatile long r[8];
static _Alignas(64) atomic_uint meet_count;
static _Alignas(64) atomic_uint meet_round;
static unsigned meet_n;
static uint64_t rounds, bad, seen;

static void meet(void)
{
	unsigned round = meet_round;
	if (atomic_fetch_add(&meet_count, 1) + 1 == meet_n) {
		meet_count = 0;
		meet_round = round + 1;
		return;
	}
	for (unsigned k = 0; meet_round == round; k++)
		if (k % 256 == 255)
			sched_yield();
		else
			__builtin_ia32_pause();
}

#define BARRIER __asm__ volatile("" ::: "memory")
#define MFENCE __asm__ volatile("mfence" ::: "memory")
static enum { MP, SB, SB_MFENCE, SB_XCHG, LB, IRIW, NT } shape;
static const unsigned shape_threads[] = { 2, 2, 2, 2, 2, 4, 2 };

static void accesses(unsigned k)
{
	switch (shape) {
	case MP:
		if (k == 0) { x.v = 1; BARRIER; y.v = 1; } else { r[0] = y.v; BARRIER; r[1] = x.v; }
		break;
	case SB:
		if (k == 0) { x.v = 1; BARRIER; r[0] = y.v; } else { y.v = 1; BARRIER; r[1] = x.v; }
		break;
	case SB_MFENCE:
		if (k == 0) { x.v = 1; MFENCE; r[0] = y.v; } else { y.v = 1; MFENCE; r[1] = x.v; }
		break;
	case SB_XCHG: {
		long one = 1;
		if (k == 0) {
			__asm__ volatile("xchg %0, %1" : "+r"(one), "+m"(x.v)::"memory");
			r[0] = y.v;
		} else {
			__asm__ volatile("xchg %0, %1" : "+r"(one), "+m"(y.v)::"memory");
			r[1] = x.v;
		}
		break;
	}
	case LB:
		if (k == 0) { r[0] = y.v; BARRIER; x.v = 1; } else { r[1] = x.v; BARRIER; y.v = 1; }
		break;
	case IRIW:
		if (k == 0) x.v = 1;
		if (k == 1) y.v = 1;
		if (k == 2) { r[0] = x.v; BARRIER; r[1] = y.v; }
		if (k == 3) { r[2] = y.v; BARRIER; r[3] = x.v; }
		break;
	case NT:
		if (k == 0) {
			__asm__ volatile("movnti %1, %0; sfence; movq $1, %2" : "=m"(x.v) : "r"(1l), "m"(y.v) : "memory");
		} else {
			r[0] = y.v; BARRIER; r[1] = x.v;
		}
		break;
	}
}

static bool forbidden(void)
{
	switch (shape) {
	case MP:
	case NT: return r[0] == 1 && r[1] == 0;
	case SB:
		seen += r[0] == 0 && r[1] == 0; /* allowed */
		return false;
	case SB_MFENCE:
	case SB_XCHG: return r[0] == 0 && r[1] == 0;
	case LB: return r[0] == 1 && r[1] == 1;
	case IRIW: return r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0;
	}
	return true;
}

static void litmus_thread(unsigned k)
{
	for (;;) {
		if (k == 0) {
			x.v = y.v = 0;
			r[0] = r[1] = r[2] = r[3] = -1;
			r[7] = stop;
		}
		meet();
		if (r[7])
			return;
		accesses(k);
		meet();
		if (k == 0) {
			rounds++;
			bad += forbidden();
		}
	}
}

static void litmus(const char *name, int s)
{
	shape = s;
	meet_n = shape_threads[s];
	meet_count = 0;
	rounds = bad = seen = 0;
	run_for(meet_n, litmus_thread, check_ns);
	result(name, bad, rounds);
	if (s == SB)
		fprintf(stderr, "%s: both zero in %llu of %llu\n", name, (unsigned long long)seen, (unsigned long long)rounds);
}

/* ---- locked instructions ---- */

static _Alignas(PAGE) char page_pair[2 * PAGE];
static struct { _Alignas(64) volatile uint64_t inc, xadd, cmpxchg, adc8; _Alignas(16) volatile uint64_t wide[2]; volatile uint64_t plain;
	volatile uint32_t lock; volatile uint8_t bits[128]; } L;
static atomic_ullong locked_rounds;

static void locked_thread(unsigned k)
{
	volatile uint64_t *split = (volatile uint64_t *)(page_pair + PAGE - 3), *line = (volatile uint64_t *)(page_pair + 60);
	uint64_t n = 0, mine = k;
	while (!stop) {
		__asm__ volatile("lock incq %0" : "+m"(L.inc)::"memory");
		uint64_t one = 1;
		__asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(L.xadd)::"memory");
		uint64_t old = L.cmpxchg, got;
		do {
			got = old;
			__asm__ volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(L.cmpxchg) : "r"(got + 1) : "memory");
		} while (old != got);
		uint64_t lo = L.wide[0], hi = L.wide[1];
		bool done;
		do
			__asm__ volatile("lock cmpxchg16b %1; sete %0" : "=q"(done), "+m"(*(volatile __int128 *)L.wide), "+a"(lo), "+d"(hi)
					 : "b"(lo + 1), "c"(hi + 3) : "memory");
		while (!done);
		uint32_t taken;
		for (unsigned spin = 0;; spin++) {
			taken = 1;
			__asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(L.lock)::"memory");
			if (!taken)
				break;
			if (spin % 64 == 63)
				sched_yield();
		}
		L.plain++;
		__asm__ volatile("" ::: "memory");
		L.lock = 0;
		/* each thread owns a bit of the same bytes, by register bit offset and by immediate form */
		uint64_t bit = 8 * (n % 64) + k % 8;
		bool was;
		__asm__ volatile("lock btsq %2, %1; setc %0" : "=q"(was), "+m"(L.bits) : "r"(bit) : "memory");
		if (was)
			mine |= 1 << 20;
		__asm__ volatile("lock btrq %2, %1; setc %0" : "=q"(was), "+m"(L.bits) : "r"(bit) : "memory");
		if (!was)
			mine |= 1 << 20;
		__asm__ volatile("lock addq $1, %0" : "+m"(*line)::"memory");
		if (n % 16 == 0) { /* across a page: slow everywhere */
			__asm__ volatile("lock addq $1, %0" : "+m"(*split)::"memory");
			uint64_t sum = 1;
			__asm__ volatile("lock xaddq %0, %1" : "+r"(sum), "+m"(*split)::"memory");
		}
		n++;
	}
	if (mine & 1 << 20)
		atomic_fetch_add(&locked_rounds, 1ull << 40);
	atomic_fetch_add(&locked_rounds, n);
	/* rounds that did the page-crossing part */
	__atomic_fetch_add((uint64_t *)&r[6], (n + 15) / 16, __ATOMIC_SEQ_CST);
}

static void locked(void)
{
	memset(&L, 0, sizeof L);
	memset(page_pair, 0, sizeof page_pair);
	locked_rounds = 0;
	r[6] = 0;
	run_for(n_cpus < 4 ? 4 : n_cpus, locked_thread, check_ns);
	uint64_t n = locked_rounds & ((1ull << 40) - 1), split, line;
	memcpy(&split, page_pair + PAGE - 3, 8);
	memcpy(&line, page_pair + 60, 8);
	result("locked inc", L.inc != n, n);
	result("locked xadd", L.xadd != n, n);
	result("locked cmpxchg", L.cmpxchg != n, n);
	result("locked cmpxchg16b", L.wide[0] != n || L.wide[1] != 3 * n, n);
	result("xchg lock", L.plain != n, n);
	result("locked bts btr", locked_rounds >> 40, n);
	result("locked across lines", line != n, n);
	result("locked across pages", split != 2 * (uint64_t)r[6], n);
}

/* ---- code ---- */

typedef uint32_t (*code_fn)(void);
static uint8_t *code_page; /* writable and executable */
static void put_code(uint8_t *p, uint32_t value) /* mov eax, value at an aligned immediate; ret */
{
	uint8_t c[] = { 0xb8, (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24), 0xc3 };
	memcpy(p, c, sizeof c);
}

static _Atomic uint32_t published;
static atomic_ullong code_bad, code_rounds;

/* The immediate of running code is replaced (an aligned store): a reader sees old or new, never goes back, and after
 * membarrier() only the new one. */
static void patch_thread(unsigned k)
{
	code_fn f = (code_fn)(void *)(code_page + 3);
	if (k == 0) {
		for (uint32_t v = 1; !stop; v++) {
			*(volatile uint32_t *)(code_page + 4) = v;
			if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0))
				code_bad++;
			published = v;
		}
		return;
	}
	uint32_t before = 0;
	while (!stop) {
		uint32_t floor = published, got = f();
		if (got < floor || got < before)
			code_bad++;
		before = got;
		code_rounds++;
	}
}

/* A function is written where there was another one, then its address is handed over. */
static uint8_t *volatile handed;
static atomic_uint taken[THREADS_MAX];
static void jit_thread(unsigned k)
{
	if (k == 0) {
		for (uint32_t v = 1; !stop; v++) {
			uint8_t *p = code_page + v * 48 % (4 * PAGE - 64); /* pages, lines and page ends */
			put_code(p, v);
			__atomic_store_n((uint64_t *)&r[5], v, __ATOMIC_RELEASE);
			handed = p;
			for (unsigned j = 1; j < meet_n; j++)
				while (taken[j] != v && !stop)
					sched_yield();
		}
		return;
	}
	uint32_t last = 0;
	while (!stop) {
		uint8_t *p = handed;
		uint32_t v = (uint32_t)__atomic_load_n((uint64_t *)&r[5], __ATOMIC_ACQUIRE);
		if (v == last || p != code_page + v * 48 % (4 * PAGE - 64)) {
			sched_yield();
			continue;
		}
		/* What another processor wrote is executed after a serializing instruction. */
		uint32_t a = 0, b, c = 0, d;
		__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
		if (((code_fn)(void *)p)() != v)
			code_bad++;
		code_rounds++;
		last = v;
		taken[k] = v;
	}
}

/* Data beside running code in one page. */
static void beside_thread(unsigned k)
{
	volatile uint32_t *word = (volatile uint32_t *)(code_page + 1024 + 64 * k);
	code_fn f = (code_fn)(void *)(code_page + 16 * k);
	for (uint32_t v = 1; !stop; v++) {
		*word = v;
		if (f() != 1000 + k || *word != v)
			code_bad++;
		code_rounds++;
	}
}

static void code(void)
{
	code_page = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (code_page == MAP_FAILED)
		exit(98);
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
	put_code(code_page + 3, 0);
	run_for(n_cpus, patch_thread, check_ns);
	result("patched immediate", code_bad, code_rounds);

	code_bad = code_rounds = 0;
	memset(code_page, 0xcc, 4 * PAGE);
	meet_n = n_cpus;
	run_for(n_cpus, jit_thread, check_ns);
	result("code handed over", code_bad, code_rounds);

	code_bad = code_rounds = 0;
	for (unsigned k = 0; k < n_cpus; k++)
		put_code(code_page + 16 * k, 1000 + k);
	run_for(n_cpus, beside_thread, check_ns);
	result("data beside code", code_bad, code_rounds);
}

/* ---- page tables ---- */

static volatile uint64_t *guarded;
static atomic_ullong faults, writes;
static __thread sigjmp_buf escape;
static void on_segv(int sig, siginfo_t *info, void *uc)
{
	(void)sig, (void)uc;
	if ((uintptr_t)info->si_addr - (uintptr_t)guarded >= PAGE)
		_exit(97);
	faults++;
	siglongjmp(escape, 1);
}

static void writer_thread(unsigned k)
{
	if (k == 0) {
		while (!stop) {
			mprotect((void *)(uintptr_t)guarded, PAGE, PROT_READ);
			uint64_t a[8], b[8];
			for (unsigned j = 1; j < 8; j++)
				a[j] = guarded[j];
			for (volatile unsigned spin = 0; spin < 2000; spin++)
				;
			for (unsigned j = 1; j < 8; j++)
				b[j] = guarded[j];
			for (unsigned j = 1; j < 8; j++)
				code_bad += a[j] != b[j]; /* written through a stale translation */
			code_rounds++;
			mprotect((void *)(uintptr_t)guarded, PAGE, PROT_READ | PROT_WRITE);
			for (volatile unsigned spin = 0; spin < 2000; spin++)
				;
		}
		return;
	}
	sigsetjmp(escape, 1);
	while (!stop) {
		guarded[k % 8 ? k % 8 : 1]++;
		writes++;
	}
}

static void replace_thread(unsigned k)
{
	if (k == 0) {
		while (!stop) { /* after madvise() returns nobody may see the old page */
			guarded[0] = 1;
			madvise((void *)(uintptr_t)guarded, PAGE, MADV_DONTNEED);
			if (guarded[0] != 0)
				code_bad++;
			code_rounds++;
		}
		return;
	}
	while (!stop)
		writes += guarded[0] <= 1;
}

static void page_tables(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &sa, NULL);
	guarded = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (guarded == MAP_FAILED)
		exit(96);
	code_bad = code_rounds = 0;
	run_for(n_cpus, writer_thread, check_ns);
	result("mprotect under load", code_bad, code_rounds);
	code_bad = code_rounds = 0;
	run_for(n_cpus, replace_thread, check_ns);
	result("madvise under load", code_bad, code_rounds);
	signal(SIGSEGV, SIG_DFL);
}

/* ---- time ---- */

static _Alignas(64) _Atomic uint64_t latest;
static void clock_thread(unsigned k)
{
	(void)k;
	while (!stop) {
		uint64_t before = latest;
		uint32_t lo, hi;
		__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi)::"memory");
		uint64_t t = (uint64_t)hi << 32 | lo;
		if (t < before)
			code_bad++;
		while (t > before && !atomic_compare_exchange_weak(&latest, &before, t))
			;
		code_rounds++;
	}
}
static void monotonic_thread(unsigned k)
{
	(void)k;
	while (!stop) {
		uint64_t before = latest, t = now();
		if (t < before)
			code_bad++;
		while (t > before && !atomic_compare_exchange_weak(&latest, &before, t))
			;
		code_rounds++;
	}
}

/* ---- processes ---- */

static void fork_thread(unsigned k)
{
	while (!stop) {
		pid_t p = fork();
		if (p == 0) {
			char arg[16];
			snprintf(arg, sizeof arg, "=%u", k);
			execl("/proc/self/exe", "smp_user", arg, NULL);
			_exit(95);
		}
		int status = 0;
		if (p < 0 || waitpid(p, &status, 0) != p || !WIFEXITED(status) || WEXITSTATUS(status) != 40 + k)
			code_bad++;
		code_rounds++;
	}
}

/* ---- sleeping and waking ---- */

static _Atomic uint32_t ball;
static void ping_thread(unsigned k)
{
	while (!stop) {
		uint32_t b = ball;
		if (b % 2 != k) {
			struct timespec t = { .tv_nsec = 100000000 };
			syscall(SYS_futex, &ball, FUTEX_WAIT_PRIVATE, b, &t, NULL, 0);
			continue;
		}
		ball = b + 1;
		syscall(SYS_futex, &ball, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		code_rounds++;
	}
}

int main(int argc, char **argv)
{
	if (argc > 1 && argv[1][0] == '=')
		return 40 + atoi(argv[1] + 1);
	if (argc > 1)
		check_ns = strtoull(argv[1], NULL, 10) * 1000000;
	if (check_ns > 900000000)
		check_ns = 900000000;
	n_cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	if (n_cpus > 8)
		n_cpus = 8;
	printf("%u processors\n", n_cpus);
	if (n_cpus < 2)
		return 94;
	litmus("message passing", MP);
	litmus("store buffering", SB);
	litmus("store buffering, mfence", SB_MFENCE);
	litmus("store buffering, xchg", SB_XCHG);
	litmus("load buffering", LB);
	litmus("independent reads of independent writes", IRIW);
	litmus("non-temporal store, sfence", NT);
	locked();
	code();
	page_tables();
	code_bad = code_rounds = 0;
	latest = 0;
	run_for(n_cpus, clock_thread, check_ns);
	result("time-stamp counter", code_bad, code_rounds);
	code_bad = code_rounds = 0;
	latest = 0;
	run_for(n_cpus, monotonic_thread, check_ns);
	result("clock", code_bad, code_rounds);
	code_bad = code_rounds = 0;
	run_for(n_cpus, fork_thread, check_ns);
	result("fork and exec", code_bad, code_rounds);
	code_bad = code_rounds = 0;
	run_for(2, ping_thread, check_ns);
	result("sleep and wake", code_bad, code_rounds);
	return (int)n_failed;
}
