/* From a kernel file as distributed to something bootable: takes a bzImage
 * apart, or passes an ELF through.  Input is hostile: lengths are checked, the
 * output is bounded.  System calls: read, pread64, write, pwrite64, lseek, fstat,
 * and those of malloc (mmap, munmap, mremap, brk). */
#ifndef MACHINE_IMAGE_IMAGE_H
#define MACHINE_IMAGE_IMAGE_H

#include "core/base.h"

#define IMAGE_MAX_INPUT (512 * MiB)
#define IMAGE_MAX_OUTPUT (1 * GiB)

enum image_kind {
	IMAGE_LINUX, /* bzImage: output is its vmlinux ELF, then its relocation table if it has one */
	IMAGE_ELF,   /* an ELF already: output is a copy */
};

enum image_error {
	IMAGE_OK,
	IMAGE_ERR_IO,          /* reading or writing failed; errno in info->sys_errno */
	IMAGE_ERR_EMPTY,
	IMAGE_ERR_NOT_KERNEL,
	IMAGE_ERR_TRUNCATED,
	IMAGE_ERR_CORRUPT,     /* the compressed payload does not decompress */
	IMAGE_ERR_COMPRESSION, /* bzip2, lzma, lzo, or unknown */
	IMAGE_ERR_ARCH,        /* arm64, 32-bit x86, … */
	IMAGE_ERR_TOO_OLD,     /* boot protocol before 2.08: no payload fields */
	IMAGE_ERR_TOO_BIG,
	IMAGE_ERR_MEMORY,
};

struct image_info {
	enum image_kind kind;
	enum image_error error;
	int sys_errno;
	const char *compression;  /* "lz4", "zstd", "xz", "gzip", "none" */
	u16 protocol;             /* boot protocol, 0x020f = 2.15; 0 for ELF */
	bool relocatable;         /* of the setup header */
	u64 output_size;          /* bytes written */
	char version[128];        /* kernel version string of the setup header, printable, may be empty */
};

/* Reads in_fd from its start (it must be a regular file or memfd), writes the
 * result to out_fd at its current position.  0, or -1 with info->error and one line in err
 * that says what is wrong with the file and what to do about it. */
int image_extract(int in_fd, int out_fd, struct image_info *info, char *err, size_t errlen);

#endif
