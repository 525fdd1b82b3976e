/* SHA-256 (FIPS 180-4), for content-addressed caches. */
#ifndef CORE_SHA256_H
#define CORE_SHA256_H

#include "core/base.h"

struct sha256 {
	u32 state[8];
	u64 bytes;
	bool ni; /* with the CPU's SHA extensions; may be cleared after sha256_init() */
	u8 buf[64];
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t n);
void sha256_final(struct sha256 *s, u8 digest[32]);

/* Of a whole file, by pread from 0.  hex gets 64 digits and a zero.  0 or -errno. */
int sha256_fd(int fd, char hex[65]);

#endif
