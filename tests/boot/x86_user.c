/* x86 as a user program sees it through Linux: faults, single steps, segments, compatibility and 16-bit code, IRET frames,
 * debug registers.  x86_user.py runs it on the host and in the guest; both must print the same.
 *
 * usage: x86_user [16]     16: also what needs 16-bit segments (CONFIG_X86_16BIT) */
#include <asm/ldt.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

typedef uint64_t u64;
typedef unsigned long long ull;

#define FLAGS_SHOWN 0x254d00u /* of RFLAGS: TF, DF, OF, NT, RF, AC, ID */
#define FL_TF 0x100u
#define FL_RF 0x10000u
/* Undoes what a snippet may have left: TF, DF, NT, AC. */
#define CALM "pushfq; andq $~0x44500, (%%rsp); popfq; cld; "

/* Snippets live here: 64-bit code at 0, 32-bit code at 256, far pointer at 2048, stack of 32-bit code below 12288. */
#define CODE_BASE 0x10000000u
static uint8_t *code;
static u64 base; /* RIPs are printed relative to this */
static sigjmp_buf back;
static int faults;

static void on_fault(int sig, siginfo_t *si, void *context)
{
	__asm__ volatile(CALM ::: "memory", "cc");
	const greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	u64 sel = (u64)g[REG_CSGSFS], off = (u64)g[REG_RIP] - base;
	printf("  signal %d code %d trap %lld error %llx rip ", sig, si->si_code, (ull)g[REG_TRAPNO], (ull)g[REG_ERR]);
	if (off < 4096)
		printf("+%llx", (ull)off);
	else
		printf("elsewhere");
	printf(" cs %x ss %x flags %llx", (unsigned)(sel & 0xffff), (unsigned)(sel >> 48), (ull)g[REG_EFL] & FLAGS_SHOWN);
	if (g[REG_TRAPNO] == 14)
		printf(" address %s", !si->si_addr ? "0" : (u64)si->si_addr >> 47 ? "high" : "low");
	printf("\n");
	if (++faults > 1000)
		_exit(2); /* a snippet runs wild */
	siglongjmp(back, 1);
}

static void on(int sig, void (*f)(int, siginfo_t *, void *))
{
	struct sigaction sa = { .sa_sigaction = f, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigaction(sig, &sa, NULL);
}

struct snippet { const char *name, *bytes; size_t n; };
#define S(name, bytes) { name, bytes, sizeof(bytes) - 1 }

/* ---- 64-bit code ---- */

static void run64(const struct snippet *s)
{
	static u64 flags;
	u64 rax = 0;
	memcpy(code, s->bytes, s->n);
	code[s->n] = 0xc3;
	base = (u64)code;
	printf("%s\n", s->name);
	fflush(stdout);
	if (sigsetjmp(back, 1))
		return;
	__asm__ volatile("mov %%rbx, %%r14; xor %%eax, %%eax; xor %%ecx, %%ecx; xor %%edx, %%edx; call *%%r14; pushfq; pop %%r15; " CALM
			 "mov %%r15, %1"
			 : "=a"(rax), "=m"(flags) : "b"(code)
			 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
	printf("  rax %llx flags %llx\n", (ull)rax, (ull)flags & FLAGS_SHOWN);
}

static const struct snippet plain[] = {
	S("nop", "\x90"), S("ud2", "\x0f\x0b"), S("int3", "\xcc"), S("icebp", "\xf1"), S("int 0x30", "\xcd\x30"),
	S("int 0", "\xcd\x00"), S("int 2", "\xcd\x02"), S("int 3", "\xcd\x03"), S("int 4", "\xcd\x04"), S("int 8", "\xcd\x08"),
	S("int 13", "\xcd\x0d"), S("int 14", "\xcd\x0e"), S("int 255", "\xcd\xff"),
	S("int 0x80", "\xb8\x18\x00\x00\x00\xcd\x80\x31\xc0"),
	/* privileged */
	S("hlt", "\xf4"), S("cli", "\xfa"), S("sti", "\xfb"), S("in", "\xe4\x80"), S("out dx", "\xee"), S("insb", "\x6c"),
	S("clts", "\x0f\x06"), S("wbinvd", "\x0f\x09"), S("invd", "\x0f\x08"), S("mov from cr0", "\x0f\x20\xc0"),
	S("mov from cr8", "\x44\x0f\x20\xc0"), S("mov to cr4", "\x0f\x22\xe0"), S("mov from cr1", "\x0f\x20\xc8"),
	S("mov from dr0", "\x0f\x21\xc0"), S("mov from dr4", "\x0f\x21\xe0"), S("mov to dr7", "\x0f\x23\xf8"),
	S("rdmsr", "\x0f\x32"), S("wrmsr", "\x0f\x30"), S("lgdt", "\x0f\x01\x14\x24"), S("lidt", "\x0f\x01\x1c\x24"),
	S("lldt", "\x0f\x00\xd0"), S("ltr", "\x0f\x00\xd8"), S("lmsw", "\x0f\x01\xf0"), S("invlpg", "\x0f\x01\x3c\x24"),
	S("swapgs", "\x0f\x01\xf8"), S("sysret", "\x48\x0f\x07"), S("sysexit", "\x0f\x35"), S("sysenter", "\x0f\x34"),
	S("stac", "\x0f\x01\xcb"), S("clac", "\x0f\x01\xca"), S("xsetbv", "\x0f\x01\xd1"),
	S("xgetbv 0", "\x0f\x01\xd0\x83\xe0\x07"), S("xgetbv 9", "\xb1\x09\x0f\x01\xd0"), S("monitor", "\x0f\x01\xc8"),
	S("mwait", "\x0f\x01\xc9"), S("rsm", "\x0f\xaa"), S("mov cs", "\x8e\xc8"), S("push es", "\x06"),
	/* flags */
	S("popf IF IOPL", "\x9c\x48\x81\x0c\x24\x00\x32\x00\x00\x9d"), S("popf AC", "\x9c\x48\x81\x0c\x24\x00\x00\x04\x00\x9d"),
	S("popf NT", "\x9c\x48\x81\x0c\x24\x00\x40\x00\x00\x9d"), S("popfw", "\x66\x9c\x66\x9d"),
	S("alignment check", "\x9c\x48\x81\x0c\x24\x00\x00\x04\x00\x9d\x8b\x44\x24\x01"),
	S("syscall with NT", "\x9c\x48\x81\x0c\x24\x00\x40\x00\x00\x9d\xb8\x27\x00\x00\x00\x0f\x05\x31\xc0"),
	/* addresses */
	S("load not canonical", "\x48\xb8\x00\x00\x00\x00\x00\x00\x00\x80\x8b\x00"),
	S("jump not canonical", "\x48\xb8\x00\x00\x00\x00\x00\x00\x00\x80\xff\xe0"),
	S("push not canonical", "\x48\x89\xe1\x48\xbc\x00\x00\x00\x00\x00\x00\x00\x80\x50\x48\x89\xcc"),
	S("load of the kernel", "\x48\xc7\xc0\x00\x00\x00\x81\x8b\x00"), S("jump to the kernel", "\x48\xc7\xc0\x00\x00\x00\x81\xff\xe0"),
	S("store to 0", "\x31\xc0\x89\x00"), S("jump to 0", "\x31\xc0\xff\xe0"), S("divide by 0", "\x31\xc0\xf7\xf0"),
	S("lock nop", "\xf0\x90"), S("16 bytes", "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"),
	S("wrgsbase not canonical", "\x48\xb8\x00\x00\x00\x00\x00\x00\x00\x80\xf3\x48\x0f\xae\xd8"),
	S("iretq of zeros", "\x31\xc0\x50\x50\x50\x50\x50\x48\xcf"),
	S("retf", "\x6a\x33\x48\x8d\x05\x07\x00\x00\x00\x50\x48\xca\x00\x00\x90\x90\x90\x90"),
};

/* ---- single steps ---- */

static struct { u64 rip, flags; int code; } steps[64];
static int nsteps;

static void on_step(int sig, siginfo_t *si, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	(void)sig;
	if (nsteps < 64) {
		steps[nsteps].rip = (u64)g[REG_RIP] - (u64)code;
		steps[nsteps].flags = (u64)g[REG_EFL];
		steps[nsteps++].code = si->si_code;
	} else {
		g[REG_EFL] &= ~(greg_t)FL_TF;
	}
}

static void run_stepped(const struct snippet *s)
{
	memcpy(code, s->bytes, s->n);
	code[s->n] = 0xc3;
	nsteps = 0;
	printf("step %s\n", s->name);
	fflush(stdout);
	on(SIGTRAP, on_step);
	__asm__ volatile("mov %0, %%r14; pushfq; orq $0x100, (%%rsp); popfq; call *%%r14; " CALM
			 :: "r"(code) : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
			    "memory", "cc");
	on(SIGTRAP, on_fault);
	for (int k = 0; k < nsteps; k++)
		if (steps[k].rip < 4096)
			printf("  +%llx flags %llx code %d\n", (ull)steps[k].rip, (ull)(steps[k].flags & FLAGS_SHOWN), steps[k].code);
}

static const struct snippet stepped[] = {
	S("plain", "\x90\x50\x58\x90"), S("syscall", "\xb8\x27\x00\x00\x00\x0f\x05\x90\x90"),
	S("int 0x80", "\xb8\x18\x00\x00\x00\xcd\x80\x90\x90"), S("int3", "\x90\xcc\x90\x90"), S("icebp", "\x90\xf1\x90\x90"),
	S("pushf", "\x9c\x58\x90"), S("mov ss", "\x8c\xd0\x8e\xd0\x90\x90\x90"), S("mov ds", "\x8c\xd8\x8e\xd8\x90\x90"),
	S("rep", "\x31\xc9\xb1\x03\x48\x8d\x7c\x24\x80\xf3\xaa\x90"), S("cpuid, rdtsc", "\x53\x31\xc0\x0f\xa2\x5b\x0f\x31\x90"),
	S("popf clears TF", "\x9c\x48\x81\x24\x24\xff\xfe\xff\xff\x9d\x90\x90"),
};

/* ---- segments ---- */

enum { LDT_CODE32, LDT_CODE16, LDT_DATA, LDT_DATA16, LDT_READ_ONLY, LDT_NOT_PRESENT, LDT_EXPAND_DOWN };

static void ldt_entry(unsigned n, unsigned limit, unsigned contents, unsigned read_only, unsigned wide, unsigned absent)
{
	struct user_desc d = { .entry_number = n, .base_addr = CODE_BASE, .limit = limit, .seg_32bit = wide, .contents = contents,
			       .read_exec_only = read_only, .seg_not_present = absent, .useable = 1 };
	if (syscall(SYS_modify_ldt, 1, &d, sizeof d))
		printf("modify_ldt %u: refused\n", n);
}

static void describe_selectors(void)
{
	printf("lar lsl verr verw\n");
	for (unsigned s = 0; s < 0x100; s++) {
		u64 lar = 0, lsl = 0;
		uint8_t a, l, r, w;
		__asm__("lar %4, %k0; setz %1; lsl %4, %k2; setz %3" : "+r"(lar), "=&qm"(a), "+r"(lsl), "=&qm"(l) : "r"(s) : "cc");
		__asm__("verr %w2; setz %0; verw %w2; setz %1" : "=&qm"(r), "=&qm"(w) : "r"(s) : "cc");
		if ((s < 0x78 || s >= 0x80) && (a || l || r || w)) /* 0x78: the CPU's number */
			printf("  %x: %llx %llx %d %d\n", s, (ull)lar, (ull)lsl, r, w);
	}
}

static void load_selectors(void)
{
	static const uint16_t sels[] = { 0, 1, 3, 5, 6, 7, 8, 0xf, 0x10, 0x17, 0x18, 0x1f, 0x23, 0x27, 0x2b, 0x2f, 0x30, 0x33, 0x37,
					 0x3f, 0x40, 0x43, 0x47, 0x7b, 0x7f, 0xfff0, 0xffff };
	base = 0;
	for (unsigned k = 0; k < sizeof sels / sizeof sels[0]; k++) {
		for (int r = 0; r < 4; r++) {
			uint16_t got = 0;
			printf("load %s %x\n", (const char *[]){ "ds", "es", "gs", "ss" }[r], sels[k]);
			fflush(stdout);
			if (!sigsetjmp(back, 1)) {
				switch (r) {
				case 0: __asm__ volatile("mov %1, %%ds; mov %%ds, %0" : "=r"(got) : "r"(sels[k])); break;
				case 1: __asm__ volatile("mov %1, %%es; mov %%es, %0" : "=r"(got) : "r"(sels[k])); break;
				case 2: __asm__ volatile("mov %1, %%gs; mov %%gs, %0" : "=r"(got) : "r"(sels[k])); break;
				default: __asm__ volatile("mov %1, %%ss; mov %%ss, %0; mov %2, %%ss" : "=&r"(got) : "r"(sels[k]), "r"(0x2b));
				}
				printf("  %x\n", got);
			}
			__asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%gs; mov %1, %%ss" ::"r"(0), "r"(0x2b));
		}
	}
}

static void iret_frames(bool with16)
{
	static const struct { u64 cs, ss, rip_or, flags; } f[] = {
		{ 0x33, 0x2b, 0, 0x202 },     { 0x33, 0x2b, 0, 0x10202 }, { 0x33, 0x2b, 0, 0x3202 },  { 0x33, 0x2b, 1ull << 63, 0x202 },
		{ 0x10, 0x18, 0, 0x202 },     { 0x33, 0, 0, 0x202 },      { 0x33, 3, 0, 0x202 },      { 0x33, 0x33, 0, 0x202 },
		{ 0x2b, 0x2b, 0, 0x202 },     { 0, 0x2b, 0, 0x202 },      { 0x33, 0x2b, 0, 0x4202 },  { 0x33, 0x2b, 0, 2 },
		{ 0x33, 0x2b, 0, 0x20202 },   { 0x33, 0x17, 0, 0x202 },   { 0xfff7, 0x2b, 0, 0x202 }, { 0x33, 0x1f, 0, 0x202 },
	};
	base = 0;
	for (unsigned k = 0; k < sizeof f / sizeof f[0] - !with16; k++) {
		static u64 flags;
		uint16_t ss;
		printf("iret cs %llx ss %llx rip | %llx flags %llx\n", (ull)f[k].cs, (ull)f[k].ss, (ull)f[k].rip_or, (ull)f[k].flags);
		fflush(stdout);
		if (!sigsetjmp(back, 1)) {
			__asm__ volatile("mov %%rsp, %%r12; push 8(%2); push %%r12; push 24(%2); push (%2); lea 1f(%%rip), %%rax; or 16(%2), %%rax; "
					 "push %%rax; iretq; 1: pushfq; pop %%r13; " CALM "mov %%r13, %0; mov %%ss, %1"
					 : "=m"(flags), "=&r"(ss) : "r"(&f[k]) : "rax", "r12", "r13", "memory", "cc");
			printf("  flags %llx ss %x\n", (ull)(flags & FLAGS_SHOWN), ss);
		}
		__asm__ volatile("mov %0, %%ss" ::"r"(0x2b));
	}
}

/* ---- 32-bit and 16-bit code: by a far call, back by RETF ---- */

static void run32(const struct snippet *s, uint16_t cs)
{
	static u64 flags;
	u64 rax = 0, rdx = 0;
	memcpy(code + 256, s->bytes, s->n);
	code[256 + s->n] = 0xcb;
	base = cs == 0x23 ? (u64)code + 256 : 256;
	struct { uint32_t off; uint16_t sel; } __attribute__((packed)) *far = (void *)(code + 2048);
	far->off = (uint32_t)base;
	far->sel = cs;
	printf("32 %s\n", s->name);
	fflush(stdout);
	if (!sigsetjmp(back, 1)) {
		__asm__ volatile("mov %%rsp, %%r12; mov %3, %%r13; mov %4, %%rsp; xor %%eax, %%eax; xor %%edx, %%edx; mov $7, %%ecx; "
				 "lcall *(%%r13); pushfq; pop %%r13; mov %%r12, %%rsp; " CALM "mov %%r13, %1"
				 : "=a"(rax), "=m"(flags), "=&d"(rdx) : "r"(far), "r"(code + 12288)
				 : "rbx", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
		printf("  rax %llx rdx %llx flags %llx\n", (ull)rax, (ull)rdx, (ull)flags & FLAGS_SHOWN);
	}
	__asm__ volatile("mov %0, %%ss" ::"r"(0x2b));
}

static const struct snippet compat[] = {
	S("nop", "\x90"), S("int3", "\xcc"), S("into, OF clear", "\xce"), S("into", "\xb0\x7f\x04\x01\xce"),
	S("bound, outside", "\x6a\x01\x6a\x00\x62\x0c\x24\x58\x58"), S("bound", "\x6a\x09\x6a\x00\x62\x0c\x24\x58\x58"),
	S("push es", "\x06\x58"), S("push cs", "\x0e\x58"), S("pusha", "\x60\x61"), S("aaa", "\xb0\x0b\x37"),
	S("arpl", "\xb8\x08\x00\x00\x00\xb9\x03\x00\x00\x00\x63\xc8"), S("int 0x80", "\xb8\x18\x00\x00\x00\xcd\x80\x31\xc0"),
	S("sysenter", "\x0f\x34"), S("ud2", "\x0f\x0b"), S("hlt", "\xf4"), S("lds", "\x6a\x2b\x6a\x05\xc5\x04\x24\x59\x59\x8c\xda"),
	S("les of a kernel segment", "\x6a\x08\x6a\x05\xc4\x04\x24"), S("call far", "\x9a\x08\x01\x00\x10\x23\x00\xcb\x40\xcb"),
	S("jmp far to 64-bit code", "\xea\x07\x01\x00\x10\x33\x00\x90"), S("iret", "\x9c\x0e\x68\x09\x01\x00\x10\xcf\x90\x40"),
	S("jmp far to the kernel", "\xea\x07\x01\x00\x10\x10\x00"), S("jmp far to data", "\xea\x07\x01\x00\x10\x2b\x00"),
	S("jmp far, not present", "\xea\x07\x01\x00\x10\x2f\x00"),
	S("popfd", "\x9c\x81\x0c\x24\x00\x40\x24\x00\x9d\x9c\x58\x25\x00\x40\x24\x00"), S("pushfw", "\x66\x9c\x66\x58"),
	S("gs of the LDT", "\xb8\x17\x00\x00\x00\x8e\xe8\x65\xa1\x00\x01\x00\x00\x31\xd2\x8e\xea"),
	S("gs, over the limit", "\xb8\x17\x00\x00\x00\x8e\xe8\x65\xa1\xfd\x3f\x00\x00"),
	S("gs, read-only", "\xb8\x27\x00\x00\x00\x8e\xe8\x65\xa3\x00\x00\x00\x00"),
	S("gs, expand-down", "\xb8\x37\x00\x00\x00\x8e\xe8\x65\xa1\x00\x08\x00\x00"),
	S("gs null", "\x31\xc0\x8e\xe8\x65\xa1\x00\x00\x00\x00"), S("cs store", "\x2e\xc7\x05\x00\x08\x00\x10\x01\x00\x00\x00"),
	S("ret beyond", "\x68\x00\x00\x00\xf0\xc3"),
	S("ss, over the limit", "\x8c\xd1\xb8\x17\x00\x00\x00\x89\xe2\x8e\xd0\xbc\x02\x40\x00\x00\x50\x8e\xd1\x89\xd4"),
};
static const struct snippet stack16[] = {
	S("push on a 16-bit stack", "\x8c\xd1\xb8\x1f\x00\x00\x00\x89\xe2\x8e\xd0\xbc\x00\x20\x34\x12\x50\x89\xe0\x8e\xd1\x89\xd4"),
	S("int 0x80 on a 16-bit stack", "\x89\xe2\xb8\x1f\x00\x00\x00\x8e\xd0\xbc\x00\x20\x34\x12\xb8\x18\x00\x00\x00\xcd\x80\x89\xe0"
					"\xb9\x2b\x00\x00\x00\x8e\xd1\x89\xd4\x0f\xb7\xc0"),
};
static const struct snippet ldt32[] = {
	S("LDT", "\x90\x40"), S("LDT int 0x80", "\xb8\x18\x00\x00\x00\xcd\x80\x31\xc0"), S("LDT, beyond the limit", "\xe9\x00\x10\x00\x00"),
};
static const struct snippet ldt16[] = { S("16-bit", "\x40\x66\x40\x90\x66"), S("16-bit ud2", "\x0f\x0b") };

/* ---- debug registers and steps through ptrace ---- */

static volatile u64 watched[4];
extern const char watch_a[];

static void debug_registers(void)
{
	int st = 0;
	pid_t pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		__asm__ volatile("nop; watch_a: nop; nop; movl $5, (%0); nop; mov (%0), %%eax; nop; movb $1, 9(%0); nop"
				 ::"r"(watched) : "rax", "memory");
		_exit(7);
	}
	waitpid(pid, &st, 0);
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL);
#define DR(n) offsetof(struct user, u_debugreg[n])
	ptrace(PTRACE_POKEUSER, pid, DR(0), watch_a);      /* execution */
	ptrace(PTRACE_POKEUSER, pid, DR(1), watched);      /* 4 bytes, read or write */
	ptrace(PTRACE_POKEUSER, pid, DR(2), watched + 1);  /* 4 bytes, write */
	ptrace(PTRACE_POKEUSER, pid, DR(7), 0x15 | 0xful << 20 | 0xdul << 24);
	printf("debug registers\n");
	for (;;) {
		struct user_regs_struct u;
		ptrace(PTRACE_CONT, pid, 0, 0);
		if (waitpid(pid, &st, 0) != pid || !WIFSTOPPED(st))
			break;
		ptrace(PTRACE_GETREGS, pid, 0, &u);
		long dr6 = ptrace(PTRACE_PEEKUSER, pid, DR(6), 0);
		printf("  a%+ld dr6 %lx flags %llx\n", (long)(u.rip - (u64)watch_a), dr6 & 0xe00f, u.eflags & (FL_TF | FL_RF));
		ptrace(PTRACE_POKEUSER, pid, DR(6), 0);
	}
	printf("  status %x\n", st);
}

static void ptrace_steps(void)
{
	int st = 0;
	u64 first = 0;
	pid_t pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		__asm__ volatile("mov $3, %%ecx; 1: dec %%ecx; jnz 1b; mov $39, %%eax; syscall; nop; xor %%eax, %%eax; mov $4, %%ecx; "
				 "lea -512(%%rsp), %%rdi; rep stosb; nop; int3; nop; pushfq; pop %%rax; nop"
				 ::: "rax", "rcx", "rdi", "r11", "memory");
		_exit(8);
	}
	waitpid(pid, &st, 0);
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL);
	printf("steps by ptrace\n");
	for (int n = 0; n < 1000; n++) {
		struct user_regs_struct u;
		if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0) || waitpid(pid, &st, 0) != pid || !WIFSTOPPED(st))
			break;
		ptrace(PTRACE_GETREGS, pid, 0, &u);
		long word = ptrace(PTRACE_PEEKTEXT, pid, u.rip, 0);
		if (!first && (word & 0xffffffffff) == 0x03b9)
			first = u.rip;
		if (first && u.rip - first < 64)
			printf("  +%llx flags %llx\n", (ull)(u.rip - first), u.eflags & (FL_TF | FL_RF));
	}
	printf("  status %x\n", st);
}

#define RUN_ALL(table, call)                                              \
	for (unsigned k = 0; k < sizeof(table) / sizeof((table)[0]); k++) \
	call

int main(int argc, char **argv)
{
	static char alternate[65536];
	const bool with16 = argc > 1 && !strcmp(argv[1], "16");
	alarm(60);
	const stack_t stack = { .ss_sp = alternate, .ss_size = sizeof alternate };
	sigaltstack(&stack, NULL);
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE };
	for (unsigned k = 0; k < sizeof signals / sizeof signals[0]; k++)
		on(signals[k], on_fault);
	code = mmap((void *)(u64)CODE_BASE, 16384, PROT_READ | PROT_WRITE | PROT_EXEC,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (code == MAP_FAILED)
		return 1;

	RUN_ALL(plain, run64(&plain[k]));
	RUN_ALL(stepped, run_stepped(&stepped[k]));
	ldt_entry(LDT_CODE32, 0xfff, 2, 0, 1, 0);
	ldt_entry(LDT_DATA, 0x3fff, 0, 0, 1, 0);
	ldt_entry(LDT_READ_ONLY, 0xfff, 0, 1, 1, 0);
	ldt_entry(LDT_NOT_PRESENT, 0xfff, 0, 0, 1, 1);
	ldt_entry(LDT_EXPAND_DOWN, 0xfff, 1, 0, 1, 0);
	if (with16) {
		ldt_entry(LDT_CODE16, 0xfff, 2, 0, 0, 0);
		ldt_entry(LDT_DATA16, 0x3fff, 0, 0, 0, 0);
	}
	describe_selectors();
	load_selectors();
	iret_frames(with16);
	RUN_ALL(compat, run32(&compat[k], 0x23));
	RUN_ALL(ldt32, run32(&ldt32[k], LDT_CODE32 << 3 | 7));
	if (with16) {
		RUN_ALL(stack16, run32(&stack16[k], 0x23));
		RUN_ALL(ldt16, run32(&ldt16[k], LDT_CODE16 << 3 | 7));
	}
	debug_registers();
	ptrace_steps();
	fflush(stdout);
	_exit(0);
}
