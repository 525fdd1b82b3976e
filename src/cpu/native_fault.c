/* A host exception inside a stub becomes an error return of that stub.  Called from a signal handler: the kernel has
 * put the guest's vector state into the signal frame and gives it back when the handler returns. */
#include <ucontext.h>

#include "cpu/native_op.h"

bool native_fault(struct cpu *c, int sig, int trapno, u64 err, void *ucontext)
{
	struct native *n = c->native;
	const struct native_op *op = n ? n->running : NULL;
	greg_t *g = ((ucontext_t *)ucontext)->uc_mcontext.gregs;
	(void)sig;
	(void)err;
	if (!op || (u64)g[REG_RIP] != (u64)(uintptr_t)op->code + op->insn_off)
		return false;
	n->fault.trapno = (u64)trapno;
	n->fault.address = (u64)g[REG_CR2];
	g[REG_RIP] = (greg_t)((u64)(uintptr_t)op->code + op->abort_off);
	return true;
}
