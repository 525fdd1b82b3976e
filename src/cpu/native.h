/* Instructions that the host executes itself on the guest's register state.
 *
 * Theory of operation.  Everything unprivileged, without control flow and without a handler of its own (vector, x87,
 * rare integer instructions) becomes at decode time a struct native_op in a stub arena: a few facts and a piece of
 * machine code that loads the guest's general registers it uses, executes the guest's instruction with its memory
 * operand re-encoded as [host register], and stores the registers back.  Vector and x87 registers need no moving: the
 * guest's are live in the host's (fpu.h).  A host exception inside a stub is turned by native_fault() into an error
 * return of the stub, before anything was stored, and the handler raises the guest's exception.
 *
 * The arena is mapped twice, writable and executable, never both at one address; whoever creates the cpu makes the
 * memory (src/engine/native_memory.h) and hands it to native_init(). */
#ifndef CPU_NATIVE_H
#define CPU_NATIVE_H

#include "cpu/insn.h"

/* Scratch memory for bounced operands: page 0 inaccessible, pages 1 and 2 read-write, page 3 inaccessible.  A masked
 * access is run across the edge of an inaccessible page, so that the host decides which elements are touched. */
#define NATIVE_SCRATCH_PAGES 4
#define NATIVE_SCRATCH_SIZE (NATIVE_SCRATCH_PAGES * PAGE_SIZE)

/* Upper bound of arena bytes one instruction takes. */
#define NATIVE_OP_MAX 256

#define NATIVE_COMPONENTS 8 /* XSAVE state components 0..7; the guest is offered no other */

struct native_op;

struct native {
	u8 *rw, *rx;  /* two views of the arena */
	u32 size, used;
	u8 *scratch;  /* NATIVE_SCRATCH_SIZE bytes, page aligned */

	const struct native_op *running; /* the stub being executed, for native_fault() */
	struct { u64 trapno, address; } fault; /* set by native_fault() */
	u64 movdir; /* host address of MOVDIR64B's destination */

	/* Facts about the host, found by native_init(). */
	u64 host_xcr0;     /* components that are saved and restored: XCR0 without PKRU, AMX */
	u32 comp_size[NATIVE_COMPONENTS], comp_offset[NATIVE_COMPONENTS];
	bool comp_aligned[NATIVE_COMPONENTS]; /* compacted format: at a multiple of 64 */
	u32 mxcsr_mask;
	bool fop_always, fdp_always; /* FOP / FDP follow every x87 instruction, not only unmasked exceptions */
	u32 xsave_features; /* CPUID.0xd.1:EAX: bit 0 XSAVEOPT, 1 XSAVEC, 3 XSAVES */
	bool avx2;         /* gathers exist */
	u8 linear_unused;  /* 64 less the width of a linear address */
	bool fcs_fds;      /* FCS and FDS are kept (CPUID.7.0:EBX[13] clear) */

	/* Guest's last x87 opcode and selectors; in the XSAVE image while the state is not live. */
	u16 fop, fcs, fds;
};

/* rw/rx: two mappings of the same size bytes.  scratch as above.  Probes the host; the FPU is left as after FNINIT. */
void native_init(struct native *n, void *rw, void *rx, size_t size, void *scratch);
/* Forgets all stubs: the caller has dropped every struct insn. */
void native_reset(struct native *n);
/* True when stubs for that many instructions surely fit; else flush the block cache and native_reset() first. */
static inline bool native_space(const struct native *n, unsigned insns)
{
	return n->size - n->used >= insns * (u64)NATIVE_OP_MAX;
}

/* From the signal handler of SIGSEGV, SIGBUS, SIGFPE, SIGILL (on an alternate stack): true when the fault belongs to a
 * guest instruction in a stub of c and ucontext was changed so that returning from the handler reports it. */
bool native_fault(struct cpu *c, int sig, int trapno, u64 err, void *ucontext);

#endif
