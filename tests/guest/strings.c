/* String instructions: direction, overlap, faults in the middle, address sizes, interrupts between iterations. */
#include "lib/guest.h"

#define T 0x8000000000ull
#define LEAF (PTE_P | PTE_W | PTE_U)

struct str { u64 si, di, cx, ax, flags; };
#define STR(name, insn)                                                                                                \
	static struct str name(u64 si, u64 di, u64 cx, u64 ax)                                                         \
	{                                                                                                              \
		struct str s = {si, di, cx, ax, 0};                                                                    \
		asm volatile(insn "\n\tpushf; pop %4" : "+S"(s.si), "+D"(s.di), "+c"(s.cx), "+a"(s.ax), "=r"(s.flags) \
			     : : "memory", "cc");                                                                      \
		asm volatile("cld");                                                                                   \
		return s;                                                                                              \
	}
STR(movsb, "cld; rep movsb") STR(movsw, "cld; rep movsw") STR(movsl, "cld; rep movsl") STR(movsq, "cld; rep movsq")
STR(movsb_d, "std; rep movsb") STR(movsq_d, "std; rep movsq")
STR(stosb, "cld; rep stosb") STR(stosw, "cld; rep stosw") STR(stosl, "cld; rep stosl") STR(stosq, "cld; rep stosq")
STR(stosl_d, "std; rep stosl")
STR(lodsb, "cld; rep lodsb") STR(lodsq1, "cld; lodsq")
STR(repe_cmpsb, "cld; repe cmpsb") STR(repne_cmpsl, "cld; repne cmpsl")
STR(repe_scasb, "cld; repe scasb") STR(repne_scasb, "cld; repne scasb") STR(repne_scasw_d, "std; repne scasw")
STR(movsb_32, "cld; addr32 rep movsb") STR(stosl_32, "cld; addr32 rep stosl") STR(movsb_d32, "std; addr32 rep movsb")
STR(movsb1, "cld; movsb") STR(movsl1_d, "std; movsl")

static u8 buf[256] __attribute__((aligned(16)));
static void fill(void)
{
	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = (u8)i;
}

CASE(move)
{
	typedef struct str op(u64, u64, u64, u64);
	static const struct { op *f; unsigned size; int dir; } t[] = {
		{movsb, 1, 1}, {movsw, 2, 1}, {movsl, 4, 1}, {movsq, 8, 1}, {movsb_d, 1, -1}, {movsq_d, 8, -1}};
	for (unsigned k = 0; k < ARRAY_SIZE(t); k++) {
		for (int dist = -20; dist <= 20; dist++) {
			for (unsigned n = 0; n < 6; n++) {
				u8 model[256];
				fill();
				memcpy(model, buf, 256);
				int s = 100, d = 100 + dist;
				for (unsigned i = 0; i < n; i++) { /* element by element */
					u8 e[8];
					for (unsigned b = 0; b < t[k].size; b++)
						e[b] = model[s + (int)b];
					for (unsigned b = 0; b < t[k].size; b++)
						model[d + (int)b] = e[b];
					s += t[k].dir * (int)t[k].size;
					d += t[k].dir * (int)t[k].size;
				}
				struct str r = t[k].f((u64)buf + 100, (u64)buf + 100 + (u64)(s64)dist, n, 0);
				bool same = !memcmp(buf, model, 256);
				if (!same || r.cx || r.si != (u64)buf + (u64)s || r.di != (u64)buf + (u64)d) {
					print("op %u dist %d n %u\n", k, dist, n);
					CHECK(!"memory and registers after rep movs");
					return;
				}
			}
		}
	}
	fill();
	struct str r = movsb1((u64)buf + 7, (u64)buf + 9, 55, 0);
	CHECK_EQ(buf[9], 7);
	CHECK_EQ(r.cx, 55);
	r = movsl1_d((u64)buf + 16, (u64)buf + 32, 55, 0);
	CHECK_EQ(r.si, (u64)buf + 12);
	CHECK_EQ(r.di, (u64)buf + 28);
}

CASE(store_and_load)
{
	fill();
	struct str r = stosb(1, (u64)buf + 3, 5, 0xab);
	CHECK_EQ(buf[2], 2);
	CHECK_EQ(buf[3], 0xab);
	CHECK_EQ(buf[7], 0xab);
	CHECK_EQ(buf[8], 8);
	CHECK_EQ(r.di, (u64)buf + 8);
	stosw(1, (u64)buf, 3, 0x1234);
	CHECK_EQ(*(u16 *)(buf + 4), 0x1234);
	stosl(1, (u64)buf, 3, 0x12345678);
	CHECK_EQ(*(u32 *)(buf + 8), 0x12345678);
	stosq(1, (u64)buf, 3, 0x123456789abcdef0);
	CHECK_EQ(*(u64 *)(buf + 16), 0x123456789abcdef0);
	r = stosl_d(1, (u64)buf + 40, 3, 0x55aa55aa);
	CHECK_EQ(*(u32 *)(buf + 32), 0x55aa55aa);
	CHECK_EQ(r.di, (u64)buf + 28);
	fill();
	r = lodsb((u64)buf + 10, 0, 3, 0x1100);
	CHECK_EQ(r.ax, 0x1100 + 12);
	CHECK_EQ(r.si, (u64)buf + 13);
	r = lodsq1((u64)buf, 0, 3, 0);
	CHECK_EQ(r.ax, 0x0706050403020100);
	CHECK_EQ(r.cx, 3);
}

CASE(compare_and_scan)
{
	static const char a[] = "abcdefgh", b[] = "abcdXfgh";
	struct str r = repe_cmpsb((u64)a, (u64)b, 8, 0);
	CHECK_EQ(r.cx, 3);
	CHECK_EQ(r.si, (u64)a + 5);
	CHECK_EQ(r.flags & (FL_ZF | FL_CF), 0); /* 'e' - 'X' */
	r = repe_cmpsb((u64)b, (u64)a, 8, 0);
	CHECK_EQ(r.flags & (FL_ZF | FL_CF), FL_CF);
	r = repe_cmpsb((u64)a, (u64)b, 4, 0);
	CHECK_EQ(r.cx, 0);
	CHECK_EQ(r.flags & FL_ZF, FL_ZF);
	r = repne_cmpsl((u64)a, (u64)b, 2, 0);
	CHECK_EQ(r.cx, 1);
	CHECK_EQ(r.flags & FL_ZF, FL_ZF);
	r = repne_scasb(0, (u64)a, 20, 'f');
	CHECK_EQ(r.di, (u64)a + 6);
	CHECK_EQ(r.flags & FL_ZF, FL_ZF);
	r = repne_scasb(0, (u64)a, 4, 'f');
	CHECK_EQ(r.cx, 0);
	CHECK_EQ(r.flags & FL_ZF, 0);
	r = repe_scasb(0, (u64) "aaaab", 5, 'a');
	CHECK_EQ(r.cx, 0);
	CHECK_EQ(r.flags & (FL_ZF | FL_CF), FL_CF); /* 'a' - 'b' */
	fill();
	r = repne_scasw_d(0, (u64)buf + 100, 100, 0x5150);
	CHECK_EQ(r.di, (u64)buf + 0x50 - 2);
	/* count 0: no access, flags untouched */
	asm volatile("cmp %0, %0" : : "r"(1));
	u64 fl;
	asm volatile("xor %%eax, %%eax; xor %%ecx, %%ecx; mov $1, %%edi; shl $63, %%rdi; cmp %%eax, %%eax; repne scasb; pushf; "
		     "pop %0" : "=r"(fl) : : "rax", "rcx", "rdi", "memory");
	CHECK_EQ(fl & FL_ZF, FL_ZF);
}

CASE(address_size_32)
{
	fill();
	struct str r = movsb_32((u64)buf | 0xdead00000000, ((u64)buf + 100) | 0xbeef00000000, 5 | 0x700000000, 0);
	CHECK_EQ(buf[100], 0);
	CHECK_EQ(buf[104], 4);
	CHECK_EQ(buf[105], 105);
	CHECK_EQ(r.cx, 0);
	CHECK_EQ(r.si, (u64)buf + 5);
	CHECK_EQ(r.di, (u64)buf + 105);
	r = stosl_32(0, (u64)buf | 0x100000000, 2, 0x77777777);
	CHECK_EQ(*(u32 *)(buf + 4), 0x77777777);
	r = movsb_d32((u64)buf + 20, (u64)buf + 50, 3, 0);
	CHECK_EQ(r.si, (u64)buf + 17);
	CHECK_EQ(buf[48], 18);
	/* ESI wraps at 4 GiB: bytes 0xffffffff then 0; read through a mapping of neither is possible: count 0 instead */
	r = movsb_32(1ull << 40, 1ull << 41, 1ull << 32, 0);
	CHECK_EQ(r.cx & 0xffffffff, 0);
}

SNIPPET(s_movsb, "cld; rep movsb; int $0x80");
SNIPPET(s_movsq, "cld; rep movsq; int $0x80");
SNIPPET(s_stosq, "cld; rep stosq; int $0x80");
SNIPPET(s_movsb_d, "std; rep movsb; int $0x80");
SNIPPET(s_cmpsb, "cld; repe cmpsb; int $0x80");
CASE(fault_in_the_middle)
{
	u8 *a = page_alloc(1), *b = page_alloc(1);
	for (unsigned size = 1; size <= 8; size += 7) {
		for (unsigned before = 0; before < 5; before++) {
			pt_map(boot_pml4, T, (u64)a, LEAF);
			pt_map(boot_pml4, T + PAGE, 0, 0);
			invlpg(T + PAGE);
			memset(a, 0, PAGE);
			memset(b, 0, PAGE);
			fill();
			struct frame f = kernel_frame(size == 1 ? s_movsb : s_movsq);
			f.r[RSI] = (uword)buf;
			f.r[RDI] = T + PAGE - before * size;
			f.r[RCX] = 10;
			CHECK_EQ(run(&f), VEC_PF);
			CHECK_EQ(last_cr2, T + PAGE);
			CHECK_EQ(last.error, PF_W);
			CHECK_EQ(last.r[RCX], 10 - before);
			CHECK_EQ(last.r[RSI], (uword)buf + before * size);
			CHECK_EQ(last.r[RDI], T + PAGE);
			CHECK_EQ(last.ip, f.ip + 1);
			/* resumed */
			f = last;
			pt_map(boot_pml4, T + PAGE, (u64)b, LEAF);
			f.flags &= ~FL_RF;
			CHECK_EQ(run(&f), VEC_DONE);
			CHECK_EQ(last.r[RCX], 0);
			for (unsigned i = 0; i < 10 * size; i++)
				CHECK_EQ(i < before * size ? a[PAGE - before * size + i] : b[i - before * size], i);
		}
		/* an element across the boundary faults as a whole */
		if (size == 8) {
			pt_map(boot_pml4, T + PAGE, 0, 0);
			invlpg(T + PAGE);
			memset(a, 0xee, PAGE);
			struct frame f = kernel_frame(s_stosq);
			f.r[RDI] = T + PAGE - 12;
			f.r[RCX] = 3;
			CHECK_EQ(run(&f), VEC_PF);
			CHECK_EQ(last_cr2, T + PAGE);
			CHECK_EQ(last.r[RCX], 2);
			CHECK_EQ(a[PAGE - 4], 0xee);
			CHECK_EQ(a[PAGE - 5], 0);
		}
	}
	/* source fault, backwards */
	pt_map(boot_pml4, T, 0, 0);
	pt_map(boot_pml4, T + PAGE, (u64)b, LEAF);
	invlpg(T);
	struct frame f = kernel_frame(s_movsb_d);
	f.r[RSI] = T + PAGE + 3;
	f.r[RDI] = (uword)buf + 100;
	f.r[RCX] = 10;
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last_cr2, T + PAGE - 1);
	CHECK_EQ(last.error, 0);
	CHECK_EQ(last.r[RCX], 6);
	CHECK_EQ(last.r[RDI], (uword)buf + 96);
	/* compare runs into a missing page */
	f = kernel_frame(s_cmpsb);
	memset(a, 7, PAGE);
	pt_map(boot_pml4, T, (u64)a, LEAF);
	pt_map(boot_pml4, T + PAGE, 0, 0);
	invlpg(T);
	invlpg(T + PAGE);
	f.r[RSI] = T + PAGE - 20;
	f.r[RDI] = T + PAGE - 50;
	f.r[RCX] = 100;
	CHECK_EQ(run(&f), VEC_PF);
	CHECK_EQ(last.r[RCX], 80);
	CHECK_EQ(last_cr2, T + PAGE);
}

/* Long operations are interruptible and make progress. */
static volatile unsigned ticks, inside;
static const char *rep_at;
static u64 last_cx;
static bool order_ok = true;
static void tick(struct frame *f)
{
	ticks++;
	if (f->ip == (uword)rep_at) {
		inside++;
		if (f->r[RCX] > last_cx)
			order_ok = false;
		last_cx = f->r[RCX];
	}
	apic_write(0xb0, 0);
	apic_write(0x380, 100000);
}
SNIPPET(s_big, "cld; s_big_rep: rep stosb; cli; int $0x80");
extern const char s_big_rep[];
CASE(interrupted)
{
	unsigned n = 64 << 20;
	u8 *big = (u8 *)0x2000000;
	u64 start = rdtsc();
	apic_init();
	irq_hook[0x71] = tick;
	rep_at = s_big_rep;
	last_cx = n;
	apic_write(0x3e0, 0xb);
	apic_write(0x320, 0x71);
	apic_write(0x380, 100000);
	struct frame f = kernel_frame(s_big);
	f.flags |= FL_IF;
	for (int i = 0; i < 10 && !inside; i++) {
		last_cx = n;
		f.r[RDI] = (uword)big;
		f.r[RCX] = n;
		f.r[RAX] = (u64)i + 1;
		CHECK_EQ(run(&f), VEC_DONE);
		CHECK_EQ(last.r[RCX], 0);
		CHECK_EQ(last.r[RDI], (uword)big + n);
		CHECK_EQ(big[0], i + 1);
		CHECK_EQ(big[n / 2], i + 1);
		CHECK_EQ(big[n - 1], i + 1);
	}
	apic_write(0x320, BIT(16));
	/* where time counts instructions, a repeated one of 64 Mi iterations is hardly any */
	CHECK(ticks > 0 || rdtsc() - start < 1000000);
	CHECK(order_ok);
	if (!inside)
		print("note: no interrupt fell inside the instruction (%u outside)\n", ticks);
}
