/* Vector arithmetic: SSE2 to AVX-512 over pseudo-random data.  Prints one checksum per instruction set; the same program
 * run natively on this host must print the same lines (the test compares). */
#include <cpuid.h>
#include <immintrin.h>

#include "t.h"

enum { N = 512 };
static union {
	float f[16];
	double d[8];
	int32_t i[16];
	u64 q[8];
	u8 b[64];
	__m128i x[4];
	__m256i y[2];
	__m512i z;
} in[N], out;

static void fill(void)
{
	u64 seed = 12345;
	for (unsigned n = 0; n < N; n++)
		for (unsigned i = 0; i < 8; i++)
			in[n].q[i] = t_random(&seed);
	/* a few special numbers among them */
	in[3].d[0] = 0.0;
	in[3].d[1] = -0.0;
	in[4].d[2] = 1.0 / 3;
	in[5].q[3] = 1; /* denormal */
	in[6].q[4] = 0x7ff0000000000000ull;
	in[7].q[5] = 0x7ff0000000000001ull; /* signalling NaN */
	for (unsigned n = 20; n < N; n += 2)
		for (unsigned i = 0; i < 16; i++)
			in[n].f[i] = (float)in[n].i[i] / 65536.0f;
}

static void report(const char *name, u64 h)
{
	printf("%s %016" PRIx64 " mxcsr %#x\n", name, h, _mm_getcsr());
	_mm_setcsr(0x1f80);
}

static void sse2(void)
{
	u64 h = T_HASH_INIT;
	for (unsigned n = 0; n + 1 < N; n++) {
		__m128i a = in[n].x[n & 3], b = in[n + 1].x[(n + 1) & 3];
		__m128 af = _mm_castsi128_ps(a), bf = _mm_castsi128_ps(b);
		__m128d ad = _mm_castsi128_pd(a), bd = _mm_castsi128_pd(b);
		__m128i r[] = {
			_mm_add_epi32(a, b), _mm_mullo_epi16(a, b), _mm_madd_epi16(a, b), _mm_sad_epu8(a, b), _mm_packs_epi32(a, b),
			_mm_unpackhi_epi8(a, b), _mm_sll_epi64(a, _mm_and_si128(b, _mm_set1_epi64x(63))), _mm_cmpgt_epi8(a, b),
			_mm_castps_si128(_mm_add_ps(af, bf)), _mm_castps_si128(_mm_mul_ps(af, bf)), _mm_castps_si128(_mm_div_ps(af, bf)),
			_mm_castps_si128(_mm_sqrt_ps(af)), _mm_castpd_si128(_mm_sub_pd(ad, bd)), _mm_castpd_si128(_mm_max_pd(ad, bd)),
			_mm_cvtps_epi32(af), _mm_cvttpd_epi32(ad), _mm_castpd_si128(_mm_cvtps_pd(af)), _mm_castps_si128(_mm_cvtpd_ps(bd)),
			_mm_castps_si128(_mm_cmplt_ps(af, bf)), _mm_shuffle_epi32(a, 0x1b), _mm_mul_epu32(a, b),
		};
		h = t_hash(h, r, sizeof r);
	}
	report("sse2", h);
}

__attribute__((target("sse4.2,ssse3,aes,pclmul"))) static void sse4(void)
{
	u64 h = T_HASH_INIT;
	for (unsigned n = 0; n + 1 < N; n++) {
		__m128i a = in[n].x[0], b = in[n + 1].x[3];
		__m128i r[] = {
			_mm_shuffle_epi8(a, b), _mm_maddubs_epi16(a, b), _mm_abs_epi32(a), _mm_blendv_epi8(a, b, _mm_xor_si128(a, b)),
			_mm_minpos_epu16(a), _mm_castps_si128(_mm_dp_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b), 0xf5)),
			_mm_castpd_si128(_mm_round_pd(_mm_castsi128_pd(a), 1)), _mm_mullo_epi32(a, b), _mm_mpsadbw_epu8(a, b, 5),
			_mm_aesenc_si128(a, b), _mm_aesdeclast_si128(a, b), _mm_clmulepi64_si128(a, b, 0x10),
			_mm_cmpistrm(a, b, 0x4c), _mm_cvtepi8_epi64(a), _mm_packus_epi32(a, b), _mm_alignr_epi8(a, b, 7),
		};
		h = t_hash(h, r, sizeof r);
		h ^= _mm_crc32_u64(h, in[n].q[2]) + (u64)_mm_cmpestri(a, (int)n % 20, b, 9, 0x18);
	}
	report("sse4", h);
}

__attribute__((target("avx2,fma,f16c,bmi,bmi2"))) static void avx2(void)
{
	u64 h = T_HASH_INIT;
	for (unsigned n = 0; n + 1 < N; n++) {
		__m256i a = in[n].y[0], b = in[n + 1].y[1];
		__m256 af = _mm256_castsi256_ps(a), bf = _mm256_castsi256_ps(b);
		__m256d ad = _mm256_castsi256_pd(a), bd = _mm256_castsi256_pd(b);
		__m256i index = _mm256_and_si256(a, _mm256_set1_epi32(N * 16 - 1));
		out.y[1] = b;
		_mm256_maskstore_epi32(&out.i[8], a, b);
		__m256i r[] = {
			_mm256_add_epi8(a, b), _mm256_permutevar8x32_epi32(a, b), _mm256_sllv_epi32(a, b), _mm256_srav_epi32(a, b),
			_mm256_i32gather_epi32((const int *)in, index, 4),
			_mm256_mask_i32gather_epi32(b, (const int *)in, index, a, 4),
			_mm256_maskload_epi32(in[n].i + 3, a), out.y[1],
			_mm256_castps_si256(_mm256_fmadd_ps(af, bf, af)), _mm256_castpd_si256(_mm256_fnmsub_pd(ad, bd, ad)),
			_mm256_castps_si256(_mm256_rsqrt_ps(_mm256_setzero_ps())), _mm256_castpd_si256(_mm256_hadd_pd(ad, bd)),
			_mm256_castps_si256(_mm256_cvtph_ps(in[n].x[2])), _mm256_castsi128_si256(_mm256_cvtps_ph(af, 0)),
			_mm256_permute2x128_si256(a, b, 0x21), _mm256_castps_si256(_mm256_cmp_ps(af, bf, _CMP_NGE_UQ)),
			_mm256_shuffle_epi8(a, b), _mm256_mulhrs_epi16(a, b), _mm256_castpd_si256(_mm256_sqrt_pd(ad)),
		};
		r[13] = _mm256_inserti128_si256(r[13], in[n].x[1], 1);
		h = t_hash(h, r, sizeof r);
		h += _pdep_u64(in[n].q[0], in[n].q[1]) ^ _pext_u64(in[n].q[2], in[n].q[3]) ^ _bzhi_u64(in[n].q[4], n & 127);
		unsigned long long high;
		h ^= _mulx_u64(in[n].q[5], in[n].q[6], &high) + high;
	}
	report("avx2", h);
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd"))) static void avx512(void)
{
	u64 h = T_HASH_INIT;
	for (unsigned n = 0; n + 1 < N; n++) {
		__m512i a = in[n].z, b = in[n + 1].z;
		__m512 af = _mm512_castsi512_ps(a), bf = _mm512_castsi512_ps(b);
		__m512d ad = _mm512_castsi512_pd(a), bd = _mm512_castsi512_pd(b);
		__mmask16 k = (__mmask16)in[n].q[7];
		__mmask64 kb = in[n].q[6];
		__m512i index = _mm512_and_si512(a, _mm512_set1_epi32(N * 16 - 1));
		static int32_t table[N * 16];
		memcpy(table, in, sizeof table);
		_mm512_mask_i32scatter_epi32(table, k, index, b, 4);
		out.z = a;
		_mm512_mask_compressstoreu_epi32(&out, k, b);
		__m512i r[] = {
			_mm512_mask_add_epi32(a, k, a, b), _mm512_maskz_mullo_epi64((__mmask8)k, a, b), _mm512_ternarylogic_epi64(a, b, index, 0x96),
			_mm512_permutex2var_epi32(a, index, b), _mm512_mask_expandloadu_epi32(a, k, in[n].i), out.z,
			_mm512_mask_i32gather_epi32(b, k, index, in, 4), _mm512_conflict_epi32(_mm512_and_si512(a, _mm512_set1_epi32(7))),
			_mm512_lzcnt_epi64(a), _mm512_castps_si512(_mm512_mask_fmadd_round_ps(af, k, bf, af, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)),
			_mm512_castpd_si512(_mm512_getexp_pd(ad)), _mm512_castpd_si512(_mm512_scalef_pd(ad, bd)),
			_mm512_castps_si512(_mm512_getmant_ps(af, 1, 2)), _mm512_castpd_si512(_mm512_roundscale_pd(bd, 0x23)),
			_mm512_mask_loadu_epi8(a, kb, in[n].b + 0), _mm512_movm_epi8(_mm512_cmplt_epu8_mask(a, b)),
			_mm512_cvttps_epu32(bf), _mm512_rorv_epi64(a, b), _mm512_castps_si512(_mm512_div_ps(af, bf)),
			_mm512_castpd_si512(_mm512_fixupimm_pd(ad, bd, index, 0x11)), _mm512_castps_si512(_mm512_range_ps(af, bf, 6)),
			_mm512_sad_epu8(a, b), _mm512_maddubs_epi16(a, b), _mm512_broadcast_i32x4(in[n].x[1]),
		};
		h = t_hash(h, r, sizeof r);
		h = t_hash(h, table, sizeof(int32_t) * 64);
		h ^= (u64)_mm512_reduce_add_epi64(a) + _mm512_cmp_pd_mask(ad, bd, _CMP_UNORD_Q) + _ktestc_mask16_u8(k, (__mmask16)kb);
	}
	report("avx512", h);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bitalg,avx512vpopcntdq,avx512ifma,gfni,vaes,vpclmulqdq"))) static void avx512_more(void)
{
	u64 h = T_HASH_INIT;
	for (unsigned n = 0; n + 1 < N; n++) {
		__m512i a = in[n].z, b = in[n + 1].z;
		out.z = b;
		_mm512_mask_compressstoreu_epi8(&out, in[n].q[1], a);
		__m512i r[] = {
			_mm512_permutexvar_epi8(a, b), _mm512_multishift_epi64_epi8(a, b), out.z, _mm512_shldv_epi16(a, b, a),
			_mm512_dpbusd_epi32(a, b, a), _mm512_dpwssds_epi32(a, b, b), _mm512_popcnt_epi8(a), _mm512_popcnt_epi64(b),
			_mm512_madd52hi_epu64(a, b, a), _mm512_gf2p8affine_epi64_epi8(a, b, 0x5a), _mm512_gf2p8mul_epi8(a, b),
			_mm512_aesenc_epi128(a, b), _mm512_clmulepi64_epi128(a, b, 0x01),
			_mm512_maskz_expandloadu_epi8(in[n].q[2], &in[n + 1]),
		};
		h = t_hash(h, r, sizeof r);
	}
	report("avx512-more", h);
}

int main(void)
{
	unsigned a, b, c, d, b7, c7;
	fill();
	sse2();
	__cpuid(1, a, b, c, d);
	__cpuid_count(7, 0, a, b7, c7, d);
	if (c & bit_SSE4_2 && c & bit_AES && c & bit_PCLMUL)
		sse4();
	if (!(c & bit_OSXSAVE))
		return 0;
	u32 xcr0;
	asm volatile("xgetbv" : "=a"(xcr0) : "c"(0) : "edx");
	if ((xcr0 & 6) != 6)
		return 0;
	if (b7 & bit_AVX2 && c & bit_FMA && c & bit_F16C && b7 & bit_BMI && b7 & bit_BMI2)
		avx2();
	if ((xcr0 & 0xe6) != 0xe6)
		return 0;
	const unsigned need = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX512CD;
	if ((b7 & need) == need) {
		avx512();
		const unsigned more = 1u << 1 | 1u << 6 | 1u << 8 | 1u << 9 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 14;
		if ((c7 & more) == more && b7 & bit_AVX512IFMA)
			avx512_more();
	}
	return 0;
}
