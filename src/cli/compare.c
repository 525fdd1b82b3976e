/* umbra compare: the first difference of two deterministic runs, from their
 * checkpoint files (struct hv_checkpoints of vcpu.h).  Files are untrusted. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "vcpu/vcpu.h"

struct file {
	const struct hv_checkpoint *rec;
	u64 n;
	void *map;
	size_t size;
};

static int map_file(const char *path, struct file *f)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return cli_error("cannot open %s: %s", path, strerror(errno));
	*f = (struct file){ .size = (size_t)st.st_size };
	if (!S_ISREG(st.st_mode) || f->size < sizeof(struct hv_checkpoints)) {
		close(fd);
		return cli_error("%s is not a file of checkpoints (umbra run --deterministic --checkpoints makes one)", path);
	}
	f->map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (f->map == MAP_FAILED)
		return cli_error("cannot read %s: %s", path, strerror(errno));
	const struct hv_checkpoints *h = f->map;
	if (h->magic != HV_CHECKPOINTS_MAGIC || h->record_size != sizeof(struct hv_checkpoint) ||
	    h->n > (f->size - sizeof *h) / sizeof(struct hv_checkpoint))
		return cli_error("%s is not a file of checkpoints of this version", path);
	f->rec = h->rec;
	f->n = h->n;
	return 0;
}

static const struct field {
	const char *name;
	size_t offset;
} fields[] = {
#define F(x) { #x, offsetof(struct hv_checkpoint, x) }
#define R(n, name) { name, offsetof(struct hv_checkpoint, r) + 8 * (n) }
	F(insns), F(rip), F(rflags), R(0, "rax"), R(1, "rcx"), R(2, "rdx"), R(3, "rbx"), R(4, "rsp"), R(5, "rbp"), R(6, "rsi"),
	R(7, "rdi"), R(8, "r8"), R(9, "r9"), R(10, "r10"), R(11, "r11"), R(12, "r12"), R(13, "r13"), R(14, "r14"), R(15, "r15"),
	F(cr0), F(cr2), F(cr3), F(cr4), F(efer), F(fs_base), F(gs_base), F(kernel_gs_base), F(seg_hash), F(fpu_hash), F(apic_hash),
	F(ram_hash),
#undef F
#undef R
};

static u64 field_value(const struct hv_checkpoint *c, const struct field *f)
{
	u64 v;
	memcpy(&v, (const char *)c + f->offset, sizeof v);
	return v;
}

#define NARROW 10000 /* checkpoints of the next, narrower pair of runs */

/* last: the last one that was equal, or NULL. */
static int print_difference(const struct hv_checkpoint *a, const struct hv_checkpoint *b, const struct hv_checkpoint *last)
{
	u64 before = last ? last->insns : 0;
	printf("the runs agree up to instruction %" PRIu64 " and differ at %" PRIu64 ":\n", before, a->insns);
	for (unsigned k = 0; k < ARRAY_SIZE(fields); k++) {
		u64 x = field_value(a, &fields[k]), y = field_value(b, &fields[k]);
		if (x != y)
			printf("  %-14s %016" PRIx64 "  %016" PRIx64 "\n", fields[k].name, x, y);
	}
	u64 span = a->insns - before, every = span > NARROW ? span / NARROW : 1;
	if (span > 1)
		printf("narrow it down: repeat both runs with --stop-at %" PRIu64 " --checkpoints FILE,%" PRIu64 ",%" PRIu64 "\n",
		       a->insns, every, before);
	else if (last)
		printf("the instruction at rip %" PRIx64 " makes the difference (see its operands: --stop-at %" PRIu64 ")\n",
		       last->rip, before);
	return 1;
}

int cli_compare_main(const struct cli_verb *self, int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { 0 } };
	for (int c; (c = getopt_long(argc, argv, ":h", options, NULL)) >= 0;)
		switch (c) {
		case 'h': return cli_help(self);
		default: return cli_bad_option(self, argc, argv, c);
		}
	if (optind + 2 != argc)
		return cli_error("compare: two files of checkpoints, please (see umbra compare --help)");
	struct file a, b;
	int r = map_file(argv[optind], &a);
	if (!r)
		r = map_file(argv[optind + 1], &b);
	if (r)
		return r;
	const struct hv_checkpoint *last = NULL;
	u64 i = 0, j = 0, same = 0;
	/* Intervals may differ: compare what both have. */
	while (i < a.n && j < b.n) {
		const struct hv_checkpoint *x = &a.rec[i], *y = &b.rec[j];
		if (x->insns != y->insns) {
			if (x->insns < y->insns)
				i++;
			else
				j++;
			continue;
		}
		struct hv_checkpoint y2 = *y;
		if (!x->ram_hash || !y->ram_hash)
			y2.ram_hash = x->ram_hash;
		if (memcmp(x, &y2, sizeof y2))
			return print_difference(x, &y2, last);
		last = x;
		same++;
		i++;
		j++;
	}
	if (!same)
		return cli_error("compare: the files have no checkpoint at the same instruction");
	printf("identical at %" PRIu64 " checkpoints, up to instruction %" PRIu64 "\n", same, last->insns);
	return 0;
}
