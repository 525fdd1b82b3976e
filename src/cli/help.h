/* The options of every verb as --help shows them. */
#ifndef CLI_HELP_H
#define CLI_HELP_H

static const char help_run[] =
	"\n"
	"The default command is a shell. The guest's stdout, stderr and exit status are umbra's own;\n"
	"128 + N when signal N ended the command, 125 when umbra itself failed, 126 when the command\n"
	"cannot be run, 127 when it is not found.\n"
	"\n"
	"Machine:\n"
	"  --kernel FILE        bzImage, vmlinux (ELF), PVH or multiboot ELF\n"
	"                       (default: newest of the data directory, then of /boot)\n"
	"  --modules DIR        also pack this directory of kernel modules as /lib/modules/RELEASE\n"
	"  --initrd FILE        own initramfs: without COMMAND its own init runs on the console,\n"
	"                       with COMMAND umbra's agent is added to it and runs COMMAND\n"
	"  --append STRING      more kernel parameters; may be repeated\n"
	"  --cpus N             number of processors, 1 to 8 (default 1)\n"
	"  -m, --memory SIZE    memory: bytes, or with K, M, G (default 512M)\n"
	"  --engine NAME        auto, interpret or translate (default auto: translate where the\n"
	"                       host allows it, else interpret)\n"
	"  --deterministic[=N]  virtual time counts instructions, entropy comes from seed N (default 0):\n"
	"                       two such runs are identical instruction for instruction as long as the\n"
	"                       command takes no input (stdin is off unless -i asks for it)\n"
	"  --stop-at N          with --deterministic: end after N instructions; unless --checkpoints\n"
	"                       records it, the state there is written to a report file\n"
	"  --checkpoints FILE[,EVERY[,FROM]]\n"
	"                       with --deterministic: record the state every EVERY instructions\n"
	"                       (default 10000000) from instruction FROM on, for umbra compare\n"
	"  --translate-after N  with --engine translate: executions before code is translated\n"
	"  --block-limit N      decode at most N instructions at once (to compare engines)\n"
	"\n"
	"Command:\n"
	"  --root DIR           pack DIR into the initramfs and run the command in it\n"
	"                       (default: a small built-in busybox system)\n"
	"  -e, --env NAME[=VALUE] environment variable; without =VALUE, umbra's own; may be repeated\n"
	"  -w, --workdir DIR    working directory (default /)\n"
	"  --hostname NAME      host name (default: --name, else umbra)\n"
	"  --name NAME          name of the VM\n"
	"  -t, --tty[=yes|no]   terminal for the command (default: when stdin and stdout are terminals)\n"
	"  -i, --stdin[=yes|no] pass stdin to the command (default yes)\n"
	"  --console            the guest's serial console instead of a command (Ctrl-] leaves it);\n"
	"                       always so for a kernel that is not Linux (multiboot or PVH ELF)\n"
	"\n"
	"Observation:\n"
	"  --trace LIST         record events to a file: comma-separated names, or all (but block, every\n"
	"                       block executed, which is slow): life exit irq exc mmu msr call host dev,\n"
	"                       decode, or single events such as page-fault\n"
	"  --trace-file FILE    where to (default umbra-PID.trace)\n"
	"  --stats              the engine's counters on stderr at the end\n"
	"  -v, --verbose        say what umbra does; the guest's console goes to stderr\n"
	"  --help               this text\n";

static const char help_kernel[] =
	"\n"
	"  list             kernels of the data directory (~/.local/share/umbra/kernels) and of /boot\n"
	"  fetch [NAME…]    get Debian's package without installing it and without root: cloud (default),\n"
	"                   amd64, or the full name of a linux-image package\n"
	"  --json           list as JSON\n"
	"  --help           this text\n";

static const char help_trace[] =
	"\n"
	"  --help           this text\n";

static const char help_compare[] =
	"\n"
	"A and B are files of umbra run --deterministic --checkpoints. Prints the first checkpoint at which the\n"
	"two runs differ, and what differs; then says which options narrow it down. Exit status 1 when they differ.\n"
	"\n"
	"  --help           this text\n";

static const char help_doctor[] =
	"\n"
	"Names every host feature the engine needs, present or missing, and what a missing one costs.\n"
	"Exit status 1 when a VM cannot run.\n"
	"\n"
	"  --json           as JSON\n"
	"  --help           this text\n";

#endif
