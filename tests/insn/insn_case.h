/* One test case: an instruction, or a few, with its complete initial state, and what an executor made of it.
 *
 * The tested memory is one "arena" of five pages at fixed low linear addresses, the same natively and in the guest:
 *
 *	CODE_BASE   2 pages, RWX: 0xcc (INT3) but for the instruction under test; the next page is not present
 *	DATA_BASE   2 pages, RW, not executable; the page before is not present
 *	            1 page, read-only; the page behind it is not present
 *
 * Every page of [0, 4 GiB) outside the arena is not present in either world (native.c: the generator keeps away from
 * the test program's own mappings). */
#ifndef TEST_INSN_CASE_H
#define TEST_INSN_CASE_H

#include "core/base.h"

#define CODE_BASE 0x10100000ull
#define CODE_PAGES 2
#define DATA_BASE 0x10000000ull
#define DATA_RW_PAGES 2
#define DATA_RO_PAGES 1
#define DATA_PAGES (DATA_RW_PAGES + DATA_RO_PAGES)
#define CODE_SIZE (CODE_PAGES * PAGE_SIZE)
#define DATA_SIZE (DATA_PAGES * PAGE_SIZE)
#define DATA_RW_SIZE (DATA_RW_PAGES * PAGE_SIZE)

/* The arena as one array: code pages first, then data pages. */
#define ARENA_SIZE (CODE_SIZE + DATA_SIZE)
#define ARENA_LINES (ARENA_SIZE / 64)

#define XSAVE_MAX 4096      /* bytes reserved for one XSAVE image (no AMX: its permission is never asked for) */
#define VEC_STATES 64       /* initial vector/x87 states per batch */
#define BATCH_CASES 256
#define CASE_PATCHES 2
#define CASE_PATCH_MAX 48

/* Selectors as Linux gives them to a 64-bit process. */
#define SEL_USER32_CS 0x23
#define SEL_USER_DS 0x2b
#define SEL_USER_CS 0x33

/* insn_case.form of what is not one instruction of the table */
#define FORM_GARBAGE ~0u
#define FORM_DIRECTED (~0u - 1)
#define FORM_SEQUENCE (~0u - 2)
#define CASE_BYTES 231

struct case_patch {
	u64 addr; /* linear, within the data pages */
	u8 len;
	u8 b[CASE_PATCH_MAX];
};

struct insn_case {
	u64 gpr[16];
	u64 rip;       /* within the code pages */
	u64 rflags;    /* status flags, DF, AC, TF, ID */
	u64 fs_base, gs_base;
	u8 len;        /* bytes to place (may be more than the architecture permits) */
	u8 bytes[CASE_BYTES];
	u16 vec;       /* index into batch->vec */
	u8 vec_reg;    /* this vector register gets vec_val instead, 0xff: none */
	u8 n_patches;
	u32 form;      /* index into the generator's table of forms */
	u64 vec_val[8];
	struct case_patch patch[CASE_PATCHES];
};

/* How a case ended, beside an exception vector (0..31). */
enum { END_TIMEOUT = 64, END_DIED = 65, END_OTHER = 66, END_NOT_RUN = 67 };

struct insn_result {
	u64 gpr[16];
	u64 rip, rflags;
	u64 fs_base, gs_base;
	u16 cs, ss, ds, es, fs, gs;
	u32 end;       /* exception vector or END_* */
	u32 error;
	u64 cr2;       /* for #PF, else 0 */
	char why[320]; /* END_OTHER: the engine's own words */
	u32 n_lines;   /* lines of the arena that differ from the baseline */
	u8 xsave[XSAVE_MAX] __attribute__((aligned(64)));
	u16 line_no[ARENA_LINES];
	u8 line[ARENA_LINES][64];
};

struct insn_batch {
	u32 n;
	u8 vec[VEC_STATES][XSAVE_MAX] __attribute__((aligned(64)));
	u8 arena[ARENA_SIZE] __attribute__((aligned(4096))); /* baseline contents */
	struct insn_case c[BATCH_CASES];
};

/* Facts about the host that both sides need (host.c). */
struct host {
	u64 xcr0;
	u32 xsave_size;                 /* standard format of xcr0 */
	u32 off_avx, off_opmask, off_zmm_hi, off_hi16; /* 0: not enabled */
	bool fsgsbase, avx512;
};
extern struct host host;
/* False: this host cannot run the test (message printed). */
bool host_probe(void);
/* Takes note of what is mapped below 4 GiB: after the executors were made.  False: message printed. */
bool host_read_maps(void);
/* Is anything of this process (but the arena) mapped within slack bytes of addr?  Asked for addr < 4 GiB. */
bool host_maps_near(u64 addr, u64 slack);
/* Puts 64 bytes into vector register n (0..31) of an XSAVE image; upper parts the host lacks are dropped. */
void xsave_set_vec(u8 *image, unsigned n, const u64 val[8]);
void xsave_get_vec(const u8 *image, unsigned n, u64 val[8]);
/* Brings components in their initial configuration to one form and clears what is not architectural. */
void xsave_normalise(u8 *image);

/* Shared by the executors: places instruction and patches, and collects (and undoes) differences to the baseline.
 * code and data are where the executor keeps those pages. */
void arena_place(u8 *code, u8 *data, const struct insn_case *c);
void arena_collect(u8 *code, u8 *data, const u8 *baseline, struct insn_result *r);

/* An executor.  Batches are run asynchronously so that two can work at once: start, then wait. */
struct executor {
	const char *name;
	struct executor *(*create)(void);
	void (*destroy)(struct executor *e);
	struct insn_batch *batch;   /* the executor's own copy, filled before start */
	struct insn_result *result; /* BATCH_CASES entries */
	void (*start)(struct executor *e);
	void (*wait)(struct executor *e);
};
extern const struct executor executor_native, executor_interp, executor_translate, executor_translate_hot,
	executor_translate_small;

#endif
