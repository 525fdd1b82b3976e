/* HLT: the vCPU thread sleeps in the kernel, on the futex that is c->attn. */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cpu/msr.h"
#include "engine/soft.h"

static long futex(volatile u32 *word, int op, u32 val, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op, val, timeout, NULL, 0);
}

void soft_wake(struct vcpu *v)
{
	if (__atomic_load_n(&v->sleeping, __ATOMIC_SEQ_CST))
		futex(&v->cpu->attn, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL);
}

static bool wakes(struct cpu *c)
{
	if (c->init_pending || c->sipi_pending || c->wait_sipi)
		return c->init_pending || c->sipi_pending; /* an NMI or interrupt does not wake who waits for a start-up */
	return c->nmi_pending || c->db_pending ||
	       ((c->sflags & FL_IF) && c->lapic && lapic_pending(c) >= 0);
}

void soft_halt(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	for (;;) {
		if (c->attn & CPU_ATTN_RETURN)
			return;
		__atomic_and_fetch(&c->attn, ~(u32)CPU_ATTN_EVENT, __ATOMIC_SEQ_CST);
		if (wakes(c))
			return;
		u64 due = c->lapic && !c->wait_sipi ? lapic_deadline(c) : ~0ull, now = cpu_tsc(c);
		if (due <= now) /* fires, but is masked: nothing to wait for in it; lapic_pending has taken note */
			due = ~0ull;
		if (c->deterministic && due != ~0ull) {
			c->det_tsc_skew += due - now;
			continue;
		}
		struct timespec ts, *timeout = NULL;
		if (due != ~0ull) {
			u64 ns = (u64)((u128)(due - now) * 1000000 / c->tsc_khz);
			if (ns > 3600ull * 1000000000)
				ns = 3600ull * 1000000000;
			ts = (struct timespec){ .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };
			timeout = &ts;
		}
		__atomic_store_n(&v->sleeping, true, __ATOMIC_SEQ_CST);
		soft_leave(v);
		if (!__atomic_load_n(&c->attn, __ATOMIC_SEQ_CST))
			futex(&c->attn, FUTEX_WAIT_PRIVATE, 0, timeout);
		soft_enter(v);
		__atomic_store_n(&v->sleeping, false, __ATOMIC_SEQ_CST);
	}
}
