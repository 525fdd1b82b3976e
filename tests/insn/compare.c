/* What must agree: everything.  The few exceptions stand in tables here, each with its reason. */
#include <string.h>

#include "compare.h"
#include "gen_internal.h"

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

const char *end_name(u32 end)
{
	static const char *const v[32] = {
		"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF", "15",
		"#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
	};
	switch (end) {
	case END_TIMEOUT: return "timeout";
	case END_DIED: return "died";
	case END_OTHER: return "other";
	case END_NOT_RUN: return "not run";
	default: return end < 32 && v[end] ? v[end] : "?";
	}
}

/* What may differ, and why: each entry names instructions, what of their result, and when.  Nothing else is forgiven. */
enum item { KNOWN_OF = 1, KNOWN_X87 = 2, KNOWN_MEM = 4, KNOWN_FIP = 8, KNOWN_CR2 = 16, KNOWN_END = 32, KNOWN_VEC = 64 };

static struct known {
	u16 from, to;  /* mnemonics, inclusive; 0, 0: not an instruction */
	u8 items;
	s8 end;        /* only when the native case ends so; -1: however */
	const char *why;
	u64 used;
} known[] = {
	{ ZYDIS_MNEMONIC_ROL, ZYDIS_MNEMONIC_ROL, KNOWN_OF, -1,
	  "OF of a rotate by more than 1 is undefined (SDM vol. 2 RCL/RCR/ROL/ROR); hosts differ between imm8 and CL" },
	{ ZYDIS_MNEMONIC_ROR, ZYDIS_MNEMONIC_ROR, KNOWN_OF, -1,
	  "OF of a rotate by more than 1 is undefined (SDM vol. 2 RCL/RCR/ROL/ROR); hosts differ between imm8 and CL" },
	{ ZYDIS_MNEMONIC_MOVD, ZYDIS_MNEMONIC_MOVD, KNOWN_X87, -1, "an MMX store that faults has already cleared TOP" },
	{ ZYDIS_MNEMONIC_MOVQ, ZYDIS_MNEMONIC_MOVQ, KNOWN_X87, -1, "an MMX store that faults has already cleared TOP" },
	{ ZYDIS_MNEMONIC_MOVNTQ, ZYDIS_MNEMONIC_MOVNTQ, KNOWN_X87, -1, "an MMX store that faults has already cleared TOP" },
	{ ZYDIS_MNEMONIC_CALL, ZYDIS_MNEMONIC_CALL, KNOWN_MEM, 13,
	  "a far or indirect CALL to a non-canonical address has already written the stack (RSP does not move)" },
	{ ZYDIS_MNEMONIC_CALL, ZYDIS_MNEMONIC_CALL, KNOWN_END, 17,
	  "a stack pointer both misaligned and not canonical: #AC or #SS" },
	{ ZYDIS_MNEMONIC_FSTP, ZYDIS_MNEMONIC_FSTP, KNOWN_MEM, 14,
	  "an 80-bit store across a page stores its significand before the rest faults" },
#define STATE(m, items)                                                                                                   \
	{ ZYDIS_MNEMONIC_##m, ZYDIS_MNEMONIC_##m, items, -1,                                                                \
	  "state images: order of accesses (which of two faults is seen), #AC instead of #GP (SDM vol. 2), width of FIP and FDP" }
	STATE(FNSTENV, KNOWN_CR2 | KNOWN_END), STATE(FNSAVE, KNOWN_CR2 | KNOWN_END), STATE(FLDENV, KNOWN_CR2 | KNOWN_END),
	STATE(FRSTOR, KNOWN_CR2 | KNOWN_END),
	STATE(FXSAVE, KNOWN_CR2 | KNOWN_END), STATE(FXSAVE64, KNOWN_CR2 | KNOWN_END),
	STATE(FXRSTOR, KNOWN_CR2 | KNOWN_END), STATE(FXRSTOR64, KNOWN_CR2 | KNOWN_END | KNOWN_FIP),
	STATE(XSAVE, KNOWN_CR2 | KNOWN_END), STATE(XSAVE64, KNOWN_CR2 | KNOWN_END), STATE(XSAVEC, KNOWN_CR2 | KNOWN_END),
	STATE(XSAVEC64, KNOWN_CR2 | KNOWN_END), STATE(XRSTOR, KNOWN_CR2 | KNOWN_END),
	STATE(XRSTOR64, KNOWN_CR2 | KNOWN_END | KNOWN_FIP),
#undef STATE
#define ALIGN(m)                                                                                                         \
	{ ZYDIS_MNEMONIC_##m, ZYDIS_MNEMONIC_##m, KNOWN_END, -1,                                                            \
	  "#AC of partial vector operands is up to the implementation (SDM vol. 3, interrupt 17)" }
	ALIGN(VCVTPS2QQ), ALIGN(VCVTPS2UQQ), ALIGN(VCVTTPS2QQ), ALIGN(VCVTTPS2UQQ), ALIGN(VCVTPH2PS), ALIGN(VCVTPS2PH), ALIGN(VMASKMOVDQU), ALIGN(MASKMOVDQU), ALIGN(MASKMOVQ),
#undef ALIGN
#define STACK(m)                                                                                                         \
	{ ZYDIS_MNEMONIC_##m, ZYDIS_MNEMONIC_##m, KNOWN_END | KNOWN_CR2, -1,                                                            \
	  "reads of the stack beyond CS against the checks of CS: the order is not specified" }
	STACK(RET), STACK(IRET), STACK(IRETD), STACK(IRETQ),
#undef STACK
#define GATHER(m)                                                                                                        \
	{ ZYDIS_MNEMONIC_##m, ZYDIS_MNEMONIC_##m, KNOWN_END, 1,                                                            \
	  "a gather that faults under TF before its first element: #DB or the fault" }
	{ ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VGATHERQPS, KNOWN_VEC, 14,
	  "two halves: the destination's upper part goes with the second one when a fault stops it" },
	{ ZYDIS_MNEMONIC_VPGATHERQD, ZYDIS_MNEMONIC_VPGATHERQD, KNOWN_VEC, 14,
	  "two halves: the destination's upper part goes with the second one when a fault stops it" },
	GATHER(VPGATHERDD), GATHER(VPGATHERDQ), GATHER(VPGATHERQD), GATHER(VPGATHERQQ), GATHER(VGATHERDPS), GATHER(VGATHERDPD),
	GATHER(VGATHERQPS), GATHER(VGATHERQPD), GATHER(VPSCATTERDD), GATHER(VPSCATTERDQ), GATHER(VPSCATTERQD),
	GATHER(VPSCATTERQQ), GATHER(VSCATTERDPS), GATHER(VSCATTERDPD), GATHER(VSCATTERQPS), GATHER(VSCATTERQPD),
#undef GATHER
	{ ZYDIS_MNEMONIC_INSERTQ, ZYDIS_MNEMONIC_INSERTQ, KNOWN_END, 6,
	  "undefined here (SSE4a): the host does not fetch immediates of what it does not know" },
	{ ZYDIS_MNEMONIC_EXTRQ, ZYDIS_MNEMONIC_EXTRQ, KNOWN_END, 6,
	  "undefined here (SSE4a): the host does not fetch immediates of what it does not know" },
	{ 0, 0, KNOWN_END, 13, "longer than 15 bytes and undefined as well: #GP or #UD" },
};

/* Is it a CALL that ended the sequence? */
static bool ended_in_call(const struct insn_case *c, const struct insn_result *want)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	return c->form == FORM_SEQUENCE && want->end == 13 && want->rip - c->rip < c->len &&
	       gen_decode(c->bytes + (want->rip - c->rip), 15, &z, ops) && z.mnemonic == ZYDIS_MNEMONIC_CALL;
}

static bool forgive(const struct insn_case *c, unsigned item, u32 end)
{
	if (c->form == FORM_DIRECTED || (c->form == FORM_SEQUENCE && item != KNOWN_MEM))
		return false;
	u16 m = c->form == FORM_SEQUENCE ? ZYDIS_MNEMONIC_CALL : c->form != FORM_GARBAGE ? forms[c->form].mnemonic : 0;
	for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
		struct known *k = &known[i];
		if (m < k->from || m > k->to || !(k->items & item) || (k->end >= 0 && (u32)k->end != end))
			continue;
		k->used++;
		return true;
	}
	return false;
}

void report_known(FILE *out)
{
	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].used)
			fprintf(out, "  known difference, %llu cases: %s: %s\n", (unsigned long long)known[i].used,
				known[i].from ? ZydisMnemonicGetString(known[i].from) : "(not an instruction)", known[i].why);
}

/* Is count != 1 for this rotate?  (Its OF is then undefined.) */
static bool rotates_far(const struct insn_case *c)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	if (!gen_decode(c->bytes, 15, &z, ops))
		return false;
	u64 n = ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? ops[1].imm.value.u : c->gpr[1];
	return (n & (ops[0].size == 64 ? 63 : 31)) != 1;
}

static void differ(FILE *out, unsigned *n, const char *what, u64 want, u64 got)
{
	if (out)
		fprintf(out, "    %-10s native %016llx  got %016llx\n", what, (unsigned long long)want, (unsigned long long)got);
	++*n;
}

static void compare_bytes(FILE *out, unsigned *n, const char *what, unsigned no, const u8 *want, const u8 *got, unsigned len)
{
	if (!memcmp(want, got, len))
		return;
	++*n;
	if (!out)
		return;
	fprintf(out, "    %s%-2u native ", what, no);
	for (unsigned i = 0; i < len; i++)
		fprintf(out, "%s%02x", i && i % 8 == 0 ? "_" : "", want[i]);
	fprintf(out, "\n    %s%-2u got    ", what, no);
	for (unsigned i = 0; i < len; i++)
		fprintf(out, "%s%02x", i && i % 8 == 0 ? "_" : "", got[i]);
	fprintf(out, "\n");
}

/* x87: 0 leaves the x87 part out. */
static void compare_xsave(FILE *out, unsigned *n, struct insn_result *want, struct insn_result *got, unsigned x87)
{
	xsave_normalise(want->xsave);
	xsave_normalise(got->xsave);
	if (!memcmp(want->xsave, got->xsave, host.xsave_size))
		return;
	static const struct { const char *name; unsigned off, len; } fields[] = {
		{ "fcw", 0, 2 }, { "fsw", 2, 2 }, { "ftw", 4, 1 }, { "fop", 6, 2 }, { "fip", 8, 8 }, { "fdp", 16, 8 },
		{ "mxcsr", 24, 4 },
	};
	for (unsigned i = x87 ? 0 : 6; i < ARRAY_SIZE(fields); i++) {
		u64 a = 0, b = 0;
		memcpy(&a, want->xsave + fields[i].off, fields[i].len);
		memcpy(&b, got->xsave + fields[i].off, fields[i].len);
		if (a != b)
			differ(out, n, fields[i].name, a, b);
	}
	for (unsigned i = 0; i < 8 && x87; i++)
		compare_bytes(out, n, "st", i, want->xsave + 32 + i * 16, got->xsave + 32 + i * 16, 10);
	for (unsigned i = 0; i < 32; i++) {
		u64 a[8], b[8];
		xsave_get_vec(want->xsave, i, a);
		xsave_get_vec(got->xsave, i, b);
		compare_bytes(out, n, "zmm", i, (u8 *)a, (u8 *)b, 64);
	}
	if (host.off_opmask)
		for (unsigned i = 0; i < 8; i++)
			compare_bytes(out, n, "k", i, want->xsave + host.off_opmask + i * 8, got->xsave + host.off_opmask + i * 8, 8);
}

static void compare_memory(FILE *out, unsigned *n, const struct insn_batch *b, const struct insn_result *want,
			   const struct insn_result *got)
{
	u32 i = 0, k = 0;
	while (i < want->n_lines || k < got->n_lines) {
		u32 wl = i < want->n_lines ? want->line_no[i] : ~0u, gl = k < got->n_lines ? got->line_no[k] : ~0u;
		u32 line = wl < gl ? wl : gl;
		const u8 *base = b->arena + (u64)line * 64;
		const u8 *w = wl == line ? want->line[i++] : base, *g = gl == line ? got->line[k++] : base;
		if (!memcmp(w, g, 64))
			continue;
		if (out) {
			u64 addr = (u64)line * 64;
			addr = addr < CODE_SIZE ? CODE_BASE + addr : DATA_BASE + addr - CODE_SIZE;
			fprintf(out, "    memory at %llx\n", (unsigned long long)addr);
		}
		compare_bytes(out, n, "mem", 0, w, g, 64);
	}
}

bool compare_results(const struct insn_batch *b, const struct insn_case *c, struct insn_result *want, struct insn_result *got,
		     FILE *out)
{
	unsigned n = 0;
	if (want->end != got->end &&
	    ((want->end == 17 || got->end == 17 || (want->end == 13 && got->end == 14) || (want->end == 6 && got->end == 14) || (want->end == 1 && got->end == 14) || c->form == FORM_GARBAGE) && want->end < 32 && got->end < 32) &&
	    forgive(c, KNOWN_END, want->end))
		return true; /* the rest follows from it */
	if (want->end != got->end) {
		if (out)
			fprintf(out, "    ends       native %s  got %s\n", end_name(want->end), end_name(got->end));
		if (out && got->end == END_OTHER)
			fprintf(out, "    %s\n", got->why);
		n++;
	}
	if (want->end >= 32 || got->end >= 32)
		return !n; /* no state to compare */
	u32 we = want->error, ge = got->error;
	if (want->end == 14 && want->cr2 >= 0x00007ffffffff000ull) {
		/* Linux sets P from TASK_SIZE_MAX on: user code must not learn what is mapped there. */
		we |= 1;
		ge |= 1;
	}
	bool other_fault = want->cr2 != got->cr2 && want->cr2 - got->cr2 + XSAVE_MAX < 2 * XSAVE_MAX && forgive(c, KNOWN_CR2, want->end);
	if (we != ge && !other_fault)
		differ(out, &n, "error", we, ge);
	if (want->cr2 != got->cr2 && !other_fault)
		differ(out, &n, "cr2", want->cr2, got->cr2);
	if (want->rip != got->rip)
		differ(out, &n, "rip", want->rip, got->rip);
	/* Upper halves of general registers are undefined after a switch to compatibility mode (SDM vol. 1, 3.4.1.1). */
	const u64 defined = want->cs == SEL_USER32_CS && got->cs == SEL_USER32_CS ? 0xffffffff : ~0ull;
	for (unsigned i = 0; i < 16; i++)
		if ((want->gpr[i] ^ got->gpr[i]) & defined)
			differ(out, &n, gpr_names[i], want->gpr[i], got->gpr[i]);
	if (want->rflags != got->rflags &&
	    !((want->rflags ^ got->rflags) == BIT(11) && rotates_far(c) && forgive(c, KNOWN_OF, want->end)))
		differ(out, &n, "rflags", want->rflags, got->rflags);
	if (want->fs_base != got->fs_base)
		differ(out, &n, "fs_base", want->fs_base, got->fs_base);
	if (want->gs_base != got->gs_base)
		differ(out, &n, "gs_base", want->gs_base, got->gs_base);
	/* A null selector keeps its RPL bits in the register; the kernel's IRET to the signal handler clears them (SDM,
	 * IRET, return to outer privilege level), so that natively they cannot be seen. */
#define SEL(x)                                                     \
	if ((want->x & ~3u ? want->x : 0) != (got->x & ~3u ? got->x : 0)) \
		differ(out, &n, #x, want->x, got->x)
	SEL(cs);
	SEL(ss);
	SEL(ds);
	SEL(es);
	SEL(fs);
	SEL(gs);
#undef SEL
	unsigned items = 0;
	compare_xsave(NULL, &items, want, got, ~0u);
	if (items && want->end == 14 && !memcmp(want->xsave, got->xsave, 160) && forgive(c, KNOWN_VEC, 14))
		items = 0;
	if (items && !(want->end != 3 && forgive(c, KNOWN_X87, want->end)) && !forgive(c, KNOWN_FIP, want->end))
		compare_xsave(out, &n, want, got, ~0u);
	else if (items)
		compare_xsave(out, &n, want, got, 0);
	items = 0;
	compare_memory(NULL, &items, b, want, got);
	if (items && !((c->form != FORM_SEQUENCE || ended_in_call(c, want)) && forgive(c, KNOWN_MEM, want->end)))
		compare_memory(out, &n, b, want, got);
	return !n;
}

void print_case(const struct insn_batch *b, const struct insn_case *c, FILE *out)
{
	char text[160];
	for (unsigned at = 0; at < c->len;) {
		const unsigned left = c->len - at;
		unsigned len = disassemble(c->bytes + at, left < 15 ? left : 15, c->rip + at, text, sizeof(text));
		if (!len || c->form == FORM_GARBAGE)
			len = left;
		fprintf(out, "  %llx: ", (unsigned long long)c->rip + at);
		for (unsigned i = 0; i < len; i++)
			fprintf(out, "%02x ", c->bytes[at + i]);
		fprintf(out, "  %s\n", text);
		at += len;
	}
	for (unsigned i = 0; i < 16; i++)
		fprintf(out, "    %-4s%016llx%s", gpr_names[i], (unsigned long long)c->gpr[i], i % 4 == 3 ? "\n" : "");
	fprintf(out, "    rflags %llx fs_base %llx gs_base %llx vec state %u", (unsigned long long)c->rflags,
		(unsigned long long)c->fs_base, (unsigned long long)c->gs_base, c->vec);
	const u8 *img = b->vec[c->vec];
	u16 fcw, fsw;
	u32 mxcsr;
	memcpy(&fcw, img, 2);
	memcpy(&fsw, img + 2, 2);
	memcpy(&mxcsr, img + 24, 4);
	fprintf(out, " fcw %x fsw %x ftw %x mxcsr %x\n", fcw, fsw, img[4], mxcsr);
	for (unsigned p = 0; p < c->n_patches; p++) {
		fprintf(out, "    memory at %llx =", (unsigned long long)c->patch[p].addr);
		for (unsigned i = 0; i < c->patch[p].len; i++)
			fprintf(out, " %02x", c->patch[p].b[i]);
		fprintf(out, "\n");
	}
}
