/* The four decompressors of kernel payloads behind one table. */
#ifndef MACHINE_IMAGE_CODEC_H
#define MACHINE_IMAGE_CODEC_H

#include "machine/image/image.h"

struct codec {
	const char *name;
	u8 magic[6];
	u8 magic_len;
	/* Fills dst with exactly dst_len bytes.  NULL: recognised, not supported. */
	enum image_error (*decode)(const u8 *src, size_t src_len, u8 *dst, size_t dst_len);
};

/* The codec whose magic starts src, or NULL. */
const struct codec *codec_find(const u8 *src, size_t len);

#endif
