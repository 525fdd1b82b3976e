/* From bytes to struct insn.  Zydis does the decoding proper; here every
 * mnemonic is given its handler.  Anything without an entry goes to
 * native_prepare() (unprivileged, no control flow: the host executes it), and
 * what that refuses becomes op_unimplemented, which names itself and ends the
 * VM when - and only when - it is executed.
 *
 * The caller has saved the FPU: Zydis is an ordinary library. */
#include <Zydis/Zydis.h>

#include "cpu/block.h"
#include "cpu/exclusive.h"
#include "cpu/exec.h"
#include "cpu/native.h"

struct decoder {
	ZydisDecoder d[3]; /* by MODE_CODE16 / 32 / 64 */
	ZydisFormatter formatter;
};

size_t decoder_size(void) { return sizeof(struct decoder); }

struct decoder *decoder_init(void *mem)
{
	struct decoder *d = mem;
	ZydisDecoderInit(&d->d[MODE_CODE16], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
	ZydisDecoderInit(&d->d[MODE_CODE32], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&d->d[MODE_CODE64], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (unsigned k = 0; k < 3; k++) {
		/* Not offered by this CPU (CET, MPX, KNC): their encodings are NOPs or undefined, as on a CPU without them. */
		ZydisDecoderEnableMode(&d->d[k], ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
		ZydisDecoderEnableMode(&d->d[k], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
		ZydisDecoderEnableMode(&d->d[k], ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
	}
	ZydisFormatterInit(&d->formatter, ZYDIS_FORMATTER_STYLE_INTEL);
	return d;
}

static H(op_unimplemented) { return cpu_unimplemented(c, i, "instruction not implemented"); }

bool decode_implemented(const struct insn *i) { return i->fn != op_unimplemented; }

static unsigned log2_size(unsigned bytes) { return bytes == 1 ? 0 : bytes == 2 ? 1 : bytes == 4 ? 2 : 3; }

/* Byte offset into c->r of a general-purpose register. */
static u8 reg_offset(ZydisRegister r)
{
	if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
		return (u8)(8 * (r - ZYDIS_REGISTER_AH) + 1);
	return (u8)(8 * ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r)));
}

static bool is_gpr(const ZydisDecodedOperand *o)
{
	if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	switch (ZydisRegisterGetClass(o->reg.value)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64: return true;
	default: return false;
	}
}

static u8 sreg_number(ZydisRegister r)
{
	switch (r) {
	case ZYDIS_REGISTER_ES: return ES;
	case ZYDIS_REGISTER_CS: return CS;
	case ZYDIS_REGISTER_SS: return SS;
	case ZYDIS_REGISTER_FS: return FS;
	case ZYDIS_REGISTER_GS: return GS;
	default: return DS;
	}
}

static u8 address_reg(ZydisRegister r)
{
	if (r == ZYDIS_REGISTER_NONE)
		return R_ZERO;
	if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
		return R_RIP;
	return reg_offset(r) / 8;
}

static void set_memory(struct insn *out, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *o, bool code64)
{
	out->flags |= IF_MEM;
	out->base = address_reg(o->mem.base);
	/* ModRM.mod = 0 with SIB.base = 5 has no base, REX.B or not; Zydis 4.0 says R13D under an address-size prefix. */
	if ((zi->attributes & ZYDIS_ATTRIB_HAS_SIB) && zi->raw.modrm.mod == 0 && zi->raw.sib.base == 5)
		out->base = R_ZERO;
	out->index = address_reg(o->mem.index);
	out->scale = (u8)log2_size(o->mem.scale ? o->mem.scale : 1);
	out->disp = o->mem.disp.has_displacement || o->mem.disp.value ? o->mem.disp.value :
		    out->base == R_ZERO				      ? zi->raw.disp.value :
									0;
	if (out->base == R_RIP)
		out->disp += out->off + zi->length;
	out->seg = sreg_number(o->mem.segment);
	out->memsize = (u8)(o->size / 8 > 255 ? 0 : o->size / 8);
	if (!code64 || out->seg == FS || out->seg == GS || out->addrsize != 8)
		out->flags |= IF_SLOW_EA;
}

/* Operands of two-operand integer instructions → form; fills ra, rb, imm.  -1: something else. */
static int two_operand_form(struct insn *out, const ZydisDecodedOperand *o)
{
	bool m0 = o[0].type == ZYDIS_OPERAND_TYPE_MEMORY, m1 = o[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
	bool i1 = o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	if (is_gpr(&o[0]))
		out->ra = reg_offset(o[0].reg.value);
	if (is_gpr(&o[1]))
		out->rb = reg_offset(o[1].reg.value);
	if (i1)
		out->imm = o[1].imm.is_signed ? (u64)o[1].imm.value.s : o[1].imm.value.u;
	if (m0 && is_gpr(&o[1]))
		return FORM_MR;
	if (m0 && i1)
		return FORM_MI;
	if (is_gpr(&o[0]) && m1)
		return FORM_RM;
	if (is_gpr(&o[0]) && is_gpr(&o[1]))
		return FORM_RR;
	if (is_gpr(&o[0]) && i1)
		return FORM_RI;
	return -1;
}

static int condition_code(ZydisMnemonic m)
{
	switch (m) {
#define CC(n, a) case ZYDIS_MNEMONIC_J##a: case ZYDIS_MNEMONIC_SET##a: case ZYDIS_MNEMONIC_CMOV##a: return n;
	CC(0, O) CC(1, NO) CC(2, B) CC(3, NB) CC(4, Z) CC(5, NZ) CC(6, BE) CC(7, NBE)
	CC(8, S) CC(9, NS) CC(10, P) CC(11, NP) CC(12, L) CC(13, NL) CC(14, LE) CC(15, NLE)
#undef CC
	default: return -1;
	}
}

/* ---- system instructions: a plain table ---- */

enum { ENDS = 1, ALONE = 2 };
static const struct sys_entry { ZydisMnemonic m; insn_fn fn; u8 flags; } sys_table[] = {
	{ ZYDIS_MNEMONIC_ARPL, op_arpl, 0 },
	{ ZYDIS_MNEMONIC_BOUND, op_bound, 0 },
	{ ZYDIS_MNEMONIC_CLAC, op_clac, ENDS },
	{ ZYDIS_MNEMONIC_CLI, op_cli, 0 },
	{ ZYDIS_MNEMONIC_CLTS, op_clts, ENDS },
	{ ZYDIS_MNEMONIC_CPUID, op_cpuid, ALONE },
	{ ZYDIS_MNEMONIC_HLT, op_hlt, ENDS },
	{ ZYDIS_MNEMONIC_INT, op_int, ENDS },
	{ ZYDIS_MNEMONIC_INT1, op_int1, ENDS },
	{ ZYDIS_MNEMONIC_INT3, op_int3, ENDS },
	{ ZYDIS_MNEMONIC_INTO, op_into, ENDS },
	{ ZYDIS_MNEMONIC_INVD, op_invd, ENDS },
	{ ZYDIS_MNEMONIC_INVLPG, op_invlpg, ENDS },
	{ ZYDIS_MNEMONIC_INVPCID, op_invpcid, ENDS },
	{ ZYDIS_MNEMONIC_IRET, op_iret, ENDS },
	{ ZYDIS_MNEMONIC_IRETD, op_iret, ENDS },
	{ ZYDIS_MNEMONIC_IRETQ, op_iret, ENDS },
	{ ZYDIS_MNEMONIC_LAR, op_lar, 0 },
	{ ZYDIS_MNEMONIC_LGDT, op_lgdt, ENDS },
	{ ZYDIS_MNEMONIC_LIDT, op_lidt, ENDS },
	{ ZYDIS_MNEMONIC_LLDT, op_lldt, ENDS },
	{ ZYDIS_MNEMONIC_LMSW, op_lmsw, ENDS },
	{ ZYDIS_MNEMONIC_LSL, op_lsl, 0 },
	{ ZYDIS_MNEMONIC_LTR, op_ltr, ENDS },
	{ ZYDIS_MNEMONIC_MONITOR, op_monitor, 0 },
	{ ZYDIS_MNEMONIC_MWAIT, op_mwait, ENDS },
	{ ZYDIS_MNEMONIC_POPF, op_popf, ENDS },
	{ ZYDIS_MNEMONIC_POPFD, op_popf, ENDS },
	{ ZYDIS_MNEMONIC_POPFQ, op_popf, ENDS },
	{ ZYDIS_MNEMONIC_PUSHF, op_pushf, 0 },
	{ ZYDIS_MNEMONIC_PUSHFD, op_pushf, 0 },
	{ ZYDIS_MNEMONIC_PUSHFQ, op_pushf, 0 },
	{ ZYDIS_MNEMONIC_RDFSBASE, op_rdfsbase, 0 },
	{ ZYDIS_MNEMONIC_RDGSBASE, op_rdgsbase, 0 },
	{ ZYDIS_MNEMONIC_RDMSR, op_rdmsr, ALONE },
	{ ZYDIS_MNEMONIC_RDPID, op_rdpid, 0 },
	{ ZYDIS_MNEMONIC_RDPMC, op_rdpmc, 0 },
	{ ZYDIS_MNEMONIC_RDRAND, op_rdrand, 0 },
	{ ZYDIS_MNEMONIC_RDSEED, op_rdseed, 0 },
	{ ZYDIS_MNEMONIC_RDTSC, op_rdtsc, ALONE },
	{ ZYDIS_MNEMONIC_RDTSCP, op_rdtscp, ALONE },
	{ ZYDIS_MNEMONIC_SGDT, op_sgdt, 0 },
	{ ZYDIS_MNEMONIC_SIDT, op_sidt, 0 },
	{ ZYDIS_MNEMONIC_SLDT, op_sldt, 0 },
	{ ZYDIS_MNEMONIC_SMSW, op_smsw, 0 },
	{ ZYDIS_MNEMONIC_STAC, op_stac, ENDS },
	{ ZYDIS_MNEMONIC_STI, op_sti, ENDS },
	{ ZYDIS_MNEMONIC_STR, op_str, 0 },
	{ ZYDIS_MNEMONIC_SWAPGS, op_swapgs, 0 },
	{ ZYDIS_MNEMONIC_SYSCALL, op_syscall, ENDS },
	{ ZYDIS_MNEMONIC_SYSENTER, op_sysenter, ENDS },
	{ ZYDIS_MNEMONIC_SYSEXIT, op_sysexit, ENDS },
	{ ZYDIS_MNEMONIC_SYSRET, op_sysret, ENDS },
	{ ZYDIS_MNEMONIC_UD0, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_UD1, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_UD2, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VERR, op_verr, 0 },
	{ ZYDIS_MNEMONIC_VERW, op_verw, 0 },
	{ ZYDIS_MNEMONIC_WBINVD, op_wbinvd, ENDS },
	{ ZYDIS_MNEMONIC_WRFSBASE, op_wrfsbase, 0 },
	{ ZYDIS_MNEMONIC_WRGSBASE, op_wrgsbase, 0 },
	{ ZYDIS_MNEMONIC_WRMSR, op_wrmsr, ALONE },
	{ ZYDIS_MNEMONIC_XABORT, op_xabort, 0 },
	{ ZYDIS_MNEMONIC_XBEGIN, op_xbegin, ENDS },
	{ ZYDIS_MNEMONIC_XEND, op_xend, 0 },
	{ ZYDIS_MNEMONIC_XGETBV, op_xgetbv, 0 },
	{ ZYDIS_MNEMONIC_XSETBV, op_xsetbv, ENDS },
	{ ZYDIS_MNEMONIC_XTEST, op_xtest, 0 },
	/* Virtualization and other privileged extensions this CPU does not have. */
	{ ZYDIS_MNEMONIC_VMCALL, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMMCALL, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMXON, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMXOFF, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMREAD, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMWRITE, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMLAUNCH, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMRESUME, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMPTRLD, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMPTRST, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMCLEAR, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMFUNC, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_INVEPT, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_INVVPID, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMRUN, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMLOAD, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_VMSAVE, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_STGI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_CLGI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_SKINIT, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_INVLPGA, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_INVLPGB, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_TLBSYNC, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_RSM, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_GETSEC, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_ENCLS, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_ENCLU, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_ENCLV, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_PCONFIG, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_RDPKRU, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_WRPKRU, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_MONITORX, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_MWAITX, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_UMONITOR, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_UMWAIT, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_TPAUSE, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_ENQCMD, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_ENQCMDS, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_SENDUIPI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_UIRET, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_CLUI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_STUI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_TESTUI, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_CLZERO, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_RDPRU, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_PSMASH, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_PVALIDATE, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_RMPADJUST, op_ud, ENDS },
	{ ZYDIS_MNEMONIC_RMPUPDATE, op_ud, ENDS },
};

/* One byte's worth of direct indexing would be larger than the whole table; a binary search needs the enum's order. */
static const struct sys_entry *sys_find(ZydisMnemonic m)
{
	for (unsigned k = 0; k < ARRAY_SIZE(sys_table); k++)
		if (sys_table[k].m == m)
			return &sys_table[k];
	return NULL;
}

/* ---- one case per family ---- */

struct ctx {
	struct cpu *c;
	const u8 *bytes;
	const ZydisDecodedInstruction *zi;
	const ZydisDecodedOperand *o;
	struct insn *out;
	bool *ends, *alone;
	bool code64;
};

static void use_native(const struct ctx *x)
{
	if (!native_prepare(x->c, x->out, x->bytes, x->zi, x->o)) {
		x->out->fn = op_unimplemented;
		*x->ends = true;
	}
}

static bool locked(const struct ctx *x) { return x->zi->attributes & ZYDIS_ATTRIB_HAS_LOCK; }

static void alu(const struct ctx *x, enum alu_op op)
{
	int f = two_operand_form(x->out, x->o);
	x->out->opsize = (u8)(x->o[0].size / 8);
	if (f < 0 || locked(x))
		use_native(x);
	else
		x->out->fn = exec_alu[op][f][log2_size(x->out->opsize)];
}

static void unary(const struct ctx *x, enum unary_op op)
{
	bool m = x->o[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
	x->out->opsize = (u8)(x->o[0].size / 8);
	if (locked(x)) {
		use_native(x);
		return;
	}
	if (!m)
		x->out->ra = reg_offset(x->o[0].reg.value);
	x->out->fn = exec_unary[op][m][log2_size(x->out->opsize)];
}

static void shift(const struct ctx *x, enum shift_op op)
{
	bool m = x->o[0].type == ZYDIS_OPERAND_TYPE_MEMORY, cl = x->o[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	x->out->opsize = (u8)(x->o[0].size / 8);
	if (!m)
		x->out->ra = reg_offset(x->o[0].reg.value);
	if (!cl)
		x->out->imm = x->o[1].imm.value.u;
	x->out->fn = exec_shift[op][cl][m][log2_size(x->out->opsize)];
}

static void branch(const struct ctx *x, insn_fn rel, insn_fn reg, insn_fn mem)
{
	struct insn *out = x->out;
	const ZydisDecodedOperand *o = &x->o[0];
	*x->ends = true;
	out->opsize = (u8)(x->zi->operand_width / 8);
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		out->imm = (u64)o->imm.value.s + out->off + x->zi->length;
		out->fn = rel;
	} else if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		out->fn = mem;
	} else {
		out->ra = reg_offset(o->reg.value);
		out->fn = reg;
	}
}

static void far_branch(const struct ctx *x, insn_fn imm, insn_fn mem)
{
	*x->ends = true;
	x->out->opsize = (u8)(x->zi->operand_width / 8);
	if (x->o[0].type == ZYDIS_OPERAND_TYPE_POINTER) {
		x->out->imm = (u64)x->o[0].ptr.segment << 32 | x->o[0].ptr.offset;
		x->out->fn = imm;
	} else {
		x->out->fn = mem;
	}
}

static void string(const struct ctx *x, insn_fn fn)
{
	struct insn *out = x->out;
	if (x->zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
		out->flags |= IF_REP;
	if (x->zi->attributes & ZYDIS_ATTRIB_HAS_REPNE)
		out->flags |= IF_REPNE;
	/* The source's segment; the destination is always ES. */
	out->seg = DS;
	out->flags &= (u8)~(IF_MEM | IF_SLOW_EA);
	for (unsigned k = 0; k < x->zi->operand_count; k++)
		if (x->o[k].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, x->o[k].mem.base) == ZYDIS_REGISTER_RSI) {
			out->seg = sreg_number(x->o[k].mem.segment);
			out->opsize = (u8)(x->o[k].size / 8);
		}
	out->fn = fn;
}

/* A string instruction's element size from its memory operand. */
static u8 element_size(const struct ctx *x)
{
	for (unsigned k = 0; k < x->zi->operand_count; k++)
		if (x->o[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return (u8)(x->o[k].size / 8);
	return 1;
}

static void string_op(const struct ctx *x, insn_fn fn)
{
	x->out->opsize = element_size(x);
	string(x, fn);
}

static void mov(const struct ctx *x)
{
	struct insn *out = x->out;
	const ZydisDecodedOperand *o = x->o;
	for (unsigned k = 0; k < 2; k++) {
		if (o[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		const ZydisRegisterClass cl = ZydisRegisterGetClass(o[k].reg.value);
		const ZydisDecodedOperand *other = &o[1 - k];
		if (cl != ZYDIS_REGCLASS_SEGMENT && cl != ZYDIS_REGCLASS_CONTROL && cl != ZYDIS_REGCLASS_DEBUG)
			continue;
		if (is_gpr(other))
			out->ra = reg_offset(other->reg.value);
		if (cl == ZYDIS_REGCLASS_SEGMENT) {
			out->aux = sreg_number(o[k].reg.value);
			out->opsize = (u8)(other->size / 8);
			out->fn = k == 0 ? op_mov_to_sreg : op_mov_from_sreg;
			*x->ends = k == 0;
		} else {
			out->aux = (u8)ZydisRegisterGetId(o[k].reg.value);
			out->opsize = (u8)(other->size / 8);
			if (cl == ZYDIS_REGCLASS_CONTROL)
				out->fn = k == 0 ? op_mov_to_cr : op_mov_from_cr;
			else
				out->fn = k == 0 ? op_mov_to_dr : op_mov_from_dr;
			*x->ends = k == 0;
		}
		return;
	}
	int f = two_operand_form(out, o);
	out->opsize = (u8)(o[0].size / 8);
	if (f < 0)
		use_native(x);
	else
		out->fn = exec_mov[f][log2_size(out->opsize)];
}

static void widen(const struct ctx *x, const insn_fn table[2][4][4])
{
	bool m = x->o[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
	x->out->opsize = (u8)(x->o[0].size / 8);
	x->out->ra = reg_offset(x->o[0].reg.value);
	if (!m)
		x->out->rb = reg_offset(x->o[1].reg.value);
	unsigned from = log2_size(x->o[1].size / 8), to = log2_size(x->out->opsize);
	/* MOVSXD with a 16-bit destination reads 16 bits (SDM). */
	if (from > to)
		from = to;
	x->out->fn = table[m][from][to];
}

static void push_pop(const struct ctx *x)
{
	struct insn *out = x->out;
	const ZydisDecodedOperand *o = &x->o[0];
	bool is_push = x->zi->mnemonic == ZYDIS_MNEMONIC_PUSH;
	out->opsize = (u8)(x->zi->operand_width / 8);
	switch (o->type) {
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		out->imm = o->imm.is_signed ? (u64)o->imm.value.s : o->imm.value.u;
		out->fn = op_push_i;
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY: out->fn = is_push ? op_push_m : op_pop_m; break;
	default:
		if (ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT) {
			out->aux = sreg_number(o->reg.value);
			out->fn = is_push ? op_push_sreg : op_pop_sreg;
			*x->ends = !is_push;
		} else {
			out->ra = reg_offset(o->reg.value);
			out->fn = is_push ? op_push_r : op_pop_r;
		}
	}
}

static void bit_test(const struct ctx *x, u8 kind)
{
	if (x->o[0].type != ZYDIS_OPERAND_TYPE_MEMORY || x->o[1].type != ZYDIS_OPERAND_TYPE_REGISTER) {
		use_native(x);
		return;
	}
	x->out->opsize = (u8)(x->o[1].size / 8);
	x->out->rb = reg_offset(x->o[1].reg.value);
	x->out->aux = kind;
	if (locked(x))
		x->out->flags |= IF_LOCK;
	x->out->fn = op_bt_mem;
}

static void multiply(const struct ctx *x, bool is_signed)
{
	struct insn *out = x->out;
	const unsigned n = x->zi->operand_count_visible;
	const ZydisDecodedOperand *src = &x->o[n == 1 ? 0 : 1];
	bool m = src->type == ZYDIS_OPERAND_TYPE_MEMORY;
	out->opsize = (u8)(x->o[0].size / 8);
	const unsigned s = log2_size(out->opsize);
	if (n == 1) {
		if (!m)
			out->ra = reg_offset(src->reg.value);
		out->fn = exec_mul1[is_signed][m][s];
		return;
	}
	out->ra = reg_offset(x->o[0].reg.value);
	if (!m)
		out->rb = reg_offset(src->reg.value);
	if (n == 3)
		out->imm = (u64)x->o[2].imm.value.s;
	out->fn = n == 2 ? exec_imul2[m][s] : exec_imul3[m][s];
}

static void exchange(const struct ctx *x)
{
	if (!is_gpr(&x->o[0]) || !is_gpr(&x->o[1])) {
		use_native(x); /* memory: implicitly locked */
		return;
	}
	x->out->opsize = (u8)(x->o[0].size / 8);
	x->out->ra = reg_offset(x->o[0].reg.value);
	x->out->rb = reg_offset(x->o[1].reg.value);
	x->out->fn = op_xchg_rr;
}

static void port_io(const struct ctx *x, insn_fn fn, unsigned port_operand)
{
	const ZydisDecodedOperand *p = &x->o[port_operand];
	x->out->aux = p->type == ZYDIS_OPERAND_TYPE_REGISTER;
	if (!x->out->aux)
		x->out->imm = p->imm.value.u & 0xff;
	x->out->opsize = (u8)(x->o[1 - port_operand].size / 8);
	x->out->fn = fn;
	*x->alone = true;
}

static void simple(const struct ctx *x, insn_fn fn, unsigned opsize)
{
	x->out->fn = fn;
	x->out->opsize = (u8)opsize;
}

static void set_handler(const struct ctx *x)
{
	const ZydisDecodedOperand *o = x->o;
	struct insn *out = x->out;
	const ZydisMnemonic m = x->zi->mnemonic;
	const unsigned width = x->zi->operand_width / 8u;

	int cc = condition_code(m);
	if (cc >= 0) {
		out->aux = (u8)cc;
		bool mem = x->zi->operand_count_visible && o[x->zi->operand_count_visible - 1].type == ZYDIS_OPERAND_TYPE_MEMORY;
		switch (x->zi->meta.category) {
		case ZYDIS_CATEGORY_COND_BR: branch(x, exec_jcc[cc], NULL, NULL); break;
		case ZYDIS_CATEGORY_SETCC:
			if (!mem)
				out->ra = reg_offset(o[0].reg.value);
			out->fn = mem ? op_setcc_m : op_setcc_r;
			break;
		default: /* CMOVcc */
			out->opsize = (u8)(o[0].size / 8);
			out->ra = reg_offset(o[0].reg.value);
			if (!mem)
				out->rb = reg_offset(o[1].reg.value);
			out->fn = exec_cmov[mem][log2_size(out->opsize)];
		}
		return;
	}

	switch (m) {
	case ZYDIS_MNEMONIC_ADD: alu(x, ALU_ADD); return;
	case ZYDIS_MNEMONIC_OR: alu(x, ALU_OR); return;
	case ZYDIS_MNEMONIC_ADC: alu(x, ALU_ADC); return;
	case ZYDIS_MNEMONIC_SBB: alu(x, ALU_SBB); return;
	case ZYDIS_MNEMONIC_AND: alu(x, ALU_AND); return;
	case ZYDIS_MNEMONIC_SUB: alu(x, ALU_SUB); return;
	case ZYDIS_MNEMONIC_XOR: alu(x, ALU_XOR); return;
	case ZYDIS_MNEMONIC_CMP: alu(x, ALU_CMP); return;
	case ZYDIS_MNEMONIC_TEST: alu(x, ALU_TEST); return;
	case ZYDIS_MNEMONIC_INC: unary(x, UN_INC); return;
	case ZYDIS_MNEMONIC_DEC: unary(x, UN_DEC); return;
	case ZYDIS_MNEMONIC_NEG: unary(x, UN_NEG); return;
	case ZYDIS_MNEMONIC_NOT: unary(x, UN_NOT); return;
	case ZYDIS_MNEMONIC_SHL: shift(x, SH_SHL); return;
	case ZYDIS_MNEMONIC_SHR: shift(x, SH_SHR); return;
	case ZYDIS_MNEMONIC_SAR: shift(x, SH_SAR); return;
	case ZYDIS_MNEMONIC_ROL: shift(x, SH_ROL); return;
	case ZYDIS_MNEMONIC_ROR: shift(x, SH_ROR); return;
	case ZYDIS_MNEMONIC_MUL: multiply(x, false); return;
	case ZYDIS_MNEMONIC_IMUL: multiply(x, true); return;
	case ZYDIS_MNEMONIC_BT: bit_test(x, 0); return;
	case ZYDIS_MNEMONIC_BTS: bit_test(x, 1); return;
	case ZYDIS_MNEMONIC_BTR: bit_test(x, 2); return;
	case ZYDIS_MNEMONIC_BTC: bit_test(x, 3); return;
	case ZYDIS_MNEMONIC_MOV: mov(x); return;
	case ZYDIS_MNEMONIC_MOVZX: widen(x, exec_movzx); return;
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD: widen(x, exec_movsx); return;
	case ZYDIS_MNEMONIC_XCHG: exchange(x); return;
	case ZYDIS_MNEMONIC_LEA:
		out->ra = reg_offset(o[0].reg.value);
		simple(x, op_lea, o[0].size / 8u);
		return;
	case ZYDIS_MNEMONIC_PAUSE:
		out->fn = cpu_alone(x->c) ? op_nop : op_pause;
		return;
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
		out->fn = op_nop;
		return;
	/* Weakly ordered stores (MOVNT) are made natively: other CPUs must see them in the order the guest asks for. */
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
		if (!cpu_alone(x->c)) {
			use_native(x);
			return;
		}
		out->fn = op_nop;
		return;
	case ZYDIS_MNEMONIC_CBW: simple(x, op_cbw, 2); return;
	case ZYDIS_MNEMONIC_CWDE: simple(x, op_cbw, 4); return;
	case ZYDIS_MNEMONIC_CDQE: simple(x, op_cbw, 8); return;
	case ZYDIS_MNEMONIC_CWD: simple(x, op_cwd, 2); return;
	case ZYDIS_MNEMONIC_CDQ: simple(x, op_cwd, 4); return;
	case ZYDIS_MNEMONIC_CQO: simple(x, op_cwd, 8); return;
	case ZYDIS_MNEMONIC_LAHF: out->fn = op_lahf; return;
	case ZYDIS_MNEMONIC_SAHF: out->fn = op_sahf; return;
	case ZYDIS_MNEMONIC_XLAT: string(x, op_xlat);
		for (unsigned k = 0; k < x->zi->operand_count; k++)
			if (o[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
				out->seg = sreg_number(o[k].mem.segment);
		return;
	case ZYDIS_MNEMONIC_CLC: out->fn = op_clc; return;
	case ZYDIS_MNEMONIC_STC: out->fn = op_stc; return;
	case ZYDIS_MNEMONIC_CMC: out->fn = op_cmc; return;
	case ZYDIS_MNEMONIC_CLD: out->fn = op_cld; return;
	case ZYDIS_MNEMONIC_STD: out->fn = op_std; return;
	case ZYDIS_MNEMONIC_SALC: out->fn = op_salc; return;
	case ZYDIS_MNEMONIC_DAA: out->fn = op_daa; return;
	case ZYDIS_MNEMONIC_DAS: out->fn = op_das; return;
	case ZYDIS_MNEMONIC_AAA: out->fn = op_aaa; return;
	case ZYDIS_MNEMONIC_AAS: out->fn = op_aas; return;
	case ZYDIS_MNEMONIC_AAM: out->imm = o[0].imm.value.u; out->fn = op_aam; return;
	case ZYDIS_MNEMONIC_AAD: out->imm = o[0].imm.value.u; out->fn = op_aad; return;

	case ZYDIS_MNEMONIC_JMP:
		if (x->zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			far_branch(x, op_jmp_far_imm, op_jmp_far_mem);
		else
			branch(x, op_jmp, op_jmp_r, op_jmp_m);
		return;
	case ZYDIS_MNEMONIC_CALL:
		if (x->zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			far_branch(x, op_call_far_imm, op_call_far_mem);
		else
			branch(x, op_call, op_call_r, op_call_m);
		return;
	case ZYDIS_MNEMONIC_RET:
		*x->ends = true;
		out->imm = x->zi->operand_count_visible ? o[0].imm.value.u : 0;
		simple(x, x->zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? op_ret_far : op_ret, width);
		return;
	case ZYDIS_MNEMONIC_LOOP: out->aux = 0; branch(x, op_loop, NULL, NULL); return;
	case ZYDIS_MNEMONIC_LOOPE: out->aux = 1; branch(x, op_loop, NULL, NULL); return;
	case ZYDIS_MNEMONIC_LOOPNE: out->aux = 2; branch(x, op_loop, NULL, NULL); return;
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ: out->aux = 3; branch(x, op_loop, NULL, NULL); return;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP: push_pop(x); return;
	case ZYDIS_MNEMONIC_PUSHA: simple(x, op_pusha, 2); return;
	case ZYDIS_MNEMONIC_PUSHAD: simple(x, op_pusha, 4); return;
	case ZYDIS_MNEMONIC_POPA: simple(x, op_popa, 2); return;
	case ZYDIS_MNEMONIC_POPAD: simple(x, op_popa, 4); return;
	case ZYDIS_MNEMONIC_LEAVE: simple(x, op_leave, width); return;
	case ZYDIS_MNEMONIC_ENTER:
		out->imm = (o[0].imm.value.u & 0xffff) | (o[1].imm.value.u & 0xff) << 16;
		simple(x, op_enter, width);
		return;

	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSQ: string_op(x, op_movs); return;
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ: string_op(x, op_stos); return;
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD:
	case ZYDIS_MNEMONIC_LODSQ: string_op(x, op_lods); return;
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
	case ZYDIS_MNEMONIC_SCASQ: string_op(x, op_scas); return;
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSQ: string_op(x, op_cmps); return;
	case ZYDIS_MNEMONIC_MOVSD: /* the SSE2 move of the same name has a vector operand */
	case ZYDIS_MNEMONIC_CMPSD:
		if (x->zi->meta.category == ZYDIS_CATEGORY_STRINGOP)
			string_op(x, m == ZYDIS_MNEMONIC_MOVSD ? op_movs : op_cmps);
		else
			use_native(x);
		return;
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD: string_op(x, op_ins); *x->alone = true; return;
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD: string_op(x, op_outs); *x->alone = true; return;
	case ZYDIS_MNEMONIC_IN: port_io(x, op_in, 1); return;
	case ZYDIS_MNEMONIC_OUT: port_io(x, op_out, 0); return;

	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
		out->aux = m == ZYDIS_MNEMONIC_LDS ? DS : m == ZYDIS_MNEMONIC_LES ? ES : m == ZYDIS_MNEMONIC_LFS ? FS :
			   m == ZYDIS_MNEMONIC_LGS			  ? GS : SS;
		out->ra = reg_offset(o[0].reg.value);
		*x->ends = true;
		simple(x, op_lfs, o[0].size / 8u);
		return;
	case ZYDIS_MNEMONIC_XBEGIN:
		branch(x, op_xbegin, NULL, NULL);
		return;
	default: break;
	}

	const struct sys_entry *s = sys_find(m);
	if (!s) {
		use_native(x);
		return;
	}
	out->fn = s->fn;
	if (s->flags & ENDS)
		*x->ends = true;
	if (s->flags & ALONE)
		*x->alone = true;
	out->opsize = (u8)width;
	for (unsigned k = 0, n = 0; k < x->zi->operand_count_visible; k++) {
		if (is_gpr(&o[k])) {
			u8 r = reg_offset(o[k].reg.value);
			if (n++ == 0) {
				out->ra = r;
				out->opsize = (u8)(o[k].size / 8);
			} else {
				out->rb = r;
			}
		} else if (o[k].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
			out->imm = o[k].imm.value.u;
		}
	}
	if (m == ZYDIS_MNEMONIC_SYSRET || m == ZYDIS_MNEMONIC_SYSEXIT)
		out->opsize = x->zi->attributes & ZYDIS_ATTRIB_HAS_REX && (x->zi->raw.rex.W) ? 8 : 4;
}

int decode_insn(struct cpu *c, const u8 *bytes, unsigned avail, u16 off, struct insn *out, bool *ends, bool *alone)
{
	const ZydisDecoder *d = &c->decoder->d[c->mode_key & MODE_CODE_MASK];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	*ends = *alone = false;
	*out = (struct insn){ .fn = op_ud, .off = off, .base = R_ZERO, .index = R_ZERO, .seg = SS, .len = 1 };
	if (avail > 15)
		avail = 15;
	ZyanStatus st = ZydisDecoderDecodeFull(d, bytes, avail, &zi, ops);
	if (!ZYAN_SUCCESS(st)) {
		if (st == ZYDIS_STATUS_NO_MORE_DATA)
			return avail == 15 ? -1 : 0;
		if (st == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
			return -1;
		*ends = true;
		return 1; /* #UD */
	}
	out->len = zi.length;
	out->addrsize = zi.address_width / 8;
	out->opsize = (u8)(zi.operand_width / 8);
	const bool code64 = (c->mode_key & MODE_CODE_MASK) == MODE_CODE64;
	for (unsigned k = 0; k < zi.operand_count_visible; k++)
		if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY) {
			set_memory(out, &zi, &ops[k], code64);
			break;
		}
	struct ctx x = { .c = c, .bytes = bytes, .zi = &zi, .o = ops, .out = out, .ends = ends, .alone = alone, .code64 = code64 };
	set_handler(&x);
	if (!out->fn)
		out->fn = op_unimplemented;
	return zi.length;
}

int decode_text(const struct cpu *c, const u8 *bytes, unsigned avail, u64 rip, char *buf, size_t size)
{
	const ZydisDecoder *d = &c->decoder->d[c->mode_key & MODE_CODE_MASK];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(d, bytes, avail, &zi, ops)))
		return 0;
	ZydisFormatterFormatInstruction(&c->decoder->formatter, &zi, ops, zi.operand_count_visible, buf, size, rip, NULL);
	return zi.length;
}
