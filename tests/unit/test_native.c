/* Native execution (src/cpu/native*.c, fpu*.c) against known results: registers, memory operands, faults, masks,
 * gathers, x87 pointers.  The rest of the CPU is replaced by a tiny linear memory of four pages. */
#include <Zydis/Zydis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/fpu.h"
#include "cpu/native.h"
#include "engine/native_memory.h"

/* ---- the world around native.c ---- */

enum { ABSENT, RO, RW, MMIO };
enum { DONE = 100, UNIMPLEMENTED = 101 };
#define BASE 0x10000ull
#define PAGES 4
static u8 *ram;
static int page[PAGES];
static u8 mmio_value;
static unsigned mmio_reads, mmio_writes;

static int failures, checks;
static struct cpu cpu;
static struct native native;
static struct native_memory nm;
static struct { const char *name; } now;

#define CHECK(x)                                                                                              \
	do {                                                                                                  \
		checks++;                                                                                     \
		if (!(x)) {                                                                                   \
			failures++;                                                                           \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, now.name, #x);                 \
		}                                                                                             \
	} while (0)

void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "assertion %s at %s:%d\n", expr, file, line);
	abort();
}

int exc_raise(struct cpu *c, const struct insn *i, u8 vector)
{
	c->exc = (struct exception){ .vector = vector };
	return STEP_FAULT;
}
int exc_raise_error(struct cpu *c, const struct insn *i, u8 vector, u32 error)
{
	exc_raise(c, i, vector);
	c->exc.has_error = true;
	c->exc.error = error;
	return STEP_FAULT;
}
int cpu_unimplemented(struct cpu *c, const struct insn *i, const char *what)
{
	return UNIMPLEMENTED;
}
u64 insn_next_rip(const struct cpu *c, const struct insn *i) { return insn_rip(c, i) + i->len; }
u64 insn_ea_slow(struct cpu *c, const struct insn *i, unsigned size, enum access a, int *fault)
{
	u64 ea = insn_lea(c, i);
	if (i->seg == FS || i->seg == GS || !cpu_code64(c))
		ea += c->seg[i->seg].base;
	return ea;
}

static int check_page(struct cpu *c, u64 gva, enum access a)
{
	u64 n = (gva - BASE) / PAGE_SIZE;
	if (gva < BASE || n >= PAGES || page[n] == ABSENT || (a == ACC_W && page[n] == RO)) {
		exc_raise_error(c, NULL, VEC_PF, a == ACC_W ? PF_W : 0);
		c->exc.cr2 = gva;
		return STEP_FAULT;
	}
	return 0;
}
int mem_probe(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a)
{
	int r = check_page(c, gva, a);
	u64 last = gva + size - 1;
	if (!r && (last ^ gva) & PAGE_MASK)
		r = check_page(c, last & PAGE_MASK, a);
	return r;
}
static bool is_mmio(u64 gva) { return page[(gva - BASE) / PAGE_SIZE] == MMIO; }
int mem_read_slow(struct cpu *c, const struct insn *i, u64 gva, void *buf, unsigned size)
{
	int r = mem_probe(c, i, gva, size, ACC_R);
	for (unsigned k = 0; !r && k < size; k++) {
		mmio_reads += is_mmio(gva + k);
		((u8 *)buf)[k] = is_mmio(gva + k) ? mmio_value : ram[gva - BASE + k];
	}
	return r;
}
int mem_write_slow(struct cpu *c, const struct insn *i, u64 gva, const void *buf, unsigned size)
{
	int r = mem_probe(c, i, gva, size, ACC_W);
	for (unsigned k = 0; !r && k < size; k++)
		if (is_mmio(gva + k)) {
			if (!mmio_writes++)
				return STEP_EXIT; /* the first time: leave, run again */
		} else {
			ram[gva - BASE + k] = ((const u8 *)buf)[k];
		}
	return r;
}
int mem_ptr(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a, void **p)
{
	int r = mem_probe(c, i, gva, size, a);
	*p = r || ((gva + size - 1) ^ gva) & PAGE_MASK || is_mmio(gva) ? NULL : ram + (gva - BASE);
	return r;
}

static void on_signal(int sig, siginfo_t *si, void *uc)
{
	greg_t *g = ((ucontext_t *)uc)->uc_mcontext.gregs;
	if (!native_fault(&cpu, sig, (int)g[REG_TRAPNO], (u64)g[REG_ERR], uc)) {
		static const char text[] = "signal outside a stub\n";
		if (write(2, text, sizeof(text) - 1) < 0)
			_exit(2);
		_exit(1);
	}
}

/* ---- running one instruction ---- */

#define INSN(name, text)                                                                                      \
	extern const u8 i_##name[], i_##name##_end[];                                                         \
	__asm__(".pushsection .rodata\n.globl i_" #name "\ni_" #name ":\n\t.intel_syntax noprefix\n\t" text    \
		"\n\t.att_syntax\n.globl i_" #name "_end\ni_" #name "_end:\n\t.byte 0x90\n.popsection\n")
#define INSN32(name, text) INSN(name, ".code32\n\t" text "\n\t.code64")
#define INSN16(name, text) INSN(name, ".code16\n\t" text "\n\t.code64")
#define RUN(name) run(#name, i_##name, (size_t)(i_##name##_end - i_##name), 64)
#define RUN32(name) run(#name, i_##name, (size_t)(i_##name##_end - i_##name), 32)
#define RUN16(name) run(#name, i_##name, (size_t)(i_##name##_end - i_##name), 16)

static int op_done(struct cpu *c, const struct insn *i) { return DONE; }

static u8 index_of(ZydisRegister r)
{
	return r == ZYDIS_REGISTER_NONE ? R_ZERO : (u8)ZydisRegisterGetId(r);
}

static int run(const char *name, const u8 *bytes, size_t len, int bits)
{
	ZydisDecoder d;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand o[ZYDIS_MAX_OPERAND_COUNT];
	struct insn i[2] = { { .base = R_ZERO, .index = R_ZERO, .seg = DS } };
	now.name = name;
	fpu_save(&cpu);
	ZydisDecoderInit(&d, bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16,
			 bits == 64 ? ZYDIS_STACK_WIDTH_64 : bits == 32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, bytes, len, &z, o)) || z.length != len) {
		fprintf(stderr, "%s: not decoded\n", name);
		failures++;
		return -1;
	}
	cpu.efer = bits == 64 ? EFER_LMA | EFER_LME : 0;
	cpu.seg[CS].l = bits == 64;
	i->len = z.length;
	i->opsize = (u8)(z.operand_width / 8);
	i->addrsize = z.address_width / 8;
	i[1].fn = op_done;
	for (unsigned k = 0; k < z.operand_count_visible; k++)
		if (o[k].type == ZYDIS_OPERAND_TYPE_MEMORY) {
			i->flags |= IF_MEM;
			i->base = index_of(o[k].mem.base);
			if (o[k].mem.type != ZYDIS_MEMOP_TYPE_VSIB)
				i->index = index_of(o[k].mem.index);
			i->scale = (u8)(o[k].mem.scale ? __builtin_ctz(o[k].mem.scale) : 0);
			i->disp = o[k].mem.disp.value;
			if (o[k].mem.segment == ZYDIS_REGISTER_FS) {
				i->seg = FS;
				i->flags |= IF_SLOW_EA;
			}
			if (bits != 64 || i->addrsize != 8)
				i->flags |= IF_SLOW_EA;
		}
	if (!native_space(&native, 1))
		native_reset(&native);
	if (!native_prepare(&cpu, i, bytes, &z, o)) {
		fprintf(stderr, "%s: refused\n", name);
		failures++;
		return -1;
	}
	cpu.r[R_RIP] = 0xffffffff81000123;
	int r = i->fn(&cpu, i);
	fpu_save(&cpu);
	return r;
}

static void reset(void)
{
	memset(cpu.r, 0, sizeof(cpu.r));
	cpu.aflags = 0;
	cpu.cr0 = CR0_PE | CR0_NE | CR0_MP;
	cpu.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	cpu.xcr0 = native.host_xcr0;
	fpu_reset(&cpu, false);
	for (unsigned k = 0; k < PAGES; k++)
		page[k] = RW;
	for (unsigned k = 0; k < PAGES * PAGE_SIZE; k++)
		ram[k] = (u8)(k * 7 + (k >> 8));
	mmio_reads = mmio_writes = 0;
}

static int faulted(int step, u8 vector) { return step == STEP_FAULT && cpu.exc.vector == vector; }

static void set_v32(unsigned n, u32 first, u32 step)
{
	u32 v[16];
	for (unsigned k = 0; k < 16; k++)
		v[k] = first + k * step;
	fpu_set_vector(&cpu, n, (u8 *)v);
}
static const u8 *vec(unsigned n)
{
	static u8 v[4][64];
	static unsigned turn;
	u8 *p = v[turn++ & 3];
	fpu_get_vector(&cpu, n, p);
	return p;
}
static u32 v32(unsigned n, unsigned k) { return ((const u32 *)vec(n))[k]; }

/* ---- general registers ---- */

INSN(popcnt, "popcnt rax, rbx");
INSN(popcnt_rsp, "popcnt rsp, rsp");
INSN(andn_rsp, "andn rsp, rsp, r12");
INSN(mulx, "mulx r13, rbx, [rsi+rcx*8+16]");
INSN(adcx, "adcx r15, rbp");
INSN(adox, "adox rsp, [rip+0x20]");
INSN(xadd_ah, "xadd ah, bl");
INSN(crc32_high, "crc32 ecx, bh");
INSN(bswap_rsp, "bswap rsp");
INSN(movbe, "movbe [rsp+8], sp");
INSN(cmpxchg16b, "lock cmpxchg16b [rsi]");
INSN(xadd_mem, "lock xadd fs:[rdi-8], r10");
INSN(div_cl, "div rcx");
INSN(shl_cl, "shl r14d, cl");
INSN(pdep, "pdep r9, r9, rsp");
INSN(spl, "cmpxchg spl, dl");
INSN(movnti, "movnti [rsi], rsp");

static void test_integer(void)
{
	reset();
	cpu.r[RBX] = 0xff00ff;
	CHECK(RUN(popcnt) == DONE && cpu.r[RAX] == 16 && !(cpu.aflags & FL_ZF));
	cpu.r[RSP] = 0xffffffff00000001;
	CHECK(RUN(popcnt_rsp) == DONE && cpu.r[RSP] == 33);
	cpu.r[R12] = 0xff;
	CHECK(RUN(andn_rsp) == DONE && cpu.r[RSP] == (0xff & ~33ull));
	cpu.r[RSI] = BASE;
	cpu.r[RCX] = 2;
	*(u64 *)(ram + 32) = 1ull << 40;
	cpu.r[RDX] = 0x123456789;
	CHECK(RUN(mulx) == DONE && cpu.r[R13] == 0x123456789 >> 24 && cpu.r[RBX] == 0x123456789ull << 40);
	cpu.r[R15] = ~0ull;
	cpu.r[RBP] = 0;
	cpu.aflags = FL_CF | FL_OF | FL_ZF | FL_SF;
	CHECK(RUN(adcx) == DONE && cpu.r[R15] == 0 && (cpu.aflags & FL_ARITH) == (FL_CF | FL_OF | FL_ZF | FL_SF));
	cpu.r[RAX] = 0x1234;
	cpu.r[RBX] = 0x9f;
	CHECK(RUN(xadd_ah) == DONE && cpu.r[RAX] == 0xb134 && cpu.r[RBX] == 0x12);
	cpu.r[RBX] = 0xab00;
	cpu.r[RCX] = 0xffffffff00000000;
	CHECK(RUN(crc32_high) == DONE && cpu.r[RCX] != 0 && cpu.r[RCX] >> 32 == 0);
	cpu.r[RSP] = 0x0102030405060708;
	CHECK(RUN(bswap_rsp) == DONE && cpu.r[RSP] == 0x0807060504030201);
	cpu.r[RSP] = BASE + 0x42;
	CHECK(RUN(movbe) == DONE && ram[0x4a] == 0x00 && ram[0x4b] == 0x42 && cpu.r[RSP] == BASE + 0x42);
	memset(ram, 0, 32);
	cpu.r[RAX] = cpu.r[RDX] = 0;
	cpu.r[RBX] = 5;
	cpu.r[RCX] = 6;
	CHECK(RUN(cmpxchg16b) == DONE && ram[0] == 5 && ram[8] == 6 && (cpu.aflags & FL_ZF));
	CHECK(RUN(cmpxchg16b) == DONE && !(cpu.aflags & FL_ZF) && cpu.r[RAX] == 5 && cpu.r[RDX] == 6);
	cpu.r[RSI] = BASE + 8;
	CHECK(faulted(RUN(cmpxchg16b), VEC_GP));
	cpu.seg[FS].base = BASE;
	cpu.r[RDI] = 24;
	cpu.r[R10] = 3;
	*(u64 *)(ram + 16) = 40;
	CHECK(RUN(xadd_mem) == DONE && *(u64 *)(ram + 16) == 43 && cpu.r[R10] == 40);
	/* across pages: not in place */
	cpu.r[RDI] = PAGE_SIZE + 5;
	*(u64 *)(ram + PAGE_SIZE - 3) = 1;
	CHECK(RUN(xadd_mem) == DONE && *(u64 *)(ram + PAGE_SIZE - 3) == 41 && cpu.r[R10] == 1);
	page[1] = RO;
	CHECK(faulted(RUN(xadd_mem), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE && *(u64 *)(ram + PAGE_SIZE - 3) == 41 &&
	      cpu.r[R10] == 1);
	/* MMIO: leaves once, is executed again and adds once */
	page[1] = MMIO;
	mmio_value = 0;
	cpu.r[RDI] = PAGE_SIZE + 64;
	cpu.r[R10] = 9;
	CHECK(RUN(xadd_mem) == STEP_EXIT && cpu.r[R10] == 9);
	CHECK(RUN(xadd_mem) == DONE && cpu.r[R10] == 0);
	cpu.r[RAX] = 7;
	cpu.r[RDX] = 1;
	cpu.r[RCX] = 0;
	CHECK(faulted(RUN(div_cl), VEC_DE) && cpu.r[RAX] == 7 && cpu.r[RDX] == 1);
	cpu.r[RDX] = 0;
	cpu.r[RCX] = 2;
	CHECK(RUN(div_cl) == DONE && cpu.r[RAX] == 3 && cpu.r[RDX] == 1);
	cpu.aflags = FL_CF | FL_PF;
	cpu.r[RCX] = 32;
	cpu.r[R14] = ~0ull;
	CHECK(RUN(shl_cl) == DONE && (cpu.aflags & FL_ARITH) == (FL_CF | FL_PF) && cpu.r[R14] == 0xffffffff);
	cpu.r[R9] = 5;
	cpu.r[RSP] = 0xf0;
	CHECK(RUN(pdep) == DONE && cpu.r[R9] == 0x50 && cpu.r[RSP] == 0xf0);
	cpu.r[RAX] = 0xf0;
	cpu.r[RDX] = 0x33;
	CHECK(RUN(spl) == DONE && cpu.r[RSP] == 0x33);
	cpu.r[RSI] = BASE;
	CHECK(RUN(movnti) == DONE && *(u64 *)ram == 0x33);
	cpu.cr0 = 0;
	CHECK(faulted(RUN(pdep), VEC_UD)); /* VEX in real mode */
}

/* ---- vectors ---- */

INSN(movaps_load, "movaps xmm9, [rsi]");
INSN(movaps_store, "movaps [rsi+r8*2], xmm9");
INSN(movups_store, "movups [rsi], xmm9");
INSN(addps_mem, "addps xmm1, [rsi]");
INSN(vaddps_mem, "vaddps ymm1, ymm2, [rsi]");
INSN(divps, "divps xmm0, xmm1");
INSN(vpxor, "vpxor ymm3, ymm3, ymm3");
INSN(vpaddd_z, "vpaddd zmm17, zmm30, [rsi+0x40]");
INSN(vaddps_bcast, "vaddps zmm1, zmm2, dword ptr [rsi+4]{1to16}");
INSN(vpextrq, "vpextrq rsp, xmm9, 1");
INSN(kmov, "kmovq k3, rsp");
INSN(pcmpestri, "pcmpestri xmm1, xmm2, 0");
INSN(vzeroall, "vzeroall");
INSN(movq_mmx, "movq mm3, rsp");
INSN(cvttps, "vcvttss2si r13, dword ptr [rsi]");
INSN(vmovsh, "vmovw xmm31, eax");
INSN(ldmxcsr, "ldmxcsr [rsi]");
INSN(stmxcsr, "stmxcsr [rsi]");
INSN(clflush, "clflush [rsi]");
INSN(prefetch, "prefetcht0 [rsi]");
INSN(maskmov, "maskmovdqu xmm1, xmm2");
INSN(movdir64b, "movdir64b rsp, [rsi]");

static void test_vector(void)
{
	reset();
	cpu.r[RSI] = BASE + 64;
	CHECK(RUN(movaps_load) == DONE && !memcmp(vec(9), ram + 64, 16));
	cpu.r[R8] = 0x80;
	CHECK(RUN(movaps_store) == DONE && !memcmp(ram + 64, ram + 64 + 0x100, 16));
	cpu.r[RSI] = BASE + 8;
	CHECK(faulted(RUN(movaps_load), VEC_GP) && cpu.exc.has_error && cpu.exc.error == 0);
	CHECK(faulted(RUN(addps_mem), VEC_GP));
	page[0] = ABSENT;
	CHECK(faulted(RUN(movaps_load), VEC_GP)); /* before the page fault */
	CHECK(faulted(RUN(vaddps_mem), VEC_PF) && cpu.exc.cr2 == BASE + 8);
	cpu.r[RSI] = BASE + 16;
	CHECK(faulted(RUN(movaps_load), VEC_PF) && cpu.exc.cr2 == BASE + 16);

	/* across pages */
	page[0] = RW;
	cpu.r[RSI] = BASE + PAGE_SIZE - 5;
	CHECK(RUN(movups_store) == DONE && !memcmp(vec(9), ram + PAGE_SIZE - 5, 16));
	set_v32(9, 1, 1);
	page[1] = RO;
	u8 before = ram[PAGE_SIZE - 5];
	CHECK(faulted(RUN(movups_store), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE && ram[PAGE_SIZE - 5] == before);
	page[1] = RW;

	/* SIMD exceptions */
	set_v32(0, 0x3f800000, 0);
	set_v32(1, 0, 0);
	fpu_set_mxcsr(&cpu, 0x1f80 & ~0x200u); /* zero divide unmasked */
	CHECK(faulted(RUN(divps), VEC_XM) && (fpu_get_mxcsr(&cpu) & 4) && v32(0, 0) == 0x3f800000);
	cpu.cr4 &= ~CR4_OSXMMEXCPT;
	CHECK(faulted(RUN(divps), VEC_UD));
	cpu.cr4 |= CR4_OSXMMEXCPT;
	fpu_set_mxcsr(&cpu, 0x1f80);
	CHECK(RUN(divps) == DONE && v32(0, 0) == 0x7f800000 && fpu_get_mxcsr(&cpu) == 0x1f84);

	cpu.r[RSI] = BASE;
	*(u32 *)ram = 0x1fa0;
	CHECK(RUN(ldmxcsr) == DONE && fpu_get_mxcsr(&cpu) == 0x1fa0);
	*(u32 *)ram = 0x80001f80;
	CHECK(faulted(RUN(ldmxcsr), VEC_GP) && fpu_get_mxcsr(&cpu) == 0x1fa0);
	CHECK(RUN(stmxcsr) == DONE && *(u32 *)ram == 0x1fa0);

	/* implicit destination, byte mask */
	set_v32(1, 0x11111111, 0);
	set_v32(2, 0x80000080, 0);
	memset(ram, 0, 4096);
	cpu.r[RDI] = BASE + 3;
	CHECK(RUN(maskmov) == DONE && ram[3] == 0x11 && ram[4] == 0 && ram[6] == 0x11 && ram[7] == 0x11);
	CHECK(cpu.r[RDI] == BASE + 3);

	/* text comparison: rax, rdx in, rcx and flags out */
	memset(ram, 'x', 64);
	set_v32(1, 0x64636261, 0);
	set_v32(2, 0x64645a5a, 0);
	cpu.r[RAX] = 4;
	cpu.r[RDX] = 16;
	CHECK(RUN(pcmpestri) == DONE && cpu.r[RCX] == 2 && (cpu.aflags & FL_CF));

	set_v32(9, 7, 1);
	if (native.host_xcr0 & BIT(XC_AVX)) {
		CHECK(RUN(vpextrq) == DONE && cpu.r[RSP] == 0xa00000009);
		u32 f = 0xc2280000; /* -42.0f */
		memcpy(ram, &f, 4);
		CHECK(RUN(cvttps) == DONE && (s64)cpu.r[R13] == -42);
		CHECK(RUN(vzeroall) == DONE && v32(9, 0) == 0);
	}
	cpu.r[RSP] = 0x1122334455667788;
	CHECK(RUN(movq_mmx) == DONE);
	u8 st[10];
	fpu_get_st(&cpu, 3, st);
	CHECK(*(u64 *)st == 0x1122334455667788);

	cpu.r[RSI] = 0x5000;
	CHECK(RUN(prefetch) == DONE);
	CHECK(faulted(RUN(clflush), VEC_PF));

	u32 r[4];
	__asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(7), "c"(0));
	cpu.r[RSI] = BASE + 1;
	cpu.r[RSP] = BASE + 128;
	if (r[2] & BIT(28)) {
		for (unsigned k = 0; k < 64; k++)
			ram[1 + k] = (u8)k;
		CHECK(RUN(movdir64b) == DONE && !memcmp(ram + 1, ram + 128, 64));
		cpu.r[RSP]++;
		CHECK(faulted(RUN(movdir64b), VEC_GP));
	} else {
		CHECK(faulted(RUN(movdir64b), VEC_UD));
	}
}

static void test_enable(void)
{
	reset();
	cpu.r[RSI] = BASE;
	cpu.cr0 |= CR0_TS;
	CHECK(faulted(RUN(movaps_load), VEC_NM));
	CHECK(faulted(RUN(vpxor), VEC_NM));
	CHECK(faulted(RUN(movq_mmx), VEC_NM));
	CHECK(RUN(popcnt) == DONE);
	cpu.cr0 = (cpu.cr0 & ~CR0_TS) | CR0_EM;
	CHECK(faulted(RUN(movaps_load), VEC_UD));
	CHECK(faulted(RUN(movq_mmx), VEC_UD));
	cpu.cr0 &= ~CR0_EM;
	cpu.cr4 &= ~CR4_OSFXSR;
	CHECK(faulted(RUN(movaps_load), VEC_UD));
	cpu.cr4 = CR4_OSFXSR;
	CHECK(faulted(RUN(vpxor), VEC_UD));
	cpu.cr4 |= CR4_OSXSAVE;
	cpu.xcr0 = 3;
	CHECK(faulted(RUN(vpxor), VEC_UD));
	cpu.xcr0 = 7;
	if (native.host_xcr0 & BIT(XC_AVX))
		CHECK(RUN(vpxor) == DONE);
	CHECK(faulted(RUN(vpaddd_z), VEC_UD));
	CHECK(faulted(RUN(kmov), VEC_UD));
}

/* ---- masks ---- */

INSN(vmaskmov_load, "vmaskmovps ymm1, ymm2, [rsi]");
INSN(vmaskmov_store, "vmaskmovps [rsi], ymm2, ymm1");
INSN(kload, "vmovdqu32 zmm5{k1}{z}, [rsi]");
INSN(kstore, "vmovdqu8 [rsi]{k1}, zmm5");
INSN(kbcast, "vpaddd zmm1{k1}, zmm5, dword ptr [rsi]{1to16}");
INSN(compress, "vpcompressd [rsi]{k1}, zmm5");
INSN(vmovss_k, "vmovss xmm1{k1}, dword ptr [rsi]");
INSN(vpaddd_k, "vpaddd zmm1{k1}, zmm5, [rsi]");

static void test_masks(void)
{
	if (!(native.host_xcr0 & BIT(XC_AVX)))
		return;
	reset();
	/* 8 elements, the last three behind the edge */
	u32 m[16] = { ~0u, ~0u, ~0u, ~0u, ~0u, 0, 0, 0 };
	page[1] = ABSENT;
	cpu.r[RSI] = BASE + PAGE_SIZE - 20;
	fpu_set_vector(&cpu, 2, (u8 *)m);
	CHECK(RUN(vmaskmov_load) == DONE && !memcmp(vec(1), ram + PAGE_SIZE - 20, 20) && v32(1, 5) == 0);
	m[6] = ~0u;
	fpu_set_vector(&cpu, 2, (u8 *)m);
	CHECK(faulted(RUN(vmaskmov_load), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE + 4);
	page[1] = RW;
	u8 was[64];
	memcpy(was, ram + PAGE_SIZE - 20, 32);
	set_v32(1, 0xabcd0000, 1);
	CHECK(RUN(vmaskmov_store) == DONE && *(u32 *)(ram + PAGE_SIZE - 20) == 0xabcd0000 &&
	      !memcmp(ram + PAGE_SIZE, was + 20, 4) && *(u32 *)(ram + PAGE_SIZE + 4) == 0xabcd0006);
	page[0] = RO;
	memset(m, 0, 24);
	fpu_set_vector(&cpu, 2, (u8 *)m);
	CHECK(RUN(vmaskmov_store) == DONE);
	memset(m, 0, 64);
	page[0] = page[1] = ABSENT;
	fpu_set_vector(&cpu, 2, (u8 *)m);
	CHECK(RUN(vmaskmov_load) == DONE && v32(1, 0) == 0);

	if (!(native.host_xcr0 & BIT(XC_OPMASK)))
		return;
	reset();
	page[0] = ABSENT;
	cpu.r[RSI] = BASE + PAGE_SIZE - 8;
	fpu_set_k(&cpu, 1, 0xfffc);
	CHECK(RUN(kload) == DONE && v32(5, 0) == 0 && v32(5, 2) == *(u32 *)(ram + PAGE_SIZE));
	fpu_set_k(&cpu, 1, 0xfffe);
	CHECK(faulted(RUN(kload), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE - 4);
	fpu_set_k(&cpu, 1, BIT(8) | BIT(63));
	u8 b = ram[PAGE_SIZE + 1];
	CHECK(RUN(kstore) == DONE && ram[PAGE_SIZE] == vec(5)[8] && ram[PAGE_SIZE + 1] == b &&
	      ram[PAGE_SIZE + 55] == vec(5)[63]);
	fpu_set_k(&cpu, 1, BIT(3));
	CHECK(faulted(RUN(kstore), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE - 5 && cpu.exc.error == PF_W);
	/* within one absent page */
	cpu.r[RSI] = BASE + 64;
	fpu_set_k(&cpu, 1, 0);
	CHECK(RUN(kbcast) == DONE && RUN(compress) == DONE && RUN(kload) == DONE && RUN(vpaddd_k) == DONE);
	fpu_set_k(&cpu, 1, 2);
	CHECK(RUN(vmovss_k) == DONE);
	CHECK(faulted(RUN(kbcast), VEC_PF) && cpu.exc.cr2 == BASE + 64);
	CHECK(faulted(RUN(compress), VEC_PF));
	/* operand of one element at the end of a page */
	page[0] = RW;
	page[1] = ABSENT;
	cpu.r[RSI] = BASE + PAGE_SIZE - 4;
	CHECK(RUN(kbcast) == DONE);
	cpu.r[RSI] -= 4;
	CHECK(RUN(vaddps_bcast) == DONE);
	cpu.r[RSI] = BASE + PAGE_SIZE - 12;
	fpu_set_k(&cpu, 1, 0x8421 & ~0x8000u);
	set_v32(5, 100, 1);
	CHECK(RUN(compress) == DONE && *(u32 *)(ram + PAGE_SIZE - 12) == 100 && *(u32 *)(ram + PAGE_SIZE - 8) == 105 &&
	      *(u32 *)(ram + PAGE_SIZE - 4) == 110);
	page[1] = RW;
	fpu_set_k(&cpu, 1, 0x8421);
	u32 next = *(u32 *)(ram + PAGE_SIZE + 4);
	CHECK(RUN(compress) == DONE && *(u32 *)(ram + PAGE_SIZE) == 115 && *(u32 *)(ram + PAGE_SIZE + 4) == next);
	/* EVEX displacement compression */
	cpu.r[RSI] = BASE;
	set_v32(30, 1000, 1);
	CHECK(RUN(vpaddd_z) == DONE && v32(17, 3) == 1003 + *(u32 *)(ram + 64 + 12));
	cpu.r[RSP] = 0x123456789abcdef;
	CHECK(RUN(kmov) == DONE && fpu_get_k(&cpu, 3) == 0x123456789abcdef);
	cpu.r[RAX] = 0x4321;
	int r = RUN(vmovsh);
	CHECK((r == DONE && v32(31, 0) == 0x4321) || faulted(r, VEC_UD));
}

/* ---- gathers ---- */

INSN(vgatherdps, "vgatherdps ymm1, [rsi+ymm2*4+4], ymm3");
INSN(vgatherqpd, "vgatherqpd zmm1{k2}, [rsi+zmm22*1]");
INSN(vpscatterdd, "vpscatterdd [rsi+zmm2*4]{k2}, zmm1");

static void test_gather(void)
{
	if (!(native.host_xcr0 & BIT(XC_AVX)))
		return;
	reset();
	u32 idx[16], mask[16];
	for (unsigned k = 0; k < 16; k++) {
		idx[k] = k == 5 ? 1024 : k * 3; /* element 5: second page */
		mask[k] = k == 2 ? 0x7fffffff : 0x80000000;
	}
	fpu_set_vector(&cpu, 2, (u8 *)idx);
	fpu_set_vector(&cpu, 3, (u8 *)mask);
	set_v32(1, 0xeeee0000, 1);
	cpu.r[RSI] = BASE;
	page[1] = ABSENT;
	CHECK(faulted(RUN(vgatherdps), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE + 4);
	CHECK(v32(1, 4) == *(u32 *)(ram + 4 + 48) && v32(1, 5) == 0xeeee0005 && v32(1, 2) == 0xeeee0002);
	CHECK(v32(3, 4) == 0 && v32(3, 5) == ~0u && v32(3, 7) == ~0u);
	page[1] = RW;
	memset(ram, 0x55, 4); /* finished elements are not read again */
	CHECK(RUN(vgatherdps) == DONE && v32(1, 5) == *(u32 *)(ram + PAGE_SIZE + 4) && v32(1, 2) == 0xeeee0002);
	CHECK(v32(3, 2) == 0 && v32(3, 7) == 0 && v32(1, 8) == 0);

	if (!(native.host_xcr0 & BIT(XC_OPMASK)))
		return;
	u64 q[8];
	for (unsigned k = 0; k < 8; k++)
		q[k] = k * 8;
	q[7] = -(u64)BASE; /* address 0 */
	fpu_set_vector(&cpu, 22, (u8 *)q);
	fpu_set_k(&cpu, 2, 0xff);
	CHECK(faulted(RUN(vgatherqpd), VEC_PF) && cpu.exc.cr2 == 0 && fpu_get_k(&cpu, 2) == 0x80);
	fpu_set_k(&cpu, 2, 0x7f);
	CHECK(RUN(vgatherqpd) == DONE && fpu_get_k(&cpu, 2) == 0 && !memcmp(vec(1), ram, 56));
	set_v32(1, 7, 7);
	fpu_set_vector(&cpu, 2, (u8 *)idx);
	fpu_set_k(&cpu, 2, 0x22);
	page[1] = RO;
	CHECK(faulted(RUN(vpscatterdd), VEC_PF) && cpu.exc.error == PF_W && fpu_get_k(&cpu, 2) == 0x20 &&
	      *(u32 *)(ram + 12) == 14);
}

/* ---- x87 ---- */

INSN(fninit, "fninit");
INSN(fld1, "fld1");
INSN(fldz, "fldz");
INSN(fdiv, "fdivp st(1), st");
INSN(fld_mem, "fld qword ptr [rsi+rbx]");
INSN(fdiv_mem, "fdiv dword ptr [rsi]");
INSN(fstp80, "fstp tbyte ptr [rsi]");
INSN(fwait, "fwait");
INSN(fnstenv, "fnstenv [rsi]");
INSN(fnstenv16, "data16 fnstenv [rsi]");
INSN(fldenv, "fldenv [rsi]");
INSN(fnsave, "fnsave [rsi]");
INSN(frstor, "frstor [rsi]");
INSN(fldcw, "fldcw [rsi]");
INSN(fnstsw, "fnstsw ax");
INSN(fcomi, "fcomi st, st(1)");
INSN(fxsave64, "fxsave64 [rsi]");
INSN(fxsave, "fxsave [rsi]");
INSN(fxrstor64, "fxrstor64 [rsi]");

static void set_fcw(u16 v)
{
	u64 rsi = cpu.r[RSI];
	memcpy(ram + 2000, &v, 2);
	cpu.r[RSI] = BASE + 2000;
	CHECK(RUN(fldcw) == DONE);
	cpu.r[RSI] = rsi;
}

/* No value in [p, p+n) may look like one of our addresses. */
static bool has_host_address(const u8 *p, size_t n)
{
	const u64 places[] = { (u64)(uintptr_t)nm.rx, (u64)(uintptr_t)nm.scratch, (u64)(uintptr_t)ram };
	for (size_t k = 0; k + 4 <= n; k++)
		for (unsigned j = 0; j < ARRAY_SIZE(places); j++) {
			u32 v;
			memcpy(&v, p + k, 4);
			if (v && (v & 0xffff0000) == (u32)(places[j] & 0xffff0000))
				return true;
		}
	return false;
}

static void test_x87(void)
{
	const u64 rip = 0xffffffff81000123;
	reset();
	CHECK(RUN(fninit) == DONE && fpu_get_fcw(&cpu) == FCW_INIT && cpu.fip == 0);
	CHECK(RUN(fld1) == DONE && cpu.fip == rip);
	CHECK(RUN(fldz) == DONE && RUN(fcomi) == DONE && (cpu.aflags & FL_CF));
	CHECK(RUN(fdiv) == DONE && (fpu_get_fsw(&cpu) & 4));
	cpu.r[RSI] = BASE + 16;
	CHECK(RUN(fxsave64) == DONE && *(u64 *)(ram + 16 + FX_FIP) == rip && !has_host_address(ram + 16, 416));
	memset(ram, 0xcc, 1024);
	CHECK(RUN(fxsave) == DONE && *(u64 *)(ram + 16 + FX_FIP) == (u32)rip && ram[16 + 416] == 0xcc);
	cpu.r[RSI] = BASE + 8;
	CHECK(faulted(RUN(fxsave64), VEC_GP));

	/* unmasked: the next waiting instruction reports it, with the pointers of the guilty one */
	CHECK(RUN(fninit) == DONE);
	set_fcw(FCW_INIT & ~4);
	CHECK(RUN(fld1) == DONE);
	cpu.r[RSI] = BASE;
	memset(ram, 0, 256);
	CHECK(RUN(fdiv_mem) == DONE && cpu.fdp == BASE);
	CHECK(faulted(RUN(fwait), VEC_MF));
	CHECK(faulted(RUN(fldz), VEC_MF));
	CHECK(RUN(fnstsw) == DONE && (cpu.r[RAX] & 0x84) == 0x84);
	cpu.r[RSI] = BASE + 64;
	CHECK(RUN(fnstenv) == DONE);
	const u32 *e = (u32 *)(ram + 64);
	CHECK((u16)e[0] == FCW_INIT - 4 + 4 || (u16)e[0] == (FCW_INIT & ~4));
	CHECK(e[3] == (u32)rip && e[5] == (u32)BASE && (e[4] >> 16) == 0x036 - 0x036 + ((0xd8 & 7) << 8 | 0x36));
	CHECK(!has_host_address(ram + 64, 28));
	CHECK(RUN(fnstenv16) == DONE && *(u16 *)(ram + 64 + 6) == (u16)rip && *(u16 *)(ram + 64 + 10) == (u16)BASE);
	cpu.cr0 &= ~CR0_NE;
	CHECK(RUN(fninit) == DONE);
	cpu.cr0 |= CR0_NE;

	/* load and read back */
	u32 env[27] = { 0xffff037f, 0xffff0000, 0xffffffff, 0x11223344, 0x05670000, 0x55667788, 0xffff0000 };
	memcpy(ram + 64, env, 28);
	CHECK(RUN(fldenv) == DONE && cpu.fip == 0x11223344 && cpu.fdp == 0x55667788);
	memset(ram + 64, 0, 28);
	CHECK(RUN(fnstenv) == DONE && e[3] == 0x11223344 && e[5] == 0x55667788 && e[4] >> 16 == 0x567);
	CHECK(RUN(fninit) == DONE && RUN(fld1) == DONE);
	CHECK(RUN(fnsave) == DONE && ram[64 + 28 + 9] == 0x3f && cpu.fip == 0);
	CHECK(RUN(frstor) == DONE && cpu.fip == (u32)rip);
	cpu.r[RSI] = BASE + PAGE_SIZE - 3;
	CHECK(RUN(fstp80) == DONE && ram[PAGE_SIZE - 3 + 9] == 0x3f);
	cpu.r[RBX] = 1;
	page[1] = ABSENT;
	CHECK(faulted(RUN(fld_mem), VEC_PF) && cpu.exc.cr2 == BASE + PAGE_SIZE);
	/* a popping store to MMIO: executed again from its start */
	page[1] = MMIO;
	CHECK(RUN(fld1) == DONE && RUN(fld1) == DONE);
	u16 fsw = fpu_get_fsw(&cpu);
	CHECK(RUN(fstp80) == STEP_EXIT && fpu_get_fsw(&cpu) == fsw);
	CHECK(RUN(fstp80) == DONE && fpu_get_fsw(&cpu) != fsw);
	cpu.cr0 |= CR0_EM;
	CHECK(faulted(RUN(fld1), VEC_NM));
	cpu.cr0 &= ~CR0_EM;
	cpu.cr0 |= CR0_TS;
	CHECK(faulted(RUN(fwait), VEC_NM));
	cpu.cr0 &= ~CR0_MP;
	CHECK(RUN(fwait) == DONE);
}

/* ---- XSAVE family ---- */

INSN(xsave64, "xsave64 [rsi]");
INSN(xsaveopt64, "xsaveopt64 [rsi]");
INSN(xsavec64, "xsavec64 [rsi]");
INSN(xrstor64, "xrstor64 [rsi]");
INSN(xrstors64, "xrstors64 [rsi]");

static void test_xsave(void)
{
	reset();
	memset(ram, 0, 2 * PAGE_SIZE);
	cpu.r[RSI] = BASE + 64;
	cpu.r[RAX] = ~0u;
	cpu.r[RDX] = ~0u;
	CHECK(RUN(fninit) == DONE && RUN(fld1) == DONE);
	for (unsigned k = 0; k < 32; k++)
		set_v32(k, k * 0x1000, 1);
	fpu_set_k(&cpu, 4, 0x1234);
	fpu_set_mxcsr(&cpu, 0x1fbf);
	u8 v7[64], v31[64];
	memcpy(v7, vec(7), 64);
	memcpy(v31, vec(31), 64);
	CHECK(RUN(xsave64) == DONE && *(u64 *)(ram + 64 + XS_BV) == cpu.xcr0 &&
	      *(u64 *)(ram + 64 + FX_FIP) == 0xffffffff81000123);
	CHECK(!has_host_address(ram + 64, native.comp_offset[XC_AVX] ? 600 : 576));
	for (unsigned k = 0; k < 32; k++)
		set_v32(k, 0, 0);
	CHECK(RUN(xrstor64) == DONE && !memcmp(vec(7), v7, 64) && !memcmp(vec(31), v31, 64) &&
	      fpu_get_mxcsr(&cpu) == 0x1fbf);
	/* compacted, and a subset */
	memset(ram, 0xcc, 2 * PAGE_SIZE);
	memset(ram + 64 + XS_BV, 0, 64); /* its reserved part is not written */
	CHECK(RUN(xsavec64) == DONE && *(u64 *)(ram + 64 + XS_COMP_BV) == (cpu.xcr0 | BIT(63)));
	for (unsigned k = 0; k < 32; k++)
		set_v32(k, 0, 0);
	CHECK(RUN(xrstor64) == DONE && !memcmp(vec(7), v7, 64) && !memcmp(vec(31), v31, 64));
	CHECK(RUN(xrstors64) == DONE && !memcmp(vec(7), v7, 64));
	cpu.cpl = 3;
	CHECK(faulted(RUN(xrstors64), VEC_GP));
	cpu.cpl = 0;
	cpu.r[RAX] = 2;
	cpu.r[RDX] = 0;
	*(u64 *)(ram + 64 + XS_BV) = 0;
	CHECK(RUN(xrstor64) == DONE && v32(7, 0) == 0 && fpu_get_mxcsr(&cpu) == MXCSR_INIT);
	if (native.host_xcr0 & BIT(XC_AVX))
		CHECK(v32(7, 4) == 0x7004);
	/* bad headers */
	*(u64 *)(ram + 64 + XS_COMP_BV) = BIT(63) | BIT(40);
	CHECK(faulted(RUN(xrstor64), VEC_GP));
	*(u64 *)(ram + 64 + XS_COMP_BV) = 0;
	memset(ram + 64 + XS_BV, 0, 64);
	*(u64 *)(ram + 64 + XS_BV) = BIT(9);
	CHECK(faulted(RUN(xrstor64), VEC_GP));
	*(u64 *)(ram + 64 + XS_BV) = 0;
	*(u32 *)(ram + 64 + FX_MXCSR) = ~0u;
	CHECK(faulted(RUN(xrstor64), VEC_GP));
	cpu.r[RAX] = 1;
	CHECK(RUN(xrstor64) == DONE && fpu_get_fcw(&cpu) == FCW_INIT && cpu.fip == 0);
	/* XSAVEOPT leaves out what is in its initial state */
	cpu.r[RAX] = ~0u;
	cpu.r[RDX] = ~0u;
	reset();
	cpu.r[RSI] = BASE + 64;
	cpu.r[RAX] = cpu.r[RDX] = ~0u;
	*(u64 *)(cpu.xsave + XS_BV) = 0;
	memset(ram + 64 + XS_BV, 0, 64);
	ram[64 + FX_XMM] = 0xcc;
	CHECK(RUN(xsaveopt64) == DONE && (*(u64 *)(ram + 64 + XS_BV) & ~1ull) == 0 && ram[64 + FX_XMM] == 0xcc);
	/* alignment, page fault: nothing written */
	cpu.r[RSI] = BASE + 32;
	CHECK(faulted(RUN(xsave64), VEC_GP));
	cpu.r[RSI] = BASE + PAGE_SIZE - 64;
	memset(ram + PAGE_SIZE - 64, 0x77, 64);
	page[1] = RO;
	CHECK(faulted(RUN(xsave64), VEC_PF) && cpu.exc.cr2 >= BASE + PAGE_SIZE && ram[PAGE_SIZE - 64] == 0x77);
	cpu.cr4 &= ~CR4_OSXSAVE;
	CHECK(faulted(RUN(xsave64), VEC_UD));
}

/* ---- 32-bit and 16-bit code ---- */

INSN32(popcnt32, "popcnt eax, dword ptr [esi+ebx*2+4]");
INSN32(vmovq32, ".byte 0xc4, 0xe1, 0xf9, 0x6e, 0xc0"); /* vmovd xmm0, eax: W ignored */
INSN32(andn32, ".byte 0xc4, 0xe2, 0x80, 0xf2, 0xc1");  /* andn eax, edi, ecx: W and vvvv[3] ignored... */
INSN16(popcnt16, "popcnt ax, cx");
INSN16(popcnt16_32, "popcnt eax, ecx");
INSN16(paddb16, "paddb mm1, mm2");
INSN16(shld16, "shld [si], ax, 4");

static void test_modes(void)
{
	reset();
	cpu.r[RSI] = 0xffffffff00000000 + BASE;
	cpu.r[RBX] = 2;
	*(u32 *)(ram + 8) = 0xff;
	CHECK(RUN32(popcnt32) == DONE && (u32)cpu.r[RAX] == 8);
	cpu.r[RAX] = 0xdeadbeef12345678;
	if (native.host_xcr0 & BIT(XC_AVX))
		CHECK(RUN32(vmovq32) == DONE && v32(0, 0) == 0x12345678 && v32(0, 1) == 0);
	cpu.r[RCX] = 0xffff1111ffffffff;
	cpu.r[RDI] = 0xf0f0;
	CHECK(RUN32(andn32) == DONE && (u32)cpu.r[RAX] == 0xffff0f0f);
	cpu.r[RCX] = 0xffff0001;
	cpu.r[RAX] = 0xaaaa0000;
	CHECK(RUN16(popcnt16) == DONE && (u32)cpu.r[RAX] == 0xaaaa0001);
	CHECK(RUN16(popcnt16_32) == DONE && (u32)cpu.r[RAX] == 17);
	u8 st[10];
	u64 v = 0x0102030405060708;
	memcpy(st, &v, 8);
	fpu_set_st(&cpu, 1, st);
	fpu_set_st(&cpu, 2, st);
	CHECK(RUN16(paddb16) == DONE);
	fpu_get_st(&cpu, 1, st);
	CHECK(*(u64 *)st == 2 * v);
	cpu.seg[DS].base = BASE;
	cpu.r[RSI] = 0x40;
	cpu.r[RAX] = 0xabcd;
	*(u32 *)(ram + 0x40) = 0x11112222;
	CHECK(RUN16(shld16) == DONE && *(u32 *)(ram + 0x40) == 0x1111222a);
}

int main(void)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t ss = { .ss_size = 65536 };
	static const int sigs[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	if (!(fpu_host_xcr0() & BIT(XC_SSE))) {
		fprintf(stderr, "host without XSAVE\n");
		return 77;
	}
	ss.ss_sp = malloc(ss.ss_size);
	sigaltstack(&ss, NULL);
	for (unsigned k = 0; k < ARRAY_SIZE(sigs); k++)
		sigaction(sigs[k], &sa, NULL);
	ram = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED || native_memory_create(1 * MiB, &nm)) {
		perror("memory");
		return 1;
	}
	native_init(&native, nm.rw, nm.rx, nm.size, nm.scratch);
	cpu.native = &native;
	cpu.xsave_size = fpu_state_size();
	cpu.xsave = aligned_alloc(64, cpu.xsave_size);
	static struct tlb_entry tlb[TLB_SIZE];
	for (unsigned k = 0; k < TLB_SIZE; k++)
		tlb[k].rtag = tlb[k].wtag = tlb[k].xtag = TLB_NONE;
	cpu.tlb = tlb;

	test_integer();
	test_vector();
	test_enable();
	test_masks();
	test_gather();
	test_x87();
	test_xsave();
	test_modes();
	native_memory_destroy(&nm);
	printf("%d checks, %d failures\n", checks, failures);
	return failures != 0;
}
