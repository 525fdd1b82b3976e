/* Formats told apart here: bzImage (Documentation/x86/boot.rst), ELF, and the
 * kernels of other machines people are likely to hand over by mistake. */
#include "machine/image/image.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/image/codec.h"

#define SETUP_HEADER_OFFSET 0x1f1
#define SECTOR 512
#define PROTOCOL_PAYLOAD 0x0208   /* payload_offset and payload_length */
#define PROTOCOL_XLOADFLAGS 0x020c

struct job {
	int in, out;
	struct image_info *info;
	char *err;
	size_t errlen;
};

__attribute__((format(printf, 3, 4))) static int fail(struct job *j, enum image_error e, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(j->err, j->errlen, fmt, ap);
	va_end(ap);
	j->info->error = e;
	return -1;
}

static int fail_io(struct job *j, const char *what)
{
	j->info->sys_errno = errno;
	return fail(j, IMAGE_ERR_IO, "%s: %s", what, strerror(errno));
}

static int write_all(struct job *j, const u8 *buf, u64 len)
{
	while (len) {
		ssize_t n = write(j->out, buf, len < MiB ? len : MiB);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail_io(j, "cannot write the extracted kernel");
		buf += n;
		len -= (u64)n;
		j->info->output_size += (u64)n;
	}
	return 0;
}

static int read_all(struct job *j, u8 *buf, u64 len)
{
	for (u64 off = 0; off < len;) {
		ssize_t n = pread(j->in, buf + off, len - off, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_io(j, "cannot read the kernel image");
		if (n == 0)
			return fail(j, IMAGE_ERR_TRUNCATED, "the file shrank while it was read");
		off += (u64)n;
	}
	return 0;
}

static bool is_elf(const u8 *p, u64 len) { return len >= EI_NIDENT && !memcmp(p, ELFMAG, SELFMAG); }

/* Checks what every ELF must satisfy to be worth loading; the loader checks the rest. */
static int check_elf(struct job *j, const u8 *p, u64 len, bool is_linux)
{
	Elf32_Ehdr e; /* the fields used lie alike in both classes */
	if (len < sizeof(Elf64_Ehdr))
		return fail(j, IMAGE_ERR_TRUNCATED, "the ELF header is cut off");
	memcpy(&e, p, sizeof(e));
	if (e.e_ident[EI_DATA] != ELFDATA2LSB || (e.e_machine != EM_X86_64 && e.e_machine != EM_386))
		return fail(j, IMAGE_ERR_ARCH, "an ELF for another architecture (machine %u): need x86-64",
			    e.e_ident[EI_DATA] == ELFDATA2MSB ? __builtin_bswap16(e.e_machine) : e.e_machine);
	if (is_linux && (e.e_machine != EM_X86_64 || e.e_ident[EI_CLASS] != ELFCLASS64))
		return fail(j, IMAGE_ERR_ARCH, "a 32-bit x86 Linux kernel: need a 64-bit one (amd64)");
	if (e.e_type != ET_EXEC && e.e_type != ET_DYN)
		return fail(j, IMAGE_ERR_NOT_KERNEL, "an ELF object file, not a linked kernel");
	return 0;
}

static void copy_version(struct image_info *info, const u8 *p, u64 len, u16 offset)
{
	u64 at = (u64)offset + SECTOR;
	size_t n = 0;
	if (!offset)
		return;
	while (n < sizeof(info->version) - 1 && at + n < len && p[at + n] >= 0x20 && p[at + n] < 0x7f) {
		info->version[n] = (char)p[at + n];
		n++;
	}
	info->version[n] = 0;
}

static int decompress(struct job *j, const u8 *src, u64 len)
{
	/* Every x86 payload ends in the length of its contents: gzip's own
	 * trailer, or the word the kernel build appends to the other formats. */
	u32 expect;
	memcpy(&expect, src + len - sizeof(expect), sizeof(expect));
	const struct codec *c = codec_find(src, len);
	if (!c) {
		if (!is_elf(src, len))
			return fail(j, IMAGE_ERR_COMPRESSION,
				    "the kernel's payload has an unknown compression (starts %02x %02x %02x %02x)",
				    src[0], src[1], src[2], src[3]);
		j->info->compression = "none";
		return check_elf(j, src, len, true) ? -1 : write_all(j, src, len);
	}
	j->info->compression = c->name;
	if (!c->decode)
		return fail(j, IMAGE_ERR_COMPRESSION,
			    "the kernel is compressed with %s: supported are gzip, xz, lz4 and zstd", c->name);
	if (expect > IMAGE_MAX_OUTPUT)
		return fail(j, IMAGE_ERR_TOO_BIG, "the kernel claims %u MiB uncompressed: the limit is %llu MiB",
			    expect >> 20, (unsigned long long)(IMAGE_MAX_OUTPUT / MiB));
	if (expect < sizeof(Elf64_Ehdr))
		return fail(j, IMAGE_ERR_CORRUPT, "the kernel's %s payload is damaged", c->name);

	u8 *dst = malloc(expect);
	if (!dst)
		return fail(j, IMAGE_ERR_MEMORY, "no memory to unpack the kernel: %u MiB needed", expect >> 20);
	int r = -1;
	enum image_error e = c->decode(src, len, dst, expect);
	if (e == IMAGE_ERR_MEMORY)
		fail(j, e, "no memory to unpack the kernel (%s)", c->name);
	else if (e != IMAGE_OK)
		fail(j, e, "the kernel's %s payload is damaged", c->name);
	else if (!is_elf(dst, expect))
		fail(j, IMAGE_ERR_NOT_KERNEL, "the kernel's payload is not an ELF");
	else if (!check_elf(j, dst, expect, true))
		r = write_all(j, dst, expect);
	free(dst);
	return r;
}

static int extract_bzimage(struct job *j, const u8 *p, u64 len)
{
	struct setup_header h;
	if (len < SETUP_HEADER_OFFSET + sizeof(h))
		return fail(j, IMAGE_ERR_TRUNCATED, "the kernel image is cut off within its header");
	memcpy(&h, p + SETUP_HEADER_OFFSET, sizeof(h));
	j->info->kind = IMAGE_LINUX;
	j->info->protocol = h.version;
	j->info->relocatable = h.relocatable_kernel;
	copy_version(j->info, p, len, h.kernel_version);
	if (h.version < PROTOCOL_PAYLOAD)
		return fail(j, IMAGE_ERR_TOO_OLD, "the kernel speaks boot protocol %u.%02u: 2.08 or newer is needed",
			    h.version >> 8, h.version & 0xff);
	if (h.version >= PROTOCOL_XLOADFLAGS && !(h.xloadflags & XLF_KERNEL_64))
		return fail(j, IMAGE_ERR_ARCH, "a 32-bit x86 Linux kernel: need a 64-bit one (amd64)");

	u64 start = ((h.setup_sects ? h.setup_sects : 4u) + 1) * (u64)SECTOR + h.payload_offset;
	if (h.payload_length < 8)
		return fail(j, IMAGE_ERR_CORRUPT, "the kernel image has no payload");
	if (start > len || h.payload_length > len - start)
		return fail(j, IMAGE_ERR_TRUNCATED, "the kernel image is cut off: %llu bytes of %llu",
			    (unsigned long long)len, (unsigned long long)(start + h.payload_length));
	return decompress(j, p + start, h.payload_length);
}

/* Kernels that are none of ours, by what they start with. */
static int reject(struct job *j, const u8 *p, u64 len)
{
	static const struct {
		u16 at;
		u8 len;
		char magic[9];
		enum image_error error;
		const char *what;
	} known[] = {
		{ 0x38, 4, "ARM\x64", IMAGE_ERR_ARCH, "an arm64 Linux kernel: need x86-64" },
		{ 0x38, 4, "RSC\x05", IMAGE_ERR_ARCH, "a RISC-V Linux kernel: need x86-64" },
		{ 0x24, 4, "\x18\x28\x6f\x01", IMAGE_ERR_ARCH, "a 32-bit ARM Linux kernel: need x86-64" },
		{ 4, 4, "zimg", IMAGE_ERR_ARCH, "an EFI zboot kernel (not of x86): need an x86-64 bzImage" },
		{ 0, 4, "\x27\x05\x19\x56", IMAGE_ERR_ARCH, "a U-Boot uImage: need an x86-64 bzImage" },
		{ 0, 6, "070701", IMAGE_ERR_NOT_KERNEL, "a cpio archive (an initrd?), not a kernel" },
		{ 0, 8, "!<arch>\n", IMAGE_ERR_NOT_KERNEL, "a Debian package or archive: unpack it and give the vmlinuz" },
		{ 0, 2, "\x1f\x8b", IMAGE_ERR_NOT_KERNEL, "a gzip file (an initrd, or another machine's kernel?), not a bzImage" },
		{ 0, 4, "\x28\xb5\x2f\xfd", IMAGE_ERR_NOT_KERNEL, "a zstd file (an initrd?), not a bzImage" },
		{ 0, 6, "\xfd" "7zXZ", IMAGE_ERR_NOT_KERNEL, "an xz file (an initrd?), not a bzImage" },
		{ 0, 2, "MZ", IMAGE_ERR_NOT_KERNEL, "an EFI program, not a Linux kernel" },
	};
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (len >= (u64)known[i].at + known[i].len && !memcmp(p + known[i].at, known[i].magic, known[i].len))
			return fail(j, known[i].error, "%s", known[i].what);
	return fail(j, IMAGE_ERR_NOT_KERNEL, "not a kernel: neither a bzImage nor an ELF");
}

int image_extract(int in_fd, int out_fd, struct image_info *info, char *err, size_t errlen)
{
	struct job j = { .in = in_fd, .out = out_fd, .info = info, .err = err, .errlen = errlen };
	struct stat st;
	memset(info, 0, sizeof(*info));
	info->compression = "none";
	if (errlen)
		err[0] = 0;

	if (fstat(in_fd, &st) < 0)
		return fail_io(&j, "cannot examine the kernel image");
	if (S_ISDIR(st.st_mode))
		return fail(&j, IMAGE_ERR_NOT_KERNEL, "a directory, not a kernel image");
	if (!S_ISREG(st.st_mode))
		return fail(&j, IMAGE_ERR_NOT_KERNEL, "not a regular file");
	if (st.st_size == 0)
		return fail(&j, IMAGE_ERR_EMPTY, "the file is empty");
	if ((u64)st.st_size > IMAGE_MAX_INPUT)
		return fail(&j, IMAGE_ERR_TOO_BIG, "the file has %lld MiB: the limit for a kernel is %llu MiB",
			    (long long)(st.st_size >> 20), (unsigned long long)(IMAGE_MAX_INPUT / MiB));

	u64 len = (u64)st.st_size;
	u8 *p = malloc(len);
	if (!p)
		return fail(&j, IMAGE_ERR_MEMORY, "no memory to read the kernel image (%llu MiB)",
			    (unsigned long long)(len / MiB));
	int r = read_all(&j, p, len);
	if (r == 0) {
		static const u8 hdrs[4] = { 'H', 'd', 'r', 'S' };
		if (len >= 0x206 && p[0x1fe] == 0x55 && p[0x1ff] == 0xaa && !memcmp(p + 0x202, hdrs, sizeof(hdrs))) {
			r = extract_bzimage(&j, p, len);
		} else if (is_elf(p, len)) {
			info->kind = IMAGE_ELF;
			r = check_elf(&j, p, len, false);
			if (r == 0)
				r = write_all(&j, p, len);
		} else {
			r = reject(&j, p, len);
		}
	}
	free(p);
	return r;
}
