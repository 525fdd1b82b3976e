/* Several processors: start-up and INIT, IPIs, locked instructions, code and page tables changed under others.  With one
 * processor nothing is tested. */
#include "lib/guest.h"

#define TRAMPOLINE 0x7000u /* below 1 MiB, page aligned: its number is the start-up vector */
#define MAX_CPUS 8
#define STACK 8192
#define VEC_COUNT 0x50 /* counts */
#define VEC_FLUSH 0x60 /* counts and invalidates `flush_va` */

/* Real mode at CS:0, then the address space of the boot processor. */
asm(".pushsection .text, \"ax\"\n"
    ".globl ap_start16, ap_start16_gdtr, ap_start16_end\n"
    ".code16\n"
    "ap_start16: cli; cld; mov %cs, %ax; mov %ax, %ds; lgdtl ap_start16_gdtr - ap_start16; mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
    "	ljmpl $0x38, $ap_start32\n"
    "ap_start16_gdtr: .word 128 * 8 - 1; .long gdt\n"
    "ap_start16_end:\n"
    ".code32\n"
    "ap_start32: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
    "	mov $0x620, %eax; mov %eax, %cr4; mov $boot_pml4, %eax; mov %eax, %cr3\n"
    "	mov $0xc0000080, %ecx; rdmsr; or $0x901, %eax; wrmsr; mov $0x80010033, %eax; mov %eax, %cr0\n"
    "	ljmp $0x08, $ap_start64\n"
    ".code64\n"
    "ap_start64: mov $1, %edi; lock xadd %edi, ap_ticket(%rip); lea 1(%rdi), %eax; shl $13, %eax\n"
    "	lea ap_stacks(%rip), %rsp; add %rax, %rsp; call ap_main\n"
    "1:	hlt; jmp 1b\n"
    "ipi_count: lock incl ipis(%rip)\n"
    "	push %rax; push %rcx; push %rdx; cmpb $0, apic_x2(%rip); jne 2f; mov $0xfee000b0, %eax; movl $0, (%rax); jmp 3f\n"
    "2:	mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
    "3:	pop %rdx; pop %rcx; pop %rax; iretq\n"
    "ipi_flush: push %rax; mov flush_va(%rip), %rax; invlpg (%rax); pop %rax; jmp ipi_count\n"
    "nmi_count: lock incl nmis(%rip); iretq\n"
    ".popsection");
extern const char ap_start16[], ap_start16_end[], ipi_count[], ipi_flush[], nmi_count[];
_Static_assert(STACK == 1 << 13, "the shift in ap_start64");

u32 ap_ticket;
char ap_stacks[(MAX_CPUS + 1) * STACK] __attribute__((aligned(16)));
volatile u32 ipis, nmis;
u64 flush_va;

static unsigned n_cpus = 1;
static volatile u32 ready, go, done, stop;
static void (*volatile job)(unsigned);

#define PAUSE asm volatile("pause" ::: "memory")
#define WAIT(cond)                                                                                                     \
	({                                                                                                             \
		u64 end_ = rdtsc() + 40000000000ull;                                                                   \
		while (!(cond) && rdtsc() < end_)                                                                      \
			PAUSE;                                                                                         \
		!!(cond);                                                                                              \
	})
static void serialize(void)
{
	u32 a = 0, b, c = 0, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}
static void add(volatile u32 *p) { asm volatile("lock incl %0" : "+m"(*p)::"memory"); }

void ap_main(unsigned k)
{
	asm volatile("lidt %0" : : "m"(idtr));
	apic_init();
	sti();
	u32 seen = go;
	add(&ready);
	for (;;) {
		while (go == seen)
			PAUSE;
		seen = go;
		job(k);
		add(&done);
	}
}

static void icr(u32 dest, u32 low)
{
	if (apic_x2)
		wrmsr(0x830, (u64)dest << 32 | low);
	else
		apic_write(0x310, dest << 24), apic_write(0x300, low);
}
#define ASSERT_LEVEL BIT(14)
#define OTHERS (3u << 18 | ASSERT_LEVEL)
#define DM_NMI (4u << 8)
#define DM_INIT (5u << 8)
#define DM_SIPI (6u << 8)

/* Runs fn on all others; together: also here. */
static void begin(void (*fn)(unsigned))
{
	done = stop = 0;
	job = fn;
	asm volatile("" ::: "memory");
	go++;
}
static bool end(void)
{
	stop = 1;
	return WAIT(done == n_cpus - 1);
}

CASE(start_up)
{
	u32 a = 1, b, c = 0, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	cli();
	apic_init();
	n_cpus = b >> 16 & 0xff;
	if (n_cpus < 2 || n_cpus > MAX_CPUS) {
		n_cpus = 1;
		skipped("more than one processor");
		return;
	}
	memcpy((void *)(uword)TRAMPOLINE, ap_start16, (uword)(ap_start16_end - ap_start16));
	gate_set(VEC_COUNT, (uword)ipi_count, SEL_KCODE, 0x8e, 0);
	gate_set(VEC_FLUSH, (uword)ipi_flush, SEL_KCODE, 0x8e, 0);
	icr(0, OTHERS | DM_INIT | BIT(15)); /* firmware may have had them running */
	u64 until = rdtsc() + 30000000;
	while (rdtsc() < until)
		PAUSE;
	icr(0, OTHERS | DM_SIPI | TRAMPOLINE >> 12);
	CHECK(WAIT(ready == n_cpus - 1));
	icr(0, OTHERS | DM_SIPI | TRAMPOLINE >> 12); /* means nothing to those that run */
	until = rdtsc() + 3000000;
	while (rdtsc() < until)
		PAUSE;
	CHECK_EQ(ready, n_cpus - 1);
	CHECK_EQ(ap_ticket, n_cpus - 1);
}

static volatile u32 beats;
static void beat(unsigned k)
{
	while (!stop)
		add(&beats);
}

CASE(init)
{
	if (n_cpus < 2)
		return;
	/* A processor whose host thread has not run since gets the SIPI with the INIT still to come, and QEMU drops it. */
	if (tcg_known_wrong("INIT and SIPI reach a processor in order (SDM 9.4.4)"))
		return;
	begin(beat);
	CHECK(WAIT(beats > 1000));
	icr(0, OTHERS | DM_INIT | BIT(15));
	icr(0, (3u << 18) | DM_INIT | BIT(15)); /* level de-assert: ignored */
	/* they stop within a moment */
	u32 before;
	u64 until;
	unsigned tries = 0;
	do {
		before = beats;
		until = rdtsc() + 200000000;
		while (rdtsc() < until)
			PAUSE;
	} while (beats != before && ++tries < 20);
	CHECK_EQ(beats, before);
	icr(0, OTHERS | VEC_COUNT); /* an interrupt does not wake them */
	ready = ap_ticket = 0;
	icr(0, OTHERS | DM_SIPI | TRAMPOLINE >> 12);
	/* The second one comes 200 us later in the MultiProcessor Specification's start-up (B.4). */
	until = rdtsc() + 2000000;
	while (rdtsc() < until)
		PAUSE;
	icr(0, OTHERS | DM_SIPI | TRAMPOLINE >> 12);
	CHECK(WAIT(ready == n_cpus - 1));
	CHECK_EQ(ap_ticket, n_cpus - 1);
}

static void sleep_job(unsigned k)
{
	cli();
	while (!stop)
		asm volatile("sti; hlt; cli");
	sti();
}

CASE(ipis)
{
	if (n_cpus < 2)
		return;
	gate_set(2, (uword)nmi_count, SEL_KCODE, 0x8e, 0);
	for (int asleep = 0; asleep < 2; asleep++) {
		ipis = nmis = 0;
		if (asleep)
			begin(sleep_job);
		for (u32 n = 1; n <= 60; n++) {
			icr(0, OTHERS | VEC_COUNT);
			CHECK(WAIT(ipis == n * (n_cpus - 1)));
		}
		for (u32 id = 1; id < n_cpus; id++) { /* physical ids are consecutive here */
			u32 before = ipis;
			icr(id, ASSERT_LEVEL | VEC_COUNT);
			CHECK(WAIT(ipis == before + 1));
			if (apic_x2) {
				icr((id >> 4) << 16 | 1u << (id & 15), ASSERT_LEVEL | BIT(11) | VEC_COUNT);
				CHECK(WAIT(ipis == before + 2));
			}
		}
		icr(0, OTHERS | DM_NMI);
		CHECK(WAIT(nmis == n_cpus - 1));
		if (asleep) {
			stop = 1;
			icr(0, OTHERS | VEC_COUNT);
			CHECK(end());
		}
	}
}

static struct __attribute__((packed)) { u8 pad[PAGE - 3]; u64 split; u8 pad2[60]; } across __attribute__((aligned(4096)));
static volatile u64 plain, wide[2] __attribute__((aligned(16)));
static volatile u32 lock;
#define ROUNDS 1000
static void locked_job(unsigned k)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		asm volatile("lock incq %0" : "+m"(across.split)::"memory");
		u64 lo = wide[0], hi = wide[1];
		bool ok;
		do
			asm volatile("lock cmpxchg16b %1; sete %0" : "=q"(ok), "+m"(wide), "+a"(lo), "+d"(hi) : "b"(lo + 1), "c"(hi + 2) : "memory");
		while (!ok);
		u32 t;
		do {
			t = 1;
			asm volatile("xchg %0, %1" : "+r"(t), "+m"(lock)::"memory");
			if (t)
				PAUSE;
		} while (t);
		plain++;
		asm volatile("" ::: "memory");
		lock = 0;
	}
}

CASE(locked)
{
	if (n_cpus < 2)
		return;
	begin(locked_job);
	locked_job(0);
	CHECK(end());
	CHECK_EQ(across.split, ROUNDS * n_cpus);
	CHECK_EQ(wide[0], ROUNDS * n_cpus);
	CHECK_EQ(wide[1], 2 * ROUNDS * n_cpus);
	CHECK_EQ(plain, ROUNDS * n_cpus);
}

static volatile u32 *imm; /* of the code at (u8 *)imm - 1: mov eax, imm; ret */
static volatile u32 floor_, wrong, calls;
static void call_job(unsigned k)
{
	u32 before = 0;
	while (!stop) {
		u32 least = floor_, got = ((u32 (*)(void))(uword)((u8 *)imm - 1))();
		if (got < least || got < before)
			wrong++;
		before = got;
		calls++;
	}
}
static void put(u8 *p, u32 v)
{
	p[0] = 0xb8;
	*(volatile u32 *)(p + 1) = v;
	p[5] = 0xc3;
}

CASE(code_patched_with_ipi)
{
	if (n_cpus < 2 || tcg_known_wrong("processors go on executing patched code after an IPI"))
		return;
	u8 *page = page_alloc(1);
	imm = (volatile u32 *)(page + 64);
	put(page + 63, 0);
	floor_ = wrong = calls = 0;
	begin(call_job);
	for (u32 v = 1; v <= 120; v++) {
		*imm = v;
		u32 before = ipis;
		icr(0, OTHERS | VEC_COUNT); /* its IRET serializes */
		CHECK(WAIT(ipis == before + n_cpus - 1));
		floor_ = v;
		if (v % 16 == 0) { /* until somebody has run it */
			u32 c = calls;
			WAIT(calls != c);
		}
	}
	CHECK(end());
	CHECK_EQ(wrong, 0);
	CHECK(calls != 0);
}

static u8 *volatile handed;
static volatile u32 turn, expected;
static void handed_job(unsigned k)
{
	u32 seen = 0;
	while (!stop) {
		u32 t = turn;
		if (t == seen) {
			PAUSE;
			continue;
		}
		seen = t;
		serialize();
		if (((u32 (*)(void))(uword)handed)() != expected)
			wrong++;
		add(&calls);
	}
}

CASE(code_handed_over)
{
	if (n_cpus < 2)
		return;
	u8 *page = page_alloc(4);
	wrong = calls = turn = 0;
	begin(handed_job);
	for (u32 v = 1; v <= 120; v++) {
		u8 *p = page + v * 1237 % (4 * PAGE - 8);
		put(p, v);
		handed = p;
		expected = v;
		if (v % 3 == 0) { /* it was code here, too */
			serialize();
			CHECK_EQ(((u32 (*)(void))(uword)p)(), v);
		}
		turn = v;
		CHECK(WAIT(calls == v * (n_cpus - 1)));
	}
	CHECK(end());
	CHECK_EQ(wrong, 0);
}

static volatile u64 *watched;
static volatile u64 least;
static void watch_job(unsigned k)
{
	while (!stop) {
		u64 l = least, got = *watched;
		if (got < l)
			wrong++;
		add(&calls);
	}
}

CASE(page_remapped)
{
	if (n_cpus < 2)
		return;
	volatile u64 *pages = page_alloc(64);
	for (unsigned i = 0; i < 64; i++)
		pages[i * 512] = 0;
	const u64 va = 0x8000000000ull;
	pt_map(boot_pml4, va, (u64)(uword)pages, PTE_P | PTE_W);
	watched = (volatile u64 *)(uword)va;
	flush_va = va;
	wrong = calls = 0;
	least = 0;
	begin(watch_job);
	for (u64 v = 1; v <= 120; v++) {
		pages[v % 64 * 512] = v;
		*pt_entry(boot_pml4, va, 1) = (u64)(uword)&pages[v % 64 * 512] | PTE_P | PTE_W;
		u32 before = ipis;
		icr(0, OTHERS | VEC_FLUSH);
		CHECK(WAIT(ipis == before + n_cpus - 1));
		least = v;
	}
	CHECK(end());
	CHECK_EQ(wrong, 0);
	CHECK(calls != 0);
	*pt_entry(boot_pml4, va, 1) = 0;
	asm volatile("invlpg (%0)" : : "r"(va) : "memory");
}
