/* Host signals caused by guest instructions that run natively (cpu/native.h). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "core/log.h"
#include "cpu/native.h"
#include "cpu/trace.h"
#include "engine/soft.h"

#define SIGNAL_STACK_SIZE (64 * KiB)

static __thread struct vcpu *current;

static void on_fault(int sig, siginfo_t *info, void *ucontext)
{
	ucontext_t *uc = ucontext;
	if (current && native_fault(current->cpu, sig, (int)uc->uc_mcontext.gregs[REG_TRAPNO],
				    (u64)uc->uc_mcontext.gregs[REG_ERR], uc)) {
		current->cpu->stats.signals++;
		cpu_trace(current->cpu, TRACE_SIGNAL, (u64)sig, (u64)uc->uc_mcontext.gregs[REG_RIP], current->cpu->rip);
		return;
	}
	u64 pc = (u64)uc->uc_mcontext.gregs[REG_RIP];
	if (current && translate_fault(current->cpu, &pc)) {
		uc->uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
		current->cpu->stats.signals++;
		return;
	}
	/* A bug of ours: report it, then let the signal end the process where it happened.  (SIGILL is also how
	 * assert_failed() ends, which has reported already.) */
	char what[96];
	snprintf(what, sizeof what, "host signal %d, address %llx, pc %llx", sig, (unsigned long long)info->si_addr,
		 (unsigned long long)uc->uc_mcontext.gregs[REG_RIP]);
	assert_report(what, __FILE__, __LINE__);
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	sigaction(sig, &dfl, NULL);
}

int soft_faults_install(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigemptyset(&sa.sa_mask);
	for (unsigned k = 0; k < ARRAY_SIZE(signals); k++)
		if (sigaction(signals[k], &sa, NULL) < 0)
			return -errno;
	return 0;
}

int soft_faults_thread(struct vcpu *v)
{
	if (!v->signal_stack) {
		void *p = mmap(NULL, SIGNAL_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return -errno;
		v->signal_stack = p;
	}
	stack_t ss = { .ss_sp = v->signal_stack, .ss_size = SIGNAL_STACK_SIZE };
	if (sigaltstack(&ss, NULL) < 0)
		return -errno;
	current = v;
	return 0;
}
