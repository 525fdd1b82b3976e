#include "machine/image/codec.h"

#include <assert.h>
#include <lz4.h>
#include <lzma.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* All sizes here fit 32 bits: IMAGE_MAX_INPUT and IMAGE_MAX_OUTPUT bound them. */
static_assert(IMAGE_MAX_INPUT <= INT32_MAX && IMAGE_MAX_OUTPUT <= INT32_MAX, "zlib and lz4 count in int");

static enum image_error gzip_decode(const u8 *src, size_t src_len, u8 *dst, size_t dst_len)
{
	z_stream z = { .next_in = (Bytef *)(uintptr_t)src, .avail_in = (uInt)src_len, .next_out = dst,
		       .avail_out = (uInt)dst_len };
	if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK) /* 16: gzip header and CRC */
		return IMAGE_ERR_MEMORY;
	int r = inflate(&z, Z_FINISH);
	bool whole = z.avail_out == 0;
	inflateEnd(&z);
	if (r == Z_STREAM_END)
		return whole ? IMAGE_OK : IMAGE_ERR_CORRUPT;
	return r == Z_MEM_ERROR ? IMAGE_ERR_MEMORY : IMAGE_ERR_CORRUPT;
}

static enum image_error xz_decode(const u8 *src, size_t src_len, u8 *dst, size_t dst_len)
{
	uint64_t memlimit = 256 * MiB; /* dictionaries of kernels: up to 128 MiB */
	size_t in = 0, out = 0;
	lzma_ret r = lzma_stream_buffer_decode(&memlimit, 0, NULL, src, &in, src_len, dst, &out, dst_len);
	if (r == LZMA_MEM_ERROR || r == LZMA_MEMLIMIT_ERROR)
		return IMAGE_ERR_MEMORY;
	return r == LZMA_OK && out == dst_len ? IMAGE_OK : IMAGE_ERR_CORRUPT;
}

static enum image_error zstd_decode(const u8 *src, size_t src_len, u8 *dst, size_t dst_len)
{
	/* What follows the frame is the kernel build's length word, not a second frame. */
	size_t frame = ZSTD_findFrameCompressedSize(src, src_len);
	if (ZSTD_isError(frame))
		return IMAGE_ERR_CORRUPT;
	size_t n = ZSTD_decompress(dst, dst_len, src, frame);
	return n == dst_len ? IMAGE_OK : IMAGE_ERR_CORRUPT;
}

/* The "legacy" frame (lz4 -l): magic, then blocks of { u32 length; data }, each
 * giving at most 8 MiB, until the input ends. */
static enum image_error lz4_decode(const u8 *src, size_t src_len, u8 *dst, size_t dst_len)
{
	const size_t block_max = 8 * MiB;
	size_t in = 4, out = 0;
	while (out < dst_len) {
		u32 n;
		if (src_len - in < sizeof(n))
			return IMAGE_ERR_CORRUPT;
		memcpy(&n, src + in, sizeof(n));
		in += sizeof(n);
		if (n == 0 || n > src_len - in)
			return IMAGE_ERR_CORRUPT;
		size_t room = dst_len - out < block_max ? dst_len - out : block_max;
		int got = LZ4_decompress_safe((const char *)src + in, (char *)dst + out, (int)n, (int)room);
		if (got <= 0)
			return IMAGE_ERR_CORRUPT;
		in += n;
		out += (size_t)got;
	}
	return IMAGE_OK;
}

static const struct codec codecs[] = {
	{ "gzip", { 0x1f, 0x8b }, 2, gzip_decode },
	{ "xz", { 0xfd, '7', 'z', 'X', 'Z', 0 }, 6, xz_decode },
	{ "zstd", { 0x28, 0xb5, 0x2f, 0xfd }, 4, zstd_decode },
	{ "lz4", { 0x02, 0x21, 0x4c, 0x18 }, 4, lz4_decode },
	{ "bzip2", { 'B', 'Z', 'h' }, 3, NULL },
	{ "lzma", { 0x5d, 0, 0 }, 3, NULL },
	{ "lzo", { 0x89, 'L', 'Z', 'O' }, 4, NULL },
};

const struct codec *codec_find(const u8 *src, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(codecs); i++)
		if (len >= codecs[i].magic_len && !memcmp(src, codecs[i].magic, codecs[i].magic_len))
			return &codecs[i];
	return NULL;
}
