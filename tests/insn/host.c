/* What the host has, and the layout of its XSAVE image (SDM vol. 1 chapter 13). */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>

#include "insn_case.h"

struct host host;

static u64 xgetbv0(void)
{
	u32 a, d;
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (u64)d << 32 | a;
}

#define MAX_LOW_MAPS 32
static struct { u64 start, end; } low_maps[MAX_LOW_MAPS];
static unsigned n_low_maps;

bool host_read_maps(void)
{
	n_low_maps = 0;
	FILE *f = fopen("/proc/self/maps", "re");
	if (!f) {
		fprintf(stderr, "insn: cannot read /proc/self/maps\n");
		return false;
	}
	char line[512];
	while (fgets(line, sizeof(line), f)) {
		unsigned long a, b;
		if (sscanf(line, "%lx-%lx", &a, &b) != 2 || a >= 0x100000000ul)
			continue;
		if (n_low_maps == MAX_LOW_MAPS) {
			fprintf(stderr, "insn: too many mappings below 4 GiB\n");
			fclose(f);
			return false;
		}
		low_maps[n_low_maps].start = a;
		low_maps[n_low_maps++].end = b;
	}
	fclose(f);
	return true;
}

bool host_maps_near(u64 addr, u64 slack)
{
	for (unsigned i = 0; i < n_low_maps; i++)
		if (addr + slack > low_maps[i].start && addr < low_maps[i].end + slack)
			return true;
	return false;
}

bool host_probe(void)
{
	u32 a, b, c, d;
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) {
		fprintf(stderr, "insn: the host has no XSAVE\n");
		return false;
	}
	/* AMX tile data need a permission this program never asks for: the kernel keeps them out of the frame. */
	host.xcr0 = xgetbv0() & ~(u64)(BIT(17) | BIT(18));
	host.xsave_size = 576;
	for (unsigned i = 2; i < 17; i++) {
		if (!(host.xcr0 & BIT(i)))
			continue;
		__cpuid_count(0xd, i, a, b, c, d);
		if (b + a > host.xsave_size)
			host.xsave_size = b + a;
		switch (i) {
		case 2: host.off_avx = b; break;
		case 5: host.off_opmask = b; break;
		case 6: host.off_zmm_hi = b; break;
		case 7: host.off_hi16 = b; break;
		}
	}
	host.avx512 = host.off_opmask && host.off_zmm_hi && host.off_hi16;
	if (host.xsave_size > XSAVE_MAX) {
		fprintf(stderr, "insn: XSAVE image of %u bytes\n", host.xsave_size);
		return false;
	}
	host.fsgsbase = getauxval(AT_HWCAP2) & 2;
	if (!host.fsgsbase) {
		fprintf(stderr, "insn: the host kernel does not enable FSGSBASE\n");
		return false;
	}
	return true;
}

void xsave_set_vec(u8 *image, unsigned n, const u64 val[8])
{
	const u8 *v = (const u8 *)val;
	if (n >= 16) {
		if (host.off_hi16)
			memcpy(image + host.off_hi16 + (n - 16) * 64, v, 64);
		return;
	}
	memcpy(image + 160 + n * 16, v, 16);
	if (host.off_avx)
		memcpy(image + host.off_avx + n * 16, v + 16, 16);
	if (host.off_zmm_hi)
		memcpy(image + host.off_zmm_hi + n * 32, v + 32, 32);
}

void xsave_get_vec(const u8 *image, unsigned n, u64 val[8])
{
	u8 *v = (u8 *)val;
	memset(v, 0, 64);
	if (n >= 16) {
		if (host.off_hi16)
			memcpy(v, image + host.off_hi16 + (n - 16) * 64, 64);
		return;
	}
	memcpy(v, image + 160 + n * 16, 16);
	if (host.off_avx)
		memcpy(v + 16, image + host.off_avx + n * 16, 16);
	if (host.off_zmm_hi)
		memcpy(v + 32, image + host.off_zmm_hi + n * 32, 32);
}

void xsave_normalise(u8 *image)
{
	u64 bv;
	memcpy(&bv, image + 512, 8);
	if (!(bv & 1)) {
		static const u8 init[32] = { 0x7f, 0x03 };
		memcpy(image, init, 24);
		memset(image + 32, 0, 128);
	}
	if (!(bv & 2))
		memset(image + 160, 0, 256);
	if (!(bv & 4) && host.off_avx)
		memset(image + host.off_avx, 0, 256);
	if (!(bv & 32) && host.off_opmask)
		memset(image + host.off_opmask, 0, 64);
	if (!(bv & 64) && host.off_zmm_hi)
		memset(image + host.off_zmm_hi, 0, 512);
	if (!(bv & 128) && host.off_hi16)
		memset(image + host.off_hi16, 0, 1024);
	image[5] = 0;
	memset(image + 28, 0, 4); /* MXCSR_MASK */
	for (unsigned i = 0; i < 8; i++)
		memset(image + 32 + i * 16 + 10, 0, 6);
	memset(image + 416, 0, 160); /* reserved, software's own, header */
	memset(image + 512, 0xff, 8); /* every component valid: normalising again changes nothing */
}

void arena_place(u8 *code, u8 *data, const struct insn_case *c)
{
	u64 off = c->rip - CODE_BASE;
	for (unsigned i = 0; i < c->len && off + i < CODE_SIZE; i++)
		code[off + i] = c->bytes[i];
	for (unsigned p = 0; p < c->n_patches; p++) {
		const struct case_patch *q = &c->patch[p];
		for (unsigned i = 0; i < q->len; i++)
			if (q->addr + i - DATA_BASE < DATA_RW_SIZE)
				data[q->addr + i - DATA_BASE] = q->b[i];
	}
}

static void collect_part(u8 *mem, const u8 *baseline, u64 size, u64 first_line, struct insn_result *r)
{
	for (u64 page = 0; page < size; page += PAGE_SIZE) {
		if (!memcmp(mem + page, baseline + page, PAGE_SIZE))
			continue;
		for (u64 off = page; off < page + PAGE_SIZE; off += 64) {
			if (!memcmp(mem + off, baseline + off, 64))
				continue;
			r->line_no[r->n_lines] = (u16)(first_line + off / 64);
			memcpy(r->line[r->n_lines++], mem + off, 64);
			memcpy(mem + off, baseline + off, 64);
		}
	}
}

void arena_collect(u8 *code, u8 *data, const u8 *baseline, struct insn_result *r)
{
	r->n_lines = 0;
	collect_part(code, baseline, CODE_SIZE, 0, r);
	/* The read-only page cannot have changed: writing the baseline back to it would fault. */
	collect_part(data, baseline + CODE_SIZE, DATA_RW_SIZE, CODE_SIZE / 64, r);
}
