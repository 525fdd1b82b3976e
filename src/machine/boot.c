#include "machine/boot.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "machine/acpi.h"
#include "machine/platform.h"

#define WORKING_SPACE (24 * MiB) /* what a kernel needs beside its image and initrd to get anywhere */

int boot_fail(struct boot *b, int errnum, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(b->err, b->errlen, fmt, ap);
	va_end(ap);
	return -errnum;
}

unsigned boot_memory_map(const struct boot *b, struct boot_range map[BOOT_MAX_RANGES])
{
	unsigned n = 0;
	map[n++] = (struct boot_range){ 0, BOOT_EBDA, 1 };
	map[n++] = (struct boot_range){ BOOT_EBDA, BOOT_LOW_END - BOOT_EBDA, 2 };
	map[n++] = (struct boot_range){ ACPI_TABLES_BASE, BOOT_HIGH - ACPI_TABLES_BASE, 2 };
	map[n++] = (struct boot_range){ BOOT_HIGH, b->low_end - BOOT_HIGH, 1 };
	if (b->high_size)
		map[n++] = (struct boot_range){ 4 * GiB, b->high_size, 1 };
	return n;
}

int boot_load_segments(struct boot *b, u64 delta)
{
	for (unsigned i = 0; i < b->elf.nsegments; i++) {
		const struct elf_segment *s = &b->elf.segment[i];
		u64 at;
		/* Below 1 MiB lie what this loader writes and the BIOS area. */
		if (__builtin_add_overflow(s->paddr, delta, &at) || at < BOOT_HIGH)
			return boot_fail(b, ENOEXEC, "the kernel image wants to be loaded at %#llx: below 1 MiB is not possible",
					 (unsigned long long)at);
		u8 *p = ram_ptr(b->ram, GPA(at), s->memsz);
		if (!p) {
			if (b->elf.paddr_end > 64 * GiB)
				return boot_fail(b, ENOEXEC, "the kernel image wants to be loaded at %#llx: no RAM is there",
						 (unsigned long long)at);
			return boot_fail(b, ENOMEM,
					 "the kernel does not fit the VM's memory (use --memory %lluM or more)",
					 (unsigned long long)(ALIGN_UP(at + s->memsz, MiB) / MiB));
		}
		int r = elf_pread(b->cfg->kernel_fd, p, s->filesz, s->offset);
		if (r)
			return boot_fail(b, -r, "cannot read the kernel image: %s", strerror(-r));
		/* RAM is a fresh memfd: zero already, and untouched pages cost nothing. */
	}
	return 0;
}

static int initrd_size(struct boot *b)
{
	struct stat st;
	b->initrd_size = 0;
	if (b->cfg->initrd_fd < 0)
		return 0;
	if (fstat(b->cfg->initrd_fd, &st) < 0)
		return boot_fail(b, errno, "cannot examine the initrd: %s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return boot_fail(b, EINVAL, "the initrd is not a regular file");
	if ((u64)st.st_size > UINT32_MAX)
		return boot_fail(b, EFBIG, "the initrd has %lld MiB: the limit is 4095", (long long)(st.st_size >> 20));
	b->initrd_size = (u64)st.st_size;
	return 0;
}

int boot_check_size(struct boot *b, u64 kernel_end)
{
	int r = initrd_size(b);
	if (r)
		return r;
	u64 need = kernel_end + ALIGN_UP(b->initrd_size, PAGE_SIZE) + (b->initrd_size ? WORKING_SPACE : 0);
	if (need > b->low_end)
		return boot_fail(b, ENOMEM,
				 need > BOOT_RAM_LOW_MAX
					 ? "kernel and initrd need %llu MiB: more than fit below 3 GiB"
					 : "the VM's memory is too small: kernel and initrd need at least %llu MiB (use --memory)",
				 (unsigned long long)(ALIGN_UP(need, MiB) / MiB));
	return 0;
}

int boot_load_initrd(struct boot *b, u64 floor, u64 limit)
{
	if (!b->initrd_size)
		return 0;
	u64 top = limit < b->low_end ? limit : b->low_end;
	if (b->initrd_size > top || ALIGN_DOWN(top - b->initrd_size, PAGE_SIZE) < floor)
		return boot_fail(b, ENOMEM, "the VM's memory is too small: no room for the initrd of %llu MiB (use --memory)",
				 (unsigned long long)(b->initrd_size / MiB + 1));
	b->initrd = ALIGN_DOWN(top - b->initrd_size, PAGE_SIZE);
	u8 *p = ram_ptr(b->ram, GPA(b->initrd), b->initrd_size);
	ASSERT(p);
	int r = elf_pread(b->cfg->initrd_fd, p, b->initrd_size, 0);
	if (r)
		return boot_fail(b, -r, "cannot read the initrd: %s", strerror(-r));
	return 0;
}

int boot_write_cmdline(struct boot *b, const char *cmdline)
{
	size_t n = cmdline ? strlen(cmdline) : 0;
	if (n > BOOT_CMDLINE_MAX)
		return boot_fail(b, E2BIG, "the kernel command line has %zu bytes: the limit is %u", n, BOOT_CMDLINE_MAX);
	ASSERT(ram_write(b->ram, GPA(BOOT_CMDLINE), n ? cmdline : "", n + 1));
	return 0;
}

void boot_write_reset_vector(struct boot *b)
{
	/* Linux on hardware-reduced ACPI without EFI reboots by jumping here in real
	 * mode before it tries the FADT's reset register. */
	static const u8 code[] = {
		0xb0, PLATFORM_RESET_VALUE,                                 /* mov al, 6 */
		0xba, PLATFORM_RESET_PORT & 0xff, PLATFORM_RESET_PORT >> 8, /* mov dx, 0xcf9 */
		0xee,                                                       /* out dx, al */
		0xf4,                                                       /* hlt */
		0xeb, 0xfd,                                                 /* jmp to the hlt */
	};
	ASSERT(ram_write(b->ram, GPA(0xffff0), code, sizeof(code)));
}

int boot_enter_32(struct boot *b, u32 rip, u32 rax, u32 rbx)
{
	/* Null, code, data, TSS: selectors 8, 0x10, 0x18. */
	static const u64 gdt[4] = { 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00008b0000000067 };
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = rip, .rax = rax, .rbx = rbx, .rflags = 2 };
	const struct hv_ops *hv = b->cfg->hv;
	ASSERT(ram_write(b->ram, GPA(BOOT_GDT), gdt, sizeof(gdt)));
	int e = hv->get_sregs(b->bsp, &s);
	if (e)
		return boot_fail(b, -e, "cannot read the CPU's registers: %s", strerror(-e));
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_segment data = code;
	data.selector = 0x10;
	data.type = 3;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){ .limit = 0x67, .selector = 0x18, .type = 11, .present = 1 };
	s.ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	s.gdt = (struct kvm_dtable){ .base = BOOT_GDT, .limit = sizeof(gdt) - 1 };
	s.idt = (struct kvm_dtable){ 0 };
	s.cr0 = 0x11; /* PE, ET */
	s.cr3 = s.cr4 = s.efer = 0;
	e = hv->set_sregs(b->bsp, &s);
	if (!e)
		e = hv->set_regs(b->bsp, &r);
	return e ? boot_fail(b, -e, "cannot set the CPU's registers: %s", strerror(-e)) : 0;
}

/* A vmlinux says what it is in its banner, within its read-only data. */
static bool is_linux(struct boot *b)
{
	static const char banner[] = "Linux version ";
	enum { PIECE = 256 * 1024 };
	const u64 overlap = sizeof(banner) - 2;
	bool found = false;
	u8 *buf = malloc(PIECE);
	if (!buf || !b->elf.is64) {
		free(buf);
		return false;
	}
	for (unsigned i = 0; i < b->elf.nsegments && !found; i++) {
		const struct elf_segment *s = &b->elf.segment[i];
		for (u64 off = 0; off < s->filesz && !found; off += PIECE - overlap) {
			u64 n = s->filesz - off < PIECE ? s->filesz - off : PIECE;
			if (elf_pread(b->cfg->kernel_fd, buf, n, s->offset + off))
				break;
			found = memmem(buf, n, banner, sizeof(banner) - 1) != NULL;
			if (n < PIECE)
				break;
		}
	}
	free(buf);
	return found;
}

int boot_image(struct boot *b)
{
	enum machine_boot how = b->cfg->boot;
	struct multiboot_header mb;
	struct stat st;
	if (fstat(b->cfg->kernel_fd, &st) < 0)
		return boot_fail(b, errno, "cannot examine the kernel image: %s", strerror(errno));
	bool has_mb = multiboot_find(b->cfg->kernel_fd, (u64)st.st_size, &mb);
	if (how == MACHINE_BOOT_MULTIBOOT && !has_mb)
		return boot_fail(b, ENOEXEC, "the kernel image has no multiboot header");

	int r = elf_parse(b->cfg->kernel_fd, &b->elf, b->err, b->errlen);
	bool flat = has_mb && (mb.flags & 1u << 16); /* address fields: need not be an ELF */
	if (r && !flat)
		return r;
	if (b->errlen)
		b->err[0] = 0;
	if (how == MACHINE_BOOT_AUTO)
		how = has_mb ? MACHINE_BOOT_MULTIBOOT : is_linux(b) ? MACHINE_BOOT_LINUX : MACHINE_BOOT_PVH;
	switch (how) {
	case MACHINE_BOOT_MULTIBOOT:
		return boot_multiboot(b, &mb, r == 0);
	case MACHINE_BOOT_LINUX:
		return boot_linux(b);
	case MACHINE_BOOT_PVH:
	default:
		if (!b->elf.has_pvh)
			return boot_fail(b, ENOEXEC,
					 "the kernel image is neither Linux nor has it a PVH note or multiboot header");
		return boot_pvh(b);
	}
}
