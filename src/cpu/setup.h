/* Making a CPU out of memory the caller provides. */
#ifndef CPU_SETUP_H
#define CPU_SETUP_H

#include "cpu/cpu.h"

struct cpu_config {
	unsigned id;          /* APIC id */
	bool bsp;
	struct ram *ram;      /* `code` present in every slot that may hold code */
	const struct cpuid_table *cpuid; /* outlives the cpu; may be NULL in unit tests without CPUID */
	size_t block_arena;   /* bytes for decoded blocks */
	unsigned block_limit; /* most instructions per block; 0: BLOCK_MAX_INSNS */
	void *stub_rw, *stub_rx; /* two mappings of the stub arena, see native.h */
	size_t stub_size;
	void *scratch;        /* NATIVE_SCRATCH_SIZE bytes, see native.h */
	u64 tsc_khz;
	bool deterministic;
	u64 det_seed;
	bool vendor_intel;
	u8 maxphyaddr;
	bool lapic;           /* with a local APIC */
};

/* Bytes of zeroed, page-aligned memory that cpu_init needs. */
size_t cpu_memory_size(const struct cpu_config *cfg);
/* Lays out and resets the CPU in mem. */
struct cpu *cpu_init(void *mem, const struct cpu_config *cfg);

#endif
