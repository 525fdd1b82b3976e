/* Page tables of the 64-bit runtime. */
#include "guest.h"

volatile u64 *pt_entry(u64 *root, u64 va, unsigned level)
{
	u64 *table = root;
	for (unsigned l = 4; l > level; l--) {
		u64 *e = &table[va >> (12 + 9 * (l - 1)) & 511];
		if (!(*e & PTE_P))
			*e = (u64)page_alloc(1) | PTE_P | PTE_W | PTE_U;
		table = (u64 *)(*e & PTE_ADDR);
	}
	return &table[va >> (12 + 9 * (level - 1)) & 511];
}

void pt_map(u64 *root, u64 va, u64 pa, u64 flags) { *pt_entry(root, va, 1) = pa | flags; }
