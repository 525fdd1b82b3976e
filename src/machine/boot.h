/* Loading a kernel and setting the first CPU's registers: what the three boot
 * protocols share.  Runs confined; the image and initrd are hostile. */
#ifndef MACHINE_BOOT_H
#define MACHINE_BOOT_H

#include "core/base.h"
#include "core/ram.h"
#include "machine/image/elf_image.h"
#include "machine/machine.h"

/* Low memory as a loader leaves it; all below the ACPI tables. */
#define BOOT_GDT 0x500ull
#define BOOT_INFO 0x7000ull      /* zero page, hvm_start_info, multiboot info */
#define BOOT_MEMMAP 0x8000ull    /* memory map of PVH and multiboot; one page */
#define BOOT_PAGE_TABLES 0x9000ull /* 6 pages */
#define BOOT_SETUP_DATA 0xf000ull
#define BOOT_STACK 0x1f000ull    /* grows down */
#define BOOT_CMDLINE 0x20000ull
#define BOOT_CMDLINE_MAX 2047u   /* bytes without the final 0: COMMAND_LINE_SIZE of x86 */
#define BOOT_EBDA 0x9fc00ull
#define BOOT_LOW_END 0xa0000ull
#define BOOT_HIGH 0x100000ull

#define BOOT_RAM_LOW_MAX (3 * GiB) /* RAM beyond continues at 4 GiB */

struct boot {
	const struct machine_config *cfg;
	const struct ram *ram;
	struct vcpu *bsp;
	struct elf_image elf;
	u64 low_end;       /* end of RAM below 4 GiB */
	u64 high_size;     /* RAM from 4 GiB on */
	u64 initrd, initrd_size;
	char *err;
	size_t errlen;
};

struct boot_range {
	u64 start, size;
	u32 type; /* E820 numbers: 1 RAM, 2 reserved */
};
#define BOOT_MAX_RANGES 8
unsigned boot_memory_map(const struct boot *b, struct boot_range map[BOOT_MAX_RANGES]);

/* Writes words to b->err, returns -errnum. */
__attribute__((format(printf, 3, 4))) int boot_fail(struct boot *b, int errnum, const char *fmt, ...);

/* Loads the ELF's segments at paddr + delta. */
int boot_load_segments(struct boot *b, u64 delta);

/* Says "needs at least N MiB" unless RAM holds the kernel (ending at kernel_end) and the initrd. */
int boot_check_size(struct boot *b, u64 kernel_end);

/* Places the initrd page-aligned as high as below limit, above floor. */
int boot_load_initrd(struct boot *b, u64 floor, u64 limit);

int boot_write_cmdline(struct boot *b, const char *cmdline);

/* Protected mode, flat, paging off: PVH and multiboot. */
int boot_enter_32(struct boot *b, u32 rip, u32 rax, u32 rbx);

int boot_linux(struct boot *b);
int boot_pvh(struct boot *b);

/* Code at F000:FFF0, where a PC's CPUs begin and where programs jump to for a reboot. */
void boot_write_reset_vector(struct boot *b);

/* Finds a multiboot 1 header; false: none. */
struct multiboot_header {
	u64 offset; /* in the file */
	u32 flags;
	u32 header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};
bool multiboot_find(int fd, u64 file_size, struct multiboot_header *out);
int boot_multiboot(struct boot *b, const struct multiboot_header *h, bool elf);

/* Chooses the protocol and boots. */
int boot_image(struct boot *b);

#endif
