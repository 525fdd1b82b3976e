/* Threads: one per vCPU, made by machine_create and parked until machine_run;
 * the loop thread is machine_run's caller.  Devices have a lock each; the order
 * is device, IOAPIC, back end.  The first reason to end wins; it stops the
 * vCPUs, then output still queued is written (bounded), then the loop stops. */
#include "machine/machine.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/loop.h"
#include "core/trace.h"
#include "machine/acpi.h"
#include "machine/boot.h"
#include "machine/bus.h"
#include "machine/ioapic.h"
#include "machine/pci.h"
#include "machine/platform.h"
#include "machine/rtc.h"
#include "machine/serial.h"

#define DRAIN_NS 2000000000ull          /* how long the reader of console and channel may take at the end */
#define DET_TIME_DEFAULT 1767225600ull  /* 2026-01-01 00:00 UTC */
#define LOOP_TRACE_RING (TRACE_MAX_RINGS - 1) /* of threads that are no vCPU */

enum { CONSOLE, CHANNEL, DEBUGCON, SERIALS };

/* Ports of a PC: X(index, name, port, gsi). */
static const struct {
	const char *name;
	u16 port;
	unsigned gsi;
} com[2] = { [CONSOLE] = { "ttyS0", 0x3f8, 4 }, [CHANNEL] = { "ttyS1", 0x2f8, 3 } };

const char *const machine_end_names[] = {
	[MACHINE_END_POWEROFF] = "power-off",
	[MACHINE_END_RESET] = "reset",
	[MACHINE_END_PANIC] = "guest panic",
	[MACHINE_END_TRIPLE_FAULT] = "triple fault",
	[MACHINE_END_UNIMPLEMENTED] = "unimplemented",
	[MACHINE_END_DEBUG_EXIT] = "debug exit",
	[MACHINE_END_INSN_LIMIT] = "instruction limit",
	[MACHINE_END_STOPPED] = "stopped",
	[MACHINE_END_INTERNAL] = "internal error",
};

struct machine_cpu {
	struct machine *m;
	unsigned id;
	struct vcpu *vcpu;
	pthread_t thread;
	bool made; /* thread exists */
};

struct machine {
	struct machine_config cfg;
	char *cmdline;
	const struct hv_ops *ops;
	struct hv *hv;
	struct ram ram;
	struct loop *loop;

	struct bus_space pio, mmio;
	struct ioapic ioapic;
	struct serial *serial[SERIALS]; /* DEBUGCON: only its transmitter is used */
	struct rtc rtc;
	struct platform platform;
	struct pci_bus pci;

	struct machine_cpu *cpu;
	unsigned cpus_made;

	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t go;
	bool released, quit;
	bool ended;
	struct machine_result result;

	atomic_bool stop_wanted, ending;
	struct loop_event end_event, stop_event;
	struct loop_timer drain_timer;
	bool draining, finished; /* loop thread only */
};

static _Thread_local unsigned trace_ring = LOOP_TRACE_RING;

static void end_now(struct machine *m, enum machine_end end, u32 code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

static void end_now(struct machine *m, enum machine_end end, u32 code, const char *fmt, ...)
{
	pthread_mutex_lock(&m->lock);
	if (!m->ended) {
		va_list ap;
		m->ended = true;
		m->result.end = end;
		m->result.code = code;
		m->result.vcpu = trace_ring < m->cfg.ncpus ? trace_ring : 0;
		va_start(ap, fmt);
		vsnprintf(m->result.text, sizeof(m->result.text), fmt, ap);
		va_end(ap);
		atomic_store(&m->ending, true);
	}
	pthread_mutex_unlock(&m->lock);
	loop_event_signal(&m->end_event);
}

/* ---- what devices call ---- */

static void device_end(void *ctx, enum machine_end end, u32 code, const char *text)
{
	end_now(ctx, end, code, "%s", text);
}

static void device_irq(void *ctx, unsigned gsi, bool asserted)
{
	struct machine *m = ctx;
	trace_emit(m->cfg.hv_cfg.trace, TRACE_IRQ_LINE, trace_ring, gsi, asserted, 0);
	ioapic_set_irq(&m->ioapic, gsi, asserted);
}

static void ioapic_send(void *ctx, const struct kvm_msi *msi)
{
	struct machine *m = ctx;
	m->ops->signal_msi(m->hv, msi);
}

static u64 rtc_now(void *ctx)
{
	struct machine *m = ctx;
	return m->ops->clock_ns(m->hv);
}

static void debug_out(void *ctx, u8 byte)
{
	struct machine *m = ctx;
	uart_put(&m->serial[DEBUGCON]->uart, byte);
}

static void uart_irq(void *serial, unsigned gsi, bool asserted)
{
	struct serial *s = serial;
	device_irq(s->idle_ctx, gsi, asserted);
}

/* ---- vCPU threads ---- */

static void handle_io(struct machine *m, struct kvm_run *run)
{
	u8 *data = (u8 *)run + run->io.data_offset;
	bool out = run->io.direction == KVM_EXIT_IO_OUT;
	for (u32 i = 0; i < run->io.count && !atomic_load_explicit(&m->ending, memory_order_relaxed); i++) {
		bus_access(&m->pio, run->io.port, run->io.size, out, data);
		for (unsigned k = 0; k < ARRAY_SIZE(com); k++)
			if ((run->io.port & ~7) == com[k].port)
				trace_emit(m->cfg.hv_cfg.trace, TRACE_UART, trace_ring, run->io.port, data[0], out);
		data += run->io.size;
	}
}

/* false: the thread is done. */
static bool handle_exit(struct machine *m, struct machine_cpu *c)
{
	struct kvm_run *run = m->ops->vcpu_shared(c->vcpu);
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		handle_io(m, run);
		return true;
	case KVM_EXIT_MMIO:
		bus_access(&m->mmio, run->mmio.phys_addr, run->mmio.len <= 8 ? run->mmio.len : 8, run->mmio.is_write,
			   run->mmio.data);
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		trace_emit(m->cfg.hv_cfg.trace, TRACE_EOI, trace_ring, run->eoi.vector, 0, 0);
		ioapic_eoi(&m->ioapic, run->eoi.vector);
		return true;
	case KVM_EXIT_INTR:
		return true;
	case KVM_EXIT_HLT:
		end_now(m, MACHINE_END_POWEROFF, 0, "it halted its CPU for good");
		return false;
	case KVM_EXIT_SHUTDOWN:
		end_now(m, MACHINE_END_TRIPLE_FAULT, 0, "%s", m->ops->last_error(c->vcpu));
		return false;
	case KVM_EXIT_DEBUG:
		end_now(m, MACHINE_END_INSN_LIMIT, 0, "the instruction limit was reached");
		return false;
	case UMBRA_EXIT_UNIMPLEMENTED:
		end_now(m, MACHINE_END_UNIMPLEMENTED, 0, "%s", m->ops->last_error(c->vcpu));
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		end_now(m, MACHINE_END_INTERNAL, 0, "%s", m->ops->last_error(c->vcpu));
		return false;
	default:
		end_now(m, MACHINE_END_INTERNAL, 0, "vCPU exit %u is not known", run->exit_reason);
		return false;
	}
}

static void *vcpu_main(void *arg)
{
	struct machine_cpu *c = arg;
	struct machine *m = c->m;
	trace_ring = c->id;

	pthread_mutex_lock(&m->lock);
	while (!m->released && !m->quit)
		pthread_cond_wait(&m->go, &m->lock);
	bool run = m->released && !m->quit;
	pthread_mutex_unlock(&m->lock);

	while (run && !atomic_load(&m->ending)) {
		int r = m->ops->vcpu_run(c->vcpu);
		if (r == -EINTR || r == -EAGAIN)
			continue;
		if (r < 0) {
			end_now(m, MACHINE_END_INTERNAL, (u32)-r, "the CPU cannot run: %s", strerror(-r));
			break;
		}
		run = handle_exit(m, c);
	}
	struct kvm_regs regs = { 0 };
	if (m->ops->get_regs)
		m->ops->get_regs(c->vcpu, &regs);
	trace_emit(m->cfg.hv_cfg.trace, TRACE_STOP, trace_ring, m->ops->vcpu_shared(c->vcpu)->exit_reason, regs.rip, 0);
	return NULL;
}

static void join_vcpus(struct machine *m)
{
	for (unsigned i = 0; i < SERIALS; i++)
		if (m->serial[i])
			uart_close(&m->serial[i]->uart);
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	pthread_cond_broadcast(&m->go);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->cpus_made; i++)
		if (m->cpu[i].made)
			m->ops->vcpu_kick(m->cpu[i].vcpu);
	for (unsigned i = 0; i < m->cpus_made; i++) {
		if (m->cpu[i].made)
			pthread_join(m->cpu[i].thread, NULL);
		m->cpu[i].made = false;
	}
}

/* ---- the end, on the loop thread ---- */

static void finish(struct machine *m)
{
	m->finished = true;
	loop_timer_cancel(&m->drain_timer);
	loop_stop(m->loop);
}

static void check_drained(struct machine *m)
{
	if (!m->draining || m->finished)
		return;
	for (unsigned i = 0; i < SERIALS; i++)
		if (m->serial[i] && !serial_drained(m->serial[i]))
			return;
	finish(m);
}

static void on_serial_idle(void *ctx) { check_drained(ctx); }

static void on_drain_timeout(void *ctx)
{
	struct machine *m = ctx;
	if (m->draining && !m->finished)
		finish(m);
}

static void on_end(void *ctx)
{
	struct machine *m = ctx;
	if (m->draining || !atomic_load(&m->ending))
		return;
	join_vcpus(m);
	m->draining = true;
	for (unsigned i = 0; i < SERIALS; i++)
		if (m->serial[i])
			serial_wake(m->serial[i]);
	loop_timer_set(&m->drain_timer, loop_now_ns() + DRAIN_NS);
	check_drained(m);
}

static void on_stop(void *ctx)
{
	struct machine *m = ctx;
	if (atomic_load(&m->stop_wanted))
		end_now(m, MACHINE_END_STOPPED, 0, "stopped");
}

void machine_stop(struct machine *m)
{
	atomic_store(&m->stop_wanted, true);
	loop_event_signal(&m->stop_event);
}

void machine_power_button(struct machine *m) { platform_power_button(&m->platform); }

/* ---- creation ---- */

__attribute__((format(printf, 4, 5))) static int fail(char *err, size_t errlen, int errnum, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(err, errlen, fmt, ap);
	va_end(ap);
	return -errnum;
}

void machine_config_init(struct machine_config *cfg)
{
	memset(cfg, 0, sizeof(*cfg));
	cfg->ncpus = 1;
	cfg->kaslr = true;
	cfg->ram_fd = cfg->kernel_fd = cfg->initrd_fd = -1;
	cfg->console_in_fd = cfg->console_out_fd = cfg->channel_fd = cfg->debugcon_fd = -1;
}

static int check_config(const struct machine_config *c, char *err, size_t errlen)
{
	if (c->ncpus < 1 || c->ncpus > MACHINE_MAX_CPUS)
		return fail(err, errlen, EINVAL, "%u CPUs are not possible: 1 to %u", c->ncpus, MACHINE_MAX_CPUS);
	if (c->ram_size < MACHINE_MIN_RAM || c->ram_size > MACHINE_MAX_RAM || c->ram_size % (2 * MiB))
		return fail(err, errlen, EINVAL, "memory of %" PRIu64 " bytes is not possible: %" PRIu64 " MiB to %" PRIu64
			    " GiB in steps of 2 MiB", c->ram_size, (u64)(MACHINE_MIN_RAM / MiB), (u64)(MACHINE_MAX_RAM / GiB));
	if (!c->hv || c->ram_fd < 0)
		return fail(err, errlen, EINVAL, "no execution engine or no memory was given");
	return 0;
}

static int map_ram(struct machine *m)
{
	u64 low = m->cfg.ram_size < BOOT_RAM_LOW_MAX ? m->cfg.ram_size : BOOT_RAM_LOW_MAX;
	/* One slot from 0: what lies behind the hole at 640 KiB is reserved in the
	 * memory map; the ACPI tables are put there. */
	int r = ram_add(&m->ram, 0, GPA(0), low, m->cfg.ram_fd, 0, false);
	if (!r && m->cfg.ram_size > low)
		r = ram_add(&m->ram, 1, GPA(4 * GiB), m->cfg.ram_size - low, m->cfg.ram_fd, low, false);
	for (unsigned i = 0; !r && i < m->ram.n; i++) {
		const struct ram_slot *s = &m->ram.slot[i];
		struct kvm_userspace_memory_region k = { .slot = s->id, .guest_phys_addr = s->gpa.v,
							 .memory_size = s->size, .userspace_addr = (u64)(uintptr_t)s->hva };
		r = m->ops->set_memory_region(m->hv, &k);
	}
	return r;
}

static int add_serial(struct machine *m, unsigned i, int in_fd, int out_fd)
{
	struct serial *s = m->serial[i] = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	uart_init(&s->uart, i < ARRAY_SIZE(com) ? com[i].gsi : 0, uart_irq, serial_wake, s);
	s->uart.lossless = m->cfg.hv_cfg.deterministic || i == DEBUGCON;
	s->idle = on_serial_idle;
	s->idle_ctx = m;
	int r = serial_init(s, m->loop, in_fd, out_fd);
	if (!r && i < ARRAY_SIZE(com))
		uart_add(&s->uart, &m->pio, com[i].port, com[i].name);
	return r;
}

static int add_devices(struct machine *m)
{
	const struct machine_config *c = &m->cfg;
	int r = add_serial(m, CONSOLE, c->console_in_fd, c->console_out_fd);
	if (!r)
		r = add_serial(m, CHANNEL, c->channel_fd, c->channel_fd);
	if (!r && c->debugcon_fd >= 0)
		r = add_serial(m, DEBUGCON, -1, c->debugcon_fd);
	if (r)
		return r;

	ioapic_init(&m->ioapic, ioapic_send, m);
	ioapic_add(&m->ioapic, &m->mmio);

	struct timespec now = { .tv_sec = (time_t)(c->det_time ? c->det_time : DET_TIME_DEFAULT) };
	if (!c->hv_cfg.deterministic)
		clock_gettime(CLOCK_REALTIME, &now);
	rtc_init(&m->rtc, m->loop, (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec, !c->hv_cfg.deterministic,
		 device_irq, rtc_now, m);
	rtc_add(&m->rtc, &m->pio);

	platform_init(&m->platform);
	m->platform.end = device_end;
	m->platform.set_irq = device_irq;
	m->platform.debug_out = c->debugcon_fd >= 0 ? debug_out : NULL;
	m->platform.ctx = m;
	platform_add(&m->platform, &m->pio, c->debug_exit);

	pci_init(&m->pci, &m->platform);
	pci_add_ports(&m->pci, &m->pio);
	return 0;
}

static int add_cpus(struct machine *m)
{
	m->cpu = calloc(m->cfg.ncpus, sizeof(*m->cpu));
	if (!m->cpu)
		return -ENOMEM;
	for (unsigned i = 0; i < m->cfg.ncpus; i++) {
		struct machine_cpu *c = &m->cpu[i];
		c->m = m;
		c->id = i;
		int r = m->ops->vcpu_create(m->hv, i, &c->vcpu);
		if (r)
			return r;
		m->cpus_made++;
	}
	/* Signals are for the thread that runs the loop, but those the CPU raises stay with their thread. */
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT };
	sigset_t all, old;
	sigfillset(&all);
	for (unsigned i = 0; i < ARRAY_SIZE(own); i++)
		sigdelset(&all, own[i]);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = 0;
	for (unsigned i = 0; i < m->cfg.ncpus && !r; i++) {
		r = -pthread_create(&m->cpu[i].thread, NULL, vcpu_main, &m->cpu[i]);
		m->cpu[i].made = r == 0;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

int machine_create(const struct machine_config *cfg, struct machine **out, char *err, size_t errlen)
{
	*out = NULL;
	int r = check_config(cfg, err, errlen);
	if (r)
		return r;
	struct machine *m = calloc(1, sizeof(*m));
	if (!m)
		return fail(err, errlen, ENOMEM, "no memory for the machine");
	m->cfg = *cfg;
	m->cfg.hv_cfg.max_vcpus = cfg->ncpus;
	m->cmdline = strdup(cfg->cmdline ? cfg->cmdline : "");
	m->cfg.cmdline = m->cmdline;
	m->ops = cfg->hv;
	m->pio.name = "port";
	m->mmio.name = "mmio";
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->go, NULL);
	signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error code, not a death */

	const char *what = "the event loop";
	r = m->cmdline ? loop_create(&m->loop) : -ENOMEM;
	if (!r)
		r = loop_event_init(&m->end_event, m->loop, on_end, m);
	if (!r)
		r = loop_event_init(&m->stop_event, m->loop, on_stop, m);
	if (!r) {
		loop_timer_init(&m->drain_timer, m->loop, on_drain_timeout, m);
		what = "the execution engine";
		r = m->ops->create(&m->cfg.hv_cfg, &m->hv);
	}
	if (!r) {
		what = "the VM's memory";
		r = map_ram(m);
	}
	if (!r) {
		what = "the devices";
		r = add_devices(m);
	}
	if (!r) {
		what = "the CPUs";
		r = add_cpus(m);
	}
	if (r) {
		fail(err, errlen, -r, "cannot set up %s: %s", what, strerror(-r));
		machine_destroy(m);
		return r;
	}
	*out = m;
	return 0;
}

int machine_load(struct machine *m, char *err, size_t errlen)
{
	static u8 tables[ACPI_TABLES_SIZE];
	struct boot b = { .cfg = &m->cfg, .ram = &m->ram, .bsp = m->cpu[0].vcpu, .err = err, .errlen = errlen };
	b.low_end = m->cfg.ram_size < BOOT_RAM_LOW_MAX ? m->cfg.ram_size : BOOT_RAM_LOW_MAX;
	b.high_size = m->cfg.ram_size - b.low_end;
	if (m->cfg.kernel_fd < 0)
		return fail(err, errlen, EINVAL, "no kernel was given");
	u32 n = acpi_build(tables, m->cfg.ncpus);
	ASSERT(ram_write(&m->ram, GPA(ACPI_TABLES_BASE), tables, n));
	boot_write_reset_vector(&b);
	return boot_image(&b);
}

int machine_run(struct machine *m, struct machine_result *out)
{
	pthread_mutex_lock(&m->lock);
	ASSERT(!m->released);
	m->released = true;
	pthread_cond_broadcast(&m->go);
	pthread_mutex_unlock(&m->lock);

	int r = loop_run(m->loop);
	if (r && !m->finished)
		end_now(m, MACHINE_END_INTERNAL, (u32)-r, "the event loop failed: %s", strerror(-r));
	else if (!m->finished)
		end_now(m, MACHINE_END_STOPPED, 0, "stopped"); /* somebody else stopped the loop */
	join_vcpus(m);
	*out = m->result;
	return 0;
}

void machine_destroy(struct machine *m)
{
	if (!m)
		return;
	atomic_store(&m->ending, true);
	if (m->cpu)
		join_vcpus(m);
	for (unsigned i = 0; i < m->cpus_made; i++)
		m->ops->vcpu_destroy(m->cpu[i].vcpu);
	for (unsigned i = 0; i < SERIALS; i++) {
		if (m->serial[i])
			serial_destroy(m->serial[i]);
		free(m->serial[i]);
	}
	if (m->hv)
		m->ops->destroy(m->hv);
	if (m->loop) {
		/* Creation may have failed half-way: what was not initialised has no loop. */
		if (m->end_event.loop)
			loop_event_destroy(&m->end_event);
		if (m->stop_event.loop)
			loop_event_destroy(&m->stop_event);
		if (m->rtc.timer.loop)
			loop_timer_cancel(&m->rtc.timer);
		loop_destroy(m->loop);
	}
	ram_destroy(&m->ram);
	free(m->cpu);
	free(m->cmdline);
	free(m);
}

/* ---- reports ---- */

struct loop *machine_loop(struct machine *m) { return m->loop; }
struct hv *machine_hv(struct machine *m) { return m->hv; }
struct vcpu *machine_vcpu(struct machine *m, unsigned i) { return i < m->cpus_made ? m->cpu[i].vcpu : NULL; }
unsigned machine_ncpus(const struct machine *m) { return m->cfg.ncpus; }
const struct ram *machine_ram(const struct machine *m) { return &m->ram; }

void machine_stats(struct machine *m, struct machine_stats *out)
{
	memset(out, 0, sizeof(*out));
	out->pio_unclaimed = atomic_load(&m->pio.unclaimed);
	out->mmio_unclaimed = atomic_load(&m->mmio.unclaimed);
	out->irqs = m->ioapic.sent;
	for (unsigned i = 0; i < 2; i++) {
		out->uart_tx[i] = m->serial[i]->uart.tx_bytes;
		out->uart_rx[i] = m->serial[i]->uart.rx_bytes;
		out->uart_tx_stalls += m->serial[i]->uart.tx_stalls;
	}
	for (unsigned i = 0; i < m->cpus_made; i++) {
		u64 v[HV_STAT_COUNT] = { 0 };
		m->ops->stats(m->cpu[i].vcpu, v);
		for (unsigned k = 0; k < HV_STAT_COUNT; k++)
			out->hv[k] += v[k];
	}
}

static size_t report_unclaimed(const struct bus_space *s, char *buf, size_t len)
{
	u64 n = atomic_load(&s->unclaimed), shown = n < BUS_UNCLAIMED_LOG ? n : BUS_UNCLAIMED_LOG;
	size_t at = (size_t)snprintf(buf, len, "%s accesses no device answered: %" PRIu64, s->name, n);
	for (u64 i = 0; i < shown; i++) {
		u64 v = atomic_load(&s->log[(n - 1 - i) % BUS_UNCLAIMED_LOG]);
		at += (size_t)snprintf(buf + (at < len ? at : len), at < len ? len - at : 0, "%s %s %#" PRIx64,
				       i ? "," : "; newest first:", v >> 63 ? "write" : "read", (u64)(v & MASK(63)));
	}
	at += (size_t)snprintf(buf + (at < len ? at : len), at < len ? len - at : 0, "\n");
	return at;
}

size_t machine_report(struct machine *m, char *buf, size_t len)
{
	size_t at = report_unclaimed(&m->pio, buf, len);
	at += report_unclaimed(&m->mmio, buf + (at < len ? at : len), at < len ? len - at : 0);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		if (!(m->ioapic.redir[i] & BIT(16)))
			at += (size_t)snprintf(buf + (at < len ? at : len), at < len ? len - at : 0,
					       "ioapic pin %u: %016" PRIx64 "%s\n", i, m->ioapic.redir[i],
					       m->ioapic.level[i] ? " asserted" : "");
	for (unsigned i = 0; i < 2; i++) {
		const struct uart *u = &m->serial[i]->uart;
		at += (size_t)snprintf(buf + (at < len ? at : len), at < len ? len - at : 0,
				       "%s: ier %02x mcr %02x lcr %02x fifo %u, %u bytes wait for the host, %u for the guest, "
				       "%" PRIu64 " lost\n", com[i].name, u->ier, u->mcr, u->lcr, u->fifo_n, byteq_used(&u->tx),
				       byteq_used(&u->rx), u->tx_lost);
	}
	return at;
}
