/* The same work natively, in umbra and under its peers: one static program that measures itself and prints
 *
 *   ROW NAME VALUE UNIT       VALUE "-": cannot be measured here
 *
 * A row repeats its operation until MIN_MS have passed (a warm-up finds how often that is), three times, and reports the
 * fastest: other programs of the host only ever add time.  So the figures are as steady on an engine a hundred times
 * slower, and the whole takes the same time everywhere.
 * As PID 1 it mounts what it needs, prints INIT before anything else, and powers off at the end.
 *
 *   work [ROW...]
 *   work --tsc-khz     the frequency of this processor's time-stamp counter
 *
 * Environment; for PID 1 these are words of the kernel's command line:
 *   WORK_ROWS=a,b,c   only these
 *   WORK_MIN_MS=N     least time of one measurement (default 100)
 *   WORK_MODE=boot    nothing but INIT and power-off
 *   WORK_MODE=idle    print IDLE, sleep WORK_SLEEP seconds (default 14), print AWAKE and power off */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PASSES 3
#define MEMORY_ELEMENTS (1u << 19) /* 2 MiB: beyond the first-level caches, within the reach of every guest */
#define GZIP_BYTES (256u << 10)

static const char *self = "/init"; /* for fork-exec-static: this very program */
static volatile uint64_t sink;     /* keeps results alive */
static volatile double fsink;

static uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "work: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- computing ---- */

/* A known number of simple instructions: SIMPLE_INSNS per round, of the mix compilers emit (register moves and arithmetic,
 * loads, stores, a compare, a branch not taken and one taken). */
#define SIMPLE_INSNS 16
static void run_simple(uint64_t n)
{
	static uint64_t cell[4];
	uint64_t a = 1, b = 2, d = 3;
	__asm__ volatile("1:\n\t"
			 "mov (%[m]), %[a]\n\t"
			 "add $7, %[a]\n\t"
			 "mov %[a], %[b]\n\t"
			 "and $0xff, %[b]\n\t"
			 "lea 8(%[a],%[b],2), %[d]\n\t"
			 "mov %[d], 8(%[m])\n\t"
			 "cmp $256, %[b]\n\t"
			 "jae 2f\n\t"
			 "xor %[d], %[a]\n\t"
			 "shr $3, %[d]\n\t"
			 "mov 16(%[m]), %[d]\n\t"
			 "sub %[b], %[d]\n\t"
			 "mov %[d], 24(%[m])\n\t"
			 "mov %[a], %[b]\n\t"
			 "dec %[n]\n\t"
			 "jnz 1b\n"
			 "2:"
			 : [a] "+&r"(a), [b] "+&r"(b), [d] "+&r"(d), [n] "+&r"(n)
			 : [m] "r"(cell)
			 : "cc", "memory");
}

static void run_integer(uint64_t n)
{
	uint64_t x = 88172645463325252ull;
	for (uint64_t i = 0; i < n; i++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		x ^= x >> 29;
	}
	sink = x;
}

static void run_floating(uint64_t n)
{
	double x = 1.0, a = 0.999999, b = 1e-6;
	for (uint64_t i = 0; i < n; i++) {
		x = x * a + b;
		__asm__ volatile("" : "+x"(x));
	}
	fsink = x;
}

static unsigned __attribute__((noinline)) fib(unsigned n)
{
	__asm__ volatile("");
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static void run_calls(uint64_t n)
{
	while (n--)
		sink = fib(20);
}

static uint32_t *elements;
static bool setup_memory(void)
{
	elements = mmap(NULL, MEMORY_ELEMENTS * sizeof *elements, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (elements == MAP_FAILED)
		return false;
	for (uint32_t i = 0; i < MEMORY_ELEMENTS; i++)
		elements[i] = i * 2654435761u;
	return true;
}
/* One operation: a load, a load, and a store to a scattered place. */
static void run_memory(uint64_t n)
{
	uint32_t at = 1;
	for (uint64_t i = 0; i < n; i++) {
		uint32_t v = elements[i % MEMORY_ELEMENTS];
		at = (at * 1664525u + v) % MEMORY_ELEMENTS;
		elements[at] += v;
	}
}

/* ---- the kernel ---- */

static void run_getppid(uint64_t n)
{
	while (n--)
		syscall(SYS_getppid);
}

static void run_stat(uint64_t n)
{
	struct stat st;
	while (n--)
		if (stat("/proc/self", &st))
			die("stat /proc/self");
}

static int file_fd;
static bool setup_pread(void)
{
	char path[] = "/tmp/work-pread-XXXXXX", buf[4096] = { 1 };
	file_fd = mkstemp(path);
	if (file_fd < 0)
		return false;
	unlink(path);
	return write(file_fd, buf, sizeof buf) == sizeof buf;
}
static void run_pread(uint64_t n)
{
	char buf[4096];
	while (n--)
		if (pread(file_fd, buf, sizeof buf, 0) != sizeof buf)
			die("pread");
}

/* Anonymous pages touched for the first time, 256 at a time; mapping and unmapping are part of it. */
#define FAULT_PAGES 256
static void run_fault(uint64_t n)
{
	while (n--) {
		char *p = mmap(NULL, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			die("mmap");
		madvise(p, FAULT_PAGES * 4096, MADV_NOHUGEPAGE);
		for (unsigned k = 0; k < FAULT_PAGES; k++)
			*(volatile char *)(p + k * 4096) = 1;
		munmap(p, FAULT_PAGES * 4096);
	}
}

static int to_child[2], from_child[2];
static pid_t child;
static bool setup_pipe(void)
{
	if (pipe(to_child) || pipe(from_child))
		return false;
	child = fork();
	if (child == 0) {
		char c;
		close(to_child[1]);
		close(from_child[0]);
		while (read(to_child[0], &c, 1) == 1 && write(from_child[1], &c, 1) == 1) {
		}
		_exit(0);
	}
	close(to_child[0]);
	close(from_child[1]);
	return child > 0;
}
static void run_pipe(uint64_t n)
{
	char c = 0;
	while (n--)
		if (write(to_child[1], &c, 1) != 1 || read(from_child[0], &c, 1) != 1)
			die("pipe round trip");
}
static void finish_pipe(void)
{
	close(to_child[1]);
	close(from_child[0]);
	waitpid(child, NULL, 0);
}

static void run_fork(uint64_t n)
{
	while (n--) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			die("fork");
	}
}

static bool spawn(const char *const argv[])
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		execv(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static const char *const argv_static[] = { "", "--nothing", NULL };
static const char *argv_dynamic[] = { "/bench/dynamic", NULL };
static void run_exec_static(uint64_t n)
{
	const char *const argv[] = { self, argv_static[1], NULL };
	while (n--)
		if (!spawn(argv))
			die("exec of the static program");
}
static bool setup_exec_dynamic(void)
{
	const char *dir = getenv("WORK_DIR"); /* natively: where the files lie that an initramfs has in /bench */
	static char path[4096];
	if (dir) {
		snprintf(path, sizeof path, "%s/dynamic", dir);
		argv_dynamic[0] = path;
	}
	return spawn(argv_dynamic);
}
static void run_exec_dynamic(uint64_t n)
{
	while (n--)
		if (!spawn(argv_dynamic))
			die("exec of the dynamic program");
}

/* A shell that starts a program that computes and reads: busybox compresses 256 KiB of text. */
static char gzip_sh[4200], gzip_command[8500], gzip_file[] = "/tmp/work-gzip-XXXXXX";
static bool setup_gzip(void)
{
	const char *dir = getenv("WORK_DIR");
	if (!dir)
		dir = "/bench";
	snprintf(gzip_sh, sizeof gzip_sh, "%s/sh", dir);
	if (access(gzip_sh, X_OK))
		return false;
	int fd = mkstemp(gzip_file);
	if (fd < 0)
		return false;
	uint32_t x = 1;
	unsigned size = 0;
	for (unsigned i = 0; size < GZIP_BYTES; i++) {
		char line[80];
		x = x * 1664525u + 1013904223u;
		int len = snprintf(line, sizeof line, "line %u of the file holds the number %08x\n", i, x);
		if (write(fd, line, (size_t)len) != len)
			return false;
		size += (unsigned)len;
	}
	close(fd);
	snprintf(gzip_command, sizeof gzip_command, "%s/gzip -c <%s >/dev/null", dir, gzip_file);
	const char *const argv[] = { gzip_sh, "-c", gzip_command, NULL };
	return spawn(argv);
}
static void run_gzip(uint64_t n)
{
	const char *const argv[] = { gzip_sh, "-c", gzip_command, NULL };
	while (n--)
		if (!spawn(argv))
			die("gzip");
}
static void finish_gzip(void) { unlink(gzip_file); }

static const struct row {
	const char *name;
	void (*run)(uint64_t n);  /* n operations */
	const char *unit;
	double ns_per_unit;       /* 0: a rate, in millions of ops_per_run per second */
	double ops_per_run;       /* operations that one of n stands for */
	bool (*setup)(void);      /* false: cannot be measured here */
	void (*finish)(void);
} rows[] = {
	{ "simple-insns", run_simple, "million/s", 0, SIMPLE_INSNS, NULL, NULL },
	{ "integer", run_integer, "ns", 1, 1, NULL, NULL },
	{ "floating", run_floating, "ns", 1, 1, NULL, NULL },
	{ "calls", run_calls, "us", 1e3, 1, NULL, NULL },
	{ "memory", run_memory, "ns", 1, 1, setup_memory, NULL },
	{ "getppid", run_getppid, "ns", 1, 1, NULL, NULL },
	{ "stat", run_stat, "ns", 1, 1, NULL, NULL },
	{ "pread-4k", run_pread, "ns", 1, 1, setup_pread, NULL },
	{ "page-fault", run_fault, "ns", 1, FAULT_PAGES, NULL, NULL },
	{ "pipe", run_pipe, "ns", 1, 1, setup_pipe, finish_pipe },
	{ "fork-exit", run_fork, "us", 1e3, 1, NULL, NULL },
	{ "fork-exec-static", run_exec_static, "us", 1e3, 1, NULL, NULL },
	{ "fork-exec-dynamic", run_exec_dynamic, "us", 1e3, 1, setup_exec_dynamic, NULL },
	{ "gzip", run_gzip, "ms", 1e6, 1, setup_gzip, finish_gzip },
};

static uint64_t timed(const struct row *r, uint64_t n)
{
	uint64_t t = now_ns();
	r->run(n);
	t = now_ns() - t;
	return t ? t : 1;
}

static void measure(const struct row *r, uint64_t min_ns)
{
	if (r->setup && !r->setup()) {
		printf("ROW %s - %s\n", r->name, r->unit);
		return;
	}
	uint64_t n = 1, t;
	while ((t = timed(r, n)) < min_ns / 2) {
		uint64_t factor = min_ns / t + 1;
		n *= factor > 10 ? 10 : factor;
	}
	n = n * min_ns / t + 1;
	uint64_t best = ~0ull;
	for (unsigned k = 0; k < PASSES; k++)
		if ((t = timed(r, n)) < best)
			best = t;
	if (r->finish)
		r->finish();
	double v = (double)best / (double)n / r->ops_per_run;
	printf("ROW %s %.3f %s\n", r->name, r->ns_per_unit ? v / r->ns_per_unit : 1e3 / v, r->unit);
}

static unsigned tsc_khz(void)
{
	uint64_t t = now_ns(), ticks = __rdtsc();
	usleep(200000);
	ticks = __rdtsc() - ticks;
	return (unsigned)(ticks * 1000000u / (now_ns() - t));
}

static bool wanted(const char *name, const char *list)
{
	size_t len = strlen(name);
	for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
		if (!strncmp(p, name, len) && (p[len] == ',' || !p[len]))
			return true;
	return false;
}

static void be_init(void)
{
	static const struct { const char *what, *where; mode_t mode; } mounts[] = {
		{ "proc", "/proc", 0755 }, { "devtmpfs", "/dev", 0755 }, { "tmpfs", "/tmp", 01777 },
	};
	for (unsigned k = 0; k < sizeof mounts / sizeof mounts[0]; k++) {
		mkdir(mounts[k].where, mounts[k].mode);
		mount(mounts[k].what, mounts[k].where, mounts[k].what, 0, NULL);
	}
	int fd = open("/dev/console", O_RDWR);
	for (int k = 0; fd >= 0 && k < 3; k++)
		dup2(fd, k);
	static const char first[] = "\nINIT\n";
	if (write(1, first, sizeof first - 1) < 0)
		die("console");
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--nothing"))
		return 0;
	if (argc == 2 && !strcmp(argv[1], "--tsc-khz")) {
		printf("%u\n", tsc_khz());
		return 0;
	}
	const bool init = getpid() == 1;
	if (init) {
		be_init();
	} else {
		char *path = realpath("/proc/self/exe", NULL);
		if (path)
			self = path;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	const char *list = getenv("WORK_ROWS"), *min = getenv("WORK_MIN_MS"), *mode = getenv("WORK_MODE"), *s = getenv("WORK_SLEEP");
	uint64_t min_ns = (min && atoi(min) > 0 ? (uint64_t)atoi(min) : 100) * 1000000u;
	if (mode && !strcmp(mode, "idle")) {
		printf("IDLE\n");
		sleep(s && atoi(s) > 0 ? (unsigned)atoi(s) : 14);
		printf("AWAKE\n");
	} else if (!mode || strcmp(mode, "boot")) {
		for (unsigned k = 0; k < sizeof rows / sizeof rows[0]; k++) {
			bool named = init || argc == 1;
			for (int j = 1; !init && j < argc; j++)
				named |= !strcmp(argv[j], rows[k].name);
			if (named && (!list || !*list || wanted(rows[k].name, list)))
				measure(&rows[k], min_ns);
		}
	}
	printf("DONE\n");
	fflush(NULL);
	if (init) {
		sync();
		reboot(RB_POWER_OFF);
		reboot(RB_AUTOBOOT);
	}
	return 0;
}
