/* Generator of cases: the table of instruction forms, and random instances of them. */
#ifndef TEST_INSN_GEN_H
#define TEST_INSN_GEN_H

#include <Zydis/Zydis.h>

#include "insn_case.h"

/* xoshiro256**: small, seedable per case so that one case can be made again alone. */
struct rng { u64 s[4]; };
void rng_seed(struct rng *r, u64 a, u64 b);
u64 rng_u64(struct rng *r);
static inline u64 rng_below(struct rng *r, u64 n) { return (u64)(((u128)rng_u64(r) * n) >> 64); }
static inline bool rng_one_in(struct rng *r, u64 n) { return rng_below(r, n) == 0; }

/* An encoding without its operands: what the generator starts from. */
struct tmpl {
	u8 enc;       /* ZydisInstructionEncoding */
	u8 map;       /* legacy 0..3; VEX, EVEX mmm */
	u8 opcode;
	u8 legacy_66, legacy_rep, lock, addr32; /* prefixes; legacy_rep: 0, 0xf2, 0xf3 */
	u8 pp, w, ll, b, z, aaa;                /* VEX/EVEX */
	u8 vvvv;                                /* as encoded, inverted */
	bool has_modrm, vsib;
	u8 modrm;
};

#define FORM_TEMPLATES 4
struct form {
	u64 key;
	char name[100];
	u16 mnemonic;
	u8 n_templates;
	const char *excluded; /* reason, or NULL */
	struct tmpl t[FORM_TEMPLATES];
	/* filled by the run */
	u64 runs, ud, mismatches, done; /* done: completed without an exception */
};

/* Table of all forms Zydis can name in 64-bit mode (found by decoding every opcode with every prefix). */
extern struct form *forms;
extern u32 n_forms;
void gen_init(void);
/* The form of decoded bytes, or -1. */
s64 gen_form_of(const u8 *bytes, u32 len);
/* The reason why this instruction cannot be compared with the host, or NULL. */
const char *gen_excluded(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);

/* The batch's shared part: vector states and arena. */
void gen_batch(struct insn_batch *b, struct rng *r);
/* A random instance of form f.  False: none found this time. */
bool gen_case(struct insn_case *c, const struct insn_batch *b, u32 f, struct rng *r);
/* Random bytes that need not be an instruction. */
bool gen_garbage(struct insn_case *c, const struct insn_batch *b, struct rng *r);
/* Everything but the bytes: registers, flags, position. */
void gen_state(struct insn_case *c, struct rng *r);

/* Returns the length, 0: undecodable. */
unsigned disassemble(const u8 *bytes, u32 len, u64 rip, char *out, u32 size);

#endif
