/* image_extract: made-up bzImages in every compression, cut off and damaged,
 * and files that are none. */
#include <asm/bootparam.h>
#include <elf.h>
#include <fcntl.h>
#include <lz4hc.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "../unit/check.h"
#include "machine/image/image.h"

#define PAYLOAD_SIZE 300000u
#define HEADER_SECTORS 3u
#define HEADER_SIZE ((HEADER_SECTORS + 1) * 512u)

static u8 vmlinux[PAYLOAD_SIZE];
static u8 packed[PAYLOAD_SIZE + 100000], image[HEADER_SIZE + sizeof(packed)];
static struct image_info info;
static char err[256];

static int file_of(const void *p, size_t n)
{
	int fd = memfd_create("image", 0);
	if (write(fd, p, n) != (ssize_t)n)
		abort();
	return fd;
}

/* Extracts; on success compares with vmlinux. */
static int extract(const void *p, size_t n, bool compare)
{
	static u8 got[PAYLOAD_SIZE + 1];
	int in = file_of(p, n), out = memfd_create("out", 0);
	int r = image_extract(in, out, &info, err, sizeof err);
	if (r == 0 && compare) {
		CHECK_EQ(pread(out, got, sizeof got, 0), PAYLOAD_SIZE);
		CHECK(!memcmp(got, vmlinux, PAYLOAD_SIZE));
	}
	if (r)
		CHECK(err[0] && !strchr(err, '\n'));
	CHECK((r == 0) == (info.error == IMAGE_OK));
	close(in);
	close(out);
	return r;
}

static u32 pack_gzip(void)
{
	z_stream z = { .next_in = vmlinux, .avail_in = PAYLOAD_SIZE, .next_out = packed, .avail_out = sizeof(packed) };
	deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
	CHECK_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return (u32)z.total_out;
}

static u32 with_size(u32 n)
{
	const u32 size = PAYLOAD_SIZE;
	memcpy(packed + n, &size, 4);
	return n + 4;
}

static u32 pack_xz(void)
{
	size_t n = 0;
	CHECK_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, vmlinux, PAYLOAD_SIZE, packed, &n, sizeof(packed)), LZMA_OK);
	return with_size((u32)n);
}

static u32 pack_zstd(void) { return with_size((u32)ZSTD_compress(packed, sizeof(packed), vmlinux, PAYLOAD_SIZE, 19)); }

static u32 pack_lz4(void)
{
	const u32 magic = 0x184c2102, half = PAYLOAD_SIZE / 2;
	u32 at = 4;
	memcpy(packed, &magic, 4);
	for (u32 k = 0; k < 2; k++) { /* two blocks, the first not full: the decoder must not care */
		u32 n = (u32)LZ4_compress_HC((char *)vmlinux + k * half, (char *)packed + at + 4, (int)half, (int)half + 1000, 9);
		memcpy(packed + at, &n, 4);
		at += 4 + n;
	}
	return with_size(at);
}

static u32 pack_none(void)
{
	memcpy(packed, vmlinux, PAYLOAD_SIZE);
	return PAYLOAD_SIZE;
}

static size_t wrap(u32 len, u16 version, u16 xloadflags)
{
	static const char name[] = "6.1.0-test (x) #1";
	struct setup_header h = { .setup_sects = HEADER_SECTORS, .boot_flag = 0xaa55, .header = 0x53726448, .version = version,
				  .xloadflags = xloadflags, .relocatable_kernel = 1, .payload_offset = 64,
				  .payload_length = len, .kernel_version = 0x300 };
	memset(image, 0, HEADER_SIZE + 64);
	memcpy(image + 0x1f1, &h, sizeof h);
	memcpy(image + 0x500, name, sizeof name);
	memcpy(image + HEADER_SIZE + 64, packed, len);
	return HEADER_SIZE + 64 + len;
}

static void test_compressions(void)
{
	static const struct {
		const char *name;
		u32 (*pack)(void);
	} all[] = { { "gzip", pack_gzip }, { "xz", pack_xz }, { "zstd", pack_zstd }, { "lz4", pack_lz4 }, { "none", pack_none } };
	for (unsigned k = 0; k < ARRAY_SIZE(all); k++) {
		u32 len = all[k].pack();
		size_t n = wrap(len, 0x20f, XLF_KERNEL_64);
		CHECK_EQ(extract(image, n, true), 0);
		CHECK(!strcmp(info.compression, all[k].name));
		CHECK(!strcmp(info.version, "6.1.0-test (x) #1"));
		CHECK_EQ(info.output_size, PAYLOAD_SIZE);
		CHECK_EQ(extract(image, n + 1000 < sizeof image ? n + 1000 : n, true), 0); /* a signature follows */
		for (size_t cut = 1; cut < n; cut += n / 23) {
			CHECK_EQ(extract(image, n - cut, false), -1);
			CHECK(info.error == IMAGE_ERR_TRUNCATED || (n - cut < 0x206 && info.error == IMAGE_ERR_NOT_KERNEL));
		}
		/* damage: any error, never success with other bytes except in "none" */
		srand(1);
		for (unsigned i = 0; i < 40 && all[k].pack != pack_none; i++) {
			size_t at = HEADER_SIZE + 64 + (size_t)rand() % len;
			image[at] ^= 0x55;
			extract(image, n, all[k].pack != pack_lz4 && all[k].pack != pack_zstd);
			image[at] ^= 0x55;
		}
	}
}

static void expect(const void *p, size_t n, enum image_error e)
{
	CHECK_EQ(extract(p, n, false), -1);
	CHECK_EQ(info.error, e);
}

static void test_rejects(void)
{
	static u8 junk[4096];
	u32 len = pack_gzip();
	expect(image, wrap(len, 0x207, 0), IMAGE_ERR_TOO_OLD);
	expect(image, wrap(len, 0x20c, 0), IMAGE_ERR_ARCH);
	memcpy(packed, "BZh91AY", 7);
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_COMPRESSION);
	memcpy(packed, "\x5d\0\0\0", 4);
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_COMPRESSION);
	memcpy(packed, "????", 4);
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_COMPRESSION);
	len = pack_gzip();
	memcpy(packed + len - 4, "\xff\xff\xff\xff", 4);
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_TOO_BIG);
	len = pack_gzip();
	memcpy(packed + len - 4, "\x10\0\0\0", 4);
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_CORRUPT);
	/* a payload that claims less, and more, than it holds */
	len = pack_lz4();
	packed[len - 4]--;
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_CORRUPT);
	packed[len - 4] += 2;
	expect(image, wrap(len, 0x20f, XLF_KERNEL_64), IMAGE_ERR_CORRUPT);
	/* 32-bit contents */
	vmlinux[EI_CLASS] = ELFCLASS32;
	len = pack_gzip();
	expect(image, wrap(len, 0x20b, 0), IMAGE_ERR_ARCH);
	vmlinux[EI_CLASS] = ELFCLASS64;

	memset(junk, 0x41, sizeof junk);
	expect(junk, 0, IMAGE_ERR_EMPTY);
	expect(junk, 1, IMAGE_ERR_NOT_KERNEL);
	expect(junk, sizeof junk, IMAGE_ERR_NOT_KERNEL);
	memcpy(junk + 0x38, "ARM\x64", 4);
	expect(junk, sizeof junk, IMAGE_ERR_ARCH);
	memcpy(junk, "070701", 6);
	memset(junk + 0x38, 0, 4);
	expect(junk, sizeof junk, IMAGE_ERR_NOT_KERNEL);
	CHECK(strstr(err, "initrd"));

	Elf64_Ehdr e;
	memcpy(&e, vmlinux, sizeof e);
	e.e_machine = EM_AARCH64;
	expect(&e, sizeof e, IMAGE_ERR_ARCH);
	e.e_machine = EM_X86_64;
	e.e_type = ET_REL;
	expect(&e, sizeof e, IMAGE_ERR_NOT_KERNEL);
	expect(&e, 40, IMAGE_ERR_TRUNCATED);
	CHECK_EQ(extract(vmlinux, sizeof vmlinux, true), 0);
	CHECK_EQ(info.kind, IMAGE_ELF);

	int dir = open("/", O_RDONLY), null = open("/dev/null", O_RDWR);
	CHECK_EQ(image_extract(dir, null, &info, err, sizeof err), -1);
	CHECK_EQ(info.error, IMAGE_ERR_NOT_KERNEL);
	CHECK_EQ(image_extract(null, null, &info, err, sizeof err), -1);
	CHECK_EQ(image_extract(-1, null, &info, err, sizeof err), -1);
	CHECK_EQ(info.error, IMAGE_ERR_IO);
	/* output that cannot be written */
	len = pack_gzip();
	int in = file_of(image, wrap(len, 0x20f, XLF_KERNEL_64)), full = open("/dev/full", O_WRONLY);
	CHECK_EQ(image_extract(in, full, &info, err, sizeof err), -1);
	CHECK_EQ(info.error, IMAGE_ERR_IO);
	close(in);
	close(full);
	close(dir);
	close(null);
}

int main(int argc, char **argv)
{
	if (argc > 1) { /* a real kernel: what the format is, for a look */
		int r = image_extract(open(argv[1], O_RDONLY), open("/dev/null", O_WRONLY), &info, err, sizeof err);
		printf("%d %s: %s, %s, %llu bytes\n", r, err, info.version, info.compression, (unsigned long long)info.output_size);
		return r ? 1 : 0;
	}
	Elf64_Ehdr e = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 }, .e_type = ET_EXEC,
			 .e_machine = EM_X86_64 };
	srand(2);
	for (unsigned i = 0; i < PAYLOAD_SIZE; i++)
		vmlinux[i] = (u8)(rand() % 3 ? i >> 8 : (unsigned)rand());
	memcpy(vmlinux, &e, sizeof e);
	test_compressions();
	test_rejects();
	return check_result();
}
