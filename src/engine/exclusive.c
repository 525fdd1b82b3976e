#include "engine/exclusive.h"

#include "engine/soft.h"

void soft_exclusive_init(struct exclusive *x)
{
	*x = (struct exclusive){ 0 };
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->changed, NULL);
}

void soft_exclusive_destroy(struct exclusive *x)
{
	pthread_mutex_destroy(&x->lock);
	pthread_cond_destroy(&x->changed);
}

/* Somebody else may have patched our translations: what this core has fetched already is stale until it serializes
 * (SDM 9.1.3, cross-modifying code).  IRET to the next instruction is the cheapest way that works in user mode. */
static void serialize(void)
{
	u64 sp, t;
	__asm__ volatile("mov %%rsp, %0\n\t"
			 "mov %%ss, %k1\n\t"
			 "sub $128, %%rsp\n\t" /* the red zone */
			 "push %1\n\t"
			 "push %0\n\t"
			 "pushfq\n\t"
			 "mov %%cs, %k1\n\t"
			 "push %1\n\t"
			 "lea 1f(%%rip), %1\n\t"
			 "push %1\n\t"
			 "iretq\n"
			 "1:"
			 : "=&r"(sp), "=&r"(t)::"memory", "cc");
}

static void inside(struct exclusive *x, struct vcpu *v)
{
	v->inside = true;
	x->inside++;
	/* Set only while a section is being prepared, hence not wanted any more. */
	__atomic_and_fetch(&v->cpu->attn, ~(u32)CPU_ATTN_STOP, __ATOMIC_SEQ_CST);
}

static void outside(struct exclusive *x, struct vcpu *v)
{
	v->inside = false;
	x->inside--;
	if (x->held)
		pthread_cond_broadcast(&x->changed);
}

void soft_enter(struct vcpu *v)
{
	struct exclusive *x = &v->hv->exclusive;
	pthread_mutex_lock(&x->lock);
	if (x->held) {
		x->entering++;
		while (x->held)
			pthread_cond_wait(&x->changed, &x->lock);
		if (!--x->entering)
			pthread_cond_broadcast(&x->changed);
	}
	inside(x, v);
	const bool stale = v->seen != x->sections;
	v->seen = x->sections;
	pthread_mutex_unlock(&x->lock);
	if (stale)
		serialize();
}

void soft_leave(struct vcpu *v)
{
	struct exclusive *x = &v->hv->exclusive;
	pthread_mutex_lock(&x->lock);
	outside(x, v);
	pthread_mutex_unlock(&x->lock);
}

void soft_pause(struct vcpu *v)
{
	soft_leave(v);
	soft_enter(v);
}

void soft_exclusive_begin(struct hv *hv, struct vcpu *self)
{
	struct exclusive *x = &hv->exclusive;
	pthread_mutex_lock(&x->lock);
	if (self)
		outside(x, self);
	while (x->held || x->entering)
		pthread_cond_wait(&x->changed, &x->lock);
	x->held = true;
	for (unsigned k = 0; k < hv->n_vcpus; k++)
		if (hv->vcpu[k]->inside)
			soft_attend(hv->vcpu[k], CPU_ATTN_STOP);
	while (x->inside)
		pthread_cond_wait(&x->changed, &x->lock);
	pthread_mutex_unlock(&x->lock);
}

void soft_exclusive_end(struct hv *hv, struct vcpu *self)
{
	struct exclusive *x = &hv->exclusive;
	bool stale = false;
	pthread_mutex_lock(&x->lock);
	x->held = false;
	if (self) {
		stale = self->seen != x->sections;
		inside(x, self);
		self->seen = x->sections + 1;
	}
	x->sections++;
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	if (stale)
		serialize();
}
