/* Writer of cpio archives in the "newc" format, the one the Linux kernel
 * unpacks as initramfs (Documentation/driver-api/early-userspace/buffer-format.rst). */
#ifndef CLI_CPIO_H
#define CLI_CPIO_H

#include <sys/stat.h>

#include "core/base.h"
#include "core/error.h"

struct cpio {
	int fd;        /* where the archive goes */
	u64 size;      /* bytes so far */
	u64 max;       /* fail when size would exceed it; 0: no bound */
	u32 ino;       /* last inode number given out */
	int errnum;    /* first failure: everything after it does nothing; -EFBIG: over max */
	size_t fill;
	u8 buf[64 << 10];
};

/* One member.  The name has no leading slash. */
struct cpio_member {
	const char *name;
	u32 mode;  /* as st_mode, with type */
	u32 ino;   /* 0: a number of its own; hard links of one file share one */
	u32 nlink; /* 0: 1 (2 for directories) */
	u32 mtime;
	u32 rdev_major, rdev_minor;
	u64 size;  /* of the data that follow; below 4 GiB */
};

void cpio_begin(struct cpio *c, int fd, u64 max);
u32 cpio_new_ino(struct cpio *c);

/* Header of a member; exactly m->size bytes of cpio_data() and one cpio_end_member() follow. */
void cpio_member(struct cpio *c, const struct cpio_member *m);
void cpio_data(struct cpio *c, const void *p, size_t n);
void cpio_end_member(struct cpio *c);

/* Whole members. */
void cpio_dir(struct cpio *c, const char *name, u32 perms);
void cpio_symlink(struct cpio *c, const char *name, const char *target);
void cpio_file(struct cpio *c, const char *name, u32 perms, const void *data, size_t n);
void cpio_chardev(struct cpio *c, const char *name, u32 perms, u32 major, u32 minor);

/* Raw bytes between archives (a second one is concatenated), then padding to four bytes. */
void cpio_raw(struct cpio *c, const void *p, size_t n);
void cpio_pad(struct cpio *c);

/* Trailer; 0 or -errno of the first failure. */
int cpio_finish(struct cpio *c);

#endif
