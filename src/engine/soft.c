/* The software back end of vcpu.h: runs struct cpu (src/cpu) on the calling
 * thread and turns its exits into KVM's. */
#include "engine/soft.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "core/log.h"
#include "core/trace.h"
#include "core/tsc.h"
#include "cpu/block.h"
#include "cpu/msr.h"
#include "cpu/pvclock.h"
#include "cpu/setup.h"
#include "cpu/trace.h"

#define BLOCK_ARENA (48 * MiB) /* touched only as far as used */
#define STUB_ARENA (8 * MiB)
#define IO_DATA_OFFSET PAGE_SIZE
#define RUN_SIZE (2 * PAGE_SIZE)

const char *const hv_stat_names[HV_STAT_COUNT] = {
	[HV_STAT_INSNS] = "instructions", [HV_STAT_BLOCKS] = "blocks", [HV_STAT_BLOCKS_DECODED] = "blocks-decoded",
	[HV_STAT_INSNS_DECODED] = "instructions-decoded", [HV_STAT_DECODE_FLUSHES] = "decode-flushes",
	[HV_STAT_TLB_MISSES] = "tlb-misses", [HV_STAT_TLB_FLUSHES] = "tlb-flushes", [HV_STAT_PAGE_FAULTS] = "page-faults",
	[HV_STAT_EXCEPTIONS] = "exceptions", [HV_STAT_INTERRUPTS] = "interrupts", [HV_STAT_SYSCALLS] = "system-calls",
	[HV_STAT_EXITS_IO] = "exits-io", [HV_STAT_EXITS_MMIO] = "exits-mmio", [HV_STAT_HALTS] = "halts",
	[HV_STAT_SMC] = "code-modified", [HV_STAT_NATIVE_STUBS] = "native-stubs", [HV_STAT_CR3_LOADS] = "cr3-loads",
	[HV_STAT_MSR_ACCESSES] = "msr-accesses", [HV_STAT_UNKNOWN_MSR] = "unknown-msr", [HV_STAT_SIGNALS] = "host-signals", [HV_STAT_EXCLUSIVE] = "exclusive-sections",
};

/* ---- the virtual machine ---- */

static u64 wall_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (u64)ts.tv_sec * 1000000000 + (u64)ts.tv_nsec;
}

static int soft_signal_msi(struct hv *hv, const struct kvm_msi *msi);
static int send_msi(void *hv, const struct kvm_msi *msi) { return soft_signal_msi(hv, msi); }

static void exclusive_cpu_begin(struct cpu *c)
{
	struct vcpu *v = c->owner;
	soft_exclusive_begin(v->hv, v);
}

static void exclusive_cpu_end(struct cpu *c)
{
	struct vcpu *v = c->owner;
	soft_exclusive_end(v->hv, v);
}

static void exclusive_cpu_yield(struct cpu *c)
{
	soft_leave(c->owner); /* nobody's exclusive section waits until we run again */
	sched_yield();
	soft_enter(c->owner);
}

static int create(const struct hv_config *cfg, bool translate, struct hv **out)
{
	if (cfg->max_vcpus < 1 || cfg->max_vcpus > SOFT_MAX_VCPUS)
		return -ENOTSUP;
	if (cfg->deterministic && cfg->max_vcpus > 1)
		return -ENOTSUP; /* nothing orders what two host threads do */
	struct hv *hv = calloc(1, sizeof *hv);
	if (!hv)
		return -ENOMEM;
	hv->cfg = *cfg;
	hv->translate = translate;
	if (cfg->deterministic) {
		hv->cfg.tsc_khz = 1000000; /* one virtual cycle per instruction, 1 GHz: the same on every host */
	} else if (!hv->cfg.tsc_khz) {
		struct tsc_info t;
		struct err e;
		int r = tsc_calibrate(NULL, &t, &e);
		if (r) {
			free(hv);
			return r;
		}
		hv->cfg.tsc_khz = t.khz;
	}
	hv->boot_tsc = cfg->deterministic ? 0 : __builtin_ia32_rdtsc();
	hv->boot_wall_ns = cfg->deterministic ? 1767225600ull * 1000000000 : wall_ns();
	cpuid_table_init(&hv->cpuid, cfg->max_vcpus, hv->cfg.tsc_khz);
	eventfds_init(&hv->eventfds, send_msi, hv);
	int r = soft_faults_install();
	if (r) {
		free(hv);
		return r;
	}
	soft_exclusive_init(&hv->exclusive);
	hv->group = (struct cpu_group){ .begin = exclusive_cpu_begin, .end = exclusive_cpu_end, .yield = exclusive_cpu_yield };
	*out = hv;
	return 0;
}

static int soft_create(const struct hv_config *cfg, struct hv **out) { return create(cfg, false, out); }
static int translate_create(const struct hv_config *cfg, struct hv **out) { return create(cfg, true, out); }

static void soft_destroy(struct hv *hv)
{
	if (!hv)
		return;
	eventfds_destroy(&hv->eventfds);
	ram_destroy(&hv->ram);
	soft_exclusive_destroy(&hv->exclusive);
	free(hv);
}

/* Slots are added before the vCPUs run; changing one afterwards is not something this machine does. */
static int soft_set_memory_region(struct hv *hv, const struct kvm_userspace_memory_region *r)
{
	if (r->flags & ~(u32)KVM_MEM_READONLY)
		return -EINVAL;
	if (!r->memory_size)
		return -EINVAL;
	return ram_add_mapped(&hv->ram, r->slot, GPA(r->guest_phys_addr), r->memory_size, (u8 *)r->userspace_addr,
			      r->flags & KVM_MEM_READONLY);
}

void soft_attend(struct vcpu *v, u32 why)
{
	__atomic_or_fetch(&v->cpu->attn, why, __ATOMIC_SEQ_CST);
	cpu_poke(v->cpu);
	soft_wake(v);
}

/* MSI address and data (SDM 11.11). */
static int soft_signal_msi(struct hv *hv, const struct kvm_msi *msi)
{
	const u32 dest = (msi->address_lo >> 12) & 0xff;
	const bool logical = msi->address_lo & BIT(2), level = msi->data & BIT(15);
	const u8 mode = (msi->data >> 8) & 7, vector = (u8)msi->data;
	int delivered = 0;
	if ((msi->address_lo & 0xfff00000) != 0xfee00000)
		return -EINVAL;
	for (unsigned k = 0; k < hv->n_vcpus; k++) {
		struct vcpu *v = hv->vcpu[k];
		if (!lapic_matches(v->cpu->lapic, dest, logical))
			continue;
		delivered++;
		if (lapic_deliver(v->cpu, mode, vector, level))
			soft_attend(v, CPU_ATTN_EVENT);
		if (mode == 1) /* lowest priority: one receiver */
			break;
	}
	trace_emit(hv->cfg.trace, TRACE_MSI, 0, msi->address_lo, msi->data, (u64)delivered);
	return delivered;
}

static int soft_set_gsi_routing(struct hv *hv, const struct kvm_irq_routing *r) { return eventfds_route(&hv->eventfds, r); }
static int soft_irqfd(struct hv *hv, const struct kvm_irqfd *f) { return eventfds_irqfd(&hv->eventfds, f); }
static int soft_ioeventfd(struct hv *hv, const struct kvm_ioeventfd *f) { return eventfds_ioeventfd(&hv->eventfds, f); }

static void soft_invalidate(struct hv *hv, gpa_t gpa, u64 len)
{
	if (!block_code_in(&hv->ram, gpa, len))
		return;
	soft_exclusive_begin(hv, NULL);
	block_forget(&hv->group, gpa, len);
	soft_exclusive_end(hv, NULL);
}

static u64 soft_clock_ns(struct hv *hv) { return hv->n_vcpus ? pvclock_ns(hv->vcpu[0]->cpu) : 0; }

/* ---- vCPUs ---- */

static void soft_vcpu_destroy(struct vcpu *v)
{
	if (!v)
		return;
	translate_detach(&v->translator);
	native_memory_destroy(&v->native);
	if (v->cpu_memory)
		munmap(v->cpu_memory, v->cpu_memory_size);
	if (v->run)
		munmap(v->run, RUN_SIZE);
	if (v->signal_stack)
		munmap(v->signal_stack, 64 * KiB);
	free(v);
}

static void *map_zeroed(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static int soft_vcpu_create(struct hv *hv, unsigned id, struct vcpu **out)
{
	if (id != hv->n_vcpus || id >= hv->cfg.max_vcpus)
		return -EINVAL;
	struct vcpu *v = calloc(1, sizeof *v);
	if (!v)
		return -ENOMEM;
	v->hv = hv;
	v->id = id;
	int r = native_memory_create(STUB_ARENA, &v->native);
	if (r) {
		soft_vcpu_destroy(v);
		return r;
	}
	struct cpu_config cc = { .id = id, .bsp = id == 0, .ram = &hv->ram, .cpuid = &hv->cpuid, .block_arena = BLOCK_ARENA,
		.block_limit = hv->cfg.block_limit,
		.stub_rw = v->native.rw, .stub_rx = v->native.rx, .stub_size = v->native.size, .scratch = v->native.scratch,
		.tsc_khz = hv->cfg.tsc_khz, .deterministic = hv->cfg.deterministic, .det_seed = hv->cfg.det_seed,
		.vendor_intel = hv->cpuid.intel, .maxphyaddr = hv->cpuid.maxphyaddr, .lapic = true };
	v->cpu_memory_size = cpu_memory_size(&cc);
	v->cpu_memory = map_zeroed(v->cpu_memory_size);
	v->run = map_zeroed(RUN_SIZE);
	v->signal_stack = map_zeroed(64 * KiB);
	if (!v->cpu_memory || !v->run || !v->signal_stack) {
		soft_vcpu_destroy(v);
		return -ENOMEM;
	}
	v->cpu = cpu_init(v->cpu_memory, &cc);
	v->cpu->owner = v;
	v->cpu->trace = hv->cfg.trace;
	v->cpu->trace_mask = hv->cfg.trace ? hv->cfg.trace->mask : 0;
	v->cpu->group = &hv->group;
	if (hv->translate && (r = translate_attach(&v->translator, v->cpu, (u16)hv->cfg.translate_after))) {
		soft_vcpu_destroy(v);
		return r;
	}
	v->cpu->boot_tsc = hv->boot_tsc;
	v->cpu->boot_wall_ns = hv->boot_wall_ns;
	if (hv->cfg.deterministic)
		v->cpu->stop_at = soft_next_stop(v);
	hv->group.cpu[hv->group.n++] = v->cpu;
	hv->vcpu[hv->n_vcpus++] = v;
	*out = v;
	return 0;
}

static struct kvm_run *soft_vcpu_shared(struct vcpu *v) { return v->run; }

/* Puts the caller's answer to the last exit where the instruction will find it. */
static void complete(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	const struct kvm_run *run = v->run;
	switch (v->complete) {
	case COMPLETE_NOTHING: break;
	case COMPLETE_IN:
		memcpy(&c->io.data, (const u8 *)run + IO_DATA_OFFSET, sizeof c->io.data);
		c->io.done = true;
		cpu_trace(c, TRACE_EXIT_IO, c->io.port, c->io.data & MASK(c->io.size * 8), c->io.size);
		break;
	case COMPLETE_MMIO: {
		struct mmio_fragment *f = &c->mmio.f[c->mmio.n];
		memcpy(&f->data, run->mmio.data, 8);
		cpu_trace(c, TRACE_EXIT_MMIO, f->gpa.v, f->data & MASK(f->len * 8), f->len);
		break;
	}
	}
	v->complete = COMPLETE_NOTHING;
}

static void exit_io(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	struct kvm_run *run = v->run;
	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = c->io.write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.size = c->io.size;
	run->io.port = c->io.port;
	run->io.count = 1;
	run->io.data_offset = IO_DATA_OFFSET;
	memset((u8 *)run + IO_DATA_OFFSET, 0, 8);
	if (c->io.write) {
		memcpy((u8 *)run + IO_DATA_OFFSET, &c->io.data, 4);
		cpu_trace(c, TRACE_EXIT_IO, c->io.port, c->io.data & MASK(c->io.size * 8), c->io.size | BIT(8));
	} else {
		v->complete = COMPLETE_IN; /* traced with the answer */
	}
}

static void exit_mmio(struct vcpu *v)
{
	const struct mmio_fragment *f = &v->cpu->mmio.f[v->cpu->mmio.n];
	struct kvm_run *run = v->run;
	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = f->gpa.v;
	run->mmio.len = f->len;
	run->mmio.is_write = f->write;
	memset(run->mmio.data, 0, 8);
	if (f->write) {
		memcpy(run->mmio.data, &f->data, 8);
		cpu_trace(v->cpu, TRACE_EXIT_MMIO, f->gpa.v, f->data & MASK(f->len * 8), f->len | BIT(8));
	}
	v->complete = f->write ? COMPLETE_NOTHING : COMPLETE_MMIO;
}

static void deliver_ipi(struct vcpu *from)
{
	const u64 icr = from->cpu->ipi_icr;
	const unsigned shorthand = (icr >> 18) & 3;
	const u8 mode = (icr >> 8) & 7;
	cpu_trace(from->cpu, TRACE_IPI, icr, 0, 0);
	for (unsigned k = 0; k < from->hv->n_vcpus; k++) {
		struct vcpu *v = from->hv->vcpu[k];
		if (v == from || (shorthand == 0 && !lapic_matches(v->cpu->lapic, (u32)(icr >> 32), icr & BIT(11))))
			continue;
		if (lapic_deliver(v->cpu, mode, (u8)icr, icr & BIT(15)))
			soft_attend(v, CPU_ATTN_EVENT);
		if (mode == 1)
			break;
	}
}

static int finish(struct vcpu *v, u32 reason)
{
	v->run->exit_reason = reason;
	cpu_trace(v->cpu, TRACE_EXIT_OTHER, reason, v->cpu->rip, 0);
	return 0;
}

/* One cpu_run and what follows.  1: go on; 0: the caller has an exit; -EINTR: kicked. */
static int run_once(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	struct kvm_run *run = v->run;
	enum cpu_exit e = cpu_run(c);
	switch (e) {
	case CPU_EXIT_BUDGET:
		if (c->insns >= c->stop_at) {
			bool last = v->hv->cfg.stop_at_insns && c->insns >= v->hv->cfg.stop_at_insns;
			soft_checkpoint(v, last);
			c->stop_at = soft_next_stop(v);
			if (last)
				return finish(v, KVM_EXIT_DEBUG);
			return 1;
		}
		if (c->attn & CPU_ATTN_STOP) {
			soft_pause(v);
			return 1;
		}
		__atomic_and_fetch(&c->attn, ~(u32)CPU_ATTN_RETURN, __ATOMIC_SEQ_CST);
		return -EINTR;
	case CPU_EXIT_IO:
		if (c->io.write && eventfds_write(&v->hv->eventfds, true, c->io.port, c->io.size, c->io.data))
			return 1;
		exit_io(v);
		return 0;
	case CPU_EXIT_MMIO: {
		const struct mmio_fragment *f = &c->mmio.f[c->mmio.n];
		if (f->write && eventfds_write(&v->hv->eventfds, false, f->gpa.v, f->len, f->data))
			return 1; /* answered: the instruction runs again and completes */
		exit_mmio(v);
		return 0;
	}
	case CPU_EXIT_HLT: {
		const u64 before = cpu_raw_tsc(c);
		cpu_trace(c, TRACE_HALT, c->rip, lapic_deadline(c), 0);
		if (v->hv->n_vcpus == 1 && !(c->sflags & FL_IF) && !c->nmi_pending && !c->db_pending)
			return finish(v, KVM_EXIT_HLT); /* an NMI could only come from another CPU: it is for ever */
		soft_halt(v);
		cpu_trace(c, TRACE_WAKE, c->rip, (u64)((u128)(cpu_raw_tsc(c) - before) * 1000000 / c->tsc_khz), 0);
		return 1;
	}
	case CPU_EXIT_IPI: deliver_ipi(v); return 1;
	case CPU_EXIT_EOI:
		run->eoi.vector = c->eoi_vector;
		return finish(v, KVM_EXIT_IOAPIC_EOI);
	case CPU_EXIT_SHUTDOWN:
		snprintf(v->error, sizeof v->error, "%s", c->why);
		return finish(v, KVM_EXIT_SHUTDOWN);
	case CPU_EXIT_UNIMPLEMENTED:
		snprintf(v->error, sizeof v->error, "%s", c->why);
		return finish(v, UMBRA_EXIT_UNIMPLEMENTED);
	case CPU_EXIT_NONE: break;
	}
	snprintf(v->error, sizeof v->error, "engine: unexpected exit %d at %#llx", e, (unsigned long long)c->rip);
	return finish(v, KVM_EXIT_INTERNAL_ERROR);
}

/* "It works on hardware" often starts with one of these: each is said once. */
static void log_unknown_msrs(struct vcpu *v)
{
	for (; v->msrs_logged < v->cpu->unknown_msr.n; v->msrs_logged++) {
		const struct cpu_unknown_msr *u = &v->cpu->unknown_msr.e[v->msrs_logged];
		const char *name = msr_name(u->index);
		if (u->write)
			log_info("WRMSR %#x%s%s of %#llx at %#llx: no such MSR here, #GP", u->index, name ? " " : "", name ? name : "",
				 (unsigned long long)u->value, (unsigned long long)u->rip);
		else
			log_info("RDMSR %#x%s%s at %#llx: no such MSR here, #GP", u->index, name ? " " : "", name ? name : "",
				 (unsigned long long)u->rip);
	}
}

static int soft_vcpu_run(struct vcpu *v)
{
	if (unlikely(!v->thread_ready)) {
		int r = soft_faults_thread(v);
		if (r)
			return r;
		if (v->hv->translate)
			translate_thread(v->cpu);
		v->thread_ready = true;
		cpu_trace(v->cpu, TRACE_START, cpu_raw_tsc(v->cpu), v->hv->cfg.tsc_khz, 0);
	}
	complete(v);
	soft_enter(v);
	int r;
	do {
		r = run_once(v);
		if (unlikely(v->msrs_logged != v->cpu->unknown_msr.n))
			log_unknown_msrs(v);
	} while (r > 0);
	soft_leave(v);
	return r;
}

static void soft_vcpu_kick(struct vcpu *v) { soft_attend(v, CPU_ATTN_RETURN); }

static u64 soft_read_virt(struct vcpu *v, gva_t gva, void *buf, u64 n)
{
	u64 done = 0;
	while (done < n) {
		gpa_t gpa;
		u64 at = gva.v + done, len = PAGE_SIZE - (at & ~PAGE_MASK);
		if (len > n - done)
			len = n - done;
		if (!mmu_peek(v->cpu, at, &gpa) || !ram_read(v->cpu->ram, gpa, (u8 *)buf + done, len))
			break;
		done += len;
	}
	return done;
}

static const char *soft_last_error(struct vcpu *v) { return v->error; }

static unsigned soft_last_rips(struct vcpu *v, u64 *rip, unsigned max)
{
	const struct cpu *c = v->cpu;
	unsigned n = 0;
	for (; n < max && n < CPU_RIP_RING && n < c->rips.head; n++)
		rip[n] = c->rips.ring[(c->rips.head - 1 - n) % CPU_RIP_RING];
	return n;
}

static unsigned soft_unknown_msrs(struct vcpu *v, struct hv_unknown_msr *out, unsigned max)
{
	const struct cpu *c = v->cpu;
	unsigned n = 0;
	for (; n < max && n < c->unknown_msr.n; n++) {
		const struct cpu_unknown_msr *u = &c->unknown_msr.e[n];
		out[n] = (struct hv_unknown_msr){ .index = u->index, .write = u->write, .value = u->value, .rip = u->rip,
						  .count = u->count, .name = msr_name(u->index) };
	}
	return n;
}

static void soft_stats(struct vcpu *v, u64 out[HV_STAT_COUNT])
{
	const struct cpu *c = v->cpu;
	const struct cpu_stats *s = &c->stats;
	const u64 values[HV_STAT_COUNT] = {
		[HV_STAT_INSNS] = c->insns, [HV_STAT_BLOCKS] = s->blocks, [HV_STAT_BLOCKS_DECODED] = s->blocks_decoded,
		[HV_STAT_INSNS_DECODED] = s->insns_decoded, [HV_STAT_DECODE_FLUSHES] = s->decode_flushes,
		[HV_STAT_TLB_MISSES] = s->tlb_misses, [HV_STAT_TLB_FLUSHES] = s->tlb_flushes,
		[HV_STAT_PAGE_FAULTS] = s->page_faults, [HV_STAT_EXCEPTIONS] = s->exceptions,
		[HV_STAT_INTERRUPTS] = s->interrupts, [HV_STAT_SYSCALLS] = s->syscalls, [HV_STAT_EXITS_IO] = s->exits_io,
		[HV_STAT_EXITS_MMIO] = s->exits_mmio, [HV_STAT_HALTS] = s->halts, [HV_STAT_SMC] = s->smc,
		[HV_STAT_NATIVE_STUBS] = s->native_stubs, [HV_STAT_CR3_LOADS] = s->cr3_loads,
		[HV_STAT_MSR_ACCESSES] = s->msr_accesses, [HV_STAT_UNKNOWN_MSR] = s->unknown_msr, [HV_STAT_SIGNALS] = s->signals,
		[HV_STAT_EXCLUSIVE] = s->exclusive,
	};
	memcpy(out, values, sizeof values);
}

#define SOFT_OPS                                                                                                       \
	.destroy = soft_destroy,                                                                                       \
	.set_memory_region = soft_set_memory_region,                                                                   \
	.signal_msi = soft_signal_msi,                                                                                 \
	.set_gsi_routing = soft_set_gsi_routing,                                                                       \
	.irqfd = soft_irqfd,                                                                                           \
	.ioeventfd = soft_ioeventfd,                                                                                   \
	.invalidate = soft_invalidate,                                                                                 \
	.clock_ns = soft_clock_ns,                                                                                     \
	.vcpu_create = soft_vcpu_create,                                                                               \
	.vcpu_destroy = soft_vcpu_destroy,                                                                             \
	.vcpu_shared = soft_vcpu_shared,                                                                               \
	.vcpu_run = soft_vcpu_run,                                                                                     \
	.vcpu_kick = soft_vcpu_kick,                                                                                   \
	.get_regs = soft_get_regs,                                                                                     \
	.set_regs = soft_set_regs,                                                                                     \
	.get_sregs = soft_get_sregs,                                                                                   \
	.set_sregs = soft_set_sregs,                                                                                   \
	.read_virt = soft_read_virt,                                                                                   \
	.last_error = soft_last_error,                                                                                 \
	.last_rips = soft_last_rips,                                                                                   \
	.unknown_msrs = soft_unknown_msrs,                                                                             \
	.stats = soft_stats,

bool hv_translator_usable(void) { return translate_usable(); }

const struct hv_ops hv_interpreter = { .name = "interpret", .create = soft_create, SOFT_OPS };
const struct hv_ops hv_translator = { .name = "translate", .create = translate_create, SOFT_OPS };
