/* Between forms.c, gen.c and directed.c. */
#ifndef TEST_INSN_GEN_INTERNAL_H
#define TEST_INSN_GEN_INTERNAL_H

#include "gen.h"

bool gen_decode(const u8 *bytes, u32 len, ZydisDecodedInstruction *z, ZydisDecodedOperand *ops);
s64 gen_form_of_decoded(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);
u32 tmpl_emit(const struct tmpl *t, u8 rex, u8 modrm, u8 sib, bool r2, bool v2, u8 *out);

/* gen.c */
u64 pick_target(struct rng *r, unsigned size, bool locked, bool addr64);
u64 reg_of_case(const struct insn_case *c, ZydisRegister reg, int *num);
ZydisRegister real_base(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o);
u64 real_disp(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o);
u64 seg_base(const struct insn_case *c, ZydisRegister seg);
bool operand_range_ok(u64 addr);
u32 randomise_bytes(struct insn_case *c, const struct tmpl *t0, struct rng *r, unsigned attempt);

/* sequence.c: a random piece of code. */
void sequence_case(struct insn_case *c, struct rng *r);

/* directed.c: hand-written code, several instructions at a time, up to the INT3 behind it. */
extern const unsigned directed_count;
const char *directed_name(unsigned n);
void directed_case(struct insn_case *c, unsigned n, struct rng *r);

/* check_code.c: is what was emitted for b from this offset on as translated code must be?  Says why not. */
struct translator;
struct block;
struct ram;
bool check_emitted(const struct translator *t, const struct ram *ram, const struct block *b, size_t from);

#endif
