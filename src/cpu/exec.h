/* Handlers of ordinary (integer, data movement, branch, string) instructions,
 * chosen by decode.c.  Index [log2 of operand bytes] where sizes vary. */
#ifndef CPU_EXEC_H
#define CPU_EXEC_H

#include "cpu/insn.h"

enum alu_op { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP, ALU_TEST, ALU_COUNT };
enum alu_form { FORM_RR, FORM_RM, FORM_MR, FORM_RI, FORM_MI, FORM_COUNT };
extern const insn_fn exec_alu[ALU_COUNT][FORM_COUNT][4];

enum unary_op { UN_INC, UN_DEC, UN_NEG, UN_NOT, UN_COUNT };
extern const insn_fn exec_unary[UN_COUNT][2][4]; /* [op][memory] */

enum shift_op { SH_SHL, SH_SHR, SH_SAR, SH_ROL, SH_ROR, SH_COUNT };
extern const insn_fn exec_shift[SH_COUNT][2][2][4]; /* [op][count in CL][memory] */

extern const insn_fn exec_imul2[2][4];   /* [memory]: ra *= rb or memory */
extern const insn_fn exec_imul3[2][4];   /* [memory]: ra = rb or memory * imm */
extern const insn_fn exec_mul1[2][2][4]; /* [signed][memory]: rDX:rAX = rAX * rb or memory */

extern const insn_fn exec_mov[FORM_COUNT][4];
extern const insn_fn exec_movzx[2][4][4], exec_movsx[2][4][4]; /* [memory][source size][destination size] */
extern const insn_fn exec_cmov[2][4]; /* [memory]; aux = condition */
H(op_setcc_r); H(op_setcc_m);
H(op_pause); /* exclusive.c: only with other CPUs */
H(op_lea); H(op_nop); H(op_xchg_rr); H(op_cbw); H(op_cwd); H(op_lahf); H(op_sahf); H(op_xlat);
H(op_clc); H(op_stc); H(op_cmc); H(op_cld); H(op_std); H(op_salc);
H(op_bt_mem); /* register bit offset into memory; aux: 0 BT 1 BTS 2 BTR 3 BTC; IF_LOCK */
H(op_daa); H(op_das); H(op_aaa); H(op_aas); H(op_aam); H(op_aad);

extern const insn_fn exec_jcc[16];
H(op_jmp); H(op_jmp_r); H(op_jmp_m); H(op_call); H(op_call_r); H(op_call_m); H(op_ret);
H(op_loop);   /* aux: 0 LOOP 1 LOOPE 2 LOOPNE 3 JRCXZ */
H(op_push_r); H(op_push_i); H(op_push_m); H(op_pop_r); H(op_pop_m); H(op_pusha); H(op_popa); H(op_enter); H(op_leave);

H(op_movs); H(op_stos); H(op_lods); H(op_scas); H(op_cmps); H(op_ins); H(op_outs);

/* sys's: permission for a port (CPL/IOPL/TSS bitmap); 0 or the step of the fault. */
int io_check(struct cpu *c, const struct insn *i, u16 port, unsigned size);
void io_breakpoint(struct cpu *c, u16 port, unsigned size);
/* mem.c: linear address of offset off in segment sr, limits checked. */
int seg_linear(struct cpu *c, const struct insn *i, enum sreg sr, u64 off, unsigned size, enum access a, u64 *lin);

/* Condition codes in encoding order (SDM appendix B), from a flags image. */
static inline bool cond_true(u64 f, unsigned cc)
{
	bool r;
	switch (cc >> 1) {
	case 0: r = f & FL_OF; break;
	case 1: r = f & FL_CF; break;
	case 2: r = f & FL_ZF; break;
	case 3: r = f & (FL_CF | FL_ZF); break;
	case 4: r = f & FL_SF; break;
	case 5: r = f & FL_PF; break;
	case 6: r = ((f >> 7) ^ (f >> 11)) & 1; break;
	default: r = (f & FL_ZF) || (((f >> 7) ^ (f >> 11)) & 1); break;
	}
	return r ^ (cc & 1);
}

#endif
