#include "engine/rt/rt.h"

#include "cpu/exec.h"
#include "cpu/fpu.h"
#include "engine/tr/emit.h"

enum { STEP_RESUME = 100 }; /* beside enum step */

H(rt_op_resume) { return STEP_RESUME; }

/* Which vector instructions translations may execute themselves (SDM vol. 2, exception classes): the FPU state is live and
 * nothing is disabled. */
static void vector_state(struct cpu *c)
{
	const bool on = c->fpu_live && !(c->cr0 & (CR0_TS | CR0_EM)) && (c->cr4 & CR4_OSFXSR) && (c->cr4 & CR4_OSXMMEXCPT);
	const bool avx = on && (c->cr4 & CR4_OSXSAVE) && (c->xcr0 & XCR0_SSE_AVX) == XCR0_SSE_AVX;
	c->trs.vector_off[0] = !on;
	c->trs.vector_off[1] = !avx;
	c->trs.vector_off[2] = !(avx && (c->xcr0 & XCR0_AVX512) == XCR0_AVX512);
}

s64 rt_call(struct cpu *c)
{
	struct tr_site *s = (struct tr_site *)c->trs.site;
	struct block *b = s->block;
	if (s->scratch_live) {
		c->r[s->t[0]] = c->trs.slot[0];
		c->r[s->t[1]] = c->trs.slot[1];
	}
	if (s->rcx_in_slot)
		c->r[RCX] = c->trs.slot[2];
	const u64 done = c->tr_until - (u64)c->trs.budget; /* the block's instructions are counted already */
	c->insns = done - b->n;
	const bool live = c->fpu_live;
	int step = s->insn[0].fn(c, &s->insn[0]);
	if (likely(step == STEP_RESUME)) {
		if (live)
			fpu_load(c); /* vector instructions that follow rely on it */
		vector_state(c);
		c->trs.target = s->resume;
		return RT_RESUME;
	}
	if (c->patched) {
		c->patched->fn = c->patched_fn;
		c->patched = NULL;
	}
	const unsigned idx = s->insn[0].idx;
	const bool incomplete = (step == STEP_FAULT || step == STEP_EXIT || step == STEP_EARLY) && c->rip == insn_rip(c, &s->insn[0]);
	c->insns += incomplete ? idx : idx + 1u;
	if (step == STEP_TAKEN || step == STEP_FALL)
		step = STEP_NEXT;
	return step;
}

/* The block's instructions must not count. */
s64 rt_early(struct cpu *c)
{
	const struct tr_site *s = (const struct tr_site *)c->trs.site;
	c->insns = c->tr_until - (u64)c->trs.budget - s->block->n;
	c->rip = c->r[R_RIP];
	return STEP_EARLY;
}

s64 rt_link(struct cpu *c)
{
	struct tr_site *s = (struct tr_site *)c->trs.site;
	c->insns = c->tr_until - (u64)c->trs.budget;
	c->rip = c->r[R_RIP];
	if (c->insns >= c->tr_until || c->attn)
		return STEP_NEXT;
	const u64 flushes = c->stats.decode_flushes;
	int step = STEP_NEXT;
	struct block *from = s->block, *to = block_find(c, &step);
	if (!to || flushes != c->stats.decode_flushes)
		return STEP_NEXT; /* the loop finds it, or its fault, again */
	if (!to->code || to->dead || from->dead || to->mode != from->mode || ((to->gpa ^ from->gpa) & PAGE_MASK))
		return STEP_NEXT;
	struct translator *t = c->translator;
	emit_patch(s->patch, t->rw + ((u8 *)to->code - t->rx));
	t->stat_links++;
	c->trs.target = (u64)to->code;
	return RT_RESUME;
}

s64 rt_miss(struct cpu *c)
{
	c->insns = c->tr_until - (u64)c->trs.budget;
	c->rip = c->r[R_RIP];
	return STEP_NEXT;
}

void rt_hot(struct cpu *c, struct block *b)
{
	if ((b->mode & (MODE_CODE_MASK | MODE_REAL)) != MODE_CODE64)
		return;
	fpu_save(c); /* the translator and its decoder are ordinary code */
	translate_block(c, b);
}

int rt_enter(struct cpu *c, const struct block *b)
{
	c->trs.budget = (s64)(c->tr_until - c->insns);
	c->trs.target = (u64)b->code;
	vector_state(c);
	int (*enter)(void) = (int (*)(void))(void *)c->translator->enter;
	return enter();
}

void rt_flush(struct cpu *c)
{
	struct translator *t = c->translator;
	t->used = t->base;
	t->sites_used = 64;
	t->n_faults = 0;
	c->tr_full = false;
}

/* Whoever jumps to the dead translation is sent on to the dispatcher, which knows R_RIP. */
void rt_kill(struct cpu *c, struct block *b)
{
	struct translator *t = c->translator;
	u8 *p = t->rw + ((u8 *)b->code - t->rx);
	u8 jump[5] = { 0xe9 };
	s32 rel = (s32)(t->dispatch - ((u8 *)b->code + 5));
	memcpy(jump + 1, &rel, 4);
	memcpy(p, jump, sizeof jump);
	b->code = NULL;
}
