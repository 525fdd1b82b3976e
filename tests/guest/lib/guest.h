/* Runtime of the bare-metal test programs: what a test needs and nothing of any
 * operating system.  Freestanding; compiled for 64-bit mode and, for the
 * programs of legacy modes, for 32-bit protected mode (guest word = uword). */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef unsigned long uword;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n) (1ull << (n))
#define PAGE 4096ull

#include "x86.h"

/* ---- results ----
 * A program is a list of cases, run in order of the file.  Every check that
 * fails prints "FAIL file:line ..."; the exit status of the machine is
 * EXIT_OK, or the number of the first failed case (1-based), or one below. */
enum { EXIT_OK = 0x10, EXIT_UNEXPECTED = 126, EXIT_FATAL = 125 };
/* Numbers of cases skip EXIT_OK. */
struct test_case {
	const char *name;
	void (*fn)(void);
};
#define CASE(id)                                                                                                       \
	static void case_##id(void);                                                                                   \
	static const struct test_case entry_##id __attribute__((used, section("cases"))) = {#id, case_##id};           \
	static void case_##id(void)

void check_failed(const char *file, int line, const char *what, u64 got, u64 want);
#define CHECK_EQ(got, want)                                                                                            \
	do {                                                                                                           \
		u64 got_ = (u64)(got), want_ = (u64)(want);                                                            \
		if (got_ != want_)                                                                                     \
			check_failed(__FILE__, __LINE__, #got " == " #want, got_, want_);                              \
	} while (0)
#define CHECK(cond)                                                                                                    \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			check_failed(__FILE__, __LINE__, #cond, 0, 1);                                                 \
	} while (0)

/* True when QEMU's TCG runs us and is known to get this wrong: the caller then
 * skips the check.  Prints the reason. */
bool tcg_known_wrong(const char *reason);
bool on_tcg(void);
/* A feature the CPU does not offer: noted, not a failure. */
void skipped(const char *what);

void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %d %u %x %s %c, ll and l; to the debug console */
_Noreturn void guest_exit(u32 code);

/* ---- memory ---- */
void *memset(void *p, int c, uword n);
void *memcpy(void *d, const void *s, uword n);
int memcmp(const void *a, const void *b, uword n);
/* Zeroed page-aligned physical memory (identity mapped), never freed within a case; all is free again at the next. */
void *page_alloc(unsigned pages);

/* ---- traps ---- */
struct frame {
#ifdef __x86_64__
	uword r[16]; /* in encoding order; r[4] unused (see sp) */
#else
	uword ds, es, fs, gs, r[8]; /* r[4] unused */
#endif
	uword vector, error, ip, cs, flags, sp, ss;
#ifndef __x86_64__
	uword vm_es, vm_ds, vm_fs, vm_gs; /* virtual-8086 mode only */
#endif
};
#define NO_TRAP 0x100u

extern struct frame last; /* the latest trap */
extern u64 last_cr2, last_dr6;
extern unsigned trap_count;          /* traps since the program's start */
extern uword trap_resume;            /* where to go on after the next trap; 0: unexpected */
extern bool (*trap_hook)(struct frame *); /* sees every trap first; true: handled, return from it */
extern void (*irq_hook[256])(struct frame *); /* interrupts with a handler of their own */

/* TRAP(insn, operands…): runs one or more instructions; last.vector afterwards is the vector of the first fault (which
 * skips the rest), or NO_TRAP.  The value of the expression is last.vector. */
#ifdef __x86_64__
#define TRAP(insn, ...)                                                                                                \
	({                                                                                                             \
		last.vector = NO_TRAP;                                                                                 \
		asm volatile("movq $771f, trap_resume(%%rip)\n\t" insn                                                     \
			     "\n771:\tmovq $0, trap_resume(%%rip)" __VA_ARGS__);                                       \
		*(volatile uword *)&last.vector;                                                                       \
	})
#else
#define TRAP(insn, ...)                                                                                                \
	({                                                                                                             \
		last.vector = NO_TRAP;                                                                                 \
		asm volatile("movl $771f, trap_resume\n\t" insn "\n771:\tmovl $0, trap_resume" __VA_ARGS__);           \
		*(volatile uword *)&last.vector;                                                                       \
	})
#endif
/* The common operand tail: inputs only.  R11 (64-bit) may be destroyed. */
#ifdef __x86_64__
#define TRAP_IN(insn, ...) TRAP(insn, : : __VA_ARGS__ : "r11", "memory", "cc")
#else
#define TRAP_IN(insn, ...) TRAP(insn, : : __VA_ARGS__ : "memory", "cc")
#endif

/* run(f): loads the whole of f with IRET and runs until the next trap of any kind, whose vector it returns (registers in
 * `last`).  Snippets end with `int $0x80`, which has DPL 3.  The one executor for other rings, modes and flag states. */
unsigned run(const struct frame *f);
#define VEC_DONE 0x80u

/* Assembly text as a symbol; name##_end is behind it. */
#define SNIPPET_AS(name, mode, back, text)                                                                             \
	extern const char name[], name##_end[] __attribute__((unused));                                                                                  \
	asm(".pushsection .snippets,\"ax\"\n\t.balign 16\n\t.globl " #name ", " #name "_end\n" #name ":\n\t" mode      \
	    "\n\t" text "\n\t" back "\n" #name "_end:\n\tnop\n\t.popsection")
#ifdef __x86_64__
#define SNIPPET(name, text) SNIPPET_AS(name, ".code64", ".code64", text)
#define SNIPPET32(name, text) SNIPPET_AS(name, ".code32", ".code64", text)
#define SNIPPET16(name, text) SNIPPET_AS(name, ".code16", ".code64", text)
#else
#define SNIPPET(name, text) SNIPPET_AS(name, ".code32", ".code32", text)
#define SNIPPET16(name, text) SNIPPET_AS(name, ".code16", ".code32", text)
#endif

/* ---- descriptors ---- */
enum {
	SEL_KCODE = 0x08, SEL_KDATA = 0x10, SEL_UCODE32 = 0x1b, SEL_UDATA = 0x23, SEL_UCODE = 0x2b, SEL_UDATA2 = 0x33,
	SEL_KCODE32 = 0x38, SEL_KCODE16 = 0x40, SEL_KDATA16 = 0x48, SEL_TSS = 0x50, SEL_FREE = 0x60, GDT_ENTRIES = 128,
};
extern u64 gdt[GDT_ENTRIES];
struct gate {
#ifdef __x86_64__
	u16 off0, sel;
	u8 ist, type;
	u16 off1;
	u32 off2, zero;
#else
	u16 off0, sel;
	u8 ist, type;
	u16 off1;
#endif
} __attribute__((packed));
extern struct gate idt[256];
struct dtr {
	u16 limit;
	uword base;
} __attribute__((packed));
extern const struct dtr idtr, gdtr;
#ifdef __x86_64__
struct tss {
	u32 zero0;
	u64 rsp[3], zero1, ist[7], zero2;
	u16 zero3, iomap;
	u8 bitmap[8192 + 1];
} __attribute__((packed));
#else
struct tss {
	u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, r[8], es, cs, ss, ds, fs, gs, ldt;
	u16 trap, iomap;
	u8 bitmap[8192 + 1];
} __attribute__((packed));
#endif
extern struct tss tss;
void gate_set(unsigned vector, uword handler, u16 sel, u8 type, u8 ist);
/* Segment descriptor: access = P DPL S type byte, flags = G D/B L AVL nibble. */
static inline u64 desc(u32 base, u32 limit, u8 access, u8 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)flags << 52 | (u64)(base >> 24) << 56;
}
extern char trap_stack_top[]; /* RSP0 */
extern char run_stack_top[];  /* a stack for snippets */
#define NOINLINE __attribute__((noinline))

/* ---- the 64-bit runtime's address space ----
 * [0, 1G) identity, supervisor; [2G, 3G) the same memory for ring 3; [3G, 4G) identity (APICs), supervisor. */
#define UALIAS 0x80000000ull
#define U(p) ((uword)(p) + (uword)UALIAS)

/* A frame that starts code at ring 3 (64-bit) through the user alias, resp. at ring 0. */
struct frame user_frame(const void *code);
struct frame kernel_frame(const void *code);

#ifdef __x86_64__
extern u64 boot_pml4[512];
/* Entry of the paging structures at `level` (1 = PTE … 4 = PML4E) that maps va, made if missing (as P|W|U). */
volatile u64 *pt_entry(u64 *root, u64 va, unsigned level);
void pt_map(u64 *root, u64 va, u64 pa, u64 flags);
#endif

extern u32 boot_magic, boot_info; /* EAX and EBX of the entry (PVH: magic 0) */

/* ---- local APIC (apic.c) ---- */
void apic_init(void);  /* enabled in its present mode, spurious vector 0xff, all LVTs masked */
u32 apic_read(u32 reg);           /* reg: xAPIC offset; MSR in x2APIC mode */
void apic_write(u32 reg, u32 v);
extern bool apic_x2;

#endif
