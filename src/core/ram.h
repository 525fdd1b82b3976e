/* Guest RAM: a list of slots, each a window of a sealed memfd mapped into this
 * process.  Everything that turns a guest-physical address into a pointer goes
 * through here and is bounds-checked. */
#ifndef CORE_RAM_H
#define CORE_RAM_H

#include "core/base.h"

#define RAM_MAX_SLOTS 16

struct ram_slot {
	u32 id;       /* KVM memory slot number */
	bool readonly;
	gpa_t gpa;    /* page aligned */
	u64 size;     /* bytes, page aligned */
	u8 *hva;      /* mapping in this process */
	int fd;       /* the memfd, or -1 */
	u64 offset;   /* of gpa within fd */
	u64 *code;    /* the engine's, one word per page: bit n: bytes [64n, 64n+64) may hold decoded code of some CPU;
	               * stores to a page with any take the slow path.  May be NULL where no code is run. */
};

struct ram {
	unsigned n;
	struct ram_slot slot[RAM_MAX_SLOTS]; /* sorted by gpa, disjoint */
};

/* The slot that holds gpa, or NULL (a hole: MMIO). */
static inline const struct ram_slot *ram_find(const struct ram *ram, gpa_t gpa)
{
	for (unsigned i = 0; i < ram->n; i++)
		if (gpa.v - ram->slot[i].gpa.v < ram->slot[i].size)
			return &ram->slot[i];
	return NULL;
}

/* Pointer to [gpa, gpa+len) when it lies wholly inside one slot, else NULL. */
static inline void *ram_ptr(const struct ram *ram, gpa_t gpa, u64 len)
{
	const struct ram_slot *s = ram_find(ram, gpa);
	if (!s)
		return NULL;
	u64 off = gpa.v - s->gpa.v;
	return len <= s->size - off ? s->hva + off : NULL;
}

/* Creates a memfd of size bytes sealed against shrinking, growing and further
 * sealing.  Returns the descriptor (close-on-exec) or -errno. */
int ram_memfd_create(const char *name, u64 size);

/* Checks that fd is a memfd with the seals above and at least size bytes; for
 * every process that was handed one.  0 or -errno (-EPERM: seals missing). */
int ram_memfd_check(int fd, u64 size);

/* Maps [offset, offset+size) of fd as the slot for gpa.  Overlap with another
 * slot, misalignment or a full table: -EINVAL / -EEXIST / -ENOSPC. */
int ram_add(struct ram *ram, u32 id, gpa_t gpa, u64 size, int fd, u64 offset, bool readonly);

/* The same for memory already mapped at hva (KVM_SET_USER_MEMORY_REGION). */
int ram_add_mapped(struct ram *ram, u32 id, gpa_t gpa, u64 size, u8 *hva, bool readonly);

/* Copies between guest-physical memory and a buffer across slots; false and
 * nothing written when any byte is not RAM. */
bool ram_read(const struct ram *ram, gpa_t gpa, void *buf, u64 len);
bool ram_write(const struct ram *ram, gpa_t gpa, const void *buf, u64 len);

void ram_destroy(struct ram *ram);

#endif
