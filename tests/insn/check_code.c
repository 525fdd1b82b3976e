/* The rules of translated code (engine/tr/translate.h), checked on what was emitted for a block: only the guest's own
 * instructions write flags; memory is reached through GS, or is a guest operand at [scratch + scratch]; the guest's RSP is
 * no stack. */
#include <stdio.h>
#include <string.h>

#include "cpu/block.h"
#include "gen_internal.h"
#include "engine/tr/translate.h"

#define ARITH (ZYDIS_CPUFLAG_CF | ZYDIS_CPUFLAG_PF | ZYDIS_CPUFLAG_AF | ZYDIS_CPUFLAG_ZF | ZYDIS_CPUFLAG_SF | ZYDIS_CPUFLAG_OF)

static const char *broken_rule(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, bool guest)
{
	const ZydisAccessedFlags *f = z->cpu_flags;
	if (f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & ARITH) && !guest)
		return "writes flags";
	for (unsigned k = 0; k < z->operand_count; k++) {
		const ZydisDecodedOperand *o = &ops[k];
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN || o->mem.segment == ZYDIS_REGISTER_GS)
			continue;
		if (o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
			return "uses the guest's stack pointer or strings";
		if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_RSP || o->mem.base == ZYDIS_REGISTER_NONE)
			return "memory operand";
		const bool operand = o->mem.index != ZYDIS_REGISTER_NONE && o->mem.scale == 1 && !o->mem.disp.value;
		if (!operand && (z->mnemonic != ZYDIS_MNEMONIC_MOV || o->mem.index != ZYDIS_REGISTER_NONE))
			return "memory operand";
	}
	return NULL;
}

bool check_emitted(const struct translator *t, const struct ram *ram, const struct block *b, size_t from)
{
	u16 guest[BLOCK_MAX_INSNS];
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const u8 *code = ram_ptr(ram, GPA(b->gpa), b->bytes);
	for (unsigned k = 0; k < b->n; k++)
		guest[k] = gen_decode(code + b->insn[k].off, b->insn[k].len, &z, ops) ? z.mnemonic : 0;
	for (size_t at = from; at < t->used;) {
		const char *rule = "undecodable";
		if (gen_decode(t->rw + at, (u32)(t->used - at < 15 ? t->used - at : 15), &z, ops)) {
			bool own = false;
			for (unsigned k = 0; k < b->n; k++)
				own |= guest[k] == z.mnemonic;
			rule = broken_rule(&z, ops, own);
		}
		if (rule) {
			char text[160];
			disassemble(t->rw + at, 15, at, text, sizeof text);
			printf("insn: emitted code at +%zx: %s: %s\n", at - from, text, rule);
			for (unsigned k = 0; k < b->n; k++) {
				disassemble(code + b->insn[k].off, b->insn[k].len, b->insn[k].off, text, sizeof text);
				printf("    block: %s\n", text);
			}
			return false;
		}
		at += z.length;
		if (z.mnemonic == ZYDIS_MNEMONIC_JMP && ALIGN_UP(at, 16) == t->used)
			break; /* the rest is alignment */
	}
	return true;
}
