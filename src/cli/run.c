/* umbra run: from the words of the command line to a struct super_config.
 * Everything the user can get wrong is checked here, before any process is
 * started or any file is made. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/initramfs.h"
#include "cli/kernels.h"
#include "core/agent_proto.h"
#include "core/log.h"
#include "core/trace.h"
#include "session/session.h"
#include "super/super.h"
#include "super/terminal.h"

#define MEMORY_DEFAULT (512 * MiB)
#define MEMORY_MIN (16 * MiB)   /* of the machine model; kernels name their own need */
#define MEMORY_MAX (64 * GiB)   /* of the machine model */
#define MEMORY_UNIT (2 * MiB)
#define MEMORY_KERNEL (80 * MiB) /* what a distribution kernel takes beside the initramfs and its unpacked copy */
#define MAX_ENV 256

/* For the shortest boot of a stock kernel on this machine, whose devices are known; see doc of the parameters in
 * the kernel's admin-guide/kernel-parameters. */
static const char base_cmdline[] =
	"console=ttyS0 panic=-1 "       /* a panic resets at once, and umbra reports it */
	"8250.nr_uarts=2 "              /* the two there are */
	"tsc=reliable no_timer_check "  /* the TSC is the host's: no calibration against other clocks, no watchdog */
	"random.trust_cpu=on "          /* entropy from RDRAND, no wait for jitter */
	"mitigations=off "              /* user and kernel of the guest are not isolated speculatively by this engine */
	"cryptomgr.notests";

struct run_options {
	const char *kernel, *modules, *initrd, *root, *workdir, *hostname, *name, *trace_file;
	char append[2048];
	u64 memory;
	unsigned cpus;
	bool console, stats, deterministic;
	int tty, in; /* -1 automatic, 0 no, 1 yes */
	u64 seed, stop_at, checkpoint_every, checkpoint_from, block_limit, translate_after;
	const char *checkpoints;
	enum super_engine engine;
	unsigned verbose;
	u64 trace_mask;
	bool trace;
	const char *env[MAX_ENV];
	unsigned n_env;
	char **argv;
	u32 argc;
};

static const struct {
	const char *name;
	int engine; /* enum super_engine; -1: not in this version */
} engines[] = {
	{ "auto", SUPER_ENGINE_AUTO }, { "interpret", SUPER_ENGINE_INTERPRET },
	{ "translate", SUPER_ENGINE_TRANSLATE }, { "shadow", -1 }, { "kvm", -1 },
};

static int set_engine(struct run_options *o, const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(engines); i++)
		if (!strcmp(engines[i].name, name)) {
			if (engines[i].engine < 0)
				return cli_error("run: --engine %s is not available in this build (auto, interpret or translate)", name);
			o->engine = (enum super_engine)engines[i].engine;
			return 0;
		}
	return cli_error("run: no such engine: %s (auto, interpret or translate)", name);
}

static int set_memory(struct run_options *o, const char *text)
{
	u64 m;
	if (!cli_parse_size(text, &m))
		return cli_error("run: --memory %s is not a size (such as 512M or 2G)", text);
	if (m < MEMORY_MIN)
		return cli_error("run: --memory %s is too little for any guest (at least %" PRIu64 "M)", text, MEMORY_MIN / MiB);
	if (m > MEMORY_MAX)
		return cli_error("run: --memory %s is more than the machine can have (at most %" PRIu64 "G)", text,
				 MEMORY_MAX / GiB);
	struct sysinfo si;
	if (!sysinfo(&si)) {
		/* Memory is only used as the guest touches it, so a little more than there is may be right. */
		u64 host = ((u64)si.totalram + si.totalswap) * si.mem_unit;
		if (m > 2 * host)
			return cli_error("run: --memory %s is far more than this host has (%" PRIu64 "M with swap)", text,
					 host / MiB);
	}
	o->memory = ALIGN_UP(m, MEMORY_UNIT);
	return 0;
}

#define MAX_CPUS 8

static int set_cpus(struct run_options *o, const char *text)
{
	u64 n;
	if (!cli_parse_u64(text, &n) || n < 1)
		return cli_error("run: --cpus %s is not a number of processors (1 to 8)", text);
	if (n > MAX_CPUS)
		return cli_error("run: --cpus %s: at most %d processors", text, MAX_CPUS);
	o->cpus = (unsigned)n;
	return 0;
}

static int set_count(const char *option, const char *text, u64 *out)
{
	if (!cli_parse_u64(text, out) || !*out)
		return cli_error("run: %s %s is not a number of instructions", option, text);
	return 0;
}

#define CHECKPOINT_EVERY 10000000 /* instructions */

/* FILE, FILE,EVERY or FILE,EVERY,FROM */
static int set_checkpoints(struct run_options *o, char *text)
{
	char *every = strchr(text, ','), *from = every ? strchr(every + 1, ',') : NULL;
	if (every)
		*every++ = 0;
	if (from)
		*from++ = 0;
	o->checkpoints = text;
	o->checkpoint_every = CHECKPOINT_EVERY;
	o->checkpoint_from = 0;
	if (from && !cli_parse_u64(from, &o->checkpoint_from))
		return cli_error("run: --checkpoints %s is not a number of instructions", from);
	if (every)
		return set_count("--checkpoints", every, &o->checkpoint_every);
	return 0;
}

/* yes, no, or nothing. */
static int set_switch(const char *option, const char *value, int *out)
{
	if (!value || !strcmp(value, "yes"))
		*out = 1;
	else if (!strcmp(value, "no"))
		*out = 0;
	else
		return cli_error("run: --%s=%s is neither yes nor no", option, value);
	return 0;
}

static int add_append(struct run_options *o, const char *text)
{
	size_t have = strlen(o->append);
	if (have + strlen(text) + 2 > sizeof o->append)
		return cli_error("run: the kernel parameters of --append are too long (at most %zu bytes)",
				 sizeof o->append - 2);
	if (text[strcspn(text, "\n\r")])
		return cli_error("run: --append: a line break in kernel parameters");
	snprintf(o->append + have, sizeof o->append - have, " %s", text);
	return 0;
}

static int add_env(struct run_options *o, const char *text)
{
	if (!*text || *text == '=')
		return cli_error("run: --env %s: no variable name", text);
	if (o->n_env == MAX_ENV)
		return cli_error("run: more than %d --env options", MAX_ENV);
	if (!strchr(text, '=')) {
		const char *value = getenv(text);
		char *pair = NULL;
		if (!value)
			return 0; /* as docker: a variable that is not set stays so */
		if (asprintf(&pair, "%s=%s", text, value) < 0)
			return cli_error("run: no memory");
		text = pair;
	}
	o->env[o->n_env++] = text;
	return 0;
}

static bool valid_hostname(const char *s)
{
	size_t n = strlen(s);
	return n && n <= 63 && s[0] != '-' && s[0] != '.' &&
	       !s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")];
}

enum {
	OPT_KERNEL = 256, OPT_MODULES, OPT_INITRD, OPT_APPEND, OPT_CPUS, OPT_MEMORY, OPT_ROOT, OPT_ENV, OPT_WORKDIR,
	OPT_HOSTNAME, OPT_NAME, OPT_CONSOLE, OPT_ENGINE, OPT_DETERMINISTIC, OPT_STOP_AT, OPT_CHECKPOINTS, OPT_BLOCK_LIMIT, OPT_TRANSLATE_AFTER, OPT_TRACE, OPT_TRACE_FILE, OPT_STATS, OPT_HELP,
};

static const struct option options[] = {
	{ "kernel", required_argument, NULL, OPT_KERNEL },
	{ "modules", required_argument, NULL, OPT_MODULES },
	{ "initrd", required_argument, NULL, OPT_INITRD },
	{ "append", required_argument, NULL, OPT_APPEND },
	{ "cpus", required_argument, NULL, OPT_CPUS },
	{ "memory", required_argument, NULL, OPT_MEMORY },
	{ "root", required_argument, NULL, OPT_ROOT },
	{ "env", required_argument, NULL, OPT_ENV },
	{ "workdir", required_argument, NULL, OPT_WORKDIR },
	{ "hostname", required_argument, NULL, OPT_HOSTNAME },
	{ "name", required_argument, NULL, OPT_NAME },
	{ "console", no_argument, NULL, OPT_CONSOLE },
	{ "engine", required_argument, NULL, OPT_ENGINE },
	{ "deterministic", optional_argument, NULL, OPT_DETERMINISTIC },
	{ "stop-at", required_argument, NULL, OPT_STOP_AT },
	{ "checkpoints", required_argument, NULL, OPT_CHECKPOINTS },
	{ "block-limit", required_argument, NULL, OPT_BLOCK_LIMIT },
	{ "translate-after", required_argument, NULL, OPT_TRANSLATE_AFTER },
	{ "trace", required_argument, NULL, OPT_TRACE },
	{ "trace-file", required_argument, NULL, OPT_TRACE_FILE },
	{ "stats", no_argument, NULL, OPT_STATS },
	{ "tty", optional_argument, NULL, 't' },
	{ "stdin", optional_argument, NULL, 'i' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, OPT_HELP },
	{ 0 },
};

/* 0, or an exit status; *help: it was asked for. */
static int parse(const struct cli_verb *self, int argc, char **argv, struct run_options *o, bool *help)
{
	*o = (struct run_options){ .memory = MEMORY_DEFAULT, .cpus = 1, .tty = -1, .in = -1 };
	int r = 0;
	*help = false;
	/* "+": what follows the first word that is no option belongs to the command. */
	for (int c; !r && (c = getopt_long(argc, argv, "+:t::i::vhe:w:m:", options, NULL)) >= 0;)
		switch (c) {
		case OPT_KERNEL: o->kernel = optarg; break;
		case OPT_MODULES: o->modules = optarg; break;
		case OPT_INITRD: o->initrd = optarg; break;
		case OPT_APPEND: r = add_append(o, optarg); break;
		case OPT_CPUS: r = set_cpus(o, optarg); break;
		case 'm':
		case OPT_MEMORY: r = set_memory(o, optarg); break;
		case OPT_ROOT: o->root = optarg; break;
		case 'e':
		case OPT_ENV: r = add_env(o, optarg); break;
		case 'w':
		case OPT_WORKDIR: o->workdir = optarg; break;
		case OPT_HOSTNAME: o->hostname = optarg; break;
		case OPT_NAME: o->name = optarg; break;
		case OPT_CONSOLE: o->console = true; break;
		case OPT_ENGINE: r = set_engine(o, optarg); break;
		case OPT_DETERMINISTIC:
			o->deterministic = true;
			if (optarg && !cli_parse_u64(optarg, &o->seed))
				r = cli_error("run: --deterministic=%s is not a number", optarg);
			break;
		case OPT_STOP_AT: r = set_count("--stop-at", optarg, &o->stop_at); break;
		case OPT_CHECKPOINTS: r = set_checkpoints(o, optarg); break;
		case OPT_TRANSLATE_AFTER: r = set_count("--translate-after", optarg, &o->translate_after); break;
		case OPT_BLOCK_LIMIT: r = set_count("--block-limit", optarg, &o->block_limit); break;
		case OPT_TRACE: {
			struct err e = { 0 };
			if (trace_parse_list(optarg, &o->trace_mask, &e))
				r = cli_error("run: --trace %s: %s", optarg, e.text);
			o->trace = true;
			break;
		}
		case OPT_TRACE_FILE: o->trace_file = optarg; break;
		case OPT_STATS: o->stats = true; break;
		case 't':
			/* -ti and -it, as people write them. */
			if (optarg && !strcmp(optarg, "i")) {
				o->tty = o->in = 1;
				break;
			}
			r = set_switch("tty", optarg, &o->tty);
			break;
		case 'i':
			if (optarg && !strcmp(optarg, "t")) {
				o->tty = o->in = 1;
				break;
			}
			r = set_switch("stdin", optarg, &o->in);
			break;
		case 'v': o->verbose++; break;
		case 'h':
		case OPT_HELP: *help = true; return 0;
		default: return cli_bad_option(self, argc, argv, c);
		}
	if (r)
		return r;
	o->argv = argv + optind;
	o->argc = (u32)(argc - optind);
	if (o->name && !valid_hostname(o->name))
		return cli_error("run: --name %s is not a name (letters, digits, - . _)", o->name);
	if (o->hostname && !valid_hostname(o->hostname))
		return cli_error("run: --hostname %s is not a host name", o->hostname);
	if (o->workdir && o->workdir[0] != '/')
		return cli_error("run: --workdir %s is not an absolute path", o->workdir);
	if (o->root && o->initrd)
		return cli_error("run: --root and --initrd exclude each other (both are the root file system)");
	if (o->modules && o->initrd)
		return cli_error("run: --modules and --initrd exclude each other (put the modules into the initramfs)");
	if (o->console && o->argc)
		return cli_error("run: --console is instead of a command, but there is one: %s", o->argv[0]);
	if (o->initrd && !o->argc)
		o->console = true;
	if (!o->deterministic && (o->stop_at || o->checkpoints))
		return cli_error("run: --stop-at and --checkpoints count instructions: add --deterministic");
	if (o->deterministic && o->cpus > 1)
		return cli_error("run: --deterministic needs --cpus 1: several processors run at the same moment");
	if (o->trace_file && !o->trace)
		return cli_error("run: --trace-file without --trace LIST");
	return 0;
}

/* Opens an input file of the user's; a FIFO or device could block or never end. */
static int open_file(const char *what, const char *path, const char *hint)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0) {
		cli_error("cannot open %s %s: %s%s", what, path, strerror(errno), errno == ENOENT ? hint : "");
		return -1;
	}
	const char *bad = fstat(fd, &st) ? strerror(errno) : S_ISDIR(st.st_mode) ? "is a directory"
			  : !S_ISREG(st.st_mode) ? "not a regular file" : !st.st_size ? "the file is empty" : NULL;
	if (bad) {
		cli_error("cannot use %s %s: %s", what, path, bad);
		close(fd);
		return -1;
	}
	return fd;
}

/* The release a bzImage carries (boot protocol 2.00+, Documentation/arch/x86/boot.rst): for the name of the
 * directory of its modules.  False: it says none. */
static bool kernel_release(int fd, char out[128])
{
	u8 head[0x210];
	if (pread(fd, head, sizeof head, 0) != sizeof head || memcmp(head + 0x202, "HdrS", 4))
		return false;
	u32 at = 0x200u + head[0x20e] + 256u * head[0x20f];
	char text[128];
	ssize_t n = pread(fd, text, sizeof text - 1, at);
	if (n <= 0)
		return false;
	text[n] = 0;
	text[strcspn(text, " ")] = 0;
	if (!*text || text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._+~")])
		return false;
	strcpy(out, text);
	return true;
}

/* The environment of the command: a usual one, then the user's. */
static unsigned environment(const struct run_options *o, bool tty, const char *host, const char *out[MAX_ENV + 8])
{
	static char term[128], hostname[80];
	unsigned n = 0;
	out[n++] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	out[n++] = "HOME=/root";
	snprintf(hostname, sizeof hostname, "HOSTNAME=%s", host);
	out[n++] = hostname;
	if (tty) {
		const char *t = getenv("TERM");
		snprintf(term, sizeof term, "TERM=%s", t && strlen(t) < 100 ? t : "linux");
		out[n++] = term;
	}
	for (unsigned i = 0; i < o->n_env; i++) {
		size_t len = strcspn(o->env[i], "=") + 1;
		unsigned k = 0;
		while (k < n && strncmp(out[k], o->env[i], len))
			k++;
		out[k] = o->env[i];
		n += k == n;
	}
	return n;
}

struct blob {
	u8 *p;
	size_t n;
	bool full;
};

static void blob_add(struct blob *b, const void *p, size_t n)
{
	if (n > AGENT_RUN_MAX - b->n) {
		b->full = true;
		return;
	}
	memcpy(b->p + b->n, p, n);
	b->n += n;
}

/* The payload of AGENT_RUN.  False: said why. */
static bool make_run(const struct run_options *o, bool tty, bool in, struct blob *b)
{
	const char *host = o->hostname ? o->hostname : o->name ? o->name : "umbra";
	const char *env[MAX_ENV + 8];
	unsigned n_env = environment(o, tty, host, env);
	*b = (struct blob){ .p = malloc(AGENT_RUN_MAX) };
	if (!b->p) {
		cli_error("run: no memory");
		return false;
	}
	struct agent_run r = { .flags = (tty ? AGENT_RUN_TTY : 0) | (in ? 0 : AGENT_RUN_NO_STDIN), .argc = o->argc,
			       .envc = n_env };
	/* A terminal without a size (an unset pseudo-terminal) is given the usual one. */
	if (tty && (!terminal_size(1, &r.winsize.rows, &r.winsize.cols) || !r.winsize.rows || !r.winsize.cols))
		r.winsize = (struct agent_winsize){ 24, 80 };
	blob_add(b, &r, sizeof r);
	blob_add(b, "", 1); /* root directory: the initramfs itself */
	const char *cwd = o->workdir ? o->workdir : "";
	blob_add(b, cwd, strlen(cwd) + 1);
	blob_add(b, host, strlen(host) + 1);
	for (u32 i = 0; i < o->argc; i++)
		blob_add(b, o->argv[i], strlen(o->argv[i]) + 1);
	for (u32 i = 0; i < n_env; i++)
		blob_add(b, env[i], strlen(env[i]) + 1);
	if (b->full)
		cli_error("run: command and environment are too long (at most %u bytes)", AGENT_RUN_MAX);
	return !b->full;
}

/* The session's configuration in a memfd; -1: said why. */
static int session_config(u32 flags, const struct blob *run)
{
	size_t len = flags & (SESSION_NO_RUN | SESSION_CONSOLE) ? 0 : run->n;
	struct session_config c = { SESSION_CONFIG_MAGIC, flags, (u32)len };
	int fd = memfd_create("umbra-session", MFD_CLOEXEC);
	if (fd >= 0 && write(fd, &c, sizeof c) == sizeof c && (!len || write(fd, run->p, len) == (ssize_t)len))
		return fd;
	cli_error("run: cannot pass the command on: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

/* The initramfs; 0 or an exit status. */
static int make_initramfs(const struct run_options *o, const struct blob *run, int kernel_fd, int *fd, const char **init)
{
	struct initramfs_config c = { .root = o->root, .base_fd = -1, .modules = o->modules };
	if (run) {
		c.run = run->p;
		c.run_len = run->n;
	}
	char release[128];
	int base = -1;
	if (o->initrd) {
		base = open_file("initrd", o->initrd, "");
		if (base < 0)
			return CLI_FAIL;
		if (o->console) { /* the user's own, with its own init */
			*fd = base;
			*init = NULL;
			return 0;
		}
		c.base_fd = base;
		c.base_name = o->initrd;
	}
	if (o->modules) {
		if (!kernel_release(kernel_fd, release))
			return cli_error("run: --modules: the kernel does not say its release (only a bzImage does)");
		c.release = release;
	}
	/* The archive and what is unpacked from it are in memory at the same time. */
	c.max = o->memory > MEMORY_KERNEL ? (o->memory - MEMORY_KERNEL) / 2 : MiB;
	if (!o->root && !o->modules && !o->initrd)
		c.max = 0; /* the built-in system is small; a kernel that cannot even take it says so itself */
	struct initramfs i;
	struct err e = { 0 };
	int r = initramfs_build(&c, &i, &e);
	if (base >= 0)
		close(base);
	if (r == -EFBIG)
		return cli_error("run: %s into %" PRIu64 "M of memory (give more with --memory)", e.text, o->memory / MiB);
	if (r)
		return cli_error("run: %s", e.text);
	if (i.n_skipped)
		fprintf(stderr, "umbra: warning: %u file%s of the tree cannot be read and are left out: %s\n", i.n_skipped,
			i.n_skipped == 1 ? "" : "s", i.skipped);
	*fd = i.fd;
	*init = i.init;
	return 0;
}

static void print_stats(const struct super_result *res)
{
	for (unsigned i = 0; i < res->n_stats; i++)
		fprintf(stderr, "stats: %-24s %" PRIu64 "\n", res->stat[i].name, res->stat[i].value);
}

static int open_trace(const struct run_options *o, char path[512])
{
	if (o->trace_file)
		snprintf(path, 512, "%s", o->trace_file);
	else
		snprintf(path, 512, "umbra-%d.trace", (int)getpid());
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0)
		cli_error("cannot make the trace file %s: %s (--trace-file names another)", path, strerror(errno));
	return fd;
}

static int run(struct run_options *o)
{
	struct kernel_found found;
	const char *kernel = o->kernel;
	if (!kernel) {
		if (!kernels_default(&found))
			return cli_error("no guest kernel found (get one with umbra kernel fetch, or name one with --kernel)");
		kernel = found.path;
	}
	int kernel_fd = open_file("kernel", kernel, " (see umbra kernel list)");
	if (kernel_fd < 0)
		return CLI_FAIL;

	const bool bare = kernel_is_bare(kernel_fd);
	if (bare && o->argc)
		return cli_error("run: kernel %s is not Linux: it cannot run a command (its console is shown without one)", kernel);
	if (bare && (o->root || o->modules))
		return cli_error("run: kernel %s is not Linux: --root and --modules mean nothing to it", kernel);
	o->console |= bare;

	bool tty = o->tty >= 0 ? o->tty : isatty(0) && isatty(1);
	/* What stdin brings, and when, would make two runs differ. */
	bool in = o->in >= 0 ? o->in : !o->deterministic;
	bool raw = tty && in && isatty(0);
	if (o->tty > 0 && in && !isatty(0) && o->in > 0)
		return cli_error("run: -t with -i, but stdin is not a terminal");
	u32 flags = (tty ? SESSION_TTY : 0) | (in ? SESSION_STDIN : 0) | (o->console ? SESSION_CONSOLE : 0) |
		    (o->verbose ? SESSION_VERBOSE : 0);

	int initrd_fd = -1;
	const char *init = NULL;
	struct blob command = { 0 };
	if (!o->console && !make_run(o, tty, in, &command))
		return CLI_FAIL;
	if (o->deterministic && !o->console)
		flags |= SESSION_NO_RUN;
	int r = bare && !o->initrd ? 0 : make_initramfs(o, flags & SESSION_NO_RUN ? &command : NULL, kernel_fd, &initrd_fd, &init);
	if (r)
		return r;
	int session_fd = session_config(flags, &command);
	free(command.p);
	if (session_fd < 0)
		return CLI_FAIL;

	char cmdline[2048 + 2048];
	/* A deterministic run is the same run with and without -v. */
	const bool quiet = !o->console && (!o->verbose || o->deterministic);
	int n = bare ? snprintf(cmdline, sizeof cmdline, "%s", o->append + (o->append[0] == ' ')) :
		snprintf(cmdline, sizeof cmdline, "%s%s%s%s%s%s", base_cmdline, quiet ? " quiet" : "",
			 o->console && init ? " umbra.console" : "", init ? " rdinit=" : "", init ? init : "", o->append);
	if (n < 0 || n >= (int)sizeof cmdline)
		return cli_error("run: the kernel parameters are too long");

	char trace_path[512] = "";
	int trace_fd = -1;
	if (o->trace && (trace_fd = open_trace(o, trace_path)) < 0)
		return CLI_FAIL;
	int checkpoint_fd = -1;
	if (o->checkpoints) {
		checkpoint_fd = open(o->checkpoints, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
		if (checkpoint_fd < 0)
			return cli_error("run: cannot write checkpoints to %s: %s", o->checkpoints, strerror(errno));
	}
	struct super_config cfg = {
		.kernel_fd = kernel_fd,
		.kernel_name = kernel,
		.initrd_fd = initrd_fd,
		.initrd_name = o->initrd ? o->initrd : o->root ? o->root : "(built in)",
		.cmdline = cmdline,
		.memory = o->memory,
		.cpus = o->cpus,
		.engine = o->engine,
		.deterministic = o->deterministic,
		.det_seed = o->seed,
		.stop_at_insns = o->stop_at,
		.checkpoint_every = o->checkpoint_every,
		.checkpoint_from = o->checkpoint_from,
		.checkpoint_fd = checkpoint_fd,
		.translate_after = (unsigned)(o->translate_after < 65535 ? o->translate_after : 65535),
		.block_limit = (unsigned)(o->block_limit < 64 ? o->block_limit : 64),
		.session_fd = session_fd,
		.stdin_fd = 0,
		.stdout_fd = 1,
		.stderr_fd = 2,
		.raw_tty = raw,
		.exit_by_vm = o->console,
		.trace_fd = trace_fd,
		.trace_mask = o->trace_mask,
		.verbose = o->verbose,
	};
	log_set_level(o->verbose > 1 ? LOG_DEBUG : o->verbose ? LOG_INFO : LOG_WARN);
	static struct super_result res;
	r = super_run(&cfg, &res);
	if (*res.error)
		cli_error("%s", res.error);
	else if (*res.report)
		fprintf(stderr, "umbra: the state at the end is in %s\n", res.report);
	if (o->stats)
		print_stats(&res);
	if (trace_fd >= 0 && !*res.error)
		fprintf(stderr, "umbra: trace written to %s (umbra trace %s shows it)\n", trace_path, trace_path);
	return r;
}

int cli_run_main(const struct cli_verb *self, int argc, char **argv)
{
	static struct run_options o;
	bool help;
	int r = parse(self, argc, argv, &o, &help);
	if (r)
		return r;
	if (help)
		return cli_help(self);
	return run(&o);
}
