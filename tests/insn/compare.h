/* Comparing two results of one case, and showing them. */
#ifndef TEST_INSN_COMPARE_H
#define TEST_INSN_COMPARE_H

#include <stdio.h>

#include "gen.h"

/* Prints how often each entry of the table of known differences was needed. */
void report_known(FILE *out);

/* True when the results agree.  Writes the differences to out (may be NULL): one line per item. */
bool compare_results(const struct insn_batch *b, const struct insn_case *c, struct insn_result *want, struct insn_result *got,
		     FILE *out);
void print_case(const struct insn_batch *b, const struct insn_case *c, FILE *out);
const char *end_name(u32 end);

#endif
