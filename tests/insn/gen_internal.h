/* Between forms.c, gen.c and directed.c. */
#ifndef TEST_INSN_GEN_INTERNAL_H
#define TEST_INSN_GEN_INTERNAL_H

#include "gen.h"

bool gen_decode(const u8 *bytes, u32 len, ZydisDecodedInstruction *z, ZydisDecodedOperand *ops);
s64 gen_form_of_decoded(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);
u32 tmpl_emit(const struct tmpl *t, u8 rex, u8 modrm, u8 sib, bool r2, bool v2, u8 *out);

/* directed.c: hand-written code, several instructions at a time, up to the INT3 behind it. */
extern const unsigned directed_count;
const char *directed_name(unsigned n);
void directed_case(struct insn_case *c, unsigned n, struct rng *r);

#endif
