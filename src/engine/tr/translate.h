/* The translator: hot blocks of 64-bit code become host code.
 *
 * Every guest general register lives in the host register of the same number, RSP included; arithmetic flags live in
 * the host's flags and no emitted instruction but the guest's own writes them; struct cpu is reached through GS.  So
 * most instructions are copied as they are.  A memory operand becomes a look-up in the software TLB (struct ftlb) with
 * two registers the block does not use (their guest values wait in tr.slot) and RCX, by instructions that leave the flags
 * alone (LEA, RORX, PEXT, JRCXZ); a miss executes that one instruction through its interpreter handler, which
 * does everything: permissions, MMIO, faults, self-modified code.  Instructions without a translation are
 * executed the same way.  Translations therefore need no exception handling of their own: they never fault.
 *
 * A translation is position independent (RIP-relative operands go through c->r[R_RIP]), belongs to a struct block and dies with it.
 * Successors in the same page are linked by patching the jump; all others go through the dispatcher, which looks into
 * the CPU's block table. */
#ifndef ENGINE_TR_TRANSLATE_H
#define ENGINE_TR_TRANSLATE_H

#include "cpu/block.h"

#define TR_ARENA (64 * MiB) /* address space; touched as used */
#define TR_SITES (64 * MiB)

#define TR_FAULTS (1u << 19) /* translated instructions that the host may refuse */

/* Sorted by `at`. */
struct tr_fault {
	u32 at;   /* offset in the arena */
	u32 site; /* address */
};

struct tr_site;

struct translator {
	u8 *rw, *rx;       /* two views of the code arena */
	size_t size, used, base; /* base: end of the common routines */
	u8 *sites;         /* below 2 GB, so that a site's address is an immediate */
	size_t sites_size, sites_used;
	struct tr_site *cross; /* linked jumps between pages */
	u8 *find_return, *enter, *call_site, *leave_early, *link, *dispatch; /* common routines, executable view */
	struct tr_fault *faults;
	u32 n_faults;
	struct tr_work *work;
	u64 stat_translated, stat_links, stat_calls;
};

struct cpu;
/* Has the host what translations need: BMI2, FSGSBASE for user mode? */
bool translate_usable(void);
/* Makes the arena (before the seccomp filter) and the common routines, hooks the translator into c; after: executions before a block
 * is translated, 0: the engine's own choice.
 * 0, -ENOTSUP (host without BMI2 or FSGSBASE) or -errno. */
int translate_attach(struct translator *t, struct cpu *c, u16 after);
void translate_detach(struct translator *t);
/* Translates b: sets b->code unless it cannot.  64-bit code only; the FPU state is saved. */
void translate_block(struct cpu *c, struct block *b);
/* On the vCPU's thread, before it runs translated code. */
void translate_thread(struct cpu *c);
/* From the signal handler: when *pc is a translated instruction that the host refused (alignment, SIMD exception), makes
 * its handler execute it and returns true. */
bool translate_fault(struct cpu *c, u64 *pc);

#endif
