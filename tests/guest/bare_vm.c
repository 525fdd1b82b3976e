/* bare_vm PROGRAM.elf: runs a bare-metal test program on the interpreter back end alone: RAM, the debug console and the
 * exit port, no machine model.  What fails here is the engine's fault.  Exit status as isa-debug-exit gives it. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vcpu/vcpu.h"

#define RAM_SIZE (256 * MiB)

static struct vcpu *vcpu;
static const struct hv_ops *const ops = &hv_interpreter;

static _Noreturn void die(const char *what)
{
	struct kvm_regs r;
	fflush(stdout);
	fprintf(stderr, "bare_vm: %s", what);
	if (vcpu) {
		const char *why = ops->last_error(vcpu);
		ops->get_regs(vcpu, &r);
		fprintf(stderr, " (rip %#llx) %s\n", (unsigned long long)r.rip, why ? why : "");
		u64 rip[32];
		unsigned n = ops->last_rips(vcpu, rip, 32);
		for (unsigned i = 0; i < n; i++)
			fprintf(stderr, " %#llx", (unsigned long long)rip[i]);
	}
	fputc('\n', stderr);
	exit(125);
}

/* ELF32 or ELF64, PT_LOAD by physical address; the entry. */
static u64 load(const char *path, u8 *ram)
{
	static u8 file[16 * 1024 * 1024];
	FILE *f = fopen(path, "rb");
	size_t n = f ? fread(file, 1, sizeof(file), f) : 0;
	if (f)
		fclose(f);
	if (n < sizeof(Elf64_Ehdr) || memcmp(file, ELFMAG, 4))
		die("not an ELF file");
	bool is64 = file[EI_CLASS] == ELFCLASS64;
	const Elf64_Ehdr *e64 = (const void *)file;
	const Elf32_Ehdr *e32 = (const void *)file;
	unsigned count = is64 ? e64->e_phnum : e32->e_phnum;
	for (unsigned i = 0; i < count; i++) {
		Elf64_Phdr p;
		if (is64) {
			memcpy(&p, file + e64->e_phoff + i * sizeof(p), sizeof(p));
		} else {
			Elf32_Phdr q;
			memcpy(&q, file + e32->e_phoff + i * sizeof(q), sizeof(q));
			p = (Elf64_Phdr){ .p_type = q.p_type, .p_offset = q.p_offset, .p_paddr = q.p_paddr,
					  .p_filesz = q.p_filesz, .p_memsz = q.p_memsz };
		}
		if (p.p_type != PT_LOAD)
			continue;
		if (p.p_filesz > n || p.p_offset > n - p.p_filesz || p.p_memsz > RAM_SIZE || p.p_paddr > RAM_SIZE - p.p_memsz)
			die("a segment outside of the file or of RAM");
		memcpy(ram + p.p_paddr, file + p.p_offset, p.p_filesz);
	}
	return is64 ? e64->e_entry : e32->e_entry;
}

static struct kvm_segment flat(u16 selector, u8 type)
{
	return (struct kvm_segment){ .selector = selector, .limit = 0xffffffff, .type = type, .present = 1, .s = 1, .db = 1, .g = 1 };
}

int main(int argc, char **argv)
{
	if (argc != 2)
		die("usage: bare_vm PROGRAM.elf");
	struct hv_config cfg = { .max_vcpus = 1 };
	struct hv *hv;
	u8 *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED || ops->create(&cfg, &hv))
		die("cannot create the VM");
	struct kvm_userspace_memory_region region = { .memory_size = RAM_SIZE, .userspace_addr = (u64)ram };
	u64 entry = load(argv[1], ram);
	struct vcpu *v;
	if (ops->set_memory_region(hv, &region) || ops->vcpu_create(hv, 0, &v))
		die("cannot create the vCPU");
	vcpu = v;
	struct kvm_sregs s;
	ops->get_sregs(v, &s);
	s.cs = flat(0x08, 11);
	s.ds = s.es = s.fs = s.gs = s.ss = flat(0x10, 3);
	s.cr0 = 0x11;
	s.cr4 = s.efer = 0;
	struct kvm_regs r = { .rip = entry, .rax = 0x2badb002, .rbx = 0x9000, .rflags = 2 };
	if (ops->set_sregs(v, &s) || ops->set_regs(v, &r))
		die("cannot set the registers");
	struct kvm_run *run = ops->vcpu_shared(v);
	for (;;) {
		int e = ops->vcpu_run(v);
		if (e)
			die(strerror(-e));
		u8 *data = (u8 *)run + run->io.data_offset;
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_IN) {
				memset(data, 0xff, (size_t)run->io.size * run->io.count);
			} else if (run->io.port == 0xe9) {
				fwrite(data, 1, (size_t)run->io.size * run->io.count, stdout);
				if (*data == '\n')
					fflush(stdout);
			} else if (run->io.port == 0xf4) {
				fflush(stdout);
				if (getenv("BARE_STATS")) {
					u64 st[HV_STAT_COUNT];
					ops->stats(v, st);
					for (unsigned i = 0; i < HV_STAT_COUNT; i++)
						fprintf(stderr, "%s %llu\n", hv_stat_names[i], (unsigned long long)st[i]);
				}
				exit((int)((u32)*data << 1 | 1) & 0xff);
			}
			break;
		case KVM_EXIT_MMIO:
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
			break;
		case KVM_EXIT_IOAPIC_EOI: break;
		case KVM_EXIT_SHUTDOWN: die("shutdown");
		case UMBRA_EXIT_UNIMPLEMENTED: die("unimplemented");
		default: fprintf(stderr, "exit %u: ", run->exit_reason); die("unexpected exit");
		}
	}
}
