/* Inside of the MMU: what mem.c and block.c share with mmu.c. */
#ifndef CPU_MMU_H
#define CPU_MMU_H

#include "cpu/cpu.h"

struct mmu_page {
	u64 gpa;      /* of the byte asked for */
	u8 shift;     /* log2 of the page size */
	bool r, w, x; /* rights in the asked context */
	bool dirty, global;
};

/* The walk.  user/ac: rights; peek: no accessed/dirty bits.  False: *e is the #PF. */
bool mmu_walk(struct cpu *c, u64 gva, enum access a, bool user, bool ac, bool peek, struct mmu_page *out,
	      struct exception *e);
/* Puts a page into the TLB of a context; ctx must be the one the walk's rights were for. */
void mmu_fill(struct cpu *c, enum tlb_ctx ctx, u64 gva, const struct mmu_page *pg);
/* A/D bits were set in guest memory at host pointer p: decoded code there would be stale (block.c). */
void mmu_table_written(struct cpu *c, const void *p);

#endif
