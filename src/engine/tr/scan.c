#include "engine/tr/scan.h"

#include "cpu/exclusive.h"

#include <string.h>

int scan_gpr(ZydisRegister r)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		return ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r));
	default: return -1;
	}
}

u32 scan_registers(const struct plan *p)
{
	u32 used = 0;
	for (unsigned k = 0; k < p->zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &p->ops[k];
		int n = -1;
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER)
			n = scan_gpr(o->reg.value);
		if (n >= 0)
			used |= 1u << n;
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if ((n = scan_gpr(o->mem.base)) >= 0)
				used |= 1u << n;
			if ((n = scan_gpr(o->mem.index)) >= 0)
				used |= 1u << n;
		}
	}
	return used;
}

static bool high_byte(const struct plan *p)
{
	for (unsigned k = 0; k < p->zi.operand_count_visible; k++)
		if (p->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && p->ops[k].reg.value >= ZYDIS_REGISTER_AH &&
		    p->ops[k].reg.value <= ZYDIS_REGISTER_BH)
			return true;
	return false;
}

/* Integer instructions whose effect on registers and flags is the same wherever they run. */
static bool copyable(const struct plan *p)
{
	const ZydisDecodedInstruction *z = &p->zi;
	if (z->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_SEGMENT_CS))
		return false;
	if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		/* Register forms only: a memory operand would have to be placed into the VEX prefix. */
		for (unsigned k = 0; k < z->operand_count_visible; k++)
			if (p->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
				return false;
		switch (z->mnemonic) {
		case ZYDIS_MNEMONIC_ANDN: case ZYDIS_MNEMONIC_BEXTR: case ZYDIS_MNEMONIC_BLSI: case ZYDIS_MNEMONIC_BLSMSK:
		case ZYDIS_MNEMONIC_BLSR: case ZYDIS_MNEMONIC_BZHI: case ZYDIS_MNEMONIC_MULX: case ZYDIS_MNEMONIC_PDEP:
		case ZYDIS_MNEMONIC_PEXT: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SARX: case ZYDIS_MNEMONIC_SHLX:
		case ZYDIS_MNEMONIC_SHRX: return true;
		default: return false;
		}
	}
	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SBB:
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC: case ZYDIS_MNEMONIC_NEG:
	case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR: case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR:
	case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD: case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_XCHG: case ZYDIS_MNEMONIC_XADD: case ZYDIS_MNEMONIC_CMPXCHG: case ZYDIS_MNEMONIC_BSWAP:
	case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_LZCNT:
	case ZYDIS_MNEMONIC_TZCNT: case ZYDIS_MNEMONIC_CBW: case ZYDIS_MNEMONIC_CWDE: case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD: case ZYDIS_MNEMONIC_CDQ: case ZYDIS_MNEMONIC_CQO: case ZYDIS_MNEMONIC_LAHF:
	case ZYDIS_MNEMONIC_SAHF: case ZYDIS_MNEMONIC_CLC: case ZYDIS_MNEMONIC_STC: case ZYDIS_MNEMONIC_CMC:
	case ZYDIS_MNEMONIC_ADCX: case ZYDIS_MNEMONIC_ADOX: case ZYDIS_MNEMONIC_CRC32: case ZYDIS_MNEMONIC_MOVBE:
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC: return true;
	default: return z->meta.category == ZYDIS_CATEGORY_CMOV || z->meta.category == ZYDIS_CATEGORY_SETCC;
	}
}

/* SSE to AVX-512 on vector and general registers, memory operands of fixed size without mask. */
static bool vector_insn(struct plan *p, const ZydisDecodedOperand **mem)
{
	const ZydisDecodedInstruction *z = &p->zi;
	bool vector = false;
	p->level = z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? 2 : z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? 1 : 0;
	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX &&
	    z->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX)
		return false;
	if ((z->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_LOCK)) || z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
		return false;
	for (unsigned k = 0; k < z->operand_count; k++) {
		const ZydisDecodedOperand *o = &p->ops[k];
		const bool visible = k < z->operand_count_visible;
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (!visible || *mem || o->mem.type != ZYDIS_MEMOP_TYPE_MEM || !o->size || o->size > 512 ||
			    (scan_gpr(o->mem.index) < 0) != (o->mem.index == ZYDIS_REGISTER_NONE))
				return false;
			*mem = o;
			p->write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
			continue;
		}
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || scan_gpr(o->reg.value) >= 0)
			continue;
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_XMM: vector = true; break;
		case ZYDIS_REGCLASS_YMM: vector = true; break;
		case ZYDIS_REGCLASS_ZMM: vector = true; break;
		case ZYDIS_REGCLASS_FLAGS: break;
		case ZYDIS_REGCLASS_MASK:
			if (o->reg.value != ZYDIS_REGISTER_K0 && o->encoding == ZYDIS_OPERAND_ENCODING_MASK)
				return false; /* fault suppression, merging: the handler knows */
			vector = true;
			p->level = 2;
			break;
		default:
			if (visible || o->reg.value != ZYDIS_REGISTER_MXCSR)
				return false;
		}
	}
	if (z->avx.mask.reg != ZYDIS_REGISTER_NONE && z->avx.mask.reg != ZYDIS_REGISTER_K0)
		return false;
	if (*mem && z->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID && !z->avx.broadcast.is_static)
		return false;
	return vector && z->meta.category != ZYDIS_CATEGORY_GATHER && z->meta.category != ZYDIS_CATEGORY_SCATTER;
}

static void classify(struct plan *p, const struct insn *i)
{
	const ZydisDecodedInstruction *z = &p->zi;
	const ZydisDecodedOperand *mem = NULL;
	bool other = false; /* an explicit operand that is neither general register, memory nor immediate */
	p->how = HOW_CALL_C;
	p->extension = z->meta.isa_ext != ZYDIS_ISA_EXT_BASE && z->meta.isa_ext != ZYDIS_ISA_EXT_LONGMODE;
	if (i->fn == op_ud)
		return; /* the decoder library knows instructions that this CPU does not have */
	for (unsigned k = 0; k < z->operand_count_visible; k++) {
		const ZydisDecodedOperand *o = &p->ops[k];
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			mem = o;
			p->write |= !!(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
		} else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && scan_gpr(o->reg.value) < 0) {
			other = true;
		}
	}
	const bool near64 = z->operand_width == 64;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_SFENCE: p->how = HOW_DROP; return;
	case ZYDIS_MNEMONIC_LEA:
		if (z->address_width == 64)
			p->how = p->ops[1].mem.base == ZYDIS_REGISTER_RIP ? HOW_LEA_RIP : HOW_COPY;
		return;
	case ZYDIS_MNEMONIC_PUSH:
		if (near64 && !mem && !other)
			p->how = HOW_PUSH;
		return;
	case ZYDIS_MNEMONIC_POP:
		if (near64 && !mem && !other)
			p->how = HOW_POP;
		return;
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL: {
		if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || !near64 || (mem && z->address_width != 64))
			return;
		const bool imm = p->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
		if (z->mnemonic == ZYDIS_MNEMONIC_JMP)
			p->how = imm ? HOW_JMP : HOW_JMP_IND;
		else
			p->how = imm ? HOW_CALL : HOW_CALL_IND;
		return;
	}
	case ZYDIS_MNEMONIC_RET:
		if (z->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR && near64)
			p->how = HOW_RET;
		return;
	default: break;
	}
	if (z->meta.category == ZYDIS_CATEGORY_COND_BR) {
		/* Only Jcc; LOOP and JRCXZ go through C.  (Xeon Phi had JKZD with the same opcode behind a VEX prefix.) */
		if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && (z->opcode & 0xf0) == (z->opcode_map == ZYDIS_OPCODE_MAP_0F ? 0x80 : 0x70) &&
		    z->operand_width != 16)
			p->how = HOW_JCC;
		return;
	}
	if (z->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER) {
		p->how = HOW_VECTOR;
		p->level = 1;
		return;
	}
	const ZydisDecodedOperand *vmem = NULL;
	if (other && vector_insn(p, &vmem) && (!vmem || z->address_width == 64)) {
		p->how = vmem ? HOW_VECTOR_MEM : HOW_VECTOR;
		return;
	}
	if (other || !copyable(p))
		return;
	if (!mem) {
		p->how = HOW_COPY;
		return;
	}
	if (z->address_width != 64 || high_byte(p))
		return;
	if ((z->mnemonic == ZYDIS_MNEMONIC_BT || z->mnemonic == ZYDIS_MNEMONIC_BTS || z->mnemonic == ZYDIS_MNEMONIC_BTR ||
	     z->mnemonic == ZYDIS_MNEMONIC_BTC) && p->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
		return; /* the bit offset moves the address */
	p->how = HOW_MEM;
}

void scan_decoder_init(ZydisDecoder *d)
{
	ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
}

bool scan_block(struct cpu *c, const struct block *b, const ZydisDecoder *decoder, struct scan *s)
{
	const u8 *code = ram_ptr(c->ram, GPA(b->gpa), b->bytes);
	if (!code)
		return false;
	s->used = 1u << RSP | 1u << RCX;
	for (unsigned k = 0; k < b->n; k++) {
		struct plan *p = &s->plan[k];
		const struct insn *i = &b->insn[k];
		p->write = false;
		p->len = i->len;
		if (i->len > 15 || i->off + i->len > b->bytes)
			return false;
		memcpy(p->bytes, code + i->off, i->len);
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, p->bytes, i->len, &p->zi, p->ops)) || p->zi.length != i->len) {
			return false;
		}
		classify(p, i);
		/* With other CPUs, fences order weakly ordered stores, and who waits may have to yield. */
		if (p->how == HOW_DROP && !cpu_alone(c)) {
			if (p->zi.mnemonic == ZYDIS_MNEMONIC_LFENCE || p->zi.mnemonic == ZYDIS_MNEMONIC_SFENCE)
				p->how = HOW_COPY;
			else if (p->zi.mnemonic == ZYDIS_MNEMONIC_PAUSE)
				p->how = HOW_CALL_C;
		}
		s->used |= scan_registers(p);
	}
	return true;
}
