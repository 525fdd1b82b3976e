/* Which instructions the host executes for the guest, and what must be checked for them.
 *
 * The choice is by instruction-set extension and category, never "everything else": an instruction that is not known to
 * be harmless is refused here and ends the VM with its name. */
#include <Zydis/Zydis.h>

#include "cpu/native_op.h"

typedef ZydisDecodedInstruction zinsn_t;
typedef ZydisDecodedOperand zop_t;

/* Instructions with a handler instead of a stub. */
static const struct {
	u16 mnemonic;
	insn_fn fn;
	u8 check, aux;
} special[] = {
	{ ZYDIS_MNEMONIC_FXSAVE, fpu_op_fxsave, NCHK_FXSR, 0 },
	{ ZYDIS_MNEMONIC_FXSAVE64, fpu_op_fxsave, NCHK_FXSR, FORM_64 },
	{ ZYDIS_MNEMONIC_FXRSTOR, fpu_op_fxrstor, NCHK_FXSR, 0 },
	{ ZYDIS_MNEMONIC_FXRSTOR64, fpu_op_fxrstor, NCHK_FXSR, FORM_64 },
	{ ZYDIS_MNEMONIC_XSAVE, fpu_op_xsave, NCHK_XSAVE, 0 },
	{ ZYDIS_MNEMONIC_XSAVE64, fpu_op_xsave, NCHK_XSAVE, FORM_64 },
	{ ZYDIS_MNEMONIC_XSAVEOPT, fpu_op_xsave, NCHK_XSAVE, FORM_OPT },
	{ ZYDIS_MNEMONIC_XSAVEOPT64, fpu_op_xsave, NCHK_XSAVE, FORM_OPT | FORM_64 },
	{ ZYDIS_MNEMONIC_XSAVEC, fpu_op_xsave, NCHK_XSAVE, FORM_COMPACT },
	{ ZYDIS_MNEMONIC_XSAVEC64, fpu_op_xsave, NCHK_XSAVE, FORM_COMPACT | FORM_64 },
	{ ZYDIS_MNEMONIC_XSAVES, fpu_op_xsave, NCHK_XSAVE, FORM_COMPACT | FORM_SUPERVISOR },
	{ ZYDIS_MNEMONIC_XSAVES64, fpu_op_xsave, NCHK_XSAVE, FORM_COMPACT | FORM_SUPERVISOR | FORM_64 },
	{ ZYDIS_MNEMONIC_XRSTOR, fpu_op_xrstor, NCHK_XSAVE, 0 },
	{ ZYDIS_MNEMONIC_XRSTOR64, fpu_op_xrstor, NCHK_XSAVE, FORM_64 },
	{ ZYDIS_MNEMONIC_XRSTORS, fpu_op_xrstor, NCHK_XSAVE, FORM_COMPACT | FORM_SUPERVISOR },
	{ ZYDIS_MNEMONIC_XRSTORS64, fpu_op_xrstor, NCHK_XSAVE, FORM_COMPACT | FORM_SUPERVISOR | FORM_64 },
	{ ZYDIS_MNEMONIC_CLFLUSH, native_touch, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_CLFLUSHOPT, native_touch, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_CLWB, native_touch, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_CLDEMOTE, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_NOP, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_PAUSE, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_SERIALIZE, native_nop, NCHK_NONE, 0 },
	/* Shadow stacks and landing pads are off: their hints are NOPs. */
	{ ZYDIS_MNEMONIC_ENDBR32, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_ENDBR64, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_RDSSPD, native_nop, NCHK_NONE, 0 },
	{ ZYDIS_MNEMONIC_RDSSPQ, native_nop, NCHK_NONE, 0 },
};

/* Extensions the guest is never offered: their instructions are undefined (unprivileged ones; SDM: "#UD if CPUID..."). */
static bool is_absent_ext(const zinsn_t *z)
{
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_AMX_BF16:
	case ZYDIS_ISA_EXT_AMX_INT8:
	case ZYDIS_ISA_EXT_AMX_TILE:
	case ZYDIS_ISA_EXT_CET:
	case ZYDIS_ISA_EXT_ENQCMD:
	case ZYDIS_ISA_EXT_HRESET:
	case ZYDIS_ISA_EXT_KEYLOCKER:
	case ZYDIS_ISA_EXT_KEYLOCKER_WIDE:
	case ZYDIS_ISA_EXT_KNC:
	case ZYDIS_ISA_EXT_KNCE:
	case ZYDIS_ISA_EXT_KNCV:
	case ZYDIS_ISA_EXT_MCOMMIT:
	case ZYDIS_ISA_EXT_MONITORX:
	case ZYDIS_ISA_EXT_PADLOCK:
	case ZYDIS_ISA_EXT_PCONFIG:
	case ZYDIS_ISA_EXT_PKU:
	case ZYDIS_ISA_EXT_RDPRU:
	case ZYDIS_ISA_EXT_SGX:
	case ZYDIS_ISA_EXT_SGX_ENCLV:
	case ZYDIS_ISA_EXT_SNP:
	case ZYDIS_ISA_EXT_TDX:
	case ZYDIS_ISA_EXT_UINTR:
	case ZYDIS_ISA_EXT_WAITPKG:
		return true;
	default:
		/* Xeon Phi only */
		return z->meta.isa_set == ZYDIS_ISA_SET_AVX512PF_512 || z->meta.isa_set == ZYDIS_ISA_SET_AVX512ER_512 ||
		       z->meta.isa_set == ZYDIS_ISA_SET_AVX512ER_SCALAR;
	}
}

static bool is_safe(const zinsn_t *z)
{
	if ((z->attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) || z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
		return false;
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_ADOX_ADCX:
	case ZYDIS_ISA_EXT_AES:
	case ZYDIS_ISA_EXT_AMD3DNOW:
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_AVX512EVEX:
	case ZYDIS_ISA_EXT_AVX512VEX:
	case ZYDIS_ISA_EXT_AVXAES:
	case ZYDIS_ISA_EXT_AVX_VNNI:
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_BMI2:
	case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_FMA:
	case ZYDIS_ISA_EXT_FMA4:
	case ZYDIS_ISA_EXT_GFNI:
	case ZYDIS_ISA_EXT_LZCNT:
	case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_MOVBE:
	case ZYDIS_ISA_EXT_MOVDIR:
	case ZYDIS_ISA_EXT_PCLMULQDQ:
	case ZYDIS_ISA_EXT_PT: /* PTWRITE: nothing is traced */
	case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_TBM:
	case ZYDIS_ISA_EXT_TSX_LDTRK: /* outside transactions: no effect */
	case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
	case ZYDIS_ISA_EXT_X87:
	case ZYDIS_ISA_EXT_XOP:
		return z->meta.category != ZYDIS_CATEGORY_STRINGOP;
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_LONGMODE:
		break;
	default:
		return false;
	}
	/* One-byte opcodes that mean something else in 64-bit mode. */
	if (z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	    ((z->opcode & 0xf0) == 0x40 || z->opcode == 0x63 || z->opcode == 0x82))
		return false;
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_BINARY:
	case ZYDIS_CATEGORY_BITBYTE:
	case ZYDIS_CATEGORY_CMOV:
	case ZYDIS_CATEGORY_CONVERT:
	case ZYDIS_CATEGORY_DATAXFER:
	case ZYDIS_CATEGORY_LOGICAL:
	case ZYDIS_CATEGORY_ROTATE:
	case ZYDIS_CATEGORY_SEMAPHORE:
	case ZYDIS_CATEGORY_SETCC:
	case ZYDIS_CATEGORY_SHIFT:
		return true;
	case ZYDIS_CATEGORY_FLAGOP:
		return z->mnemonic == ZYDIS_MNEMONIC_CLC || z->mnemonic == ZYDIS_MNEMONIC_STC ||
		       z->mnemonic == ZYDIS_MNEMONIC_CMC || z->mnemonic == ZYDIS_MNEMONIC_LAHF ||
		       z->mnemonic == ZYDIS_MNEMONIC_SAHF;
	default:
		return false;
	}
}

/* What the operands say about the registers involved. */
struct scan {
	u16 used, written;
	bool xmm, mmx, mask, x87;
	const zop_t *mem;
	bool refused;
};

static void scan_operands(struct scan *s, const zinsn_t *z, const zop_t *ops)
{
	*s = (struct scan){ 0 };
	for (unsigned k = 0; k < z->operand_count; k++) {
		const zop_t *o = &ops[k];
		bool writes = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (s->mem || o->mem.type == ZYDIS_MEMOP_TYPE_MIB)
				s->refused = true;
			if (o->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
				s->mem = o;
			else
				s->refused = true;
			continue;
		}
		if (o->type == ZYDIS_OPERAND_TYPE_POINTER)
			s->refused = true;
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_GPR8:
		case ZYDIS_REGCLASS_GPR16:
		case ZYDIS_REGCLASS_GPR32:
		case ZYDIS_REGCLASS_GPR64: {
			u16 bit = native_gpr_bit(o->reg.value);
			if (bit == 1u << RSP && o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
				s->refused = true;
			s->used |= bit;
			if (writes)
				s->written |= bit;
			break;
		}
		case ZYDIS_REGCLASS_X87: s->x87 = true; break;
		case ZYDIS_REGCLASS_MMX: s->mmx = true; break;
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_YMM:
		case ZYDIS_REGCLASS_ZMM: s->xmm = true; break;
		case ZYDIS_REGCLASS_MASK: s->mask = true; break;
		case ZYDIS_REGCLASS_FLAGS: break;
		case ZYDIS_REGCLASS_INVALID: /* MXCSR, x87 control, status and tag words; others are refused */
			switch (o->reg.value) {
			case ZYDIS_REGISTER_MXCSR:
			case ZYDIS_REGISTER_X87CONTROL:
			case ZYDIS_REGISTER_X87STATUS:
			case ZYDIS_REGISTER_X87TAG: break;
			default: s->refused = true;
			}
			break;
		default: s->refused = true;
		}
	}
}

static bool is_x87(const zinsn_t *z)
{
	return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	       z->opcode >= 0xd8 && z->opcode <= 0xdf;
}

static u8 required_check(const zinsn_t *z, const struct scan *s)
{
	switch (z->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		return NCHK_AVX512;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
	case ZYDIS_INSTRUCTION_ENCODING_XOP:
		switch (z->meta.isa_ext) {
		case ZYDIS_ISA_EXT_BMI1:
		case ZYDIS_ISA_EXT_BMI2:
		case ZYDIS_ISA_EXT_TBM: return NCHK_VEX;
		case ZYDIS_ISA_EXT_AVX512VEX: return NCHK_AVX512;
		default: return NCHK_AVX;
		}
	default:
		break;
	}
	if (z->mnemonic == ZYDIS_MNEMONIC_FWAIT)
		return NCHK_WAIT;
	if (is_x87(z))
		return NCHK_X87;
	if (s->xmm)
		return NCHK_SSE;
	if (s->mmx)
		return NCHK_MMX;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_EMMS:
	case ZYDIS_MNEMONIC_FEMMS: return NCHK_MMX;
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_MOVNTI:
	case ZYDIS_MNEMONIC_CRC32:
	case ZYDIS_MNEMONIC_POPCNT: return NCHK_NONE;
	default: break;
	}
	/* What is left of SSE works on MXCSR: LDMXCSR, CVTSD2SI r64, m64, ... */
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A:
	case ZYDIS_ISA_EXT_SSSE3: return NCHK_SSE;
	default: return NCHK_NONE;
	}
}

/* Does this x87 instruction leave FIP, FDP, FOP alone (SDM 8.1.8: control instructions)? */
static bool is_x87_control(u16 mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return true;
	default:
		return false;
	}
}

/* Must the old flags be in place?  Yes unless all six are defined by the instruction: shifts by zero leave them, and
 * what is called undefined is in fact left alone by some. */
static void flag_use(const zinsn_t *z, struct native_form *f)
{
	const ZydisAccessedFlags *a = z->cpu_flags;
	if (!a)
		return;
	u64 touched = a->modified | a->set_0 | a->set_1 | a->undefined;
	f->flags_out = touched & FL_ARITH;
	f->flags_in = (a->tested & FL_ARITH) ||
		      (f->flags_out && (((a->modified | a->set_0 | a->set_1) & FL_ARITH) != FL_ARITH ||
					z->meta.category == ZYDIS_CATEGORY_SHIFT ||
					z->meta.category == ZYDIS_CATEGORY_ROTATE));
}

static u8 gpr_index(unsigned reg)
{
	if (reg == ZYDIS_REGISTER_NONE)
		return R_ZERO;
	u16 bit = native_gpr_bit(reg);
	return bit ? (u8)__builtin_ctz(bit) : R_ZERO;
}

/* An operand address the caller's decoder did not see: implicit or with a vector index. */
static void set_address(struct cpu *c, struct insn *i, const zinsn_t *z, const zop_t *m)
{
	/* SIB.base = 5 without displacement size: no base (Zydis 4.0 says R13D under an address-size prefix). */
	bool none = (z->attributes & ZYDIS_ATTRIB_HAS_SIB) && z->raw.modrm.mod == 0 && z->raw.sib.base == 5;
	i->base = none ? R_ZERO : gpr_index(m->mem.base);
	i->index = R_ZERO;
	i->scale = 0;
	i->disp = m->mem.disp.has_displacement ? m->mem.disp.value : none ? z->raw.disp.value : 0;
	i->addrsize = z->address_width / 8;
	switch (m->mem.segment) {
	case ZYDIS_REGISTER_ES: i->seg = ES; break;
	case ZYDIS_REGISTER_CS: i->seg = CS; break;
	case ZYDIS_REGISTER_SS: i->seg = SS; break;
	case ZYDIS_REGISTER_FS: i->seg = FS; break;
	case ZYDIS_REGISTER_GS: i->seg = GS; break;
	default: i->seg = DS; break;
	}
	i->flags |= IF_MEM;
	if (z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || z->address_width != 64 || i->seg == FS || i->seg == GS)
		i->flags |= IF_SLOW_EA;
}

static bool is_gather(const zinsn_t *z, const struct scan *s)
{
	return s->mem && s->mem->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
}

static bool prepare_gather(struct cpu *c, struct insn *i, const zinsn_t *z, const zop_t *ops, const struct scan *s)
{
	struct native_op op = { .check = required_check(z, s) };
	const zop_t *m = s->mem, *data = NULL, *mask = NULL;
	for (unsigned k = 0; k < z->operand_count; k++) {
		if (ops[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (ZydisRegisterGetClass(ops[k].reg.value) == ZYDIS_REGCLASS_MASK || (data && !mask))
			mask = &ops[k];
		else if (!data)
			data = &ops[k];
	}
	if (!data || !mask)
		return false;
	struct native_gather *g = &op.gather;
	g->evex = z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
	g->scatter = m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	g->data = (u8)ZydisRegisterGetId(data->reg.value);
	g->mask = (u8)ZydisRegisterGetId(mask->reg.value);
	g->index = (u8)ZydisRegisterGetId(m->mem.index);
	g->scale = (u8)__builtin_ctz(m->mem.scale ? m->mem.scale : 1);
	/* Opcodes 90..93, A0..A3: bit 0: 64-bit index; W: 64-bit data. */
	bool w = g->evex ? z->raw.evex.W : z->raw.vex.W;
	g->index_size = z->opcode & 1 ? 8 : 4;
	g->data_size = w ? 8 : 4;
	unsigned vl = z->avx.vector_length / 8;
	g->count = (u8)(vl / (g->index_size > g->data_size ? g->index_size : g->data_size));
	g->vl = (u8)(g->count * g->data_size);
	set_address(c, i, z, m);
	i->fn = native_gather;
	i->stub = (void *)(uintptr_t)native_place(c->native, &op);
	return i->stub != NULL;
}

static bool prepare_special(struct cpu *c, struct insn *i, const zinsn_t *z, bool *ok)
{
	for (unsigned k = 0; k < ARRAY_SIZE(special); k++) {
		if (special[k].mnemonic != z->mnemonic)
			continue;
		struct native_op op = { .check = special[k].check };
		u32 need = 0;
		if (special[k].fn == fpu_op_xsave || special[k].fn == fpu_op_xrstor)
			need = special[k].aux & FORM_SUPERVISOR ? 8 : special[k].aux & FORM_COMPACT ? 2 : special[k].aux & FORM_OPT;
		i->fn = need & ~c->native->xsave_features ? native_ud : special[k].fn;
		i->aux = special[k].aux;
		i->stub = (void *)(uintptr_t)native_place(c->native, &op);
		*ok = i->stub != NULL;
		return true;
	}
	return false;
}

bool native_prepare(struct cpu *c, struct insn *i, const u8 *bytes, const void *zinsn, const void *zops)
{
	const zinsn_t *z = zinsn;
	const zop_t *ops = zops;
	struct scan s;
	bool ok;
	if (!c->native)
		return false;
	c->stats.native_stubs++;
	if (prepare_special(c, i, z, &ok))
		return ok;
	if (is_absent_ext(z)) { /* before the hints: Xeon Phi has prefetches of its own */
		i->fn = native_ud;
		return true;
	}
	if (z->meta.category == ZYDIS_CATEGORY_PREFETCH || z->meta.category == ZYDIS_CATEGORY_WIDENOP ||
	    z->meta.category == ZYDIS_CATEGORY_NOP || z->meta.category == ZYDIS_CATEGORY_PREFETCHWT1 ||
	    z->meta.isa_ext == ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH || z->meta.isa_ext == ZYDIS_ISA_EXT_PREFETCHWT1 ||
	    z->meta.isa_ext == ZYDIS_ISA_EXT_MPX) {
		i->fn = native_nop; /* MPX is not enabled in XCR0: its opcodes are NOPs */
		return true;
	}
	if (!is_safe(z))
		return false;
	if (z->mnemonic == ZYDIS_MNEMONIC_MOVDIR64B) {
		struct native_op op = { .check = NCHK_NONE };
		unsigned reg = z->raw.modrm.reg;
		if (z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && (z->attributes & ZYDIS_ATTRIB_HAS_REX))
			reg |= (unsigned)z->raw.rex.R << 3;
		i->ra = (u8)(reg * 8);
		i->fn = native_movdir64b;
		i->stub = (void *)(uintptr_t)native_emit_movdir64b(c->native, op);
		return i->stub != NULL;
	}
	scan_operands(&s, z, ops);
	if (s.refused)
		return false;
	if (is_gather(z, &s)) {
		i->fn = native_ud;
		return !c->native->avx2 || prepare_gather(c, i, z, ops, &s);
	}

	struct native_op op = { .check = required_check(z, &s) };
	struct native_form f = { .z = z, .ops = ops, .bytes = bytes, .used = s.used, .written = s.written };
	bool maskmov = z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || z->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
		       z->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
	flag_use(z, &f);
	if (is_x87(z)) {
		if (z->mnemonic == ZYDIS_MNEMONIC_FNINIT)
			op.flags |= NF_FNINIT;
		else if (!is_x87_control((u16)z->mnemonic))
			op.flags |= NF_X87;
		if (z->attributes & ZYDIS_ATTRIB_HAS_MODRM)
			op.fop = (u16)((z->opcode & 7) << 8 | bytes[z->raw.modrm.offset]);
	}
	if ((z->attributes & ZYDIS_ATTRIB_HAS_LOCK) || (z->mnemonic == ZYDIS_MNEMONIC_XCHG && s.mem))
		op.flags |= NF_LOCK;
	if (s.mem) {
		if (s.mem->size == 0 || s.mem->size / 8 > 512)
			return false;
		op.size = s.mem->size / 8;
		op.ac_align = op.size == 10 ? 8 : maskmov ? (u8)op.size : 0;
		if (s.mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
			op.access |= NACC_R;
		if (s.mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			op.access |= NACC_W;
		if (!(z->attributes & ZYDIS_ATTRIB_HAS_MODRM))
			return false; /* MOV moffs, XLAT, string instructions */
		if (maskmov) {
			f.rdi_mem = true;
			f.used &= (u16) ~(1u << RDI);
			f.written &= (u16) ~(1u << RDI);
			op.access = NACC_W;
			op.flags |= NF_MASKED;
			set_address(c, i, z, s.mem);
		} else {
			if (s.mem->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT || z->raw.modrm.mod == 3)
				return false;
			f.mem = true;
		}
		switch (z->mnemonic) {
		case ZYDIS_MNEMONIC_VMASKMOVPS:
		case ZYDIS_MNEMONIC_VMASKMOVPD:
		case ZYDIS_MNEMONIC_VPMASKMOVD:
		case ZYDIS_MNEMONIC_VPMASKMOVQ: op.flags |= NF_MASKED; break;
		default:
			if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && z->raw.evex.aaa)
				op.flags |= NF_MASKED;
		}
		if (op.flags & NF_MASKED) {
			if (op.size > 64)
				return false;
			if (op.access & NACC_W)
				op.access = NACC_W; /* bytes that are not written are left alone, not rewritten */
		}
		switch (z->mnemonic) {
		case ZYDIS_MNEMONIC_FNSTENV:
		case ZYDIS_MNEMONIC_FNSAVE: i->fn = fpu_op_fnstenv; f.drop_66 = true; break;
		case ZYDIS_MNEMONIC_FLDENV:
		case ZYDIS_MNEMONIC_FRSTOR: i->fn = fpu_op_fldenv; f.drop_66 = true; break;
		default: i->fn = op.size > 64 ? NULL : native_memory;
		}
		if (!i->fn)
			return false;
	} else {
		i->fn = op.check == NCHK_NONE ? native_integer : native_register;
	}
	/* A 16-bit register is stored whole: the untouched part was loaded. */
	i->stub = (void *)(uintptr_t)native_emit(c->native, op, &f);
	return i->stub != NULL;
}
