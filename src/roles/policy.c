/* What each role may ask of the host's kernel once it is confined: the whole
 * list, on a few screens.  Everything else kills the process.
 *
 * Never in here: open and its relatives, socket, connect, bind, execve, fork
 * and clone, kill and tkill, ptrace and process_vm_*, prctl, memfd_create,
 * pidfd_*, io_uring, bpf, keyctl, mount, unshare, setns, userfaultfd,
 * F_SETOWN, F_SETOWN_EX, F_SETSIG, F_SETFL, FIOASYNC, FIOSETOWN, SIOCSPGRP,
 * anything PROT_EXEC. */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "roles/roles.h"
#include "super/proto.h"

#define POLICY_MREMAP_MAYMOVE 1

/* Every role: malloc, threads that end, time, and the end. */
#define POLICY_COMMON                                                                                                  \
	/* Memory: private and anonymous, never executable.  Fixed addresses may replace only our own mappings. */     \
	SC_IF3(mmap, SC_CHECK(2, SC_U32, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE),                                \
	       SC_CHECK(3, MAP_TYPE | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS), SC_CHECK(4, SC_U32, SC_U32)),       \
	SC_IF1(mprotect, SC_CHECK(2, SC_U32, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE)),                           \
	SC_ALLOW(munmap), SC_ALLOW(brk), SC_IF1(mremap, SC_CHECK(3, SC_U32, 0, POLICY_MREMAP_MAYMOVE)),                \
	SC_IF1(madvise, SC_CHECK(2, SC_U32, MADV_DONTNEED, MADV_FREE, MADV_DONTDUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE)), \
	/* Threads that exist already. */                                                                             \
	SC_ALLOW(futex), SC_ALLOW(sched_yield), SC_ALLOW(gettid), SC_ALLOW(getpid), SC_ALLOW(exit),                    \
	SC_ALLOW(exit_group), SC_ALLOW(rt_sigprocmask), SC_ALLOW(rt_sigreturn), SC_ALLOW(sigaltstack),                 \
	SC_ALLOW(rt_sigaction), SC_ALLOW(restart_syscall),                                                             \
	/* glibc's malloc counts the processors when it makes an arena. */                                            \
	SC_IF1(sched_getaffinity, SC_CHECK(0, SC_U32, 0)),                                                             \
	/* Time. */                                                                                                   \
	SC_ALLOW(clock_gettime), SC_ALLOW(gettimeofday), SC_ALLOW(time), SC_ALLOW(nanosleep),                          \
	SC_ALLOW(clock_nanosleep), SC_ALLOW(clock_getres),                                                             \
	/* Descriptors it has. */                                                                                     \
	SC_ALLOW(read), SC_ALLOW(write), SC_ALLOW(readv), SC_ALLOW(writev), SC_ALLOW(pread64), SC_ALLOW(lseek),        \
	SC_ALLOW(close), SC_ALLOW(fstat),                                                                              \
	SC_IF1(fcntl, SC_CHECK(1, SC_U32, F_GETFD, F_GETFL, F_GET_SEALS)),                                             \
	/* The supervisor. */                                                                                         \
	SC_IF1(sendmsg, SC_CHECK(0, SC_U32, ROLE_FD_CONTROL)), SC_IF1(recvmsg, SC_CHECK(0, SC_U32, ROLE_FD_CONTROL))

static const struct seccomp_rule policy_vm_rules[] = {
	POLICY_COMMON,
	SC_ALLOW(epoll_ctl), SC_ALLOW(epoll_wait), SC_ALLOW(epoll_pwait), SC_ALLOW(ppoll), SC_ALLOW(poll),
	SC_ALLOW(timerfd_settime),
	/* Kicks of vCPU threads. */
	SC_IF1(tgkill, SC_CHECK(0, SC_U32, SECCOMP_OWN_TGID)),
	SC_ALLOW(getrandom),
	SC_ALLOW(set_robust_list), SC_ALLOW(rseq),
};

static const struct seccomp_rule policy_extract_rules[] = {
	POLICY_COMMON,
	SC_ALLOW(pwrite64),
};

static const struct seccomp_rule policy_session_rules[] = {
	SC_IF1(ioctl, SC_CHECK(1, SC_U32, TIOCGWINSZ)),
	POLICY_COMMON,
	SC_ALLOW(epoll_ctl), SC_ALLOW(epoll_wait), SC_ALLOW(epoll_pwait), SC_ALLOW(ppoll), SC_ALLOW(poll),
	SC_ALLOW(timerfd_settime),
	/* Towards the guest without waiting; no address, so to nobody else. */
	SC_IF2(sendto, SC_CHECK(0, SC_U32, SESSION_FD_CONSOLE, SESSION_FD_AGENT), SC_CHECK(4, SC_U64, 0)),
	SC_IF2(recvfrom, SC_CHECK(0, SC_U32, SESSION_FD_CONSOLE, SESSION_FD_AGENT), SC_CHECK(4, SC_U64, 0)),
	SC_IF1(shutdown, SC_CHECK(0, SC_U32, SESSION_FD_CONSOLE, SESSION_FD_AGENT)),
};

static const struct seccomp_rule policy_ttyguard_rules[] = {
	SC_IF2(ioctl, SC_CHECK(0, SC_U32, 0), SC_CHECK(1, SC_U32, TCGETS, TCSETS, TCSETSW, TCSETSF)),
	POLICY_COMMON,
};

const struct sandbox_policy policy_vm = {
	.role = "vm", .rules = policy_vm_rules, .n_rules = ARRAY_SIZE(policy_vm_rules),
	.max_fds = 192, .max_file_size = 0,
};

const struct sandbox_policy policy_extract = {
	.role = "extract", .rules = policy_extract_rules, .n_rules = ARRAY_SIZE(policy_extract_rules),
	.max_fds = 16, .max_file_size = 2 * GiB, .max_data = 3 * GiB, .max_cpu_s = 120,
};

const struct sandbox_policy policy_session = {
	.role = "session", .rules = policy_session_rules, .n_rules = ARRAY_SIZE(policy_session_rules),
	.max_fds = 32, .max_file_size = ~0ull /* standard output may be a file */, .max_data = 256 * MiB,
};

const struct sandbox_policy policy_ttyguard = {
	.role = "ttyguard", .rules = policy_ttyguard_rules, .n_rules = ARRAY_SIZE(policy_ttyguard_rules),
	.max_fds = 16, .max_file_size = 0, .max_data = 64 * MiB, .max_cpu_s = 10, .outlive = true,
};
