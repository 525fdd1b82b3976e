/* Stacks: deep recursion grows it page by page, its end is a fault on the alternate stack, big frames skip pages. */
#include <setjmp.h>
#include <sys/resource.h>

#include "t.h"

static sigjmp_buf back;
static u8 *fault_at;
static volatile u8 *deepest;

static void fault(int s, siginfo_t *si, void *uc)
{
	fault_at = si->si_addr;
	siglongjmp(back, 1);
}

static __attribute__((noinline)) u64 recurse(u64 n)
{
	volatile u64 local[20];
	for (unsigned i = 0; i < 20; i++)
		local[i] = n + i;
	deepest = (volatile u8 *)local;
	u64 below = n ? recurse(n - 1) : 0;
	for (unsigned i = 0; i < 20; i++)
		if (local[i] != n + i)
			_exit(90);
	return below + 1;
}

static __attribute__((noinline)) u64 big_frame(u64 n)
{
	volatile u8 local[300000];
	local[0] = (u8)n; /* the far end first: below everything touched so far */
	local[299999] = (u8)(n + 1);
	return n ? big_frame(n - 1) + local[0] + local[299999] : 0;
}

int main(void)
{
	static u8 stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	struct rlimit rl = { 8 << 20, 8 << 20 };
	CHECK(1, !setrlimit(RLIMIT_STACK, &rl) && !sigaltstack(&ss, NULL));
	t_signal(SIGSEGV, fault, SA_ONSTACK);
	CHECK(2, recurse(20000) == 20001);
	CHECK(3, big_frame(15) == (15 * 16) + 15);
	u8 *top = __builtin_frame_address(0);
	if (!sigsetjmp(back, 1)) {
		recurse(1u << 30);
		CHECK(4, !"the stack has no end");
	}
	CHECK(5, top - fault_at > 7 << 20 && top - fault_at <= 8 << 20, "%td bytes", top - fault_at);
	CHECK(6, (u8 *)deepest - fault_at < 4096 && (u8 *)deepest - fault_at > -4096, "%p %p", (void *)deepest, (void *)fault_at);
	CHECK(7, recurse(20000) == 20001);
	return 0;
}
