/* The run time of translated code: C called from it, and by the CPU around it.
 *
 * Runs while the guest's vector and x87 registers are live in the host's: src/engine/rt is compiled like src/cpu (no
 * vector instructions, no libc), and tests/arch/check_layers.py disassembles it. */
#ifndef ENGINE_RT_RT_H
#define ENGINE_RT_RT_H

#include "engine/tr/translate.h"

/* What a rt_* function called from translated code answers to it: on to c->trs.target; anything else is the STEP_* to
 * leave with. */
#define RT_RESUME (-1)

enum site_kind { SITE_INSN, SITE_LINK, SITE_RETURN };

/* One place in translated code that may call here; c->trs.site points to it. */
struct tr_site {
	struct insn insn[2]; /* the instruction, then rt_op_resume */
	struct block *block;
	u8 kind;             /* enum site_kind */
	u8 t[2];             /* scratch registers whose guest values are in tr.slot[0..1] */
	bool rcx_in_slot;    /* guest RCX is in tr.slot[2] */
	bool local;          /* the block has no scratch registers of its own */
	bool scratch_live;   /* slots hold guest values (a miss in mid-instruction), else the registers do */
	u64 resume;          /* executable address behind the instruction */
	u8 *patch;           /* LINK: rel32 of the jump with all registers restored, writable view */
	u8 *lean;            /* LINK: rel32 of the jump before that, with scratch registers still spilled; skipped when not linked */
	struct tr_site *next_cross; /* LINK: list of those that lead to another page */
	bool cross;          /* LINK: leads to another page */
	s64 delta;           /* LINK: from the block's start */
	u64 target;          /* RETURN: where the code behind a call is, or the routine that finds it */
};

/* Called from translated code, guest registers in c->r. */
s64 rt_call(struct cpu *c);  /* the site's instruction through its interpreter handler */
s64 rt_early(struct cpu *c); /* an event is due at a block's entry */
s64 rt_link(struct cpu *c);  /* a direct exit that is not linked yet */
s64 rt_return(struct cpu *c); /* a predicted return whose continuation is not known yet */
s64 rt_miss(struct cpu *c);  /* the dispatcher found nothing */

/* Handler behind a site's instruction: it is complete. */
H(rt_op_resume);

/* Hooks of struct cpu. */
void rt_hot(struct cpu *c, struct block *b);
int rt_enter(struct cpu *c, const struct block *b);
void rt_flush(struct cpu *c);
void rt_unlink(struct cpu *c);
void rt_kill(struct cpu *c, struct block *b);

#endif
