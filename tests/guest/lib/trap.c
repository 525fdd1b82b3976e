/* Traps: capture, expected faults, and the executor run(). */
#include "guest.h"

struct frame last;
u64 last_cr2, last_dr6;
unsigned trap_count;
uword trap_resume;
bool (*trap_hook)(struct frame *);
void (*irq_hook[256])(struct frame *);
struct gate idt[256] __attribute__((aligned(16)));
const struct dtr idtr = {sizeof(idt) - 1, (uword)idt};
struct tss tss __attribute__((aligned(128)));

extern char trap_stubs[];
void trap(struct frame *f);
void trap_init(void);
void run_enter(struct frame *f);
_Noreturn void run_leave(void);

static volatile bool running;

void gate_set(unsigned vector, uword handler, u16 sel, u8 type, u8 ist)
{
	struct gate g = {.off0 = (u16)handler, .sel = sel, .ist = ist, .type = type, .off1 = (u16)(handler >> 16)};
#ifdef __x86_64__
	g.off2 = (u32)(handler >> 32);
#endif
	idt[vector] = g;
}

void trap_init(void)
{
	for (unsigned v = 0; v < 256; v++)
		gate_set(v, (uword)trap_stubs + v * 16, SEL_KCODE, v == 0x80 || v == VEC_BP || v == VEC_OF ? 0xee : 0x8e, 0);
	asm volatile("lidt %0" : : "m"(idtr));
	memset(&tss, 0, sizeof(tss));
	tss.iomap = sizeof(tss); /* beyond the limit: no bitmap */
#ifdef __x86_64__
	tss.rsp[0] = (u64)trap_stack_top;
	gdt[SEL_TSS / 8 + 1] = 0;
#else
	tss.esp0 = (u32)trap_stack_top;
	tss.ss0 = SEL_KDATA;
#endif
	gdt[SEL_TSS / 8] = desc((u32)(uword)&tss, sizeof(tss) - 1, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

/* Called by the stubs on the trap's own stack. */
void trap(struct frame *f)
{
	if (f->vector >= 32 && irq_hook[f->vector]) {
		irq_hook[f->vector](f);
		return;
	}
	trap_count++;
	last = *f;
#ifndef __x86_64__
	if (!(f->flags & FL_VM) && !(f->cs & 3)) { /* same privilege: no stack was pushed */
		last.sp = (uword)&f->sp;
		last.ss = SEL_KDATA;
	}
#endif
	last_cr2 = read_cr2();
	if (f->vector == VEC_DB)
		last_dr6 = read_dr6();
	if (trap_hook && trap_hook(f))
		return;
	if (running) {
		running = false;
		run_leave();
	}
	if (trap_resume) {
		f->ip = trap_resume;
		f->flags &= ~(FL_TF | FL_RF | FL_AC);
		trap_resume = 0;
		return;
	}
	print("FAIL unexpected trap %lx error %lx at %lx:%lx flags %lx cr2 %llx sp %lx\n", f->vector, f->error, f->cs, f->ip,
	      f->flags, last_cr2, f->sp);
	guest_exit(EXIT_UNEXPECTED);
}

unsigned run(const struct frame *f)
{
	/* IRET itself may fault: the exception is pushed below the frame. */
	static struct {
		char room[4096];
		struct frame f;
	} area __attribute__((aligned(16)));
	area.f = *f;
	last.vector = NO_TRAP;
	running = true;
	run_enter(&area.f);
	return (unsigned)*(volatile uword *)&last.vector;
}

struct frame kernel_frame(const void *code)
{
	struct frame f;
	memset(&f, 0, sizeof(f));
#ifndef __x86_64__
	f.ds = f.es = f.fs = f.gs = SEL_KDATA;
#endif
	f.ip = (uword)code;
	f.cs = SEL_KCODE;
	f.ss = SEL_KDATA;
	f.sp = (uword)run_stack_top;
	f.flags = FL_1;
	return f;
}

struct frame user_frame(const void *code)
{
	struct frame f = kernel_frame(code);
#ifdef __x86_64__
	f.ip = U(code);
	f.cs = SEL_UCODE;
	f.sp = U(run_stack_top);
#else
	f.cs = SEL_UCODE32;
	f.ds = f.es = f.fs = f.gs = SEL_UDATA;
#endif
	f.ss = SEL_UDATA;
	return f;
}
