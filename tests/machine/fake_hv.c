#include "fake_hv.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct fake fake;

struct vcpu {
	union {
		struct kvm_run run;
		u8 page[8192];
	};
	atomic_bool kicked;
	const struct fake_exit *pending;
};
static struct vcpu the_vcpu;

static int create(const struct hv_config *cfg, struct hv **out)
{
	memset(&the_vcpu, 0, sizeof the_vcpu);
	*out = (struct hv *)&fake;
	return cfg->max_vcpus == 1 ? 0 : -EOPNOTSUPP;
}
static void destroy(struct hv *hv) {}
static int set_memory_region(struct hv *hv, const struct kvm_userspace_memory_region *r)
{
	fake.region[fake.nregions++] = *r;
	return 0;
}
static int signal_msi(struct hv *hv, const struct kvm_msi *msi)
{
	fake.msi = *msi;
	fake.msis++;
	return 0;
}
static void invalidate(struct hv *hv, gpa_t gpa, u64 len) {}
static u64 clock_ns(struct hv *hv) { return 0; }
static int vcpu_create(struct hv *hv, unsigned id, struct vcpu **out)
{
	*out = &the_vcpu;
	return 0;
}
static void vcpu_destroy(struct vcpu *v) {}
static struct kvm_run *vcpu_shared(struct vcpu *v) { return &v->run; }

static int vcpu_run(struct vcpu *v)
{
	if (v->pending && !v->pending->write && v->pending->mask) {
		u64 got = 0;
		memcpy(&got, v->pending->reason == KVM_EXIT_MMIO ? v->run.mmio.data : v->page + 4096, v->pending->size);
		if ((got ^ v->pending->data) & v->pending->mask) {
			fake.mismatches++;
			printf("step %u: read of %#llx gave %#llx\n", fake.step, (unsigned long long)v->pending->addr,
			       (unsigned long long)got);
		}
	}
	v->pending = NULL;
	const struct fake_exit *e = &fake.script[fake.step];
	if (e->sleep_us)
		usleep(e->sleep_us);
	if (!e->reason) {
		while (!atomic_exchange(&v->kicked, false))
			usleep(500);
		return -EINTR;
	}
	fake.step++;
	v->pending = e;
	v->run.exit_reason = e->reason;
	if (e->reason == KVM_EXIT_IO) {
		v->run.io.direction = e->write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
		v->run.io.size = e->size;
		v->run.io.count = e->count ? e->count : 1;
		v->run.io.port = (u16)e->addr;
		v->run.io.data_offset = 4096;
		memcpy(v->page + 4096, &e->data, 8);
	} else if (e->reason == KVM_EXIT_MMIO) {
		v->run.mmio.phys_addr = e->addr;
		v->run.mmio.len = e->size;
		v->run.mmio.is_write = e->write;
		memcpy(v->run.mmio.data, &e->data, 8);
	}
	return 0;
}
static void vcpu_kick(struct vcpu *v) { atomic_store(&v->kicked, true); }
static int get_regs(struct vcpu *v, struct kvm_regs *r) { *r = fake.regs; return 0; }
static int set_regs(struct vcpu *v, const struct kvm_regs *r) { fake.regs = *r; return 0; }
static int get_sregs(struct vcpu *v, struct kvm_sregs *s) { *s = fake.sregs; return 0; }
static int set_sregs(struct vcpu *v, const struct kvm_sregs *s) { fake.sregs = *s; return 0; }
static u64 read_virt(struct vcpu *v, gva_t gva, void *buf, u64 n) { return 0; }
static const char *last_error(struct vcpu *v) { return "scripted"; }
static unsigned last_rips(struct vcpu *v, u64 *rip, unsigned max) { return 0; }
static void stats(struct vcpu *v, u64 out[HV_STAT_COUNT]) { out[0] = 1; }

const struct hv_ops fake_hv = {
	.name = "fake", .create = create, .destroy = destroy, .set_memory_region = set_memory_region,
	.signal_msi = signal_msi, .invalidate = invalidate, .clock_ns = clock_ns, .vcpu_create = vcpu_create,
	.vcpu_destroy = vcpu_destroy, .vcpu_shared = vcpu_shared, .vcpu_run = vcpu_run, .vcpu_kick = vcpu_kick,
	.get_regs = get_regs, .set_regs = set_regs, .get_sregs = get_sregs, .set_sregs = set_sregs,
	.read_virt = read_virt, .last_error = last_error, .last_rips = last_rips, .stats = stats,
};
