/* Kernel images made ready once: the ELF inside a bzImage, extracted by the
 * confined extract role, kept under the SHA-256 of the file it came from. */
#ifndef SUPER_KERNEL_CACHE_H
#define SUPER_KERNEL_CACHE_H

#include "core/base.h"
#include "core/error.h"

/* A descriptor of the image the vm role boots: the cached or fresh ELF for a
 * bzImage, a duplicate of kernel_fd for everything else.  A cache that cannot
 * be written (full disk, read-only home) costs the next run its time and
 * nothing else.  Returns the descriptor (close-on-exec, read-only use) or -errno with words. */
int kernel_cache_get(int kernel_fd, const char *kernel_name, const char *cache_dir, struct err *e);

#endif
