/* The PC around the virtual CPUs: memory map, devices, boot of a kernel image.
 *
 * Order of calls in the `vm` process:
 *
 *   machine_create()   before the seccomp filter: maps RAM, creates the back
 *                      end, its vCPUs and one parked thread per vCPU, epoll,
 *                      eventfds and timerfds.  Reads no byte the guest or an
 *                      image file supplies.
 *   machine_load()     after the filter: parses the kernel image, writes RAM.
 *   machine_run()      event loop on the calling thread; vCPUs on theirs;
 *                      returns when the VM has ended, all vCPU threads gone.
 *   machine_destroy()
 *
 * System calls made after machine_create (besides the back end's own): read,
 * write, pread64, fstat, lseek, epoll_ctl, epoll_wait, timerfd_settime, futex,
 * clock_gettime, mmap and munmap and mprotect and brk of private anonymous memory
 * (malloc), and at thread end what glibc's pthread_exit and join do (madvise,
 * rt_sigprocmask, exit, munmap). */
#ifndef MACHINE_MACHINE_H
#define MACHINE_MACHINE_H

#include "core/base.h"
#include "core/ram.h"
#include "vcpu/vcpu.h"

#define MACHINE_MAX_CPUS 64
#define MACHINE_MIN_RAM (16 * MiB)  /* bare-metal test kernels; Linux names its own need at load */
#define MACHINE_MAX_RAM (64 * GiB)

struct loop;
struct machine;

/* How to start the kernel image. */
enum machine_boot {
	MACHINE_BOOT_AUTO, /* multiboot header, else Linux vmlinux, else PVH note */
	MACHINE_BOOT_LINUX,
	MACHINE_BOOT_PVH,
	MACHINE_BOOT_MULTIBOOT,
};

/* Everything the machine is made of.  Descriptors stay the caller's and must
 * outlive the machine; -1: not there.  Those of consoles and channel should be
 * O_NONBLOCK (a blocking one is written in pieces that fit a pipe). */
struct machine_config {
	const struct hv_ops *hv;
	struct hv_config hv_cfg; /* max_vcpus is set from ncpus */

	unsigned ncpus;
	int ram_fd;              /* sealed memfd of at least ram_size bytes */
	u64 ram_size;            /* bytes, multiple of 2 MiB */

	int kernel_fd;           /* what image_extract() wrote: an ELF, Linux relocations behind it */
	int initrd_fd;
	enum machine_boot boot;
	const char *cmdline;     /* may be NULL */
	bool kaslr;              /* Linux with relocations only; "nokaslr" in cmdline also turns it off */
	u8 seed[64];             /* 32 bytes place the kernel, 32 seed the guest's random pool */
	bool have_seed;          /* false: no KASLR, no seed handed over */

	int console_in_fd, console_out_fd; /* ttyS0 */
	int channel_fd;                    /* ttyS1: stream socket, both ways */
	int debugcon_fd;                   /* output of ports 0xe9 and 0x402 */
	bool debug_exit;                   /* ports 0xf4 and 0x501 end the VM */
	u64 det_time;                      /* deterministic mode: RTC at start, seconds since 1970; 0: 2026-01-01 */
};

/* All-absent defaults: descriptors -1, one CPU, KASLR on. */
void machine_config_init(struct machine_config *cfg);

enum machine_end {
	MACHINE_END_POWEROFF,
	MACHINE_END_RESET,
	MACHINE_END_PANIC,         /* the guest told pvpanic */
	MACHINE_END_TRIPLE_FAULT,
	MACHINE_END_UNIMPLEMENTED,
	MACHINE_END_DEBUG_EXIT,    /* code: the value written */
	MACHINE_END_INSN_LIMIT,    /* hv_cfg.stop_at_insns reached */
	MACHINE_END_STOPPED,       /* machine_stop() */
	MACHINE_END_INTERNAL,      /* back end or host failure */
};
extern const char *const machine_end_names[]; /* "power-off", "reset", … */

struct machine_result {
	enum machine_end end;
	u32 code;      /* DEBUG_EXIT: value; INTERNAL: errno */
	unsigned vcpu; /* the vCPU that caused it */
	char text[512]; /* one line: what and why, for the user */
};

/* 0, or -errno with one line of words in err. */
int machine_create(const struct machine_config *cfg, struct machine **out, char *err, size_t errlen);
int machine_load(struct machine *m, char *err, size_t errlen);

/* Once.  Returns 0 with *out filled, whatever the end was. */
int machine_run(struct machine *m, struct machine_result *out);

/* Makes machine_run return; any thread, async-signal-safe. */
void machine_stop(struct machine *m);
/* Presses the ACPI power button: the guest shuts itself down if it listens.  Any thread. */
void machine_power_button(struct machine *m);
void machine_destroy(struct machine *m);

/* Pauses nothing: exact after machine_run has returned, approximate before. */
struct machine_stats {
	u64 pio_unclaimed, mmio_unclaimed; /* accesses no device answered */
	u64 uart_tx[2], uart_rx[2];        /* bytes out of and into the guest */
	u64 uart_tx_stalls;                /* times a UART had no room towards the host */
	u64 irqs;                          /* interrupt messages sent by the IOAPIC */
	u64 hv[HV_STAT_COUNT];             /* summed over vCPUs */
};
void machine_stats(struct machine *m, struct machine_stats *out);

/* The loop machine_run() runs: the role adds its own descriptors before. */
struct loop *machine_loop(struct machine *m);

/* For the report file; valid from create to destroy. */
struct hv *machine_hv(struct machine *m);
struct vcpu *machine_vcpu(struct machine *m, unsigned i);
unsigned machine_ncpus(const struct machine *m);
const struct ram *machine_ram(const struct machine *m);

/* The last unclaimed port and MMIO accesses and device registers worth a report,
 * as text; returns its length as snprintf does. */
size_t machine_report(struct machine *m, char *buf, size_t len);

#endif
