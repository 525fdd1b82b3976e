/* The trace events: X(id, group, name, format of up to three u64 arguments).
 * tlb-flush kind: 0 all, 1 address space, 2 page; timer: 0 armed, 1 stopped, 2 fired.
 * The numbers are in the files: append only. */
#define TRACE_EVENTS(X)                                                                                                \
	X(START, life, "start", "tsc %" PRIx64 " khz %" PRIu64)                                                        \
	X(STOP, life, "stop", "exit reason %" PRIu64 " rip %" PRIx64)                                                  \
	X(EXIT_IO, exit, "io", "port %" PRIx64 " value %" PRIx64 " size|out<<8 %" PRIx64)                              \
	X(EXIT_MMIO, exit, "mmio", "gpa %" PRIx64 " value %" PRIx64 " size|write<<8 %" PRIx64)                         \
	X(EXIT_OTHER, exit, "exit", "reason %" PRIu64 " rip %" PRIx64)                                                 \
	X(HALT, exit, "halt", "rip %" PRIx64 " deadline %" PRIx64)                                                     \
	X(WAKE, exit, "wake", "rip %" PRIx64 " slept ns %" PRIu64)                                                     \
	X(INTERRUPT, irq, "interrupt", "vector %" PRIx64 " rip %" PRIx64)                                              \
	X(EXCEPTION, exc, "exception", "vector %" PRIx64 " error %" PRIx64 " rip %" PRIx64)                            \
	X(PAGE_FAULT, exc, "page-fault", "cr2 %" PRIx64 " error %" PRIx64 " rip %" PRIx64)                             \
	X(IRQ_LINE, irq, "irq-line", "gsi %" PRIu64 " level %" PRIu64)                                                 \
	X(MSI, irq, "msi", "address %" PRIx64 " data %" PRIx64)                                                        \
	X(EOI, irq, "eoi", "vector %" PRIx64)                                                                          \
	X(IPI, irq, "ipi", "icr %" PRIx64)                                                                             \
	X(TIMER, irq, "timer", "deadline %" PRIx64 " now %" PRIx64 " what %" PRIu64)                                   \
	X(CR3, mmu, "cr3", "value %" PRIx64 " rip %" PRIx64)                                                           \
	X(TLB_FLUSH, mmu, "tlb-flush", "kind %" PRIu64 " address %" PRIx64 " rip %" PRIx64)                            \
	X(SMC, mmu, "self-modified", "gpa %" PRIx64 " rip %" PRIx64)                                                   \
	X(MODE, mmu, "mode", "cr0 %" PRIx64 " cr4 %" PRIx64 " efer %" PRIx64)                                          \
	X(RDMSR, msr, "rdmsr", "msr %" PRIx64 " value %" PRIx64 " rip %" PRIx64)                                       \
	X(WRMSR, msr, "wrmsr", "msr %" PRIx64 " value %" PRIx64 " rip %" PRIx64)                                       \
	X(CPUID, msr, "cpuid", "leaf %" PRIx64 " subleaf %" PRIx64 " rip %" PRIx64)                                    \
	X(SYSCALL, call, "syscall", "nr %" PRIu64 " rip %" PRIx64 " arg0 %" PRIx64)                                    \
	X(SYSRET, call, "sysret", "rip %" PRIx64 " value %" PRIx64 " wide %" PRIu64)                                   \
	X(BLOCK, block, "block", "rip %" PRIx64 " rsp %" PRIx64 " after insns %" PRIu64)                               \
	X(DECODE, block, "decode", "rip %" PRIx64 " gpa %" PRIx64 " insns %" PRIu64)                                   \
	X(SIGNAL, host, "signal", "signo %" PRIu64 " host pc %" PRIx64 " rip %" PRIx64)                                \
	X(UART, dev, "uart", "port %" PRIx64 " value %" PRIx64 " write %" PRIu64)                                      \
	X(MARK, life, "mark", "%" PRIx64 " %" PRIx64 " %" PRIx64)
