/* System-call filters made from tables.  A policy is a list of rules; a call
 * is allowed (or refused with an errno) when one rule for its number has all
 * its argument checks true, everything else kills the process with SIGSYS. */
#ifndef CORE_SECCOMP_H
#define CORE_SECCOMP_H

#include <linux/filter.h>

#include "core/base.h"

#define SECCOMP_MAX_CHECKS 4
#define SECCOMP_MAX_VALUES 8

/* A value known only when the filter is made. */
#define SECCOMP_OWN_TGID 0xfffffffffffffff0ull

/* (argument & mask) is one of value[0 … n).  All 64 bits count, so that a
 * 32-bit argument is checked with mask 0xffffffff as the kernel reads it. */
struct seccomp_check {
	u8 arg; /* 0 … 5 */
	u8 n;
	u64 mask;
	u64 value[SECCOMP_MAX_VALUES];
};

struct seccomp_rule {
	u32 nr;       /* x86-64 system call number */
	u16 errnum;   /* 0: allow; else fail with this errno */
	u8 n_checks;
	struct seccomp_check check[SECCOMP_MAX_CHECKS];
};

/* Table shorthands. */
#define SC_ALLOW(name) { .nr = __NR_##name }
#define SC_ERRNO(name, e) { .nr = __NR_##name, .errnum = (e) }
#define SC_CHECK(a, m, ...)                                                                                            \
	{                                                                                                              \
		.arg = (a), .mask = (m), .value = { __VA_ARGS__ }, .n = sizeof((u64[]){ __VA_ARGS__ }) / sizeof(u64)   \
	}
#define SC_IF1(name, c0) { .nr = __NR_##name, .n_checks = 1, .check = { c0 } }
#define SC_IF2(name, c0, c1) { .nr = __NR_##name, .n_checks = 2, .check = { c0, c1 } }
#define SC_IF3(name, c0, c1, c2) { .nr = __NR_##name, .n_checks = 3, .check = { c0, c1, c2 } }
#define SC_U32 0xffffffffull
#define SC_U64 0xffffffffffffffffull

/* Makes the BPF program.  Returns its length or -errno (-E2BIG: cap too
 * small, -EINVAL: a rule is malformed).  tgid replaces SECCOMP_OWN_TGID. */
int seccomp_compile(const struct seccomp_rule *rules, unsigned n, u32 tgid, struct sock_filter *out, unsigned cap);

/* The verdict by the meaning of the table (not by the program), for tests and
 * for explaining: SECCOMP_RET_*. */
u32 seccomp_verdict(const struct seccomp_rule *rules, unsigned n, u32 tgid, u32 arch, u32 nr, const u64 args[6]);

#endif
