/* The filter compiler: its BPF programs, run by an interpreter here, must give
 * the verdict that the table means, for every role's policy and for random
 * tables; and the kernel must accept every program. */
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include <errno.h>
#include <string.h>

#include "../unit/check.h"
#include "core/seccomp.h"
#include "roles/roles.h"

#define CAP 4096

/* Classic BPF as seccomp uses it (Documentation/networking/filter.rst). */
static u32 bpf_run(const struct sock_filter *p, int n, const struct seccomp_data *d)
{
	u32 a = 0;
	for (int pc = 0; pc < n; pc++) {
		const struct sock_filter *i = &p[pc];
		switch (i->code) {
		case BPF_LD | BPF_W | BPF_ABS:
			if (i->k % 4 || i->k > sizeof *d - 4)
				return 0xdead0001;
			memcpy(&a, (const u8 *)d + i->k, 4);
			break;
		case BPF_ALU | BPF_AND | BPF_K: a &= i->k; break;
		case BPF_JMP | BPF_JEQ | BPF_K: pc += a == i->k ? i->jt : i->jf; break;
		case BPF_JMP | BPF_JGE | BPF_K: pc += a >= i->k ? i->jt : i->jf; break;
		case BPF_JMP | BPF_JA: pc += (int)i->k; break;
		case BPF_RET | BPF_K: return i->k;
		default: return 0xdead0002;
		}
	}
	return 0xdead0003; /* fell off the end */
}

static u64 rng_state = 88172645463325252ull;
static u64 rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	return rng_state ^= rng_state << 17;
}

static struct sock_filter prog[CAP];

static void compare(const struct seccomp_rule *rules, unsigned n, u32 tgid, int len, u32 arch, u32 nr, const u64 args[6])
{
	struct seccomp_data d = { .nr = (int)nr, .arch = arch };
	for (unsigned i = 0; i < 6; i++)
		d.args[i] = args[i];
	u32 got = bpf_run(prog, len, &d), want = seccomp_verdict(rules, n, tgid, arch, nr, args);
	check_count++;
	if (got != want) {
		check_failed++;
		fprintf(stderr, "nr %u args %llx %llx %llx %llx: program %x, table %x\n", nr, (unsigned long long)args[0],
			(unsigned long long)args[1], (unsigned long long)args[2], (unsigned long long)args[3], got, want);
	}
}

/* Arguments near the values of the table: exact, one bit off, with rubbish outside the mask. */
static void try_policy(const struct seccomp_rule *rules, unsigned n, unsigned rounds)
{
	u32 tgid = 4711;
	int len = seccomp_compile(rules, n, tgid, prog, CAP);
	CHECK(len > 0);
	if (len <= 0)
		return;
	u64 args[6] = { 0 };
	for (u32 nr = 0; nr < 600; nr++)
		compare(rules, n, tgid, len, AUDIT_ARCH_X86_64, nr, args);
	for (unsigned i = 0; i < rounds; i++) {
		const struct seccomp_rule *r = &rules[rng() % n];
		for (unsigned k = 0; k < 6; k++)
			args[k] = rng() % 4 ? rng() : rng() % 8;
		for (unsigned c = 0; c < r->n_checks; c++) {
			const struct seccomp_check *k = &r->check[c];
			u64 v = k->value[rng() % k->n];
			if (v == SECCOMP_OWN_TGID)
				v = tgid;
			args[k->arg] = (args[k->arg] & ~k->mask) | v;
			if (rng() % 3 == 0)
				args[k->arg] ^= BIT(rng() % 64);
		}
		u32 nr = rng() % 8 ? r->nr : (u32)(rng() % 600);
		u32 arch = rng() % 16 ? AUDIT_ARCH_X86_64 : AUDIT_ARCH_I386;
		if (rng() % 16 == 0)
			nr |= 0x40000000; /* x32 */
		compare(rules, n, tgid, len, arch, nr, args);
	}
}

static void random_table(struct seccomp_rule *rules, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct seccomp_rule r = { .nr = (u32)(rng() % 40), .errnum = rng() % 4 ? 0 : (u16)(1 + rng() % 100),
					  .n_checks = (u8)(rng() % (SECCOMP_MAX_CHECKS + 1)) };
		for (unsigned c = 0; c < r.n_checks; c++) {
			struct seccomp_check *k = &r.check[c];
			k->arg = (u8)(rng() % 6);
			k->n = (u8)(1 + rng() % SECCOMP_MAX_VALUES);
			static const u64 masks[] = { SC_U32, SC_U64, 0xffull, 0xff00000000ull, 1ull << 63, 0x300000003ull };
			k->mask = masks[rng() % ARRAY_SIZE(masks)];
			for (unsigned v = 0; v < k->n; v++)
				k->value[v] = (rng() % 2 ? rng() : rng() % 4) & k->mask;
		}
		rules[i] = r;
	}
}

int main(void)
{
	const struct sandbox_policy *all[] = { &policy_vm, &policy_extract, &policy_session, &policy_ttyguard };
	for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
		try_policy(all[i]->rules, all[i]->n_rules, 200000);
	for (unsigned i = 0; i < 60; i++) {
		static struct seccomp_rule rules[40];
		unsigned n = 1 + (unsigned)(rng() % ARRAY_SIZE(rules));
		random_table(rules, n);
		try_policy(rules, n, 5000);
	}
	/* Malformed tables are refused. */
	struct seccomp_rule bad = SC_ALLOW(read);
	CHECK_EQ(seccomp_compile(&bad, 0, 1, prog, CAP), -EINVAL);
	CHECK_EQ(seccomp_compile(&bad, 1, 1, prog, 3), -E2BIG);
	struct seccomp_rule never = SC_IF1(read, SC_CHECK(0, 0xf, 0x10));
	CHECK_EQ(seccomp_compile(&never, 1, 1, prog, CAP), -EINVAL);
	struct seccomp_rule arg = SC_IF1(read, SC_CHECK(6, 0xf, 1));
	CHECK_EQ(seccomp_compile(&arg, 1, 1, prog, CAP), -EINVAL);
	return check_result();
}
