#include "engine/rt/rt.h"

#include "cpu/exec.h"
#include "cpu/fpu.h"
#include "cpu/msr.h"
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

/* The handler left its block: straight on to the next translation when nothing else has to be looked at. */
static s64 onward(struct cpu *c, int step, insn_fn fn)
{
	if ((step != STEP_NEXT && step != STEP_MODE) || c->attn || c->slow || c->irq_shadow || c->exit != CPU_EXIT_NONE ||
	    c->insns >= c->tr_until || fn == op_wrmsr /* may have moved the next event */)
		return step;
	if (step == STEP_MODE && (c->db_pending || (c->nmi_pending && !c->nmi_blocked) ||
				  ((c->sflags & FL_IF) && c->lapic && lapic_pending(c) >= 0)))
		return step;
	int why = STEP_NEXT;
	const struct block *b = block_find(c, &why);
	if (!b || !b->code)
		return step;
	c->r[R_RIP] = c->rip;
	c->trs.budget = (s64)(c->tr_until - c->insns);
	vector_state(c);
	c->trs.target = (u64)b->code;
	return RT_RESUME;
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
	c->r[R_RIP] = c->trs.page_rip + (b->gpa & ~PAGE_MASK);
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
	return onward(c, step, s->insn[0].fn);
}

/* The block's instructions must not count. */
s64 rt_early(struct cpu *c)
{
	const struct tr_site *s = (const struct tr_site *)c->trs.site;
	c->insns = c->tr_until - (u64)c->trs.budget - s->block->n;
	c->rip = c->r[R_RIP] = c->trs.page_rip + (s->block->gpa & ~PAGE_MASK);
	return STEP_EARLY;
}

s64 rt_link(struct cpu *c)
{
	struct tr_site *s = (struct tr_site *)c->trs.site;
	c->insns = c->tr_until - (u64)c->trs.budget;
	if (!s->cross)
		c->r[R_RIP] = c->trs.page_rip + (s->block->gpa & ~PAGE_MASK) + (u64)s->delta;
	c->rip = c->r[R_RIP];
	if (c->insns >= c->tr_until || c->attn)
		return STEP_NEXT;
	const u64 flushes = c->stats.decode_flushes;
	int step = STEP_NEXT;
	struct block *from = s->block, *to = block_find(c, &step);
	if (!to || flushes != c->stats.decode_flushes)
		return STEP_NEXT; /* the loop finds it, or its fault, again */
	if (!to->code || to->dead)
		return STEP_NEXT;
	struct translator *t = c->translator;
	c->trs.target = (u64)to->code;
	const bool cross = (to->gpa ^ from->gpa) & PAGE_MASK || s->cross;
	if (from->dead || to->mode != from->mode)
		return RT_RESUME;
	/* To another page: only between global supervisor pages, whose mapping changes are announced (rt_unlink). */
	if (cross) {
		const u64 start = c->rip - (u64)s->delta;
		if (c->cpl == 3 || !(c->rip >> 63) || !(start >> 63) || !block_global(c, c->rip) || !block_global(c, start) ||
		    !block_may_link(c, from, start)) {
			emit_patch(s->patch, t->rw + (t->dispatch - t->rx));
			return RT_RESUME;
		}
		s->next_cross = t->cross;
		t->cross = s;
	}
	if (to->scratch[0] != to->scratch[1] && to->scratch[0] == s->t[0] && to->scratch[1] == s->t[1] && !s->local)
		emit_patch(s->lean, t->rw + ((u8 *)to->code_lean - t->rx));
	else
		emit_patch(s->patch, t->rw + ((u8 *)to->code_link - t->rx));
	t->stat_links++;
	return RT_RESUME;
}

s64 rt_return(struct cpu *c)
{
	struct tr_site *s = (struct tr_site *)c->trs.site;
	c->insns = c->tr_until - (u64)c->trs.budget;
	c->rip = c->r[R_RIP];
	if (c->insns >= c->tr_until || c->attn)
		return STEP_NEXT;
	const u64 flushes = c->stats.decode_flushes;
	int step = STEP_NEXT;
	struct block *to = block_find(c, &step);
	if (!to || !to->code || to->dead || flushes != c->stats.decode_flushes)
		return STEP_NEXT;
	/* The call's own page, hence this continuation, as long as nothing is remapped - and then predictions are dropped. */
	if (to->mode == s->block->mode && !((to->gpa ^ s->block->gpa) & PAGE_MASK))
		s->target = (u64)to->code;
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
	t->cross = NULL;
	c->tr_full = false;
}

/* The mapping of supervisor code changed: jumps between its pages go through the dispatcher again. */
void rt_unlink(struct cpu *c)
{
	struct translator *t = c->translator;
	for (struct tr_site *s = t->cross; s; s = s->next_cross) {
		emit_patch(s->lean, s->lean + 4);
		emit_patch(s->patch, t->rw + (t->dispatch - t->rx));
	}
	t->cross = NULL;
}

static void divert(struct translator *t, void *entry, const void *to)
{
	u8 jump[5] = { 0xe9 };
	s32 rel = (s32)((const u8 *)to - ((u8 *)entry + 5));
	memcpy(jump + 1, &rel, 4);
	memcpy(t->rw + ((u8 *)entry - t->rx), jump, sizeof jump);
}

/* Whoever jumps to the dead translation is sent on to the dispatcher. */
void rt_kill(struct cpu *c, struct block *b)
{
	struct translator *t = c->translator;
	divert(t, b->code, t->dispatch);
	divert(t, b->code_link, b->dead_link);
	divert(t, b->code_lean, b->dead_lean);
	b->code = NULL;
}
