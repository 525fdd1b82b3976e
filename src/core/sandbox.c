/* Theory of operation.
 *
 * What must hold in a confined role (tests/sandbox tries each):
 *  - no file, socket, process or System V object is created or opened;
 *  - no signal reaches another process: neither by kill and its relatives nor
 *    by the owner signals of descriptors (F_SETOWN, FIOASYNC, F_SETSIG);
 *  - nothing becomes executable;
 *  - no other process of the user can be traced, read or limited;
 *  - the supervisor's death is the role's.
 * The seccomp filter alone gives this; namespaces and Landlock stand behind it
 * for the day the filter has a hole.  They are attempted because container
 * runtimes refuse them, and failing to get them is not an error.
 *
 * Order matters: unsharing the user namespace clears the death signal and
 * needs a single thread; Landlock needs no_new_privs and covers the calling
 * thread and what it starts later; the filter comes last because it forbids
 * all of that. */
#include "core/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/spawn.h"

#define SANDBOX_MAX_BPF 4096 /* the kernel's BPF_MAXINSNS */

/* Landlock, from the kernel's documentation (userspace-api/landlock.rst): the
 * headers of the build machine may be older than the running kernel. */
struct sandbox_landlock_attr {
	u64 handled_access_fs;
	u64 handled_access_net; /* ABI 4 */
	u64 scoped;             /* ABI 6 */
};
#define SANDBOX_NR_LANDLOCK_CREATE_RULESET 444
#define SANDBOX_NR_LANDLOCK_RESTRICT_SELF 446
#define SANDBOX_LANDLOCK_VERSION 1

static const struct {
	int abi;
	unsigned fs_bits;  /* access rights known */
	unsigned net_bits;
	unsigned scope_bits;
	size_t size;       /* of the attribute */
} sandbox_landlock_abi[] = {
	{ 1, 13, 0, 0, 8 },  { 2, 14, 0, 0, 8 },  { 3, 15, 0, 0, 8 },
	{ 4, 15, 2, 0, 16 }, { 5, 16, 2, 0, 16 }, { 6, 16, 2, 2, 24 },
};

/* Denies everything Landlock knows.  The ABI version, or 0. */
static int sandbox_landlock(void)
{
	long abi = syscall(SANDBOX_NR_LANDLOCK_CREATE_RULESET, NULL, 0, SANDBOX_LANDLOCK_VERSION);
	if (abi < 1)
		return 0;
	unsigned i = ARRAY_SIZE(sandbox_landlock_abi) - 1;
	while (sandbox_landlock_abi[i].abi > abi)
		i--;
	struct sandbox_landlock_attr a = {
		.handled_access_fs = MASK(sandbox_landlock_abi[i].fs_bits),
		.handled_access_net = MASK(sandbox_landlock_abi[i].net_bits),
		.scoped = MASK(sandbox_landlock_abi[i].scope_bits),
	};
	int fd = (int)syscall(SANDBOX_NR_LANDLOCK_CREATE_RULESET, &a, sandbox_landlock_abi[i].size, 0);
	if (fd < 0)
		return 0;
	long r = syscall(SANDBOX_NR_LANDLOCK_RESTRICT_SELF, fd, 0);
	close(fd);
	return r ? 0 : sandbox_landlock_abi[i].abi;
}

/* A user namespace with no mapping, no network, an empty root. */
static bool sandbox_namespaces(void)
{
	if (unshare(CLONE_NEWUSER))
		return false;
	/* From here on there is no way back, and each further wall stands for itself. */
	bool all = unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS) == 0;
	all = all && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
	all = all && mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "size=4k,mode=0555") == 0;
	all = all && chdir("/tmp") == 0 && chroot(".") == 0;
	/* The rights of the namespace's owner are not needed any more. */
	for (int cap = 0; cap < 64; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno == EINVAL)
			break;
	return all;
}

static int sandbox_limit(int resource, u64 value)
{
	struct rlimit rl;
	if (getrlimit((__rlimit_resource_t)resource, &rl))
		return -errno;
	if (value > rl.rlim_max) /* RLIM_INFINITY is the greatest value */
		value = rl.rlim_max;
	rl.rlim_cur = rl.rlim_max = value;
	return setrlimit((__rlimit_resource_t)resource, &rl) ? -errno : 0;
}

/* Drops every capability: a role started by root has no more rights than any other. */
static void sandbox_drop_capabilities(void)
{
	struct {
		u32 version;
		int pid;
	} header = { 0x20080522, 0 };
	u32 data[6] = { 0 };
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	syscall(__NR_capset, &header, data);
}

int sandbox_prepare(const struct sandbox_policy *p, struct sandbox_layers *got, struct err *e)
{
	*got = (struct sandbox_layers){ 0 };
	char name[16];
	snprintf(name, sizeof name, "umbra-%s", p->role);
	prctl(PR_SET_NAME, name);
	int r = p->outlive ? 0 : spawn_arm_death(e);
	if (r)
		return r;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return err_sys(e, errno, "cannot confine the %s process: no_new_privs", p->role);
	got->no_new_privs = true;
	got->namespaces = sandbox_namespaces();
	got->landlock_abi = sandbox_landlock();
	sandbox_drop_capabilities();
	const struct {
		int resource;
		u64 value;
		const char *name;
	} limits[] = {
		{ RLIMIT_CORE, 0, "core" },
		{ RLIMIT_NOFILE, p->max_fds, "descriptors" },
		{ RLIMIT_MSGQUEUE, 0, "message queues" },
		{ RLIMIT_CPU, p->max_cpu_s ? p->max_cpu_s : (u64)RLIM_INFINITY, "processor time" },
		{ RLIMIT_DATA, p->max_data ? p->max_data : (u64)RLIM_INFINITY, "data" },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
		r = sandbox_limit(limits[i].resource, limits[i].value);
		if (r)
			return err_sys(e, -r, "cannot confine the %s process: limit of %s", p->role, limits[i].name);
	}
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return err_sys(e, errno, "cannot confine the %s process: dumpable", p->role);
	got->cannot_ptrace = true;
	/* The new user namespace and the dropped rights have cleared it; asked for again, the parent checked again. */
	return p->outlive ? 0 : spawn_arm_death(e);
}

int sandbox_enter(const struct sandbox_policy *p, struct sandbox_layers *got, struct err *e)
{
	static struct sock_filter prog[SANDBOX_MAX_BPF];
	int n = seccomp_compile(p->rules, p->n_rules, (u32)getpid(), prog, SANDBOX_MAX_BPF);
	if (n < 0)
		return err_sys(e, -n, "cannot make the system-call filter of the %s process", p->role);
	/* No new process even if the filter let one pass; existing threads stay.  Files last: what set-up makes
	 * (memory files of the engine) counts as well. */
	int r = sandbox_limit(RLIMIT_NPROC, 0);
	if (!r)
		r = sandbox_limit(RLIMIT_FSIZE, p->max_file_size);
	if (r)
		return err_sys(e, -r, "cannot confine the %s process: limits", p->role);
	struct sock_fprog fprog = { .len = (unsigned short)n, .filter = prog };
	long t = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &fprog);
	if (t > 0)
		return err_set(e, EBUSY, "cannot confine the %s process: thread %ld refuses the filter", p->role, t);
	if (t < 0) {
		r = err_sys(e, errno, "cannot confine the %s process: seccomp", p->role);
		err_hint(e, "umbra needs a kernel and a container runtime that permit seccomp filters");
		return r;
	}
	got->seccomp = true;
	got->tsync = true;
	return 0;
}

int sandbox_probe(struct sandbox_layers *got, struct err *e)
{
	static const struct seccomp_rule rules[] = { SC_ALLOW(write), SC_ALLOW(exit_group) };
	static const struct sandbox_policy policy = {
		.role = "probe", .rules = rules, .n_rules = ARRAY_SIZE(rules), .max_fds = 16, .max_file_size = 0,
	};
	struct {
		struct sandbox_layers layers;
		struct err err;
		int result;
	} answer = { 0 };
	int p[2];
	if (pipe2(p, O_CLOEXEC))
		return err_sys(e, errno, "cannot try the sandbox");
	pid_t pid = fork();
	if (pid < 0) {
		int r = err_sys(e, errno, "cannot try the sandbox");
		close(p[0]);
		close(p[1]);
		return r;
	}
	if (pid == 0) {
		answer.result = sandbox_prepare(&policy, &answer.layers, &answer.err);
		if (!answer.result)
			answer.result = sandbox_enter(&policy, &answer.layers, &answer.err);
		_exit(write(p[1], &answer, sizeof answer) == sizeof answer ? 0 : 1);
	}
	close(p[1]);
	ssize_t n;
	do
		n = read(p[0], &answer, sizeof answer);
	while (n < 0 && errno == EINTR);
	close(p[0]);
	int wstatus = 0;
	while (waitpid(pid, &wstatus, 0) < 0 && errno == EINTR)
		;
	*got = answer.layers;
	if (n != sizeof answer) {
		char how[64];
		spawn_describe(wstatus, how, sizeof how);
		return err_set(e, EIO, "cannot try the sandbox: the trial process %s", how);
	}
	if (answer.result && e)
		*e = answer.err;
	return answer.result;
}
