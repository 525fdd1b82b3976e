#include "engine/native_memory.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/native.h"

static void *map(size_t size, int prot, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *p = mmap(NULL, size, prot, flags, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

int native_memory_create(size_t size, struct native_memory *out)
{
	*out = (struct native_memory){ .size = size };
	int fd = memfd_create("umbra-stubs", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = 0;
	if (ftruncate(fd, (off_t)size) < 0 || !(out->rw = map(size, PROT_READ | PROT_WRITE, fd)) ||
	    !(out->rx = map(size, PROT_READ | PROT_EXEC, fd)) || !(out->scratch = map(NATIVE_SCRATCH_SIZE, PROT_NONE, -1)) ||
	    mprotect((char *)out->scratch + PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE) < 0)
		r = -errno;
	close(fd);
	if (r)
		native_memory_destroy(out);
	return r;
}

void native_memory_destroy(struct native_memory *m)
{
	if (m->rw)
		munmap(m->rw, m->size);
	if (m->rx)
		munmap(m->rx, m->size);
	if (m->scratch)
		munmap(m->scratch, NATIVE_SCRATCH_SIZE);
	*m = (struct native_memory){ 0 };
}
