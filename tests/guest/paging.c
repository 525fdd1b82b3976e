/* 4-level paging: rights, error codes, accessed and dirty bits, page sizes, TLB flushing. */
#include "lib/guest.h"

#define T 0x8000000000ull /* test addresses: PML4 entry 1 */

/* One access of each kind as a snippet; RAX = address */
SNIPPET(s_read, "mov (%rax), %cl; int $0x80");
SNIPPET(s_write, "mov %cl, (%rax); int $0x80");
SNIPPET(s_exec, "call *%rax; int $0x80");
SNIPPET(s_read8, "mov (%rax), %rcx; int $0x80");
SNIPPET(s_write8, "mov %rcx, (%rax); int $0x80");
SNIPPET(s_write2, "mov %cx, (%rax); int $0x80");
SNIPPET(s_rmw, "lock addq $1, (%rax); int $0x80");
SNIPPET(s_movups, "movups %xmm0, (%rax); int $0x80");
enum access { READ, WRITE, EXEC };
static const char *const access_code[] = {s_read, s_write, s_exec};

static unsigned access(enum access a, bool user, u64 va, uword flags)
{
	struct frame f = user ? user_frame(access_code[a]) : kernel_frame(access_code[a]);
	f.r[RAX] = va;
	f.r[RCX] = 0xc3; /* what WRITE writes: RET */
	f.flags |= flags;
	return run(&f);
}

static bool has_smep(void) { return cpuid(7, 0).b >> 7 & 1; }
static bool has_smap(void) { return cpuid(7, 0).b >> 20 & 1; }
static bool has_nx(void) { return cpuid(0x80000001, 0).d >> 20 & 1; }
static bool has_1g(void) { return cpuid(0x80000001, 0).d >> 26 & 1; }
static bool has_pcid(void) { return cpuid(1, 0).c >> 17 & 1; }
static bool has_invpcid(void) { return cpuid(7, 0).b >> 10 & 1; }

/* Error code of a reserved bit: always with P (SDM 4.7); TCG leaves P out. */
static unsigned rsvd(void) { return PF_RSVD | (on_tcg() ? 0 : PF_P); }

#define LEAF (PTE_P | PTE_W | PTE_U)

/* Every combination of the rights in leaf and directory entry, CR0.WP, CR4.SMEP, CR4.SMAP, EFLAGS.AC, kind of access and
 * ring against the rules of SDM 4.6 and 4.7. */
CASE(rights_matrix)
{
	volatile u64 *pte = pt_entry(boot_pml4, T, 1), *pde = pt_entry(boot_pml4, T, 2), *pdpte = pt_entry(boot_pml4, T, 3);
	volatile u64 *pml4e = pt_entry(boot_pml4, T, 4);
	u8 *page = page_alloc(1);
	page[0] = 0xc3; /* ret */
	u64 pt = *pde & PTE_ADDR;
	uword cr0 = read_cr0(), cr4 = read_cr4();
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	unsigned bad = 0;
	for (unsigned mode = 0; mode < 8; mode++) {
		bool wp = mode & 1, smep = mode & 2, smap = mode & 4;
		if ((smep && !has_smep()) || (smap && !has_smap()))
			continue;
		write_cr0(wp ? cr0 | CR0_WP : cr0 & ~CR0_WP);
		write_cr4((cr4 & ~(CR4_SMEP | CR4_SMAP)) | (smep ? CR4_SMEP : 0) | (smap ? CR4_SMAP : 0));
		for (unsigned bits = 0; bits < 128; bits++) {
			u64 leaf = (bits & 1 ? PTE_P : 0) | (bits & 2 ? PTE_W : 0) | (bits & 4 ? PTE_U : 0) |
				   (bits & 8 ? PTE_NX : 0);
			u64 dir = PTE_P | (bits & 16 ? PTE_W : 0) | (bits & 32 ? PTE_U : 0) | (bits & 64 ? PTE_NX : 0);
			for (unsigned how = 0; how < 12; how++) {
				enum access a = how % 3;
				bool user = how / 3 & 1, ac = how / 6;
				*pte = (u64)page | leaf;
				*pde = pt | dir;
				*pdpte &= ~PTE_A;
				*pml4e &= ~PTE_A;
				page[1] = 0;
				invlpg(T);
				unsigned v = access(a, user, T, ac ? FL_AC : 0);
				/* the rules */
				bool u = (leaf & dir) & PTE_U, w = (leaf & dir) & PTE_W, nx = (leaf | dir) & PTE_NX, ok = true;
				if (!(leaf & PTE_P))
					ok = false;
				else if (user)
					ok = u && (a != WRITE || w) && (a != EXEC || !nx);
				else if (a == EXEC)
					ok = !nx && !(smep && u);
				else
					ok = (a != WRITE || w || !wp) && !(smap && u && !ac);
				u64 err = (leaf & PTE_P ? PF_P : 0) | (a == WRITE ? PF_W : 0) | (user ? PF_U : 0) |
					  (a == EXEC ? PF_I : 0);
				u64 leaf_now = leaf | (ok ? PTE_A : 0) | (ok && a == WRITE ? PTE_D : 0);
				bool fine = v == (ok ? VEC_DONE : VEC_PF);
				if (!ok && fine)
					fine = last.error == err && last_cr2 == T;
				fine = fine && (*pte & ~PTE_ADDR) == leaf_now;
				if (ok)
					fine = fine && (*pde & PTE_A) && (*pdpte & PTE_A) && (*pml4e & PTE_A);
				fine = fine && !(*pde & PTE_D);
				if (!fine && bad++ < 5) {
					print("leaf %llx dir %llx wp %d smep %d smap %d access %d user %d ac %d: vector %x error "
					      "%lx cr2 %llx ip %lx (model ok %d, error %llx) pte %llx pde %llx\n", leaf, dir, wp, smep, smap, a, user,
					      ac, v, last.error, last_cr2, last.ip, ok, err, *pte, *pde);
					CHECK(!"rights, error code, CR2, A and D");
				}
			}
		}
	}
	CHECK_EQ(bad, 0);
	write_cr0(cr0);
	write_cr4(cr4);
}

/* Without EFER.NXE bit 63 is reserved and instruction fetches do not set I (unless SMEP). */
CASE(nx_disabled)
{
	if (!has_nx())
		return skipped("NX");
	volatile u64 *pte = pt_entry(boot_pml4, T, 1);
	u8 *page = page_alloc(1);
	page[0] = 0xc3;
	u64 efer = rdmsr(MSR_EFER);
	wrmsr(MSR_EFER, efer & ~EFER_NXE);
	*pte = (u64)page | LEAF | PTE_NX;
	invlpg(T);
	CHECK_EQ(access(READ, false, T, 0), VEC_PF);
	CHECK_EQ(last.error, rsvd());
	CHECK_EQ(access(WRITE, true, T, 0), VEC_PF);
	CHECK_EQ(last.error, rsvd() | PF_W | PF_U);
	*pte = 0;
	invlpg(T);
	CHECK_EQ(access(EXEC, false, T, 0), VEC_PF);
	CHECK_EQ(last.error, 0);
	wrmsr(MSR_EFER, efer | EFER_NXE);
	CHECK_EQ(access(EXEC, false, T, 0), VEC_PF);
	CHECK_EQ(last.error, PF_I);
	wrmsr(MSR_EFER, efer);
}

CASE(reserved_bits)
{
	u8 *page = page_alloc(1);
	unsigned maxphys = cpuid(0x80000008, 0).a & 0xff;
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	pt_map(boot_pml4, T, (u64)page, LEAF);
	for (unsigned level = 1; level <= 4; level++) {
		volatile u64 *e = pt_entry(boot_pml4, T, level), old = *e;
		if (maxphys < 52) {
			*e = old | BIT(51);
			invlpg(T);
			CHECK_EQ(access(READ, false, T, 0), VEC_PF);
			CHECK_EQ(last.error, rsvd());
			CHECK_EQ(access(WRITE, true, T, 0), VEC_PF);
			CHECK_EQ(last.error, rsvd() | PF_W | PF_U);
			/* a non-present entry's bits are the software's */
			*e = (old | BIT(51)) & ~PTE_P;
			invlpg(T);
			CHECK_EQ(access(READ, false, T, 0), VEC_PF);
			CHECK_EQ(last.error, 0);
		}
		if (level == 4) {
			*e = old | PTE_PS;
			invlpg(T);
			CHECK_EQ(access(READ, false, T, 0), VEC_PF);
			CHECK_EQ(last.error, rsvd());
		}
		*e = old | BIT(52) | BIT(58) | BIT(9) | BIT(11); /* ignored bits */
		invlpg(T);
		CHECK_EQ(access(READ, false, T, 0), VEC_DONE);
		*e = old;
	}
	/* large pages: address bits below the size are reserved, except PAT (bit 12) */
	volatile u64 *pde = pt_entry(boot_pml4, T, 2), old = *pde;
	*pde = 0x200000 | LEAF | PTE_PS | BIT(13);
	invlpg(T);
	CHECK_EQ(access(READ, false, T, 0), VEC_PF);
	CHECK_EQ(last.error, rsvd());
	*pde = 0x200000 | LEAF | PTE_PS | BIT(12);
	invlpg(T);
	CHECK_EQ(access(READ, false, T, 0), VEC_DONE);
	*pde = old;
	if (has_1g()) {
		volatile u64 *pdpte = pt_entry(boot_pml4, T, 3);
		old = *pdpte;
		*pdpte = LEAF | PTE_PS | BIT(21);
		invlpg(T);
		CHECK_EQ(access(READ, false, T, 0), VEC_PF);
		CHECK_EQ(last.error, rsvd());
		*pdpte = LEAF | PTE_PS | BIT(12);
		invlpg(T);
		CHECK_EQ(access(READ, false, T + 0x300000, 0), VEC_DONE);
		*pdpte = old;
	}
	invlpg(T);
}

CASE(page_sizes)
{
	/* 2 MiB and 1 GiB: right memory, A and D in the entry itself */
	volatile u64 *phys = (void *)0x2345678ull;
	*phys = 0x1122334455667788;
	volatile u64 *pde = pt_entry(boot_pml4, T + 0x40000000, 2);
	*pde = 0x2200000 | LEAF | PTE_PS;
	CHECK_EQ(*(volatile u64 *)(T + 0x40000000 + 0x145678), 0x1122334455667788);
	CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A);
	*(volatile u64 *)(T + 0x40000000 + 0x145678) = 5;
	CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(*phys, 5);
	if (has_1g()) {
		volatile u64 *pdpte = pt_entry(boot_pml4, T + 0x80000000, 3);
		*pdpte = LEAF | PTE_PS;
		CHECK_EQ(*(volatile u64 *)(T + 0x80000000 + 0x2345678), 5);
		CHECK_EQ(*pdpte & (PTE_A | PTE_D), PTE_A);
		*(volatile u64 *)(T + 0x80000000 + 0x2345678) = 6;
		CHECK_EQ(*pdpte & (PTE_A | PTE_D), PTE_A | PTE_D);
		CHECK_EQ(*phys, 6);
	} else {
		skipped("1 GiB pages");
	}
}

CASE(dirty_after_clean_read)
{
	/* a write through a translation that a read has cached must still set D; and after D and A are cleared and
	 * flushed they are set again */
	volatile u64 *pte = pt_entry(boot_pml4, T, 1);
	*pte = (u64)page_alloc(1) | LEAF;
	invlpg(T);
	for (int i = 0; i < 3; i++) {
		(void)*(volatile u8 *)T;
		CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A);
		*(volatile u8 *)T = 1;
		CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
		*pte &= ~(PTE_A | PTE_D);
		invlpg(T);
	}
	/* a locked RMW of nothing still dirties; a failing CMPXCHG may: it is a write cycle */
	(void)*(volatile u8 *)T;
	asm volatile("lock orb $0, (%0)" : : "r"(T) : "memory");
	CHECK_EQ(*pte & PTE_D, PTE_D);
	/* read-only with WP: RMW fails as a write and leaves D alone */
	*pte = (*pte & ~(PTE_D | PTE_A | PTE_W));
	invlpg(T);
	struct frame f = kernel_frame(s_rmw);
	f.r[RAX] = T;
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last.error, PF_P | PF_W);
	CHECK_EQ(*pte & PTE_D, 0);
}

CASE(page_crossing)
{
	u8 *a = page_alloc(1), *b = page_alloc(1);
	volatile u64 *pa = pt_entry(boot_pml4, T, 1), *pb = pt_entry(boot_pml4, T + PAGE, 1);
	struct frame f = kernel_frame(s_write8);
	for (unsigned k = 1; k < 8; k++) {
		*pa = (u64)a | LEAF;
		*pb = 0;
		memset(a, 0xee, PAGE);
		invlpg(T);
		invlpg(T + PAGE);
		f.ip = (uword)s_write8;
		f.r[RAX] = T + PAGE - k;
		f.r[RCX] = 0x1122334455667788;
		CHECK_EQ(run(&f), VEC_PF);
		CHECK_EQ(last.error, PF_W);
		CHECK_EQ(last_cr2, T + PAGE);
		CHECK_EQ(a[PAGE - k], 0xee); /* nothing was written */
		/* second page read-only */
		*pb = (u64)b | PTE_P;
		invlpg(T + PAGE);
		CHECK_EQ(run(&f), VEC_PF);
		CHECK_EQ(last.error, PF_W | PF_P);
		CHECK_EQ(last_cr2, T + PAGE);
		CHECK_EQ(a[PAGE - k], 0xee);
		/* first page missing: its address, exactly */
		*pa = 0;
		invlpg(T);
		CHECK_EQ(run(&f), VEC_PF);
		CHECK_EQ(last.error, PF_W);
		CHECK_EQ(last_cr2, T + PAGE - k);
		/* both there, not adjacent in memory */
		*pa = (u64)a | LEAF;
		*pb = (u64)b | LEAF;
		invlpg(T);
		invlpg(T + PAGE);
		CHECK_EQ(run(&f), VEC_DONE);
		u64 v = 0;
		for (unsigned i = 0; i < 8; i++)
			v |= (u64)(i < k ? a[PAGE - k + i] : b[i - k]) << (8 * i);
		CHECK_EQ(v, 0x1122334455667788);
		f.ip = (uword)s_read8;
		f.r[RCX] = 0;
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RCX], 0x1122334455667788);
	}
	/* 16 bytes */
	f = kernel_frame(s_movups);
	f.r[RAX] = T + PAGE - 5;
	*pb = 0;
	invlpg(T + PAGE);
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last_cr2, T + PAGE);
	/* instruction fetch: the first byte of the second page faults, CR2 says so, RIP is the instruction's */
	a[PAGE - 2] = 0x48; /* mov %rax, imm64 begins */
	a[PAGE - 1] = 0xb8;
	f = kernel_frame((void *)(T + PAGE - 2));
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last.error, rdmsr(MSR_EFER) & EFER_NXE ? PF_I : 0);
	CHECK_EQ(last_cr2, T + PAGE);
	CHECK_EQ(last.ip, T + PAGE - 2);
	*pb = (u64)b | LEAF;
	memset(b, 0, 8);
	b[0] = 0x5a;
	b[8] = 0xcd;
	b[9] = 0x80;
	invlpg(T + PAGE);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], 0x5a);
	/* the second page of the instruction is remapped: the new bytes count */
	u8 *c = page_alloc(1);
	memcpy(c, b, 16);
	c[0] = 0x77;
	*pb = (u64)c | LEAF;
	invlpg(T + PAGE);
	CHECK_EQ(run(&f), VEC_DONE);
	CHECK_EQ(last.r[RAX], 0x77);
}

/* SMAP: STAC/CLAC, and implicit supervisor accesses which ignore AC */
CASE(smap)
{
	if (!has_smap())
		return skipped("SMAP");
	uword cr4 = read_cr4();
	u64 *user_page = page_alloc(1);
	pt_map(boot_pml4, T, (u64)user_page, LEAF);
	invlpg(T);
	write_cr4(cr4 | CR4_SMAP);
	CHECK_EQ(TRAP_IN("mov (%%rbx), %%r11", "b"(T)), VEC_PF);
	CHECK_EQ(last.error, PF_P);
	CHECK_EQ(TRAP_IN("stac; mov (%%rbx), %%r11; clac", "b"(T)), NO_TRAP);
	CHECK_EQ(TRAP_IN("stac; clac; mov (%%rbx), %%r11", "b"(T)), VEC_PF);
	/* a descriptor table in a user page: a segment load is an implicit supervisor access, also with AC = 1 */
	memcpy(user_page, gdt, 0x60);
	gdt[SEL_FREE / 8] = desc((u32)T, 0x5f, 0x82, 0);
	gdt[SEL_FREE / 8 + 1] = T >> 32;
	asm volatile("lldt %w0" : : "r"(SEL_FREE) : "memory");
	CHECK_EQ(TRAP_IN("mov %w0, %%fs", "b"(SEL_UDATA | 4)), VEC_PF);
	CHECK_EQ(last.error, PF_P);
	if (!tcg_known_wrong("AC = 1 allows implicit supervisor accesses too (SDM 4.6.1)"))
		CHECK_EQ(TRAP_IN("stac; mov %w0, %%fs; clac", "b"(SEL_UDATA | 4)), VEC_PF);
	write_cr4(cr4);
	CHECK_EQ(TRAP_IN("mov %w0, %%fs", "b"(SEL_UDATA | 4)), NO_TRAP);
	write_cr4(cr4 | CR4_SMAP);
	asm volatile("lldt %w0; mov %w0, %%fs" : : "r"(0));
	/* STAC at ring 3: #UD */
	SNIPPET(s_stac, "stac; int $0x80");
	struct frame f = user_frame(s_stac);
	CHECK_EQ(run(&f), VEC_UD);
	/* an exception clears AC only by the handler's CLAC: delivery keeps it… but saves it */
	write_cr4(cr4);
	CHECK_EQ(TRAP_IN("stac; mov (%%rbx), %%r11; clac", "b"(T)), NO_TRAP);
}

/* ---- TLB ---- */
static u64 *root2;
static void flush_all(void) { write_cr3(read_cr3()); }

CASE(flushes)
{
	volatile u64 *a = page_alloc(1), *b = page_alloc(1);
	volatile u64 *pte = pt_entry(boot_pml4, T, 1);
	volatile u64 *t = (void *)T;
	*a = 1;
	*b = 2;
	*pte = (u64)a | LEAF;
	invlpg(T);
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(*t, 1);
		*pte = (u64)b | LEAF; /* the stale entry may live … */
		CHECK(*t == 1 || *t == 2);
		if (i & 1)
			flush_all();
		else
			invlpg(T + 0x123);
		CHECK_EQ(*t, 2); /* … until here */
		*pte = (u64)a | LEAF;
		if (i & 1)
			invlpg(T);
		else
			write_cr3((u64)boot_pml4);
	}
	/* rights may be raised without a flush: a fault is not repeated from a stale entry (SDM 4.10.4.3 permits a spurious
	 * one, which then invalidates); after the fault it must go through */
	*pte = (u64)a | PTE_P;
	invlpg(T);
	CHECK_EQ(*t, 1);
	*pte = (u64)a | LEAF;
	if (access(WRITE, false, T, 0) != VEC_DONE)
		CHECK_EQ(access(WRITE, false, T, 0), VEC_DONE);
	/* rights lowered + flush */
	*pte = (u64)a | PTE_P;
	invlpg(T);
	CHECK_EQ(access(WRITE, false, T, 0), VEC_PF);
	CHECK_EQ(access(READ, true, T, 0), VEC_PF);
	*pte = 0;
	invlpg(T);
	CHECK_EQ(access(READ, false, T, 0), VEC_PF);
	CHECK_EQ(last.error, 0);
	*pte = (u64)a | LEAF; /* not-present is never cached */
	CHECK_EQ(access(READ, false, T, 0), VEC_DONE);
	/* INVLPG of a 2 MiB page by any address in it */
	volatile u64 *pde = pt_entry(boot_pml4, T + 0x40000000, 2);
	*(volatile u64 *)0x2200000ull = 0x22;
	*(volatile u64 *)0x2400000ull = 0x24;
	t = (void *)(T + 0x40000000);
	*pde = 0x2200000 | LEAF | PTE_PS;
	invlpg((u64)t);
	CHECK_EQ(*t, 0x22);
	*pde = 0x2400000 | LEAF | PTE_PS;
	invlpg((u64)t + 0x1ff000);
	CHECK_EQ(*t, 0x24);
	/* changing a directory entry: flush */
	*pde = 0;
	flush_all();
	CHECK_EQ(access(READ, false, (u64)t, 0), VEC_PF);
}

CASE(global_pages)
{
	volatile u64 *a = page_alloc(1), *b = page_alloc(1);
	volatile u64 *pte = pt_entry(boot_pml4, T, 1);
	volatile u64 *t = (void *)T;
	uword cr4 = read_cr4();
	*a = 1;
	*b = 2;
	write_cr4(cr4 | CR4_PGE);
	*pte = (u64)a | LEAF | PTE_G;
	invlpg(T);
	CHECK_EQ(*t, 1);
	*pte = (u64)b | LEAF | PTE_G;
	flush_all();
	CHECK(*t == 1 || *t == 2); /* global: may survive */
	invlpg(T);                 /* INVLPG drops global ones too */
	CHECK_EQ(*t, 2);
	*pte = (u64)a | LEAF | PTE_G;
	write_cr4(cr4 & ~CR4_PGE); /* toggling PGE drops everything */
	CHECK_EQ(*t, 1);
	*pte = (u64)b | LEAF | PTE_G;
	write_cr4(cr4 | CR4_PGE);
	CHECK_EQ(*t, 2);
	/* with PGE = 0 the G bit means nothing */
	write_cr4(cr4 & ~CR4_PGE);
	CHECK_EQ(*t, 2);
	*pte = (u64)a | LEAF | PTE_G;
	flush_all();
	CHECK_EQ(*t, 1);
	write_cr4(cr4);
}

static int do_invpcid(u64 type, u64 pcid, u64 addr)
{
	u64 d[2] = {pcid, addr};
	return (int)TRAP_IN("invpcid %1, %%rbx", "b"(type), "m"(d));
}

CASE(pcid)
{
	if (!has_pcid())
		return skipped("PCID");
	uword cr4 = read_cr4();
	u64 root = (u64)boot_pml4;
	/* PCIDE needs CR3[11:0] = 0 */
	write_cr3(root | 0x18);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(cr4 | CR4_PCIDE)), VEC_GP);
	write_cr3(root);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr3", "b"(root | BIT(63))), VEC_GP); /* NOFLUSH only with PCIDE */
	write_cr4(cr4 | CR4_PCIDE);
	root2 = page_alloc(1);
	memcpy(root2, boot_pml4, PAGE);
	volatile u64 *a = page_alloc(1), *b = page_alloc(1), *t = (void *)T;
	*a = 1;
	*b = 2;
	volatile u64 *p1, *p2;
	root2[1] = 0;
	p1 = pt_entry(boot_pml4, T, 1);
	p2 = pt_entry(root2, T, 1);
	*p1 = (u64)a | LEAF;
	*p2 = (u64)b | LEAF;
	write_cr3(root | 1);
	CHECK_EQ(*t, 1);
	CHECK_EQ(read_cr3(), root | 1);
	write_cr3((u64)root2 | 2);
	CHECK_EQ(*t, 2);
	write_cr3(root | 1 | BIT(63));
	CHECK_EQ(*t, 1);
	CHECK_EQ(read_cr3(), root | 1); /* bit 63 is not kept */
	write_cr3((u64)root2 | 2 | BIT(63));
	CHECK_EQ(*t, 2);
	/* two PCIDs with the same root, one flushed */
	*p2 = (u64)a | LEAF;
	write_cr3((u64)root2 | 2);
	CHECK_EQ(*t, 1);
	/* a change made under another PCID is seen after a flushing load */
	write_cr3(root | 1);
	*p2 = (u64)b | LEAF;
	CHECK_EQ(*t, 1);
	write_cr3((u64)root2 | 2);
	CHECK_EQ(*t, 2);
	if (has_invpcid()) {
		/* 0: one address in one PCID */
		write_cr3(root | 1 | BIT(63));
		*p2 = (u64)a | LEAF;
		CHECK_EQ(do_invpcid(0, 2, T), NO_TRAP);
		write_cr3((u64)root2 | 2 | BIT(63));
		CHECK_EQ(*t, 1);
		/* 1: all of one PCID */
		write_cr3(root | 1 | BIT(63));
		*p2 = (u64)b | LEAF;
		CHECK_EQ(do_invpcid(1, 2, 0), NO_TRAP);
		write_cr3((u64)root2 | 2 | BIT(63));
		CHECK_EQ(*t, 2);
		/* 2 and 3: everything, with and without global ones */
		for (u64 type = 2; type < 4; type++) {
			*p2 = (u64)a | LEAF;
			CHECK_EQ(do_invpcid(type, 0, 0), NO_TRAP);
			CHECK_EQ(*t, 1);
			*p2 = (u64)b | LEAF;
			CHECK_EQ(do_invpcid(type, 0, 0), NO_TRAP);
			CHECK_EQ(*t, 2);
		}
		CHECK_EQ(do_invpcid(4, 0, 0), VEC_GP);
		CHECK_EQ(do_invpcid(0, 0x1000, 0), VEC_GP); /* PCID of more than 12 bits */
		CHECK_EQ(do_invpcid(0, 1, 0x800000000000), VEC_GP);
		SNIPPET(s_invpcid, "xor %eax, %eax; invpcid (%rsp), %rax; int $0x80");
		struct frame f = user_frame(s_invpcid);
		f.sp -= 64;
		CHECK_EQ(run(&f), VEC_GP);
	} else {
		skipped("INVPCID");
	}
	/* PCIDE cleared: everything is flushed, CR3 low bits are flags again */
	write_cr3(root);
	*p1 = (u64)b | LEAF;
	write_cr4(cr4);
	CHECK_EQ(*t, 2);
}

CASE(other_roots)
{
	/* a CR3 load after the structures changed; two roots alternately */
	root2 = page_alloc(1);
	memcpy(root2, boot_pml4, PAGE);
	root2[1] = 0;
	volatile u64 *a = page_alloc(1), *b = page_alloc(1), *t = (void *)T;
	*a = 0xa;
	*b = 0xb;
	pt_map(boot_pml4, T, (u64)a, LEAF);
	pt_map(root2, T, (u64)b, LEAF);
	for (int i = 0; i < 100; i++) {
		write_cr3((u64)boot_pml4);
		CHECK_EQ(*t, 0xa);
		write_cr3((u64)root2);
		CHECK_EQ(*t, 0xb);
	}
	write_cr3((u64)boot_pml4);
	/* the table that holds the mapping is itself mapped read-only: the walk still sets A and D */
	volatile u64 *pte = pt_entry(boot_pml4, T, 1);
	u64 table = (u64)pte & ~0xfffull;
	*pte = (u64)a | LEAF;
	volatile u64 *view = pt_entry(boot_pml4, T + PAGE, 1);
	*view = table | PTE_P;
	invlpg(T);
	invlpg(T + PAGE);
	*t = 1;
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(*(volatile u64 *)(T + PAGE + ((u64)pte & 0xfff)) & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(access(WRITE, false, T + PAGE, 0), VEC_PF);
	/* recursive mapping: a table maps itself */
	volatile u64 *e3 = pt_entry(boot_pml4, 3ull << 39, 4);
	*e3 = (u64)boot_pml4 | PTE_P | PTE_W;
	u64 rec = (3ull << 39 | 3ull << 30 | 3ull << 21 | 3ull << 12);
	CHECK_EQ(((volatile u64 *)rec)[0] & PTE_ADDR, boot_pml4[0] & PTE_ADDR);
	*e3 = 0;
	flush_all();
	/* upper half */
	u64 high = 0xffff900000000000;
	pt_map(boot_pml4, high, (u64)a, PTE_P | PTE_W);
	CHECK_EQ(*(volatile u64 *)high, 1);
	CHECK_EQ(access(READ, true, high, 0), VEC_PF);
	CHECK_EQ(last.error, PF_P | PF_U);
	CHECK_EQ(last_cr2, high);
}

/* INVLPG of non-canonical addresses is a no-op; memory beyond RAM reads as all ones or faults the machine, never is RAM */
CASE(odd_addresses)
{
	CHECK_EQ(TRAP_IN("invlpg (%%rbx)", "b"(0x800000000000)), NO_TRAP);
	SNIPPET(s_invlpg, "invlpg (%rsp); int $0x80");
	struct frame f = user_frame(s_invlpg);
	CHECK_EQ(run(&f), VEC_GP);
	SNIPPET(s_movcr3, "mov %cr3, %rax; int $0x80");
	f = user_frame(s_movcr3);
	CHECK_EQ(run(&f), VEC_GP);
	if (tcg_known_wrong("most reserved bits and combinations in CR0, CR3 and CR4 are not checked (SDM vol. 3 2.5)"))
		return;
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr3", "b"((u64)boot_pml4 | BIT(62))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"(read_cr0() & ~CR0_PE)), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"(read_cr0() | BIT(32))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(read_cr4() & ~CR4_PAE)), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr4", "b"(read_cr4() | BIT(31))), VEC_GP);
	CHECK_EQ(TRAP_IN("mov %%rbx, %%cr0", "b"((read_cr0() & ~CR0_CD) | CR0_NW)), VEC_GP);
	CHECK_EQ(TRAP_IN("wrmsr", "c"(MSR_EFER), "a"((u32)(rdmsr(MSR_EFER) & ~EFER_LME)), "d"(0)), VEC_GP);
}
