/* The stub arena and scratch pages of cpu/native.h: dual-mapped memory, made
 * before the seccomp filter forbids executable mappings. */
#ifndef ENGINE_NATIVE_MEMORY_H
#define ENGINE_NATIVE_MEMORY_H

#include "core/base.h"

struct native_memory {
	void *rw, *rx; /* the same size bytes twice: writable, executable; never both at one address */
	size_t size;
	void *scratch; /* pages: none, read-write, read-write, none */
};

/* 0 or -errno; nothing is left mapped on failure. */
int native_memory_create(size_t size, struct native_memory *out);
void native_memory_destroy(struct native_memory *m);

#endif
