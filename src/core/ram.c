#include "core/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RAM_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

int ram_memfd_create(const char *name, u64 size)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (size > INT64_MAX || ftruncate(fd, (off_t)size) || fcntl(fd, F_ADD_SEALS, RAM_SEALS)) {
		int e = size > INT64_MAX ? EFBIG : errno;
		close(fd);
		return -e;
	}
	return fd;
}

int ram_memfd_check(int fd, u64 size)
{
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return errno == EINVAL ? -EPERM : -errno; /* EINVAL: not a memfd at all */
	if ((seals & RAM_SEALS) != RAM_SEALS)
		return -EPERM;
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	return st.st_size >= 0 && (u64)st.st_size >= size ? 0 : -EFBIG;
}

/* Checks a new slot and makes room for it in gpa order.  Index or -errno. */
static int ram_place(struct ram *ram, gpa_t gpa, u64 size)
{
	u64 end;
	if (!size || (gpa.v | size) & ~PAGE_MASK || __builtin_add_overflow(gpa.v, size - 1, &end))
		return -EINVAL;
	if (ram->n == RAM_MAX_SLOTS)
		return -ENOSPC;
	unsigned at = 0;
	for (unsigned i = 0; i < ram->n; i++) {
		const struct ram_slot *s = &ram->slot[i];
		if (s->gpa.v <= end && gpa.v <= s->gpa.v + (s->size - 1))
			return -EEXIST;
		if (s->gpa.v < gpa.v)
			at = i + 1;
	}
	return (int)at;
}

static int ram_insert(struct ram *ram, unsigned at, const struct ram_slot *s)
{
	/* Through mmap, not malloc: a word per page of 64 GiB is 128 MiB of which most is never touched. */
	u64 n = s->size / PAGE_SIZE * sizeof(u64);
	u64 *code = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (code == MAP_FAILED)
		return -errno;
	memmove(&ram->slot[at + 1], &ram->slot[at], (ram->n - at) * sizeof ram->slot[0]);
	ram->slot[at] = *s;
	ram->slot[at].code = code;
	ram->n++;
	return 0;
}

int ram_add(struct ram *ram, u32 id, gpa_t gpa, u64 size, int fd, u64 offset, bool readonly)
{
	int at = ram_place(ram, gpa, size);
	if (at < 0)
		return at;
	u64 end;
	if (offset & ~PAGE_MASK || __builtin_add_overflow(offset, size, &end) || end > INT64_MAX)
		return -EINVAL;
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	if (st.st_size < 0 || end > (u64)st.st_size)
		return -EINVAL; /* a mapping beyond the end would raise SIGBUS */
	/* Always writable here: readonly is the guest's view, loaders fill ROMs. */
	u8 *hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
	if (hva == MAP_FAILED)
		return -errno;
	(void)madvise(hva, size, MADV_DONTDUMP); /* reports, not core files */
	struct ram_slot s = { .id = id, .readonly = readonly, .gpa = gpa, .size = size, .hva = hva, .fd = fd,
			      .offset = offset };
	int r = ram_insert(ram, (unsigned)at, &s);
	if (r)
		munmap(hva, size);
	return r;
}

int ram_add_mapped(struct ram *ram, u32 id, gpa_t gpa, u64 size, u8 *hva, bool readonly)
{
	int at = ram_place(ram, gpa, size);
	if (at < 0)
		return at;
	if ((u64)(uintptr_t)hva & ~PAGE_MASK)
		return -EINVAL;
	struct ram_slot s = { .id = id, .readonly = readonly, .gpa = gpa, .size = size, .hva = hva, .fd = -1 };
	return ram_insert(ram, (unsigned)at, &s);
}

/* Bytes from gpa to the end of its slot, at most len; 0: not RAM. */
static u64 ram_run(const struct ram *ram, gpa_t gpa, u64 len, u8 **p)
{
	const struct ram_slot *s = ram_find(ram, gpa);
	if (!s)
		return 0;
	u64 off = gpa.v - s->gpa.v;
	*p = s->hva + off;
	return len < s->size - off ? len : s->size - off;
}

static bool ram_covers(const struct ram *ram, gpa_t gpa, u64 len)
{
	u8 *p;
	u64 end;
	if (__builtin_add_overflow(gpa.v, len, &end))
		return false;
	while (len) {
		u64 n = ram_run(ram, gpa, len, &p);
		if (!n)
			return false;
		gpa.v += n;
		len -= n;
	}
	return true;
}

bool ram_read(const struct ram *ram, gpa_t gpa, void *buf, u64 len)
{
	if (!ram_covers(ram, gpa, len))
		return false;
	for (u8 *out = buf, *p = NULL; len;) {
		u64 n = ram_run(ram, gpa, len, &p);
		memcpy(out, p, n);
		out += n;
		gpa.v += n;
		len -= n;
	}
	return true;
}

bool ram_write(const struct ram *ram, gpa_t gpa, const void *buf, u64 len)
{
	if (!ram_covers(ram, gpa, len))
		return false;
	u8 *p = NULL;
	for (const u8 *in = buf; len;) {
		u64 n = ram_run(ram, gpa, len, &p);
		memcpy(p, in, n);
		in += n;
		gpa.v += n;
		len -= n;
	}
	return true;
}

void ram_destroy(struct ram *ram)
{
	for (unsigned i = 0; i < ram->n; i++) {
		struct ram_slot *s = &ram->slot[i];
		if (s->fd >= 0)
			munmap(s->hva, s->size);
		munmap(s->code, s->size / PAGE_SIZE * sizeof(u64));
	}
	ram->n = 0;
}
