/* A decoded instruction and the means of writing handlers for it. */
#ifndef CPU_INSN_H
#define CPU_INSN_H

#include "cpu/cpu.h"

typedef int (*insn_fn)(struct cpu *c, const struct insn *i);

enum insn_flag {
	IF_LOCK = 1,
	IF_REP = 2,      /* F3 on a string instruction */
	IF_REPNE = 4,    /* F2 on a string instruction */
	IF_SLOW_EA = 8,  /* operand address needs segment base/limit or address-size truncation: use insn_ea_slow */
	IF_WRAPPED = 16, /* fetched across a page boundary; decoded afresh each time */
	IF_MEM = 32,     /* has an explicit memory operand */
};

struct insn {
	insn_fn fn;
	s64 disp;    /* memory displacement; for RIP-relative operands relative to the block's first byte (base = R_RIP) */
	union {
		u64 imm;    /* immediate, sign-extended to 64 bits; branches: target relative to the block's first byte */
		void *stub; /* native.c */
	};
	u8 base, index; /* indices into c->r (R_ZERO: none) */
	u8 scale;       /* shift count */
	u8 seg;         /* enum sreg of the memory operand */
	u8 ra, rb;      /* BYTE OFFSETS into c->r of the first / second register operand (AH = 1) */
	u8 opsize;      /* 1, 2, 4, 8 bytes: effective operand size */
	u8 addrsize;    /* 2, 4, 8 */
	u8 len;         /* bytes of the instruction */
	u8 flags;       /* enum insn_flag */
	u16 off;        /* from the block's first byte */
	u8 aux;         /* handler's own (condition code, register number, ...) */
	u8 memsize;     /* bytes of the memory operand, 0: see handler */
	u8 idx;         /* position within the block */
	u8 op;          /* handler's own */
};

/* Executes the instruction behind this one in the block.  Tail call: constant stack. */
#define NEXT(c, i) return (i)[1].fn((c), &(i)[1])

#define REG8(c, off) (*(u8 *)((char *)(c)->r + (off)))
#define REG16(c, off) (*(u16 *)((char *)(c)->r + (off)))
#define REG32(c, off) (*(u32 *)((char *)(c)->r + (off)))
#define REG64(c, off) (*(u64 *)((char *)(c)->r + (off)))
/* Writing a 32-bit register clears the upper half. */
#define SET32(c, off, val) (REG64(c, off) = (u32)(val))

static inline u64 insn_rip(const struct cpu *c, const struct insn *i) { return c->r[R_RIP] + i->off; }
/* Address of the next instruction, truncated to the code size. */
u64 insn_next_rip(const struct cpu *c, const struct insn *i);

/* Reads/writes a register of i->opsize bytes at byte offset off (32-bit writes zero-extend). */
static inline u64 reg_read(const struct cpu *c, u8 off, unsigned size)
{
	const char *p = (const char *)c->r + off;
	switch (size) {
	case 1: return *(const u8 *)p;
	case 2: return *(const u16 *)p;
	case 4: return *(const u32 *)p;
	default: return *(const u64 *)p;
	}
}
static inline void reg_write(struct cpu *c, u8 off, unsigned size, u64 v)
{
	char *p = (char *)c->r + off;
	switch (size) {
	case 1: *(u8 *)p = (u8)v; break;
	case 2: *(u16 *)p = (u16)v; break;
	case 4: *(u64 *)p = (u32)v; break;
	default: *(u64 *)p = v; break;
	}
}

/* mem.c slow path of insn_ea: segment bases and limits, 16/32-bit addresses.  *fault: step to return when it is non-zero. */
u64 insn_ea_slow(struct cpu *c, const struct insn *i, unsigned size, enum access a, int *fault);

/* Linear address of the memory operand.  Sets *fault to a non-zero step on a segment violation. */
static inline u64 insn_ea(struct cpu *c, const struct insn *i, unsigned size, enum access a, int *fault)
{
	if (unlikely(i->flags & IF_SLOW_EA))
		return insn_ea_slow(c, i, size, a, fault);
	return c->r[i->base] + (c->r[i->index] << i->scale) + (u64)i->disp;
}
/* LEA's address: no segment, truncated to address size. */
static inline u64 insn_lea(const struct cpu *c, const struct insn *i)
{
	u64 ea = c->r[i->base] + (c->r[i->index] << i->scale) + (u64)i->disp;
	return i->addrsize == 8 ? ea : i->addrsize == 4 ? (u32)ea : (u16)ea;
}

/* ---- data access at a LINEAR address (mem.c) ----
 * Guest-mode access with the current privilege.  0 on success, else the step to return (fault raised with c->rip set
 * from i, or an MMIO exit).  Sizes 1..64; page-crossing handled; both pages checked before anything is written.
 * seg_ss: a fault for a non-canonical address is #SS instead of #GP. */
int mem_read_slow(struct cpu *c, const struct insn *i, u64 gva, void *buf, unsigned size);
int mem_write_slow(struct cpu *c, const struct insn *i, u64 gva, const void *buf, unsigned size);
/* Checks that [gva, gva+size) may be accessed (and is RAM, unless MMIO is allowed), raises the fault otherwise. */
int mem_probe(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a);
/* Host pointer for [gva, gva+size) for a read / write / read-modify-write when it is RAM within one page, else NULL in *p
 * with 0 returned (cross-page or MMIO: bounce); faults raise.  Writes: takes care of decoded code in the page. */
int mem_ptr(struct cpu *c, const struct insn *i, u64 gva, unsigned size, enum access a, void **p);
/* Supervisor access to descriptor tables, TSS and stacks during delivery: rights of CPL 0, SMAP as for implicit
 * accesses.  0 or STEP_FAULT with c->exc = the #PF (or STEP_EXIT). */
int sys_read(struct cpu *c, u64 gva, void *buf, unsigned size);
int sys_write(struct cpu *c, u64 gva, const void *buf, unsigned size);

static inline void *tlb_read_ptr(struct cpu *c, u64 gva, unsigned size)
{
	const struct tlb_entry *e = &c->tlb[(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];
	if (likely((gva & PAGE_MASK) == e->rtag && (gva & ~PAGE_MASK) + size <= PAGE_SIZE))
		return (void *)(gva + e->addend);
	return NULL;
}
static inline void *tlb_write_ptr(struct cpu *c, u64 gva, unsigned size)
{
	const struct tlb_entry *e = &c->tlb[(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];
	if (likely((gva & PAGE_MASK) == e->wtag && (gva & ~PAGE_MASK) + size <= PAGE_SIZE))
		return (void *)(gva + e->addend);
	return NULL;
}

#define DEFINE_MEM(bits)                                                                              \
	static inline int mem_read##bits(struct cpu *c, const struct insn *i, u64 gva, u##bits *v)    \
	{                                                                                              \
		const u##bits *p = tlb_read_ptr(c, gva, (bits) / 8);                                   \
		if (likely(p != NULL)) {                                                               \
			*v = *(const volatile u##bits *)p;                                             \
			return 0;                                                                      \
		}                                                                                      \
		return mem_read_slow(c, i, gva, v, (bits) / 8);                                        \
	}                                                                                              \
	static inline int mem_write##bits(struct cpu *c, const struct insn *i, u64 gva, u##bits v)    \
	{                                                                                              \
		u##bits *p = tlb_write_ptr(c, gva, (bits) / 8);                                        \
		if (likely(p != NULL)) {                                                               \
			*(volatile u##bits *)p = v;                                                    \
			return 0;                                                                      \
		}                                                                                      \
		return mem_write_slow(c, i, gva, &v, (bits) / 8);                                      \
	}
DEFINE_MEM(8)
DEFINE_MEM(16)
DEFINE_MEM(32)
DEFINE_MEM(64)
#undef DEFINE_MEM

/* Handlers in other files, selected by decode.c.  Prototype of all: insn_fn. */
#define H(name) int name(struct cpu *c, const struct insn *i)

/* native.c: anything unprivileged without control flow, executed by the host on guest state.
 * native_prepare() is called at decode time (FPU saved): builds the stub for the instruction whose raw bytes are given
 * and fills i->fn, i->stub and i->aux.  False: not such an instruction (caller treats it as unimplemented).
 * zinsn/zops are ZydisDecodedInstruction * / ZydisDecodedOperand[10]. */
bool native_prepare(struct cpu *c, struct insn *i, const u8 *bytes, const void *zinsn, const void *zops);

/* seg.c / exec_sys.c: system instructions (owner of STEP_MODE). */
H(op_mov_to_sreg);   /* aux = sreg; ra or memory */
H(op_mov_from_sreg); /* aux = sreg */
H(op_pop_sreg);
H(op_push_sreg);
H(op_lfs);           /* LDS/LES/LFS/LGS/LSS: aux = sreg, ra, memory far pointer */
H(op_call_far_mem); H(op_jmp_far_mem); H(op_call_far_imm); H(op_jmp_far_imm); /* imm: selector in imm bits 47:32 / offset 31:0 */
H(op_ret_far);       /* imm = bytes to pop */
H(op_iret);
H(op_int);           /* imm = vector */
H(op_int3); H(op_int1); H(op_into); H(op_bound);
H(op_syscall); H(op_sysret); H(op_sysenter); H(op_sysexit); /* opsize 8: REX.W */
H(op_hlt); H(op_cli); H(op_sti); H(op_pushf); H(op_popf);
H(op_lgdt); H(op_lidt); H(op_sgdt); H(op_sidt); H(op_lldt); H(op_ltr); H(op_sldt); H(op_str); H(op_smsw); H(op_lmsw);
H(op_mov_from_cr); H(op_mov_to_cr); H(op_mov_from_dr); H(op_mov_to_dr); /* ra = GPR byte offset, aux = CR/DR number */
H(op_clts); H(op_invd); H(op_wbinvd); H(op_invlpg); H(op_invpcid); H(op_swapgs);
H(op_rdmsr); H(op_wrmsr); H(op_cpuid); H(op_rdtsc); H(op_rdtscp); H(op_rdpmc); H(op_rdpid);
H(op_xgetbv); H(op_xsetbv);
H(op_rdfsbase); H(op_rdgsbase); H(op_wrfsbase); H(op_wrgsbase); /* ra, opsize */
H(op_stac); H(op_clac);
H(op_lar); H(op_lsl); H(op_verr); H(op_verw); H(op_arpl);
H(op_in); H(op_out); /* aux = 1: port in DX, else imm */
H(op_monitor); H(op_mwait); H(op_rdrand); H(op_rdseed); H(op_ud);
H(op_xbegin); H(op_xend); H(op_xabort); H(op_xtest);

#endif
