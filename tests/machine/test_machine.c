/* The machine around a scripted engine: boot protocols, threads, exits, ends. */
#include <asm/bootparam.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../unit/check.h"
#include "fake_hv.h"
#include "machine/acpi.h"
#include "machine/machine.h"

static char err[512];
static struct machine_config cfg;
static struct machine *m;

static u8 *ram(u64 gpa) { return ram_ptr(machine_ram(m), GPA(gpa), 1); }
static u32 r32(u64 gpa) { u32 v; memcpy(&v, ram(gpa), 4); return v; }
static u64 r64(u64 gpa) { u64 v; memcpy(&v, ram(gpa), 8); return v; }

/* ---- made-up kernels ---- */

enum { TEXT = 0x1000, TEXT_SIZE = 0x3000, DATA = TEXT + TEXT_SIZE, DATA_SIZE = 0x1000 };

struct image {
	u8 b[65536];
	u32 n;
};

static int fd_of(const void *p, size_t n)
{
	int fd = memfd_create("file", 0);
	if (write(fd, p, n) != (ssize_t)n)
		abort();
	return fd;
}

/* 64-bit ELF: text at paddr, data with bss behind. */
static void elf64(struct image *im, u64 paddr, u64 vaddr, const char *banner)
{
	Elf64_Ehdr e = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 }, .e_type = ET_EXEC,
			 .e_machine = EM_X86_64, .e_version = 1, .e_entry = paddr + 0x100, .e_phoff = 64, .e_ehsize = 64,
			 .e_phentsize = 56, .e_phnum = 3, .e_shentsize = 64 };
	struct { Elf64_Nhdr h; char name[4]; u32 entry; } note = { { 4, 4, 18 }, "Xen", (u32)paddr + 0x200 };
	Elf64_Phdr p[3] = {
		{ PT_LOAD, 5, TEXT, vaddr, paddr, TEXT_SIZE, TEXT_SIZE, 0x1000 },
		{ PT_LOAD, 6, DATA, vaddr + TEXT_SIZE, paddr + TEXT_SIZE, DATA_SIZE, 0x9000, 0x1000 },
		{ PT_NOTE, 4, 0x400, 0, 0, sizeof note, sizeof note, 4 },
	};
	memset(im, 0, sizeof *im);
	im->n = DATA + DATA_SIZE;
	for (u32 i = TEXT; i < im->n; i++)
		im->b[i] = (u8)(i * 31);
	memcpy(im->b, &e, sizeof e);
	memcpy(im->b + 64, p, sizeof p);
	memcpy(im->b + 0x400, &note, sizeof note);
	if (banner)
		memcpy(im->b + TEXT + 0x800, banner, strlen(banner));
}

static void setup(u64 mib)
{
	memset(&fake, 0, sizeof fake);
	machine_config_init(&cfg);
	cfg.hv = &fake_hv;
	cfg.ram_size = mib * MiB;
	cfg.ram_fd = ram_memfd_create("ram", cfg.ram_size);
}

static int load(const struct image *im)
{
	cfg.kernel_fd = fd_of(im->b, im->n);
	CHECK_EQ(machine_create(&cfg, &m, err, sizeof err), 0);
	err[0] = 0;
	int r = machine_load(m, err, sizeof err);
	CHECK((r != 0) == (err[0] != 0));
	return r;
}

static void drop(void)
{
	machine_destroy(m);
	close(cfg.kernel_fd);
	close(cfg.initrd_fd);
	close(cfg.ram_fd);
	m = NULL;
}

static void test_linux(void)
{
	static struct image im;
	static u8 initrd[5000];
	memset(initrd, 0x77, sizeof initrd);
	elf64(&im, 16 * MiB, 0xffffffff81000000, "Linux version 6.1");
	setup(128);
	cfg.cmdline = "console=ttyS0 x";
	cfg.initrd_fd = fd_of(initrd, sizeof initrd);
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(fake.nregions, 1);
	CHECK_EQ(fake.regs.rip, 16 * MiB + 0x100);
	CHECK_EQ(fake.regs.rflags, 2);
	const struct boot_params *z = (void *)ram(fake.regs.rsi);
	CHECK_EQ(z->hdr.boot_flag, 0xaa55);
	CHECK_EQ(z->hdr.header, 0x53726448);
	CHECK_EQ(z->hdr.loadflags, LOADED_HIGH);
	CHECK_EQ(z->hdr.ramdisk_size, sizeof initrd);
	CHECK_EQ(z->hdr.ramdisk_image, 128 * MiB - 8192);
	CHECK(!memcmp(ram(z->hdr.ramdisk_image), initrd, sizeof initrd));
	CHECK(!strcmp((char *)ram(z->hdr.cmd_line_ptr), "console=ttyS0 x"));
	CHECK_EQ(z->acpi_rsdp_addr, ACPI_TABLES_BASE);
	CHECK_EQ(z->sentinel, 0);
	CHECK_EQ(z->e820_entries, 4);
	CHECK_EQ(z->e820_table[0].addr, 0);
	CHECK_EQ(z->e820_table[0].type, 1);
	CHECK_EQ(z->e820_table[3].addr, MiB);
	CHECK_EQ(z->e820_table[3].size, 127 * MiB);
	CHECK(!memcmp(ram(16 * MiB), im.b + TEXT, TEXT_SIZE + DATA_SIZE));
	CHECK_EQ(fake.sregs.cs.selector, 0x10);
	CHECK_EQ(fake.sregs.cs.l, 1);
	CHECK_EQ(fake.sregs.efer, 0x500);
	CHECK(fake.sregs.cr0 >> 31 && fake.sregs.cr0 & 1 && fake.sregs.cr4 == 0x20);
	/* identity: walk to the kernel, the last page below 4 GiB */
	for (u64 va = 16 * MiB; va < 4 * GiB; va += GiB - 2 * MiB) {
		u64 e = r64((r64((r64(fake.sregs.cr3) & ~4095ull) + 8 * (va >> 30)) & ~4095ull) + 8 * (va >> 21 & 511));
		CHECK_EQ(e, ALIGN_DOWN(va, 2 * MiB) | 0x83);
	}
	CHECK_EQ(ram(0xffff0)[0], 0xb0); /* reset vector */
	drop();

	setup(6144); /* 3 GiB below the hole, 3 above 4 GiB */
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(fake.nregions, 2);
	CHECK_EQ(fake.region[1].guest_phys_addr, 4 * GiB);
	z = (void *)ram(fake.regs.rsi);
	CHECK_EQ(z->e820_entries, 5);
	CHECK_EQ(z->e820_table[4].addr, 4 * GiB);
	CHECK_EQ(z->e820_table[4].size, 3 * GiB);
	drop();

	setup(16);
	CHECK(load(&im) < 0);
	CHECK(strstr(err, "at least 33 MiB"));
	drop();

	setup(128);
	static char line[3000];
	memset(line, 'a', sizeof line - 1);
	cfg.cmdline = line;
	CHECK(load(&im) < 0);
	CHECK(strstr(err, "limit is 2047"));
	drop();
}

/* Relocations: one place of each kind, randomized twice with different seeds. */
static void test_kaslr(void)
{
	static struct image im;
	u64 virts[2], phys[2];
	for (unsigned round = 0; round < 4; round++) {
		elf64(&im, 16 * MiB, 0xffffffff81000000, "Linux version 6.1");
		const u32 table[] = { 0, 0x81000010, 0, 0x81000020, 0, 0x81000030, 0x81000ffc };
		u64 v64 = 0xffffffff81000123;
		u32 v32 = 0x81000456, vinv = 0x7effffff;
		memcpy(im.b + TEXT + 0x10, &v64, 8);
		memcpy(im.b + TEXT + 0x20, &vinv, 4);
		memcpy(im.b + TEXT + 0x30, &v32, 4);
		memcpy(im.b + TEXT + 0xffc, &v32, 4);
		memcpy(im.b + im.n, table, sizeof table);
		im.n += sizeof table;
		if (round == 3) /* a place outside the image */
			memcpy(im.b + im.n - 4, "\0\0\0\x82", 4);
		setup(512);
		cfg.have_seed = true;
		memset(cfg.seed, round == 1 ? 0xe1 : 0x3a, sizeof cfg.seed);
		cfg.cmdline = round == 2 ? "quiet nokaslr" : "quiet nokaslr2";
		if (round == 3) {
			CHECK(load(&im) < 0);
			CHECK(strstr(err, "relocation"));
			drop();
			continue;
		}
		CHECK_EQ(load(&im), 0);
		const struct boot_params *z = (void *)ram(fake.regs.rsi);
		u64 base = fake.regs.rip - 0x100, delta = r64(base + 0x10) - v64;
		CHECK_EQ(!!(z->hdr.loadflags & KASLR_FLAG), round != 2);
		CHECK_EQ(r32(base + 0x30), (u32)(v32 + delta));
		CHECK_EQ(r32(base + 0xffc), (u32)(v32 + delta));
		CHECK_EQ(r32(base + 0x20), (u32)(vinv - delta));
		CHECK(base % (2 * MiB) == 0 && delta % (2 * MiB) == 0 && delta < GiB && base < 512 * MiB);
		CHECK(z->hdr.setup_data && r32(z->hdr.setup_data + 8) == 9 && r32(z->hdr.setup_data + 12) == 32);
		if (round < 2) {
			virts[round] = delta;
			phys[round] = base;
		} else {
			CHECK(delta == 0 && base == 16 * MiB);
		}
		drop();
	}
	CHECK(virts[0] != virts[1] && phys[0] != phys[1]);
}

static void test_pvh(void)
{
	static struct image im;
	elf64(&im, MiB, MiB, NULL);
	setup(16);
	cfg.initrd_fd = -1;
	cfg.cmdline = "hello";
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(fake.regs.rip, MiB + 0x200);
	CHECK_EQ(fake.sregs.cr0, 0x11);
	CHECK(fake.sregs.cs.db && !fake.sregs.cs.l && fake.sregs.cs.base == 0 && fake.sregs.cs.limit == 0xffffffff);
	u64 si = fake.regs.rbx;
	CHECK_EQ(r32(si), 0x336ec578);
	CHECK_EQ(r32(si + 4), 1);
	CHECK(!strcmp((char *)ram(r64(si + 24)), "hello"));
	CHECK_EQ(r64(si + 32), ACPI_TABLES_BASE);
	CHECK_EQ(r32(si + 48), 4);
	CHECK_EQ(r64(r64(si + 40) + 3 * 24), MiB);
	drop();
	memset(im.b + 0x400, 0, 32); /* no note */
	setup(16);
	CHECK(load(&im) < 0);
	drop();
	/* below 1 MiB, beyond RAM, cut off */
	elf64(&im, 0x8000, 0x8000, NULL);
	setup(16);
	CHECK(load(&im) < 0);
	drop();
	elf64(&im, 64 * MiB, 64 * MiB, NULL);
	setup(16);
	CHECK(load(&im) < 0);
	drop();
	elf64(&im, MiB, MiB, NULL);
	im.n -= 1000;
	setup(16);
	CHECK(load(&im) < 0);
	CHECK(strstr(err, "cut off"));
	drop();
}

static void test_multiboot(void)
{
	static struct image im;
	const u32 elf_hdr[3] = { 0x1badb002, 3, -(0x1badb002u + 3) };
	elf64(&im, MiB, MiB, NULL);
	memcpy(im.b + TEXT, elf_hdr, sizeof elf_hdr);
	setup(16);
	static u8 module[100] = { 9 };
	cfg.initrd_fd = fd_of(module, sizeof module);
	/* an initrd needs room to work in: 16 MiB are not enough */
	CHECK(load(&im) < 0);
	drop();
	setup(64);
	cfg.initrd_fd = fd_of(module, sizeof module);
	cfg.cmdline = "mb";
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(fake.regs.rax, 0x2badb002);
	CHECK_EQ(fake.regs.rip, MiB + 0x100);
	u64 mi = fake.regs.rbx;
	CHECK_EQ(r32(mi) & 0x4d, 0x4d);
	CHECK_EQ(r32(mi + 8), 63 * 1024);
	CHECK(!strcmp((char *)ram(r32(mi + 16)), "mb"));
	CHECK_EQ(r32(mi + 20), 1);
	CHECK_EQ(ram(r32(r32(mi + 24)))[0], 9);
	CHECK_EQ(r32(mi + 44), 4 * 24);
	CHECK_EQ(r32(r32(mi + 48)), 20);
	drop();

	/* address fields, not an ELF */
	const u32 flat[8] = { 0x1badb002, 0x10000, -(0x1badb002u + 0x10000), 2 * MiB + 0x20, 2 * MiB, 2 * MiB + 0x400,
			      2 * MiB + 0x9000, 2 * MiB + 0x40 };
	memset(&im, 0x5a, sizeof im);
	memcpy(im.b + 0x20, flat, sizeof flat);
	im.n = 0x1000;
	setup(16);
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(fake.regs.rip, 2 * MiB + 0x40);
	CHECK_EQ(ram(2 * MiB)[0x3ff], 0x5a);
	CHECK_EQ(ram(2 * MiB)[0x400], 0);
	drop();
	im.n = 0x300;
	setup(16);
	CHECK(load(&im) < 0);
	drop();
}

/* ---- running ---- */

#define OUT8(p, v) { KVM_EXIT_IO, true, 1, 1, p, v, 0, 0 }
#define IN8(p, v) { KVM_EXIT_IO, false, 1, 1, p, v, 0xff, 0 }
#define MMIO_W(a, v) { KVM_EXIT_MMIO, true, 4, 1, a, v, 0, 0 }
#define MMIO_R(a, v) { KVM_EXIT_MMIO, false, 4, 1, a, v, 0xffffffff, 0 }

static struct machine_result run(const struct fake_exit *script)
{
	static struct image im;
	struct machine_result res;
	elf64(&im, MiB, MiB, NULL);
	fake.script = script;
	CHECK_EQ(load(&im), 0);
	CHECK_EQ(machine_run(m, &res), 0);
	CHECK_EQ(fake.mismatches, 0);
	return res;
}

static void test_run(void)
{
	/* console out and in, an interrupt through the IOAPIC, power off: everything written arrives */
	static const struct fake_exit talk[] = {
		MMIO_W(0xfec00000, 0x18), MMIO_W(0xfec00010, 0x45), /* pin 4 */
		OUT8(0x3f8, 'h'), OUT8(0x3f8, 'i'), { KVM_EXIT_IO, true, 1, 3, 0x3f8, 0x0a2121, 0, 0 },
		OUT8(0x3fc, 0x0b), OUT8(0x3f9, 1),
		{ KVM_EXIT_IO, false, 1, 1, 0x3fd, 0x61, 0xff, 100000 }, IN8(0x3f8, 'k'), IN8(0x3fd, 0x60),
		IN8(0x9999, 0xff), MMIO_R(0xd0000000, 0xffffffff), OUT8(0x600, 0x34), { 0 },
	};
	int con[2], in[2];
	char got[16] = { 0 };
	setup(16);
	CHECK(!pipe(con) && !pipe(in));
	CHECK_EQ(write(in[1], "k", 1), 1);
	cfg.console_in_fd = in[0];
	cfg.console_out_fd = con[1];
	struct machine_result res = run(talk);
	CHECK_EQ(res.end, MACHINE_END_POWEROFF);
	CHECK_EQ(read(con[0], got, sizeof got), 5);
	CHECK(!strcmp(got, "hi!!\n"));
	CHECK_EQ(fake.msis, 1);
	CHECK_EQ(fake.msi.data, 0x45);
	struct machine_stats st;
	machine_stats(m, &st);
	CHECK(st.pio_unclaimed == 1 && st.mmio_unclaimed == 1 && st.uart_tx[0] == 5 && st.uart_rx[0] == 1);
	static char report[4096];
	CHECK(machine_report(m, report, sizeof report) < sizeof report && strstr(report, "0x9999"));
	CHECK(machine_report(m, report, 10) > 10);
	drop();

	static const struct { struct fake_exit e; enum machine_end end; u32 code; } ends[] = {
		{ OUT8(0x64, 0xfe), MACHINE_END_RESET, 0 },
		{ OUT8(0xcf9, 6), MACHINE_END_RESET, 0 },
		{ OUT8(0x505, 1), MACHINE_END_PANIC, 0 },
		{ OUT8(0xf4, 33), MACHINE_END_DEBUG_EXIT, 33 },
		{ { KVM_EXIT_SHUTDOWN, 0, 0, 0, 0, 0, 0, 0 }, MACHINE_END_TRIPLE_FAULT, 0 },
		{ { UMBRA_EXIT_UNIMPLEMENTED, 0, 0, 0, 0, 0, 0, 0 }, MACHINE_END_UNIMPLEMENTED, 0 },
		{ { KVM_EXIT_INTERNAL_ERROR, 0, 0, 0, 0, 0, 0, 0 }, MACHINE_END_INTERNAL, 0 },
		{ { KVM_EXIT_DEBUG, 0, 0, 0, 0, 0, 0, 0 }, MACHINE_END_INSN_LIMIT, 0 },
		{ { 77, 0, 0, 0, 0, 0, 0, 0 }, MACHINE_END_INTERNAL, 0 },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
		const struct fake_exit script[] = { ends[i].e, { 0 } };
		setup(16);
		cfg.debug_exit = true;
		res = run(script);
		CHECK_EQ(res.end, ends[i].end);
		CHECK_EQ(res.code, ends[i].code);
		CHECK(res.text[0]);
		drop();
	}

	/* a reader that never reads: the end still comes, in bounded time */
	static struct fake_exit flood[3002];
	for (unsigned i = 0; i < 3000; i++)
		flood[i] = (struct fake_exit){ KVM_EXIT_IO, true, 1, 100, 0x2f8, 0, 0, 0 };
	flood[3000] = (struct fake_exit)OUT8(0x600, 0x34);
	int sv[2];
	setup(16);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv));
	int small = 4096;
	setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	cfg.channel_fd = sv[0];
	for (unsigned i = 600; i < 3000; i++)
		flood[i].count = 1; /* most of it against a full ring would wait 100 ms each */
	flood[640] = flood[3000];
	res = run(flood);
	CHECK_EQ(res.end, MACHINE_END_POWEROFF);
	close(sv[1]);
	drop();

	/* stop from outside; never run; a power button nobody hears */
	static const struct fake_exit idle[] = { { 0 } };
	setup(16);
	fake.script = idle;
	static struct image im;
	elf64(&im, MiB, MiB, NULL);
	CHECK_EQ(load(&im), 0);
	machine_power_button(m);
	machine_stop(m);
	CHECK_EQ(machine_run(m, &res), 0);
	CHECK_EQ(res.end, MACHINE_END_STOPPED);
	drop();
	setup(16);
	CHECK_EQ(load(&im), 0);
	drop();
	setup(16);
	cfg.ncpus = 2; /* this engine has one */
	CHECK(machine_create(&cfg, &m, err, sizeof err) < 0 && strstr(err, "engine"));
	cfg.ncpus = 0;
	CHECK(machine_create(&cfg, &m, err, sizeof err) < 0);
	cfg.ncpus = 1;
	cfg.ram_size = MiB;
	CHECK(machine_create(&cfg, &m, err, sizeof err) < 0);
	close(cfg.ram_fd);
}

int main(void)
{
	test_linux();
	test_kaslr();
	test_pvh();
	test_multiboot();
	test_run();
	return check_result();
}
