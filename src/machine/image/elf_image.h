/* What a boot loader needs of an ELF: its loadable segments and its boot notes.
 * The file is hostile; what elf_parse accepts satisfies the comments below. */
#ifndef MACHINE_IMAGE_ELF_IMAGE_H
#define MACHINE_IMAGE_ELF_IMAGE_H

#include "core/base.h"

#define ELF_MAX_SEGMENTS 32

struct elf_segment {
	u64 offset, filesz; /* inside the file */
	u64 paddr, memsz;   /* memsz >= filesz, > 0, no wrap-around */
	u64 vaddr;
};

struct elf_image {
	bool is64;
	u64 entry;
	unsigned nsegments; /* >= 1, physical ranges disjoint, in file order */
	struct elf_segment segment[ELF_MAX_SEGMENTS];
	u64 paddr_min, paddr_end; /* of all segments */
	u64 file_size;
	u64 elf_end;   /* where the ELF ends by its own headers; <= file_size */
	bool has_pvh;  /* XEN_ELFNOTE_PHYS32_ENTRY */
	u32 pvh_entry;
};

/* 0, or -errno with one line in err. */
int elf_parse(int fd, struct elf_image *out, char *err, size_t errlen);

/* pread of exactly len bytes: 0, -EIO when the file ends before, or -errno. */
int elf_pread(int fd, void *buf, u64 len, u64 off);

#endif
