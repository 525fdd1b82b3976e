/* The interpreter's main loop: events, then a block, and again.
 *
 * Retired instructions are counted exactly.  A block that runs to its end has
 * retired all of its instructions; one left early tells by c->rip where.  In
 * deterministic mode events happen at exact counts: a block that would run past
 * the next one is executed instruction by instruction.  The same path serves
 * single-stepping, breakpoints, interrupt shadows and MMIO replays. */
#include "cpu/block.h"
#include "cpu/fpu.h"
#include "cpu/insn.h"
#include "cpu/msr.h"
#include "cpu/trace.h"

#define POLL_INSNS 4096 /* between looks at the APIC timer in real-time mode */

void cpu_update_mode(struct cpu *c)
{
	const bool legacy_rights = cpu_real(c) || cpu_vm86(c);
	u32 code = cpu_code64(c) ? MODE_CODE64 : !cpu_vm86(c) && c->seg[CS].db && !cpu_real(c) ? MODE_CODE32 : MODE_CODE16;
	if (cpu_real(c) && c->seg[CS].db)
		code = MODE_CODE32; /* the D bit survives the switch to real mode until CS is reloaded */
	const bool align_check = c->cpl == 3 && (c->sflags & FL_AC) && (c->cr0 & CR0_AM);
	const bool watch = c->dr7 & 0xff;
	const bool smap_off = !(c->cr4 & CR4_SMAP) || (c->sflags & FL_AC);
	c->tlb = c->tlbs[align_check || watch ? TLB_EMPTY : c->cpl == 3 ? TLB_USER : smap_off ? TLB_KERNEL_AC : TLB_KERNEL];
	c->mode_key = code | (c->cpl == 3 ? MODE_USER : 0) | (legacy_rights ? MODE_REAL : 0) |
		      (c->cpl != 3 && smap_off ? MODE_AC : 0);
	c->trs.jkey = cpu_code_key(c);
	/* A code segment that ends somewhere: step_one() compares every instruction with the limit. */
	const bool limited = !cpu_code64(c) && c->seg[CS].limit != 0xffffffff;
	c->slow = (c->sflags & (FL_TF | FL_RF)) || watch || limited || align_check;
}

/* How many instructions of b retired when it was left at c->rip from within. */
static unsigned retired_until(const struct cpu *c, const struct block *b)
{
	for (unsigned k = 0; k < b->n; k++)
		if (insn_rip(c, &b->insn[k]) == c->rip)
			return k;
	return b->n;
}

static void unpatch(struct cpu *c)
{
	if (c->patched) {
		c->patched->fn = c->patched_fn;
		c->patched = NULL;
	}
}

/* ---- one instruction (SDM 18.3: traps after it, faults before it) ---- */

static u64 code_breakpoints(const struct cpu *c)
{
	u64 hit = 0, lin = cpu_code64(c) ? c->rip : (u32)(c->rip + c->seg[CS].base);
	for (unsigned n = 0; n < 4; n++)
		if (((c->dr7 >> (2 * n)) & 3) && !((c->dr7 >> (16 + 4 * n)) & 0xf) && c->dr[n] == lin)
			hit |= BIT(n);
	return hit;
}

static int raise_db(struct cpu *c, u64 dr6, bool mid_rep)
{
	c->exc = (struct exception){ .vector = VEC_DB, .dr6 = dr6, .mid_rep = mid_rep };
	return exc_deliver(c);
}

static int step_one(struct cpu *c)
{
	u64 flags_before = c->sflags;
	if ((c->dr7 & 0xff) && !(flags_before & FL_RF)) {
		u64 hit = code_breakpoints(c);
		if (hit) {
			/* A fault before the instruction, but RF is pushed as it is: the handler sets it (SDM 17.3.1.1). */
			return raise_db(c, hit, false);
		}
	}
	int step = STEP_NEXT;
	struct block *b = block_find(c, &step);
	if (!b)
		return step == STEP_FAULT ? exc_deliver(c) : step;
	if (unlikely(!cpu_code64(c) && c->rip + b->insn[0].len - 1 > c->seg[CS].limit)) {
		c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
		return exc_deliver(c);
	}
	struct insn pair[2];
	pair[0] = b->insn[0];
	pair[1] = (struct insn){ .fn = op_end, .off = b->insn[0].len, .idx = 1, .base = R_ZERO, .index = R_ZERO };
	const insn_fn fn = pair[0].fn;
	c->r[R_RIP] = c->rip;
	const u64 held = c->db_pending; /* a data breakpoint of MOV SS waits for the end of this instruction */
	c->db_pending = 0;
	step = pair[0].fn(c, &pair[0]);
	unpatch(c);
	if (step == STEP_FAULT) {
		c->db_pending = held;
		return exc_deliver(c);
	}
	if (step == STEP_EXIT && c->rip == c->r[R_RIP]) {
		c->db_pending |= held;
		return step; /* to be executed again */
	}
	const bool again = step == STEP_EARLY && c->rip == c->r[R_RIP];
	if (!again)
		c->insns++;
	if ((flags_before & FL_RF) && fn != op_iret) {
		c->sflags &= ~FL_RF;
		cpu_update_mode(c);
	}
	/* TF counts as it was before the instruction; SYSCALL's mask acts at once; a delivered INT n has cleared it. */
	u64 db = c->db_pending | held;
	c->db_pending = 0;
	const bool is_int = fn == op_int || fn == op_int3 || fn == op_int1 || fn == op_into;
	const bool sequential = again || (c->rip == insn_next_rip(c, &pair[0]) && step != STEP_TAKEN);
	if ((flags_before & FL_TF) && !is_int && (fn != op_syscall || (c->sflags & FL_TF)) &&
	    !((c->debugctl & DEBUGCTL_BTF) && sequential))
		db |= DR6_BS;
	const bool ss_load = c->irq_shadow && (fn == op_mov_to_sreg || fn == op_pop_sreg || fn == op_lfs);
	if (db) {
		if (ss_load)
			c->db_pending = db & ~DR6_BS; /* SDM 6.8.3 */
		else if (step == STEP_EXIT)
			c->db_pending = db; /* an OUT: the trap comes when the caller has done it */
		else
			return raise_db(c, db, again);
	}
	return step == STEP_EXIT ? step : STEP_MODE;
}

/* ---- events between instructions, by priority (SDM 6.9) ---- */

static u64 next_event(struct cpu *c)
{
	u64 at = c->stop_at;
	if (!c->deterministic) {
		c->poll_at = c->insns + POLL_INSNS;
	} else {
		u64 now = cpu_tsc(c), due = c->lapic ? lapic_deadline(c) : ~0ull;
		c->poll_at = due == ~0ull ? ~0ull : due > now ? c->insns + (due - now) : c->insns + POLL_INSNS;
	}
	return at < c->poll_at ? at : c->poll_at;
}

/* INIT and start-up IPIs (SDM 9.4).  False: nothing to execute before a start-up IPI comes. */
static bool start_up(struct cpu *c)
{
	/* INIT first: a start-up IPI sent before it was dropped when INIT arrived (lapic_deliver). */
	if (__atomic_exchange_n(&c->init_pending, false, __ATOMIC_SEQ_CST)) {
		cpu_reset(c, true);
		c->db_pending = 0;
		c->nmi_pending = false;
		c->wait_sipi = !c->bsp;
	}
	const bool sipi = __atomic_exchange_n(&c->sipi_pending, false, __ATOMIC_SEQ_CST);
	if (!c->wait_sipi)
		return true; /* a start-up IPI means nothing to a running CPU */
	if (!sipi) {
		c->exit = CPU_EXIT_HLT;
		return false;
	}
	const u8 vector = __atomic_load_n(&c->sipi_vector, __ATOMIC_SEQ_CST);
	c->wait_sipi = false;
	c->seg[CS].sel = (u16)(vector << 8);
	c->seg[CS].base = (u64)vector << 12;
	c->rip = 0;
	cpu_update_mode(c);
	return true;
}

/* STEP_NEXT: nothing happened. */
static int events(struct cpu *c)
{
	if (unlikely(c->init_pending || c->sipi_pending || c->wait_sipi) && !start_up(c))
		return STEP_EXIT;
	if (c->irq_shadow)
		return STEP_NEXT;
	if (c->db_pending) {
		u64 db = c->db_pending;
		c->db_pending = 0;
		return raise_db(c, db, false);
	}
	if (c->nmi_pending && !c->nmi_blocked) {
		c->nmi_pending = false;
		return nmi_deliver(c);
	}
	if ((c->sflags & FL_IF) && c->lapic) {
		int v = lapic_pending(c);
		if (v >= 0) {
			lapic_ack(c, (u8)v);
			c->stats.interrupts++;
			return interrupt_deliver(c, (u8)v);
		}
	}
	return STEP_NEXT;
}

/* Blocks until something needs the outer loop.  Hot. */
static int run_blocks(struct cpu *c, u64 until)
{
	int step = STEP_NEXT;
	struct block *b = block_find(c, &step);
	while (likely(b != NULL)) {
		if (unlikely(c->deterministic && c->insns + b->n > until))
			return step_one(c); /* one by one up to the event */
		c->rips.ring[c->rips.head++ % CPU_RIP_RING] = c->rip;
		c->r[R_RIP] = c->rip;
		c->stats.blocks++;
		if (unlikely(c->tr_on && b->heat < c->tr_after && !b->dead && ++b->heat == c->tr_after))
			c->tr_hot(c, b);
		if (b->code) {
			step = c->tr_enter(c, b); /* counts for itself */
			if (step != STEP_NEXT || c->attn || c->insns >= until || c->exit)
				return step == STEP_NEXT ? STEP_MODE : step;
			b = block_find(c, &step);
			continue;
		}
		step = b->insn[0].fn(c, &b->insn[0]);
		if (likely(step <= STEP_FALL)) {
			c->insns += b->n;
			if (unlikely(c->patched))
				unpatch(c);
			if (unlikely(c->attn || c->insns >= until || c->exit))
				return STEP_MODE;
			/* Chained successor: same page, so its translation is as good as this block's. */
			if (step != STEP_NEXT) {
				struct block *n = b->succ[step - 1];
				if (likely(n && !n->dead && n->gpa - b->gpa == c->rip - c->r[R_RIP])) {
					b = n;
					continue;
				}
				struct block *from = b;
				u64 from_rip = c->r[R_RIP], flushes = c->stats.decode_flushes;
				b = block_find(c, &step);
				if (b && flushes == c->stats.decode_flushes && !b->dead && ((b->gpa ^ from->gpa) & PAGE_MASK) == 0 && !from->dead &&
				    ((from_rip ^ c->rip) & PAGE_MASK) == 0 && b->gpa - from->gpa == c->rip - from_rip &&
				    b->mode == from->mode)
					from->succ[step == STEP_TAKEN ? 0 : 1] = b;
				continue;
			}
			b = block_find(c, &step);
			continue;
		}
		c->insns += step == STEP_MODE ? b->n : retired_until(c, b);
		unpatch(c);
		return step;
	}
	return step;
}

enum cpu_exit cpu_run(struct cpu *c)
{
	c->exit = CPU_EXIT_NONE;
	bool replay = false;
	if (c->mmio.pending) { /* the caller has answered the last fragment */
		c->mmio.pending = false;
		c->mmio.n++;
		replay = true;
	}
	for (bool first = true;; first = false) {
		/* However often others want their exclusive moment: one instruction is executed between two of them. */
		const bool stop = c->attn & CPU_ATTN_STOP;
		if (unlikely((c->attn & CPU_ATTN_RETURN) || (stop && !first))) {
			c->exit = CPU_EXIT_BUDGET;
			break;
		}
		if (c->attn)
			__atomic_and_fetch(&c->attn, ~(u32)CPU_ATTN_EVENT, __ATOMIC_SEQ_CST);
		if (unlikely(c->insns >= c->stop_at)) {
			c->exit = CPU_EXIT_BUDGET;
			break;
		}
		const bool shadow = c->irq_shadow;
		if (!replay && !c->io.done) {
			int e = events(c);
			if (e == STEP_EXIT)
				break;
		}
		c->irq_shadow = false;
		u64 until = next_event(c);
		if (until <= c->insns)
			until = c->insns + 1;
		if (until - c->insns > BIT(40))
			until = c->insns + BIT(40); /* the budget of translated code is signed */
		if (unlikely(c->trace_mask & BIT(TRACE_BLOCK))) {
			until = c->insns + 1; /* one by one */
			cpu_trace(c, TRACE_BLOCK, c->rip, c->r[RSP], c->insns);
		}
		c->tr_until = until;
		__atomic_store_n(&c->trs.poll_mask, BIT(63), __ATOMIC_SEQ_CST);
		if (c->attn)
			cpu_poke(c);
		int step;
		if (unlikely(replay || shadow || c->slow || stop)) {
			c->mmio.next = 0;
			step = step_one(c);
			if (!c->mmio.pending) {
				c->mmio.n = c->mmio.next = 0;
				replay = false;
			}
		} else {
			step = run_blocks(c, until);
			if (step == STEP_FAULT)
				step = exc_deliver(c);
		}
		if (step == STEP_EXIT || c->exit != CPU_EXIT_NONE)
			break;
	}
	unpatch(c);
	fpu_save(c);
	return c->exit;
}
