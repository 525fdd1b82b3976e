/* CPUID of the virtual CPU: the host's identity and user-visible features, our own supervisor features.  See cpuid.h.
 *
 * The guest shall find a CPU that needs no software mitigation (no page-table isolation, no retpolines, no buffer
 * clearing): translated kernel code cannot profit from them, and they cost a factor on every system call.  On Intel
 * ARCH_CAPABILITIES says so (msr.c) and IBRS_ALL selects "enhanced IBRS", one MSR write at boot; on AMD AutoIBRS and
 * the *_NO bits.  Speculative isolation between the guest's user and kernel is not promised (doc/trust.md). */
#include "cpu/cpuid.h"

#include "cpu/cpu.h"
#include "cpu/msr.h"

const char *const cpuid_policy_names[] = { "host", "on", "off", "dynamic" };

#define B(leaf, sub, reg, bit, policy, vendor, name, why) \
	{ leaf, sub, CPUID_##reg, bit, CPUID_##policy, CPUID_##vendor, name, why }

#define USER "user code executes it natively or sees it there"
#define ARCH "base architecture, emulated"
#define DECODE "the instruction decoder does not know it"
#define PHI "Xeon Phi only"
#define PMU "no performance counters"
#define THERM "power and temperature belong to the host"
#define SLEEP "no waiting instructions: HLT is the only idle state"
#define NONEST "no nested virtualization"
#define TSX "transactions always abort here (XBEGIN takes its fallback), so none is advertised"
#define STATE "its XSAVE state component is not offered"
#define NOSUP "supervisor feature that is not emulated"
#define NOBUG "the presented CPU needs no such mitigation"
#define MIRROR "AMD repeats leaf 1 EDX here"

const struct cpuid_bit cpuid_bits[] = {
	/* leaf 1 ECX */
	B(1, 0, ECX, 0, HOST, ANY, "pni", USER),
	B(1, 0, ECX, 1, HOST, ANY, "pclmulqdq", USER),
	B(1, 0, ECX, 2, OFF, ANY, "dtes64", "no debug store"),
	B(1, 0, ECX, 3, OFF, ANY, "monitor", SLEEP),
	B(1, 0, ECX, 4, OFF, ANY, "ds_cpl", "no debug store"),
	B(1, 0, ECX, 5, OFF, ANY, "vmx", NONEST),
	B(1, 0, ECX, 6, OFF, ANY, "smx", "no trusted execution"),
	B(1, 0, ECX, 7, OFF, ANY, "est", THERM),
	B(1, 0, ECX, 8, OFF, ANY, "tm2", THERM),
	B(1, 0, ECX, 9, HOST, ANY, "ssse3", USER),
	B(1, 0, ECX, 11, OFF, ANY, "sdbg", "no silicon debug"),
	B(1, 0, ECX, 12, HOST, ANY, "fma", USER),
	B(1, 0, ECX, 13, HOST, ANY, "cx16", USER),
	B(1, 0, ECX, 14, OFF, ANY, "xtpr", "no task priority messages"),
	B(1, 0, ECX, 15, OFF, ANY, "pdcm", PMU),
	B(1, 0, ECX, 17, ON, ANY, "pcid", "emulated"),
	B(1, 0, ECX, 18, OFF, ANY, "dca", "no direct cache access"),
	B(1, 0, ECX, 19, HOST, ANY, "sse4_1", USER),
	B(1, 0, ECX, 20, HOST, ANY, "sse4_2", USER),
	B(1, 0, ECX, 21, ON, ANY, "x2apic", "emulated"),
	B(1, 0, ECX, 22, HOST, ANY, "movbe", USER),
	B(1, 0, ECX, 23, HOST, ANY, "popcnt", USER),
	B(1, 0, ECX, 24, ON, ANY, "tsc_deadline_timer", "emulated"),
	B(1, 0, ECX, 25, HOST, ANY, "aes", USER),
	B(1, 0, ECX, 26, HOST, ANY, "xsave", USER),
	B(1, 0, ECX, 27, DYNAMIC, ANY, "osxsave", "CR4.OSXSAVE"),
	B(1, 0, ECX, 28, HOST, ANY, "avx", USER),
	B(1, 0, ECX, 29, HOST, ANY, "f16c", USER),
	B(1, 0, ECX, 30, HOST, ANY, "rdrand", USER),
	B(1, 0, ECX, 31, ON, ANY, "hypervisor", "it is one"),
	/* leaf 1 EDX */
	B(1, 0, EDX, 0, HOST, ANY, "fpu", USER),
	B(1, 0, EDX, 1, OFF, ANY, "vme", "virtual-8086 extensions are not emulated (they do not exist in long mode)"),
	B(1, 0, EDX, 2, ON, ANY, "de", ARCH),
	B(1, 0, EDX, 3, ON, ANY, "pse", ARCH),
	B(1, 0, EDX, 4, ON, ANY, "tsc", ARCH),
	B(1, 0, EDX, 5, ON, ANY, "msr", ARCH),
	B(1, 0, EDX, 6, ON, ANY, "pae", ARCH),
	B(1, 0, EDX, 7, ON, ANY, "mce", "architectural CR4.MCE and MSRs, no bank, no event (as KVM)"),
	B(1, 0, EDX, 8, HOST, ANY, "cx8", USER),
	B(1, 0, EDX, 9, DYNAMIC, ANY, "apic", "IA32_APIC_BASE.EN"),
	B(1, 0, EDX, 11, ON, ANY, "sep", ARCH),
	B(1, 0, EDX, 12, ON, ANY, "mtrr", "kept and readable; all memory is write-back"),
	B(1, 0, EDX, 13, ON, ANY, "pge", ARCH),
	B(1, 0, EDX, 14, ON, ANY, "mca", "no bank, no event (as KVM)"),
	B(1, 0, EDX, 15, HOST, ANY, "cmov", USER),
	B(1, 0, EDX, 16, ON, ANY, "pat", "kept and readable; all memory is write-back"),
	B(1, 0, EDX, 17, ON, ANY, "pse36", ARCH),
	B(1, 0, EDX, 18, OFF, ANY, "pn", "no processor serial number"),
	B(1, 0, EDX, 19, HOST, ANY, "clflush", USER),
	B(1, 0, EDX, 21, OFF, ANY, "dts", "no debug store"),
	B(1, 0, EDX, 22, OFF, ANY, "acpi", THERM),
	B(1, 0, EDX, 23, HOST, ANY, "mmx", USER),
	B(1, 0, EDX, 24, HOST, ANY, "fxsr", USER),
	B(1, 0, EDX, 25, HOST, ANY, "sse", USER),
	B(1, 0, EDX, 26, HOST, ANY, "sse2", USER),
	B(1, 0, EDX, 27, HOST, ANY, "ss", "self-snooping caches: the host's"),
	B(1, 0, EDX, 28, DYNAMIC, ANY, "ht", "more than one virtual CPU"),
	B(1, 0, EDX, 29, OFF, ANY, "tm", THERM),
	B(1, 0, EDX, 31, OFF, ANY, "pbe", THERM),
	/* leaf 6 EAX */
	B(6, 0, EAX, 2, ON, ANY, "arat", "the APIC timer never stops"),
	/* leaf 7.0 EBX */
	B(7, 0, EBX, 0, ON, ANY, "fsgsbase", "emulated"),
	B(7, 0, EBX, 1, ON, ANY, "tsc_adjust", "emulated"),
	B(7, 0, EBX, 2, OFF, ANY, "sgx", "no enclaves"),
	B(7, 0, EBX, 3, HOST, ANY, "bmi1", USER),
	B(7, 0, EBX, 4, OFF, ANY, "hle", TSX),
	B(7, 0, EBX, 5, HOST, ANY, "avx2", USER),
	B(7, 0, EBX, 6, HOST, ANY, "fdp_excptn_only", "x87 images are the host's"),
	B(7, 0, EBX, 7, ON, ANY, "smep", "emulated"),
	B(7, 0, EBX, 8, HOST, ANY, "bmi2", USER),
	B(7, 0, EBX, 9, HOST, ANY, "erms", USER),
	B(7, 0, EBX, 10, ON, ANY, "invpcid", "emulated"),
	B(7, 0, EBX, 11, OFF, ANY, "rtm", TSX),
	B(7, 0, EBX, 12, OFF, ANY, "cqm", "no resource monitoring"),
	B(7, 0, EBX, 13, HOST, ANY, "zero_fcs_fds", "x87 images are the host's"),
	B(7, 0, EBX, 14, OFF, ANY, "mpx", STATE),
	B(7, 0, EBX, 15, OFF, ANY, "rdt_a", "no resource control"),
	B(7, 0, EBX, 16, HOST, ANY, "avx512f", USER),
	B(7, 0, EBX, 17, HOST, ANY, "avx512dq", USER),
	B(7, 0, EBX, 18, HOST, ANY, "rdseed", USER),
	B(7, 0, EBX, 19, HOST, ANY, "adx", USER),
	B(7, 0, EBX, 20, ON, ANY, "smap", "emulated"),
	B(7, 0, EBX, 21, HOST, ANY, "avx512ifma", USER),
	B(7, 0, EBX, 23, HOST, ANY, "clflushopt", USER),
	B(7, 0, EBX, 24, HOST, ANY, "clwb", USER),
	B(7, 0, EBX, 25, OFF, ANY, "intel_pt", "no processor trace"),
	B(7, 0, EBX, 26, OFF, ANY, "avx512pf", PHI),
	B(7, 0, EBX, 27, OFF, ANY, "avx512er", PHI),
	B(7, 0, EBX, 28, HOST, ANY, "avx512cd", USER),
	B(7, 0, EBX, 29, HOST, ANY, "sha_ni", USER),
	B(7, 0, EBX, 30, HOST, ANY, "avx512bw", USER),
	B(7, 0, EBX, 31, HOST, ANY, "avx512vl", USER),
	/* leaf 7.0 ECX */
	B(7, 0, ECX, 0, OFF, ANY, "prefetchwt1", PHI),
	B(7, 0, ECX, 1, HOST, ANY, "avx512vbmi", USER),
	B(7, 0, ECX, 2, ON, ANY, "umip", "emulated"),
	B(7, 0, ECX, 3, OFF, ANY, "pku", STATE),
	B(7, 0, ECX, 4, OFF, ANY, "ospke", STATE),
	B(7, 0, ECX, 5, OFF, ANY, "waitpkg", SLEEP),
	B(7, 0, ECX, 6, HOST, ANY, "avx512_vbmi2", USER),
	B(7, 0, ECX, 7, OFF, ANY, "shstk", STATE),
	B(7, 0, ECX, 8, HOST, ANY, "gfni", USER),
	B(7, 0, ECX, 9, HOST, ANY, "vaes", USER),
	B(7, 0, ECX, 10, HOST, ANY, "vpclmulqdq", USER),
	B(7, 0, ECX, 11, HOST, ANY, "avx512_vnni", USER),
	B(7, 0, ECX, 12, HOST, ANY, "avx512_bitalg", USER),
	B(7, 0, ECX, 13, OFF, ANY, "tme", "no memory encryption"),
	B(7, 0, ECX, 14, HOST, ANY, "avx512_vpopcntdq", USER),
	B(7, 0, ECX, 16, OFF, ANY, "la57", "four-level paging only"),
	B(7, 0, ECX, 22, ON, ANY, "rdpid", "emulated: returns the guest's TSC_AUX"),
	B(7, 0, ECX, 23, OFF, ANY, "aeskle", NOSUP),
	B(7, 0, ECX, 24, OFF, ANY, "bus_lock_detect", NOSUP),
	B(7, 0, ECX, 25, HOST, ANY, "cldemote", USER),
	B(7, 0, ECX, 27, HOST, ANY, "movdiri", USER),
	B(7, 0, ECX, 28, HOST, ANY, "movdir64b", USER),
	B(7, 0, ECX, 29, OFF, ANY, "enqcmd", NOSUP),
	B(7, 0, ECX, 30, OFF, ANY, "sgx_lc", "no enclaves"),
	B(7, 0, ECX, 31, OFF, ANY, "pks", NOSUP),
	/* leaf 7.0 EDX */
	B(7, 0, EDX, 2, OFF, ANY, "avx512_4vnniw", PHI),
	B(7, 0, EDX, 3, OFF, ANY, "avx512_4fmaps", PHI),
	B(7, 0, EDX, 4, HOST, ANY, "fsrm", USER),
	B(7, 0, EDX, 5, OFF, ANY, "uintr", STATE),
	B(7, 0, EDX, 8, HOST, ANY, "avx512_vp2intersect", USER),
	B(7, 0, EDX, 9, OFF, ANY, "srbds_ctrl", NOBUG),
	B(7, 0, EDX, 10, OFF, ANY, "md_clear", NOBUG),
	B(7, 0, EDX, 11, OFF, ANY, "rtm_always_abort", TSX),
	B(7, 0, EDX, 13, OFF, ANY, "tsx_force_abort", TSX),
	B(7, 0, EDX, 14, HOST, ANY, "serialize", USER),
	B(7, 0, EDX, 15, OFF, ANY, "hybrid_cpu", "all virtual CPUs are alike"),
	B(7, 0, EDX, 16, OFF, ANY, "tsxldtrk", TSX),
	B(7, 0, EDX, 18, OFF, ANY, "pconfig", NOSUP),
	B(7, 0, EDX, 19, OFF, ANY, "arch_lbr", PMU),
	B(7, 0, EDX, 20, OFF, ANY, "ibt", NOSUP),
	B(7, 0, EDX, 22, OFF, ANY, "amx_bf16", STATE),
	B(7, 0, EDX, 23, HOST, ANY, "avx512_fp16", USER),
	B(7, 0, EDX, 24, OFF, ANY, "amx_tile", STATE),
	B(7, 0, EDX, 25, OFF, ANY, "amx_int8", STATE),
	B(7, 0, EDX, 26, ON, INTEL, "spec_ctrl", "SPEC_CTRL.IBRS for enhanced IBRS, PRED_CMD.IBPB: accepted, nothing to do"),
	B(7, 0, EDX, 27, OFF, ANY, "intel_stibp", "single-threaded cores"),
	B(7, 0, EDX, 28, OFF, ANY, "flush_l1d", NOBUG),
	B(7, 0, EDX, 29, ON, INTEL, "arch_capabilities", "says that no mitigation is needed"),
	B(7, 0, EDX, 30, OFF, ANY, "core_capabilities", "no split-lock detection"),
	B(7, 0, EDX, 31, OFF, ANY, "ssbd", NOBUG),
	/* leaf 7.1 */
	B(7, 1, EAX, 0, OFF, ANY, "sha512", DECODE),
	B(7, 1, EAX, 1, OFF, ANY, "sm3", DECODE),
	B(7, 1, EAX, 2, OFF, ANY, "sm4", DECODE),
	B(7, 1, EAX, 3, OFF, ANY, "raoint", DECODE),
	B(7, 1, EAX, 4, HOST, ANY, "avx_vnni", USER),
	B(7, 1, EAX, 5, HOST, ANY, "avx512_bf16", USER),
	B(7, 1, EAX, 6, OFF, ANY, "lass", NOSUP),
	B(7, 1, EAX, 7, OFF, ANY, "cmpccxadd", DECODE),
	B(7, 1, EAX, 8, OFF, ANY, "arch_perfmon_ext", PMU),
	B(7, 1, EAX, 10, HOST, ANY, "fzrm", USER),
	B(7, 1, EAX, 11, HOST, ANY, "fsrs", USER),
	B(7, 1, EAX, 12, HOST, ANY, "fsrc", USER),
	B(7, 1, EAX, 17, OFF, ANY, "fred", NOSUP),
	B(7, 1, EAX, 18, OFF, ANY, "lkgs", NOSUP),
	B(7, 1, EAX, 19, OFF, ANY, "wrmsrns", NOSUP),
	B(7, 1, EAX, 20, OFF, ANY, "nmi_src", NOSUP),
	B(7, 1, EAX, 21, OFF, ANY, "amx_fp16", STATE),
	B(7, 1, EAX, 22, OFF, ANY, "hreset", NOSUP),
	B(7, 1, EAX, 23, OFF, ANY, "avx_ifma", DECODE),
	B(7, 1, EAX, 26, OFF, ANY, "lam", NOSUP),
	B(7, 1, EAX, 27, OFF, ANY, "msrlist", NOSUP),
	B(7, 1, EDX, 4, OFF, ANY, "avx_vnni_int8", DECODE),
	B(7, 1, EDX, 5, OFF, ANY, "avx_ne_convert", DECODE),
	B(7, 1, EDX, 8, OFF, ANY, "amx_complex", STATE),
	B(7, 1, EDX, 10, OFF, ANY, "avx_vnni_int16", DECODE),
	B(7, 1, EDX, 14, HOST, ANY, "prefetchi", USER),
	B(7, 1, EDX, 15, OFF, ANY, "user_msr", NOSUP),
	B(7, 1, EDX, 17, OFF, ANY, "uiret_uif", STATE),
	B(7, 1, EDX, 18, OFF, ANY, "cet_sss", STATE),
	B(7, 1, EDX, 19, OFF, ANY, "avx10", "its leaf 0x24 is not offered; the AVX-512 bits say the same"),
	B(7, 1, EDX, 21, OFF, ANY, "apx", STATE),
	/* leaf 7.2 */
	B(7, 2, EDX, 0, OFF, ANY, "psfd", NOBUG),
	B(7, 2, EDX, 1, OFF, ANY, "ipred_ctrl", NOBUG),
	B(7, 2, EDX, 2, OFF, ANY, "rrsba_ctrl", NOBUG),
	B(7, 2, EDX, 3, OFF, ANY, "ddpd_u", NOBUG),
	B(7, 2, EDX, 4, ON, INTEL, "bhi_ctrl", "newer Linux ignores BHI_NO: without SPEC_CTRL.BHI_DIS_S every system call runs a clearing loop"),
	B(7, 2, EDX, 5, HOST, ANY, "mcdt_no", USER),
	/* leaf 0xd.1 */
	B(0xd, 1, EAX, 0, HOST, ANY, "xsaveopt", USER),
	B(0xd, 1, EAX, 1, HOST, ANY, "xsavec", USER),
	B(0xd, 1, EAX, 2, HOST, ANY, "xgetbv1", USER),
	B(0xd, 1, EAX, 3, OFF, ANY, "xsaves", "no supervisor state components"),
	B(0xd, 1, EAX, 4, OFF, ANY, "xfd", "no AMX"),
	/* 0x80000001 ECX */
	B(0x80000001, 0, ECX, 0, HOST, ANY, "lahf_lm", USER),
	B(0x80000001, 0, ECX, 1, DYNAMIC, ANY, "cmp_legacy", "AMD, more than one virtual CPU"),
	B(0x80000001, 0, ECX, 2, OFF, ANY, "svm", NONEST),
	B(0x80000001, 0, ECX, 3, OFF, ANY, "extapic", "no extended APIC registers"),
	B(0x80000001, 0, ECX, 4, OFF, ANY, "cr8_legacy", "LOCK MOV CR0 is not emulated"),
	B(0x80000001, 0, ECX, 5, HOST, ANY, "abm", USER),
	B(0x80000001, 0, ECX, 6, HOST, ANY, "sse4a", USER),
	B(0x80000001, 0, ECX, 7, HOST, ANY, "misalignsse", USER),
	B(0x80000001, 0, ECX, 8, HOST, ANY, "3dnowprefetch", USER),
	B(0x80000001, 0, ECX, 9, OFF, ANY, "osvw", NOBUG),
	B(0x80000001, 0, ECX, 10, OFF, ANY, "ibs", PMU),
	B(0x80000001, 0, ECX, 11, HOST, ANY, "xop", USER),
	B(0x80000001, 0, ECX, 12, OFF, ANY, "skinit", "no trusted execution"),
	B(0x80000001, 0, ECX, 13, OFF, ANY, "wdt", "no watchdog timer"),
	B(0x80000001, 0, ECX, 15, OFF, ANY, "lwp", STATE),
	B(0x80000001, 0, ECX, 16, HOST, ANY, "fma4", USER),
	B(0x80000001, 0, ECX, 17, OFF, ANY, "tce", NOSUP),
	B(0x80000001, 0, ECX, 19, OFF, ANY, "nodeid_msr", "one node"),
	B(0x80000001, 0, ECX, 21, HOST, ANY, "tbm", USER),
	B(0x80000001, 0, ECX, 22, ON, AMD, "topoext", "leaves 0x8000001d and 0x8000001e exist"),
	B(0x80000001, 0, ECX, 23, OFF, ANY, "perfctr_core", PMU),
	B(0x80000001, 0, ECX, 24, OFF, ANY, "perfctr_nb", PMU),
	B(0x80000001, 0, ECX, 26, OFF, ANY, "bpext", "no data breakpoint extension"),
	B(0x80000001, 0, ECX, 27, OFF, ANY, "ptsc", PMU),
	B(0x80000001, 0, ECX, 28, OFF, ANY, "perfctr_llc", PMU),
	B(0x80000001, 0, ECX, 29, OFF, ANY, "mwaitx", SLEEP),
	B(0x80000001, 0, ECX, 30, OFF, ANY, "addr_mask_ext", "no breakpoint masks"),
	/* 0x80000001 EDX */
	B(0x80000001, 0, EDX, 0, HOST, AMD, "fpu", MIRROR),
	B(0x80000001, 0, EDX, 1, OFF, ANY, "vme", MIRROR),
	B(0x80000001, 0, EDX, 2, ON, AMD, "de", MIRROR),
	B(0x80000001, 0, EDX, 3, ON, AMD, "pse", MIRROR),
	B(0x80000001, 0, EDX, 4, ON, AMD, "tsc", MIRROR),
	B(0x80000001, 0, EDX, 5, ON, AMD, "msr", MIRROR),
	B(0x80000001, 0, EDX, 6, ON, AMD, "pae", MIRROR),
	B(0x80000001, 0, EDX, 7, ON, AMD, "mce", MIRROR),
	B(0x80000001, 0, EDX, 8, HOST, AMD, "cx8", MIRROR),
	B(0x80000001, 0, EDX, 9, DYNAMIC, AMD, "apic", MIRROR),
	B(0x80000001, 0, EDX, 11, ON, ANY, "syscall", ARCH),
	B(0x80000001, 0, EDX, 12, ON, AMD, "mtrr", MIRROR),
	B(0x80000001, 0, EDX, 13, ON, AMD, "pge", MIRROR),
	B(0x80000001, 0, EDX, 14, ON, AMD, "mca", MIRROR),
	B(0x80000001, 0, EDX, 15, HOST, AMD, "cmov", MIRROR),
	B(0x80000001, 0, EDX, 16, ON, AMD, "pat", MIRROR),
	B(0x80000001, 0, EDX, 17, ON, AMD, "pse36", MIRROR),
	B(0x80000001, 0, EDX, 20, ON, ANY, "nx", "emulated"),
	B(0x80000001, 0, EDX, 22, HOST, AMD, "mmxext", USER),
	B(0x80000001, 0, EDX, 23, HOST, AMD, "mmx", MIRROR),
	B(0x80000001, 0, EDX, 24, HOST, AMD, "fxsr", MIRROR),
	B(0x80000001, 0, EDX, 25, OFF, ANY, "fxsr_opt", "EFER.FFXSR is not emulated"),
	B(0x80000001, 0, EDX, 26, ON, ANY, "pdpe1gb", "emulated"),
	B(0x80000001, 0, EDX, 27, ON, ANY, "rdtscp", "emulated"),
	B(0x80000001, 0, EDX, 29, ON, ANY, "lm", ARCH),
	B(0x80000001, 0, EDX, 30, HOST, AMD, "3dnowext", USER),
	B(0x80000001, 0, EDX, 31, HOST, AMD, "3dnow", USER),
	/* 0x80000007 EDX */
	B(0x80000007, 0, EDX, 8, OFF, ANY, "nonstop_tsc", "keeps kvmclock the preferred clock: it can be corrected, the TSC's known frequency cannot"),
	/* 0x80000008 EBX */
	B(0x80000008, 0, EBX, 0, OFF, ANY, "clzero", "not emulated"),
	B(0x80000008, 0, EBX, 1, OFF, ANY, "irperf", PMU),
	B(0x80000008, 0, EBX, 2, HOST, AMD, "xsaveerptr", "x87 images are the host's"),
	B(0x80000008, 0, EBX, 3, OFF, ANY, "invlpgb", NOSUP),
	B(0x80000008, 0, EBX, 4, OFF, ANY, "rdpru", PMU),
	B(0x80000008, 0, EBX, 8, OFF, ANY, "mcommit", NOSUP),
	B(0x80000008, 0, EBX, 9, OFF, ANY, "wbnoinvd", "executes as WBINVD"),
	B(0x80000008, 0, EBX, 12, ON, AMD, "amd_ibpb", "PRED_CMD.IBPB: accepted, nothing to do"),
	B(0x80000008, 0, EBX, 13, OFF, ANY, "int_wbinvd", NOSUP),
	B(0x80000008, 0, EBX, 14, OFF, ANY, "amd_ibrs", "AutoIBRS instead"),
	B(0x80000008, 0, EBX, 15, OFF, ANY, "amd_stibp", "single-threaded cores"),
	B(0x80000008, 0, EBX, 20, ON, AMD, "efer_lmsle_unsupported", "EFER.LMSLE is not emulated"),
	B(0x80000008, 0, EBX, 24, OFF, ANY, "amd_ssbd", NOBUG),
	B(0x80000008, 0, EBX, 25, OFF, ANY, "virt_ssbd", NOBUG),
	B(0x80000008, 0, EBX, 26, ON, AMD, "amd_ssb_no", NOBUG),
	B(0x80000008, 0, EBX, 27, OFF, ANY, "cppc", THERM),
	B(0x80000008, 0, EBX, 28, OFF, ANY, "amd_psfd", NOBUG),
	B(0x80000008, 0, EBX, 29, ON, AMD, "btc_no", NOBUG),
	/* 0x80000021 */
	B(0x80000021, 0, EAX, 0, ON, AMD, "no_nested_data_bp", "emulated debug registers"),
	B(0x80000021, 0, EAX, 2, ON, AMD, "lfence_rdtsc", "LFENCE is serializing"),
	B(0x80000021, 0, EAX, 6, ON, AMD, "null_seg_clears_base", "so loads the emulation a null selector"),
	B(0x80000021, 0, EAX, 8, ON, AMD, "autoibrs", "EFER.AUTOIBRS accepted: no retpolines in the guest"),
	B(0x80000021, 0, EAX, 9, ON, AMD, "no_smm_ctl_msr", "no SMM"),
	B(0x80000021, 0, EAX, 10, HOST, AMD, "fsrs", USER),
	B(0x80000021, 0, EAX, 11, HOST, AMD, "fsrc", USER),
	B(0x80000021, 0, EAX, 17, OFF, ANY, "cpuid_user_dis", NOSUP),
	B(0x80000021, 0, EAX, 20, HOST, AMD, "prefetchi", USER),
	B(0x80000021, 0, EAX, 27, OFF, ANY, "sbpb", NOBUG),
	B(0x80000021, 0, EAX, 28, OFF, ANY, "ibpb_brtype", NOBUG),
	B(0x80000021, 0, EAX, 29, ON, AMD, "srso_no", NOBUG),
	B(0x80000021, 0, ECX, 1, ON, AMD, "tsa_sq_no", NOBUG),
	B(0x80000021, 0, ECX, 2, ON, AMD, "tsa_l1_no", NOBUG),
	/* KVM's paravirtual features (Documentation/virt/kvm/x86/cpuid.rst) */
	B(0x40000001, 0, EAX, 0, ON, ANY, "kvm_clocksource", "kvmclock at its old MSRs"),
	B(0x40000001, 0, EAX, 1, ON, ANY, "kvm_nop_io_delay", "port 0x80 delays are pointless"),
	B(0x40000001, 0, EAX, 3, ON, ANY, "kvm_clocksource2", "kvmclock"),
	B(0x40000001, 0, EAX, 4, OFF, ANY, "kvm_async_pf", "not emulated"),
	B(0x40000001, 0, EAX, 5, OFF, ANY, "kvm_steal_time", "not emulated"),
	B(0x40000001, 0, EAX, 6, OFF, ANY, "kvm_pv_eoi", "not emulated"),
	B(0x40000001, 0, EAX, 24, ON, ANY, "kvm_clocksource_stable", "one clock for all virtual CPUs"),
};
const unsigned cpuid_bits_count = ARRAY_SIZE(cpuid_bits);

const struct cpuid_number cpuid_numbers[] = {
	{ 0, "vendor", "host's; highest leaf between 0x16 (Intel) or 0xd (AMD) and 0x1f" },
	{ 1, "family, model, stepping", "host's; APIC id and count of logical CPUs are the virtual ones" },
	{ 2, "cache descriptors", "host's (Intel)" },
	{ 4, "caches", "host's geometry; L1 and L2 private, the rest shared by all virtual CPUs (Intel)" },
	{ 0xa, "performance counters", "none" },
	{ 0xb, "topology", "one package of single-threaded cores" },
	{ 0xd, "XSAVE areas", "host's offsets and sizes, restricted to x87, SSE, AVX, AVX-512" },
	{ 0x15, "TSC and crystal clock", "a crystal at the frequency of the TSC (half of it beyond 4.29 GHz), which clocks the APIC timer too (Intel)" },
	{ 0x16, "frequencies", "TSC frequency in MHz (Intel)" },
	{ 0x1f, "topology", "as leaf 0xb" },
	{ 0x40000000, "hypervisor", "\"KVMKVMKVM\": the paravirtual interface is KVM's" },
	{ 0x40000010, "TSC and APIC timer frequency", "kHz, as VMware defined it" },
	{ 0x80000000, "highest extended leaf", "0x80000008 (Intel), 0x80000021 (AMD)" },
	{ 0x80000002, "brand string", "host's (and 0x80000003, 0x80000004)" },
	{ 0x80000005, "L1 caches", "host's" },
	{ 0x80000006, "L2 and L3 caches", "host's" },
	{ 0x80000008, "address sizes, core count", "host's physical bits, at most 46; 48 linear bits" },
	{ 0x80000019, "TLBs for 1 GB pages", "host's (AMD)" },
	{ 0x8000001a, "vector unit hints", "host's (AMD)" },
	{ 0x8000001d, "caches", "host's geometry, L3 shared by all virtual CPUs (AMD)" },
	{ 0x8000001e, "topology", "one node of single-threaded cores (AMD)" },
};
const unsigned cpuid_numbers_count = ARRAY_SIZE(cpuid_numbers);

static void native_cpuid(u32 leaf, u32 subleaf, u32 r[4])
{
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
}

static u64 native_xcr0(void)
{
	u32 lo, hi;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (u64)hi << 32 | lo;
}

/* Bits needed to number n things. */
static unsigned id_bits(unsigned n)
{
	unsigned b = 0;
	while ((1u << b) < n)
		b++;
	return b;
}

static struct cpuid_leaf *add(struct cpuid_table *t, u32 leaf, u32 subleaf)
{
	ASSERT(t->n < CPUID_MAX_LEAVES);
	struct cpuid_leaf *e = &t->e[t->n++];
	e->leaf = leaf;
	e->subleaf = subleaf;
	e->r[0] = e->r[1] = e->r[2] = e->r[3] = 0;
	return e;
}

static struct cpuid_leaf *add_host(struct cpuid_table *t, const struct cpuid_host *h, u32 leaf, u32 subleaf)
{
	struct cpuid_leaf *e = add(t, leaf, subleaf);
	h->cpuid(leaf, subleaf, e->r);
	return e;
}

/* A leaf of feature bits: exactly what cpuid_bits says. valid: the host has this leaf. */
static struct cpuid_leaf *add_features(struct cpuid_table *t, const struct cpuid_host *h, u32 leaf, u32 subleaf, bool valid)
{
	struct cpuid_leaf *e = add(t, leaf, subleaf);
	u32 host[4] = { 0, 0, 0, 0 };
	if (valid)
		h->cpuid(leaf, subleaf, host);
	for (unsigned i = 0; i < cpuid_bits_count; i++) {
		const struct cpuid_bit *b = &cpuid_bits[i];
		if (b->leaf != leaf || b->subleaf != subleaf)
			continue;
		if (b->vendor != CPUID_ANY && (b->vendor == CPUID_INTEL) != t->intel)
			continue;
		if (b->policy == CPUID_ON)
			e->r[b->reg] |= 1u << b->bit;
		else if (b->policy == CPUID_HOST)
			e->r[b->reg] |= host[b->reg] & 1u << b->bit;
	}
	return e;
}

static void add_caches(struct cpuid_table *t, const struct cpuid_host *h, u32 leaf)
{
	unsigned share = (1u << id_bits(t->ncpus)) - 1;
	for (u32 sub = 0; sub < 8; sub++) {
		u32 r[4];
		h->cpuid(leaf, sub, r);
		if (!(r[0] & 0x1f))
			break;
		struct cpuid_leaf *e = add(t, leaf, sub);
		unsigned level = r[0] >> 5 & 7;
		/* 25:14 logical CPUs sharing - 1; 31:26 cores per package - 1 (Intel only) */
		e->r[0] = (r[0] & 0x3fff) | (level >= 3 ? share : 0) << 14;
		if (leaf == 4)
			e->r[0] |= (share > 63 ? 63 : share) << 26;
		e->r[1] = r[1];
		e->r[2] = r[2];
		e->r[3] = r[3];
	}
}

static void add_xsave(struct cpuid_table *t, const struct cpuid_host *h)
{
	u32 r[4];
	t->xcr0 = h->xcr0 & CPUID_XCR0_OFFERED;
	t->xsave_size = 576; /* legacy area and header */
	for (unsigned i = 2; i < ARRAY_SIZE(t->xcomp); i++) {
		t->xcomp[i].size = t->xcomp[i].offset = 0;
		t->xcomp[i].align64 = false;
		if (!(t->xcr0 & BIT(i)))
			continue;
		h->cpuid(0xd, i, r);
		t->xcomp[i].size = r[0];
		t->xcomp[i].offset = r[1];
		t->xcomp[i].align64 = r[2] & 2;
		if (r[0] + r[1] > t->xsave_size)
			t->xsave_size = r[0] + r[1];
	}
	struct cpuid_leaf *e = add(t, 0xd, 0);
	e->r[CPUID_EAX] = (u32)t->xcr0;
	e->r[CPUID_EDX] = (u32)(t->xcr0 >> 32);
	e->r[CPUID_ECX] = t->xsave_size;
	add_features(t, h, 0xd, 1, true);
	for (unsigned i = 2; i < ARRAY_SIZE(t->xcomp); i++) {
		if (!(t->xcr0 & BIT(i)))
			continue;
		e = add(t, 0xd, i);
		e->r[CPUID_EAX] = t->xcomp[i].size;
		e->r[CPUID_EBX] = t->xcomp[i].offset;
		e->r[CPUID_ECX] = t->xcomp[i].align64 ? 2 : 0;
	}
}

static void add_basic(struct cpuid_table *t, const struct cpuid_host *h, u32 host_max, const u32 id[4])
{
	struct cpuid_leaf *e = add(t, 0, 0);
	e->r[CPUID_EAX] = t->max_basic;
	e->r[CPUID_EBX] = id[CPUID_EBX];
	e->r[CPUID_ECX] = id[CPUID_ECX];
	e->r[CPUID_EDX] = id[CPUID_EDX];

	u32 r[4];
	h->cpuid(1, 0, r);
	e = add_features(t, h, 1, 0, true);
	e->r[CPUID_EAX] = r[CPUID_EAX];
	unsigned logical = 1u << id_bits(t->ncpus);
	e->r[CPUID_EBX] = (r[CPUID_EBX] & 0xffff) | (logical > 255 ? 255 : logical) << 16;
	if (t->ncpus > 1)
		e->r[CPUID_EDX] |= 1u << 28;

	if (t->intel) {
		add_host(t, h, 2, 0);
		add_caches(t, h, 4);
	}
	add_features(t, h, 6, 0, host_max >= 6);
	u32 sub7 = 0;
	if (host_max >= 7) {
		h->cpuid(7, 0, r);
		sub7 = r[CPUID_EAX];
	}
	e = add_features(t, h, 7, 0, host_max >= 7);
	e->r[CPUID_EAX] = t->intel || sub7 > 2 ? 2 : sub7;
	for (u32 s = 1; s <= 2; s++)
		add_features(t, h, 7, s, s <= sub7);
	add_xsave(t, h);
	if (t->intel) {
		/* TSC = crystal * EBX / EAX.  Linux multiplies kHz in 32 bits, so an arbitrary TSC frequency is exact
		 * only with a ratio near 1; and it takes the crystal as the APIC timer's frequency, so it is that. */
		e = add(t, 0x15, 0);
		e->r[CPUID_EAX] = 1;
		e->r[CPUID_EBX] = t->apic_div;
		e->r[CPUID_ECX] = (u32)(t->tsc_khz / t->apic_div * 1000);
		e = add(t, 0x16, 0);
		e->r[CPUID_EAX] = e->r[CPUID_EBX] = (u32)((t->tsc_khz + 500) / 1000);
		e->r[CPUID_ECX] = 100;
	}
}

static void add_extended(struct cpuid_table *t, const struct cpuid_host *h, u32 host_max, const u32 id[4])
{
	struct cpuid_leaf *e = add(t, 0x80000000, 0);
	e->r[CPUID_EAX] = t->max_ext;
	if (!t->intel) {
		e->r[CPUID_EBX] = id[CPUID_EBX];
		e->r[CPUID_ECX] = id[CPUID_ECX];
		e->r[CPUID_EDX] = id[CPUID_EDX];
	}
	u32 r[4];
	e = add_features(t, h, 0x80000001, 0, true);
	if (!t->intel) {
		h->cpuid(0x80000001, 0, r);
		e->r[CPUID_EAX] = r[CPUID_EAX];
		e->r[CPUID_EBX] = r[CPUID_EBX];
		if (t->ncpus > 1)
			e->r[CPUID_ECX] |= 1u << 1;
	}
	for (u32 leaf = 0x80000002; leaf <= 0x80000006; leaf++)
		if (leaf <= host_max)
			add_host(t, h, leaf, 0);
	add_features(t, h, 0x80000007, 0, host_max >= 0x80000007);
	e = add_features(t, h, 0x80000008, 0, host_max >= 0x80000008);
	e->r[CPUID_EAX] = 48u << 8 | t->maxphyaddr;
	if (t->intel)
		return;
	e->r[CPUID_ECX] = (t->ncpus - 1) | id_bits(t->ncpus) << 12;
	if (host_max >= 0x80000019)
		add_host(t, h, 0x80000019, 0);
	if (host_max >= 0x8000001a)
		add_host(t, h, 0x8000001a, 0);
	if (host_max >= 0x8000001d) {
		h->cpuid(0x80000001, 0, r);
		if (r[CPUID_ECX] & 1u << 22)
			add_caches(t, h, 0x8000001d);
	}
	add_features(t, h, 0x80000021, 0, host_max >= 0x80000021);
}

void cpuid_table_init(struct cpuid_table *t, unsigned ncpus, u64 tsc_khz)
{
	const struct cpuid_host h = { native_cpuid, native_xcr0() };
	cpuid_table_init_from(t, &h, ncpus, tsc_khz);
}

void cpuid_table_init_from(struct cpuid_table *t, const struct cpuid_host *h, unsigned ncpus, u64 tsc_khz)
{
	u32 id[4], r[4];
	t->n = 0;
	t->ncpus = ncpus;
	t->tsc_khz = tsc_khz;
	t->apic_div = 1;
	while (tsc_khz / t->apic_div > UINT32_MAX / 1000)
		t->apic_div++;
	h->cpuid(0, 0, id);
	t->intel = id[CPUID_EBX] == 0x756e6547; /* "Genu" */
	u32 max_basic = id[CPUID_EAX];
	h->cpuid(0x80000000, 0, r);
	u32 max_ext = r[CPUID_EAX];

	u32 least = t->intel ? 0x16 : 0xd;
	t->max_basic = max_basic < least ? least : max_basic > 0x1f ? 0x1f : max_basic;
	t->max_ext = t->intel ? 0x80000008 : 0x80000021;
	t->maxphyaddr = 36;
	if (max_ext >= 0x80000008) {
		h->cpuid(0x80000008, 0, r);
		t->maxphyaddr = (u8)((r[CPUID_EAX] & 0xff) > 46 ? 46 : r[CPUID_EAX] & 0xff);
	}

	add_basic(t, h, max_basic, id);
	struct cpuid_leaf *e = add(t, 0x40000000, 0);
	e->r[CPUID_EAX] = 0x40000010;
	e->r[CPUID_EBX] = 0x4b4d564b; /* "KVMKVMKVM\0\0\0" */
	e->r[CPUID_ECX] = 0x564b4d56;
	e->r[CPUID_EDX] = 0x4d;
	add_features(t, h, 0x40000001, 0, false);
	e = add(t, 0x40000010, 0);
	e->r[CPUID_EAX] = (u32)tsc_khz;
	e->r[CPUID_EBX] = (u32)(tsc_khz / t->apic_div);
	add_extended(t, h, max_ext, id);
}

const struct cpuid_leaf *cpuid_find(const struct cpuid_table *t, u32 leaf, u32 subleaf)
{
	for (unsigned i = 0; i < t->n; i++)
		if (t->e[i].leaf == leaf && t->e[i].subleaf == subleaf)
			return &t->e[i];
	return NULL;
}

bool cpuid_has(const struct cpuid_table *t, u32 leaf, u32 subleaf, enum cpuid_reg reg, unsigned bit)
{
	const struct cpuid_leaf *e = cpuid_find(t, leaf, subleaf);
	return e && e->r[reg] >> bit & 1;
}

/* Does ECX select among entries of this leaf? */
static bool has_subleaves(u32 leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xd || leaf == 0x8000001d;
}

/* Size of the XSAVE area for the components in mask (SDM 13.4.2, 13.4.3). */
static u32 xsave_area(const struct cpuid_table *t, u64 mask, bool compacted)
{
	u32 size = 576;
	for (unsigned i = 2; i < ARRAY_SIZE(t->xcomp); i++) {
		if (!(mask & t->xcr0 & BIT(i)))
			continue;
		if (compacted) {
			if (t->xcomp[i].align64)
				size = ALIGN_UP(size, 64u);
			size += t->xcomp[i].size;
		} else if (t->xcomp[i].offset + t->xcomp[i].size > size) {
			size = t->xcomp[i].offset + t->xcomp[i].size;
		}
	}
	return size;
}

/* Leaves 0xb and 0x1f: level 0 SMT (one thread), level 1 cores. */
static void topology(const struct cpu *c, u32 subleaf, u32 out[4])
{
	unsigned n = c->cpuid->ncpus;
	out[CPUID_ECX] = subleaf & 0xff;
	out[CPUID_EDX] = c->id;
	if (subleaf == 0) {
		out[CPUID_EBX] = 1;
		out[CPUID_ECX] |= 1 << 8;
	} else if (subleaf == 1) {
		out[CPUID_EAX] = id_bits(n);
		out[CPUID_EBX] = n;
		out[CPUID_ECX] |= 2 << 8;
	}
}

void cpuid_get(const struct cpu *c, u32 leaf, u32 subleaf, u32 out[4])
{
	const struct cpuid_table *t = c->cpuid;
	out[0] = out[1] = out[2] = out[3] = 0;

	/* Out of range: Intel answers with the highest basic leaf, AMD with zeros. */
	bool hyper = leaf >> 28 == 4;
	if (!hyper && leaf > (leaf & BIT(31) ? t->max_ext : t->max_basic)) {
		if (!t->intel)
			return;
		leaf = t->max_basic;
	}
	if (leaf == 0xb || leaf == 0x1f) {
		topology(c, subleaf, out);
		return;
	}
	if (leaf == 0x8000001e && !t->intel) {
		out[CPUID_EAX] = c->id; /* extended APIC id */
		out[CPUID_EBX] = c->id & 0xff; /* core id, one thread per core */
		return;
	}
	const struct cpuid_leaf *e = cpuid_find(t, leaf, has_subleaves(leaf) ? subleaf : 0);
	if (!e)
		return;
	for (unsigned i = 0; i < 4; i++)
		out[i] = e->r[i];

	switch (leaf) {
	case 1:
		out[CPUID_EBX] |= (c->id & 0xff) << 24;
		if (c->cr4 & CR4_OSXSAVE)
			out[CPUID_ECX] |= 1u << 27;
		if (c->apic_base & APIC_BASE_EN)
			out[CPUID_EDX] |= 1u << 9;
		break;
	case 0xd:
		if (subleaf == 0)
			out[CPUID_EBX] = xsave_area(t, c->xcr0, false);
		else if (subleaf == 1 && out[CPUID_EAX] & 2)
			out[CPUID_EBX] = xsave_area(t, c->xcr0, true);
		break;
	case 0x80000001:
		if (!t->intel && c->apic_base & APIC_BASE_EN)
			out[CPUID_EDX] |= 1u << 9;
		break;
	}
}
