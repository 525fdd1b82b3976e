#include "core/sha256.h"

#include <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const u32 sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline u32 sha256_ror(u32 x, unsigned n) { return x >> n | x << (32 - n); }

static void sha256_block(u32 state[8], const u8 *p)
{
	u32 w[64];
	for (unsigned i = 0; i < 16; i++) {
		u32 v;
		memcpy(&v, p + 4 * i, 4);
		w[i] = __builtin_bswap32(v);
	}
	for (unsigned i = 16; i < 64; i++) {
		u32 s0 = sha256_ror(w[i - 15], 7) ^ sha256_ror(w[i - 15], 18) ^ w[i - 15] >> 3;
		u32 s1 = sha256_ror(w[i - 2], 17) ^ sha256_ror(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + s0 + w[i - 7] + s1;
	}
	u32 a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
	for (unsigned i = 0; i < 64; i++) {
		u32 t1 = h + (sha256_ror(e, 6) ^ sha256_ror(e, 11) ^ sha256_ror(e, 25)) + ((e & f) ^ (~e & g)) + sha256_k[i] +
			 w[i];
		u32 t2 = (sha256_ror(a, 2) ^ sha256_ror(a, 13) ^ sha256_ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
		h = g;
		g = f;
		f = e;
		e = d + t1;
		d = c;
		c = b;
		b = a;
		a = t1 + t2;
	}
	const u32 add[8] = { a, b, c, d, e, f, g, h };
	for (unsigned i = 0; i < 8; i++)
		state[i] += add[i];
}

/* With the CPU's SHA extensions: a kernel image is hashed at every start, and this is ten times as fast.  The two
 * registers hold the state as ABEF and CDGH, highest word first (SDM vol. 2, SHA256RNDS2). */
__attribute__((target("sha,sse4.1"))) static void sha256_blocks_ni(u32 state[8], const u8 *p, size_t n)
{
	const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
	__m128i abef = _mm_set_epi32((int)state[0], (int)state[1], (int)state[4], (int)state[5]);
	__m128i cdgh = _mm_set_epi32((int)state[2], (int)state[3], (int)state[6], (int)state[7]);
	for (; n; n--, p += 64) {
		const __m128i abef0 = abef, cdgh0 = cdgh;
		__m128i w[4];
		for (unsigned i = 0; i < 16; i++) { /* four rounds each */
			if (i < 4) {
				w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)), big_endian);
			} else {
				const __m128i last = w[(i + 3) & 3];
				__m128i t = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
				t = _mm_add_epi32(t, _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
				w[i & 3] = _mm_sha256msg2_epu32(t, last);
			}
			const __m128i k = _mm_add_epi32(w[i & 3], _mm_loadu_si128((const __m128i *)(const void *)(sha256_k + 4 * i)));
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
		}
		abef = _mm_add_epi32(abef, abef0);
		cdgh = _mm_add_epi32(cdgh, cdgh0);
	}
	u32 x[4], y[4];
	_mm_storeu_si128((__m128i *)(void *)x, abef);
	_mm_storeu_si128((__m128i *)(void *)y, cdgh);
	state[0] = x[3];
	state[1] = x[2];
	state[2] = y[3];
	state[3] = y[2];
	state[4] = x[1];
	state[5] = x[0];
	state[6] = y[1];
	state[7] = y[0];
}

static bool sha256_have_ni(void)
{
	u32 a, b, c, d;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & BIT(29));
}

static void sha256_blocks(const struct sha256 *s, u32 state[8], const u8 *p, size_t n)
{
	if (s->ni) {
		sha256_blocks_ni(state, p, n);
		return;
	}
	for (; n; n--, p += 64)
		sha256_block(state, p);
}

void sha256_init(struct sha256 *s)
{
	static const u32 start[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
				      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	memcpy(s->state, start, sizeof start);
	s->bytes = 0;
	s->ni = sha256_have_ni();
}

void sha256_update(struct sha256 *s, const void *data, size_t n)
{
	const u8 *p = data;
	while (n) {
		size_t have = s->bytes % 64;
		if (!have && n >= 64) {
			sha256_blocks(s, s->state, p, n / 64);
			s->bytes += n & ~(size_t)63;
			p += n & ~(size_t)63;
			n %= 64;
			continue;
		}
		size_t take = n < 64 - have ? n : 64 - have;
		memcpy(s->buf + have, p, take);
		s->bytes += take;
		p += take;
		n -= take;
		if (s->bytes % 64 == 0)
			sha256_blocks(s, s->state, s->buf, 1);
	}
}

void sha256_final(struct sha256 *s, u8 digest[32])
{
	u64 bits = __builtin_bswap64(s->bytes * 8);
	static const u8 pad[64] = { 0x80 };
	sha256_update(s, pad, 1 + (119 - s->bytes % 64) % 64);
	sha256_update(s, &bits, 8);
	for (unsigned i = 0; i < 8; i++) {
		u32 v = __builtin_bswap32(s->state[i]);
		memcpy(digest + 4 * i, &v, 4);
	}
}

int sha256_fd(int fd, char hex[65])
{
	const size_t chunk = 256 * KiB;
	u8 *buf = malloc(chunk);
	if (!buf)
		return -ENOMEM;
	struct sha256 s;
	sha256_init(&s);
	off_t at = 0;
	ssize_t n;
	while ((n = pread(fd, buf, chunk, at)) != 0) {
		if (n < 0) {
			if (errno == EINTR)
				continue;
			n = -errno;
			break;
		}
		sha256_update(&s, buf, (size_t)n);
		at += n;
	}
	free(buf);
	if (n < 0)
		return (int)n;
	u8 digest[32];
	sha256_final(&s, digest);
	for (unsigned i = 0; i < 32; i++) {
		hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
		hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
	}
	hex[64] = 0;
	return 0;
}
