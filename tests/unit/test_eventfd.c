/* irqfd and ioeventfd of the software back end (engine/eventfd.h). */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/eventfd.h"

static int failures;
#define CHECK(x) ((x) ? (void)0 : (void)(failures++, fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x)))

static int sent_fd; /* the MSIs that were sent, as data words in a pipe */

static int send_msi(void *arg, const struct kvm_msi *msi)
{
	CHECK(*(int *)arg == 7);
	return (int)write(sent_fd, &msi->data, sizeof msi->data);
}

/* The next MSI's data, or 0 after 200 ms. */
static u32 next_msi(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	u32 data = 0;
	if (poll(&p, 1, 200) == 1 && read(fd, &data, sizeof data) != sizeof data)
		return 0;
	return data;
}

static void signal_fd(int fd)
{
	const u64 one = 1;
	CHECK(write(fd, &one, sizeof one) == sizeof one);
}

static u64 drain(int fd)
{
	u64 n = 0;
	return read(fd, &n, sizeof n) == sizeof n ? n : 0;
}

static void test_irqfd(void)
{
	struct eventfds e;
	int arg = 7, pipe_fd[2], fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(fd >= 0 && pipe(pipe_fd) == 0);
	sent_fd = pipe_fd[1];
	eventfds_init(&e, send_msi, &arg);
	struct kvm_irq_routing *r = calloc(1, sizeof *r + sizeof r->entries[0]);
	r->nr = 1;
	r->entries[0] = (struct kvm_irq_routing_entry){ .gsi = 5, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = 0x41 } };
	CHECK(eventfds_route(&e, r) == 0);
	const struct kvm_irqfd on = { .fd = (u32)fd, .gsi = 5 }, off = { .fd = (u32)fd, .gsi = 5, .flags = KVM_IRQFD_FLAG_DEASSIGN };
	CHECK(eventfds_irqfd(&e, &off) == -ENOENT);
	CHECK(eventfds_irqfd(&e, &on) == 0);
	CHECK(eventfds_irqfd(&e, &on) == -EBUSY);
	signal_fd(fd);
	CHECK(next_msi(pipe_fd[0]) == 0x41);
	CHECK(next_msi(pipe_fd[0]) == 0); /* once */
	r->entries[0].u.msi.data = 0x42; /* the new route counts at once */
	CHECK(eventfds_route(&e, r) == 0);
	signal_fd(fd);
	CHECK(next_msi(pipe_fd[0]) == 0x42);
	r->nr = 0;
	CHECK(eventfds_route(&e, r) == 0);
	signal_fd(fd);
	CHECK(next_msi(pipe_fd[0]) == 0); /* no route: dropped */
	r->nr = 1;
	r->entries[0].type = KVM_IRQ_ROUTING_IRQCHIP;
	CHECK(eventfds_route(&e, r) == -EINVAL);
	r->entries[0].type = KVM_IRQ_ROUTING_MSI;
	r->entries[0].gsi = EVENTFD_MAX_GSI;
	CHECK(eventfds_route(&e, r) == -EINVAL);
	CHECK(eventfds_irqfd(&e, &(struct kvm_irqfd){ .fd = (u32)fd, .gsi = EVENTFD_MAX_GSI }) == -EINVAL);
	CHECK(eventfds_irqfd(&e, &(struct kvm_irqfd){ .fd = 9999, .gsi = 1 }) == -EBADF);
	CHECK(eventfds_irqfd(&e, &off) == 0);
	eventfds_destroy(&e);
	free(r);
	close(fd);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

static void test_ioeventfd(void)
{
	struct eventfds e;
	int a = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), b = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	eventfds_init(&e, send_msi, NULL);
	CHECK(!eventfds_write(&e, false, 0x1000, 4, 1));
	const struct kvm_ioeventfd any = { .addr = 0x1000, .len = 0, .fd = a };
	const struct kvm_ioeventfd match = { .addr = 0x2000, .len = 2, .fd = b, .datamatch = 3, .flags = KVM_IOEVENTFD_FLAG_DATAMATCH };
	const struct kvm_ioeventfd port = { .addr = 0x2000, .len = 1, .fd = a, .flags = KVM_IOEVENTFD_FLAG_PIO };
	CHECK(eventfds_ioeventfd(&e, &any) == 0 && eventfds_ioeventfd(&e, &match) == 0 && eventfds_ioeventfd(&e, &port) == 0);
	CHECK(eventfds_ioeventfd(&e, &any) == -EEXIST);
	CHECK(eventfds_ioeventfd(&e, &(struct kvm_ioeventfd){ .addr = 1, .len = 3, .fd = a }) == -EINVAL);
	CHECK(eventfds_ioeventfd(&e, &(struct kvm_ioeventfd){ .addr = ~0ull, .len = 8, .fd = a }) == -EINVAL);
	CHECK(eventfds_write(&e, false, 0x1000, 4, 9) && drain(a) == 1);
	CHECK(eventfds_write(&e, false, 0x2000, 2, 0x50003) && drain(b) == 1);
	CHECK(!eventfds_write(&e, false, 0x2000, 2, 4) && !eventfds_write(&e, false, 0x2000, 4, 3) && drain(b) == 0);
	CHECK(eventfds_write(&e, true, 0x2000, 1, 0) && drain(a) == 1);
	CHECK(!eventfds_write(&e, true, 0x1000, 1, 0));
	struct kvm_ioeventfd off = match;
	off.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	CHECK(eventfds_ioeventfd(&e, &off) == 0 && eventfds_ioeventfd(&e, &off) == -ENOENT);
	CHECK(!eventfds_write(&e, false, 0x2000, 2, 3));
	eventfds_destroy(&e);
	close(a);
	close(b);
}

int main(void)
{
	test_irqfd();
	test_ioeventfd();
	printf("%d failures\n", failures);
	return failures != 0;
}
