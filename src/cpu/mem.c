/* Data accesses of guest instructions: the slow path behind the inline TLB
 * look-ups of insn.h.  Everything that can fail (segment limits, canonical
 * form, alignment, paging on both pages, MMIO) is checked before one byte is
 * written.
 *
 * MMIO.  An access outside RAM cannot be answered here.  Reads and writes are
 * recorded as a fragment and leave with CPU_EXIT_MMIO; once answered, the same
 * instruction runs again from its start and consumes the answered fragments in
 * order: a read yields its data, a write counts as done.  Nothing is committed
 * before the last fragment is answered, so instructions need no other care. */
#include "cpu/block.h"
#include "cpu/exec.h"
#include "cpu/insn.h"
#include "cpu/mmu.h"
#include "cpu/msr.h"

#define APIC_BASE_ENABLE BIT(11)
#define APIC_BASE_X2APIC BIT(10)

static bool is_lapic(const struct cpu *c, u64 gpa)
{
	return c->lapic && (c->apic_base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) == APIC_BASE_ENABLE &&
	       (gpa & PAGE_MASK) == (c->apic_base & MASK(52) & PAGE_MASK);
}

static void copy_bytes(void *dst, const void *src, unsigned n)
{
	switch (n) {
	case 1: *(volatile u8 *)dst = *(const volatile u8 *)src; break;
	case 2: *(volatile u16 *)dst = *(const volatile u16 *)src; break;
	case 4: *(volatile u32 *)dst = *(const volatile u32 *)src; break;
	case 8: *(volatile u64 *)dst = *(const volatile u64 *)src; break;
	default: __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n)::"memory");
	}
}

/* ---- segments and addresses outside 64-bit mode's flat case ---- */

/* Limit and type of a data segment access (SDM 5.3, 5.5); offset within the segment.
 * False: #GP(0), or #SS(0) for SS. */
static bool seg_allows(const struct cpu *c, const struct seg *s, u64 off, unsigned size, enum access a)
{
	if (cpu_real(c) || cpu_vm86(c))
		return off + size - 1 <= s->limit;
	if (s->unusable)
		return false;
	bool is_code = s->type & 8;
	if (is_code ? a == ACC_W || !(s->type & 2) : a == ACC_W && !(s->type & 2))
		return false;
	if (!is_code && (s->type & 4)) { /* expand-down */
		u64 top = s->db ? 0xffffffff : 0xffff;
		return off > s->limit && off + size - 1 <= top;
	}
	return off + size - 1 <= s->limit;
}

u64 insn_ea_slow(struct cpu *c, const struct insn *i, unsigned size, enum access a, int *fault)
{
	u64 off = insn_lea(c, i);
	const struct seg *s = &c->seg[i->seg];
	if (cpu_code64(c))
		return i->seg == FS || i->seg == GS ? off + s->base : off;
	if (!seg_allows(c, s, off, size, a)) {
		*fault = exc_raise_error(c, i, i->seg == SS ? VEC_SS : VEC_GP, 0);
		return 0;
	}
	return (u32)(off + s->base);
}

int seg_linear(struct cpu *c, const struct insn *i, enum sreg sr, u64 off, unsigned size, enum access a, u64 *lin)
{
	const struct seg *s = &c->seg[sr];
	if (cpu_code64(c)) {
		*lin = sr == FS || sr == GS ? off + s->base : off;
		return 0;
	}
	if (!seg_allows(c, s, off, size, a))
		return exc_raise_error(c, i, sr == SS ? VEC_SS : VEC_GP, 0);
	*lin = (u32)(off + s->base);
	return 0;
}

/* ---- data breakpoints (SDM 18.2.4) ---- */

static void check_watchpoints(struct cpu *c, u64 gva, unsigned size, enum access a)
{
	for (unsigned n = 0; n < 4; n++) {
		u64 rw = (c->dr7 >> (16 + 4 * n)) & 3, len = (c->dr7 >> (18 + 4 * n)) & 3;
		if (!((c->dr7 >> (2 * n)) & 3) || !(rw == 3 || (rw == 1 && a == ACC_W)))
			continue;
		u64 bytes = len == 2 ? 8 : len + 1, at = c->dr[n] & ~(bytes - 1);
		if (gva < at + bytes && at < gva + size)
			c->db_pending |= BIT(n);
	}
}

/* ---- the slow path ---- */

struct chunk { u64 gpa; u8 *p; unsigned size; };

static bool is_stack_insn(const struct insn *i) { return i->seg == SS; }

/* Everything that can go wrong, for both pages.  Fills at most two chunks. */
static int access_prepare(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a, struct chunk ch[2],
			  unsigned *n)
{
	const bool user = c->cpl == 3;
	if (cpu_long_mode(c) && unlikely(!gva_canonical(gva) || !gva_canonical(gva + size - 1)))
		return exc_raise_error(c, i, is_stack_insn(i) ? VEC_SS : VEC_GP, 0);
	if (unlikely(c->tlb == c->tlbs[TLB_EMPTY])) {
		/* SDM table 6-7; 10 bytes: an extended real, aligned to 8 */
		if (user && (c->sflags & FL_AC) && (c->cr0 & CR0_AM) &&
		    (((size == 2 || size == 4 || size == 8) && (gva & (size - 1))) || (size == 10 && (gva & 7))))
			return exc_raise_error(c, i, VEC_AC, 0);
		if (c->dr7 & 0xff)
			check_watchpoints(c, gva, size, a);
	}
	const bool ac = c->sflags & FL_AC;
	const enum tlb_ctx ctx = c->tlb == c->tlbs[TLB_EMPTY] ? TLB_EMPTY :
				 user			     ? TLB_USER :
				 c->tlb == c->tlbs[TLB_KERNEL] ? TLB_KERNEL :
								 TLB_KERNEL_AC;
	*n = 0;
	for (unsigned done = 0; done < size;) {
		u64 va = gva + done;
		if (!cpu_long_mode(c))
			va = (u32)va;
		unsigned len = (unsigned)(PAGE_SIZE - (va & ~PAGE_MASK));
		if (len > size - done)
			len = size - done;
		struct mmu_page pg;
		if (!mmu_walk(c, va, a, user, ac, false, &pg, &c->exc)) {
			c->rip = insn_rip(c, i);
			return STEP_FAULT;
		}
		mmu_fill(c, ctx, va, &pg);
		ch[*n] = (struct chunk){ .gpa = pg.gpa, .size = len, .p = NULL };
		const struct ram_slot *s = ram_find(c->ram, GPA(pg.gpa));
		if (s && !(a == ACC_W && s->readonly))
			ch[*n].p = s->hva + (pg.gpa - s->gpa.v);
		++*n;
		done += len;
	}
	return 0;
}

/* One MMIO fragment of at most 8 bytes.  0: answered. */
static int mmio_access(struct cpu *c, const struct insn *i, u64 gpa, void *buf, unsigned size, bool write)
{
	if (is_lapic(c, gpa)) {
		u32 off = (u32)(gpa & ~PAGE_MASK), v = 0;
		u64 retired = c->insns;
		c->insns += i->idx; /* the APIC timer reads virtual time */
		if (write) {
			copy_bytes(&v, buf, size < 4 ? size : 4);
			lapic_mmio_write(c, off, v);
			block_leave_after(c, i);
		} else {
			v = lapic_mmio_read(c, off & ~3u) >> (8 * (off & 3));
			u64 wide = v;
			copy_bytes(buf, &wide, size);
		}
		c->insns = retired;
		return 0;
	}
	struct mmio_fragment *f = &c->mmio.f[c->mmio.next];
	if (c->mmio.next < c->mmio.n) {
		if (f->gpa.v != gpa || f->len != size || f->write != write)
			return cpu_unimplemented(c, i, "MMIO replay diverged");
		if (!write)
			copy_bytes(buf, &f->data, size);
		c->mmio.next++;
		return 0;
	}
	if (c->mmio.n == MMIO_FRAGMENTS)
		return cpu_unimplemented(c, i, "instruction with too many MMIO accesses");
	*f = (struct mmio_fragment){ .gpa = GPA(gpa), .len = (u8)size, .write = write };
	if (write)
		copy_bytes(&f->data, buf, size);
	c->mmio.pending = true;
	c->exit = CPU_EXIT_MMIO;
	c->rip = insn_rip(c, i);
	c->stats.exits_mmio++;
	return STEP_EXIT;
}

static int mmio_chunk(struct cpu *c, const struct insn *i, const struct chunk *ch, u8 *buf, bool write)
{
	for (unsigned done = 0; done < ch->size;) {
		unsigned left = ch->size - done;
		u64 gpa = ch->gpa + done;
		unsigned len = left >= 8 && !(gpa & 7) ? 8 : left >= 4 && !(gpa & 3) ? 4 : left >= 2 && !(gpa & 1) ? 2 : 1;
		if (left == ch->size && (left == 2 || left == 4 || left == 8))
			len = left;
		int r = mmio_access(c, i, gpa, buf + done, len, write);
		if (r)
			return r;
		done += len;
	}
	return 0;
}

int mem_read_slow(struct cpu *c, const struct insn *i, u64 gva, void *buf, unsigned size)
{
	struct chunk ch[2];
	unsigned n;
	int r = access_prepare(c, i, gva, size, ACC_R, ch, &n);
	u8 *dst = buf;
	for (unsigned k = 0; !r && k < n; dst += ch[k].size, k++) {
		if (ch[k].p)
			copy_bytes(dst, ch[k].p, ch[k].size);
		else
			r = mmio_chunk(c, i, &ch[k], dst, false);
	}
	return r;
}

int mem_write_slow(struct cpu *c, const struct insn *i, u64 gva, const void *buf, unsigned size)
{
	struct chunk ch[2];
	unsigned n;
	int r = access_prepare(c, i, gva, size, ACC_W, ch, &n);
	if (r)
		return r;
	u8 tmp[64];
	const u8 *src = buf;
	/* MMIO first: it may leave, and then nothing must have been written. */
	for (unsigned k = 0, at = 0; k < n; at += ch[k].size, k++) {
		if (ch[k].p)
			continue;
		if (ram_find(c->ram, GPA(ch[k].gpa)))
			continue; /* read-only slot: the write is dropped, as ROM does */
		copy_bytes(tmp, src + at, ch[k].size < sizeof tmp ? ch[k].size : sizeof tmp);
		if (ch[k].size > sizeof tmp)
			return cpu_unimplemented(c, i, "MMIO write wider than 64 bytes");
		r = mmio_chunk(c, i, &ch[k], tmp, true);
		if (r)
			return r;
	}
	for (unsigned k = 0; k < n; src += ch[k].size, k++) {
		if (!ch[k].p)
			continue;
		if (block_code_write(c, GPA(ch[k].gpa), ch[k].size))
			block_leave_after(c, i);
		copy_bytes(ch[k].p, src, ch[k].size);
	}
	return 0;
}

int mem_probe(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a)
{
	struct chunk ch[2];
	unsigned n;
	return access_prepare(c, i, gva, size, a, ch, &n);
}

int mem_ptr(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a, void **p)
{
	*p = a == ACC_W ? tlb_write_ptr(c, gva, size) : tlb_read_ptr(c, gva, size);
	if (likely(*p != NULL))
		return 0;
	struct chunk ch[2];
	unsigned n;
	int r = access_prepare(c, i, gva, size, a, ch, &n);
	if (r || n > 1 || !ch[0].p)
		return r;
	if (a == ACC_W && block_code_write(c, GPA(ch[0].gpa), size))
		block_leave_after(c, i);
	*p = ch[0].p;
	return 0;
}

/* ---- implicit supervisor accesses: descriptor tables, TSS, stacks during delivery (SDM 4.6.1: SMAP applies whatever
 * EFLAGS.AC is) ---- */

static int sys_access(struct cpu *c, u64 gva, u8 *buf, unsigned size, enum access a)
{
	if (!cpu_long_mode(c))
		gva = (u32)gva;
	else if (!gva_canonical(gva) || !gva_canonical(gva + size - 1)) {
		c->exc = (struct exception){ .vector = VEC_GP, .has_error = true };
		return STEP_FAULT;
	}
	struct chunk ch[2];
	unsigned n = 0;
	for (unsigned done = 0; done < size; n++) {
		u64 va = gva + done;
		unsigned len = (unsigned)(PAGE_SIZE - (va & ~PAGE_MASK));
		if (len > size - done)
			len = size - done;
		const struct tlb_entry *t = &c->tlbs[TLB_KERNEL][(va >> PAGE_SHIFT) & (TLB_SIZE - 1)];
		struct mmu_page pg;
		if ((a == ACC_W ? t->wtag : t->rtag) == (va & PAGE_MASK)) {
			ch[n] = (struct chunk){ .gpa = (t->gpa & PAGE_MASK) | (va & ~PAGE_MASK), .p = (u8 *)(va + t->addend), .size = len };
		} else {
			if (!mmu_walk(c, va, a, false, false, false, &pg, &c->exc)) {
				return STEP_FAULT;
			}
			if (!(c->dr7 & 0xff))
				mmu_fill(c, TLB_KERNEL, va, &pg);
			ch[n] = (struct chunk){ .gpa = pg.gpa, .p = ram_ptr(c->ram, GPA(pg.gpa), len), .size = len };
			if (!ch[n].p)
				return cpu_unimplemented(c, NULL, "descriptor table, TSS or exception stack outside RAM");
		}
		done += len;
	}
	for (unsigned k = 0; k < n; buf += ch[k].size, k++) {
		if (a == ACC_W) {
			block_code_write(c, GPA(ch[k].gpa), ch[k].size);
			copy_bytes(ch[k].p, buf, ch[k].size);
		} else {
			copy_bytes(buf, ch[k].p, ch[k].size);
		}
	}
	return 0;
}

int sys_read(struct cpu *c, u64 gva, void *buf, unsigned size) { return sys_access(c, gva, buf, size, ACC_R); }

int sys_write(struct cpu *c, u64 gva, const void *buf, unsigned size)
{
	return sys_access(c, gva, (u8 *)(uintptr_t)buf, size, ACC_W);
}
