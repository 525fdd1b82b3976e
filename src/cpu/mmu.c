/* Paging: the guest's page-table walk (SDM vol. 3 ch. 4) and the software TLB.
 *
 * The walk decides one access; when it succeeds, accessed and dirty bits are
 * set in every entry used, atomically, and the walk starts over if another CPU
 * changed an entry meanwhile.  The TLB caches the rights a page has for one
 * privilege context; a write tag exists only while D is set in the guest's
 * entry and the page holds no decoded code, so that the fast path of a store
 * needs no other check. */
#include "cpu/mmu.h"
#include "cpu/trace.h"

struct level {
	u8 shift;       /* lowest linear-address bit of the index */
	u8 index_bits;
	u8 entry_size;
	bool may_be_leaf; /* PS bit is honoured here */
};

static const struct level levels_4[] = { { 39, 9, 8, false }, { 30, 9, 8, true }, { 21, 9, 8, true }, { 12, 9, 8, false } };
static const struct level levels_pae[] = { { 30, 2, 8, false }, { 21, 9, 8, true }, { 12, 9, 8, false } };
static const struct level levels_32[] = { { 22, 10, 4, true }, { 12, 10, 4, false } };

struct used_entry { void *p; u64 val; };

static u64 entry_read(const struct cpu *c, u64 gpa, unsigned size, void **p)
{
	*p = ram_ptr(c->ram, GPA(gpa), size);
	if (!*p)
		return ~0ull; /* an empty bus reads all ones: reserved bits, so #PF with RSVD */
	return size == 8 ? *(volatile u64 *)*p : *(volatile u32 *)*p;
}

static bool entry_update(const struct used_entry *e, unsigned size, u64 new_val)
{
	if (e->val == new_val)
		return true;
	if (size == 8) {
		u64 old = e->val;
		return __atomic_compare_exchange_n((u64 *)e->p, &old, new_val, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	u32 old = (u32)e->val;
	return __atomic_compare_exchange_n((u32 *)e->p, &old, (u32)new_val, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static bool page_fault(struct exception *e, u64 gva, u32 error)
{
	*e = (struct exception){ .vector = VEC_PF, .has_error = true, .error = error, .cr2 = gva };
	return false;
}

/* Reserved bits of an entry at a level, for the paging mode in force. */
static u64 reserved_bits(const struct cpu *c, const struct level *l, bool leaf, bool long_mode)
{
	if (l->entry_size == 4)
		return leaf && l->shift == 22 ? BIT(21) : 0;
	u64 above = long_mode ? MASK(52) : MASK(63);
	u64 r = above & ~MASK(c->maxphyaddr);
	if (!(c->efer & EFER_NXE))
		r |= PTE_NX;
	if (l->shift == 39)
		r |= PTE_PS;
	if (leaf && l->shift > 12)
		r |= MASK(l->shift) & ~MASK(13);
	if (!long_mode && l->shift == 30) /* PDPTE of PAE paging */
		r |= BIT(1) | BIT(2) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | PTE_NX;
	return r;
}

bool mmu_walk(struct cpu *c, u64 gva, enum access a, bool user, bool ac, bool peek, struct mmu_page *out,
	      struct exception *e)
{
	*out = (struct mmu_page){ .r = true, .w = true, .x = true, .dirty = true, .shift = 12 };
	if (!(c->cr0 & CR0_PG)) {
		out->gpa = gva & MASK(32);
		return true;
	}
	const bool long_mode = c->efer & EFER_LMA, pae = c->cr4 & CR4_PAE;
	const struct level *lv = long_mode ? levels_4 : pae ? levels_pae : levels_32;
	const unsigned n = long_mode ? 4 : pae ? 3 : 2;
	const bool nxe = (c->efer & EFER_NXE) && (long_mode || pae);
	const u32 fetch = a == ACC_X && (nxe || (c->cr4 & CR4_SMEP)) ? PF_I : 0;
	const u32 err = (a == ACC_W ? PF_W : 0) | (user ? PF_U : 0) | fetch;

again:;
	u64 table = long_mode ? c->cr3 & MASK(52) & PAGE_MASK : pae ? c->cr3 & 0xffffffe0 : c->cr3 & 0xfffff000;
	struct used_entry used[4];
	bool w = true, us = true, x = true, global = false;
	unsigned k = 0;
	u64 pte = 0;
	const struct level *l = lv;
	for (;; k++, l++) {
		u64 addr = table + ((gva >> l->shift) & MASK(l->index_bits)) * l->entry_size;
		if (unlikely(!long_mode && pae && k == 0)) {
			pte = c->pdpte[(gva >> 30) & 3];
			used[k].p = NULL;
		} else {
			pte = entry_read(c, addr, l->entry_size, &used[k].p);
		}
		used[k].val = pte;
		if (!(pte & PTE_P))
			return page_fault(e, gva, err);
		bool pse = l->entry_size == 8 || (c->cr4 & CR4_PSE);
		bool leaf = k == n - 1 || (l->may_be_leaf && pse && (pte & PTE_PS));
		if (pte & reserved_bits(c, l, leaf, long_mode))
			return page_fault(e, gva, err | PF_P | PF_RSVD);
		bool pdpte = !long_mode && pae && k == 0;
		if (!pdpte) {
			w &= !!(pte & PTE_W);
			us &= !!(pte & PTE_U);
			x &= !(nxe && (pte & PTE_NX));
		}
		if (leaf) {
			global = (pte & PTE_G) && (c->cr4 & CR4_PGE);
			break;
		}
		table = l->entry_size == 8 ? pte & MASK(52) & PAGE_MASK : pte & 0xfffff000;
	}

	/* Rights (SDM 4.6.1).  us: user-mode page. */
	const bool wp = c->cr0 & CR0_WP;
	if (user) {
		out->r = us;
		out->w = us && w;
		out->x = us && x;
	} else {
		bool smap = us && (c->cr4 & CR4_SMAP) && !ac;
		out->r = !smap;
		out->w = !smap && (w || !wp);
		out->x = x && !(us && (c->cr4 & CR4_SMEP));
	}
	if (a == ACC_R ? !out->r : a == ACC_W ? !out->w : !out->x)
		return page_fault(e, gva, err | PF_P);

	/* Accessed and dirty: upper levels first, the leaf last. */
	for (unsigned j = 0; !peek && j <= k; j++) {
		if (!used[j].p || (!long_mode && pae && j == 0))
			continue;
		u64 want = used[j].val | PTE_A | (j == k && a == ACC_W ? PTE_D : 0);
		if (!entry_update(&used[j], lv[j].entry_size, want))
			goto again;
		if (want != used[j].val)
			mmu_table_written(c, used[j].p);
	}
	out->dirty = (pte & PTE_D) || a == ACC_W;
	out->global = global;
	out->shift = l->shift;
	u64 frame = l->entry_size == 8 ? pte & MASK(52) : pte & 0xffffffff;
	if (l->entry_size == 4 && l->shift == 22)
		frame |= ((pte >> 13) & 0xff) << 32; /* PSE-36 */
	if (l->entry_size == 4 && l->shift == 22)
		out->gpa = (((frame >> 32) & 0xff) << 32) | (pte & 0xffc00000) | (gva & MASK(22));
	else
		out->gpa = (frame & ~MASK(l->shift)) | (gva & MASK(l->shift));
	return true;
}

bool mmu_translate(struct cpu *c, u64 gva, enum access a, bool user, bool ac, gpa_t *out, struct exception *e)
{
	struct mmu_page pg;
	if (!mmu_walk(c, gva, a, user, ac, false, &pg, e))
		return false;
	*out = GPA(pg.gpa);
	return true;
}

bool mmu_peek(struct cpu *c, u64 gva, gpa_t *out)
{
	struct exception e;
	struct mmu_page pg;
	if (cpu_long_mode(c) && !gva_canonical(gva))
		return false;
	if (!mmu_walk(c, gva, ACC_R, false, true, true, &pg, &e))
		return false;
	*out = GPA(pg.gpa);
	return true;
}

void mmu_fill(struct cpu *c, enum tlb_ctx ctx, u64 gva, const struct mmu_page *pg)
{
	const struct ram_slot *s = ram_find(c->ram, GPA(pg->gpa));
	if (!s || ctx == TLB_EMPTY)
		return;
	u64 page = gva & PAGE_MASK, off = (pg->gpa & PAGE_MASK) - s->gpa.v;
	struct tlb_entry *t = &c->tlbs[ctx][(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];
	bool code = s->code && s->code[off >> PAGE_SHIFT];
	t->rtag = pg->r ? page : TLB_NONE;
	t->wtag = pg->w && pg->dirty && !code && !s->readonly ? page : TLB_NONE;
	t->xtag = pg->x ? page : TLB_NONE;
	t->addend = (u64)s->hva + off - page;
	t->gpa = (pg->gpa & PAGE_MASK) | pg->shift | (pg->global && gva >> 63 ? TLB_GLOBAL : 0);
	const unsigned k = (gva >> PAGE_SHIFT) & (FTLB_SIZE - 1);
	struct ftlb *f = &c->ftlb[ctx];
	f->read[k] = t->rtag == page ? 0 - page : FTLB_NONE(k);
	f->write[k] = t->wtag == page ? 0 - page : FTLB_NONE(k);
	f->host[k] = page + t->addend;
	c->tlb_used[ctx][k / 64] |= BIT(k % 64);
	if (pg->shift > 12)
		c->tlb_large[gva >> 63] = true;
	c->stats.tlb_misses++;
}


static void tlb_clear(struct tlb_entry *t, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		t[k].rtag = t[k].wtag = t[k].xtag = TLB_NONE;
}

static void ftlb_clear(struct ftlb *f, unsigned k) { f->read[k] = f->write[k] = FTLB_NONE(k); }

static void code_changed(struct cpu *c, bool user, bool supervisor)
{
	c->code_gen[0] += user;
	c->code_gen[1] += supervisor;
	cpu_rsb_clear(c);
	if (supervisor && c->tr_unlink)
		c->tr_unlink(c);
	c->trs.jkey = cpu_code_key(c);
}

/* Only upper-half pages are kept as global: no system has others, and the lower half then empties at every MOV CR3. */
static void flush(struct cpu *c, bool keep_global)
{
	for (unsigned ctx = 0; ctx < TLB_EMPTY; ctx++)
		for (unsigned w = 0; w < TLB_USED_WORDS; w++) {
			for (u64 used = c->tlb_used[ctx][w]; used; used &= used - 1) {
				unsigned bit = (unsigned)__builtin_ctzll(used), k = w * 64 + bit;
				if (keep_global && (c->tlbs[ctx][k].gpa & TLB_GLOBAL))
					continue;
				c->tlb_used[ctx][w] &= ~BIT(bit);
				ftlb_clear(&c->ftlb[ctx], k);
				tlb_clear(&c->tlbs[ctx][k], 1);
			}
		}
	c->tlb_large[0] = false;
	if (!keep_global)
		c->tlb_large[1] = false;
	code_changed(c, true, !keep_global);
	c->stats.tlb_flushes++;
	cpu_trace(c, TRACE_TLB_FLUSH, keep_global ? TRACE_FLUSH_SPACE : TRACE_FLUSH_ALL, 0, c->rip);
}

void mmu_flush_all(struct cpu *c) { flush(c, false); }

void mmu_flush_nonglobal(struct cpu *c) { flush(c, true); }

void mmu_flush_page(struct cpu *c, u64 gva)
{
	code_changed(c, true, gva >> 63); /* supervisor code in the lower half is never looked up by key */
	cpu_trace(c, TRACE_TLB_FLUSH, TRACE_FLUSH_PAGE, gva, c->rip);
	for (unsigned k = 0; k < TLB_EMPTY; k++) {
		/* A large page may be in any entry: drop them all. */
		for (unsigned j = 0; c->tlb_large[gva >> 63] && j < FTLB_SIZE; j++)
			ftlb_clear(&c->ftlb[k], j);
		ftlb_clear(&c->ftlb[k], (gva >> PAGE_SHIFT) & (FTLB_SIZE - 1));
		if (!c->tlb_large[gva >> 63]) {
			tlb_clear(&c->tlbs[k][(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)], 1);
			continue;
		}
		/* One INVLPG drops a large page whole: look at every 4K piece of it. */
		for (unsigned j = 0; j < TLB_SIZE; j++) {
			struct tlb_entry *t = &c->tlbs[k][j];
			u64 tag = t->rtag != TLB_NONE ? t->rtag : t->xtag;
			if (tag != TLB_NONE && ((tag ^ gva) & ~MASK(t->gpa & 63)) == 0)
				tlb_clear(t, 1);
		}
	}
}

void mmu_protect_code(struct cpu *c, gpa_t page)
{
	const u64 host = (u64)ram_ptr(c->ram, page, PAGE_SIZE);
	for (unsigned k = 0; k < TLB_EMPTY; k++) {
		for (unsigned j = 0; j < TLB_SIZE; j++)
			if ((c->tlbs[k][j].gpa & PAGE_MASK) == page.v)
				c->tlbs[k][j].wtag = TLB_NONE;
		for (unsigned j = 0; j < FTLB_SIZE; j++)
			if (c->ftlb[k].host[j] == host)
				c->ftlb[k].write[j] = FTLB_NONE(j);
	}
}
