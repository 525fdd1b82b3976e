#include "engine/eventfd.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

void eventfds_init(struct eventfds *e, int (*send)(void *arg, const struct kvm_msi *msi), void *arg)
{
	memset(e, 0, sizeof *e);
	pthread_mutex_init(&e->lock, NULL);
	for (unsigned k = 0; k < EVENTFD_MAX_IRQFDS; k++)
		e->irqfd[k].fd = -1;
	e->epoll_fd = e->stop_fd = -1;
	e->send = send;
	e->arg = arg;
}

/* Sends what entry k stands for, if it still does. */
static void fire(struct eventfds *e, unsigned k)
{
	struct kvm_msi msi;
	bool valid = false;
	u64 n;
	pthread_mutex_lock(&e->lock);
	/* Non-blocking: somebody else may have emptied it. */
	if (k < EVENTFD_MAX_IRQFDS && e->irqfd[k].fd >= 0 && read(e->irqfd[k].fd, &n, sizeof n) == sizeof n &&
	    e->route[e->irqfd[k].gsi].valid) {
		msi = e->route[e->irqfd[k].gsi].msi;
		valid = true;
	}
	pthread_mutex_unlock(&e->lock);
	if (valid)
		e->send(e->arg, &msi);
}

static void *irqfd_thread(void *arg)
{
	struct eventfds *e = arg;
	for (;;) {
		struct epoll_event ev[16];
		int n = epoll_wait(e->epoll_fd, ev, ARRAY_SIZE(ev), -1);
		for (int k = 0; k < n; k++) {
			if (ev[k].data.u32 == UINT32_MAX)
				return NULL;
			fire(e, ev[k].data.u32);
		}
		if (n < 0 && errno != EINTR)
			return NULL;
	}
}

static int start(struct eventfds *e)
{
	if (e->started)
		return 0;
	e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	e->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = UINT32_MAX };
	if (e->epoll_fd < 0 || e->stop_fd < 0 || epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->stop_fd, &ev) < 0)
		return -errno;
	int r = pthread_create(&e->thread, NULL, irqfd_thread, e);
	e->started = !r;
	return -r;
}

void eventfds_destroy(struct eventfds *e)
{
	if (e->started) {
		const u64 one = 1;
		while (write(e->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {
		}
		pthread_join(e->thread, NULL);
	}
	if (e->epoll_fd >= 0)
		close(e->epoll_fd);
	if (e->stop_fd >= 0)
		close(e->stop_fd);
	pthread_mutex_destroy(&e->lock);
}

int eventfds_route(struct eventfds *e, const struct kvm_irq_routing *r)
{
	if (r->flags)
		return -EINVAL;
	for (unsigned k = 0; k < r->nr; k++)
		if (r->entries[k].gsi >= EVENTFD_MAX_GSI || r->entries[k].type != KVM_IRQ_ROUTING_MSI)
			return -EINVAL;
	pthread_mutex_lock(&e->lock);
	memset(e->route, 0, sizeof e->route); /* the call replaces the table */
	for (unsigned k = 0; k < r->nr; k++) {
		const struct kvm_irq_routing_entry *x = &r->entries[k];
		e->route[x->gsi].valid = true;
		e->route[x->gsi].msi = (struct kvm_msi){ .address_lo = x->u.msi.address_lo, .address_hi = x->u.msi.address_hi,
							 .data = x->u.msi.data };
	}
	pthread_mutex_unlock(&e->lock);
	return 0;
}

int eventfds_irqfd(struct eventfds *e, const struct kvm_irqfd *f)
{
	if ((f->flags & ~(u32)KVM_IRQFD_FLAG_DEASSIGN) || f->gsi >= EVENTFD_MAX_GSI)
		return -EINVAL;
	pthread_mutex_lock(&e->lock);
	int r = start(e), found = -1, free = -1;
	for (unsigned k = 0; k < EVENTFD_MAX_IRQFDS; k++) {
		if (e->irqfd[k].fd < 0 && free < 0)
			free = (int)k;
		if (e->irqfd[k].fd == (int)f->fd)
			found = (int)k;
	}
	if (r) {
	} else if (f->flags & KVM_IRQFD_FLAG_DEASSIGN) {
		if (found < 0 || e->irqfd[found].gsi != f->gsi) {
			r = -ENOENT;
		} else {
			epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, (int)f->fd, NULL);
			e->irqfd[found].fd = -1;
		}
	} else if (found >= 0) {
		r = -EBUSY;
	} else if (free < 0) {
		r = -ENOSPC;
	} else {
		struct epoll_event ev = { .events = EPOLLIN, .data.u32 = (u32)free };
		e->irqfd[free].fd = (int)f->fd;
		e->irqfd[free].gsi = f->gsi;
		if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, (int)f->fd, &ev) < 0) {
			r = -errno;
			e->irqfd[free].fd = -1;
		}
	}
	pthread_mutex_unlock(&e->lock);
	return r;
}

static bool same(const struct kvm_ioeventfd *a, const struct kvm_ioeventfd *b)
{
	return a->addr == b->addr && a->len == b->len && ((a->flags ^ b->flags) & KVM_IOEVENTFD_FLAG_PIO) == 0 &&
	       ((a->flags ^ b->flags) & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0 &&
	       (!(a->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) || a->datamatch == b->datamatch);
}

int eventfds_ioeventfd(struct eventfds *e, const struct kvm_ioeventfd *f)
{
	const u32 known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
	if ((f->flags & ~known) || (f->len != 0 && f->len != 1 && f->len != 2 && f->len != 4 && f->len != 8) ||
	    f->addr + f->len < f->addr || (!f->len && (f->flags & KVM_IOEVENTFD_FLAG_DATAMATCH)))
		return -EINVAL;
	int r = 0, found = -1;
	pthread_mutex_lock(&e->lock);
	for (unsigned k = 0; k < e->n_ioeventfds; k++)
		if (same(&e->ioeventfd[k], f))
			found = (int)k;
	if (f->flags & KVM_IOEVENTFD_FLAG_DEASSIGN) {
		if (found < 0 || e->ioeventfd[found].fd != f->fd)
			r = -ENOENT;
		else
			e->ioeventfd[found] = e->ioeventfd[--e->n_ioeventfds];
	} else if (found >= 0) {
		r = -EEXIST;
	} else if (e->n_ioeventfds == EVENTFD_MAX_IOEVENTFDS) {
		r = -ENOSPC;
	} else {
		e->ioeventfd[e->n_ioeventfds] = *f;
		__atomic_store_n(&e->n_ioeventfds, e->n_ioeventfds + 1, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&e->lock);
	return r;
}

bool eventfds_write(struct eventfds *e, bool pio, u64 addr, u32 len, u64 data)
{
	if (likely(!__atomic_load_n(&e->n_ioeventfds, __ATOMIC_ACQUIRE)))
		return false;
	bool taken = false;
	pthread_mutex_lock(&e->lock);
	for (unsigned k = 0; k < e->n_ioeventfds && !taken; k++) {
		const struct kvm_ioeventfd *f = &e->ioeventfd[k];
		if (!!(f->flags & KVM_IOEVENTFD_FLAG_PIO) != pio || f->addr != addr || (f->len && f->len != len) ||
		    ((f->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) && f->datamatch != (len < 8 ? data & MASK(8 * len) : data)))
			continue;
		const u64 one = 1;
		/* Full (EAGAIN) means signalled already. */
		while (write(f->fd, &one, sizeof one) < 0 && errno == EINTR) {
		}
		taken = true;
	}
	pthread_mutex_unlock(&e->lock);
	return taken;
}
