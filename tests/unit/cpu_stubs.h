/* What the tested files of src/cpu call elsewhere, for tests that link only those. */
#ifndef TESTS_UNIT_CPU_STUBS_H
#define TESTS_UNIT_CPU_STUBS_H

#include <stdlib.h>

#include "cpu/block.h"
#include "cpu/cpu.h"

static unsigned flushes, mode_updates;
void mmu_flush_all(struct cpu *c) { flushes++; }
void cpu_update_mode(struct cpu *c) { mode_updates++; }
static unsigned invalidations;
void block_invalidate(struct cpu *c, gpa_t gpa, u64 len) { invalidations++; }
void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expr);
	abort();
}

#endif
