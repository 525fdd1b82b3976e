/* Handlers of native instructions: enable checks, memory operands, host faults as guest exceptions.
 *
 * Memory operands.  RAM within one page is used in place, so that locked instructions are atomic and the host's own
 * alignment rules apply (pages keep the low 12 bits of addresses).  Anything else goes through the scratch pages at the
 * same offset modulo 64. */
#include "cpu/exclusive.h"
#include "cpu/native_op.h"

int native_enabled_slow(struct cpu *c, const struct insn *i, unsigned check)
{
	switch (check) {
	case NCHK_NONE:
		return 0;
	case NCHK_VEX:
		return cpu_real(c) || cpu_vm86(c) ? exc_ud(c, i) : 0;
	case NCHK_X87:
	case NCHK_FXSR:
		return c->cr0 & (CR0_EM | CR0_TS) ? exc_nm(c, i) : 0;
	case NCHK_WAIT:
		return (c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) ? exc_nm(c, i) : 0;
	case NCHK_MMX:
		if (c->cr0 & CR0_EM)
			return exc_ud(c, i);
		break;
	case NCHK_SSE:
		if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR))
			return exc_ud(c, i);
		break;
	case NCHK_XSAVE:
		if (!(c->cr4 & CR4_OSXSAVE))
			return exc_ud(c, i);
		break;
	case NCHK_AVX:
	case NCHK_AVX512: {
		u64 need = check == NCHK_AVX ? XCR0_SSE_AVX : XCR0_SSE_AVX | XCR0_AVX512;
		if (cpu_real(c) || cpu_vm86(c) || !(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & need) != need)
			return exc_ud(c, i);
		break;
	}
	default:
		ASSERT(false);
	}
	return c->cr0 & CR0_TS ? exc_nm(c, i) : 0;
}

/* Zero when op may run; the guest's state is then live if it needs to be. */
static inline int native_begin(struct cpu *c, const struct insn *i, const struct native_op *op)
{
	if (op->check <= NCHK_VEX) {
		if (op->check == NCHK_NONE)
			return 0;
		return native_enabled_slow(c, i, NCHK_VEX);
	}
	int r = native_enabled_slow(c, i, op->check);
	if (unlikely(r))
		return r;
	fpu_load(c);
	return 0;
}

int native_raise(struct cpu *c, const struct insn *i)
{
	switch (c->native->fault.trapno) {
	case VEC_DE:
		return exc_raise(c, i, VEC_DE);
	case VEC_MF:
		if (!(c->cr0 & CR0_NE))
			return cpu_unimplemented(c, i, "x87 exception reported through IRQ 13 (CR0.NE = 0)");
		return exc_raise(c, i, VEC_MF);
	case VEC_XM:
		return exc_raise(c, i, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
	case VEC_GP:
	case VEC_SS:
	case VEC_AC: /* the host's own check of a misaligned operand */
		return exc_gp(c, i, 0);
	case VEC_UD:
		return exc_ud(c, i);
	default:
		return cpu_unimplemented(c, i, "unexpected host exception in a native instruction");
	}
}

/* FIP, FDP and FOP as the host would have set them, in the guest's terms (SDM 8.1.8). */
static void x87_executed(struct cpu *c, const struct insn *i, const struct native_op *op, u32 status)
{
	struct native *n = c->native;
	if (op->flags & NF_FNINIT) {
		c->fip = c->fdp = 0;
		n->fop = n->fcs = n->fds = 0;
		return;
	}
	c->fip = insn_rip(c, i);
	n->fcs = c->seg[CS].sel;
	if (n->fop_always || status == STUB_X87_PENDING)
		n->fop = op->fop;
	if (op->size && (n->fdp_always || status == STUB_X87_PENDING)) {
		c->fdp = insn_lea(c, i);
		n->fds = c->seg[i->seg].sel;
	}
}

int native_nop(struct cpu *c, const struct insn *i)
{
	NEXT(c, i);
}

int native_ud(struct cpu *c, const struct insn *i)
{
	return exc_ud(c, i);
}

int native_touch(struct cpu *c, const struct insn *i)
{
	int fault = 0;
	u64 ea = insn_ea(c, i, 1, ACC_R, &fault);
	if (fault)
		return fault;
	fault = mem_probe(c, i, ea, 1, ACC_R);
	if (fault)
		return fault;
	NEXT(c, i);
}

int native_integer(struct cpu *c, const struct insn *i)
{
	if (unlikely(native_run(c, i->stub, NULL)))
		return native_raise(c, i);
	NEXT(c, i);
}

int native_register(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	int r = native_begin(c, i, op);
	if (unlikely(r))
		return r;
	u32 status = native_run(c, op, NULL);
	if (unlikely(status == STUB_FAULT))
		return native_raise(c, i);
	if (op->flags & (NF_X87 | NF_FNINIT))
		x87_executed(c, i, op, status);
	NEXT(c, i);
}

/* ---- the slow path of memory operands ---- */

/* Beside the (non-negative) steps. */
enum { GO_ON = -1, HOST_FAULT = -2, RETRY = -3 };

/* Gives up what a stub did to the live vector state: back to the copy fpu_checkpoint() made. */
static void fpu_checkpoint(struct cpu *c)
{
	fpu_save(c);
	fpu_load(c);
}

static void fpu_rollback(struct cpu *c)
{
	c->fpu_live = false; /* overwritten by the load */
	fpu_load(c);
}

struct gpr_copy { u64 r[16], aflags; };

static void gpr_save(const struct cpu *c, struct gpr_copy *s)
{
	native_copy(s->r, c->r, sizeof(s->r));
	s->aflags = c->aflags;
}

static void gpr_restore(struct cpu *c, const struct gpr_copy *s)
{
	native_copy(c->r, s->r, sizeof(s->r));
	c->aflags = s->aflags;
}

/* An unmasked invalid operation, overflow or underflow leaves the destination in memory alone (SDM 8.5.1, 8.5.4). */
static bool x87_store_suppressed(void)
{
	u16 fsw, fcw;
	__asm__ volatile("fnstsw %0; fnstcw %1" : "=m"(fsw), "=m"(fcw));
	return fsw & ~fcw & (BIT(0) | BIT(3) | BIT(4));
}

/* A fault is due at ea.  First come: #UD of an instruction the host does not have, #GP of a misaligned operand where
 * alignment is checked, a pending x87 exception, and the x87 exception that suppresses a store altogether (then 0 is
 * returned, the instruction is done).  The host knows: it runs the instruction on scratch memory. */
static int fault_or_undefined(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, int fault,
			      u32 *x87_status)
{
	unsigned align = op->size & -(unsigned)op->size; /* 16, 32, 64 */
	bool misaligned = op->size >= 16 && (ea & (align - 1));
	bool x87 = op->check == NCHK_X87 || op->check == NCHK_MMX; /* FLDCW waits as well */
	/* A vector store that converts has set its MXCSR flags before it faults. */
	bool keep = op->access == NACC_W && op->check >= NCHK_SSE;
	struct gpr_copy gpr;
	if (fault != STEP_FAULT || (!misaligned && !keep && !x87 && (op->flags & NF_PROVEN)))
		return fault;
	struct exception exc = c->exc;
	bool fpu = op->check > NCHK_VEX;
	gpr_save(c, &gpr);
	if (fpu)
		fpu_checkpoint(c);
	u32 status = native_run(c, op, c->native->scratch + PAGE_SIZE + (ea & 63));
	if (x87 && status == STUB_X87_PENDING && (op->access & NACC_W) && x87_store_suppressed()) {
		*x87_status = status;
		return 0;
	}
	gpr_restore(c, &gpr);
	if (fpu && !keep)
		fpu_rollback(c);
	if (status == STUB_FAULT && c->native->fault.trapno == VEC_UD)
		return exc_ud(c, i);
	native_proven(c, op);
	/* #XM only from registers (keep): CVTPS2PI has met what lay in the scratch memory. */
	const u64 trapno = c->native->fault.trapno;
	if (status == STUB_FAULT && (trapno == VEC_GP ? misaligned : trapno == VEC_XM ? keep : x87 || keep))
		return native_raise(c, i);
	c->exc = exc;
	return fault;
}

static int bounce_parts(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, u32 *status)
{
	u8 *buf = c->native->scratch + PAGE_SIZE + (ea & 63);
	struct gpr_copy gpr;
	int r;
	if (op->access & NACC_W) {
		r = mem_probe(c, i, ea, op->size, ACC_W);
		if (r)
			return fault_or_undefined(c, i, op, ea, r, status);
	}
	if (op->access & NACC_R) {
		r = mem_read_slow(c, i, ea, buf, op->size);
		if (r)
			return fault_or_undefined(c, i, op, ea, r, status);
	}
	bool x87 = op->flags & NF_X87;
	if (op->access & NACC_W) {
		gpr_save(c, &gpr);
		if (x87)
			fpu_checkpoint(c);
	}
	*status = native_run(c, op, buf);
	if (*status == STUB_FAULT && c->native->fault.trapno == VEC_AC && (op->flags & NF_LOCK)) {
		/* The host refuses split locks; no other CPU runs meanwhile. */
		u8 *aligned = c->native->scratch + PAGE_SIZE + 256;
		native_copy(aligned, buf, op->size);
		*status = native_run(c, op, aligned);
		native_copy(buf, aligned, op->size);
	}
	if (*status == STUB_FAULT)
		return native_raise(c, i);
	if ((op->access & NACC_W) && !(*status == STUB_X87_PENDING && x87_store_suppressed())) {
		r = mem_write_slow(c, i, ea, buf, op->size);
		if (r) { /* executed again later */
			gpr_restore(c, &gpr);
			if (x87)
				fpu_rollback(c);
			return r;
		}
	}
	return 0;
}

/* Through the scratch pages: page-crossing or MMIO operands.  Locked ones: nobody else may come in between. */
static int bounce(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, u32 *status)
{
	if (!(op->flags & NF_LOCK))
		return bounce_parts(c, i, op, ea, status);
	exclusive_begin(c);
	int r = bounce_parts(c, i, op, ea, status);
	exclusive_end(c);
	return r;
}

/* A store under a mask: what was written is found by running it over two different backgrounds. */
static int masked_store(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, u8 *buf, unsigned from,
			unsigned to)
{
	u8 first[64];
	u32 status;
	native_fill(buf + from, 0x00, to - from);
	status = native_run(c, op, buf);
	if (status)
		return HOST_FAULT;
	native_copy(first + from, buf + from, to - from);
	native_fill(buf + from, 0xff, to - from);
	status = native_run(c, op, buf);
	if (status)
		return HOST_FAULT;
	for (unsigned k = from; k < to;) {
		unsigned end = k;
		while (end < to && first[end] == buf[end])
			end++;
		if (end > k) {
			int r = mem_write_slow(c, i, ea + k, buf + k, end - k);
			if (r)
				return r;
		}
		k = end + 1;
	}
	return 0;
}

/* A masked operand of which a page cannot be used in place.  It is placed in scratch memory across the edge of an
 * inaccessible page where the guest's is inaccessible: the host suppresses or reports the fault. */
static int masked(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, int fault)
{
	struct native *n = c->native;
	enum access acc = op->access & NACC_W ? ACC_W : ACC_R;
	unsigned size = op->size, n1 = size, from = 0, to = size;
	unsigned room = (unsigned)(PAGE_SIZE - (ea & ~PAGE_MASK));
	u8 *buf;
	int r;
	/* An alignment check is like a page fault: only when an element is touched. */
	bool ac = fault == STEP_FAULT && c->exc.vector == VEC_AC;
	struct exception exc = c->exc;
	if (n1 > room)
		n1 = room;
	bool ok1 = !ac && mem_probe(c, i, ea, 1, acc) == 0;
	bool ok2 = n1 == size ? ok1 : !ac && mem_probe(c, i, ea + n1, 1, acc) == 0;
	if (ok1 && ok2) {
		buf = n->scratch + PAGE_SIZE + (ea & 63);
	} else if (ok1) {
		buf = n->scratch + 3 * PAGE_SIZE - n1;
		to = n1;
	} else if (ok2) {
		buf = n->scratch + PAGE_SIZE - n1;
		from = n1;
	} else {
		buf = n->scratch + 256 + (ea & 63);
		to = 0;
	}
	if (op->access & NACC_R) {
		if (to > from) {
			r = mem_read_slow(c, i, ea + from, buf + from, to - from);
			if (r)
				return r;
		}
		r = native_run(c, op, buf) ? HOST_FAULT : 0;
	} else {
		r = masked_store(c, i, op, ea, buf, from, to);
	}
	if (r != HOST_FAULT)
		return r;
	if (n->fault.trapno != VEC_PF)
		return native_raise(c, i);
	if (ac) {
		c->exc = exc;
		return fault;
	}
	u64 at = ea;
	if (n->fault.address - (u64)(uintptr_t)buf < size)
		at += n->fault.address - (u64)(uintptr_t)buf;
	r = mem_probe(c, i, at, 1, acc);
	if (r)
		return r;
	/* Accessible meanwhile (another CPU changed the page tables): try again. */
	c->rip = insn_rip(c, i);
	return RETRY;
}

/* The pieces that masked() works in are no operands: they have no alignment to be checked. */
static int masked_unchecked(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, int fault)
{
	const u64 ac = c->sflags & FL_AC;
	if (c->cpl < 3) /* there AC is SMAP's */
		return masked(c, i, op, ea, fault);
	c->sflags &= ~ac;
	int r = masked(c, i, op, ea, fault);
	c->sflags |= ac;
	return r;
}

/* GO_ON, or the step to return. */
static int memory_slow(struct cpu *c, const struct insn *i, const struct native_op *op, u64 ea, int fault)
{
	u32 status = STUB_OK;
	int r;
	if (op->flags & NF_MASKED)
		r = masked_unchecked(c, i, op, ea, fault);
	else if (fault)
		r = fault_or_undefined(c, i, op, ea, fault, &status);
	else
		r = bounce(c, i, op, ea, &status);
	if (r == RETRY)
		return STEP_NEXT;
	if (r)
		return r;
	if (op->flags & NF_X87)
		x87_executed(c, i, op, status);
	return GO_ON;
}

int native_memory(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	int fault = native_begin(c, i, op);
	void *p = NULL;
	u32 status = STUB_OK;
	if (unlikely(fault))
		return fault;
	enum access acc = op->access & NACC_W ? ACC_W : ACC_R;
	u64 ea = insn_ea(c, i, op->size, acc, &fault);
	if (unlikely(fault))
		return fault_or_undefined(c, i, op, 0, fault, &status);
	if (acc == ACC_R)
		p = tlb_read_ptr(c, ea, op->size);
	if (!p)
		fault = op->ac_align && native_alignment_due(c, ea, op->ac_align) ? exc_raise_error(c, i, VEC_AC, 0) :
										    mem_ptr(c, i, ea, op->size, acc, &p);
	if (unlikely(fault || !p)) {
		fault = memory_slow(c, i, op, ea, fault);
		if (fault != GO_ON)
			return fault;
		NEXT(c, i);
	}
	status = native_run(c, op, p);
	if (unlikely(status == STUB_FAULT)) {
		if (c->native->fault.trapno == VEC_AC && (op->flags & NF_LOCK)) {
			fault = bounce(c, i, op, ea, &status);
			if (fault)
				return fault;
			NEXT(c, i);
		}
		return native_raise(c, i);
	}
	if (op->flags & NF_X87)
		x87_executed(c, i, op, status);
	NEXT(c, i);
}

/* MOVDIR64B: reads 64 bytes at the memory operand, writes them at ES:[register], which must be 64-byte aligned. */
int native_movdir64b(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	struct insn dst = *i;
	u8 *buf = c->native->scratch + PAGE_SIZE;
	void *p;
	int fault = 0;
	u64 src = insn_ea(c, i, 64, ACC_R, &fault);
	if (fault)
		return fault;
	dst.base = i->ra / 8;
	dst.index = R_ZERO;
	dst.scale = 0;
	dst.disp = 0;
	dst.seg = ES;
	u64 to = insn_ea(c, &dst, 64, ACC_W, &fault);
	if (fault)
		return fault;
	fault = mem_read_slow(c, i, src, buf, 64);
	if (fault)
		return fault;
	if (to & 63)
		return exc_gp(c, i, 0);
	fault = mem_ptr(c, i, to, 64, ACC_W, &p);
	if (fault)
		return fault;
	if (p) {
		c->native->movdir = (u64)(uintptr_t)p;
		if (native_run(c, op, buf) == STUB_FAULT)
			return native_raise(c, i);
	} else {
		fault = mem_write_slow(c, i, to, buf, 64);
		if (fault)
			return fault;
	}
	NEXT(c, i);
}
