#include "roles/vm_report.h"

#include <Zydis/Zydis.h>
#include <inttypes.h>
#include <string.h>

#define VM_REPORT_RIPS 64    /* last executed blocks or instructions */
#define VM_REPORT_FRAMES 24  /* of the frame-pointer chain */
#define VM_REPORT_STACK 128  /* words of the stack looked at for return addresses */
#define VM_REPORT_AHEAD 8    /* instructions disassembled from RIP on */

struct vm_report_ctx {
	struct report *r;
	const struct hv_ops *hv;
	struct vcpu *v;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

static ZydisMachineMode vm_report_mode(const struct kvm_sregs *s)
{
	if (s->cs.l)
		return ZYDIS_MACHINE_MODE_LONG_64;
	if (s->efer & BIT(10)) /* LMA: compatibility mode */
		return s->cs.db ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_COMPAT_16;
	if (!(s->cr0 & 1))
		return ZYDIS_MACHINE_MODE_REAL_16;
	return s->cs.db ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16;
}

/* One instruction at linear address; its length, 0 when it cannot be read or decoded. */
static unsigned vm_report_insn(const struct vm_report_ctx *c, u64 address)
{
	u8 bytes[15];
	u64 n = c->hv->read_virt(c->v, GVA(address), bytes, sizeof bytes);
	if (!n || n > sizeof bytes) {
		report_printf(c->r, "  %016" PRIx64 "  (not readable)\n", address);
		return 0;
	}
	ZydisMachineMode mode = vm_report_mode(&c->sregs);
	ZydisStackWidth width = mode == ZYDIS_MACHINE_MODE_LONG_64                                          ? ZYDIS_STACK_WIDTH_64 :
				mode == ZYDIS_MACHINE_MODE_LONG_COMPAT_32 || mode == ZYDIS_MACHINE_MODE_LEGACY_32 ? ZYDIS_STACK_WIDTH_32 :
														    ZYDIS_STACK_WIDTH_16;
	ZydisDecoder decoder;
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisFormatter formatter;
	char text[160] = "(bad)";
	unsigned len = 0;
	if (ZYAN_SUCCESS(ZydisDecoderInit(&decoder, mode, width)) &&
	    ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, n, &insn, ops))) {
		len = insn.length;
		if (ZYAN_SUCCESS(ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)))
			ZydisFormatterFormatInstruction(&formatter, &insn, ops, insn.operand_count_visible, text,
							sizeof text, address, NULL);
	}
	report_printf(c->r, "  %016" PRIx64 "  ", address);
	for (unsigned i = 0; i < (len ? len : (unsigned)n); i++)
		report_printf(c->r, "%02x", bytes[i]);
	report_printf(c->r, "%*s  %s\n", len < 12 ? (int)(24 - 2 * (len ? len : 12)) : 0, "", text);
	return len;
}

static void vm_report_segment(struct report *r, const char *name, const struct kvm_segment *s)
{
	report_printf(r, "%-4s %04x base %016llx limit %08x type %x s %u dpl %u p %u l %u db %u g %u\n", name, s->selector,
		      (unsigned long long)s->base, s->limit, s->type, s->s, s->dpl, s->present, s->l, s->db, s->g);
}

static void vm_report_registers(const struct vm_report_ctx *c)
{
	const struct kvm_regs *g = &c->regs;
	const struct kvm_sregs *s = &c->sregs;
	const struct {
		const char *name;
		u64 v;
	} regs[] = {
		{ "rax", g->rax }, { "rbx", g->rbx }, { "rcx", g->rcx }, { "rdx", g->rdx }, { "rsi", g->rsi },
		{ "rdi", g->rdi }, { "rsp", g->rsp }, { "rbp", g->rbp }, { "r8", g->r8 },   { "r9", g->r9 },
		{ "r10", g->r10 }, { "r11", g->r11 }, { "r12", g->r12 }, { "r13", g->r13 }, { "r14", g->r14 },
		{ "r15", g->r15 }, { "rip", g->rip }, { "rflags", g->rflags }, { "cr0", s->cr0 }, { "cr2", s->cr2 },
		{ "cr3", s->cr3 }, { "cr4", s->cr4 }, { "cr8", s->cr8 }, { "efer", s->efer },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
		report_printf(c->r, "%-6s %016" PRIx64 "%s", regs[i].name, regs[i].v, i % 4 == 3 ? "\n" : "  ");
	const struct {
		const char *name;
		const struct kvm_segment *s;
	} segs[] = { { "cs", &s->cs }, { "ss", &s->ss }, { "ds", &s->ds }, { "es", &s->es },
		     { "fs", &s->fs }, { "gs", &s->gs }, { "tr", &s->tr }, { "ldt", &s->ldt } };
	for (unsigned i = 0; i < ARRAY_SIZE(segs); i++)
		vm_report_segment(c->r, segs[i].name, segs[i].s);
	report_printf(c->r, "gdt  base %016llx limit %04x   idt  base %016llx limit %04x\n",
		      (unsigned long long)s->gdt.base, s->gdt.limit, (unsigned long long)s->idt.base, s->idt.limit);
}

static bool vm_report_word(const struct vm_report_ctx *c, u64 address, u64 *out)
{
	return c->hv->read_virt(c->v, GVA(address), out, sizeof *out) == sizeof *out;
}

/* Debian's kernels keep no frame pointers, so the chain is short there and
 * every word of the stack that could be a return address is shown as well. */
static void vm_report_backtrace(const struct vm_report_ctx *c)
{
	report_section(c->r, "guest back trace (frame pointers)");
	report_printf(c->r, "  %016" PRIx64 "\n", (u64)c->regs.rip);
	u64 frame = c->regs.rbp;
	for (unsigned i = 0; i < VM_REPORT_FRAMES; i++) {
		u64 next, ret;
		if (frame & 7 || !vm_report_word(c, frame, &next) || !vm_report_word(c, frame + 8, &ret))
			break;
		report_printf(c->r, "  %016" PRIx64 "\n", ret);
		if (next <= frame)
			break;
		frame = next;
	}
	report_section(c->r, "guest stack: words that look like code (address: value)");
	u64 base = c->sregs.ss.db && !c->sregs.cs.l ? c->sregs.ss.base : 0;
	u64 high = c->regs.rip & ~MASK(31); /* code of the same 2 GiB */
	for (unsigned i = 0; i < VM_REPORT_STACK; i++) {
		u64 at = base + c->regs.rsp + 8ull * i, w;
		if (!vm_report_word(c, at, &w))
			break;
		if ((w & ~MASK(31)) == high && (high || w > 0x1000))
			report_printf(c->r, "  %016" PRIx64 ": %016" PRIx64 "\n", at, w);
	}
}

static void vm_report_code(const struct vm_report_ctx *c)
{
	u64 base = c->sregs.cs.l ? 0 : c->sregs.cs.base;
	report_section(c->r, "instructions at rip");
	u64 at = base + c->regs.rip;
	for (unsigned i = 0; i < VM_REPORT_AHEAD; i++) {
		unsigned n = vm_report_insn(c, at);
		if (!n)
			break;
		at += n;
	}
	u64 rips[VM_REPORT_RIPS];
	unsigned n = c->hv->last_rips ? c->hv->last_rips(c->v, rips, VM_REPORT_RIPS) : 0;
	report_section(c->r, "executed last, newest first");
	for (unsigned i = 0; i < n && i < VM_REPORT_RIPS; i++)
		vm_report_insn(c, base + rips[i]);
}

static void vm_report_vcpu(struct report *r, const struct hv_ops *hv, struct vcpu *v, unsigned id)
{
	struct vm_report_ctx c = { .r = r, .hv = hv, .v = v };
	char title[32] = "vcpu ";
	title[5] = (char)('0' + id / 10);
	title[6] = (char)('0' + id % 10);
	report_section(r, title);
	const char *why = hv->last_error(v);
	if (why && why[0])
		report_printf(r, "error: %s\n", why);
	if (hv->get_regs(v, &c.regs) || hv->get_sregs(v, &c.sregs)) {
		report_printf(r, "registers cannot be read\n");
		return;
	}
	vm_report_registers(&c);
	vm_report_code(&c);
	vm_report_backtrace(&c);
	struct hv_unknown_msr msr[HV_UNKNOWN_MSRS];
	unsigned n_msr = hv->unknown_msrs ? hv->unknown_msrs(v, msr, HV_UNKNOWN_MSRS) : 0;
	report_section(r, "MSRs the guest touched that do not exist (first access)");
	for (unsigned i = 0; i < n_msr; i++)
		report_printf(r, "%#x %s %s at %016" PRIx64 " value %#" PRIx64 ", %" PRIu64 " times\n", msr[i].index,
			      msr[i].name ? msr[i].name : "(no name)", msr[i].write ? "written" : "read", msr[i].rip, msr[i].value,
			      msr[i].count);
	u64 stats[HV_STAT_COUNT] = { 0 };
	hv->stats(v, stats);
	report_section(r, "counters");
	for (unsigned i = 0; i < HV_STAT_COUNT; i++)
		report_printf(r, "%-20s %" PRIu64 "\n", hv_stat_names[i], stats[i]);
}

void vm_report_machine(struct report *r, struct machine *m, const struct hv_ops *hv)
{
	for (unsigned i = 0; i < machine_ncpus(m) && i < 100; i++)
		vm_report_vcpu(r, hv, machine_vcpu(m, i), i);
	report_section(r, "devices");
	static char text[32768];
	machine_report(m, text, sizeof text);
	text[sizeof text - 1] = 0;
	report_printf(r, "%s\n", text);
}
