/* The same work natively, in umbra and under the peers: one static program that measures and prints
 * "ROW name value unit" lines.  As PID 1 it mounts what it needs, prints "INIT" first, and powers off at the end.
 *
 *   work [-q] [ROW...]     -q: a tenth of the work (interpreters)
 * Environment (or, as init, kernel command line words): WORK_QUICK=1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

static unsigned scale = 10; /* 10: full, 1: quick */
static const char *self = "/init";

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

/* Every row: returns operations done; the caller divides time by it. */
typedef uint64_t (*row_fn)(void);
static volatile uint64_t sink;
static volatile double fsink;

static uint64_t row_int(void)
{
	uint64_t n = 4000000ull * scale, x = 88172645463325252ull;
	for (uint64_t i = 0; i < n; i++)
		x = x * 6364136223846793005ull + 1442695040888963407ull;
	sink = x;
	return n;
}
static uint64_t row_float(void)
{
	uint64_t n = 2000000ull * scale;
	double x = 1.0, a = 0.999999, b = 1e-6;
	for (uint64_t i = 0; i < n; i++) {
		x = x * a + b;
		__asm__ volatile("" : "+x"(x));
	}
	fsink = x;
	return n;
}
static unsigned __attribute__((noinline)) fib(unsigned n)
{
	__asm__ volatile("");
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static uint64_t row_calls(void)
{
	uint64_t n = 0;
	for (unsigned i = 0; i < scale; i++, n++)
		sink = fib(25);
	return n;
}
static uint64_t row_memory(void)
{
	const size_t n = 1u << 21;
	static uint32_t *a;
	if (!a) {
		a = mmap(NULL, n * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (a == MAP_FAILED)
			die("mmap");
		for (size_t i = 0; i < n; i++)
			a[i] = (uint32_t)(i * 2654435761u);
	}
	for (unsigned k = 0; k < scale; k++)
		for (size_t i = 0; i + 1 < n; i++)
			if (a[i] > a[i + 1]) {
				uint32_t t = a[i];
				a[i] = a[i + 1];
				a[i + 1] = t;
			}
	return (uint64_t)scale * n;
}
static uint64_t row_getppid(void)
{
	uint64_t n = 10000ull * scale;
	for (uint64_t i = 0; i < n; i++)
		syscall(SYS_getppid);
	return n;
}
static uint64_t row_stat(void)
{
	uint64_t n = 2000ull * scale;
	struct stat st;
	for (uint64_t i = 0; i < n; i++)
		if (stat("/proc/self", &st) < 0)
			die("stat /proc/self");
	return n;
}
static uint64_t row_pread(void)
{
	uint64_t n = 2000ull * scale;
	char buf[4096] = { 1 };
	char path[] = "/tmp/work-pread-XXXXXX";
	int fd = mkstemp(path);
	if (fd < 0 || write(fd, buf, sizeof buf) != sizeof buf)
		die("temporary file");
	unlink(path);
	for (uint64_t i = 0; i < n; i++)
		if (pread(fd, buf, sizeof buf, 0) != sizeof buf)
			die("pread");
	close(fd);
	return n;
}
static uint64_t row_fault(void)
{
	uint64_t pages = 1000ull * scale;
	char *p = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, pages * 4096, MADV_NOHUGEPAGE);
	for (uint64_t i = 0; i < pages; i++)
		p[i * 4096] = 1;
	munmap(p, pages * 4096);
	return pages;
}
static uint64_t row_pipe(void)
{
	uint64_t n = 500ull * scale;
	int a[2], b[2];
	if (pipe(a) < 0 || pipe(b) < 0)
		die("pipe");
	pid_t pid = fork();
	char c = 0;
	if (pid == 0) {
		close(a[1]);
		close(b[0]);
		while (read(a[0], &c, 1) == 1)
			if (write(b[1], &c, 1) != 1)
				_exit(1);
		_exit(0);
	}
	for (uint64_t i = 0; i < n; i++)
		if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1)
			die("pipe round trip");
	close(a[0]);
	close(a[1]);
	close(b[0]);
	close(b[1]);
	waitpid(pid, NULL, 0);
	return n;
}
static uint64_t row_fork(void)
{
	uint64_t n = 20ull * scale;
	for (uint64_t i = 0; i < n; i++) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, NULL, 0) < 0)
			die("fork");
	}
	return n;
}
static uint64_t spawn_many(uint64_t n, char *const argv[])
{
	for (uint64_t i = 0; i < n; i++) {
		pid_t pid = fork();
		int status;
		if (pid == 0) {
			execv(argv[0], argv);
			_exit(127);
		}
		if (pid < 0 || waitpid(pid, &status, 0) < 0 || status)
			return 0;
	}
	return n;
}
static uint64_t row_exec_static(void) { return spawn_many(10ull * scale, (char *[]){ (char *)self, "--nothing", NULL }); }
static uint64_t row_exec_dynamic(void) { return spawn_many(10ull * scale, (char *[]){ "/bench/dynamic", NULL }); }
static uint64_t row_gzip(void)
{
	/* busybox gzip of 1 MB of compressible data */
	char path[] = "/tmp/work-gzip-XXXXXX", cmd[200];
	int fd = mkstemp(path);
	if (fd < 0)
		die("temporary file");
	uint32_t x = 1;
	char line[64];
	for (unsigned i = 0; i < 1700u * scale; i++) {
		x = x * 1664525u + 1013904223u;
		int len = snprintf(line, sizeof line, "line %u of the file holds the number %08x\n", i, x);
		if (write(fd, line, (size_t)len) != len)
			die("write");
	}
	close(fd);
	snprintf(cmd, sizeof cmd, "%s -c <%s >/dev/null", access("/bench/gzip", X_OK) ? "gzip" : "/bench/gzip", path);
	const char *sh = access("/bench/sh", X_OK) ? "/bin/sh" : "/bench/sh";
	uint64_t n = spawn_many(1, (char *[]){ (char *)sh, "-c", cmd, NULL });
	unlink(path);
	return n;
}

static const struct row { const char *name; row_fn fn; const char *unit; double per; } rows[] = {
	{ "integer", row_int, "ns/op", 1 },
	{ "floating", row_float, "ns/op", 1 },
	{ "calls", row_calls, "us/fib(25)", 1e3 },
	{ "memory", row_memory, "ns/element", 1 },
	{ "getppid", row_getppid, "ns", 1 },
	{ "stat", row_stat, "ns", 1 },
	{ "pread-4k", row_pread, "ns", 1 },
	{ "page-fault", row_fault, "ns", 1 },
	{ "pipe", row_pipe, "ns/round-trip", 1 },
	{ "fork-exit", row_fork, "us", 1e3 },
	{ "fork-exec-static", row_exec_static, "us", 1e3 },
	{ "fork-exec-dynamic", row_exec_dynamic, "us", 1e3 },
	{ "gzip", row_gzip, "ms", 1e6 },
};

static bool wanted(const char *name, int argc, char **argv)
{
	bool any = false;
	for (int k = 1; k < argc; k++) {
		if (argv[k][0] == '-')
			continue;
		any = true;
		if (!strcmp(argv[k], name))
			return true;
	}
	return !any;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--nothing"))
		return 0;
	const bool init = getpid() == 1;
	if (init) {
		mkdir("/proc", 0755);
		mkdir("/dev", 0755);
		mkdir("/tmp", 01777);
		mount("proc", "/proc", "proc", 0, NULL);
		mount("dev", "/dev", "devtmpfs", 0, NULL);
		mount("tmp", "/tmp", "tmpfs", 0, NULL);
		int fd = open("/dev/console", O_RDWR);
		if (fd >= 0) {
			dup2(fd, 0);
			dup2(fd, 1);
			dup2(fd, 2);
		}
	} else {
		self = "/proc/self/exe";
		char *path = realpath(self, NULL);
		if (path)
			self = path;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (init)
		printf("\nINIT\n");
	const char *quick = getenv("WORK_QUICK");
	if (quick && *quick == '1')
		scale = 1;
	if (argc > 1 && !strcmp(argv[1], "-q"))
		scale = 1;
	const char *only = getenv("WORK_ONLY_BOOT");
	for (unsigned k = 0; k < sizeof rows / sizeof rows[0] && !(only && *only == '1'); k++) {
		if (!wanted(rows[k].name, init ? 1 : argc, argv))
			continue;
		uint64_t t = now_ns(), n = rows[k].fn();
		t = now_ns() - t;
		if (n)
			printf("ROW %s %.3f %s\n", rows[k].name, (double)t / (double)n / rows[k].per, rows[k].unit);
		else
			printf("ROW %s - unavailable\n", rows[k].name);
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
