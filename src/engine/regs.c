/* Registers in KVM's structures. */
#include <errno.h>
#include <string.h>

#include "cpu/msr.h"
#include "engine/soft.h"

int soft_get_regs(struct vcpu *v, struct kvm_regs *r)
{
	const struct cpu *c = v->cpu;
	*r = (struct kvm_regs){ .rax = c->r[RAX], .rbx = c->r[RBX], .rcx = c->r[RCX], .rdx = c->r[RDX], .rsi = c->r[RSI],
		.rdi = c->r[RDI], .rsp = c->r[RSP], .rbp = c->r[RBP], .r8 = c->r[R8], .r9 = c->r[R9], .r10 = c->r[R10],
		.r11 = c->r[R11], .r12 = c->r[R12], .r13 = c->r[R13], .r14 = c->r[R14], .r15 = c->r[R15],
		.rip = c->rip, .rflags = cpu_rflags(c) };
	return 0;
}

int soft_set_regs(struct vcpu *v, const struct kvm_regs *r)
{
	struct cpu *c = v->cpu;
	const u64 gpr[16] = { r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
			      r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15 };
	memcpy(c->r, gpr, sizeof gpr);
	c->rip = r->rip;
	cpu_set_rflags(c, r->rflags);
	cpu_update_mode(c);
	return 0;
}

static struct kvm_segment to_kvm(const struct seg *s)
{
	return (struct kvm_segment){ .base = s->base, .limit = s->limit, .selector = s->sel, .type = s->type,
		.present = s->present, .dpl = s->dpl, .db = s->db, .s = s->s, .l = s->l, .g = s->g, .avl = s->avl,
		.unusable = s->unusable };
}

static struct seg from_kvm(const struct kvm_segment *k)
{
	return (struct seg){ .base = k->base, .limit = k->limit, .sel = k->selector, .type = k->type & 0xf,
		.present = k->present, .dpl = k->dpl & 3, .db = k->db, .s = k->s, .l = k->l, .g = k->g, .avl = k->avl,
		.unusable = k->unusable };
}

int soft_get_sregs(struct vcpu *v, struct kvm_sregs *s)
{
	const struct cpu *c = v->cpu;
	*s = (struct kvm_sregs){ .cs = to_kvm(&c->seg[CS]), .ds = to_kvm(&c->seg[DS]), .es = to_kvm(&c->seg[ES]),
		.fs = to_kvm(&c->seg[FS]), .gs = to_kvm(&c->seg[GS]), .ss = to_kvm(&c->seg[SS]),
		.tr = to_kvm(&c->tr), .ldt = to_kvm(&c->ldtr),
		.gdt = { .base = c->gdtr.base, .limit = c->gdtr.limit }, .idt = { .base = c->idtr.base, .limit = c->idtr.limit },
		.cr0 = c->cr0, .cr2 = c->cr2, .cr3 = c->cr3, .cr4 = c->cr4, .cr8 = lapic_get_tpr(c) >> 4, .efer = c->efer,
		.apic_base = c->apic_base };
	return 0;
}

int soft_set_sregs(struct vcpu *v, const struct kvm_sregs *s)
{
	struct cpu *c = v->cpu;
	const struct kvm_segment *from[SREG_COUNT] = { [ES] = &s->es, [CS] = &s->cs, [SS] = &s->ss,
						       [DS] = &s->ds, [FS] = &s->fs, [GS] = &s->gs };
	for (unsigned k = 0; k < SREG_COUNT; k++)
		c->seg[k] = from_kvm(from[k]);
	c->tr = from_kvm(&s->tr);
	c->ldtr = from_kvm(&s->ldt);
	c->gdtr = (struct dtr){ .base = s->gdt.base, .limit = s->gdt.limit };
	c->idtr = (struct dtr){ .base = s->idt.base, .limit = s->idt.limit };
	c->cr0 = s->cr0 | CR0_ET;
	c->cr2 = s->cr2;
	c->cr3 = s->cr3;
	c->cr4 = s->cr4;
	c->efer = s->efer;
	c->cpl = c->cr0 & CR0_PE ? c->seg[SS].dpl : 0;
	cpu_pdptes_reload(c);
	mmu_flush_all(c);
	cpu_update_mode(c);
	return 0;
}
