/* Pass 1 of the translator: what is to become of each instruction of a block, and which registers the block refers to.
 * Pure classification: nothing is emitted here. */
#ifndef ENGINE_TR_SCAN_H
#define ENGINE_TR_SCAN_H

#include <Zydis/Zydis.h>

#include "cpu/block.h"

enum how { HOW_COPY, HOW_VECTOR, HOW_VECTOR_MEM, HOW_DROP, HOW_MEM, HOW_LEA_RIP, HOW_PUSH, HOW_POP, HOW_CALL_C, HOW_JCC, HOW_JMP, HOW_JMP_IND, HOW_CALL, HOW_CALL_IND, HOW_RET };

struct plan {
	u8 how;
	bool write;          /* MEM: stores (or both) */
	bool extension;      /* COPY, MEM: a host may lack it (#UD) */
	u8 level;            /* VECTOR: 0 SSE, 1 AVX, 2 AVX-512 */
	u8 len;
	u8 bytes[15];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};

struct scan {
	struct plan plan[BLOCK_MAX_INSNS];
	u32 used;            /* guest registers any instruction that stays in translated code refers to */
};

/* Number of the general register that r is or is part of, -1: not one. */
int scan_gpr(ZydisRegister r);
/* Bit per general register the instruction refers to, hidden operands included. */
u32 scan_registers(const struct plan *p);

void scan_decoder_init(ZydisDecoder *d);
/* Fills s for block b of c's RAM.  False: the block cannot be translated. */
bool scan_block(struct cpu *c, const struct block *b, const ZydisDecoder *decoder, struct scan *s);

#endif
