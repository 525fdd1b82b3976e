/* Exceptions and interrupts: raising them, and delivering them through the IDT in every mode
 * (SDM vol. 3 chapter 6, pseudo-code of INT n in vol. 2; AMD APM vol. 2 chapter 8).
 *
 * Theory of operation.  A delivery reads descriptor tables, TSS and new stack with supervisor rights, checks all of it,
 * writes the frame, and only then changes a register.  A fault on the way therefore leaves the CPU as it was, with
 * c->rip still at the interrupted instruction, and becomes either the next event to deliver or a double fault; a fault
 * while delivering a double fault is a triple fault: CPU_EXIT_SHUTDOWN. */
#include "cpu/seg.h"
#include "cpu/text.h"
#include "cpu/trace.h"

/* One delivery. */
struct event {
	u8 vector;
	bool soft;      /* INT n, INT3, INTO: DPL of the gate counts */
	bool has_error;
	u32 ext;        /* 1: external or hardware event; bit 0 of error codes of nested faults */
	u32 error;
	u64 ret_rip;    /* pushed RIP */
	u64 rf;         /* FL_RF or 0, added to the pushed flags */
};

/* ---- raising ---- */

static void set_rip(struct cpu *c, const struct insn *i)
{
	if (!i)
		return; /* during delivery: c->rip is right already */
	u64 rip = insn_rip(c, i);
	c->rip = cpu_code64(c) ? rip : (u32)rip;
}

int exc_raise(struct cpu *c, const struct insn *i, u8 vector)
{
	set_rip(c, i);
	c->exc = (struct exception){ .vector = vector };
	return STEP_FAULT;
}

int exc_raise_error(struct cpu *c, const struct insn *i, u8 vector, u32 error)
{
	set_rip(c, i);
	c->exc = (struct exception){ .vector = vector, .has_error = true, .error = error };
	return STEP_FAULT;
}

static void text_mode(struct text *t, const struct cpu *c)
{
	text_str(t, cpu_code64(c) ? "64-bit" : cpu_long_mode(c) ? "compatibility" : cpu_vm86(c) ? "virtual-8086" :
		    cpu_real(c) ? "real" : c->seg[CS].db ? "32-bit protected" : "16-bit protected");
	text_str(t, " mode, CPL ");
	text_dec(t, c->cpl);
}

static void text_where(struct text *t, const struct cpu *c)
{
	text_str(t, " at ");
	text_hex(t, c->seg[CS].sel, 4);
	text_char(t, ':');
	text_hex(t, c->rip, 16);
}

int cpu_unimplemented(struct cpu *c, const struct insn *i, const char *what)
{
	struct text t;
	set_rip(c, i);
	text_init(&t, c->why, sizeof(c->why));
	text_str(&t, "unimplemented: ");
	text_str(&t, what);
	text_where(&t, c);
	text_str(&t, " (");
	text_mode(&t, c);
	text_char(&t, ')');
	u64 pc = c->rip + (cpu_code64(c) ? 0 : c->seg[CS].base);
	unsigned n = i && i->len && i->len <= 15 ? i->len : 15;
	text_str(&t, " bytes");
	for (unsigned k = 0; k < n; k++) {
		gpa_t gpa;
		const u8 *p = mmu_peek(c, pc + k, &gpa) ? ram_ptr(c->ram, gpa, 1) : NULL;
		if (!p)
			break;
		text_char(&t, ' ');
		text_hex(&t, *p, 2);
	}
	c->exit = CPU_EXIT_UNIMPLEMENTED;
	return STEP_EXIT;
}

static const char *vector_name(u8 v)
{
	static const char *const names[] = {
		"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "vector 9", "#TS", "#NP", "#SS", "#GP", "#PF",
		"vector 15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
	};
	return v < ARRAY_SIZE(names) ? names[v] : "interrupt";
}

/* ---- delivery: common parts ---- */

/* Flags in the handler (SDM 6.12.1.2): IF for interrupt gates only. */
static u64 handler_flags(const struct cpu *c, bool interrupt_gate)
{
	u64 clear = FL_TF | FL_NT | FL_RF | FL_VM;
	if (interrupt_gate)
		clear |= FL_IF;
	return c->sflags & ~clear;
}

static void set_sflags(struct cpu *c, u64 sflags)
{
	c->sflags = sflags;
	c->irq_shadow = false;
}

/* The gate's code segment: checks common to all protected modes.  *cpl: level of the handler. */
static int handler_segment(struct cpu *c, const struct event *ev, u16 sel, struct seg *cs, u64 *d, u64 *gva, u8 *cpl)
{
	if (SEL_NULL(sel))
		return exc_gp(c, NULL, ev->ext);
	int st = desc_read(c, sel, d, gva);
	if (st)
		return st == DESC_OUTSIDE ? exc_gp(c, NULL, SEL_ERR(sel) | ev->ext) : st;
	desc_unpack(cs, *d, sel);
	if (!seg_is_code(cs) || cs->dpl > c->cpl)
		return exc_gp(c, NULL, SEL_ERR(sel) | ev->ext);
	if (cpu_long_mode(c) && (!cs->l || cs->db))
		return exc_gp(c, NULL, SEL_ERR(sel) | ev->ext);
	if (!cs->present)
		return exc_raise_error(c, NULL, VEC_NP, SEL_ERR(sel) | ev->ext);
	*cpl = seg_is_conforming(cs) ? c->cpl : cs->dpl;
	if (cpu_vm86(c) && *cpl != 0)
		return exc_gp(c, NULL, SEL_ERR(sel) | ev->ext);
	cs->sel = (u16)((sel & ~3u) | *cpl);
	cs->type |= SEG_ACCESSED;
	return 0;
}

static int gate_fault(struct cpu *c, const struct event *ev, u8 vector)
{
	return exc_raise_error(c, NULL, vector, (u32)ev->vector * 8 + 2 + (ev->soft ? 0 : ev->ext));
}

/* A frame is written with the handler's rights: supervisor ones below CPL 3. */
static int frame_write(struct cpu *c, u64 lin, const void *buf, unsigned size, u8 cpl)
{
	return likely(cpl != 3) ? sys_write(c, lin, buf, size) : stack_write_user(c, lin, buf, size);
}

/* ---- delivery: IA-32e mode ---- */

static int deliver_long(struct cpu *c, const struct event *ev)
{
	u64 lo, hi, d, gva;
	struct seg cs;
	u8 cpl;
	int st;

	if ((u32)ev->vector * 16 + 15 > c->idtr.limit)
		return gate_fault(c, ev, VEC_GP);
	if ((st = sys_read64(c, c->idtr.base + ev->vector * 16u, &lo)) ||
	    (st = sys_read64(c, c->idtr.base + ev->vector * 16u + 8, &hi)))
		return st;
	u8 type = (lo >> 40) & 31;
	if (type != SYS_INT && type != SYS_TRAP)
		return gate_fault(c, ev, VEC_GP);
	if (ev->soft && ((lo >> 45) & 3) < c->cpl)
		return gate_fault(c, ev, VEC_GP);
	if (!((lo >> 47) & 1))
		return gate_fault(c, ev, VEC_NP);

	if ((st = handler_segment(c, ev, (u16)(lo >> 16), &cs, &d, &gva, &cpl)))
		return st;
	u64 target = (lo & 0xffff) | ((lo >> 32) & 0xffff0000) | (hi << 32);
	unsigned ist = (lo >> 32) & 7;
	u64 rsp = c->r[RSP];
	if (!cpu_code64(c))
		rsp &= stack_mask(c);
	if (ist)
		st = tss_rsp64(c, NULL, 2 + ist, ev->ext, &rsp);
	else if (cpl != c->cpl)
		st = tss_rsp64(c, NULL, cpl, ev->ext, &rsp);
	if (st)
		return st;
	rsp &= ~15ull;

	u64 frame[6];
	unsigned n = ev->has_error ? 6 : 5;
	u64 *f = frame;
	if (ev->has_error)
		*f++ = ev->error;
	f[0] = ev->ret_rip;
	f[1] = c->seg[CS].sel;
	f[2] = cpu_rflags(c) | ev->rf;
	f[3] = c->r[RSP];
	f[4] = c->seg[SS].sel;
	u64 new_rsp = rsp - n * 8;
	if (unlikely(!gva_canonical(new_rsp) || !gva_canonical(rsp - 1)))
		return exc_raise_error(c, NULL, VEC_SS, ev->ext);
	if (unlikely(!gva_canonical(target)))
		return exc_gp(c, NULL, ev->ext);
	if ((st = desc_set_accessed(c, d, gva)) || (st = frame_write(c, new_rsp, frame, n * 8, cpl)))
		return st;

	if (cpl != c->cpl) {
		c->cpl = cpl;
		seg_set_null(c, SS, cpl);
	}
	c->seg[CS] = cs;
	c->r[RSP] = new_rsp;
	c->rip = target;
	set_sflags(c, handler_flags(c, type == SYS_INT));
	return STEP_MODE;
}

/* ---- delivery: legacy protected mode, virtual-8086 mode included ---- */

static int deliver_protected(struct cpu *c, const struct event *ev)
{
	u64 gate, d, gva;
	struct seg cs;
	struct stk stk;
	u8 cpl;
	int st;

	if ((u32)ev->vector * 8 + 7 > c->idtr.limit)
		return gate_fault(c, ev, VEC_GP);
	if ((st = sys_read64(c, (u32)(c->idtr.base + ev->vector * 8u), &gate)))
		return st;
	u8 type = (gate >> 40) & 31;
	if (type != SYS_TASK_GATE && type != SYS_INT16 && type != SYS_TRAP16 && type != SYS_INT && type != SYS_TRAP)
		return gate_fault(c, ev, VEC_GP);
	if (ev->soft && ((gate >> 45) & 3) < c->cpl)
		return gate_fault(c, ev, VEC_GP);
	if (!((gate >> 47) & 1))
		return gate_fault(c, ev, VEC_NP);
	if (type == SYS_TASK_GATE)
		return cpu_unimplemented(c, NULL, "hardware task switch through an IDT task gate");

	if ((st = handler_segment(c, ev, (u16)(gate >> 16), &cs, &d, &gva, &cpl)))
		return st;
	unsigned size = type == SYS_INT || type == SYS_TRAP ? 4 : 2;
	u64 target = (gate & 0xffff) | (size == 4 ? (gate >> 32) & 0xffff0000 : 0);
	bool vm = cpu_vm86(c);
	bool inner = cpl != c->cpl;
	if (inner) {
		if ((st = tss_stack(c, NULL, cpl, ev->ext, &stk)))
			return st;
	} else {
		stk_current(c, &stk);
		stk.ss_error = ev->ext;
		stk.sys = cpl != 3;
	}
	if (target > cs.limit)
		return exc_gp(c, NULL, ev->ext);
	if ((st = desc_set_accessed(c, d, gva)))
		return st;

	/* At most GS FS DS ES SS SP FLAGS CS IP error. */
	u32 v[10];
	unsigned n = 0;
	if (inner && vm) {
		v[n++] = c->seg[GS].sel;
		v[n++] = c->seg[FS].sel;
		v[n++] = c->seg[DS].sel;
		v[n++] = c->seg[ES].sel;
	}
	if (inner) {
		v[n++] = c->seg[SS].sel;
		v[n++] = (u32)c->r[RSP];
	}
	v[n++] = (u32)(cpu_rflags(c) | ev->rf);
	v[n++] = c->seg[CS].sel;
	v[n++] = (u32)ev->ret_rip;
	if (ev->has_error)
		v[n++] = ev->error;
	for (unsigned k = 0; k < n; k++)
		if ((st = stk_push(c, NULL, &stk, size, v[k])))
			return st;

	if (vm) {
		seg_set_null(c, ES, 0);
		seg_set_null(c, DS, 0);
		seg_set_null(c, FS, 0);
		seg_set_null(c, GS, 0);
	}
	c->cpl = cpl;
	c->seg[CS] = cs;
	stk_commit(c, &stk);
	c->rip = target;
	set_sflags(c, handler_flags(c, type == SYS_INT || type == SYS_INT16));
	return STEP_MODE;
}

/* ---- delivery: real-address mode, and INT n of virtual-8086 mode redirected by VME ---- */

static int deliver_ivt(struct cpu *c, const struct event *ev, u64 base, u32 limit, u64 pushed_flags, u64 clear)
{
	u32 entry;
	struct stk stk;
	int st;
	if ((u32)ev->vector * 4 + 3 > limit)
		return exc_gp(c, NULL, (u32)ev->vector * 8 + 2 + ev->ext);
	if ((st = sys_read(c, (u32)(base + ev->vector * 4u), &entry, 4)))
		return st;
	stk_current(c, &stk);
	stk.sys = c->cpl != 3;
	const u64 v[3] = { pushed_flags, c->seg[CS].sel, ev->ret_rip };
	for (unsigned k = 0; k < 3; k++)
		if ((st = stk_push(c, NULL, &stk, 2, v[k])))
			return st;
	stk_commit(c, &stk);
	if (cpu_vm86(c))
		seg_set_vm86(c, CS, (u16)(entry >> 16));
	else
		seg_set_real(c, CS, (u16)(entry >> 16));
	c->rip = entry & 0xffff;
	set_sflags(c, c->sflags & ~clear);
	return STEP_MODE;
}

static int deliver_real(struct cpu *c, const struct event *ev)
{
	return deliver_ivt(c, ev, c->idtr.base, c->idtr.limit, cpu_rflags(c), FL_IF | FL_TF | FL_AC | FL_RF);
}

static int deliver(struct cpu *c, const struct event *ev)
{
	int st;
	if (likely(cpu_long_mode(c)))
		st = deliver_long(c, ev);
	else if (cpu_real(c))
		st = deliver_real(c, ev);
	else
		st = deliver_protected(c, ev);
	if (likely(st == STEP_MODE))
		cpu_update_mode(c);
	return st;
}

/* ---- exceptions ---- */

/* SDM table 6-4. */
static bool contributory(u8 v)
{
	return v == VEC_DE || (v >= VEC_TS && v <= VEC_GP) || v == VEC_CP;
}
static bool makes_double_fault(u8 first, u8 second)
{
	if (contributory(first))
		return contributory(second);
	return first == VEC_PF && (contributory(second) || second == VEC_PF);
}

/* Fault-class exceptions push RF = 1, so that an instruction breakpoint does not hit twice; the #DB of the breakpoint
 * itself pushes RF as it is, its handler sets it (SDM 17.3.1.1). */
static u64 pushed_rf(const struct exception *e)
{
	static const u32 faults = BIT(VEC_DE) | BIT(VEC_BR) | BIT(VEC_UD) | BIT(VEC_NM) | BIT(VEC_TS) | BIT(VEC_NP) |
				  BIT(VEC_SS) | BIT(VEC_GP) | BIT(VEC_PF) | BIT(VEC_MF) | BIT(VEC_AC) | BIT(VEC_XM) |
				  BIT(VEC_VE) | BIT(VEC_CP);
	if (e->soft || e->icebp)
		return 0;
	if (e->vector == VEC_DB)
		return e->mid_rep || (e->dr6 & DR6_BD) ? FL_RF : 0;
	return e->vector < 32 && ((faults >> e->vector) & 1) ? FL_RF : 0;
}

static int shutdown(struct cpu *c, const u8 *chain, unsigned n, const struct exception *last)
{
	struct text t;
	text_init(&t, c->why, sizeof(c->why));
	text_str(&t, "triple fault: ");
	for (unsigned k = 0; k < n; k++) {
		text_str(&t, k ? ", then " : "");
		text_str(&t, vector_name(chain[k]));
	}
	text_str(&t, ", then ");
	text_str(&t, vector_name(last->vector));
	if (last->has_error) {
		text_str(&t, " error 0x");
		text_hex(&t, last->error, 1);
	}
	if (last->vector == VEC_PF) {
		text_str(&t, " address 0x");
		text_hex(&t, last->cr2, 16);
	}
	text_where(&t, c);
	text_str(&t, " (");
	text_mode(&t, c);
	text_str(&t, ") RSP ");
	text_hex(&t, c->r[RSP], 16);
	text_str(&t, " CR2 ");
	text_hex(&t, c->cr2, 16);
	c->exit = CPU_EXIT_SHUTDOWN;
	return STEP_EXIT;
}

/* Effects an exception has before its handler is looked up, and even if delivering it fails. */
static void commit_syndrome(struct cpu *c, const struct exception *e)
{
	if (e->vector == VEC_PF && !e->soft) {
		c->cr2 = e->cr2;
	} else if (e->vector == VEC_DB && !e->soft && !e->icebp) {
		c->dr6 |= e->dr6;
		c->dr7 &= ~DR7_GD;
		c->debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF); /* SDM 17.4.1, 17.4.4 */
	}
}

int exc_deliver(struct cpu *c)
{
	u8 chain[8];
	unsigned n = 0;
	struct exception e = c->exc;
	for (;;) {
		const struct event ev = {
			.vector = e.vector, .soft = e.soft, .has_error = e.has_error, .ext = e.soft ? 0 : 1,
			.error = e.error, .ret_rip = c->rip, .rf = pushed_rf(&e),
		};
		c->stats.exceptions++;
		if (e.vector == VEC_PF && !e.soft) {
			c->stats.page_faults++;
			cpu_trace(c, TRACE_PAGE_FAULT, e.cr2, e.error, c->rip);
		} else {
			cpu_trace(c, TRACE_EXCEPTION, e.vector, e.has_error ? e.error : 0, c->rip);
		}
		commit_syndrome(c, &e);
		int st = deliver(c, &ev);
		if (likely(st != STEP_FAULT))
			return st;
		if (n < ARRAY_SIZE(chain))
			chain[n++] = e.vector;
		if (e.vector == VEC_DF && !e.soft) {
			commit_syndrome(c, &c->exc);
			return shutdown(c, chain, n, &c->exc);
		}
		if (!e.soft && makes_double_fault(e.vector, c->exc.vector)) {
			commit_syndrome(c, &c->exc); /* CR2 names the second fault: stack guards depend on it */
			e = (struct exception){ .vector = VEC_DF, .has_error = true };
		} else {
			e = c->exc;
		}
	}
}

/* ---- interrupts ---- */

static int deliver_event(struct cpu *c, const struct event *ev)
{
	int st = deliver(c, ev);
	return likely(st != STEP_FAULT) ? st : exc_deliver(c);
}

int interrupt_deliver(struct cpu *c, u8 vector)
{
	const struct event ev = { .vector = vector, .ext = 1, .ret_rip = c->rip };
	cpu_trace(c, TRACE_INTERRUPT, vector, c->rip, 0);
	return deliver_event(c, &ev);
}

int nmi_deliver(struct cpu *c)
{
	const struct event ev = { .vector = VEC_NMI, .ext = 1, .ret_rip = c->rip };
	c->nmi_pending = false;
	c->nmi_blocked = true;
	cpu_trace(c, TRACE_INTERRUPT, VEC_NMI, c->rip, 0);
	return deliver_event(c, &ev);
}

int exc_soft(struct cpu *c, const struct insn *i, u8 vector, bool icebp)
{
	const struct event ev = {
		.vector = vector, .soft = !icebp, .ext = icebp, .ret_rip = insn_next_rip(c, i),
	};
	set_rip(c, i);
	c->stats.exceptions++;
	cpu_trace(c, TRACE_EXCEPTION, vector, 0, c->rip);
	return deliver(c, &ev);
}

/* INT n of virtual-8086 mode that the redirection bitmap sends to the 8086 program's own table (SDM vol. 3, 20.3.3).
 * *done: handled; otherwise the interrupt goes through the IDT. */
static int int_vm86(struct cpu *c, const struct insn *i, u8 vector, bool *done)
{
	unsigned iopl = (unsigned)(c->sflags >> FL_IOPL_SHIFT) & 3;
	*done = false;
	if (c->cr4 & CR4_VME) {
		u16 map;
		u8 bits;
		int st;
		if (c->tr.unusable || c->tr.limit < 103)
			return exc_gp(c, i, 0);
		if ((st = sys_read(c, c->tr.base + 102, &map, 2)))
			return st;
		/* The 32 bytes of the redirection map lie directly below the I/O permission map. */
		u32 at = (u32)map - 32 + vector / 8;
		if (map < 32 || at > c->tr.limit)
			return exc_gp(c, i, 0);
		if ((st = sys_read(c, c->tr.base + at, &bits, 1)))
			return st;
		if (!((bits >> (vector % 8)) & 1)) {
			const struct event ev = { .vector = vector, .soft = true, .ret_rip = insn_next_rip(c, i) };
			u64 fl = cpu_rflags(c);
			*done = true;
			if (iopl == 3) {
				st = deliver_ivt(c, &ev, 0, 0x3ff, fl, FL_IF | FL_TF | FL_RF | FL_NT);
			} else {
				fl = (fl & ~FL_IF) | (fl & FL_VIF ? FL_IF : 0) | FL_IOPL;
				st = deliver_ivt(c, &ev, 0, 0x3ff, fl, FL_VIF | FL_TF | FL_RF | FL_NT);
			}
			if (st == STEP_MODE)
				cpu_update_mode(c);
			return st;
		}
	}
	return iopl < 3 ? exc_gp(c, i, 0) : 0;
}

int op_int(struct cpu *c, const struct insn *i)
{
	set_rip(c, i);
	if (unlikely(cpu_vm86(c))) {
		bool done;
		int st = int_vm86(c, i, (u8)i->imm, &done);
		if (st || done)
			return st;
	}
	return exc_soft(c, i, (u8)i->imm, false);
}

int op_int3(struct cpu *c, const struct insn *i)
{
	return exc_soft(c, i, VEC_BP, false);
}

int op_int1(struct cpu *c, const struct insn *i)
{
	return exc_soft(c, i, VEC_DB, true);
}

int op_into(struct cpu *c, const struct insn *i)
{
	if (c->aflags & FL_OF)
		return exc_soft(c, i, VEC_OF, false);
	NEXT(c, i);
}
