/* 32-bit paging and PAE paging in protected mode (SDM 4.3, 4.4). */
#include "lib/guest.h"

#define T 0x40000000u /* test addresses */
#define LEAF (PTE_P | PTE_W | PTE_U)

SNIPPET(s_read, "movb (%eax), %cl; int $0x80");
SNIPPET(s_write, "movb %cl, (%eax); int $0x80");
SNIPPET(s_exec, "call *%eax; int $0x80");
enum access { READ, WRITE, EXEC };
static const char *const access_code[] = {s_read, s_write, s_exec};

static unsigned access(enum access a, bool user, u32 va)
{
	struct frame f = user ? user_frame(access_code[a]) : kernel_frame(access_code[a]);
	f.r[RAX] = va;
	f.r[RCX] = 0xc3;
	if (user)
		f.sp = (uword)run_stack_top;
	return run(&f);
}

static void paging_off(void)
{
	write_cr0(read_cr0() & ~CR0_PG);
	write_cr4(read_cr4() & ~(CR4_PAE | CR4_PSE | CR4_PGE));
}

/* Rights of one leaf entry against SDM 4.6; returns the number of mismatches. */
static void rights(u32 page, void (*set)(u64 leaf), u64 (*get)(void), bool nx_on)
{
	unsigned bad = 0;
	for (unsigned wp = 0; wp < 2; wp++) {
		write_cr0(wp ? read_cr0() | CR0_WP : read_cr0() & ~CR0_WP);
		for (unsigned bits = 0; bits < (nx_on ? 16 : 8); bits++) {
			u64 leaf = (bits & 1 ? PTE_P : 0) | (bits & 2 ? PTE_W : 0) | (bits & 4 ? PTE_U : 0) |
				   (bits & 8 ? PTE_NX : 0);
			for (unsigned how = 0; how < 6; how++) {
				enum access a = how % 3;
				bool user = how / 3, ok = leaf & PTE_P, nx = leaf & PTE_NX;
				if (user)
					ok = ok && (leaf & PTE_U) && (a != WRITE || (leaf & PTE_W)) && (a != EXEC || !nx);
				else
					ok = ok && (a != WRITE || (leaf & PTE_W) || !wp) && (a != EXEC || !nx);
				u32 err = (leaf & PTE_P ? PF_P : 0) | (a == WRITE ? PF_W : 0) | (user ? PF_U : 0) |
					  (a == EXEC && nx_on ? PF_I : 0);
				*(volatile u8 *)(uword)page = 0xc3;
				set(page | leaf);
				invlpg(T);
				unsigned v = access(a, user, T);
				bool fine = v == (ok ? VEC_DONE : VEC_PF) && (ok || (last.error == err && last_cr2 == T));
				u64 now = get() & ~PTE_ADDR;
				fine = fine && now == (leaf | (ok ? PTE_A : 0) | (ok && a == WRITE ? PTE_D : 0));
				if (!fine && bad++ < 4)
					print("wp %u leaf %llx access %u user %u: vector %x error %lx (model %u, %x) entry %llx\n", wp,
					      leaf, a, user, v, last.error, ok, err, now);
			}
		}
	}
	CHECK_EQ(bad, 0);
}

/* ---- 32-bit paging ---- */
static volatile u32 *dir, *table;
static void set32(u64 e) { table[0] = (u32)e; }
static u64 get32(void) { return table[0]; }

CASE(non_pae)
{
	dir = page_alloc(1);
	table = page_alloc(1);
	u32 page = (u32)page_alloc(1), page2 = (u32)page_alloc(1);
	for (u32 i = 0; i < 64; i++) /* 256 MiB identity in 4 MiB pages, for ring 3 too */
		dir[i] = i << 22 | 0x87;
	dir[0xfee00000u >> 22] = 0xfec00000u | 0x9b;
	dir[T >> 22] = (u32)table | LEAF;
	write_cr4(read_cr4() | CR4_PSE);
	write_cr3((u32)dir);
	write_cr0(read_cr0() | CR0_PG);
	rights(page, set32, get32, false);
	CHECK_EQ(dir[T >> 22] & (PTE_A | PTE_D), PTE_A);
	/* 4 MiB page: A and D in the directory entry */
	dir[T >> 22] = 0x1000000 | 0x87;
	invlpg(T);
	CHECK_EQ(access(READ, false, T + 0x3ff000), VEC_DONE);
	CHECK_EQ(dir[T >> 22] & (PTE_A | PTE_D), PTE_A);
	CHECK_EQ(access(WRITE, false, T + 0x3ff000), VEC_DONE);
	CHECK_EQ(dir[T >> 22] & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(*(volatile u8 *)0x13ff000, 0xc3);
	/* bit 21 is reserved in a 4 MiB entry */
	dir[T >> 22] = 0x1000000 | 0x87 | 1u << 21;
	invlpg(T);
	CHECK_EQ(access(READ, false, T), VEC_PF);
	CHECK_EQ(last.error & ~(on_tcg() ? PF_P : 0), PF_RSVD | (on_tcg() ? 0 : PF_P));
	/* without PSE the same entry refers to a table */
	table = page_alloc(1);
	table[3] = page2 | LEAF;
	dir[T >> 22] = (u32)table | LEAF;
	invlpg(T);
	*(volatile u32 *)page2 = 0x1234;
	CHECK_EQ(*(volatile u32 *)(T + 0x3000), 0x1234);
	/* the identity map uses PSE, so go on with paging off */
	paging_off();
	CHECK_EQ(*(volatile u32 *)page2, 0x1234);
}

/* ---- PAE ---- */
static u64 pdpt[4] __attribute__((aligned(32)));
static volatile u64 *pd1, *pt;
static void set_pae(u64 e) { pt[0] = e; }
static u64 get_pae(void) { return pt[0]; }

CASE(pae)
{
	volatile u64 *pd0 = page_alloc(1);
	pd1 = page_alloc(1);
	pt = page_alloc(1);
	u32 page = (u32)page_alloc(1);
	for (u32 i = 0; i < 128; i++)
		pd0[i] = (u64)i << 21 | 0x87;
	pdpt[0] = (u32)pd0 | PTE_P;
	pdpt[1] = (u32)pd1 | PTE_P;
	pdpt[2] = pdpt[3] = 0;
	pd1[0] = (u32)pt | LEAF;
	write_cr4(read_cr4() | CR4_PAE);
	write_cr3((u32)pdpt);
	write_cr0(read_cr0() | CR0_PG);
	CHECK_EQ(rdmsr(MSR_EFER) & (EFER_LMA | EFER_LME), 0);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
	rights(page, set_pae, get_pae, false);
	/* NX is reserved without NXE */
	pt[0] = page | LEAF | PTE_NX;
	invlpg(T);
	CHECK_EQ(access(READ, false, T), VEC_PF);
	CHECK_EQ(last.error | PF_P, PF_P | PF_RSVD);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	rights(page, set_pae, get_pae, true);
	/* addresses above 4 GiB in entries, not RAM: only the walk matters; bit 62 is reserved in PAE entries */
	pt[0] = page | LEAF | BIT(62);
	invlpg(T);
	if (!tcg_known_wrong("bits 62:52 of PAE entries are not checked (SDM table 4-11)")) {
		CHECK_EQ(access(READ, false, T), VEC_PF);
		CHECK_EQ(last.error, PF_P | PF_RSVD);
	}
	pt[0] = page | LEAF;
	/* 2 MiB */
	pd1[1] = 0x1200000 | 0x87;
	*(volatile u32 *)0x1345678 = 77;
	CHECK_EQ(*(volatile u32 *)(T + 0x200000 + 0x145678), 77);
	CHECK_EQ(pd1[1] & (PTE_A | PTE_D), PTE_A);
	/* PDPTEs are loaded by MOV to CR3 and kept (SDM 4.4.1) */
	if (!tcg_known_wrong("PDPTEs are read at every walk (SDM 4.4.1)")) {
		((volatile u64 *)pdpt)[1] = 0;
		invlpg(T);
		CHECK_EQ(access(READ, false, T), VEC_DONE);
		write_cr3((u32)pdpt);
		CHECK_EQ(access(READ, false, T), VEC_PF);
		CHECK_EQ(last.error, 0);
		((volatile u64 *)pdpt)[1] = (u32)pd1 | PTE_P | BIT(5); /* reserved: #GP, CR3 unchanged */
		CHECK_EQ(TRAP_IN("mov %%ebx, %%cr3", "b"((u32)pdpt)), VEC_GP);
		((volatile u64 *)pdpt)[1] = (u32)pd1 | PTE_P;
		write_cr3((u32)pdpt);
		CHECK_EQ(access(READ, false, T), VEC_DONE);
	}
	paging_off();
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
}
