/* Private to native*.c and fpu_exec.c: a prepared native instruction. */
#ifndef CPU_NATIVE_OP_H
#define CPU_NATIVE_OP_H

#include "cpu/fpu.h"
#include "cpu/native.h"

/* What must be enabled (SDM vol. 2, 2.4 to 2.8 and vol. 3, 13.1). */
enum native_check {
	NCHK_NONE,   /* general registers, legacy encoding */
	NCHK_VEX,    /* general registers, VEX encoding: not in real or virtual-8086 mode */
	NCHK_X87,    /* CR0.EM, CR0.TS */
	NCHK_WAIT,   /* CR0.MP and CR0.TS */
	NCHK_MMX,    /* CR0.EM -> #UD, CR0.TS */
	NCHK_SSE,    /* and CR4.OSFXSR */
	NCHK_FXSR,   /* CR0.EM or TS -> #NM: FXSAVE and FXRSTOR */
	NCHK_XSAVE,  /* CR4.OSXSAVE, CR0.TS */
	NCHK_AVX,    /* protected mode, CR4.OSXSAVE, XCR0[2:1], CR0.TS */
	NCHK_AVX512, /* and XCR0[7:5] */
	NCHK_COUNT
};

enum native_access { NACC_NONE = 0, NACC_R = 1, NACC_W = 2 };

enum native_flag {
	NF_MASKED = 1, /* the host decides which parts of the memory operand are touched */
	NF_X87 = 2,    /* leaves FIP, FDP and FOP */
	NF_FNINIT = 4, /* clears them */
	NF_LOCK = 8,
	NF_PROVEN = 16, /* the host has executed it: not undefined there */
};

/* Gathers and scatters, XSAVE family and x87 environments have no use for the stub's fields. */
struct native_gather {
	u8 count;       /* elements */
	u8 data_size, index_size; /* bytes: 4 or 8 */
	u8 data, index, mask; /* register numbers; mask: vector register, or opmask when evex */
	u8 vl;          /* bytes of the destination up to which it is written; the rest is cleared */
	u8 scale;       /* shift count */
	bool evex, scatter;
};

/* In the arena (read-only through the executable view), followed by its code. */
struct native_op {
	u8 check;     /* enum native_check */
	u8 access;    /* enum native_access of the memory operand */
	u8 flags;     /* enum native_flag */
	u8 insn_off;  /* from code: the guest's instruction */
	u8 abort_off; /* where native_fault() continues: returns 1 */
	u8 len;       /* of code */
	u16 size;     /* bytes of the memory operand */
	u16 fop;      /* x87: last-opcode field */
	u8 ac_align;  /* alignment that EFLAGS.AC checks where mem.c does not know it; 0: none */
	u8 pad;
	union {
		u8 code[4];
		struct native_gather gather;
	};
};

/* What a stub returns. */
enum { STUB_OK = 0, STUB_FAULT = 1, STUB_X87_PENDING = 0x80 /* FSW.ES: an unmasked x87 exception is pending */ };

/* How to build a stub. */
struct native_form {
	const void *z;     /* ZydisDecodedInstruction */
	const void *ops;   /* ZydisDecodedOperand[] */
	const u8 *bytes;
	u16 used, written; /* GPRs by number: loaded / stored */
	bool flags_in, flags_out;
	bool mem;          /* explicit memory operand through ModRM */
	bool rdi_mem;      /* MASKMOVDQU: implicit [rDI] */
	bool drop_66;      /* x87 environment: always the 32-bit format */
};

/* native_encode.c: copies op into the arena with its code; NULL when it cannot be encoded or there is no room. */
const struct native_op *native_emit(struct native *n, struct native_op op, const struct native_form *f);
/* MOVDIR64B from [rsi] to n->movdir. */
const struct native_op *native_emit_movdir64b(struct native *n, struct native_op op);
/* An op without code. */
const struct native_op *native_place(struct native *n, const struct native_op *op);
/* Bit of the GPR a Zydis register belongs to, 0: not a general register. */
u16 native_gpr_bit(unsigned zydis_register);

/* native_exec.c */
int native_nop(struct cpu *c, const struct insn *i);
int native_ud(struct cpu *c, const struct insn *i);
int native_touch(struct cpu *c, const struct insn *i);      /* CLFLUSH: checks read access */
int native_integer(struct cpu *c, const struct insn *i);    /* registers, no enable checks */
int native_register(struct cpu *c, const struct insn *i);   /* no memory operand */
int native_memory(struct cpu *c, const struct insn *i);
int native_movdir64b(struct cpu *c, const struct insn *i);  /* ra = address register */
int native_enabled_slow(struct cpu *c, const struct insn *i, unsigned check);
int native_raise(struct cpu *c, const struct insn *i);      /* n->fault as the guest's exception */
static inline u32 native_run(struct cpu *c, const struct native_op *op, void *mem)
{
	c->native->running = op;
	return ((u32(*)(struct cpu *, void *))(uintptr_t)op->code)(c, mem);
}
static inline void native_proven(struct cpu *c, const struct native_op *op)
{
	((struct native_op *)(c->native->rw + ((const u8 *)op - c->native->rx)))->flags |= NF_PROVEN;
}

/* Is an alignment check due (SDM 7.15, #AC)? */
static inline bool native_alignment_due(const struct cpu *c, u64 ea, unsigned align)
{
	return (ea & (align - 1)) && (c->sflags & FL_AC) && c->cpl == 3 && (c->cr0 & CR0_AM) &&
	       (!cpu_long_mode(c) || gva_canonical(ea));
}

/* native_gather.c */
int native_gather(struct cpu *c, const struct insn *i);

/* fpu_exec.c; aux of the XSAVE family: enum fpu_form bits */
enum { FORM_OPT = 1, FORM_COMPACT = 2, FORM_SUPERVISOR = 4, FORM_64 = 8 };
int fpu_op_fxsave(struct cpu *c, const struct insn *i);
int fpu_op_fxrstor(struct cpu *c, const struct insn *i);
int fpu_op_xsave(struct cpu *c, const struct insn *i);
int fpu_op_xrstor(struct cpu *c, const struct insn *i);
int fpu_op_fnstenv(struct cpu *c, const struct insn *i); /* and FNSAVE: op->size */
int fpu_op_fldenv(struct cpu *c, const struct insn *i);  /* and FRSTOR */

/* fpu.c: bytes of a component of the saved state, made valid (initial values) first; NULL: the host lacks it. */
u8 *fpu_component(struct cpu *c, enum xcomp comp);

static inline void native_copy(void *dst, const void *src, size_t n)
{
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}
static inline void native_fill(void *dst, u8 v, size_t n)
{
	__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(v) : "memory");
}

#endif
