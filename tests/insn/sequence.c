/* Random straight pieces of code: 2 to 12 instructions that meet each other's registers, flags, stack and memory, with
 * forward branches, calls and returns, stores into the code itself, and at times a last jump to anywhere.
 *
 * Every address is known when the code is made: a register that serves in one is either untouched so far, then its
 * initial value is chosen, or it is loaded with an immediate just before.  So nothing outside the arena is reached but
 * on purpose, and no random bytes are ever executed. */
#include <stdlib.h>
#include <string.h>

#include "gen_internal.h"

#define MAX_INSNS 48 /* loads of addresses included */
#define MAX_LABELS 4
#define LAST_ROOM 48 /* bytes kept for one more instruction and what it needs */
#define RSP 4

struct registers {
	u16 touched; /* read or written by an earlier instruction: the initial value is settled */
	u16 unknown;
	u64 val[16];
};

struct label {
	u8 at, size;      /* where in the code the displacement is */
	unsigned left;    /* instructions until it is bound */
	struct registers then;
};

struct seq {
	struct insn_case *c;
	struct rng *r;
	unsigned len;
	struct registers g;
	u8 start[MAX_INSNS];
	unsigned n;
	struct label label[MAX_LABELS];
	unsigned n_labels;
	u8 smc[4];        /* displacements of stores into the code */
	unsigned n_smc;
	u64 keep;         /* stack slot that must not be written: a return address; 0: none */
};

static u64 here(const struct seq *s) { return s->c->rip + s->len; }
static bool unknown(const struct seq *s, unsigned reg) { return s->g.unknown >> reg & 1; }
static bool touched(const struct seq *s, unsigned reg) { return s->g.touched >> reg & 1; }
static u64 value(const struct seq *s, unsigned reg) { return touched(s, reg) ? s->g.val[reg] : s->c->gpr[reg]; }

static void touch(struct seq *s, unsigned reg)
{
	if (!touched(s, reg))
		s->g.val[reg] = s->c->gpr[reg];
	s->g.touched |= (u16)(1u << reg);
}

static void begin_insn(struct seq *s)
{
	if (s->n < MAX_INSNS)
		s->start[s->n++] = (u8)s->len;
}

static void put(struct seq *s, const void *b, unsigned n)
{
	memcpy(s->c->bytes + s->len, b, n);
	s->len += n;
}

/* mov reg, imm64 */
static void load(struct seq *s, unsigned reg, u64 v)
{
	const u8 op[2] = { (u8)(0x48 | reg >> 3), (u8)(0xb8 | (reg & 7)) };
	begin_insn(s);
	put(s, op, 2);
	put(s, &v, 8);
	s->g.touched |= (u16)(1u << reg);
	s->g.unknown &= (u16)~(1u << reg);
	s->g.val[reg] = v;
}

/* The register has this value from here on, by its initial value where that is still free. */
static void want(struct seq *s, unsigned reg, u64 v)
{
	if (!touched(s, reg))
		s->c->gpr[reg] = v;
	else if (unknown(s, reg) || s->g.val[reg] != v)
		load(s, reg, v);
	touch(s, reg);
}

/* Both ways to here: what is known of a register must agree. */
static void merge(struct seq *s, const struct registers *other)
{
	for (unsigned reg = 0; reg < 16; reg++) {
		const u16 bit = (u16)(1u << reg);
		const u64 theirs = other->touched & bit ? other->val[reg] : s->c->gpr[reg];
		if ((other->unknown & bit) || theirs != value(s, reg))
			s->g.unknown |= bit;
	}
}

static void bind(struct seq *s, struct label *l)
{
	const s32 d = (s32)(s->len - (l->at + l->size));
	memcpy(s->c->bytes + l->at, &d, l->size);
	merge(s, &l->then);
}

static bool overlaps_code(const struct seq *s, u64 addr, u64 size)
{
	return addr < s->c->rip + sizeof s->c->bytes + 16 && addr + size > s->c->rip - 16;
}

/* May this access happen?  (The read-only page and holes are welcome, our own mappings and our code are not.) */
static bool access_ok(const struct seq *s, u64 addr, unsigned size, bool write)
{
	if (!operand_range_ok(addr))
		return false;
	return !write || (!overlaps_code(s, addr, size) && !(s->keep && addr < s->keep + 8 && addr + size > s->keep));
}

/* The stack pointer is known and good for n bytes below (push) or above (pop). */
static bool stack(struct seq *s, unsigned n, bool push)
{
	for (unsigned attempt = 0; attempt < 4; attempt++) {
		const u64 sp = value(s, RSP);
		if (!unknown(s, RSP) && access_ok(s, push ? sp - n : sp, n, push)) {
			touch(s, RSP);
			return true;
		}
		want(s, RSP, DATA_BASE + 256 + rng_below(s->r, DATA_RW_SIZE - 512));
	}
	return false;
}

static void move_stack(struct seq *s, s64 by) { s->g.val[RSP] += (u64)by; }

/* ---- which instructions ---- */

static bool register_ok(ZydisRegister reg)
{
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8: case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
	case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: case ZYDIS_REGCLASS_MASK:
	case ZYDIS_REGCLASS_FLAGS: case ZYDIS_REGCLASS_IP: return true;
	default: return reg == ZYDIS_REGISTER_MXCSR;
	}
}

static bool category_ok(const ZydisDecodedInstruction *z)
{
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_ADOX_ADCX: case ZYDIS_CATEGORY_AES: case ZYDIS_CATEGORY_AVX: case ZYDIS_CATEGORY_AVX2:
	case ZYDIS_CATEGORY_AVX512: case ZYDIS_CATEGORY_AVX512_BITALG: case ZYDIS_CATEGORY_AVX512_VBMI:
	case ZYDIS_CATEGORY_BINARY: case ZYDIS_CATEGORY_BITBYTE: case ZYDIS_CATEGORY_BLEND: case ZYDIS_CATEGORY_BMI1:
	case ZYDIS_CATEGORY_BMI2: case ZYDIS_CATEGORY_BROADCAST: case ZYDIS_CATEGORY_CMOV: case ZYDIS_CATEGORY_COMPRESS:
	case ZYDIS_CATEGORY_CONFLICT: case ZYDIS_CATEGORY_CONVERT: case ZYDIS_CATEGORY_DATAXFER: case ZYDIS_CATEGORY_EXPAND:
	case ZYDIS_CATEGORY_FLAGOP: case ZYDIS_CATEGORY_GFNI: case ZYDIS_CATEGORY_IFMA: case ZYDIS_CATEGORY_KMASK:
	case ZYDIS_CATEGORY_LOGICAL: case ZYDIS_CATEGORY_LOGICAL_FP: case ZYDIS_CATEGORY_LZCNT: case ZYDIS_CATEGORY_NOP:
	case ZYDIS_CATEGORY_PCLMULQDQ: case ZYDIS_CATEGORY_POP: case ZYDIS_CATEGORY_PREFETCH: case ZYDIS_CATEGORY_PUSH:
	case ZYDIS_CATEGORY_ROTATE: case ZYDIS_CATEGORY_SEMAPHORE: case ZYDIS_CATEGORY_SETCC: case ZYDIS_CATEGORY_SHA:
	case ZYDIS_CATEGORY_SHIFT: case ZYDIS_CATEGORY_SSE: case ZYDIS_CATEGORY_STTNI: case ZYDIS_CATEGORY_VAES:
	case ZYDIS_CATEGORY_VBMI2: case ZYDIS_CATEGORY_VFMA: case ZYDIS_CATEGORY_VPCLMULQDQ: case ZYDIS_CATEGORY_WIDENOP: return true;
	default: return z->mnemonic == ZYDIS_MNEMONIC_LEA || z->mnemonic == ZYDIS_MNEMONIC_CRC32;
	}
}

/* *mem: its explicit memory operand or NULL. */
static bool insn_ok(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, const ZydisDecodedOperand **mem)
{
	*mem = NULL;
	if (!category_ok(z) || gen_excluded(z, ops) || z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE ||
	    (z->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
		return false;
	bool bits = false;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_CLAC: case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLUI: case ZYDIS_MNEMONIC_STUI: case ZYDIS_MNEMONIC_TESTUI: case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ: case ZYDIS_MNEMONIC_EXTRQ: case ZYDIS_MNEMONIC_INSERTQ:
	case ZYDIS_MNEMONIC_MOVDIR64B: return false;
	case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR:
		if (ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && ops[1].imm.value.u != 1)
			return false; /* OF is undefined, see compare.c */
		break;
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		bits = ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
		break;
	default: break;
	}
	const bool stack_insn = z->meta.category == ZYDIS_CATEGORY_PUSH || z->meta.category == ZYDIS_CATEGORY_POP;
	for (unsigned k = 0; k < z->operand_count; k++) {
		const ZydisDecodedOperand *o = &ops[k];
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && !register_ok(o->reg.value))
			return false;
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		if (o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
			if (!stack_insn)
				return false;
			continue;
		}
		if (*mem || o->mem.type != ZYDIS_MEMOP_TYPE_MEM || bits || stack_insn)
			return false;
		*mem = o;
	}
	return true;
}

static void effects(struct seq *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, bool but_rsp)
{
	for (unsigned k = 0; k < z->operand_count; k++) {
		const ZydisDecodedOperand *o = &ops[k];
		int n = -1;
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			reg_of_case(s->c, real_base(z, o), &n);
			if (n >= 0)
				touch(s, (unsigned)n);
			reg_of_case(s->c, o->mem.index, &n);
			if (n >= 0)
				touch(s, (unsigned)n);
			continue;
		}
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		reg_of_case(s->c, o->reg.value, &n);
		if (n < 0)
			continue;
		touch(s, (unsigned)n);
		if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    !(n == RSP && but_rsp && o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT))
			s->g.unknown |= (u16)(1u << n);
	}
}

/* Makes the operand of the instruction in tmp (len bytes) lie where something can happen.  May emit loads. */
static bool solve(struct seq *s, u8 *tmp, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
	const bool locked = (z->attributes & ZYDIS_ATTRIB_HAS_LOCK) || z->mnemonic == ZYDIS_MNEMONIC_XCHG;
	const unsigned size = o->size / 8u ? o->size / 8u : 8;
	const u64 mask = MASK(z->address_width), scale = o->mem.scale ? o->mem.scale : 1, sb = seg_base(s->c, o->mem.segment);
	const bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	u64 disp = real_disp(z, o);
	u64 target = DATA_BASE + rng_below(s->r, DATA_RW_SIZE - size + 1); /* mostly an access that goes on */
	if (rng_one_in(s->r, 4))
		target = pick_target(s->r, size, locked, z->address_width == 64);
	else if (!rng_one_in(s->r, 3))
		target = ALIGN_DOWN(target, size & (size - 1) ? 2 : size);
	int b, in;
	reg_of_case(s->c, real_base(z, o), &b);
	reg_of_case(s->c, o->mem.index, &in);
	if (in >= 0 && in != b && unknown(s, (unsigned)in))
		load(s, (unsigned)in, rng_one_in(s->r, 2) ? rng_below(s->r, 0x1000) : rng_u64(s->r));
	const bool rip = o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP;
	const unsigned disp_bytes = z->raw.disp.size / 8u;
	if (rip || b < 0) {
		u64 wanted = target - sb - (rip ? here(s) + z->length : 0) - (in >= 0 ? value(s, (unsigned)in) * scale : 0);
		if (disp_bytes < 4)
			return false;
		memcpy(tmp + z->raw.disp.offset, &wanted, disp_bytes);
		disp = disp_bytes == 8 ? wanted : (u64)(s64)(s32)wanted;
	} else if (!unknown(s, (unsigned)b) && touched(s, (unsigned)b) && disp_bytes == 4 && rng_one_in(s->r, 2)) {
		u64 wanted = target - sb - value(s, (unsigned)b) - (in >= 0 ? value(s, (unsigned)in) * scale : 0);
		memcpy(tmp + z->raw.disp.offset, &wanted, 4);
		disp = (u64)(s64)(s32)wanted;
	} else {
		u64 v = target - disp - sb;
		if (b == in)
			v = (v & mask) / (1 + scale);
		else if (in >= 0)
			v -= value(s, (unsigned)in) * scale;
		want(s, (unsigned)b, v);
	}
	u64 addr = disp + (rip ? here(s) + z->length : 0);
	if (b >= 0)
		addr += value(s, (unsigned)b);
	if (in >= 0)
		addr += value(s, (unsigned)in) * scale;
	addr = (addr & mask) + sb;
	/* Split locks are slow for everybody on the machine: a few only. */
	if (locked && (addr & 63) + size > 64 && !rng_one_in(s->r, 8))
		return false;
	return access_ok(s, addr, size, write);
}

static u32 *integer_forms, n_integer_forms, *other_forms, n_other_forms;

static void choose_forms(void)
{
	integer_forms = calloc(n_forms, sizeof *integer_forms);
	other_forms = calloc(n_forms, sizeof *other_forms);
	if (!integer_forms || !other_forms)
		abort();
	for (u32 f = 0; f < n_forms; f++) {
		if (forms[f].excluded)
			continue;
		u8 b[40] = { 0 };
		const struct tmpl *t = &forms[f].t[0];
		tmpl_emit(t, 0, t->modrm, 0, false, false, b);
		ZydisDecodedInstruction z;
		ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
		const ZydisDecodedOperand *mem;
		if (!gen_decode(b, 15, &z, ops) || !insn_ok(&z, ops, &mem))
			continue;
		bool integer = true;
		for (unsigned k = 0; k < z.operand_count; k++)
			if (ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER)
				switch (ZydisRegisterGetClass(ops[k].reg.value)) {
				case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: case ZYDIS_REGCLASS_MASK:
					integer = false;
					break;
				default: break;
				}
		if (integer)
			integer_forms[n_integer_forms++] = f;
		else
			other_forms[n_other_forms++] = f;
	}
}

static bool one_form(struct seq *s, bool integer)
{
	const u32 f = integer ? integer_forms[rng_below(s->r, n_integer_forms)] : other_forms[rng_below(s->r, n_other_forms)];
	struct insn_case tmp;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	const ZydisDecodedOperand *mem;
	for (unsigned attempt = 0; attempt < 10; attempt++) {
		randomise_bytes(&tmp, &forms[f].t[rng_below(s->r, forms[f].n_templates)], s->r, attempt);
		if (!gen_decode(tmp.bytes, 15, &z, ops) || !insn_ok(&z, ops, &mem))
			continue;
		const struct seq before = *s;
		struct insn_case state = *s->c;
		bool ok = true;
		if (mem)
			ok = solve(s, tmp.bytes, &z, mem);
		else if (z.meta.category == ZYDIS_CATEGORY_PUSH || z.meta.category == ZYDIS_CATEGORY_POP)
			ok = stack(s, z.operand_width / 8u, z.meta.category == ZYDIS_CATEGORY_PUSH);
		/* The displacement may have been rewritten. */
		const unsigned length = z.length;
		if (!ok || !gen_decode(tmp.bytes, 15, &z, ops) || z.length != length) {
			*s->c = state;
			*s = before;
			continue;
		}
		begin_insn(s);
		put(s, tmp.bytes, z.length);
		const bool push = z.meta.category == ZYDIS_CATEGORY_PUSH, pop = z.meta.category == ZYDIS_CATEGORY_POP;
		if (push)
			move_stack(s, -(s64)(z.operand_width / 8));
		else if (pop)
			move_stack(s, z.operand_width / 8);
		effects(s, &z, ops, push || pop);
		return true;
	}
	return false;
}

/* ---- branches and self-modification ---- */

static void forward_jcc(struct seq *s)
{
	if (s->n_labels == MAX_LABELS)
		return;
	const u8 cc = (u8)rng_below(s->r, 16);
	const u8 wide[2] = { 0x0f, (u8)(0x80 | cc) };
	struct label *l = &s->label[s->n_labels++];
	begin_insn(s);
	put(s, wide, 2);
	*l = (struct label){ .at = (u8)s->len, .size = 4, .left = 1 + (unsigned)rng_below(s->r, 3), .then = s->g };
	put(s, "\0\0\0\0", 4);
}

/* mov byte [rip + d], 0xcc: some instruction of ours becomes INT3 */
static void store_into_code(struct seq *s)
{
	if (s->n_smc == ARRAY_SIZE(s->smc))
		return;
	begin_insn(s);
	put(s, "\xc6\x05", 2);
	s->smc[s->n_smc++] = (u8)s->len;
	put(s, "\0\0\0\0\xcc", 5);
}

/* call f; jmp over; f: one instruction; ret; over: */
static void call_and_return(struct seq *s)
{
	if (s->keep || s->len + 3 * LAST_ROOM > sizeof s->c->bytes || !stack(s, 8, true))
		return;
	begin_insn(s);
	put(s, "\xe8\x05\x00\x00\x00", 5);
	begin_insn(s);
	put(s, "\xe9\0\0\0\0", 5);
	const unsigned over = s->len;
	move_stack(s, -8);
	s->keep = value(s, RSP);
	one_form(s, rng_one_in(s->r, 2));
	want(s, RSP, s->keep);
	begin_insn(s);
	put(s, "\xc3", 1);
	move_stack(s, 8);
	s->keep = 0;
	const s32 d = (s32)(s->len - over);
	memcpy(s->c->bytes + over - 4, &d, 4);
}

/* add reg, reg: every register but RSP is used, so that a translation has none to spare. */
static void use_all(struct seq *s)
{
	for (unsigned reg = 0; reg < 16; reg += 2) {
		const unsigned to = reg == RSP ? 5 : reg, from = reg == RSP ? 0 : reg + 1;
		const u8 b[3] = { (u8)(0x48 | (from >> 3) << 2 | to >> 3), 0x01, (u8)(0xc0 | (from & 7) << 3 | (to & 7)) };
		begin_insn(s);
		put(s, b, 3);
		touch(s, from);
		touch(s, to);
		s->g.unknown |= (u16)(1u << to);
	}
}

/* Where the last jump goes. */
static u64 far_target(struct seq *s)
{
	u64 t;
	switch (rng_below(s->r, 6)) {
	case 0: return DATA_BASE + rng_below(s->r, DATA_SIZE);
	case 1: return CODE_BASE + CODE_SIZE + rng_below(s->r, 0x1000);
	case 2: return 0x0000800000000000 << rng_below(s->r, 4);
	case 3: return 0xffffffff81000000 + rng_below(s->r, 4096);
	default:
		do
			t = CODE_BASE + rng_below(s->r, CODE_SIZE);
		while (overlaps_code(s, t, 1));
		return t;
	}
}

static void last_jump(struct seq *s)
{
	const u64 t = far_target(s);
	const unsigned reg = (unsigned)rng_below(s->r, 16) & ~(unsigned)RSP;
	const u8 rex = (u8)(0x40 | reg >> 3);
	if (!stack(s, 8, true))
		return;
	want(s, reg, t);
	begin_insn(s);
	const unsigned kind = (unsigned)rng_below(s->r, 6);
	if (kind < 2) { /* jmp reg, call reg */
		const u8 b[3] = { rex, 0xff, (u8)((kind ? 0xd0 : 0xe0) | (reg & 7)) };
		put(s, b, 3);
		return;
	}
	const u8 push[2] = { rex, (u8)(0x50 | (reg & 7)) };
	put(s, push, 2);
	begin_insn(s);
	switch (kind) {
	case 2: put(s, "\xff\x24\x24", 3); break; /* jmp [rsp] */
	case 3: put(s, "\xff\x14\x24", 3); break; /* call [rsp] */
	case 4: put(s, "\xc2\x10\x00", 3); break; /* ret 16 */
	default: put(s, "\xc3", 1); break;
	}
}

void sequence_case(struct insn_case *c, struct rng *r)
{
	if (!n_integer_forms)
		choose_forms();
	memset(c, 0, offsetof(struct insn_case, vec_val));
	gen_state(c, r);
	c->rflags &= ~(BIT(8) | BIT(18)); /* single cases test TF and AC; here they would only keep blocks from being used */
	c->form = FORM_SEQUENCE;
	memset(c->bytes, 0xcc, sizeof c->bytes);
	switch (rng_below(r, 16)) {
	case 0: c->rip = CODE_BASE + PAGE_SIZE - rng_below(r, 100); break;
	case 1: c->rip = CODE_BASE + CODE_SIZE - 1 - rng_below(r, 100); break;
	default: c->rip = CODE_BASE + 0x200 + rng_below(r, 0x800); break;
	}
	struct seq s = { .c = c, .r = r };
	const unsigned n = 2 + (unsigned)rng_below(r, 11);
	const bool vector = rng_one_in(r, 3);
	const unsigned crowded = rng_one_in(r, 3) ? (unsigned)rng_below(r, n) : ~0u;
	for (unsigned k = 0; k < n && s.len + LAST_ROOM < sizeof c->bytes; k++) {
		for (unsigned j = 0; j < s.n_labels;) {
			if (s.label[j].left--) {
				j++;
				continue;
			}
			bind(&s, &s.label[j]);
			s.label[j] = s.label[--s.n_labels];
		}
		if (k == crowded)
			use_all(&s);
		const unsigned kind = (unsigned)rng_below(r, 40);
		if (kind < 3)
			forward_jcc(&s);
		else if (kind == 3)
			store_into_code(&s);
		else if (kind < 6)
			call_and_return(&s);
		else
			one_form(&s, vector ? rng_one_in(r, 3) : !rng_one_in(r, 12));
	}
	for (unsigned j = 0; j < s.n_labels; j++)
		bind(&s, &s.label[j]);
	if (rng_one_in(r, 4) && s.len + LAST_ROOM < sizeof c->bytes)
		last_jump(&s);
	for (unsigned k = 0; k < s.n_smc; k++) {
		const unsigned at = s.smc[k];
		const s32 d = s.start[rng_below(r, s.n)] - (s32)(at + 5);
		memcpy(c->bytes + at, &d, 4);
	}
	c->len = (u8)s.len;
}
