/* umbra doctor: every feature of the host that the engine uses, present or
 * missing, and what a missing one costs.  One table of checks; each asks the
 * host itself instead of guessing from version numbers. */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <json-c/json.h>
#include <limits.h>
#include <linux/kvm.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/kernels.h"
#include "core/ram.h"
#include "core/sandbox.h"

enum state { MISSING, PRESENT, UNUSED };

struct found {
	enum state state;
	char detail[PATH_MAX + 128];
};

static struct sandbox_layers layers; /* of the one probe that several checks look at */
static struct err layers_error;
static int layers_result;

__attribute__((format(printf, 3, 4))) static void say(struct found *f, bool present, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->detail, sizeof f->detail, fmt, ap);
	va_end(ap);
	f->state = present ? PRESENT : MISSING;
}

static bool cpuid_bit(u32 leaf, u32 subleaf, unsigned reg, unsigned bit)
{
	u32 r[4];
	u32 max = __get_cpuid_max(leaf & 0x80000000u, NULL);
	if (max < leaf)
		return false;
	__cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
	return r[reg] >> bit & 1;
}

enum { EAX, EBX, ECX, EDX };

static u64 host_xcr0(void)
{
	u32 lo, hi;
	if (!cpuid_bit(1, 0, ECX, 27))
		return 0;
	__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (u64)hi << 32 | lo;
}

static void check_cpu(struct found *f)
{
	u32 r[12] = { 0 };
	char brand[49] = "x86-64";
	if ((unsigned)__get_cpuid_max(0x80000000u, NULL) >= 0x80000004u) {
		for (u32 i = 0; i < 3; i++)
			__cpuid(0x80000002u + i, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
		memcpy(brand, r, 48);
		brand[48] = 0;
	}
	long n = sysconf(_SC_NPROCESSORS_ONLN);
	say(f, cpuid_bit(1, 0, ECX, 13), "%s, %ld online%s", brand, n, cpuid_bit(1, 0, ECX, 13) ? "" : ", no CMPXCHG16B");
}

static void check_xsave(struct found *f)
{
	u64 xcr0 = host_xcr0();
	say(f, xcr0 & 3, "XCR0 = %#llx:%s%s%s", (unsigned long long)xcr0, xcr0 ? " x87 SSE" : " none",
	    (xcr0 & 4) ? " AVX" : "", (xcr0 & 0xe0) == 0xe0 ? " AVX-512" : "");
}

static void check_tsc(struct found *f)
{
	bool invariant = cpuid_bit(0x80000007u, 0, EDX, 8);
	say(f, invariant, invariant ? "constant rate" : "its rate is not promised to be constant");
}

static void check_fsgsbase(struct found *f)
{
	bool on = getauxval(AT_HWCAP2) & 2; /* HWCAP2_FSGSBASE, Linux 5.9 */
	say(f, on, on ? "usable by programs" : "not enabled by the host kernel (Linux 5.9 does)");
}

static void check_bmi2(struct found *f)
{
	bool on = cpuid_bit(7, 0, EBX, 8);
	say(f, on, on ? "usable by programs" : "the processor does not have it");
}

static void check_kernel(struct found *f)
{
	struct utsname u;
	uname(&u);
	say(f, true, "%s %s", u.sysname, u.release);
}

static void check_seccomp(struct found *f)
{
	u32 action = SECCOMP_RET_KILL_PROCESS;
	bool avail = !syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
	say(f, avail && layers.seccomp, layers.seccomp ? "filters work%s" : "filters are refused%s",
	    layers.tsync ? ", for all threads at once" : "");
}

static void check_nnp(struct found *f) { say(f, layers.no_new_privs, layers.no_new_privs ? "works" : "refused"); }

static void check_memfd(struct found *f)
{
	int fd = ram_memfd_create("umbra-doctor", 4096);
	int r = fd < 0 ? fd : ram_memfd_check(fd, 4096);
	say(f, !r, "%s", r ? strerror(-r) : "sealed memory works");
	if (fd >= 0)
		close(fd);
}

static void check_pidfd(struct found *f)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	say(f, fd >= 0, "%s", fd >= 0 ? "works" : strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void check_landlock(struct found *f)
{
	if (layers.landlock_abi > 0)
		say(f, true, "ABI %d", layers.landlock_abi);
	else
		say(f, false, "not in the host kernel, or off");
}

static void check_namespaces(struct found *f)
{
	say(f, layers.namespaces, layers.namespaces ? "user, network, mount, IPC, UTS" : "refused (usual in containers)");
}

static void check_uffd(struct found *f)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		say(f, false, "%s; not used by this version", strerror(errno));
	else
		say(f, true, "works; not used by this version");
	if (fd >= 0)
		close(fd);
	f->state = UNUSED;
}

static void check_kvm(struct found *f)
{
	/* Only opened and asked for its version: neither can block. */
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		say(f, false, "%s; not used by this version", errno == ENOENT ? "no such device" : strerror(errno));
	else
		say(f, true, "API version %d; not used by this version", ioctl(fd, KVM_GET_API_VERSION, 0));
	if (fd >= 0)
		close(fd);
	f->state = UNUSED;
}

static void check_guest_kernel(struct found *f)
{
	struct kernel_found k;
	if (kernels_default(&k))
		say(f, true, "%s", k.path);
	else
		say(f, false, "none found (get one: umbra kernel fetch)");
}

static void check_cache(struct found *f)
{
	const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	char dir[PATH_MAX];
	if (xdg && xdg[0] == '/')
		snprintf(dir, sizeof dir, "%s/umbra", xdg);
	else if (home && home[0] == '/')
		snprintf(dir, sizeof dir, "%s/.cache/umbra", home);
	else {
		say(f, false, "no directory (set HOME or XDG_CACHE_HOME)");
		return;
	}
	/* The nearest directory that exists must let us make the rest. */
	char up[PATH_MAX];
	strcpy(up, dir);
	while (access(up, F_OK) && strlen(up) > 1) {
		char *slash = strrchr(up, '/');
		slash[slash == up] = 0;
	}
	bool ok = !access(up, W_OK | X_OK);
	say(f, ok, ok ? "%s" : "%s cannot be written", dir);
}

static void check_memory(struct found *f)
{
	unsigned long long kb = 0;
	char line[128];
	FILE *m = fopen("/proc/meminfo", "re");
	while (m && fgets(line, sizeof line, m))
		if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
			break;
	if (m)
		fclose(m);
	say(f, kb >= 192 * 1024, "%llu MB available", kb / 1024);
}

static const struct check {
	const char *name;
	bool needed; /* without it no VM runs */
	void (*fn)(struct found *f);
	const char *cost; /* of its absence */
} checks[] = {
	{ "processor", true, check_cpu, "no VM runs" },
	{ "xsave", true, check_xsave, "no VM runs: vector instructions execute on the host's own registers" },
	{ "tsc", false, check_tsc, "guest time may drift" },
	{ "fsgsbase", false, check_fsgsbase, "the interpreter runs instead of the translator, two to five times slower" },
	{ "bmi2", false, check_bmi2, "as fsgsbase" },
	{ "host-kernel", true, check_kernel, "" },
	{ "seccomp", true, check_seccomp, "no VM runs: the process that executes the guest could not be confined" },
	{ "no-new-privs", true, check_nnp, "no VM runs: as seccomp" },
	{ "memfd-seal", true, check_memfd, "no VM runs: guest memory cannot be shared safely" },
	{ "pidfd", true, check_pidfd, "no VM runs: the end of a process is not noticed reliably" },
	{ "landlock", false, check_landlock, "one layer less around the confined processes; seccomp holds alone" },
	{ "namespaces", false, check_namespaces, "one layer less around the confined processes; seccomp holds alone" },
	{ "userfaultfd", false, check_uffd, "nothing in this version" },
	{ "kvm", false, check_kvm, "nothing in this version" },
	{ "memory", false, check_memory, "a VM of the default 512 MB may be killed by the host" },
	{ "guest-kernel", true, check_guest_kernel, "nothing to boot; --kernel names one" },
	{ "cache", false, check_cache, "the kernel is extracted again by every run" },
};

int cli_doctor_main(const struct cli_verb *self, int argc, char **argv)
{
	enum { OPT_JSON = 256, OPT_HELP };
	static const struct option options[] = {
		{ "json", no_argument, NULL, OPT_JSON }, { "help", no_argument, NULL, OPT_HELP }, { 0 }
	};
	bool json = false;
	for (int c; (c = getopt_long(argc, argv, ":h", options, NULL)) >= 0;)
		switch (c) {
		case OPT_JSON: json = true; break;
		case 'h':
		case OPT_HELP: return cli_help(self);
		default: return cli_bad_option(self, argc, argv, c);
		}
	if (optind < argc)
		return cli_error("doctor: takes no argument, got %s", argv[optind]);

	layers_result = sandbox_probe(&layers, &layers_error);
	struct json_object *list = json ? json_object_new_array() : NULL;
	unsigned fatal = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(checks); i++) {
		const struct check *c = &checks[i];
		static struct found f;
		memset(&f, 0, sizeof f);
		c->fn(&f);
		static const char *const word[] = { "missing", "present", "unused" };
		bool bad = f.state == MISSING;
		fatal += bad && c->needed;
		if (json) {
			struct json_object *o = json_object_new_object();
			json_object_object_add(o, "name", json_object_new_string(c->name));
			json_object_object_add(o, "state", json_object_new_string(word[f.state]));
			json_object_object_add(o, "needed", json_object_new_boolean(c->needed));
			json_object_object_add(o, "detail", json_object_new_string(f.detail));
			json_object_object_add(o, "cost", bad ? json_object_new_string(c->cost) : NULL);
			json_object_array_add(list, o);
		} else {
			printf("%-13s %-8s %s\n", c->name, bad && c->needed ? "MISSING" : word[f.state], f.detail);
			if (bad)
				printf("%-13s %-8s costs: %s\n", "", "", c->cost);
		}
	}
	if (json) {
		struct json_object *top = json_object_new_object();
		json_object_object_add(top, "version", json_object_new_string(CLI_VERSION));
		json_object_object_add(top, "can_run", json_object_new_boolean(!fatal));
		json_object_object_add(top, "checks", list);
		puts(json_object_to_json_string_ext(top, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
		json_object_put(top);
	} else {
		puts(fatal ? "a VM cannot run here" : "a VM can run here");
		if (fatal && layers_result && *layers_error.text)
			printf("sandbox: %s\n", layers_error.text);
	}
	if (fflush(stdout))
		return cli_error("doctor: cannot write: %s", strerror(errno));
	return fatal ? 1 : 0;
}
