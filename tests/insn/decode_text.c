/* decode_text FILE...: every instruction of the executable sections of ELF files through the decoder; also of the
 * kernel that UMBRA_TEST_VMLINUX names.
 *
 * Zydis sweeps each section from its start, and anew from every function symbol (data between functions would
 * otherwise be read as code).  For each instruction the decoder must give the same length and a handler: nothing that
 * real code contains may be undefined or unimplemented. */
#include <elf.h>
#undef PF_W /* a page-fault bit here */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <Zydis/Zydis.h>

#include "cpu/block.h"
#include "cpu/cpuid.h"
#include "cpu/native_op.h"
#include "cpu/setup.h"

#define STUB_SIZE (1 * MiB)
#define MAX_SHOWN 20

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "%s:%d: assertion %s\n", file, line, expr);
	abort();
}

static struct ram ram;
static struct cpuid_table cpuid;
static struct cpu *cpu;
static ZydisDecoder zydis;
static unsigned shown;

static void make_cpu(void)
{
	int fd = memfd_create("stubs", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, STUB_SIZE))
		abort();
	void *rw = mmap(NULL, STUB_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *rx = mmap(NULL, STUB_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	void *scratch = mmap(NULL, NATIVE_SCRATCH_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cpuid_table_init(&cpuid, 1, 2000000);
	struct cpu_config cfg = { .bsp = true, .ram = &ram, .cpuid = &cpuid, .block_arena = 1 * MiB, .stub_rw = rw, .stub_rx = rx,
				  .stub_size = STUB_SIZE, .scratch = scratch, .tsc_khz = 2000000, .vendor_intel = cpuid.intel,
				  .maxphyaddr = cpuid.maxphyaddr };
	size_t size = cpu_memory_size(&cfg);
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rw == MAP_FAILED || rx == MAP_FAILED || scratch == MAP_FAILED || mem == MAP_FAILED)
		abort();
	cpu = cpu_init(mem, &cfg);
	cpu->mode_key = MODE_CODE64;
}

/* What legitimately decodes to "undefined". */
static bool is_ud(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1: case ZYDIS_MNEMONIC_UD2: return true;
	/* Virtualization, enclaves and the like: this CPU has none (the kernel contains KVM, SGX, TDX, SEV code). */
	case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMXON: case ZYDIS_MNEMONIC_VMXOFF:
	case ZYDIS_MNEMONIC_VMREAD: case ZYDIS_MNEMONIC_VMWRITE: case ZYDIS_MNEMONIC_VMLAUNCH: case ZYDIS_MNEMONIC_VMRESUME:
	case ZYDIS_MNEMONIC_VMPTRLD: case ZYDIS_MNEMONIC_VMPTRST: case ZYDIS_MNEMONIC_VMCLEAR: case ZYDIS_MNEMONIC_INVEPT:
	case ZYDIS_MNEMONIC_INVVPID: case ZYDIS_MNEMONIC_VMRUN: case ZYDIS_MNEMONIC_VMLOAD: case ZYDIS_MNEMONIC_VMSAVE:
	case ZYDIS_MNEMONIC_STGI: case ZYDIS_MNEMONIC_CLGI: case ZYDIS_MNEMONIC_SKINIT: case ZYDIS_MNEMONIC_INVLPGA:
	case ZYDIS_MNEMONIC_ENCLS: case ZYDIS_MNEMONIC_ENCLU: case ZYDIS_MNEMONIC_GETSEC: case ZYDIS_MNEMONIC_PCONFIG:
	case ZYDIS_MNEMONIC_RDPKRU: case ZYDIS_MNEMONIC_WRPKRU: case ZYDIS_MNEMONIC_MONITORX: case ZYDIS_MNEMONIC_MWAITX:
	case ZYDIS_MNEMONIC_UMONITOR: case ZYDIS_MNEMONIC_UMWAIT: case ZYDIS_MNEMONIC_TPAUSE: case ZYDIS_MNEMONIC_ENQCMD:
	case ZYDIS_MNEMONIC_ENQCMDS: case ZYDIS_MNEMONIC_TDCALL: case ZYDIS_MNEMONIC_PSMASH: case ZYDIS_MNEMONIC_PVALIDATE:
	case ZYDIS_MNEMONIC_RMPADJUST: case ZYDIS_MNEMONIC_RMPUPDATE: case ZYDIS_MNEMONIC_RSM: case ZYDIS_MNEMONIC_VMFUNC:
	case ZYDIS_MNEMONIC_INVLPGB: case ZYDIS_MNEMONIC_TLBSYNC: case ZYDIS_MNEMONIC_CLZERO: case ZYDIS_MNEMONIC_RDPRU:
	case ZYDIS_MNEMONIC_TILERELEASE: case ZYDIS_MNEMONIC_INCSSPD: case ZYDIS_MNEMONIC_INCSSPQ: case ZYDIS_MNEMONIC_SAVEPREVSSP: case ZYDIS_MNEMONIC_RSTORSSP:
	case ZYDIS_MNEMONIC_UIRET: case ZYDIS_MNEMONIC_SENDUIPI: case ZYDIS_MNEMONIC_WRSSD: case ZYDIS_MNEMONIC_WRSSQ:
		return true;
	default: return false;
	}
}

static u64 n_insns, n_bad;

static void complain(const char *file, u64 addr, const u8 *b, unsigned len, const char *what)
{
	n_bad++;
	if (shown++ >= MAX_SHOWN)
		return;
	char text[128];
	printf("%s: %llx: %s:", file, (unsigned long long)addr, what);
	for (unsigned i = 0; i < len; i++)
		printf(" %02x", b[i]);
	decode_text(cpu, b, len, addr, text, sizeof(text));
	printf("  %s\n", text);
}

/* From code[0] to the first byte that is no instruction, or end.  Returns bytes swept. */
static u64 sweep(const char *file, const u8 *code, u64 size, u64 addr)
{
	u64 at = 0;
	while (at < size) {
		ZydisDecodedInstruction z;
		unsigned avail = size - at < 15 ? (unsigned)(size - at) : 15;
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&zydis, ZYAN_NULL, code + at, avail, &z)))
			break;
		struct insn out;
		bool ends, alone;
		if (!native_space(cpu->native, 1))
			native_reset(cpu->native);
		int len = decode_insn(cpu, code + at, avail, 0, &out, &ends, &alone);
		n_insns++;
		if (len != z.length)
			complain(file, addr + at, code + at, z.length, "another length");
		else if (!decode_implemented(&out))
			complain(file, addr + at, code + at, z.length, "unimplemented");
		else if ((out.fn == op_ud || out.fn == native_ud) && !is_ud(z.mnemonic))
			complain(file, addr + at, code + at, z.length, "undefined");
		at += z.length;
	}
	return at;
}

static int by_value(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;
	return x < y ? -1 : x > y;
}

static bool one_file(const char *file)
{
	struct stat st;
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || (u64)st.st_size < sizeof(Elf64_Ehdr)) {
		perror(file);
		return false;
	}
	u64 size = (u64)st.st_size;
	const u8 *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	const Elf64_Ehdr *eh = (const void *)p;
	if (p == MAP_FAILED || memcmp(p, ELFMAG, 4) || eh->e_shoff > size ||
	    (u64)eh->e_shnum * sizeof(Elf64_Shdr) > size - eh->e_shoff) {
		fprintf(stderr, "%s: not an ELF file with sections\n", file);
		return false;
	}
	const Elf64_Shdr *sh = (const void *)(p + eh->e_shoff);
	u64 *start = NULL, n_start = 0, before = n_insns, bytes = 0, covered = 0;
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		if ((sh[i].sh_type != SHT_SYMTAB && sh[i].sh_type != SHT_DYNSYM) || sh[i].sh_offset > size ||
		    sh[i].sh_size > size - sh[i].sh_offset)
			continue;
		u64 n = sh[i].sh_size / sizeof(Elf64_Sym);
		const Elf64_Sym *sym = (const void *)(p + sh[i].sh_offset);
		start = realloc(start, (n_start + n) * sizeof(*start) + 1);
		for (u64 k = 0; start && k < n; k++)
			if ((sym[k].st_info & 15) == STT_FUNC || (sym[k].st_info & 15) == STT_GNU_IFUNC)
				start[n_start++] = sym[k].st_value;
	}
	if (n_start)
		qsort(start, n_start, sizeof(*start), by_value);
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		if (sh[i].sh_type != SHT_PROGBITS || !(sh[i].sh_flags & SHF_EXECINSTR) || sh[i].sh_offset > size ||
		    sh[i].sh_size > size - sh[i].sh_offset)
			continue;
		const u8 *code = p + sh[i].sh_offset;
		u64 at = 0, s = 0;
		bytes += sh[i].sh_size;
		while (at < sh[i].sh_size) {
			/* Up to the next function, so that a gap between functions costs no instruction of the next one. */
			while (s < n_start && start[s] <= sh[i].sh_addr + at)
				s++;
			u64 end = s < n_start && start[s] - sh[i].sh_addr < sh[i].sh_size ? start[s] - sh[i].sh_addr : sh[i].sh_size;
			u64 n = sweep(file, code + at, end - at, sh[i].sh_addr + at);
			covered += n;
			at = at + n == end || s < n_start ? end : at + n + 1;
		}
	}
	free(start);
	munmap((void *)(uintptr_t)p, size);
	printf("decode_text: %s: %llu instructions, %llu of %llu bytes\n", file, (unsigned long long)(n_insns - before),
	       (unsigned long long)covered, (unsigned long long)bytes);
	return true;
}

int main(int argc, char **argv)
{
	make_cpu();
	ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderEnableMode(&zydis, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(&zydis, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(&zydis, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
	const char *kernel = getenv("UMBRA_TEST_VMLINUX");
	if (argc < 2) {
		fprintf(stderr, "usage: decode_text ELF-FILE...\n");
		return 2;
	}
	unsigned n = 0;
	if (kernel && one_file(kernel))
		n++;
	for (int i = 1; i < argc; i++)
		if (access(argv[i], R_OK))
			printf("decode_text: %s: not here, skipped\n", argv[i]);
		else if (one_file(argv[i]))
			n++;
		else
			return 2;
	if (!n)
		return 77;
	printf("decode_text: %llu instructions, %llu bad\n", (unsigned long long)n_insns, (unsigned long long)n_bad);
	return n_bad ? 1 : 0;
}
