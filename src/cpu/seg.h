/* Segments, descriptors, stacks and far transfers: what exc.c, seg.c, far.c and the exec_*.c files share.
 *
 * Convention: a function that may fault returns 0, or the enum step the handler has to return.  Handlers that use
 * the supervisor accessors below set c->rip to their own address first, so that a fault needs no further care. */
#ifndef CPU_SEG_H
#define CPU_SEG_H

#include "cpu/cpu.h"
#include "cpu/insn.h"

/* System descriptor types (SDM vol. 3, table 3-2). */
enum sys_type {
	SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6, SYS_TRAP16 = 7,
	SYS_TSS = 9, SYS_TSS_BUSY = 11, SYS_CALL = 12, SYS_INT = 14, SYS_TRAP = 15,
};

/* Bits of the type field of code and data descriptors. */
#define SEG_ACCESSED 1
#define SEG_WRITABLE 2  /* data */
#define SEG_READABLE 2  /* code */
#define SEG_EXPAND_DOWN 4 /* data */
#define SEG_CONFORMING 4  /* code */
#define SEG_CODE 8

static inline bool seg_is_code(const struct seg *s) { return s->s && (s->type & SEG_CODE); }
static inline bool seg_is_conforming(const struct seg *s) { return seg_is_code(s) && (s->type & SEG_CONFORMING); }
static inline bool seg_is_writable(const struct seg *s)
{
	return s->s && !(s->type & SEG_CODE) && (s->type & SEG_WRITABLE);
}

/* Selectors: index and TI without RPL, as they appear in error codes. */
#define SEL_ERR(sel) ((u32)(sel) & 0xfffcu)
#define SEL_NULL(sel) (((sel) & 0xfffcu) == 0)
#define SEL_RPL(sel) ((u8)((sel) & 3u))
#define SEL_TI 4u

/* Reads the 8-byte descriptor of sel.  0; DESC_OUTSIDE when the selector is beyond its table (or there is no LDT);
 * or the step of a fault while reading.  *gva: its linear address. */
#define DESC_OUTSIDE (-1)
int desc_read(struct cpu *c, u16 sel, u64 *desc, u64 *gva);
/* The second half of a 16-byte system descriptor (long mode).  Same results. */
int desc_read_high(struct cpu *c, u16 sel, u64 *high);
void desc_unpack(struct seg *s, u64 desc, u16 sel);
/* Sets the accessed bit in memory when it is clear. */
int desc_set_accessed(struct cpu *c, u64 desc, u64 gva);

/* Is [off, off+size) inside the segment? (SDM 5.3; expand-down segments included) */
bool seg_range_ok(const struct seg *s, u64 off, unsigned size);

/* Loads a data segment register (not CS) as MOV does, in every mode, with all checks; commits on success only.
 * i may be NULL (c->rip is then left alone). */
int seg_load(struct cpu *c, const struct insn *i, enum sreg r, u16 sel);
/* The checks of seg_load alone; *out is what would be loaded. */
int seg_check(struct cpu *c, const struct insn *i, enum sreg r, u16 sel, struct seg *out);
/* Real-address and virtual-8086 mode: base = selector * 16. */
void seg_set_real(struct cpu *c, enum sreg r, u16 sel);
void seg_set_vm86(struct cpu *c, enum sreg r, u16 sel);
void seg_set_null(struct cpu *c, enum sreg r, u16 sel);
/* Flat code/stack segments as SYSCALL, SYSENTER and their returns load them without reading a descriptor. */
void seg_set_flat_code(struct cpu *c, u16 sel, u8 dpl, bool l);
void seg_set_flat_stack(struct cpu *c, u16 sel, u8 dpl);
/* After a return to an outer level: data segments the new CPL may not use become null (SDM vol. 2, RET). */
void seg_drop_inner(struct cpu *c, u8 new_cpl);

/* Width of the stack pointer now: ~0, 0xffffffff or 0xffff. */
static inline u64 stack_mask(const struct cpu *c)
{
	if (likely(cpu_code64(c)))
		return ~0ull;
	return c->seg[SS].db ? 0xffffffffull : 0xffffull;
}
static inline void stack_set_rsp(struct cpu *c, u64 mask, u64 sp)
{
	c->r[RSP] = mask == 0xffff ? (c->r[RSP] & ~0xffffull) | (sp & 0xffff) : sp & mask;
}
/* Linear address of [SS:sp, size) for the current stack segment; #SS(0) when it is outside or not canonical.
 * sp is truncated to the stack width. */
int stack_addr(struct cpu *c, const struct insn *i, u64 sp, unsigned size, u64 *lin);

/* A stack being built or consumed; nothing of the CPU's changes until the user of it commits. */
struct stk {
	struct seg ss;
	u64 sp;
	u64 mask;
	u32 ss_error; /* error code of #SS */
	bool sys;     /* supervisor rights: a stack of an inner level, or delivery */
	bool flat;    /* 64-bit: no base, no limit */
};
void stk_current(const struct cpu *c, struct stk *s);
/* i may be NULL (delivery): c->rip is then right already. */
int stk_push(struct cpu *c, const struct insn *i, struct stk *s, unsigned size, u64 v);
int stk_pop(struct cpu *c, const struct insn *i, struct stk *s, unsigned size, u64 *v);
/* Write with CPL-3 rights outside any instruction: frames of handlers that run at CPL 3. */
int stack_write_user(struct cpu *c, u64 lin, const void *buf, unsigned size);
/* Makes it the CPU's stack. */
void stk_commit(struct cpu *c, const struct stk *s);

/* Stack pointer n (0-2: RSPn, 3-9: IST1-IST7) of the 64-bit TSS; #TS(TR) when the TSS is too short. */
int tss_rsp64(struct cpu *c, const struct insn *i, unsigned n, u32 ext, u64 *rsp);
/* SS:ESP of level cpl from the 16- or 32-bit TSS, loaded and checked (SDM vol. 2, CALL and INT n). */
int tss_stack(struct cpu *c, const struct insn *i, u8 cpl, u32 ext, struct stk *out);

/* May the current code access these ports? (IOPL, TSS I/O permission bitmap; SDM vol. 1, 19.5)  0 or #GP(0). */
int io_check(struct cpu *c, const struct insn *i, u16 port, unsigned size);
/* I/O breakpoints (CR4.DE, SDM 17.2.4) hit by an access that completes with this instruction: a trap behind it. */
void io_breakpoint(struct cpu *c, u16 port, unsigned size);

/* Software interrupt through the IDT from instruction i (exc.c).  icebp: INT1, no DPL check. */
int exc_soft(struct cpu *c, const struct insn *i, u8 vector, bool icebp);

/* Privilege gate of system instructions. */
#define REQUIRE_CPL0(c, i)                                \
	do {                                              \
		if (unlikely((c)->cpl != 0))              \
			return exc_gp((c), (i), 0);       \
	} while (0)

/* Leaves the block behind i after a change of mode. */
static inline int step_mode(struct cpu *c, u64 rip)
{
	c->rip = rip;
	cpu_update_mode(c);
	return STEP_MODE;
}

/* Supervisor read of 8 bytes with the hot case inline. */
static inline int sys_read64(struct cpu *c, u64 gva, u64 *v)
{
	const struct tlb_entry *e = &c->tlbs[TLB_KERNEL][(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];
	if (likely((gva & PAGE_MASK) == e->rtag && (gva & ~PAGE_MASK) + 8 <= PAGE_SIZE)) {
		*v = *(const volatile u64 *)(gva + e->addend);
		return 0;
	}
	return sys_read(c, gva, v, 8);
}

#endif
