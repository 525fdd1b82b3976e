/* libFuzzer entry: umbra run, from the words of its command line to the configuration of a VM, which is checked here
 * instead of started.  No file of the host is opened: whatever name is asked for, it is the input's second part.
 *
 * Input: words, each ended by a NUL; 0xff 0xff; content of every file. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static FILE *fuzz_err, *fuzz_out;
static int fuzz_open(const char *path, int flags, ...);
#include <getopt.h>
#undef stderr
#undef stdout
#define stderr fuzz_err
#define stdout fuzz_out
#define printf(...) fprintf(fuzz_out, __VA_ARGS__)
#define open fuzz_open
#define main umbra_main
#define UMBRA_VERSION "fuzz"
#include "../../src/cli/main.c"
#undef main
#define kernels_default kernels_of_host /* kernel_is_bare() is tested, the search is not */
#include "../../src/cli/kernels.c"
#undef kernels_default
bool kernels_default(struct kernel_found *out);
#include "../../src/cli/run.c"
#undef open
#undef printf

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

#define CHECK(c) do { if (!(c)) { dprintf(2, "fuzz_cli.c:%d: %s\n", __LINE__, #c); abort(); } } while (0)

/* umbra run ends with its process, which frees what it has: memory here, descriptors below. */
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static const u8 *content;
static size_t content_len;
static bool started;

static int fuzz_open(const char *path, int flags, ...)
{
	CHECK(path);
	int fd = memfd_create("file", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
	if (fd < 0 || (!(flags & O_TRUNC) && write(fd, content, content_len) != (ssize_t)content_len))
		abort();
	return fd;
}

/* The payload of AGENT_RUN is what the agent will take apart. */
static void check_session(int fd)
{
	struct session_config c;
	CHECK(pread(fd, &c, sizeof c, 0) == sizeof c && c.magic == SESSION_CONFIG_MAGIC && c.run_len <= AGENT_RUN_MAX);
	CHECK(lseek(fd, 0, SEEK_END) == (off_t)(sizeof c + c.run_len));
	CHECK(!c.run_len == !!(c.flags & (SESSION_CONSOLE | SESSION_NO_RUN)));
	if (!c.run_len)
		return;
	u8 *p = malloc(c.run_len);
	CHECK(p && pread(fd, p, c.run_len, sizeof c) == (ssize_t)c.run_len);
	struct agent_run r;
	CHECK(c.run_len >= sizeof r + 3);
	memcpy(&r, p, sizeof r);
	u32 nul = 0;
	for (u32 i = sizeof r; i < c.run_len; i++)
		nul += !p[i];
	CHECK(nul == 3 + r.argc + r.envc && !p[c.run_len - 1]);
	CHECK(!(r.flags & AGENT_RUN_TTY) == !(c.flags & SESSION_TTY) && !(r.flags & AGENT_RUN_NO_STDIN) == !!(c.flags & SESSION_STDIN));
	free(p);
}

int super_run(const struct super_config *cfg, struct super_result *res)
{
	started = true;
	CHECK(cfg->kernel_fd >= 0 && cfg->session_fd >= 0 && strlen(cfg->cmdline) < 4096 && !strpbrk(cfg->cmdline, "\r\n"));
	CHECK(cfg->memory >= MEMORY_MIN && cfg->memory <= MEMORY_MAX && cfg->memory % MEMORY_UNIT == 0 && cfg->cpus >= 1 && cfg->cpus <= 8);
	CHECK(cfg->engine <= SUPER_ENGINE_TRANSLATE && cfg->block_limit <= 64 && cfg->translate_after <= 65535);
	CHECK(cfg->deterministic || (!cfg->stop_at_insns && cfg->checkpoint_fd < 0));
	CHECK(cfg->checkpoint_fd < 0 || cfg->checkpoint_every);
	check_session(cfg->session_fd);
	*res = (struct super_result){ 0 };
	return 0;
}

int initramfs_build(const struct initramfs_config *c, struct initramfs *out, struct err *e)
{
	CHECK(!c->root || c->base_fd < 0);
	CHECK(!c->modules == !c->release);
	CHECK(!c->release || (*c->release && !strchr(c->release, '/') && strlen(c->release) < 128));
	CHECK(!c->run == !c->run_len);
	if (c->root && c->root[0] == '!')
		return err_set(e, ENOENT, "no such tree: %s", c->root);
	*out = (struct initramfs){ .fd = memfd_create("initramfs", MFD_CLOEXEC), .size = 512, .init = "/.umbra/init" };
	return 0;
}

bool kernels_default(struct kernel_found *out)
{
	memset(out, 0, sizeof *out);
	snprintf(out->path, sizeof out->path, "kernel");
	return true;
}

bool terminal_size(int fd, u16 *rows, u16 *cols)
{
	(void)fd;
	*rows = *cols = 0;
	return true;
}

/* Verbs and roles that are not tested here. */
int role_main(const char *name) { return !name; }
int cli_doctor_main(const struct cli_verb *self, int argc, char **argv) { return !self + !argc + !argv; }
int cli_kernel_main(const struct cli_verb *self, int argc, char **argv) { return !self + !argc + !argv; }
int cli_trace_main(const struct cli_verb *self, int argc, char **argv) { return !self + !argc + !argv; }
int cli_compare_main(const struct cli_verb *self, int argc, char **argv) { return !self + !argc + !argv; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char said[65536];
	static char name[] = "umbra", verb[] = "run";
	enum { WORDS = 600 };
	char *argv[WORDS + 3] = { name, verb };
	int argc = 2;
	const u8 *end = memmem(data, size, "\xff\xff", 2);
	size_t words = end ? (size_t)(end - data) : size;
	content = end ? end + 2 : data;
	content_len = end ? size - words - 2 : 0;
	for (size_t at = 0; at < words && argc < WORDS;) {
		size_t n = strnlen((const char *)data + at, words - at);
		CHECK(argv[argc++] = strndup((const char *)data + at, n)); /* of its own size: an overrun is seen */
		at += n + 1;
	}
	char *made[WORDS];
	int n_made = argc - 2;
	memcpy(made, argv + 2, sizeof *made * (size_t)n_made); /* getopt may reorder */

	int first = dup(2); /* what is open above this afterwards is the run's */
	CHECK(first >= 0);
	fuzz_err = fmemopen(said, sizeof said, "w");
	fuzz_out = fopen("/dev/null", "w");
	CHECK(fuzz_err && fuzz_out);
	started = false;
	optind = 0; /* glibc: from the start */
	opterr = 0;
	int r = umbra_main(argc, argv);
	fclose(fuzz_err);
	fclose(fuzz_out);
	CHECK(r == 0 || r == CLI_FAIL);
	CHECK(!r || !started);
	/* A failure is one line. */
	size_t len = strnlen(said, sizeof said - 1);
	if (r) {
		CHECK(!strncmp(said, "umbra: ", 7) && len && said[len - 1] == '\n');
		for (size_t i = 0; i + 1 < len; i++)
			CHECK((u8)said[i] >= 0x20 && said[i] != 0x7f);
	}
	close_range((unsigned)first, ~0u, 0);
	for (int i = 0; i < n_made; i++)
		free(made[i]);
	return 0;
}
