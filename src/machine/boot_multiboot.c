/* Multiboot specification 0.6.96: header in the first 8 KiB of the file, the
 * image by its address fields (flag 16) or as an ELF of either class. */
#include <errno.h>
#include <assert.h>
#include <string.h>

#include "machine/boot.h"

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define SEARCH 8192u

enum { HEADER_ADDRESSES = 1 << 16, HEADER_UNKNOWN = 0xfff8 }; /* bits 3-15: refuse; 2 (video) is a wish */
enum { INFO_MEMORY = 1 << 0, INFO_CMDLINE = 1 << 2, INFO_MODS = 1 << 3, INFO_MMAP = 1 << 6, INFO_LOADER = 1 << 9 };

struct info {
	u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
	u32 syms[4];
	u32 mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name, apm_table;
};
static_assert(sizeof(struct info) == 72, "3.3: up to the APM table");

struct module {
	u32 start, end, string, reserved;
};

struct mmap_entry {
	u32 size;
	u64 addr, len;
	u32 type;
} __attribute__((packed));

bool multiboot_find(int fd, u64 file_size, struct multiboot_header *out)
{
	u8 buf[SEARCH];
	u64 n = file_size < sizeof(buf) ? file_size : sizeof(buf);
	if (elf_pread(fd, buf, n, 0))
		return false;
	for (u64 at = 0; at + 12 <= n; at += 4) {
		u32 w[8] = { 0 };
		memcpy(w, buf + at, n - at < sizeof(w) ? n - at : sizeof(w));
		if (w[0] != HEADER_MAGIC || w[0] + w[1] + w[2] != 0)
			continue;
		if ((w[1] & HEADER_ADDRESSES) && n - at < sizeof(w))
			return false;
		*out = (struct multiboot_header){ at, w[1], w[3], w[4], w[5], w[6], w[7] };
		return true;
	}
	return false;
}

/* The address fields as the one segment of an ELF that is not there. */
static int segments_from_header(struct boot *b, const struct multiboot_header *h, u64 file_size)
{
	if (h->header_addr < h->load_addr || h->header_addr - h->load_addr > h->offset)
		return boot_fail(b, ENOEXEC, "the multiboot header's load address lies before the file's start");
	u64 start = h->offset - (h->header_addr - h->load_addr);
	u64 filesz = h->load_end_addr ? (u64)h->load_end_addr - h->load_addr : file_size - start;
	u64 memsz = h->bss_end_addr ? (u64)h->bss_end_addr - h->load_addr : filesz;
	if (h->load_end_addr && (h->load_end_addr < h->load_addr || filesz > file_size - start))
		return boot_fail(b, ENOEXEC, "the kernel image is cut off: its multiboot header names more than there is");
	if (h->bss_end_addr && (h->bss_end_addr < h->load_addr || memsz < filesz))
		return boot_fail(b, ENOEXEC, "the multiboot header's end of bss lies before the end of data");
	if (!memsz)
		return boot_fail(b, ENOEXEC, "the multiboot header describes an empty image");
	b->elf = (struct elf_image){ .entry = h->entry_addr, .nsegments = 1, .file_size = file_size,
				     .paddr_min = h->load_addr, .paddr_end = h->load_addr + memsz };
	b->elf.segment[0] = (struct elf_segment){ .offset = start, .filesz = filesz, .paddr = h->load_addr,
						  .memsz = memsz, .vaddr = h->load_addr };
	return 0;
}

int boot_multiboot(struct boot *b, const struct multiboot_header *h, bool elf)
{
	static const char loader[] = "umbra";
	int r = 0;
	if (h->flags & HEADER_UNKNOWN)
		return boot_fail(b, ENOEXEC, "the multiboot header asks for features not known (flags %#x)", h->flags);
	if (h->flags & HEADER_ADDRESSES || !elf)
		r = segments_from_header(b, h, b->elf.file_size);
	if (r)
		return r;
	if (b->elf.entry < b->elf.paddr_min || b->elf.entry >= b->elf.paddr_end)
		return boot_fail(b, ENOEXEC, "the kernel's entry point %#llx lies outside of it",
				 (unsigned long long)b->elf.entry);
	r = boot_check_size(b, b->elf.paddr_end);
	if (!r)
		r = boot_load_initrd(b, b->elf.paddr_end, b->low_end);
	if (!r)
		r = boot_load_segments(b, 0);
	if (!r)
		r = boot_write_cmdline(b, b->cfg->cmdline);
	if (r)
		return r;

	struct {
		struct info info;
		struct module initrd;
		char name[sizeof(loader)];
	} s = { 0 };
	struct boot_range map[BOOT_MAX_RANGES];
	struct mmap_entry mm[BOOT_MAX_RANGES];
	unsigned n = boot_memory_map(b, map);
	for (unsigned i = 0; i < n; i++)
		mm[i] = (struct mmap_entry){ sizeof(mm[i]) - 4, map[i].start, map[i].size, map[i].type };
	memcpy(s.name, loader, sizeof(loader));
	s.info = (struct info){
		.flags = INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER | (b->initrd_size ? INFO_MODS : 0u),
		.mem_lower = BOOT_EBDA / KiB,
		.mem_upper = (u32)((b->low_end - BOOT_HIGH) / KiB),
		.cmdline = BOOT_CMDLINE,
		.mmap_length = (u32)(n * sizeof(mm[0])),
		.mmap_addr = BOOT_MEMMAP,
		.boot_loader_name = (u32)(BOOT_INFO + ((u8 *)s.name - (u8 *)&s)),
	};
	if (b->initrd_size) {
		s.info.mods_count = 1;
		s.info.mods_addr = (u32)(BOOT_INFO + sizeof(s.info));
		s.initrd = (struct module){ .start = (u32)b->initrd, .end = (u32)(b->initrd + b->initrd_size) };
	}
	ASSERT(ram_write(b->ram, GPA(BOOT_MEMMAP), mm, n * sizeof(mm[0])));
	ASSERT(ram_write(b->ram, GPA(BOOT_INFO), &s, sizeof(s)));
	return boot_enter_32(b, (u32)b->elf.entry, LOADER_MAGIC, BOOT_INFO);
}
