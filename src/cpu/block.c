/* The cache of decoded blocks.  See block.h. */
#include "cpu/block.h"
#include "cpu/exclusive.h"
#include "cpu/fpu.h"
#include "cpu/mmu.h"
#include "cpu/native.h"
#include "cpu/trace.h"

#define HASH_BITS 15
#define PAGE_HASH_BITS 12

/* Blocks of one guest page. */
struct code_page {
	u64 gpa;
	u64 granules; /* bit n: bytes [64n, 64n+64) hold decoded code */
	struct block *blocks;
	u64 link_page; /* linear page for which translations jump out of this page directly; 0: none, 1: never again */
	struct code_page *next;
};

struct blockcache {
	u8 *arena;
	size_t size, used;
	struct block *hash[1u << HASH_BITS];
	struct code_page *pages[1u << PAGE_HASH_BITS];
	/* An instruction that crosses a page: decoded afresh each time, two slots so that it has a successor. */
	_Alignas(struct block) u8 wrapped[sizeof(struct block) + 2 * sizeof(struct insn)];
};

size_t blockcache_size(size_t arena_bytes) { return ALIGN_UP(sizeof(struct blockcache), 64) + arena_bytes; }

struct blockcache *blockcache_init(void *mem, size_t arena_bytes)
{
	struct blockcache *bc = mem;
	*bc = (struct blockcache){ .arena = (u8 *)mem + ALIGN_UP(sizeof *bc, 64), .size = arena_bytes };
	return bc;
}

static void *arena_alloc(struct blockcache *bc, size_t n)
{
	n = ALIGN_UP(n, 64);
	if (n > bc->size - bc->used)
		return NULL;
	void *p = bc->arena + bc->used;
	bc->used += n;
	return p;
}

static u32 block_hash(u64 gpa, u32 mode)
{
	return (u32)(((gpa ^ (u64)mode << 40) * 0x9e3779b97f4a7c15ull) >> (64 - HASH_BITS));
}
static u32 page_hash(u64 gpa) { return (u32)(((gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull) >> (64 - PAGE_HASH_BITS)); }

/* The page's word of ram_slot.code, or NULL. */
static u64 *code_word(const struct ram *ram, u64 gpa)
{
	const struct ram_slot *s = ram_find(ram, GPA(gpa));
	return s && s->code ? &s->code[(gpa - s->gpa.v) >> PAGE_SHIFT] : NULL;
}

static struct code_page *page_find(struct blockcache *bc, u64 gpa)
{
	struct code_page *p = bc->pages[page_hash(gpa)];
	while (p && p->gpa != (gpa & PAGE_MASK))
		p = p->next;
	return p;
}

void blockcache_flush(struct cpu *c)
{
	struct blockcache *bc = c->blocks;
	/* Other CPUs may have blocks in these pages: then the next store finds out what is left. */
	for (unsigned k = 0; cpu_alone(c) && k < ARRAY_SIZE(bc->pages); k++)
		for (struct code_page *p = bc->pages[k]; p; p = p->next) {
			u64 *w = code_word(c->ram, p->gpa);
			if (w)
				*w = 0;
		}
	for (unsigned k = 0; k < ARRAY_SIZE(bc->pages); k++)
		bc->pages[k] = NULL;
	for (unsigned k = 0; k < ARRAY_SIZE(bc->hash); k++)
		bc->hash[k] = NULL;
	bc->used = 0;
	native_reset(c->native);
	c->code_gen[0]++;
	c->code_gen[1]++;
	c->trs.jkey = cpu_code_key(c);
	cpu_rsb_clear(c);
	if (c->tr_flush)
		c->tr_flush(c);
	c->stats.decode_flushes++;
}

static u64 granule_mask(u64 off, u64 len)
{
	unsigned first = (unsigned)(off >> 6), last = (unsigned)((off + len - 1) >> 6);
	return MASK(last + 1) & ~MASK(first);
}

/* Kills c's blocks that overlap [off, off+len) of the page; *left: granules that still hold some.  True when any was killed. */
static bool kill_blocks(struct cpu *c, u64 page, u64 off, u64 len, u64 *left)
{
	struct code_page *p = page_find(c->blocks, page);
	if (!p)
		return false;
	if (!(p->granules & granule_mask(off, len))) {
		*left |= p->granules;
		return false;
	}
	bool killed = false;
	p->granules = 0;
	struct block **link = &p->blocks;
	while (*link) {
		struct block *b = *link;
		u64 at = b->gpa & ~PAGE_MASK;
		if (at < off + len && off < at + b->bytes) {
			b->dead = true;
			killed = true;
			if (b->code)
				c->tr_kill(c, b);
			*link = b->page_next;
			struct block **h = &c->blocks->hash[block_hash(b->gpa, b->mode)];
			while (*h && *h != b)
				h = &(*h)->hash_next;
			if (*h)
				*h = b->hash_next;
		} else {
			p->granules |= granule_mask(at, b->bytes);
			link = &b->page_next;
		}
	}
	*left |= p->granules;
	if (killed)
		c->stats.smc++;
	return killed;
}

static u64 part_of_page(u64 gpa, u64 len)
{
	u64 n = PAGE_SIZE - (gpa & ~PAGE_MASK);
	return n < len ? n : len;
}

/* Once no bit is left, write tags come back at the next slow store. */
static bool code_written(struct cpu *c, u64 *word, u64 gpa, u64 len)
{
	u64 off = gpa & ~PAGE_MASK, left = 0;
	if (!(*word & granule_mask(off, len)))
		return false;
	exclusive_begin(c);
	/* The store comes after exclusive_end().  With whole granules killed their bits are clear until then, and a CPU that
	 * wants to decode there has to wait (protect) until this one has done its instruction. */
	if (!cpu_alone(c)) {
		len = ALIGN_UP(off + len, 64) - ALIGN_DOWN(off, 64);
		off = ALIGN_DOWN(off, 64);
	}
	bool own = kill_blocks(c, gpa & PAGE_MASK, off, len, &left);
	for (unsigned k = 0; !cpu_alone(c) && k < c->group->n; k++)
		if (c->group->cpu[k] != c)
			kill_blocks(c->group->cpu[k], gpa & PAGE_MASK, off, len, &left);
	__atomic_store_n(word, left, __ATOMIC_SEQ_CST);
	exclusive_end(c);
	if (own)
		cpu_trace(c, TRACE_SMC, gpa, c->rip, 0);
	return own;
}

bool block_code_write(struct cpu *c, gpa_t gpa, u64 len)
{
	u64 *word = code_word(c->ram, gpa.v);
	if (likely(!word || !*word))
		return false;
	return code_written(c, word, gpa.v, len);
}

void block_invalidate(struct cpu *c, gpa_t gpa, u64 len)
{
	while (len) {
		u64 n = part_of_page(gpa.v, len);
		block_code_write(c, gpa, n);
		gpa.v += n;
		len -= n;
	}
}

bool block_code_in(const struct ram *ram, gpa_t gpa, u64 len)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* what was written is seen by whoever sets a bit after this look */
	while (len) {
		u64 n = part_of_page(gpa.v, len), *word = code_word(ram, gpa.v);
		if (word && (__atomic_load_n(word, __ATOMIC_SEQ_CST) & granule_mask(gpa.v & ~PAGE_MASK, n)))
			return true;
		gpa.v += n;
		len -= n;
	}
	return false;
}

void block_forget(struct cpu_group *g, gpa_t gpa, u64 len)
{
	while (len) {
		u64 n = part_of_page(gpa.v, len), left = 0, *word = code_word(g->cpu[0]->ram, gpa.v);
		if (word && *word) {
			for (unsigned k = 0; k < g->n; k++)
				kill_blocks(g->cpu[k], gpa.v & PAGE_MASK, gpa.v & ~PAGE_MASK, n, &left);
			__atomic_store_n(word, left, __ATOMIC_SEQ_CST);
		}
		gpa.v += n;
		len -= n;
	}
}

/* Stores to these granules of the page are noticed from now on, in every CPU. */
static void protect(struct cpu *c, u64 *word, u64 gpa, u64 granules)
{
	const gpa_t page = GPA(gpa & PAGE_MASK);
	exclusive_begin(c);
	if (!*word) {
		mmu_protect_code(c, page);
		for (unsigned k = 0; !cpu_alone(c) && k < c->group->n; k++)
			if (c->group->cpu[k] != c)
				mmu_protect_code(c->group->cpu[k], page);
	}
	__atomic_or_fetch(word, granules, __ATOMIC_SEQ_CST);
	exclusive_end(c);
}

void mmu_table_written(struct cpu *c, const void *p)
{
	for (unsigned k = 0; k < c->ram->n; k++) {
		const struct ram_slot *s = &c->ram->slot[k];
		u64 off = (u64)((const u8 *)p - s->hva);
		if (off < s->size)
			block_code_write(c, GPA(s->gpa.v + off), 8);
	}
}

static u32 code_mask32(const struct cpu *c, u32 rip) { return c->seg[CS].db || cpu_real(c) ? rip : (u16)rip; }

void block_leave_after(struct cpu *c, const struct insn *i)
{
	struct insn *next = (struct insn *)(uintptr_t)(i + 1);
	if (c->patched == next) /* an end marker is patched too: the successor must not run before the outer loop has looked */
		return;
	ASSERT(!c->patched);
	c->patched = next;
	c->patched_fn = next->fn;
	next->fn = op_leave_block;
}

int op_leave_block(struct cpu *c, const struct insn *i)
{
	c->rip = insn_rip(c, i);
	if (!cpu_code64(c))
		c->rip = code_mask32(c, (u32)c->rip);
	return STEP_EARLY;
}

u64 insn_next_rip(const struct cpu *c, const struct insn *i)
{
	u64 rip = insn_rip(c, i) + i->len;
	return cpu_code64(c) ? rip : code_mask32(c, (u32)rip);
}

int op_end(struct cpu *c, const struct insn *i)
{
	c->rip = insn_rip(c, i);
	if (!cpu_code64(c))
		c->rip = code_mask32(c, (u32)c->rip);
	return STEP_FALL;
}

/* ---- decoding ---- */

static void end_marker(struct insn *i, u16 off, u8 idx)
{
	*i = (struct insn){ .fn = op_end, .off = off, .idx = idx, .base = R_ZERO, .index = R_ZERO };
}

static int fetch_fault(struct cpu *c, u64 rip)
{
	c->rip = rip;
	return STEP_FAULT;
}

/* The instruction at the end of a page whose tail lies in the next one. */
static struct block *decode_wrapped(struct cpu *c, u64 lin, const u8 *bytes, unsigned avail, int *step)
{
	u8 buf[32] = { 0 };
	__asm__ volatile("" : "+m"(buf));
	for (unsigned k = 0; k < avail; k++)
		buf[k] = bytes[k];
	u64 next = lin + avail;
	if (!cpu_long_mode(c))
		next = (u32)next;
	struct mmu_page pg;
	if (cpu_long_mode(c) && !gva_canonical(next)) {
		c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
		*step = STEP_FAULT;
		return NULL;
	}
	if (!mmu_walk(c, next, ACC_X, c->cpl == 3, false, false, &pg, &c->exc)) {
		*step = fetch_fault(c, c->rip);
		return NULL;
	}
	const u8 *tail = ram_ptr(c->ram, GPA(pg.gpa & PAGE_MASK), 16);
	if (!tail) {
		*step = cpu_unimplemented(c, NULL, "instruction fetch outside RAM");
		return NULL;
	}
	for (unsigned k = 0; k < 16; k++)
		buf[avail + k] = tail[k];
	struct block *b = (struct block *)(void *)c->blocks->wrapped;
	struct insn *out = b->insn;
	bool ends, alone;
	int len = decode_insn(c, buf, avail + 15 > 31 ? 31 : avail + 15, 0, out, &ends, &alone);
	if (len <= 0) {
		c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
		*step = STEP_FAULT;
		return NULL;
	}
	out->idx = 0;
	out->flags |= IF_WRAPPED;
	end_marker(out + 1, (u16)len, 1);
	*b = (struct block){ .gpa = ~0ull, .n = 1, .bytes = (u16)len, .dead = true };
	return b;
}

#define BLOCK_MAX_BYTES (BLOCK_MAX_INSNS * 15)

static void copy_code(u8 *dst, const u8 *src, u64 n)
{
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n)::"memory");
}

static bool same_bytes(const u8 *a, const u8 *b, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		if (a[k] != ((const volatile u8 *)b)[k])
			return false;
	return true;
}

/* Instructions are decoded from a copy of their bytes: memory may change under us, and every use must see the same. */
static struct block *decode_block(struct cpu *c, u64 lin, u64 gpa, const u8 *host, u32 mode, int *step)
{
	struct blockcache *bc = c->blocks;
	size_t worst = sizeof(struct block) + (BLOCK_MAX_INSNS + 1) * sizeof(struct insn);
	if (bc->size - bc->used < worst + sizeof(struct code_page) + 256 || !native_space(c->native, 2 * BLOCK_MAX_INSNS) || c->tr_full)
		blockcache_flush(c);

	fpu_save(c); /* the decoder is an ordinary library */
	u64 *word = code_word(c->ram, gpa);
	if (word && !*word)
		protect(c, word, gpa, ~0ull); /* the first store into the page finds out where its code is */
	u8 code[BLOCK_MAX_BYTES];
	struct block *b = (struct block *)(bc->arena + bc->used);
	const unsigned avail = (unsigned)(PAGE_SIZE - (gpa & ~PAGE_MASK));
	const unsigned window = avail < c->block_limit * 15 ? avail : c->block_limit * 15;
	unsigned off, n;
	for (;;) {
		copy_code(code, host, window);
		off = n = 0;
		while (n < c->block_limit && off < avail) {
			bool ends = false, alone = false;
			int len = decode_insn(c, code + off, avail - off > 15 ? 15 : avail - off, (u16)off, &b->insn[n], &ends, &alone);
			if (len <= 0) {
				if (n)
					break; /* the odd one gets its own attempt */
				if (len == 0)
					return decode_wrapped(c, lin, host, avail, step);
				c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
				*step = STEP_FAULT;
				return NULL;
			}
			if (alone && n)
				break;
			b->insn[n].idx = (u8)n;
			off += (unsigned)len;
			n++;
			if (ends || alone)
				break;
		}
		const u64 granules = granule_mask(gpa & ~PAGE_MASK, off);
		if (!word || (*word & granules) == granules)
			break;
		protect(c, word, gpa, granules);
		if (same_bytes(code, host, off))
			break;
	}
	end_marker(&b->insn[n], (u16)off, (u8)n);
	*b = (struct block){ .gpa = gpa, .mode = mode, .n = (u16)n, .bytes = (u16)off };
	bc->used += ALIGN_UP(sizeof *b + (n + 1) * sizeof(struct insn), 64);

	struct code_page *p = page_find(bc, gpa);
	if (!p) {
		p = arena_alloc(bc, sizeof *p);
		ASSERT(p);
		*p = (struct code_page){ .gpa = gpa & PAGE_MASK, .next = bc->pages[page_hash(gpa)] };
		bc->pages[page_hash(gpa)] = p;
	}
	p->granules |= granule_mask(gpa & ~PAGE_MASK, off);
	b->page_next = p->blocks;
	p->blocks = b;
	struct block **h = &bc->hash[block_hash(gpa, mode)];
	b->hash_next = *h;
	*h = b;
	c->stats.blocks_decoded++;
	c->stats.insns_decoded += n;
	cpu_trace(c, TRACE_DECODE, c->rip, gpa, n);
	return b;
}

bool block_global(struct cpu *c, u64 rip)
{
	struct mmu_page pg;
	struct exception e;
	return rip >> 63 && mmu_walk(c, rip, ACC_X, false, c->sflags & FL_AC, true, &pg, &e) && pg.global;
}

bool block_may_link(struct cpu *c, const struct block *b, u64 rip)
{
	struct code_page *p = page_find(c->blocks, b->gpa);
	if (!p || p->link_page == 1 || (p->link_page && p->link_page != (rip & PAGE_MASK)))
		return false;
	p->link_page = rip & PAGE_MASK;
	return true;
}

struct block *block_find(struct cpu *c, int *step)
{
	u64 lin = c->rip;
	if (unlikely(!cpu_code64(c))) {
		if (c->rip > c->seg[CS].limit) {
			c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
			*step = STEP_FAULT;
			return NULL;
		}
		lin = (u32)(c->rip + c->seg[CS].base);
	}
	const u64 key = cpu_code_key(c);
	struct jcache_entry *j = &c->jcache[(lin ^ (lin >> JCACHE_BITS)) & MASK(JCACHE_BITS)];
	if (likely(j->rip == lin && j->key == key && !j->block->dead))
		return j->block;

	if (cpu_long_mode(c) && !gva_canonical(lin)) {
		c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
		*step = STEP_FAULT;
		return NULL;
	}
	u64 gpa, addend;
	bool global; /* survives MOV CR3 */
	const struct tlb_entry *t = &c->tlb[(lin >> PAGE_SHIFT) & (TLB_SIZE - 1)];
	if (t->xtag == (lin & PAGE_MASK)) {
		gpa = (t->gpa & PAGE_MASK) | (lin & ~PAGE_MASK);
		addend = t->addend;
		global = t->gpa & TLB_GLOBAL;
	} else {
		struct mmu_page pg;
		if (!mmu_walk(c, lin, ACC_X, c->cpl == 3, c->sflags & FL_AC, false, &pg, &c->exc)) {
			*step = fetch_fault(c, c->rip);
			return NULL;
		}
		u8 *p = ram_ptr(c->ram, GPA(pg.gpa), 1);
		if (!p) {
			*step = cpu_unimplemented(c, NULL, "instruction fetch outside RAM");
			return NULL;
		}
		for (unsigned k = 0; k < TLB_EMPTY; k++)
			if (c->tlb == c->tlbs[k])
				mmu_fill(c, k, lin, &pg);
		gpa = pg.gpa;
		global = pg.global && lin >> 63;
		addend = (u64)p - lin;
	}
	const u32 mode = c->mode_key & MODE_DECODE_MASK;
	struct block *b = c->blocks->hash[block_hash(gpa, mode)];
	while (b && (b->gpa != gpa || b->mode != mode))
		b = b->hash_next;
	if (!b) {
		b = decode_block(c, lin, gpa, (const u8 *)(lin + addend), mode, step);
		if (!b || b->dead)
			return b; /* wrapped: not cached */
	}
	struct code_page *page = page_find(c->blocks, gpa);
	if (page && page->link_page > 1 && page->link_page != (lin & PAGE_MASK)) {
		/* The same code at a second address: distances to other pages differ. */
		c->tr_unlink(c);
		page->link_page = 1;
	}
	if (c->cpl == 3 || global)
		*j = (struct jcache_entry){ .rip = lin, .key = cpu_code_key(c), .block = b };
	return b;
}
