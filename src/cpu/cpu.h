/* One x86-64 CPU: the whole architectural state plus what the interpreter
 * needs around it.  src/cpu is pure: no system calls, no globals, no libc.
 *
 * RULE: everything in src/cpu is compiled with -mgeneral-regs-only, because
 * while cpu_run() executes, the GUEST's vector and x87 state may be live in
 * the host's registers (c->fpu_live).  Before anything that may use vector
 * registers (Zydis, libc, a return to the caller) fpu_save() must be called.
 *
 * Execution.  Guest code is decoded once into blocks of struct insn, each with
 * a handler; handlers chain to the next by a tail call (NEXT) and return an
 * enum step to leave the block.  A handler checks everything first (addresses,
 * permissions, faults) and then commits with no way to fail, so exceptions are
 * precise.  MMIO and port reads leave with an exit before any commit; when the
 * caller has provided the data the same instruction is executed again from its
 * start and consumes the answers in order (as KVM's emulator does). */
#ifndef CPU_CPU_H
#define CPU_CPU_H

#include "core/base.h"
#include "core/ram.h"
#include "cpu/x86.h"

struct block;
struct cpu_group;
struct insn;
struct lapic;
struct decoder;

/* A segment register with its hidden part. */
struct seg {
	u64 base;
	u32 limit; /* bytes, already scaled by G */
	u16 sel;
	u8 type;   /* 4-bit type field */
	bool s, present, avl, l, db, g;
	u8 dpl;
	bool unusable; /* null selector */
};

struct dtr { u64 base; u16 limit; };

/* Why a handler leaves its block. */
enum step {
	STEP_NEXT = 0,  /* block over, c->rip set: look up the next block */
	STEP_TAKEN = 1, /* as NEXT, target of a direct taken branch: may be chained */
	STEP_FALL = 2,  /* as NEXT, fall-through: may be chained */
	STEP_MODE = 3,  /* as NEXT, but paging, privilege, segments or IF changed: re-derive everything, check interrupts */
	STEP_FAULT = 4, /* c->exc holds an exception; c->rip = the faulting instruction */
	STEP_EXIT = 5,  /* c->exit holds a reason for the caller */
	STEP_EARLY = 6, /* as NEXT, but from the middle of a block: c->rip = first instruction not retired */
};

/* Why cpu_run() returns. */
enum cpu_exit {
	CPU_EXIT_NONE = 0,
	CPU_EXIT_BUDGET,  /* c->stop_at reached (virtual time) or attention requested */
	CPU_EXIT_IO,      /* c->io: port access; fill io.data for reads, set io.done, run again */
	CPU_EXIT_MMIO,    /* c->mmio: the last fragment; fill data for reads, run again */
	CPU_EXIT_HLT,     /* rip already behind HLT, or c->wait_sipi: sleep until an event */
	CPU_EXIT_SHUTDOWN, /* triple fault */
	CPU_EXIT_IPI,     /* c->ipi_icr: ICR written, caller delivers it (cpu is not the only target) */
	CPU_EXIT_EOI,     /* c->eoi_vector: EOI of a level-triggered vector, for the IOAPIC */
	CPU_EXIT_UNIMPLEMENTED, /* c->why names it */
};

/* Bits of c->attn. */
enum cpu_attn {
	CPU_ATTN_EVENT = 1, /* an interrupt, NMI, INIT or SIPI was posted: look */
	CPU_ATTN_RETURN = 2, /* cpu_run returns CPU_EXIT_BUDGET; the caller clears it */
	CPU_ATTN_STOP = 4,   /* the same, for another CPU's exclusive section */
};

/* An exception being delivered. */
struct exception {
	u8 vector;
	bool has_error;
	bool soft;      /* INT n / INT3 / INTO: privilege check against the gate's DPL, return RIP behind the instruction */
	bool icebp;     /* INT1 */
	bool mid_rep;   /* a trap between two iterations of a repeated string instruction: pushes RF */
	u32 error;
	u64 cr2;        /* for #PF: committed to CR2 at delivery */
	u64 dr6;        /* for #DB: bits to set in DR6 at delivery */
};

/* Software TLB.  Index: page number modulo TLB_SIZE.  A tag is the page's
 * linear address when that kind of access may go ahead, else TLB_NONE. */
#define TLB_BITS 10
#define TLB_SIZE (1u << TLB_BITS)
#define TLB_GLOBAL 64ull
#define TLB_NONE 1ull /* never equal to a page address */
struct tlb_entry {
	u64 rtag, wtag, xtag;
	u64 addend; /* host pointer = linear address + addend */
	u64 gpa;    /* page's guest-physical address | log2 of the page size | TLB_GLOBAL */
};
/* One per combination of rights; AC_CHECK and watchpoints use the EMPTY one,
 * which is never filled so that every access takes the slow path. */
enum tlb_ctx { TLB_USER, TLB_KERNEL, TLB_KERNEL_AC, TLB_EMPTY, TLB_CTX_COUNT };

/* The part of the software TLB that translated code looks at, addressed relative to struct cpu: for the page with low
 * page-number bits k, minus its linear address (for reads, for writes) and where it is in the host.  An entry that
 * must not match holds the negative of an address with other low bits, so that `address + entry` is never below
 * PAGE_SIZE.  Filled and flushed together with the big one. */
#define FTLB_BITS TLB_BITS
#define FTLB_SIZE (1u << FTLB_BITS)
#define FTLB_NONE(k) (0 - ((u64)((k) ^ 2) << PAGE_SHIFT)) /* two pages off: not even the end of a crossing access gets to 0 */
struct ftlb { u64 read[FTLB_SIZE], write[FTLB_SIZE], host[FTLB_SIZE]; };
#define TLB_USED_WORDS (TLB_SIZE / 64)

/* Predicted returns of translated code, one stack per privilege context: the return address of a call and where the code
 * behind it is found.  Compared in full; emptied whenever the mapping of any code may have changed. */
#define RSB_SIZE 16
#define RSB_NONE BIT(63) /* not canonical: never a return address */
struct rsb {
	u64 top; /* byte offset of the last entry */
	struct { u64 rip, site; } e[RSB_SIZE];
};

/* Translated code runs with GS base = struct cpu and keeps its state here.  See engine/tr/translate.h. */
struct tr_state {
	u64 slot[3];       /* guest values of the registers the running translation uses as scratch */
	u64 host_rsp;      /* stack of the C code that entered translated code */
	s64 budget;        /* instructions left before the outer loop must look at events */
	u64 poll_mask;     /* BIT(63): leave when the budget is negative; ~0: leave now */
	u64 site;          /* struct tr_site of the instruction or exit that calls for C code */
	u64 page_rip;      /* linear address of the page the running translation's code lies in */
	u64 target;        /* where the dispatcher jumps to */
	u64 saved_flags;
	u64 jkey;          /* cpu_code_key() */
	struct rsb rsb[TLB_EMPTY];
	u64 vector_off[3]; /* 0: SSE, AVX, AVX-512 instructions may run in translations: enabled and the FPU is live */
	u64 page_number_mask, index_mask, high_mask, canonical_bias; /* constants for PEXT */
};

#define JCACHE_BITS 12
struct jcache_entry { u64 rip; u64 key; struct block *block; };

#define MMIO_FRAGMENTS 16
struct mmio_fragment { gpa_t gpa; u8 len; bool write; u64 data; };

#define CPU_RIP_RING 64

struct cpu_stats {
	u64 blocks, blocks_decoded, insns_decoded, decode_flushes, tlb_misses, tlb_flushes, page_faults, exceptions,
		interrupts, syscalls, exits_io, exits_mmio, halts, smc, native_stubs, cr3_loads, msr_accesses, unknown_msr,
		signals, exclusive;
};

#define CPU_UNKNOWN_MSRS 16
/* An MSR the guest touched that does not exist (it got #GP). */
struct cpu_unknown_msr { u32 index; bool write; u64 value, rip, count; };

/* Index into c->r beyond the 16 GPRs. */
#define R_ZERO 16 /* always 0: absent base or index */
#define R_RIP 17  /* RIP of the running block's first byte; RIP-relative operands are relative to it */

struct cpu {
	/* --- hot: general state --- */
	u64 r[18];
	u64 aflags;   /* arithmetic flags: only FL_ARITH bits are meaningful (a raw host pushf image) */
	u64 sflags;   /* all other RFLAGS bits, FL_FIXED always set */
	u64 rip;      /* valid between instructions, and at every STEP_* */
	struct tlb_entry *tlb; /* = tlbs[ctx] for the current privilege, AC and mode */
	u64 insns;    /* retired instructions (a rep string counts one) */
	u32 mode_key; /* CS.L/D, CPL==3, CR0.PE/VM: part of a block's key, see cpu_update_mode() */
	bool fpu_live; /* guest FPU state is in the host's registers */
	bool irq_shadow; /* STI / MOV SS: no interrupt before the next instruction */
	bool nmi_blocked;
	bool code_written; /* a store hit decoded code: leave the block after this instruction */
	bool slow;    /* TF or breakpoints: one instruction at a time */
	u8 cpl;
	volatile u32 attn; /* set by other threads, enum cpu_attn */
	u64 stop_at;  /* cpu_run returns CPU_EXIT_BUDGET exactly when insns == stop_at */
	u64 poll_at;  /* insns count of the next check of the LAPIC timer */

	/* --- system state --- */
	struct seg seg[SREG_COUNT], ldtr, tr;
	struct dtr gdtr, idtr;
	u64 cr0, cr2, cr3, cr4, cr8, efer, xcr0;
	u64 pdpte[4]; /* PAE paging: as the last load of CR3 found them */
	u64 dr[4], dr6, dr7;
	u64 star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat, apic_base, mtrr_def;
	u64 sysenter_cs, sysenter_esp, sysenter_eip, xss, misc_enable, spec_ctrl, tsc_adjust;
	u64 mtrr_fixed[11], mtrr_var[16];
	u64 mcg_status, debugctl, hwcr; /* plain storage behind their MSRs, see msr.c */
	u64 kvm_system_time, kvm_wall_clock; /* kvmclock MSRs as written, see pvclock.h */
	bool vendor_intel; /* presented vendor: Intel (else AMD): SYSCALL/SYSRET/SYSENTER rules, 32-bit branches with 66 */

	/* --- FPU: see fpu.h; layout is the host's XSAVE standard format --- */
	u8 *xsave;      /* 64-byte aligned, xsave_size bytes, inside the cpu's allocation */
	u32 xsave_size;
	u64 fip, fdp;   /* guest addresses of the last x87 instruction and operand (the host's never show) */

	/* --- events --- */
	struct exception exc;
	enum cpu_exit exit;
	char why[256];  /* CPU_EXIT_UNIMPLEMENTED: text */
	struct { u16 port; u8 size; bool write; bool done; u32 data; } io;
	struct { u8 n, next; bool pending; struct mmio_fragment f[MMIO_FRAGMENTS]; } mmio; /* answered reads [0, n), replayed from next */
	u64 ipi_icr;
	u8 eoi_vector;
	bool nmi_pending, smi_pending, init_pending, sipi_pending;
	u8 sipi_vector;
	bool wait_sipi; /* reset or INIT: sleeps until a start-up IPI (SDM 9.4) */
	struct lapic *lapic; /* may be NULL in unit tests */
	unsigned id;    /* APIC id */
	bool bsp;       /* boots by itself, and after INIT */

	/* --- time --- */
	bool deterministic;    /* raw TSC = insns + det_tsc_skew; else the host's TSC */
	u64 tsc_offset;        /* guest TSC = raw TSC + tsc_offset (0 but for writes of IA32_TSC and TSC_ADJUST) */
	u64 boot_tsc;          /* raw TSC at which kvmclock reads 0; the same in every vCPU (set by the back end) */
	u64 boot_wall_ns;      /* UTC at that moment, nanoseconds since 1970 (set by the back end) */
	u64 det_tsc_skew;      /* virtual cycles skipped by HLT */
	u64 det_rng;
	u64 tsc_khz;

	/* --- memory and code --- */
	struct ram *ram;
	gpa_t gpa_limit;       /* first address above MAXPHYADDR */
	u8 maxphyaddr;
	struct tlb_entry *tlbs[TLB_CTX_COUNT];
	struct jcache_entry *jcache;
	u64 code_gen[2];       /* bumped when the mapping of code may have changed, for user [0] and supervisor [1] code;
	                        * part of jcache keys.  Supervisor code outside global pages is never put there. */
	struct blockcache *blocks;
	struct decoder *decoder;
	struct native *native; /* stub arena, see native.h */
	unsigned block_limit;  /* most instructions per block, at most BLOCK_MAX_INSNS */
	const struct cpuid_table *cpuid;
	struct { u64 ring[CPU_RIP_RING]; unsigned head; } rips; /* starts of the last blocks */
	struct cpu_stats stats;
	struct tr_state trs;
	struct translator *translator;
	u16 tr_after;          /* executions before a block is translated */
	bool tr_full;          /* no room for translations: flush before the next block is decoded */
	u64 tr_until;          /* insns count of the next event */
	struct ftlb ftlb[TLB_EMPTY];
	u64 tlb_used[TLB_EMPTY][TLB_USED_WORDS]; /* entries filled since the last flush: what a flush has to clear */
	bool tr_on;            /* hot blocks may be translated */
	void (*tr_hot)(struct cpu *c, struct block *b);          /* a block got hot: translate it */
	int (*tr_enter)(struct cpu *c, const struct block *b);   /* run its translation; a STEP_* */
	void (*tr_flush)(struct cpu *c);                         /* all blocks are forgotten */
	void (*tr_unlink)(struct cpu *c);                        /* undo jumps between pages of supervisor code */
	void (*tr_kill)(struct cpu *c, struct block *b);         /* this one must not be entered again */
	u64 db_pending;        /* DR6 bits of data breakpoints hit by the running instruction (a trap) */
	bool tlb_large[2];     /* pages larger than 4K were cached in the lower / upper half since the last flush */
	struct insn *patched;  /* instruction whose handler is replaced to leave the block, see block_leave_after() */
	int (*patched_fn)(struct cpu *, const struct insn *);
	struct cpu_group *group; /* all CPUs of the machine, see exclusive.h; NULL: this one alone */
	u32 exclusive_depth, pauses;
	bool exclusive_fpu;    /* FPU state was live when the exclusive section began */
	void *owner;           /* the back end's vCPU */
	u64 trace_mask;        /* events wanted, see trace.h; 0: none, and trace is NULL */
	struct trace *trace;
	struct { unsigned n; struct cpu_unknown_msr e[CPU_UNKNOWN_MSRS]; } unknown_msr; /* the first distinct ones */
};

/* Whoever sets c->attn calls this too: translated code leaves at its next block.  Any thread. */
static inline void cpu_poke(struct cpu *c) { __atomic_store_n(&c->trs.poll_mask, ~0ull, __ATOMIC_SEQ_CST); }

static inline void cpu_rsb_clear(struct cpu *c)
{
	for (unsigned k = 0; k < TLB_EMPTY; k++)
		for (unsigned j = 0; j < RSB_SIZE; j++)
			c->trs.rsb[k].e[j].rip = RSB_NONE;
}

/* Keys of jcache entries for the current mode. */
static inline u64 cpu_code_key(const struct cpu *c) { return c->code_gen[c->cpl != 3] << 8 | c->mode_key; }

#define CPL(c) ((c)->cpl)
static inline bool cpu_long_mode(const struct cpu *c) { return c->efer & EFER_LMA; }
static inline bool cpu_code64(const struct cpu *c) { return (c->efer & EFER_LMA) && c->seg[CS].l; }
static inline bool cpu_real(const struct cpu *c) { return !(c->cr0 & CR0_PE); }
static inline bool cpu_vm86(const struct cpu *c) { return c->sflags & FL_VM; }

static inline u64 cpu_rflags(const struct cpu *c) { return (c->aflags & FL_ARITH) | c->sflags; }
/* Sets RFLAGS without side effects on the mode; callers that change TF, AC, IF or VM return STEP_MODE after cpu_update_mode(). */
static inline void cpu_set_rflags(struct cpu *c, u64 fl)
{
	c->aflags = fl & FL_ARITH;
	c->sflags = (fl & FL_ALL & ~FL_ARITH) | FL_FIXED;
}
static inline bool gva_canonical(u64 va) { return (u64)((s64)(va << 16) >> 16) == va; }

/* --- interp.c --- */
/* Runs until an exit.  Returns c->exit.  FPU state is saved on return. */
enum cpu_exit cpu_run(struct cpu *c);
/* Re-derives tlb, mode_key, slow from CPL, AC, CR*, DR7, TF, CS.  After any change to them. */
void cpu_update_mode(struct cpu *c);
/* After CR0, CR3 and CR4 were set from outside: the PDPTEs of PAE paging. */
void cpu_pdptes_reload(struct cpu *c);
/* Power-on state (SDM 10.1.1) with INIT's differences when init is true. */
void cpu_reset(struct cpu *c, bool init);

/* --- exc.c: raising; all return STEP_FAULT (or STEP_EXIT) so that a handler can `return exc_gp(c, i, 0)`.
 * i is the faulting instruction: c->rip is set to its address. --- */
int exc_raise(struct cpu *c, const struct insn *i, u8 vector);                  /* no error code */
int exc_raise_error(struct cpu *c, const struct insn *i, u8 vector, u32 error); /* with error code */
#define exc_ud(c, i) exc_raise(c, i, VEC_UD)
#define exc_gp(c, i, err) exc_raise_error(c, i, VEC_GP, err)
#define exc_nm(c, i) exc_raise(c, i, VEC_NM)
/* "This cannot be executed": fills c->why with RIP, bytes, mode and the text, ends the VM. */
int cpu_unimplemented(struct cpu *c, const struct insn *i, const char *what);

/* Delivers c->exc through the IDT (any mode), with #DF and triple-fault rules (SDM 6.15).
 * STEP_MODE when delivered, STEP_EXIT on shutdown or an MMIO descriptor table. */
int exc_deliver(struct cpu *c);
/* Delivers an external interrupt; vector already acknowledged. */
int interrupt_deliver(struct cpu *c, u8 vector);
int nmi_deliver(struct cpu *c);

/* --- mmu.c --- */
enum access { ACC_R = 0, ACC_W = 1, ACC_X = 2 };
/* Walks the guest's page tables for one access with explicit rights, sets A/D bits.  On failure returns false
 * and leaves #PF (error code, cr2) in *e.  user: CPL-3 rights. ac: SMAP suspended. */
bool mmu_translate(struct cpu *c, u64 gva, enum access a, bool user, bool ac, gpa_t *out, struct exception *e);
/* As above without side effects (debuggers, back traces): supervisor read. */
bool mmu_peek(struct cpu *c, u64 gva, gpa_t *out);
void mmu_flush_all(struct cpu *c);          /* everything, global pages included */
void mmu_flush_nonglobal(struct cpu *c);    /* MOV CR3 */
void mmu_flush_page(struct cpu *c, u64 gva); /* INVLPG */
/* Stores must notice decoded code in this page from now on: drops write tags for it. */
void mmu_protect_code(struct cpu *c, gpa_t page);

#endif
