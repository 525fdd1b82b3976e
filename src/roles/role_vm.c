/* The process that is the VM: the machine model and the engine, and with a
 * guest that broke out of them, the guest.
 *
 * Order: confine stage 1, take the configuration (from the supervisor, which
 * is trusted), build the machine and its threads, confine stage 2, and only
 * then look at the kernel image or run a guest instruction.
 *
 * A thread of its own waits for the supervisor's word or hang-up, so that the
 * machine's own loop needs to know nothing about processes. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "core/ram.h"
#include "vcpu/vcpu.h"
#include "core/report.h"
#include "core/trace.h"
#include "machine/machine.h"
#include "roles/roles.h"
#include "roles/vm_report.h"
#include "super/proto.h"
#include "super/super.h"

struct role_vm {
	struct proto_vm_config cfg;
	struct machine *machine;
	const struct hv_ops *hv;
	struct report *report;
	struct trace *trace;
};

static struct role_vm role_vm_state; /* one VM per process; the assertion hook has no other way to it */

/* An assertion failed, or a host signal came, on some thread: everything known goes into the shared report. */
static void role_vm_assert(void *arg, const char *what, const char *file, int line)
{
	struct role_vm *vm = arg;
	report_cause(vm->report, "internal error: %s at %s:%d", what, file, line);
	report_section(vm->report, "internal error");
	report_printf(vm->report, "%s at %s:%d\n", what, file, line);
	if (vm->machine)
		vm_report_machine(vm->report, vm->machine, vm->hv);
	report_done(vm->report);
}

static void role_vm_ask_config(struct role_vm *vm)
{
	static struct msg m;
	int r = msg_recv(ROLE_FD_CONTROL, &m, proto_to_vm, proto_to_vm_n, false);
	if (r == 0 || (r == 1 && m.type == PROTO_VM_STOP))
		_exit(0);
	if (r < 0 || m.type != PROTO_VM_CONFIG)
		role_fail(EPROTO, "cannot start the VM: no configuration came");
	memcpy(&vm->cfg, m.body, sizeof vm->cfg);
	vm->cfg.cmdline[sizeof vm->cfg.cmdline - 1] = 0;
}

static void role_vm_prepare(struct role_vm *vm)
{
	const struct proto_vm_config *c = &vm->cfg;
	char text[512] = "";
	int r = ram_memfd_check(VM_FD_RAM, c->memory);
	if (r)
		role_fail(-r, "cannot start the VM: its memory is not a sealed memory file of the right size");
	vm->report = report_map(VM_FD_REPORT);
	if (!vm->report)
		role_fail(EINVAL, "cannot start the VM: no report buffer");
	report_reset(vm->report);
	assert_set_hook(role_vm_assert, vm);
	if (c->has_trace) {
		vm->trace = trace_map(VM_FD_TRACE, c->trace_size);
		if (!vm->trace)
			role_fail(EINVAL, "cannot start the VM: the trace buffer is malformed");
		vm->trace->tsc_khz = c->tsc_khz;
	}
	const bool can_translate = hv_translator_usable();
	if (c->engine == SUPER_ENGINE_TRANSLATE && !can_translate)
		role_fail(ENOTSUP, "cannot translate: the host's CPU has no BMI2 or its kernel no FSGSBASE (use --engine interpret)");
	vm->hv = c->engine != SUPER_ENGINE_INTERPRET && can_translate ? &hv_translator : &hv_interpreter;

	struct machine_config mc;
	machine_config_init(&mc);
	mc.hv = vm->hv;
	mc.hv_cfg = (struct hv_config){
		.max_vcpus = c->cpus, .tsc_khz = c->tsc_khz, .deterministic = c->deterministic,
		.det_seed = c->det_seed, .stop_at_insns = c->stop_at_insns, .trace = vm->trace,
		.checkpoint_every = c->checkpoint_every, .checkpoint_from = c->checkpoint_from,
		.block_limit = c->block_limit, .translate_after = c->translate_after,
	};
	if (c->checkpoint_size) {
		void *p = mmap(NULL, c->checkpoint_size, PROT_READ | PROT_WRITE, MAP_SHARED, VM_FD_CHECKPOINTS, 0);
		if (p == MAP_FAILED)
			role_fail(errno, "cannot start the VM: no buffer of checkpoints");
		mc.hv_cfg.checkpoints = p;
	}
	mc.ncpus = c->cpus;
	mc.ram_fd = VM_FD_RAM;
	mc.ram_size = c->memory;
	mc.kernel_fd = VM_FD_KERNEL;
	mc.initrd_fd = c->has_initrd ? VM_FD_INITRD : -1;
	mc.cmdline = c->cmdline;
	memcpy(mc.seed, c->seed, sizeof mc.seed);
	mc.have_seed = true;
	mc.console_in_fd = mc.console_out_fd = VM_FD_CONSOLE;
	mc.debugcon_fd = VM_FD_CONSOLE;
	mc.channel_fd = VM_FD_AGENT;
	mc.debug_exit = c->exit_by_vm;
	r = machine_create(&mc, &vm->machine, text, sizeof text);
	if (r)
		role_fail(r, text);
}

static void *role_vm_control(void *arg)
{
	struct role_vm *vm = arg;
	static struct msg m;
	for (;;) {
		int r = msg_recv(ROLE_FD_CONTROL, &m, proto_to_vm, proto_to_vm_n, false);
		if (r <= 0)
			_exit(0); /* the supervisor is gone: nobody is interested any more */
		if (m.type == PROTO_VM_STOP)
			machine_stop(vm->machine);
	}
	return NULL;
}

static void role_vm_start_control(struct role_vm *vm)
{
	/* Signals belong to vCPU threads: kicks, and faults of natively executed instructions. */
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_t t;
	int r = pthread_create(&t, NULL, role_vm_control, vm);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		role_fail(r, "cannot start the VM: no thread");
}

static enum proto_ending role_vm_ending(enum machine_end end)
{
	switch (end) {
	case MACHINE_END_POWEROFF: return PROTO_END_POWEROFF;
	case MACHINE_END_RESET: return PROTO_END_RESET;
	case MACHINE_END_PANIC: return PROTO_END_PANIC;
	case MACHINE_END_TRIPLE_FAULT: return PROTO_END_TRIPLE_FAULT;
	case MACHINE_END_DEBUG_EXIT: return PROTO_END_EXIT_CODE;
	case MACHINE_END_INSN_LIMIT: return PROTO_END_INSN_LIMIT;
	case MACHINE_END_STOPPED: return PROTO_END_STOPPED;
	case MACHINE_END_UNIMPLEMENTED:
	case MACHINE_END_INTERNAL: break;
	}
	return PROTO_END_ENGINE;
}

static void role_vm_add_stat(struct proto_stats *st, const char *name, u64 value)
{
	if (st->n == ARRAY_SIZE(st->stat))
		return;
	snprintf(st->stat[st->n].name, sizeof st->stat[st->n].name, "%s", name);
	st->stat[st->n++].value = value;
}

static void role_vm_send_stats(struct role_vm *vm)
{
	struct machine_stats ms;
	machine_stats(vm->machine, &ms);
	struct proto_stats st = { 0 };
	for (unsigned i = 0; i < HV_STAT_COUNT; i++)
		role_vm_add_stat(&st, hv_stat_names[i], ms.hv[i]);
	role_vm_add_stat(&st, "pio_unclaimed", ms.pio_unclaimed);
	role_vm_add_stat(&st, "mmio_unclaimed", ms.mmio_unclaimed);
	role_vm_add_stat(&st, "console_bytes_out", ms.uart_tx[0]);
	role_vm_add_stat(&st, "console_bytes_in", ms.uart_rx[0]);
	role_vm_add_stat(&st, "agent_bytes_out", ms.uart_tx[1]);
	role_vm_add_stat(&st, "agent_bytes_in", ms.uart_rx[1]);
	role_vm_add_stat(&st, "uart_stalls", ms.uart_tx_stalls);
	role_vm_add_stat(&st, "irqs", ms.irqs);
	struct hv_unknown_msr msr[HV_UNKNOWN_MSRS];
	unsigned n_msr = vm->hv->unknown_msrs ? vm->hv->unknown_msrs(machine_vcpu(vm->machine, 0), msr, HV_UNKNOWN_MSRS) : 0;
	for (unsigned i = 0; i < n_msr; i++) {
		char name[32];
		snprintf(name, sizeof name, "unknown-msr-%#x", msr[i].index);
		role_vm_add_stat(&st, name, msr[i].count);
	}
	(void)msg_send(ROLE_FD_CONTROL, PROTO_VM_STATS, &st, sizeof st, NULL, 0);
}

static void role_vm_finish(struct role_vm *vm, const struct machine_result *res)
{
	struct proto_vm_ended x = { .ending = role_vm_ending(res->end), .code = res->code };
	if (x.ending == PROTO_END_EXIT_CODE)
		x.code = (res->code << 1 | 1) & 0xff; /* as QEMU's isa-debug-exit */
	snprintf(x.text, sizeof x.text, "%s", res->text[0] ? res->text : machine_end_names[res->end]);
	/* Also when it was told to stop or has reset itself: the supervisor decides whether that was expected. */
	if (x.ending != PROTO_END_POWEROFF && x.ending != PROTO_END_EXIT_CODE) {
		report_cause(vm->report, "%s", x.text);
		report_section(vm->report, "ending");
		report_printf(vm->report, "%s, vcpu %u: %s\n", machine_end_names[res->end], res->vcpu, x.text);
		vm_report_machine(vm->report, vm->machine, vm->hv);
		report_done(vm->report);
	}
	role_vm_send_stats(vm);
	(void)msg_send(ROLE_FD_CONTROL, PROTO_VM_ENDED, &x, sizeof x, NULL, 0);
}

int role_vm(const struct role *role)
{
	struct role_vm *vm = &role_vm_state;
	struct sandbox_layers layers;
	struct err e = { 0 };
	char text[512] = "";
	/* Output to a session that is gone is an error to see, not a death. */
	signal(SIGPIPE, SIG_IGN);
	if (sandbox_prepare(role->policy, &layers, &e))
		role_fail(EPERM, e.text);
	role_log_to_supervisor();
	role_vm_ask_config(vm);
	log_set_level((enum log_level)(LOG_WARN + (vm->cfg.verbose > 2 ? 2 : vm->cfg.verbose)));
	role_vm_prepare(vm);
	role_vm_start_control(vm);
	tzset(); /* glibc's gmtime_r() (the RTC's calendar) opens /etc/localtime at its first use */
	if (sandbox_enter(role->policy, &layers, &e))
		role_fail(EPERM, e.text);
	log_debug("confined: seccomp on all threads, landlock %d, namespaces %s", layers.landlock_abi,
		  layers.namespaces ? "yes" : "no");

	int r = machine_load(vm->machine, text, sizeof text);
	if (r)
		role_fail(r, text);
	r = msg_send(ROLE_FD_CONTROL, PROTO_VM_READY, NULL, 0, NULL, 0);
	if (r)
		return SUPER_STATUS_FAILED;
	struct machine_result res = { 0 };
	r = machine_run(vm->machine, &res);
	if (r)
		role_fail(r, "the VM could not be run");
	role_vm_finish(vm, &res);
	_exit(0); /* no destructors: the kernel frees faster, and nothing is left to flush */
}
