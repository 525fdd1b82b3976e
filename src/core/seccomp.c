/* Theory of operation: the program loads the architecture and the call number,
 * finds the number by binary search, jumps to that number's rules and tries
 * them in the order of the table.  Conditional jumps of classic BPF reach 255
 * instructions only, so every branch is "true: fall into the next instruction,
 * false: skip one", and that one is an unconditional jump to a label patched
 * later.  All jumps go forward, as BPF demands. */
#include "core/seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdlib.h>

#define SECCOMP_X32_BIT 0x40000000u

struct seccomp_gen {
	struct sock_filter *out;
	unsigned n, cap;
	bool overflow;
};

static unsigned seccomp_emit(struct seccomp_gen *g, u16 code, u8 jt, u8 jf, u32 k)
{
	if (g->n >= g->cap) {
		g->overflow = true;
		return 0;
	}
	g->out[g->n] = (struct sock_filter){ code, jt, jf, k };
	return g->n++;
}

/* An unconditional jump whose target comes later; chained through k: a label
 * is the index + 1 of its last jump, 0 when nothing jumps to it. */
static void seccomp_jump(struct seccomp_gen *g, u32 *label)
{
	unsigned at = seccomp_emit(g, BPF_JMP | BPF_JA, 0, 0, *label);
	if (!g->overflow)
		*label = at + 1;
}

/* The label is here. */
static void seccomp_land(struct seccomp_gen *g, u32 *label)
{
	for (u32 l = *label; l && !g->overflow;) {
		struct sock_filter *j = &g->out[l - 1];
		u32 next = j->k;
		j->k = g->n - l; /* relative to the instruction after the jump */
		l = next;
	}
	*label = 0;
}

static void seccomp_load(struct seccomp_gen *g, u32 offset)
{
	seccomp_emit(g, BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
}

/* Goes on when half of the argument matches, else jumps to no. */
static void seccomp_half(struct seccomp_gen *g, u32 offset, u32 mask, u32 value, u32 *no)
{
	if (!mask)
		return;
	seccomp_load(g, offset);
	if (mask != ~0u)
		seccomp_emit(g, BPF_ALU | BPF_AND | BPF_K, 0, 0, mask);
	seccomp_emit(g, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, value);
	seccomp_jump(g, no);
}

static u64 seccomp_value(u64 value, u32 tgid) { return value == SECCOMP_OWN_TGID ? tgid : value; }

static void seccomp_check(struct seccomp_gen *g, const struct seccomp_check *c, u32 tgid, u32 *fail)
{
	u32 offset = (u32)(offsetof(struct seccomp_data, args) + 8u * c->arg);
	u32 ok = 0;
	for (unsigned i = 0; i < c->n; i++) {
		u64 v = seccomp_value(c->value[i], tgid);
		u32 no = 0;
		seccomp_half(g, offset, (u32)c->mask, (u32)v, &no);
		seccomp_half(g, offset + 4, (u32)(c->mask >> 32), (u32)(v >> 32), &no);
		seccomp_jump(g, &ok);
		seccomp_land(g, &no);
	}
	seccomp_jump(g, fail);
	seccomp_land(g, &ok);
}

static u32 seccomp_action(const struct seccomp_rule *r)
{
	return r->errnum ? SECCOMP_RET_ERRNO | r->errnum : SECCOMP_RET_ALLOW;
}

static bool seccomp_rule_valid(const struct seccomp_rule *r, u32 tgid)
{
	if (r->nr >= SECCOMP_X32_BIT || r->errnum > 4095 || r->n_checks > SECCOMP_MAX_CHECKS)
		return false;
	for (unsigned i = 0; i < r->n_checks; i++) {
		const struct seccomp_check *c = &r->check[i];
		if (c->arg > 5 || !c->n || c->n > SECCOMP_MAX_VALUES || !c->mask)
			return false;
		for (unsigned k = 0; k < c->n; k++)
			if (seccomp_value(c->value[k], tgid) & ~c->mask)
				return false; /* could never match */
	}
	return true;
}

/* Binary search over the sorted distinct numbers [lo, hi). */
static void seccomp_search(struct seccomp_gen *g, const u32 *nr, u32 *block, unsigned lo, unsigned hi, u32 *kill)
{
	if (hi - lo == 1) {
		seccomp_emit(g, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, nr[lo]);
		seccomp_jump(g, &block[lo]);
		seccomp_jump(g, kill);
		return;
	}
	unsigned mid = lo + (hi - lo) / 2;
	u32 right = 0;
	seccomp_emit(g, BPF_JMP | BPF_JGE | BPF_K, 0, 1, nr[mid]);
	seccomp_jump(g, &right);
	seccomp_search(g, nr, block, lo, mid, kill);
	seccomp_land(g, &right);
	seccomp_search(g, nr, block, mid, hi, kill);
}

static int seccomp_compare(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;
	return x < y ? -1 : x > y;
}

int seccomp_compile(const struct seccomp_rule *rules, unsigned n, u32 tgid, struct sock_filter *out, unsigned cap)
{
	if (!n)
		return -EINVAL;
	for (unsigned i = 0; i < n; i++)
		if (!seccomp_rule_valid(&rules[i], tgid))
			return -EINVAL;
	u32 *nr = calloc(2 * (size_t)n, sizeof *nr);
	if (!nr)
		return -ENOMEM;
	u32 *block = nr + n;
	for (unsigned i = 0; i < n; i++)
		nr[i] = rules[i].nr;
	qsort(nr, n, sizeof *nr, seccomp_compare);
	unsigned distinct = 0;
	for (unsigned i = 0; i < n; i++)
		if (!i || nr[i] != nr[i - 1])
			nr[distinct++] = nr[i];

	struct seccomp_gen g = { .out = out, .cap = cap };
	u32 kill = 0;
	seccomp_load(&g, offsetof(struct seccomp_data, arch));
	seccomp_emit(&g, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, AUDIT_ARCH_X86_64);
	seccomp_jump(&g, &kill);
	seccomp_load(&g, offsetof(struct seccomp_data, nr)); /* x32 numbers are above every rule's: no match */
	seccomp_search(&g, nr, block, 0, distinct, &kill);
	for (unsigned b = 0; b < distinct; b++) {
		seccomp_land(&g, &block[b]);
		for (unsigned i = 0; i < n; i++) {
			if (rules[i].nr != nr[b])
				continue;
			u32 fail = 0;
			for (unsigned c = 0; c < rules[i].n_checks; c++)
				seccomp_check(&g, &rules[i].check[c], tgid, &fail);
			seccomp_emit(&g, BPF_RET | BPF_K, 0, 0, seccomp_action(&rules[i]));
			seccomp_land(&g, &fail);
		}
		seccomp_jump(&g, &kill);
	}
	seccomp_land(&g, &kill);
	seccomp_emit(&g, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_PROCESS);
	free(nr);
	return g.overflow ? -E2BIG : (int)g.n;
}

u32 seccomp_verdict(const struct seccomp_rule *rules, unsigned n, u32 tgid, u32 arch, u32 nr, const u64 args[6])
{
	if (arch != AUDIT_ARCH_X86_64)
		return SECCOMP_RET_KILL_PROCESS;
	for (unsigned i = 0; i < n; i++) {
		const struct seccomp_rule *r = &rules[i];
		if (r->nr != nr)
			continue;
		bool all = true;
		for (unsigned c = 0; c < r->n_checks; c++) {
			const struct seccomp_check *k = &r->check[c];
			bool any = false;
			for (unsigned v = 0; v < k->n; v++)
				any |= (args[k->arg] & k->mask) == seccomp_value(k->value[v], tgid);
			all &= any;
		}
		if (all)
			return seccomp_action(r);
	}
	return SECCOMP_RET_KILL_PROCESS;
}
