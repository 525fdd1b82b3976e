/* 64-bit boot protocol (Documentation/x86/boot.rst): a vmlinux ELF is placed by
 * the host, moved and relocated as the kernel's own decompressor would for
 * KASLR, and entered in long mode with the "zero page" in RSI.
 *
 * The relocation table follows the ELF in the file, as the kernel build leaves
 * it: 32-bit words { 0, 64-bit places, 0, inverse 32-bit places, 0, 32-bit
 * places }; since Linux 6.15 without the inverse list.  A word is the low half
 * of the link-time virtual address of a place. */
#include <asm/bootparam.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/acpi.h"
#include "machine/boot.h"

#define KERNEL_MAP 0x80000000u              /* low half of __START_KERNEL_map */
#define KERNEL_IMAGE_SIZE (1 * GiB)         /* virtual window for text and data with KASLR */
#define KERNEL_ALIGN (2 * MiB)
#define INITRD_LIMIT 0x7fffffffull          /* initrd_addr_max of all 64-bit kernels */
#define RELOCS_MAX (16 * MiB)
#define WORKING_SPACE_LINUX (16 * MiB)  /* page tables, struct pages, first slabs */
#define SETUP_TYPE_RNG_SEED 9               /* Linux 6.0 */
#define RNG_SEED_SIZE 32

static_assert(sizeof(struct boot_params) == PAGE_SIZE, "the zero page is a page");

struct relocs {
	u32 *word;
	size_t n;
	size_t first[3], end[3]; /* 64-bit, inverse, 32-bit */
};
enum { R64, RINV, R32 };

/* 1: found, 0: the file has none, or -errno. */
static int read_relocs(struct boot *b, struct relocs *r)
{
	u64 size = ALIGN_DOWN(b->elf.file_size - b->elf.elf_end, 4ull);
	memset(r, 0, sizeof(*r));
	if (size < 12)
		return 0;
	if (size > RELOCS_MAX)
		return boot_fail(b, ENOEXEC, "the kernel image has %llu bytes after its ELF: no relocation table is that large",
				 (unsigned long long)size);
	r->word = malloc(size);
	if (!r->word)
		return boot_fail(b, ENOMEM, "no memory for the kernel's relocations");
	int e = elf_pread(b->cfg->kernel_fd, r->word, size, b->elf.elf_end);
	if (e)
		return boot_fail(b, -e, "cannot read the kernel image: %s", strerror(-e));
	r->n = size / 4;

	size_t zero[4], nzero = 0;
	for (size_t i = 0; i < r->n && nzero < 4; i++)
		if (!r->word[i])
			zero[nzero++] = i;
	if (nzero < 2 || nzero > 3 || zero[0] != 0)
		return 0; /* something else is appended: not our table */
	r->first[R64] = 1;
	r->end[R64] = zero[1];
	if (nzero == 3) {
		r->first[RINV] = zero[1] + 1;
		r->end[RINV] = zero[2];
	}
	r->first[R32] = zero[nzero - 1] + 1;
	r->end[R32] = r->n;
	return 1;
}

static void *place(struct boot *b, u32 word, u64 phys_delta, unsigned len)
{
	u64 link = (u64)(u32)(word - KERNEL_MAP);
	if (link < b->elf.paddr_min || link > b->elf.paddr_end - len)
		return NULL;
	return ram_ptr(b->ram, GPA(link + phys_delta), len);
}

static int apply_relocs(struct boot *b, const struct relocs *r, u64 phys_delta, u64 virt_delta)
{
	for (unsigned list = R64; list <= R32; list++) {
		for (size_t i = r->first[list]; i < r->end[list]; i++) {
			unsigned len = list == R64 ? 8 : 4;
			u64 v = 0;
			u8 *p = place(b, r->word[i], phys_delta, len);
			if (!p)
				return boot_fail(b, ENOEXEC, "the kernel image has a relocation outside itself (%#x)", r->word[i]);
			memcpy(&v, p, len);
			v = list == RINV ? v - virt_delta : v + virt_delta;
			memcpy(p, &v, len);
		}
	}
	return 0;
}

/* A uniformly chosen aligned offset in [lo, hi - size]. */
static u64 choose(const u8 seed[8], u64 lo, u64 hi, u64 size)
{
	u64 r;
	memcpy(&r, seed, sizeof(r));
	if (hi < size || hi - size <= lo)
		return lo;
	u64 slots = (hi - size - lo) / KERNEL_ALIGN + 1;
	return lo + (u64)((u128)r * slots >> 64) * KERNEL_ALIGN;
}

static bool has_word(const char *cmdline, const char *word)
{
	size_t n = strlen(word);
	for (const char *p = cmdline; p && (p = strstr(p, word)); p += n)
		if ((p == cmdline || p[-1] == ' ') && (!p[n] || p[n] == ' '))
			return true;
	return false;
}

static int write_page_tables(struct boot *b)
{
	/* Identity for the first 4 GiB in 2 MiB pages: image, zero page, command line and initrd. */
	static u64 t[6][512];
	const u64 table = 3, page = 0x83; /* P, RW; and PS */
	t[0][0] = (BOOT_PAGE_TABLES + PAGE_SIZE) | table;
	for (u64 i = 0; i < 4; i++)
		t[1][i] = (BOOT_PAGE_TABLES + (2 + i) * PAGE_SIZE) | table;
	for (u64 i = 0; i < 4 * 512; i++)
		t[2 + i / 512][i % 512] = i * KERNEL_ALIGN | page;
	return ram_write(b->ram, GPA(BOOT_PAGE_TABLES), t, sizeof(t)) ? 0 : -EFAULT;
}

static void write_zero_page(struct boot *b, u64 image_size, bool randomized)
{
	static struct boot_params z;
	struct boot_range map[BOOT_MAX_RANGES];
	memset(&z, 0, sizeof(z));
	z.hdr.boot_flag = 0xaa55;
	z.hdr.header = 0x53726448; /* "HdrS" */
	z.hdr.version = 0x020f;
	z.hdr.type_of_loader = 0xff; /* no number assigned */
	z.hdr.loadflags = (u8)(LOADED_HIGH | (randomized ? KASLR_FLAG : 0));
	z.hdr.vid_mode = 0xffff; /* normal */
	z.hdr.relocatable_kernel = 1;
	z.hdr.kernel_alignment = KERNEL_ALIGN;
	z.hdr.xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G;
	z.hdr.pref_address = b->elf.paddr_min;
	z.hdr.init_size = (u32)image_size;
	z.hdr.initrd_addr_max = INITRD_LIMIT;
	z.hdr.cmdline_size = BOOT_CMDLINE_MAX;
	z.hdr.cmd_line_ptr = BOOT_CMDLINE;
	z.hdr.ramdisk_image = (u32)b->initrd;
	z.hdr.ramdisk_size = (u32)b->initrd_size;
	z.acpi_rsdp_addr = ACPI_TABLES_BASE;

	unsigned n = boot_memory_map(b, map);
	z.e820_entries = (u8)n;
	for (unsigned i = 0; i < n; i++) {
		z.e820_table[i].addr = map[i].start;
		z.e820_table[i].size = map[i].size;
		z.e820_table[i].type = map[i].type;
	}

	if (b->cfg->have_seed) {
		struct {
			u64 next;
			u32 type, len;
			u8 data[RNG_SEED_SIZE];
		} seed = { .type = SETUP_TYPE_RNG_SEED, .len = RNG_SEED_SIZE };
		memcpy(seed.data, b->cfg->seed + sizeof(b->cfg->seed) - RNG_SEED_SIZE, RNG_SEED_SIZE);
		ASSERT(ram_write(b->ram, GPA(BOOT_SETUP_DATA), &seed, sizeof(seed)));
		z.hdr.setup_data = BOOT_SETUP_DATA;
	}
	ASSERT(ram_write(b->ram, GPA(BOOT_INFO), &z, sizeof(z)));
}

static int enter_64(struct boot *b, u64 rip)
{
	/* __BOOT_CS = 0x10, __BOOT_DS = 0x18 of the boot protocol. */
	static const u64 gdt[4] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const struct hv_ops *hv = b->cfg->hv;
	struct kvm_regs r = { .rip = rip, .rsi = BOOT_INFO, .rsp = BOOT_STACK, .rflags = 2 };
	struct kvm_sregs s;
	ASSERT(ram_write(b->ram, GPA(BOOT_GDT), gdt, sizeof(gdt)));
	int e = hv->get_sregs(b->bsp, &s);
	if (e)
		return boot_fail(b, -e, "cannot read the CPU's registers: %s", strerror(-e));
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){ .limit = 0x67, .type = 11, .present = 1 };
	s.ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	s.gdt = (struct kvm_dtable){ .base = BOOT_GDT, .limit = sizeof(gdt) - 1 };
	s.idt = (struct kvm_dtable){ 0 };
	s.cr3 = BOOT_PAGE_TABLES;
	s.cr4 = 0x20;       /* PAE */
	s.efer = 0x500;     /* LME, LMA */
	s.cr0 = 0x80000033; /* PG, NE, ET, MP, PE */
	e = hv->set_sregs(b->bsp, &s);
	if (!e)
		e = hv->set_regs(b->bsp, &r);
	return e ? boot_fail(b, -e, "cannot set the CPU's registers: %s", strerror(-e)) : 0;
}

int boot_linux(struct boot *b)
{
	const char *cmdline = b->cfg->cmdline ? b->cfg->cmdline : "";
	struct relocs rel = { 0 };
	u64 base = b->elf.paddr_min, size = b->elf.paddr_end - base, phys = base, virt = base;
	if (!b->elf.is64)
		return boot_fail(b, ENOEXEC, "the kernel image is a 32-bit Linux kernel: need a 64-bit one");
	if (b->elf.entry < base || b->elf.entry >= b->elf.paddr_end)
		return boot_fail(b, ENOEXEC, "the kernel's entry point %#llx lies outside of it",
				 (unsigned long long)b->elf.entry);
	int r = boot_check_size(b, b->elf.paddr_end + WORKING_SPACE_LINUX);
	if (r)
		return r;
	u64 limit = b->low_end < INITRD_LIMIT ? b->low_end : INITRD_LIMIT;
	r = boot_load_initrd(b, b->elf.paddr_end, limit);
	if (r)
		return r;

	bool random = b->cfg->kaslr && b->cfg->have_seed && !has_word(cmdline, "nokaslr") && !(base % KERNEL_ALIGN);
	if (random) {
		r = read_relocs(b, &rel);
		if (r < 0)
			goto out;
		random = r == 1;
	}
	if (random) {
		u64 top = b->initrd_size ? b->initrd : limit;
		virt = choose(b->cfg->seed, base, KERNEL_IMAGE_SIZE, size);
		phys = choose(b->cfg->seed + 8, base, top, size);
	}
	r = boot_load_segments(b, phys - base);
	if (!r && random)
		r = apply_relocs(b, &rel, phys - base, virt - base);
	if (!r)
		r = boot_write_cmdline(b, cmdline);
	if (!r) {
		ASSERT(!write_page_tables(b));
		write_zero_page(b, size, random);
		r = enter_64(b, b->elf.entry - base + phys);
	}
out:
	free(rel.word);
	return r;
}
