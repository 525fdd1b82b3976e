/* PVH direct boot (xen: docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h):
 * 32-bit protected mode, EBX = hvm_start_info. */
#include <errno.h>
#include <assert.h>
#include <string.h>

#include "machine/acpi.h"
#include "machine/boot.h"

#define START_MAGIC 0x336ec578u

struct start_info {
	u32 magic, version;
	u32 flags, nr_modules;
	u64 modlist, cmdline, rsdp;
	u64 memmap;
	u32 memmap_entries, reserved;
};
static_assert(sizeof(struct start_info) == 56, "public layout");

struct module {
	u64 paddr, size, cmdline, reserved;
};

struct memmap_entry {
	u64 addr, size;
	u32 type, reserved;
};

int boot_pvh(struct boot *b)
{
	struct boot_range map[BOOT_MAX_RANGES];
	struct memmap_entry mm[BOOT_MAX_RANGES] = { 0 };
	struct {
		struct start_info info;
		struct module initrd;
	} s = { .info = { .magic = START_MAGIC, .version = 1, .cmdline = BOOT_CMDLINE, .rsdp = ACPI_TABLES_BASE,
			  .memmap = BOOT_MEMMAP } };
	if (b->elf.pvh_entry < b->elf.paddr_min || b->elf.pvh_entry >= b->elf.paddr_end)
		return boot_fail(b, ENOEXEC, "the kernel's PVH entry point %#x lies outside of it", b->elf.pvh_entry);
	int r = boot_check_size(b, b->elf.paddr_end);
	if (!r)
		r = boot_load_initrd(b, b->elf.paddr_end, b->low_end);
	if (!r)
		r = boot_load_segments(b, 0);
	if (!r)
		r = boot_write_cmdline(b, b->cfg->cmdline);
	if (r)
		return r;
	if (b->initrd_size) {
		s.info.nr_modules = 1;
		s.info.modlist = BOOT_INFO + sizeof(s.info);
		s.initrd = (struct module){ .paddr = b->initrd, .size = b->initrd_size };
	}
	s.info.memmap_entries = boot_memory_map(b, map);
	for (unsigned i = 0; i < s.info.memmap_entries; i++)
		mm[i] = (struct memmap_entry){ .addr = map[i].start, .size = map[i].size, .type = map[i].type };
	ASSERT(ram_write(b->ram, GPA(BOOT_MEMMAP), mm, sizeof(mm)));
	ASSERT(ram_write(b->ram, GPA(BOOT_INFO), &s, sizeof(s)));
	return boot_enter_32(b, b->elf.pvh_entry, 0, BOOT_INFO);
}
