/* Every function of the emitter with every register: what it wrote, decoded, is what its name says, and no flag is
 * written. */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/tr/emit.h"

static ZydisDecoder decoder;
static u8 buffer[64];
static unsigned long checks;

enum kind { REG, REG32, REG8, MEM, IMM, REL };
struct want { enum kind kind; unsigned reg; unsigned base, index, scale; s64 value; bool gs; };
#define R(n) { .kind = REG, .reg = (n) }
#define R32(n) { .kind = REG32, .reg = (n) }
#define R8(n) { .kind = REG8, .reg = (n) }
#define M(b, i, s, d) { .kind = MEM, .base = (b), .index = (i), .scale = (s), .value = (d) }
#define GSM(i, s, d) { .kind = MEM, .base = 16, .index = (i), .scale = (s), .value = (d), .gs = true }
#define I(v) { .kind = IMM, .value = (v) }

static int number(ZydisRegister r)
{
	return r == ZYDIS_REGISTER_NONE ? 16 : ZydisRegisterGetId(r);
}

static bool same(const ZydisDecodedOperand *o, const struct want *w)
{
	static const ZydisRegisterClass class[] = { ZYDIS_REGCLASS_GPR64, ZYDIS_REGCLASS_GPR32, ZYDIS_REGCLASS_GPR8 };
	switch (w->kind) {
	case REG: case REG32:
		return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == class[w->kind] &&
		       ZydisRegisterGetId(o->reg.value) == (int)w->reg;
	case REG8: /* never AH to BH */
		return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == class[REG8] &&
		       ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value)) == (int)w->reg &&
		       (o->reg.value < ZYDIS_REGISTER_AH || o->reg.value > ZYDIS_REGISTER_BH);
	case MEM:
		return o->type == ZYDIS_OPERAND_TYPE_MEMORY && number(o->mem.base) == (int)w->base && number(o->mem.index) == (int)w->index &&
		       (w->index == 16 || o->mem.scale == 1u << w->scale) && o->mem.disp.value == w->value &&
		       (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN || (o->mem.segment == ZYDIS_REGISTER_GS) == w->gs);
	case IMM: return o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->imm.value.s == w->value;
	case REL: return o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->imm.is_relative;
	}
	return false;
}

static struct emit fresh(void) { return (struct emit){ .p = buffer, .end = buffer + sizeof buffer }; }

/* Exactly one instruction was emitted, this one. */
static void check(const struct emit *e, const char *what, ZydisMnemonic m, const struct want *w, unsigned n)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const unsigned len = (unsigned)(e->p - buffer);
	bool ok = !e->overflow && ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, buffer, len, &z, ops)) && z.length == len &&
		  z.mnemonic == m && z.operand_count_visible == n &&
		  (!z.cpu_flags || !(z.cpu_flags->modified | z.cpu_flags->set_0 | z.cpu_flags->set_1 | z.cpu_flags->undefined));
	for (unsigned k = 0; ok && k < n; k++)
		ok = same(&ops[k], &w[k]);
	checks++;
	if (ok)
		return;
	printf("test_emit: %s:", what);
	for (unsigned k = 0; k < len; k++)
		printf(" %02x", buffer[k]);
	printf("\n");
	exit(1);
}
#define CHECK(call, m, ...) do { \
	struct emit e_ = fresh(), *e = &e_; \
	call; \
	const struct want w_[] = { __VA_ARGS__ }; \
	check(e, #call, ZYDIS_MNEMONIC_##m, w_, ARRAY_SIZE(w_)); \
} while (0)

static const s32 disps[] = { 0, 1, -1, 127, 128, -128, -129, 0x12345678, INT32_MIN, INT32_MAX };

static void one_register(unsigned a)
{
	const u32 off = 0x1234 + a;
	CHECK(emit_load_gs(e, a, off), MOV, R(a), GSM(16, 0, off));
	CHECK(emit_store_gs(e, off, a), MOV, GSM(16, 0, off), R(a));
	CHECK(emit_pext_gs(e, a, 15 - a, off), PEXT, R(a), R(15 - a), GSM(16, 0, off));
	CHECK(emit_not(e, a), NOT, R(a));
	if (a == RSP) /* cannot be an index */
		return;
	CHECK(emit_store_gs_at_imm(e, a, off, 0x80000001), MOV, GSM(a, 0, off), I((s32)0x80000001));
}

static void two_registers(unsigned a, unsigned b)
{
	CHECK(emit_mov(e, a, b), MOV, R(a), R(b));
	CHECK(emit_movzx8(e, a, b), MOVZX, R32(a), R8(b));
	CHECK(emit_rorx(e, a, b, 52), RORX, R(a), R(b), I(52));
	CHECK(emit_pext_gs(e, a, b, 0x4000), PEXT, R(a), R(b), GSM(16, 0, 0x4000));
	if (b != RSP) {
		CHECK(emit_load_gs_index(e, a, b, 0x5000), MOV, R(a), GSM(b, 3, 0x5000));
		CHECK(emit_load_gs_at(e, a, b, 0x5000), MOV, R(a), GSM(b, 0, 0x5000));
		CHECK(emit_store_gs_at(e, b, 0x5000, a), MOV, GSM(b, 0, 0x5000), R(a));
	}
}

static void memory(unsigned reg, unsigned base, unsigned index, s32 d)
{
	for (unsigned scale = 0; scale < 4; scale++)
		CHECK(emit_lea(e, reg, base, index, scale, d), LEA, R(reg), M(base, index, scale, d));
	CHECK(emit_load(e, reg, base, index, d), MOV, R(reg), M(base, index, 0, d));
	CHECK(emit_store(e, base, index, d, reg), MOV, M(base, index, 0, d), R(reg));
}

static void jumps(void)
{
	const struct want rel = { .kind = REL };
	for (unsigned cc = 0; cc < 16; cc++) {
		struct emit e = fresh();
		u8 *at = emit_jcc(&e, cc);
		emit_patch(at, buffer + 0x20);
		static const ZydisMnemonic jcc[16] = {
			ZYDIS_MNEMONIC_JO, ZYDIS_MNEMONIC_JNO, ZYDIS_MNEMONIC_JB, ZYDIS_MNEMONIC_JNB, ZYDIS_MNEMONIC_JZ, ZYDIS_MNEMONIC_JNZ,
			ZYDIS_MNEMONIC_JBE, ZYDIS_MNEMONIC_JNBE, ZYDIS_MNEMONIC_JS, ZYDIS_MNEMONIC_JNS, ZYDIS_MNEMONIC_JP, ZYDIS_MNEMONIC_JNP,
			ZYDIS_MNEMONIC_JL, ZYDIS_MNEMONIC_JNL, ZYDIS_MNEMONIC_JLE, ZYDIS_MNEMONIC_JNLE,
		};
		check(&e, "emit_jcc", jcc[cc], &rel, 1);
	}
	struct emit j = fresh();
	u8 *over = emit_jmp(&j);
	emit_patch(over, buffer);
	check(&j, "emit_jmp", ZYDIS_MNEMONIC_JMP, &rel, 1);
	j = fresh();
	over = emit_jrcxz_or_jmp(&j);
	static const u8 jrcxz[] = { 0xe3, 5, 0xe9, 0, 0, 0, 0 }; /* JRCXZ goes over the JMP */
	if (j.p - buffer != sizeof jrcxz || memcmp(buffer, jrcxz, sizeof jrcxz) || over != buffer + 3) {
		printf("test_emit: emit_jrcxz_or_jmp\n");
		exit(1);
	}
	CHECK(emit_jmp_gs(e, 0x777), JMP, GSM(16, 0, 0x777));
	CHECK(emit_store_gs_imm(e, 0x888, 0x7fffffff), MOV, GSM(16, 0, 0x888), I(0x7fffffff));
}

/* A full buffer: nothing is written, and it is told. */
static void overflow(void)
{
	for (unsigned room = 0; room < 12; room++) {
		memset(buffer, 0xee, sizeof buffer);
		struct emit e = { .p = buffer, .end = buffer + room };
		while (!e.overflow)
			emit_store_gs_imm(&e, 1, 2);
		for (unsigned k = room; k < sizeof buffer; k++)
			if (buffer[k] != 0xee) {
				printf("test_emit: wrote behind the end\n");
				exit(1);
			}
	}
}

int main(void)
{
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (unsigned a = 0; a < 16; a++) {
		one_register(a);
		for (unsigned b = 0; b < 16; b++)
			two_registers(a, b);
		for (unsigned base = 0; base <= 16; base++)
			for (unsigned index = 0; index <= 16; index++)
				for (unsigned d = 0; d < ARRAY_SIZE(disps) && index != RSP; d++)
					memory(a, base, index, disps[d]);
	}
	jumps();
	overflow();
	printf("test_emit: %lu instructions\n", checks);
	return 0;
}
