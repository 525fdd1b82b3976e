#include "engine/tr/translate.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <asm/hwcap2.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/exec.h"
#include "engine/rt/rt.h"
#include "engine/tr/emit.h"
#include "engine/tr/routines.h"
#include "engine/tr/scan.h"

/* ---- pass 2: emit (pass 1: scan.h) ---- */

/* Left free behind the code: a displacement that no longer fits is still patched. */
#define TR_PATCH_ROOM 16

struct gen {
	struct translator *t;
	struct emit e;
	struct cpu *c;
	struct block *b;
	const struct scan *s;
	u8 t0, t1;
	bool rcx_used;       /* by the block: spilled around each use instead of at entry */
	bool local;          /* no two registers are free in the whole block: scratch is chosen for each instruction */
	const struct ftlb *unused;
	size_t ftlb;         /* offset of the context's struct ftlb in struct cpu */
	u8 ctx;              /* enum tlb_ctx */
	struct cold { u8 *at; struct tr_site *site; } cold[BLOCK_MAX_INSNS * 3];
	unsigned n_cold;
	struct { u32 at; struct tr_site *site; } faults[BLOCK_MAX_INSNS];
	unsigned n_faults;
	u8 *early, *entry, *entry_link, *entry_lean, *dead_link, *dead_lean;
	u8 vector_checked;   /* bit n: level n is known to be usable at this point of the block */
};

static bool pick_scratch(struct gen *g, u32 used)
{
	static const u8 order[] = { R11, R10, R9, R8, R15, R14, R13, R12, RDI, RSI, RDX, RBX, RBP, RAX };
	unsigned n = 0;
	u8 *out[2] = { &g->t0, &g->t1 };
	for (unsigned k = 0; k < ARRAY_SIZE(order) && n < 2; k++)
		if (!(used & (1u << order[k])))
			*out[n++] = order[k];
	return n == 2;
}

/* Makes t0 and t1 usable for an instruction that refers to the registers `used`. */
static void scratch_begin(struct gen *g, u32 used)
{
	if (!g->local)
		return;
	bool ok = pick_scratch(g, used | 1u << RSP | 1u << RCX);
	ASSERT(ok);
	emit_store_gs(&g->e, SLOT(0), g->t0);
	emit_store_gs(&g->e, SLOT(1), g->t1);
}
static void scratch_end(struct gen *g)
{
	if (!g->local)
		return;
	emit_load_gs(&g->e, g->t0, SLOT(0));
	emit_load_gs(&g->e, g->t1, SLOT(1));
}

static u64 to_rx(const struct translator *t, const u8 *rw) { return (u64)(t->rx + (rw - t->rw)); }

static struct tr_site *new_site(struct gen *g, enum site_kind kind)
{
	struct translator *t = g->t;
	const size_t size = ALIGN_UP(sizeof(struct tr_site), 16);
	/* The last place is never a block's: what does not fit is written there, and thrown away by the caller. */
	struct tr_site *s = (struct tr_site *)(t->sites + t->sites_used);
	if (t->sites_size - t->sites_used < 2 * size)
		g->e.overflow = true;
	else
		t->sites_used += size;
	*s = (struct tr_site){ .block = g->b, .kind = (u8)kind, .t = { g->t0, g->t1 }, .local = g->local };
	return s;
}

static struct tr_site *insn_site(struct gen *g, const struct insn *i, bool mid)
{
	struct tr_site *s = new_site(g, SITE_INSN);
	s->insn[0] = *i;
	s->insn[1] = (struct insn){ .fn = rt_op_resume, .off = (u16)(i->off + i->len), .idx = (u8)(i->idx + 1), .base = R_ZERO, .index = R_ZERO };
	s->scratch_live = mid || !g->local;
	s->rcx_in_slot = mid || !g->rcx_used;
	return s;
}

static void cold_path(struct gen *g, u8 *at, struct tr_site *s)
{
	g->cold[g->n_cold++] = (struct cold){ at, s };
}

/* reg = linear address of the block's first byte + delta */
static void emit_rip(struct gen *g, unsigned reg, s32 delta)
{
	emit_load_gs(&g->e, reg, TR(page_rip));
	emit_lea(&g->e, reg, reg, 16, 0, delta + (s32)(g->b->gpa & ~PAGE_MASK));
}

static void use_rcx(struct gen *g)
{
	if (g->rcx_used)
		emit_store_gs(&g->e, SLOT(2), RCX);
}
static void done_rcx(struct gen *g)
{
	if (g->rcx_used)
		emit_load_gs(&g->e, RCX, SLOT(2));
}

/* Linear address of the memory operand into t0.  False: not expressible. */
static bool emit_address(struct gen *g, const struct insn *i, const ZydisDecodedOperand *o)
{
	struct emit *e = &g->e;
	if (i->disp < INT32_MIN || i->disp > INT32_MAX)
		return false;
	if (i->base == R_RIP)
		emit_rip(g, g->t0, (s32)i->disp);
	else
		emit_lea(e, g->t0, i->base == R_ZERO ? 16 : i->base, i->index == R_ZERO ? 16 : i->index, i->scale, (s32)i->disp);
	if (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS) {
		const unsigned seg = o->mem.segment == ZYDIS_REGISTER_FS ? FS : GS;
		emit_load_gs(e, g->t1, offsetof(struct cpu, seg) + seg * sizeof(struct seg) + offsetof(struct seg, base));
		emit_lea(e, g->t0, g->t0, g->t1, 0, 0);
	}
	return true;
}

/* t0 = linear address → host address is t0 + t1.  A miss goes to site's handler. */
static void emit_tlb(struct gen *g, unsigned size, bool write, struct tr_site *site)
{
	struct emit *e = &g->e;
	use_rcx(g);
	emit_pext_gs(e, g->t1, g->t0, TR(index_mask));
	emit_load_gs_index(e, RCX, g->t1, g->ftlb + (write ? offsetof(struct ftlb, write) : offsetof(struct ftlb, read)));
	emit_lea(e, g->t0, g->t0, RCX, 0, 0);
	emit_lea(e, RCX, g->t0, 16, 0, (s32)size - 1);
	emit_pext_gs(e, RCX, RCX, TR(page_number_mask));
	cold_path(g, emit_jrcxz_or_jmp(e), site);
	emit_load_gs_index(e, g->t1, g->t1, g->ftlb + offsetof(struct ftlb, host));
	done_rcx(g);
}

/* Branch target in t0 must be canonical, else the instruction's handler raises the fault.  Uses RCX. */
static void emit_canonical(struct gen *g, struct tr_site *site)
{
	struct emit *e = &g->e;
	use_rcx(g);
	emit_load_gs(e, RCX, TR(canonical_bias));
	emit_lea(e, RCX, RCX, g->t0, 0, 0);
	emit_pext_gs(e, RCX, RCX, TR(high_mask));
	cold_path(g, emit_jrcxz_or_jmp(e), site);
	done_rcx(g);
}

/* The instruction's bytes with [t0 + t1] as memory operand. */
static bool emit_with_operand(struct gen *g, const struct plan *p)
{
	struct emit *e = &g->e;
	const ZydisDecodedInstruction *z = &p->zi;
	if (!z->raw.modrm.offset && !(z->attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
		/* MOV accumulator, moffs */
		if (z->opcode < 0xa0 || z->opcode > 0xa3)
			return false;
		static const u8 same[4] = { 0x8a, 0x8b, 0x88, 0x89 };
		if (z->operand_width == 16)
			emit_u8(e, 0x66);
		EMIT(e, emit_rex(z->operand_width == 64, RAX, g->t0, g->t1), same[z->opcode - 0xa0]);
		emit_modrm_mem(e, RAX, g->t0, g->t1, 0, 0);
		return true;
	}
	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
		/* X and B of the prefix are inverted; a two-byte VEX prefix has neither and grows. */
		const u8 xb = (u8)((g->t1 < 8 ? 0x40 : 0) | (g->t0 < 8 ? 0x20 : 0));
		if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
			const u8 *v = p->bytes + z->raw.vex.offset;
			if (z->raw.vex.size == 2)
				EMIT(e, 0xc4, (u8)((v[1] & 0x80) | xb | 1), (u8)(v[1] & 0x7f));
			else
				EMIT(e, 0xc4, (u8)((v[1] & 0x9f) | xb), v[2]);
		} else {
			const u8 *v = p->bytes + z->raw.evex.offset;
			EMIT(e, 0x62, (u8)((v[1] & 0x9f) | xb), v[2], v[3]);
		}
		emit_u8(e, p->bytes[z->raw.modrm.offset - 1]);
		emit_modrm_mem(e, z->raw.modrm.reg & 7, g->t0, g->t1, 0, 0);
		for (unsigned k = 0; k < 2; k++)
			if (z->raw.imm[k].size)
				emit_bytes(e, p->bytes + z->raw.imm[k].offset, z->raw.imm[k].size / 8);
		return true;
	}
	unsigned at = 0;
	for (; at < z->raw.modrm.offset; at++) {
		u8 b = p->bytes[at];
		if (b == 0x66 || b == 0xf0 || b == 0xf2 || b == 0xf3)
			emit_u8(e, b);
		else if (b != 0x2e && b != 0x36 && b != 0x3e && b != 0x26 && b != 0x64 && b != 0x65)
			break;
	}
	u8 rex = 0x40 | (u8)((g->t1 >> 3) << 1) | (u8)(g->t0 >> 3);
	if ((p->bytes[at] & 0xf0) == 0x40) {
		rex |= p->bytes[at] & 0x0c;
		at++;
	}
	emit_u8(e, rex);
	emit_bytes(e, p->bytes + at, z->raw.modrm.offset - at);
	emit_modrm_mem(e, z->raw.modrm.reg & 7, g->t0, g->t1, 0, 0);
	for (unsigned k = 0; k < 2; k++)
		if (z->raw.imm[k].size)
			emit_bytes(e, p->bytes + z->raw.imm[k].offset, z->raw.imm[k].size / 8);
	return true;
}

/* A whole instruction through its handler. */
static void emit_call_insn(struct gen *g, const struct insn *i)
{
	struct emit *e = &g->e;
	struct tr_site *s = insn_site(g, i, false);
	g->vector_checked = 0; /* the handler may put the FPU state away or change what is enabled */
	emit_store_gs_imm(e, TR(site), (u32)(u64)s);
	emit_patch(emit_jmp(e), g->t->rw + (g->t->call_site - g->t->rx));
	s->resume = to_rx(g->t, e->p);
}

static void emit_restore_scratch(struct gen *g)
{
	struct emit *e = &g->e;
	if (!g->rcx_used)
		emit_load_gs(e, RCX, SLOT(2));
	emit_load_gs(e, g->t0, SLOT(0));
	emit_load_gs(e, g->t1, SLOT(1));
}

/* On to a block at a known distance.  Same page: linked when first taken. */
static void emit_exit(struct gen *g, s64 delta, bool in_scratch)
{
	struct emit *e = &g->e;
	const u64 to = g->b->gpa + (u64)delta;
	const bool cross = (to ^ g->b->gpa) & PAGE_MASK;
	if (!in_scratch && (cross || !g->local))
		scratch_begin(g, 0);
	if (cross) {
		emit_rip(g, g->t0, (s32)delta);
		emit_store_gs(e, r_off(R_RIP), g->t0);
		emit_load_gs(e, g->t0, TR(page_rip));
		emit_lea(e, g->t0, g->t0, 16, 0, (s32)((s64)(to & PAGE_MASK) - (s64)(g->b->gpa & PAGE_MASK)));
		emit_store_gs(e, TR(page_rip), g->t0);
	}
	if (g->rcx_used)
		emit_store_gs(e, SLOT(2), RCX); /* as the lean entry wants it */
	u8 *lean = emit_jmp(e);
	emit_patch(lean, e->p);
	if (cross || in_scratch || !g->local)
		emit_restore_scratch(g);
	if (cross && (g->b->mode & MODE_USER)) {
		emit_patch(emit_jmp(e), g->t->rw + (g->t->dispatch - g->t->rx));
		return;
	}
	u8 *jump = emit_jmp(e);
	struct tr_site *s = new_site(g, SITE_LINK);
	s->patch = jump;
	s->lean = lean;
	s->cross = cross;
	s->delta = delta;
	emit_patch(jump, e->p);
	emit_store_gs_imm(e, TR(site), (u32)(u64)s);
	emit_patch(emit_jmp(e), g->t->rw + (g->t->link - g->t->rx));
}

/* On to the address in t0. */
static void emit_exit_indirect(struct gen *g)
{
	struct emit *e = &g->e;
	emit_store_gs(e, r_off(R_RIP), g->t0);
	emit_restore_scratch(g);
	emit_patch(emit_jmp(e), g->t->rw + (g->t->dispatch - g->t->rx));
}

static size_t rsb_off(const struct gen *g, size_t field) { return TR(rsb) + g->ctx * sizeof(struct rsb) + field; }

/* After a call: t1 = return address.  Uses t0. */
static void emit_predict_return(struct gen *g, s32 next)
{
	struct emit *e = &g->e;
	if (((g->b->gpa + (u64)next) ^ g->b->gpa) & PAGE_MASK)
		return; /* behind the page's end: this block does not know what is mapped there */
	struct tr_site *s = new_site(g, SITE_RETURN);
	s->target = (u64)g->t->find_return;
	emit_load_gs(e, g->t0, rsb_off(g, offsetof(struct rsb, top)));
	emit_lea(e, g->t0, g->t0, 16, 0, sizeof ((struct rsb *)0)->e[0]);
	emit_movzx8(e, g->t0, g->t0);
	emit_store_gs(e, rsb_off(g, offsetof(struct rsb, top)), g->t0);
	emit_store_gs_at(e, g->t0, rsb_off(g, offsetof(struct rsb, e[0].rip)), g->t1);
	emit_store_gs_at_imm(e, g->t0, rsb_off(g, offsetof(struct rsb, e[0].site)), (u32)(u64)s);
}
_Static_assert(sizeof ((struct rsb *)0)->e == 256, "the top wraps as a byte");

/* Return to t0: as predicted, or through the dispatcher. */
static void emit_exit_return(struct gen *g)
{
	struct emit *e = &g->e;
	use_rcx(g);
	emit_load_gs(e, g->t1, rsb_off(g, offsetof(struct rsb, top)));
	emit_load_gs_at(e, RCX, g->t1, rsb_off(g, offsetof(struct rsb, e[0].rip)));
	emit_not(e, RCX);
	emit_lea(e, RCX, RCX, g->t0, 0, 1);            /* difference to the prediction */
	u8 *miss = emit_jrcxz_or_jmp(e);
	emit_store_gs(e, r_off(R_RIP), g->t0);
	emit_load_gs_at(e, g->t0, g->t1, rsb_off(g, offsetof(struct rsb, e[0].site)));
	emit_lea(e, g->t1, g->t1, 16, 0, -(s32)sizeof ((struct rsb *)0)->e[0]);
	emit_movzx8(e, g->t1, g->t1);
	emit_store_gs(e, rsb_off(g, offsetof(struct rsb, top)), g->t1);
	emit_store_gs(e, TR(site), g->t0);
	emit_load(e, g->t0, g->t0, 16, offsetof(struct tr_site, target));
	emit_store_gs(e, TR(target), g->t0);
	done_rcx(g);
	emit_restore_scratch(g);
	emit_jmp_gs(e, TR(target));
	emit_patch(miss, e->p);
	done_rcx(g);
	emit_exit_indirect(g);
}

static void emit_spill(struct gen *g)
{
	if (!g->local) {
		emit_store_gs(&g->e, SLOT(0), g->t0);
		emit_store_gs(&g->e, SLOT(1), g->t1);
	}
	emit_store_gs(&g->e, SLOT(2), RCX);
}

/* Scratch registers as the guest has them, whatever they hold now. */
static void emit_unspill(struct gen *g)
{
	if (!g->local) {
		emit_load_gs(&g->e, g->t0, SLOT(0));
		emit_load_gs(&g->e, g->t1, SLOT(1));
	}
	emit_load_gs(&g->e, RCX, SLOT(2));
}

/* Where the entries lead once the block is dead: the dispatcher wants R_RIP. */
static void emit_dead_entries(struct gen *g)
{
	struct emit *e = &g->e;
	g->dead_link = e->p;
	emit_spill(g);
	g->dead_lean = e->p;
	emit_load_gs(e, RCX, TR(page_rip));
	emit_lea(e, RCX, RCX, 16, 0, (s32)(g->b->gpa & ~PAGE_MASK));
	emit_store_gs(e, r_off(R_RIP), RCX);
	emit_unspill(g);
	emit_patch(emit_jmp(e), g->t->rw + (g->t->dispatch - g->t->rx));
}

static void emit_entry(struct gen *g)
{
	struct emit *e = &g->e;
	g->entry = e->p;
	emit_spill(g);
	emit_load_gs(e, RCX, r_off(R_RIP));
	emit_lea(e, RCX, RCX, 16, 0, -(s32)(g->b->gpa & ~PAGE_MASK));
	emit_store_gs(e, TR(page_rip), RCX);
	u8 *over = emit_jmp(e);
	g->entry_link = e->p;
	emit_spill(g);
	emit_patch(over, e->p);
	g->entry_lean = e->p;
	emit_load_gs(e, RCX, TR(budget));
	emit_lea(e, RCX, RCX, 16, 0, -(s32)g->b->n);
	emit_store_gs(e, TR(budget), RCX);
	emit_pext_gs(e, RCX, RCX, TR(poll_mask));
	g->early = emit_jrcxz_or_jmp(e);
	if (g->rcx_used)
		emit_load_gs(e, RCX, SLOT(2));
}

static void emit_early(struct gen *g)
{
	struct emit *e = &g->e;
	emit_patch(g->early, e->p);
	emit_unspill(g);
	struct tr_site *s = new_site(g, SITE_INSN);
	s->insn[0] = (struct insn){ 0 };
	emit_store_gs_imm(e, TR(site), (u32)(u64)s);
	emit_patch(emit_jmp(e), g->t->rw + (g->t->leave_early - g->t->rx));
}

/* Vector instructions of this level may run here, or the handler does it (and makes it so for the next). */
static void emit_vector_check(struct gen *g, u8 level, struct tr_site *s)
{
	if (g->vector_checked & (1u << level))
		return;
	use_rcx(g);
	emit_load_gs(&g->e, RCX, TR(vector_off) + 8 * level);
	cold_path(g, emit_jrcxz_or_jmp(&g->e), s);
	done_rcx(g);
	g->vector_checked |= (u8)((2u << level) - 1); /* what AVX needs, SSE has too */
}

/* The host may refuse the instruction emitted at `at` (alignment, SIMD exception): then its handler does it. */
static void may_fault(struct gen *g, const u8 *at, struct tr_site *s)
{
	if (g->n_faults < BLOCK_MAX_INSNS) {
		g->faults[g->n_faults].at = (u32)(at - g->t->rw);
		g->faults[g->n_faults++].site = s;
	}
}

static bool emit_insn(struct gen *g, unsigned k)
{
	struct emit *e = &g->e;
	const struct plan *p = &g->s->plan[k];
	const struct insn *i = &g->b->insn[k];
	const s32 next = (s32)(i->off + i->len);
	switch ((enum how)p->how) {
	case HOW_DROP: return true;
	case HOW_COPY: {
		struct tr_site *s = NULL;
		if (p->extension) {
			s = insn_site(g, i, false);
			may_fault(g, e->p, s);
		}
		emit_bytes(e, p->bytes, p->len);
		if (s)
			s->resume = to_rx(g->t, e->p);
		return true;
	}
	case HOW_LEA_RIP: {
		unsigned dst = (unsigned)scan_gpr(p->ops[0].reg.value);
		if (p->ops[0].size != 64 || i->disp < INT32_MIN || i->disp > INT32_MAX) {
			emit_call_insn(g, i);
			return true;
		}
		emit_rip(g, dst, (s32)i->disp);
		return true;
	}
	case HOW_MEM: {
		const ZydisDecodedOperand *o = NULL;
		for (unsigned j = 0; j < p->zi.operand_count_visible; j++)
			if (p->ops[j].type == ZYDIS_OPERAND_TYPE_MEMORY)
				o = &p->ops[j];
		u8 *before = e->p;
		scratch_begin(g, scan_registers(p));
		if (!o || !emit_address(g, i, o)) {
			e->p = before;
			emit_call_insn(g, i);
			return true;
		}
		struct tr_site *s = insn_site(g, i, true);
		emit_tlb(g, o->size / 8, p->write, s);
		if (p->extension)
			may_fault(g, e->p, s);
		if (!emit_with_operand(g, p))
			return false;
		scratch_end(g);
		s->resume = to_rx(g->t, e->p);
		return true;
	}
	case HOW_VECTOR: {
		struct tr_site *check = NULL, *fault = insn_site(g, i, false);
		if (!(g->vector_checked & (1u << p->level))) {
			scratch_begin(g, scan_registers(p));
			check = insn_site(g, i, true);
			emit_vector_check(g, p->level, check);
			scratch_end(g);
		}
		may_fault(g, e->p, fault);
		emit_bytes(e, p->bytes, p->len);
		fault->resume = to_rx(g->t, e->p);
		if (check)
			check->resume = fault->resume;
		return true;
	}
	case HOW_VECTOR_MEM: {
		const ZydisDecodedOperand *o = NULL;
		for (unsigned j = 0; j < p->zi.operand_count_visible; j++)
			if (p->ops[j].type == ZYDIS_OPERAND_TYPE_MEMORY)
				o = &p->ops[j];
		u8 *before = e->p;
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		const u8 checked = g->vector_checked;
		const unsigned colds = g->n_cold;
		emit_vector_check(g, p->level, s);
		if (!emit_address(g, i, o)) {
			e->p = before;
			g->n_cold = colds;
			g->vector_checked = checked;
			emit_call_insn(g, i);
			return true;
		}
		emit_tlb(g, o->size / 8, p->write, s);
		may_fault(g, e->p, s);
		if (!emit_with_operand(g, p))
			return false;
		scratch_end(g);
		s->resume = to_rx(g->t, e->p);
		return true;
	}
	case HOW_PUSH: {
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		emit_lea(e, g->t0, RSP, 16, 0, -8);
		emit_tlb(g, 8, true, s);
		if (p->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
			emit_store(e, g->t0, g->t1, 0, (unsigned)scan_gpr(p->ops[0].reg.value));
		} else {
			EMIT(e, emit_rex(1, 0, g->t0, g->t1), 0xc7); /* mov qword [t0 + t1], simm32 */
			emit_modrm_mem(e, 0, g->t0, g->t1, 0, 0);
			emit_u32(e, (u32)i->imm);
		}
		scratch_end(g);
		emit_lea(e, RSP, RSP, 16, 0, -8);
		s->resume = to_rx(g->t, e->p);
		return true;
	}
	case HOW_POP: {
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		unsigned dst = (unsigned)scan_gpr(p->ops[0].reg.value);
		emit_lea(e, g->t0, RSP, 16, 0, 0);
		emit_tlb(g, 8, false, s);
		emit_load(e, dst, g->t0, g->t1, 0);
		scratch_end(g);
		if (dst != RSP)
			emit_lea(e, RSP, RSP, 16, 0, 8);
		s->resume = to_rx(g->t, e->p);
		return true;
	}
	case HOW_CALL_C: emit_call_insn(g, i); return true;
	case HOW_JCC: {
		u8 *t = emit_jcc(e, p->zi.opcode & 15);
		emit_exit(g, next, false);
		emit_patch(t, e->p);
		emit_exit(g, (s64)i->imm, false);
		return true;
	}
	case HOW_JMP: emit_exit(g, (s64)i->imm, false); return true;
	case HOW_CALL: {
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		emit_lea(e, g->t0, RSP, 16, 0, -8);
		emit_tlb(g, 8, true, s);
		emit_lea(e, g->t0, g->t0, g->t1, 0, 0);
		emit_rip(g, g->t1, next);
		emit_store(e, g->t0, 16, 0, g->t1);
		emit_predict_return(g, next);
		emit_lea(e, RSP, RSP, 16, 0, -8);
		emit_exit(g, (s64)i->imm, true);
		return true;
	}
	case HOW_RET: {
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		emit_lea(e, g->t0, RSP, 16, 0, 0);
		emit_tlb(g, 8, false, s);
		emit_load(e, g->t0, g->t0, g->t1, 0);
		emit_canonical(g, s);
		emit_lea(e, RSP, RSP, 16, 0, 8 + (s32)i->imm);
		emit_exit_return(g);
		return true;
	}
	case HOW_JMP_IND:
	case HOW_CALL_IND: {
		if (p->how == HOW_CALL_IND && p->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
			emit_call_insn(g, i); /* two memory accesses; the handler never resumes */
			return true;
		}
		u8 *start = e->p;
		scratch_begin(g, scan_registers(p));
		struct tr_site *s = insn_site(g, i, true);
		if (p->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (!emit_address(g, i, &p->ops[0])) {
				e->p = start;
				emit_call_insn(g, i);
				return true;
			}
			emit_tlb(g, 8, false, s);
			emit_load(e, g->t0, g->t0, g->t1, 0);
		} else {
			emit_mov(e, g->t0, (unsigned)scan_gpr(p->ops[0].reg.value));
		}
		emit_canonical(g, s);
		if (p->how == HOW_CALL_IND) {
			/* t0 is the target: keep it in the dispatcher's place while the return address is pushed. */
			emit_store_gs(e, TR(saved_flags), g->t0);
			emit_lea(e, g->t0, RSP, 16, 0, -8);
			emit_tlb(g, 8, true, s);
			emit_lea(e, g->t0, g->t0, g->t1, 0, 0);
			emit_rip(g, g->t1, next);
			emit_store(e, g->t0, 16, 0, g->t1);
			emit_predict_return(g, next);
			emit_lea(e, RSP, RSP, 16, 0, -8);
			emit_load_gs(e, g->t0, TR(saved_flags));
		}
		emit_exit_indirect(g);
		return true;
	}
	}
	return false;
}

static bool ends_control(const struct plan *p)
{
	switch ((enum how)p->how) {
	case HOW_JCC:
	case HOW_JMP:
	case HOW_JMP_IND:
	case HOW_CALL:
	case HOW_CALL_IND:
	case HOW_RET: return true;
	default: return false;
	}
}

/* Buffers of one translation at a time: too large for the stack, one set per vCPU thread. */
struct tr_work {
	ZydisDecoder decoder;
	struct scan scan;
	struct gen gen;
};

void translate_block(struct cpu *c, struct block *b)
{
	struct translator *t = c->translator;
	struct scan *const s = &t->work->scan;
	struct gen *const g = &t->work->gen;
	if (!scan_block(c, b, &t->work->decoder, s))
		return;
	memset(g, 0, offsetof(struct gen, cold));
	g->n_cold = g->n_faults = 0;
	g->vector_checked = 0;
	g->t = t;
	g->c = c;
	g->b = b;
	g->s = s;
	g->e = (struct emit){ .p = t->rw + t->used, .end = t->rw + t->size - TR_PATCH_ROOM };
	g->local = !pick_scratch(g, s->used);
	u32 mentioned = 0;
	for (unsigned k = 0; k < b->n; k++)
		mentioned |= scan_registers(&s->plan[k]);
	g->rcx_used = g->local || (mentioned & (1u << RCX));
	const enum tlb_ctx ctx = b->mode & MODE_USER ? TLB_USER : b->mode & MODE_AC ? TLB_KERNEL_AC : TLB_KERNEL;
	g->ctx = (u8)ctx;
	g->ftlb = offsetof(struct cpu, ftlb) + ctx * sizeof(struct ftlb);
	const size_t sites = t->sites_used;
	emit_entry(g);
	for (unsigned k = 0; k < b->n; k++)
		if (!emit_insn(g, k)) {
			t->sites_used = sites;
			return;
		}
	if (!ends_control(&s->plan[b->n - 1]))
		emit_exit(g, b->bytes, false);
	for (unsigned k = 0; k < g->n_cold; k++) {
		emit_patch(g->cold[k].at, g->e.p);
		emit_store_gs_imm(&g->e, TR(site), (u32)(u64)g->cold[k].site);
		emit_patch(emit_jmp(&g->e), t->rw + (t->call_site - t->rx));
	}
	emit_early(g);
	emit_dead_entries(g);
	if (g->e.overflow) {
		c->tr_full = true;
		t->sites_used = sites;
		return;
	}
	if (t->n_faults + g->n_faults > TR_FAULTS) {
		c->tr_full = true;
		t->sites_used = sites;
		return;
	}
	for (unsigned k = 0; k < g->n_faults; k++)
		t->faults[t->n_faults++] = (struct tr_fault){ .at = g->faults[k].at, .site = (u32)(u64)g->faults[k].site };
	t->used = ALIGN_UP((size_t)(g->e.p - t->rw), 16);
	t->stat_translated++;
	b->code = (void *)to_rx(t, g->entry);
	b->code_link = (void *)to_rx(t, g->entry_link);
	b->code_lean = (void *)to_rx(t, g->entry_lean);
	b->dead_link = (void *)to_rx(t, g->dead_link);
	b->dead_lean = (void *)to_rx(t, g->dead_lean);
	b->scratch[0] = g->t0;
	b->scratch[1] = g->local ? g->t0 : g->t1;
}

/* A host signal at host address pc: the guest's instruction there is to be executed by its handler instead. */
bool translate_fault(struct cpu *c, u64 *pc)
{
	struct translator *t = c->translator;
	if (!t || *pc - (u64)t->rx >= t->used)
		return false;
	const u32 at = (u32)(*pc - (u64)t->rx);
	size_t lo = 0, hi = t->n_faults;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (t->faults[mid].at < at)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == t->n_faults || t->faults[lo].at != at)
		return false;
	c->trs.site = t->faults[lo].site;
	*pc = (u64)t->call_site;
	return true;
}

/* ---- set-up ---- */

bool translate_usable(void)
{
	u32 a = 7, b, cx = 0, d;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(cx), "=d"(d));
	return (b & BIT(8)) && (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE); /* BMI2; the kernel lets user mode write the base */
}

int translate_attach(struct translator *t, struct cpu *c, u16 after)
{
	*t = (struct translator){ .size = TR_ARENA, .sites_size = TR_SITES };
	if (!translate_usable())
		return -ENOTSUP;
	int fd = memfd_create("umbra-code", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = 0;
	if (ftruncate(fd, (off_t)t->size) < 0)
		r = -errno;
	t->rw = mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	t->rx = mmap(NULL, t->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	t->sites = mmap(NULL, t->sites_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
	close(fd);
	if (!r && (t->rw == MAP_FAILED || t->rx == MAP_FAILED || t->sites == MAP_FAILED))
		r = -ENOMEM;
	if (r)
		return r;
	t->faults = mmap(NULL, TR_FAULTS * sizeof *t->faults, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t->faults == MAP_FAILED)
		return -ENOMEM;
	t->work = malloc(sizeof *t->work);
	if (!t->work)
		return -ENOMEM;
	scan_decoder_init(&t->work->decoder);
	t->sites_used = 64;
	c->translator = t;
	struct emit e = { .p = t->rw, .end = t->rw + t->size };
	u8 *end = routines_emit(t, &e, c);
	t->base = t->used = ALIGN_UP((size_t)(end - t->rw), 64);
	/* emit_common noted addresses of the writable view. */
	u8 **routines[] = { &t->find_return, &t->enter, &t->call_site, &t->leave_early, &t->link, &t->dispatch };
	for (unsigned k = 0; k < ARRAY_SIZE(routines); k++)
		*routines[k] = t->rx + (*routines[k] - t->rw);
	c->trs.page_number_mask = PAGE_MASK;
	c->trs.index_mask = MASK(FTLB_BITS) << PAGE_SHIFT;
	c->trs.high_mask = ~MASK(48);
	c->trs.canonical_bias = BIT(47);
	c->trs.poll_mask = BIT(63);
	c->tr_hot = rt_hot;
	c->tr_enter = rt_enter;
	c->tr_flush = rt_flush;
	c->tr_kill = rt_kill;
	c->tr_unlink = rt_unlink;
	c->tr_on = true;
	c->tr_after = after ? after : BLOCK_HOT;
	return 0;
}

void translate_detach(struct translator *t)
{
	if (t->rw && t->rw != MAP_FAILED)
		munmap(t->rw, t->size);
	if (t->rx && t->rx != MAP_FAILED)
		munmap(t->rx, t->size);
	if (t->sites && t->sites != MAP_FAILED)
		munmap(t->sites, t->sites_size);
	if (t->faults && t->faults != MAP_FAILED)
		munmap(t->faults, TR_FAULTS * sizeof *t->faults);
	*t = (struct translator){ 0 };
}

void translate_thread(struct cpu *c) { __asm__ volatile("wrgsbase %0" ::"r"((u64)c)); }
