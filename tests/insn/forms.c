/* The table of instruction forms: every opcode of every map, with every prefix that can select another instruction,
 * is given to Zydis; what it names (mnemonic, kinds and sizes of operands, masking, rounding, LOCK, REP) is a form. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"
#include "gen_internal.h"

struct form *forms;
u32 n_forms;
static u32 cap_forms;
static u32 *hash_tab;
#define HASH_SIZE (1u << 18)

static ZydisDecoder decoder;
static ZydisFormatter formatter;

bool gen_decode(const u8 *bytes, u32 len, ZydisDecodedInstruction *z, ZydisDecodedOperand *ops)
{
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, len, z, ops));
}

unsigned disassemble(const u8 *bytes, u32 len, u64 rip, char *out, u32 size)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	if (!gen_decode(bytes, len, &z, ops) ||
	    !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &z, ops, z.operand_count_visible, out, size, rip, NULL)))
		return snprintf(out, size, "(undecodable)"), 0;
	return z.length;
}

/* Mnemonics that cannot be compared with the host at CPL 3, with the reason.  Privileged ones that merely raise #GP
 * are NOT here: they run on both sides. */
static const struct { ZydisMnemonic m; const char *why; } excluded_mnemonics[] = {
	{ ZYDIS_MNEMONIC_SYSCALL, "system call of the host kernel" },
	{ ZYDIS_MNEMONIC_SYSENTER, "system call of the host kernel" },
	{ ZYDIS_MNEMONIC_RDTSC, "time" },
	{ ZYDIS_MNEMONIC_RDTSCP, "time" },
	{ ZYDIS_MNEMONIC_RDRAND, "random" },
	{ ZYDIS_MNEMONIC_RDSEED, "random" },
	{ ZYDIS_MNEMONIC_RDPID, "number of the host CPU" },
	{ ZYDIS_MNEMONIC_RDPRU, "time" },
	{ ZYDIS_MNEMONIC_CPUID, "identity: the guest's CPUID differs on purpose" },
	{ ZYDIS_MNEMONIC_SGDT, "UMIP: Linux emulates it for user code" },
	{ ZYDIS_MNEMONIC_SIDT, "UMIP: Linux emulates it for user code" },
	{ ZYDIS_MNEMONIC_SLDT, "UMIP: Linux emulates it for user code" },
	{ ZYDIS_MNEMONIC_STR, "UMIP: Linux emulates it for user code" },
	{ ZYDIS_MNEMONIC_SMSW, "UMIP: Linux emulates it for user code" },
	{ ZYDIS_MNEMONIC_XBEGIN, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_XEND, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_XABORT, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_XTEST, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_XSUSLDTRK, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_XRESLDTRK, "TSX is not offered to guests" },
	{ ZYDIS_MNEMONIC_PTWRITE, "Processor Trace is not offered to guests" },
	{ ZYDIS_MNEMONIC_ENQCMD, "not offered to guests; hypervisors may hide it without disabling it" },
	{ ZYDIS_MNEMONIC_ENQCMDS, "not offered to guests; hypervisors may hide it without disabling it" },
	{ ZYDIS_MNEMONIC_UMWAIT, "time" },
	{ ZYDIS_MNEMONIC_TPAUSE, "time" },
	{ ZYDIS_MNEMONIC_UMONITOR, "not offered to guests" },
	{ ZYDIS_MNEMONIC_VMCALL, "answered by the host's own hypervisor" },
	{ ZYDIS_MNEMONIC_VMMCALL, "answered by the host's own hypervisor" },
	{ ZYDIS_MNEMONIC_VMFUNC, "virtualization" },
	{ ZYDIS_MNEMONIC_VMLAUNCH, "virtualization" }, { ZYDIS_MNEMONIC_VMRESUME, "virtualization" },
	{ ZYDIS_MNEMONIC_VMXOFF, "virtualization" }, { ZYDIS_MNEMONIC_VMXON, "virtualization" },
	{ ZYDIS_MNEMONIC_VMPTRLD, "virtualization" }, { ZYDIS_MNEMONIC_VMPTRST, "virtualization" },
	{ ZYDIS_MNEMONIC_VMCLEAR, "virtualization" }, { ZYDIS_MNEMONIC_VMREAD, "virtualization" },
	{ ZYDIS_MNEMONIC_VMWRITE, "virtualization" }, { ZYDIS_MNEMONIC_INVEPT, "virtualization" },
	{ ZYDIS_MNEMONIC_INVVPID, "virtualization" }, { ZYDIS_MNEMONIC_VMRUN, "virtualization" },
	{ ZYDIS_MNEMONIC_VMLOAD, "virtualization" }, { ZYDIS_MNEMONIC_VMSAVE, "virtualization" },
	{ ZYDIS_MNEMONIC_STGI, "virtualization" }, { ZYDIS_MNEMONIC_CLGI, "virtualization" },
	{ ZYDIS_MNEMONIC_SKINIT, "virtualization" }, { ZYDIS_MNEMONIC_INVLPGA, "virtualization" },
	{ ZYDIS_MNEMONIC_GETSEC, "SMX" }, { ZYDIS_MNEMONIC_ENCLU, "SGX" }, { ZYDIS_MNEMONIC_ENCLS, "SGX" },
	{ ZYDIS_MNEMONIC_ENCLV, "SGX" }, { ZYDIS_MNEMONIC_SEAMCALL, "TDX" }, { ZYDIS_MNEMONIC_SEAMOPS, "TDX" },
	{ ZYDIS_MNEMONIC_SEAMRET, "TDX" }, { ZYDIS_MNEMONIC_TDCALL, "TDX" }, { ZYDIS_MNEMONIC_PCONFIG, "TME" },
	{ ZYDIS_MNEMONIC_RDPKRU, "protection keys are not offered to guests" },
	{ ZYDIS_MNEMONIC_WRPKRU, "protection keys are not offered to guests" },
	{ ZYDIS_MNEMONIC_XSAVEOPT, "what it omits depends on the last XRSTOR, of the kernel natively (SDM 13.9)" },
	{ ZYDIS_MNEMONIC_XSAVEOPT64, "what it omits depends on the last XRSTOR, of the kernel natively (SDM 13.9)" },
	{ ZYDIS_MNEMONIC_LDTILECFG, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_STTILECFG, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TILELOADD, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TILELOADDT1, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TILESTORED, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TILERELEASE, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TILEZERO, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TDPBF16PS, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TDPBSSD, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TDPBSUD, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TDPBUSD, "AMX is not offered to guests" },
	{ ZYDIS_MNEMONIC_TDPBUUD, "AMX is not offered to guests" },
};

const char *gen_excluded(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	for (u32 i = 0; i < ARRAY_SIZE(excluded_mnemonics); i++)
		if (excluded_mnemonics[i].m == z->mnemonic)
			return excluded_mnemonics[i].why;
	if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP || z->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX)
		return "not of this architecture's live part";
	if (z->mnemonic == ZYDIS_MNEMONIC_INT && ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && ops[0].imm.value.u == 0x80)
		return "system call of the host kernel";
	return NULL;
}

static const char *reg_kind(ZydisRegister r)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_GPR8: return "r8";
	case ZYDIS_REGCLASS_GPR16: return "r16";
	case ZYDIS_REGCLASS_GPR32: return "r32";
	case ZYDIS_REGCLASS_GPR64: return "r64";
	case ZYDIS_REGCLASS_X87: return "st";
	case ZYDIS_REGCLASS_MMX: return "mm";
	case ZYDIS_REGCLASS_XMM: return "xmm";
	case ZYDIS_REGCLASS_YMM: return "ymm";
	case ZYDIS_REGCLASS_ZMM: return "zmm";
	case ZYDIS_REGCLASS_TMM: return "tmm";
	case ZYDIS_REGCLASS_SEGMENT: return "sreg";
	case ZYDIS_REGCLASS_CONTROL: return "cr";
	case ZYDIS_REGCLASS_DEBUG: return "dr";
	case ZYDIS_REGCLASS_MASK: return "k";
	case ZYDIS_REGCLASS_BOUND: return "bnd";
	default: return "reg";
	}
}

static void form_name(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, char *out, size_t size)
{
	size_t n = 0;
#define ADD(...)                                                                  \
	do {                                                                      \
		if (n < size)                                                     \
			n += (size_t)snprintf(out + n, size - n, __VA_ARGS__);    \
	} while (0)
	u64 a = z->attributes;
	ADD("%s%s%s%s%s%s%s", a & ZYDIS_ATTRIB_HAS_LOCK ? "lock " : "", a & ZYDIS_ATTRIB_HAS_XACQUIRE ? "xacquire " : "",
	    a & ZYDIS_ATTRIB_HAS_XRELEASE ? "xrelease " : "", a & ZYDIS_ATTRIB_HAS_REP ? "rep " : "",
	    a & ZYDIS_ATTRIB_HAS_REPE ? "repe " : "", a & ZYDIS_ATTRIB_HAS_REPNE ? "repne " : "",
	    z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? "{evex} " : "");
	ADD("%s", ZydisMnemonicGetString(z->mnemonic));
	for (u32 i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *o = &ops[i];
		if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
			/* Width of an implicit stack or string access: part of the form. */
			if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
				ADD(" [m%u]", o->size);
			continue;
		}
		ADD(" ");
		switch (o->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			ADD("%s", o->encoding == ZYDIS_OPERAND_ENCODING_NONE ? ZydisRegisterGetString(o->reg.value) :
									       reg_kind(o->reg.value));
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			ADD("%s%u%s", o->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? "vm" : o->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64 ? "moffs" : "m",
			    o->size, z->avx.broadcast.mode && !z->avx.broadcast.is_static ? "bcst" : "");
			break;
		case ZYDIS_OPERAND_TYPE_POINTER: ADD("ptr"); break;
		default: ADD("%s%u", o->imm.is_relative ? "rel" : "i", o->size); break;
		}
	}
	if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
		if (z->avx.mask.mode > ZYDIS_MASK_MODE_DISABLED)
			ADD(" {%s}", z->avx.mask.mode == ZYDIS_MASK_MODE_ZEROING ? "kz" : "k");
		if (z->avx.rounding.mode)
			ADD(" {er}");
		else if (z->avx.has_sae)
			ADD(" {sae}");
	}
	if (z->mnemonic >= ZYDIS_MNEMONIC_JB && (a & ZYDIS_ATTRIB_HAS_ADDRESSSIZE) && (a & ZYDIS_ATTRIB_IS_RELATIVE))
		ADD(" a32");
#undef ADD
}

static u64 hash_str(const char *s)
{
	u64 h = 0xcbf29ce484222325ull;
	while (*s)
		h = (h ^ (u8)*s++) * 0x100000001b3ull;
	return h ? h : 1;
}

static s64 form_lookup(u64 key, bool insert)
{
	u32 i = (u32)(key >> 20) & (HASH_SIZE - 1);
	for (; hash_tab[i]; i = (i + 1) & (HASH_SIZE - 1))
		if (forms[hash_tab[i] - 1].key == key)
			return hash_tab[i] - 1;
	if (!insert)
		return -1;
	if (n_forms == cap_forms) {
		cap_forms = cap_forms ? cap_forms * 2 : 4096;
		forms = realloc(forms, cap_forms * sizeof(*forms));
		if (!forms || cap_forms > HASH_SIZE / 2)
			abort();
	}
	memset(&forms[n_forms], 0, sizeof(*forms));
	forms[n_forms].key = key;
	hash_tab[i] = ++n_forms;
	return n_forms - 1;
}

s64 gen_form_of_decoded(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	char name[100];
	form_name(z, ops, name, sizeof(name));
	return form_lookup(hash_str(name), false);
}

s64 gen_form_of(const u8 *bytes, u32 len)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	if (!gen_decode(bytes, len, &z, ops))
		return -1;
	return gen_form_of_decoded(&z, ops);
}

/* The bytes of a template with fixed stand-in operands; rex: R X B bits of REX, VEX and EVEX as in REX. */
u32 tmpl_emit(const struct tmpl *t, u8 rex, u8 modrm, u8 sib, bool r2, bool v2, u8 *out)
{
	u32 n = 0;
	if (t->addr32)
		out[n++] = 0x67;
	if (t->lock)
		out[n++] = 0xf0;
	if (t->legacy_66)
		out[n++] = 0x66;
	if (t->legacy_rep)
		out[n++] = t->legacy_rep;
	u8 inv = (u8)(~rex & 7);
	switch (t->enc) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		if (rex || t->w)
			out[n++] = (u8)(0x40 | t->w << 3 | rex);
		if (t->map)
			out[n++] = 0x0f;
		if (t->map >= 2)
			out[n++] = t->map == 2 ? 0x38 : 0x3a;
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		out[n++] = 0xc4;
		out[n++] = (u8)(inv << 5 | t->map);
		out[n++] = (u8)(t->w << 7 | t->vvvv << 3 | (t->ll & 1) << 2 | t->pp);
		break;
	default:
		out[n++] = 0x62;
		out[n++] = (u8)(inv << 5 | (r2 ? 0 : 0x10) | t->map);
		out[n++] = (u8)(t->w << 7 | t->vvvv << 3 | 4 | t->pp);
		out[n++] = (u8)(t->z << 7 | t->ll << 5 | t->b << 4 | (v2 ? 0 : 8) | t->aaa);
		break;
	}
	out[n++] = t->opcode;
	if (t->has_modrm) {
		out[n++] = modrm;
		if (modrm >> 6 != 3 && (modrm & 7) == 4)
			out[n++] = sib;
	}
	return n;
}

/* 0: not an instruction, 1: without ModRM, 2: with */
static int scan_one(struct tmpl *t, bool *vsib)
{
	u8 b[32] = { 0 };
	u32 n = tmpl_emit(t, 0, t->modrm, 0x08, false, false, b);
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	if (!gen_decode(b, 15, &z, ops))
		return 0;
	/* Prefixes that the template has but the instruction ignores would only repeat forms: they are added at random
	 * by the generator anyway. */
	(void)n;
	int ret = z.attributes & ZYDIS_ATTRIB_HAS_MODRM ? 2 : 1;
	*vsib = ret == 2 && z.operand_count > 1 &&
		((ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[1].mem.type == ZYDIS_MEMOP_TYPE_VSIB) ||
		 (ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[0].mem.type == ZYDIS_MEMOP_TYPE_VSIB) ||
		 (z.operand_count > 2 && ops[2].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[2].mem.type == ZYDIS_MEMOP_TYPE_VSIB));
	if (z.encoding != t->enc)
		return ret;
	char name[100];
	form_name(&z, ops, name, sizeof(name));
	s64 no = form_lookup(hash_str(name), true); /* may move the table */
	struct form *f = &forms[no];
	if (!f->n_templates) {
		strcpy(f->name, name);
		f->mnemonic = (u16)z.mnemonic;
		f->excluded = gen_excluded(&z, ops);
	}
	if (f->n_templates < FORM_TEMPLATES) {
		f->t[f->n_templates] = *t;
		f->t[f->n_templates].has_modrm = ret == 2;
		f->t[f->n_templates++].vsib = *vsib;
	}
	return ret;
}

/* All values of ModRM that can matter; sib: also forms with a SIB byte (VSIB needs one). */
static void scan_modrm(struct tmpl t)
{
	bool vsib;
	t.has_modrm = true;
	t.modrm = 0;
	for (unsigned reg = 0; reg < 8; reg++) {
		t.modrm = (u8)(reg << 3);
		if (scan_one(&t, &vsib) == 1)
			return; /* no ModRM: once is enough */
		t.modrm = (u8)(reg << 3 | 4);
		scan_one(&t, &vsib);
		for (unsigned rm = 0; rm < 8; rm++) {
			t.modrm = (u8)(0xc0 | reg << 3 | rm);
			scan_one(&t, &vsib);
		}
	}
}

static bool is_prefix(unsigned op)
{
	return op == 0x66 || op == 0x67 || op == 0xf0 || op == 0xf2 || op == 0xf3 || op == 0x26 || op == 0x2e || op == 0x36 ||
	       op == 0x3e || op == 0x64 || op == 0x65 || (op >= 0x40 && op <= 0x4f) || op == 0x0f || op == 0xc4 || op == 0xc5 ||
	       op == 0x62;
}

static void scan_legacy(void)
{
	static const u8 reps[] = { 0, 0xf2, 0xf3 };
	for (unsigned map = 0; map < 4; map++)
		for (unsigned op = 0; op < 256; op++) {
			if ((!map && is_prefix(op)) || (map == 1 && (op == 0x38 || op == 0x3a || op == 0x0f)))
				continue;
			for (unsigned k = 0; k < 48; k++) {
				struct tmpl t = { .enc = ZYDIS_INSTRUCTION_ENCODING_LEGACY, .map = (u8)map, .opcode = (u8)op };
				t.legacy_66 = k & 1;
				t.w = k >> 1 & 1;
				t.lock = k >> 2 & 1;
				t.addr32 = k >> 3 & 1;
				t.legacy_rep = reps[k >> 4];
				if (t.addr32 && map)
					continue;
				scan_modrm(t);
			}
		}
}

static void scan_vex(void)
{
	for (unsigned map = 1; map < 4; map++)
		for (unsigned op = 0; op < 256; op++)
			for (unsigned k = 0; k < 32; k++) {
				struct tmpl t = { .enc = ZYDIS_INSTRUCTION_ENCODING_VEX, .map = (u8)map, .opcode = (u8)op,
						  .pp = k & 3, .w = k >> 2 & 1, .ll = k >> 3 & 1, .vvvv = k & 16 ? 15 : 12 };
				scan_modrm(t);
			}
}

static void scan_evex(void)
{
	for (unsigned map = 1; map < 7; map++)
		for (unsigned op = 0; op < 256; op++)
			for (unsigned k = 0; k < 64 * 6; k++) {
				struct tmpl t = { .enc = ZYDIS_INSTRUCTION_ENCODING_EVEX, .map = (u8)map, .opcode = (u8)op,
						  .pp = k & 3, .w = k >> 2 & 1, .b = k >> 3 & 1, .ll = k >> 4 & 3 };
				t.vvvv = (k / 64) & 1 ? 15 : 12;
				t.aaa = k / 64 >= 2;
				t.z = k / 64 >= 4;
				if (map == 4)
					continue;
				scan_modrm(t);
			}
}

void gen_init(void)
{
	hash_tab = calloc(HASH_SIZE, sizeof(*hash_tab));
	if (!hash_tab)
		abort();
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
	scan_legacy();
	scan_vex();
	scan_evex();
}
