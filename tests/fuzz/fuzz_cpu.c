/* libFuzzer entry: any bytes as code, in any mode, with any registers, in a RAM of 2 MiB that also holds its own page
 * tables, descriptors and stack, all writable by the code.  Whatever it does, the CPU must come back with an exit: no
 * crash, no failed assertion, no access outside RAM (guard areas on both sides), no retired-instruction count beyond
 * the limit.  src/cpu itself is built as in the product: its registers are the guest's, no sanitizer fits there. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/native.h"
#include "cpu/seg.h"
#include "cpu/setup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_SIZE (2 * MiB)
#define GUARD (64 * MiB)
#define STUB_SIZE (1 * MiB)
#define STEPS 2000
#define EXITS 300

/* Guest-physical addresses; the code is everywhere from CODE on, repeated. */
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define GDT 0x4000u
#define IDT 0x5000u
#define TSS 0x6000u
#define STACK 0x8000u
#define CODE 0x9000u

static struct {
	u8 *mem;
	u64 *code;
	void *cpu_mem;
	size_t cpu_size;
	struct cpu_config cfg;
	struct cpuid_table cpuid;
	struct ram ram;
	struct cpu *cpu;
	bool running;
} f;

static struct sigaction others[NSIG];

static void on_fault(int sig, siginfo_t *si, void *uc_)
{
	ucontext_t *uc = uc_;
	if (f.running && native_fault(f.cpu, sig, (int)uc->uc_mcontext.gregs[REG_TRAPNO], (u64)uc->uc_mcontext.gregs[REG_ERR], uc))
		return;
	others[sig].sa_sigaction(sig, si, uc_); /* the sanitizer's, which reports and ends */
	abort();
}

static void *map(size_t size, int prot)
{
	void *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

static void set_up(void)
{
	f.mem = (u8 *)map(RAM_SIZE + 2 * GUARD, PROT_NONE) + GUARD;
	mprotect(f.mem, RAM_SIZE, PROT_READ | PROT_WRITE);
	f.code = map(RAM_SIZE / PAGE_SIZE * sizeof(u64), PROT_READ | PROT_WRITE);
	f.ram.n = 1;
	f.ram.slot[0] = (struct ram_slot){ .size = RAM_SIZE, .hva = f.mem, .fd = -1, .code = f.code };
	cpuid_table_init(&f.cpuid, 1, 2000000);
	int fd = memfd_create("stubs", 0);
	if (fd < 0 || ftruncate(fd, STUB_SIZE))
		abort();
	void *rw = mmap(NULL, STUB_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *rx = mmap(NULL, STUB_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	u8 *scratch = map(NATIVE_SCRATCH_SIZE, PROT_READ | PROT_WRITE);
	mprotect(scratch, PAGE_SIZE, PROT_NONE);
	mprotect(scratch + (NATIVE_SCRATCH_PAGES - 1) * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	if (rw == MAP_FAILED || rx == MAP_FAILED)
		abort();
	f.cfg = (struct cpu_config){
		.bsp = true, .ram = &f.ram, .cpuid = &f.cpuid, .block_arena = 256 * KiB, .stub_rw = rw, .stub_rx = rx, .stub_size = STUB_SIZE,
		.scratch = scratch, .tsc_khz = 2000000, .deterministic = true, .vendor_intel = f.cpuid.intel,
		.maxphyaddr = f.cpuid.maxphyaddr, .lapic = true,
	};
	f.cpu_size = cpu_memory_size(&f.cfg);
	f.cpu_mem = map(f.cpu_size, PROT_READ | PROT_WRITE);
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
		struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
		sigaction(signals[i], &sa, &others[signals[i]]);
	}
	static u8 stack[256 * KiB];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	sigaltstack(&ss, NULL);
}

static void put64(u32 at, u64 v) { memcpy(f.mem + at, &v, 8); }

/* Identity map of 2 MiB pages, Linux-like descriptors, an IDT whose handlers are the fuzzed code as well. */
static void tables(void)
{
	put64(PML4, PDPT | PTE_P | PTE_W | PTE_U);
	put64(PDPT, PD | PTE_P | PTE_W | PTE_U);
	for (u32 i = 0; i < 3; i++) /* RAM, and memory that is not there */
		put64(PD + 8 * i, (u64)i * 2 * MiB | PTE_P | PTE_W | PTE_U | 0x80);
	static const u64 gdt[] = { 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff,
				   0x00affb000000ffff, 0x00009b000000ffff, 0x00008b0000000067 | (u64)TSS << 16, 0 };
	memcpy(f.mem + GDT, gdt, sizeof gdt);
	put64(TSS + 4, STACK);
	for (u32 v = 0; v < 256; v++) {
		u64 h = CODE + v * 8;
		put64(IDT + 16 * v, (h & 0xffff) | 0x10 << 16 | (v & 8 ? 0x8eull : 0xeeull) << 40 | (h >> 16 & 0xffff) << 48);
		put64(IDT + 16 * v + 8, 0);
	}
}

static void segment(struct cpu *c, enum sreg s, unsigned index, unsigned rpl)
{
	u64 d;
	memcpy(&d, f.mem + GDT + 8 * index, 8);
	desc_unpack(&c->seg[s], d, (u16)(8 * index + rpl));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 8)
		return 0;
	if (!f.mem)
		set_up();
	memset(f.mem, 0, RAM_SIZE / 4);
	memset(f.code, 0, RAM_SIZE / PAGE_SIZE * sizeof(u64));
	madvise(f.cpu_mem, f.cpu_size, MADV_DONTNEED); /* zero again, and only what it touches costs */
	tables();
	struct cpu *c = f.cpu = cpu_init(f.cpu_mem, &f.cfg);
	const u8 mode = data[0], *code = data + 8;
	const size_t n = size - 8 < 0x8000 ? size - 8 : 0x8000;
	u64 seed;
	memcpy(&seed, data, 8);
	for (u32 at = CODE; n && at + n < CODE + 0x8000; at += (u32)n)
		memcpy(f.mem + at, code, n);
	u64 r = seed | 1;
	for (unsigned i = 0; i < 16; i++) {
		r = r * 6364136223846793005ull + 1442695040888963407ull;
		c->r[i] = mode & 8 ? r : (r >> 33) % (RAM_SIZE + 8192); /* mostly addresses that are there */
	}
	c->r[RSP] = STACK - 256;
	c->gdtr = (struct dtr){ .base = GDT, .limit = 79 };
	c->idtr = (struct dtr){ .base = IDT, .limit = 4095 };
	c->efer = EFER_SCE | EFER_NXE;
	c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	c->xcr0 = f.cpuid.xcr0;
	c->cr3 = PML4;
	unsigned rpl = 0;
	switch (mode & 7) {
	case 0: case 1: case 2: /* 64-bit, kernel or user */
	case 3:                 /* compatibility mode */
		c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
		c->efer |= EFER_LME | EFER_LMA;
		rpl = (mode & 7) >= 1 && (mode & 7) != 2 ? 3 : 0;
		segment(c, CS, (mode & 7) == 3 ? 4 : rpl ? 6 : 2, rpl);
		break;
	case 4: case 5: /* 32-bit, without paging */
		c->cr0 = CR0_PE | CR0_ET | CR0_NE;
		c->cr4 &= ~(u64)CR4_PAE;
		rpl = mode & 1 ? 3 : 0;
		segment(c, CS, rpl ? 4 : 1, rpl);
		break;
	default: /* real mode, or 16-bit protected mode */
		c->cr0 = CR0_ET | CR0_NE | (mode & 1 ? CR0_PE : 0);
		c->cr4 &= ~(u64)CR4_PAE;
		if (mode & 1)
			segment(c, CS, 7, 0);
		else
			c->seg[CS].base = c->seg[CS].sel = 0;
	}
	if (c->cr0 & CR0_PE)
		for (unsigned s = 0; s < SREG_COUNT; s++)
			if (s != CS)
				segment(c, (enum sreg)s, rpl ? 5 : 3, rpl);
	desc_unpack(&c->tr, 0x00008b0000000067 | (u64)TSS << 16, 0x40);
	c->cpl = (u8)rpl;
	c->rip = CODE + (seed >> 32 & 0xfff);
	cpu_set_rflags(c, (seed >> 16 & 0xffff & (mode & 16 ? 0xd5 | 0x600 : 0x4ff5)) | FL_FIXED);
	cpu_update_mode(c);
	c->stop_at = c->insns + STEPS;
	for (unsigned exits = 0; exits < EXITS && c->insns < c->stop_at; exits++) {
		f.running = true;
		enum cpu_exit e = cpu_run(c);
		f.running = false;
		if (e == CPU_EXIT_HLT || e == CPU_EXIT_SHUTDOWN || e == CPU_EXIT_UNIMPLEMENTED)
			break;
		r = r * 6364136223846793005ull + 1442695040888963407ull;
		if (e == CPU_EXIT_IO && !c->io.write) {
			c->io.data = (u32)(r >> 32);
			c->io.done = true;
		} else if (e == CPU_EXIT_MMIO && !c->mmio.f[c->mmio.n].write) {
			c->mmio.f[c->mmio.n].data = r;
		} else if (e == CPU_EXIT_BUDGET) {
			c->attn = 0;
		} else if (e == CPU_EXIT_NONE) {
			abort();
		}
	}
	if (c->insns > c->stop_at)
		abort();
	return 0;
}
