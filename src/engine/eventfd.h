/* irqfd and ioeventfd (Documentation/virt/kvm/api.rst 4.59, 4.75) for a back end without the kernel's. */
#ifndef ENGINE_EVENTFD_H
#define ENGINE_EVENTFD_H

#include <linux/kvm.h>
#include <pthread.h>

#include "core/base.h"

#define EVENTFD_MAX_GSI 256
#define EVENTFD_MAX_IRQFDS 256
#define EVENTFD_MAX_IOEVENTFDS 256

struct eventfds {
	pthread_mutex_t lock; /* everything below but the thread's own */
	struct { bool valid; struct kvm_msi msi; } route[EVENTFD_MAX_GSI];
	struct { int fd; u32 gsi; } irqfd[EVENTFD_MAX_IRQFDS]; /* fd < 0: free; descriptors are the caller's */
	struct kvm_ioeventfd ioeventfd[EVENTFD_MAX_IOEVENTFDS];
	u32 n_ioeventfds; /* also read without the lock, to skip the search */
	int epoll_fd, stop_fd;
	pthread_t thread;
	bool started;
	int (*send)(void *arg, const struct kvm_msi *msi);
	void *arg;
};

/* send delivers an MSI; called from the thread. */
void eventfds_init(struct eventfds *e, int (*send)(void *arg, const struct kvm_msi *msi), void *arg);
void eventfds_destroy(struct eventfds *e); /* joins the thread */

int eventfds_route(struct eventfds *e, const struct kvm_irq_routing *r);
int eventfds_irqfd(struct eventfds *e, const struct kvm_irqfd *f);
int eventfds_ioeventfd(struct eventfds *e, const struct kvm_ioeventfd *f);

/* A guest write: true when an ioeventfd took it. */
bool eventfds_write(struct eventfds *e, bool pio, u64 addr, u32 len, u64 data);

#endif
