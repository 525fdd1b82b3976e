/* Decoded code: blocks of instructions keyed by guest-physical address and
 * mode, so that fork, exec and address-space switches decode nothing again.
 *
 * A block never crosses a page.  A page with blocks has bits set in its word of
 * ram_slot.code, so that stores to it take the slow path, which kills the blocks
 * they overlap.  Killed blocks stay allocated until the whole cache is flushed
 * (when its arena is full), hence a running block may be killed safely.
 *
 * Several CPUs.  Each has its own blocks; ram_slot.code is the machine's.  Its
 * words change only while no other CPU runs guest code (exclusive.h), and the
 * same moment takes the write tags of the page away from every CPU or kills the
 * blocks of every CPU.  So a store that finds no code where it goes cannot race
 * with a CPU that decodes there: one of them waits for the other. */
#ifndef CPU_BLOCK_H
#define CPU_BLOCK_H

#include "cpu/insn.h"

#define BLOCK_MAX_INSNS 64

struct block {
	u64 gpa;
	u32 mode;        /* low bits of mode_key that decoding depends on */
	u16 n, bytes;    /* guest instructions (not counting the end marker), their length */
	bool dead;
	u16 heat;        /* executions so far, until the translator is asked */
	void *code;      /* its translation; entered with R_RIP = its address */
	void *code_link; /* entered from a translation that has set trs.page_rip */
	void *code_lean; /* the same from one with the same scratch registers, which stay spilled */
	u8 scratch[2];   /* those registers; equal: none */
	void *dead_link, *dead_lean; /* where the entries above lead once it is dead */
	struct block *hash_next, *page_next;
	struct block *succ[2]; /* STEP_TAKEN, STEP_FALL: only within the same page */
	struct insn insn[]; /* n + 1 */
};

/* Memory the caller provides, once, page aligned. */
struct blockcache;
size_t blockcache_size(size_t arena_bytes);
struct blockcache *blockcache_init(void *mem, size_t arena_bytes);
void blockcache_flush(struct cpu *c); /* forgets everything; never while a block runs */

/* The block at c->rip, decoded when necessary.  NULL: *step tells (STEP_FAULT, STEP_EXIT). */
struct block *block_find(struct cpu *c, int *step);

/* Is the page of supervisor code at rip mapped global? */
bool block_global(struct cpu *c, u64 rip);
/* May b, running at rip, be given a direct jump to another page?  From then on its page runs at that address only, or all
 * such jumps are undone (tr_unlink). */
bool block_may_link(struct cpu *c, const struct block *b, u64 rip);

/* [gpa, gpa+len) of RAM is about to be written by c: kills overlapping blocks of all CPUs.  True when one of c's own
 * was killed.  len stays within a page.  May wait for the other CPUs. */
bool block_code_write(struct cpu *c, gpa_t gpa, u64 len);
/* The same for any length and alignment. */
void block_invalidate(struct cpu *c, gpa_t gpa, u64 len);
/* DMA, from any thread: may [gpa, gpa+len), already written, hold code?  Then it is forgotten while no CPU runs. */
bool block_code_in(const struct ram *ram, gpa_t gpa, u64 len);
void block_forget(struct cpu_group *g, gpa_t gpa, u64 len);

/* Makes the running block end behind instruction i (which must still be completed). */
void block_leave_after(struct cpu *c, const struct insn *i);

/* mode bits in c->mode_key */
#define MODE_CODE16 0u
#define MODE_CODE32 1u
#define MODE_CODE64 2u
#define MODE_CODE_MASK 3u
#define MODE_USER 4u
#define MODE_REAL 8u /* CR0.PE = 0 or EFLAGS.VM = 1 */
#define MODE_AC 16u /* supervisor code that may touch user pages (SMAP off or suspended) */
/* Blocks are separate for these: translations embed the rights of their memory accesses. */
#define MODE_DECODE_MASK (MODE_CODE_MASK | MODE_REAL | MODE_USER | MODE_AC)
#define BLOCK_HOT 16 /* executions before a block is translated */

/* decode.c: decodes one instruction of at most avail bytes for c's mode at block offset off.
 * Returns its length; 0: more than avail bytes are needed; -1: longer than 15 bytes (#GP).
 * Undefined opcodes decode to op_ud.  *ends: the block must end behind it; *alone: it must be the only one in its block. */
int decode_insn(struct cpu *c, const u8 *bytes, unsigned avail, u16 off, struct insn *out, bool *ends, bool *alone);
/* Has this decoded instruction a handler? (tests) */
bool decode_implemented(const struct insn *i);
/* The decoder's own tables: memory from the caller. */
size_t decoder_size(void);
struct decoder *decoder_init(void *mem);
/* Text of the instruction at bytes, for reports.  Returns its length or 0. */
int decode_text(const struct cpu *c, const u8 *bytes, unsigned avail, u64 rip, char *buf, size_t size);

/* Handler that ends a block without an own branch. */
int op_end(struct cpu *c, const struct insn *i);
int op_leave_block(struct cpu *c, const struct insn *i);

#endif
