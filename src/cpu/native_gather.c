/* Gathers and scatters, element by element on the saved vector state.
 *
 * As on hardware an element's mask is cleared when it is done, so that a fault in the middle leaves the completed part
 * behind and the instruction continues there (SDM vol. 2, VPGATHERDD).  An MMIO exit leaves nothing behind: the
 * instruction is then executed again from its start. */
#include "cpu/native_op.h"

static u64 element(const u8 *v, unsigned n, unsigned size)
{
	return size == 8 ? *(const u64 *)(v + 8 * n) : (u64)(s64) * (const s32 *)(v + 4 * n);
}

int native_gather(struct cpu *c, const struct insn *i)
{
	const struct native_op *op = i->stub;
	const struct native_gather *g = &op->gather;
	u8 data[64], index[64], mask[64];
	u64 k = 0;
	const unsigned touched = g->vl < 16 ? 16 : g->vl; /* bytes of registers that a fault leaves as they are */
	int r = native_enabled_slow(c, i, op->check);
	if (r)
		return r;
	fpu_get_vector(c, g->index, index);
	fpu_get_vector(c, g->data, data);
	if (g->evex) {
		k = fpu_get_k(c, g->mask);
	} else {
		fpu_get_vector(c, g->mask, mask);
		for (unsigned e = 0; e < g->count; e++)
			if (mask[(e + 1) * g->data_size - 1] & 0x80)
				k |= BIT(e);
	}
	/* No alignment checks (SDM: "does not perform AC checks"). */
	const u64 ac = c->cpl == 3 ? c->sflags & FL_AC : 0;
	c->sflags &= ~ac;
	unsigned done = 0;
	for (unsigned n = 0; n < g->count && !r; n++) {
		struct insn at = *i;
		int fault = 0;
		if (!(k & BIT(n)))
			continue;
		at.index = R_ZERO;
		at.disp = i->disp + (s64)(element(index, n, g->index_size) << g->scale);
		u64 ea = insn_ea(c, &at, g->data_size, g->scatter ? ACC_W : ACC_R, &fault);
		u8 *p = data + n * g->data_size;
		if (fault)
			r = fault;
		else if (g->scatter)
			r = g->data_size == 8 ? mem_write64(c, i, ea, *(u64 *)p) : mem_write32(c, i, ea, *(u32 *)p);
		else
			r = g->data_size == 8 ? mem_read64(c, i, ea, (u64 *)p) : mem_read32(c, i, ea, (u32 *)p);
		if (!r) {
			k &= ~BIT(n);
			done++;
		}
	}
	c->sflags |= ac;
	if (r == STEP_EXIT)
		return r;
	if (g->evex) {
		fpu_set_k(c, g->mask, r ? k : 0); /* bits beyond the elements are cleared at the end */
	} else {
		/* Elements that are due become all ones, everything else zero, whether a fault ends it or not (SDM, VGATHERDPD:
		 * the mask is extended from its most significant bits first). */
		unsigned kept = r ? touched : 0;
		for (unsigned e = g->count; e * g->data_size < kept; e++)
			if (mask[(e + 1) * g->data_size - 1] & 0x80)
				k |= BIT(e); /* beyond the elements, within XMM */
		native_fill(mask, 0, 64);
		for (unsigned e = 0; e < 16; e++)
			if (k & BIT(e))
				native_fill(mask + e * g->data_size, 0xff, g->data_size);
		fpu_set_vector(c, g->mask, mask);
	}
	if (!g->scatter) {
		/* The upper part goes with the first element that is loaded. */
		unsigned from = r ? touched : g->vl;
		if (!r || done > 0)
			native_fill(data + from, 0, 64 - from);
		fpu_set_vector(c, g->data, data);
	}
	if (r)
		return r;
	NEXT(c, i);
}
