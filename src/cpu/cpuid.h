/* What CPUID tells the guest.  One table (cpuid_bits) says of every feature bit whether it is the host's, ours or
 * absent, and why; a bit that is not in the table is absent.  `umbra doctor` and doc/cpuid.md print that table. */
#ifndef CPU_CPUID_H
#define CPU_CPUID_H

#include "core/base.h"

enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

enum cpuid_policy {
	CPUID_HOST,    /* as the host has it: user code may meet it natively */
	CPUID_ON,      /* provided by us whatever the host has */
	CPUID_OFF,     /* absent whatever the host has */
	CPUID_DYNAMIC, /* follows the state or the topology of the virtual CPU */
};
extern const char *const cpuid_policy_names[];

enum cpuid_vendor { CPUID_ANY, CPUID_INTEL, CPUID_AMD }; /* ON applies to this vendor only */

struct cpuid_bit {
	u32 leaf;
	u8 subleaf;
	u8 reg; /* enum cpuid_reg */
	u8 bit;
	u8 policy; /* enum cpuid_policy */
	u8 vendor; /* enum cpuid_vendor */
	const char *name; /* as in /proc/cpuinfo where Linux has a name */
	const char *why;
};
extern const struct cpuid_bit cpuid_bits[];
extern const unsigned cpuid_bits_count;

/* The leaves that hold numbers instead of feature bits. */
struct cpuid_number {
	u32 leaf;
	const char *what, *why;
};
extern const struct cpuid_number cpuid_numbers[];
extern const unsigned cpuid_numbers_count;

#define CPUID_MAX_LEAVES 64

struct cpuid_leaf {
	u32 leaf, subleaf;
	u32 r[4];
};

/* State components the guest may enable (SDM 13.1): x87, SSE, AVX, AVX-512.  Never MPX, PKRU, AMX, nor supervisor state. */
#define CPUID_XCR0_OFFERED 0xe7ull

struct cpuid_table {
	unsigned n;
	struct cpuid_leaf e[CPUID_MAX_LEAVES]; /* static part; cpuid_get() adds the dynamic bits */
	unsigned ncpus;
	u64 tsc_khz;
	u32 apic_div;    /* APIC timer ("crystal") frequency = TSC frequency / apic_div */
	bool intel; /* else AMD (or Hygon) */
	u8 maxphyaddr;
	u64 xcr0;        /* bits that XSETBV may set */
	u32 xsave_size;  /* standard format, all of xcr0 */
	u32 max_basic, max_ext;
	struct { u32 size, offset; bool align64; } xcomp[8]; /* of component i in xcr0 */
};

/* Fills t by executing CPUID here.  Also sets t->intel and t->maxphyaddr, which the back end copies into each cpu. */
void cpuid_table_init(struct cpuid_table *t, unsigned ncpus, u64 tsc_khz);

/* The same for another host than this one (tests). */
struct cpuid_host {
	void (*cpuid)(u32 leaf, u32 subleaf, u32 r[4]);
	u64 xcr0;
};
void cpuid_table_init_from(struct cpuid_table *t, const struct cpuid_host *h, unsigned ncpus, u64 tsc_khz);

/* The static entry, or NULL (tests, doctor). */
const struct cpuid_leaf *cpuid_find(const struct cpuid_table *t, u32 leaf, u32 subleaf);

/* Was this feature bit offered to the guest?  (Reserved-bit checks of CR4, EFER and MSRs.) */
bool cpuid_has(const struct cpuid_table *t, u32 leaf, u32 subleaf, enum cpuid_reg reg, unsigned bit);

#endif
