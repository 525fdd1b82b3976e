/* insn: every instruction form of the interpreter against the host CPU.
 *
 *	insn [--count N] [--seed S] [--case N] [--form TEXT] [--engines A,B] [--list] [--min N] [--sequences] [--verbose]
 *
 * The first engine is the oracle ("native"), the second the one under test ("interp", "translate" and its variants; "native" again checks the oracle
 * itself: forms whose result is not a function of the case show up).  One line of the seed reruns everything; --case
 * reruns one case of it, --form only forms whose name contains TEXT.  --sequences: random pieces of code instead of single instructions. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "compare.h"
#include "gen_internal.h"

static const struct executor *const executors[] = { &executor_native, &executor_interp, &executor_translate, &executor_translate_hot,
	&executor_translate_small };

static u64 opt_count = 200000, opt_seed = 1, opt_case = ~0ull, opt_min = 1;
static const char *opt_form;
static bool opt_list, opt_verbose, opt_sequences;
static unsigned shown;
#define MAX_SHOWN 20

static struct executor *make_executor(const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(executors); i++)
		if (!strcmp(executors[i]->name, name))
			return executors[i]->create();
	fprintf(stderr, "insn: no engine \"%s\"\n", name);
	exit(2);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Forms to draw from, in an order that mixes them. */
static u32 *wanted, n_wanted;

static void choose_forms(void)
{
	wanted = calloc(n_forms, sizeof(*wanted));
	if (!wanted)
		abort();
	for (u32 i = 0; i < n_forms; i++)
		if (!forms[i].excluded && (!opt_form || strstr(forms[i].name, opt_form)))
			wanted[n_wanted++] = i;
	struct rng r;
	rng_seed(&r, opt_seed, 77);
	for (u32 i = n_wanted; i > 1; i--) {
		u32 k = (u32)rng_below(&r, i), t = wanted[i - 1];
		wanted[i - 1] = wanted[k];
		wanted[k] = t;
	}
}

static u64 n_garbage;

static void fill_batch(struct insn_batch *b, u64 first, u32 n)
{
	struct rng r;
	rng_seed(&r, opt_seed, first / BATCH_CASES * 2 + 1);
	gen_batch(b, &r);
	b->n = n;
	for (u32 i = 0; i < n; i++) {
		struct insn_case *c = &b->c[i];
		rng_seed(&r, opt_seed ^ 0xabcdef, first + i);
		if (opt_sequences) {
			sequence_case(c, &r);
			continue;
		}
		bool garbage = !opt_form && rng_one_in(&r, 50);
		if (garbage && gen_garbage(c, b, &r)) {
			n_garbage++;
			continue;
		}
		u32 tries = 0;
		while (!gen_case(c, b, wanted[(first + i + tries) % n_wanted], &r))
			if (++tries > 1000) {
				fprintf(stderr, "insn: cannot generate form %s\n", forms[wanted[(first + i) % n_wanted]].name);
				exit(2);
			}
	}
}

static u64 ends[128];
static u64 mismatches, mismatch_garbage;

static void check_case(struct executor *a, struct executor *b, u32 i, u64 number)
{
	struct insn_case *c = &a->batch->c[i];
	struct insn_result *want = &a->result[i], *got = &b->result[i];
	struct form *f = c->form < n_forms ? &forms[c->form] : NULL;
	ends[want->end & 127]++;
	if (f) {
		f->runs++;
		if (want->end == 6)
			f->ud++;
		else if (want->end == 3)
			f->done++;
	}
	bool same = compare_results(a->batch, c, want, got, NULL);
	if (!same) {
		mismatches++;
		if (f)
			f->mismatches++;
		else
			mismatch_garbage++;
	}
	bool show = opt_case != ~0ull || (!same && shown < MAX_SHOWN && (f ? f->mismatches == 1 : mismatch_garbage <= 3)) ||
		    (!same && opt_verbose);
	if (!show)
		return;
	if (!same)
		shown++;
	printf("%s case %llu: %s\n", same ? "AGREES" : "MISMATCH", (unsigned long long)number, f ? f->name : c->form == FORM_SEQUENCE ? "sequence" : "(not an instruction)");
	print_case(a->batch, c, stdout);
	printf("    native: %s error %x rip %llx cr2 %llx\n", end_name(want->end), want->error, (unsigned long long)want->rip,
	       (unsigned long long)want->cr2);
	compare_results(a->batch, c, want, got, stdout);
	fflush(stdout);
}

static void run_random(struct executor *a, struct executor *b)
{
	struct insn_batch *pending = calloc(1, sizeof(*pending));
	u64 first = 0, last = opt_count;
	if (!pending)
		abort();
	if (opt_case != ~0ull) {
		first = ALIGN_DOWN(opt_case, (u64)BATCH_CASES);
		last = first + BATCH_CASES;
	}
	double t0 = now(), tgen = 0;
	for (; first < last; first += BATCH_CASES) {
		double t1 = now();
		fill_batch(a->batch, first, BATCH_CASES);
		if (opt_case != ~0ull) {
			a->batch->c[0] = a->batch->c[opt_case - first];
			a->batch->n = 1;
			first = opt_case;
			last = 0;
		}
		tgen += now() - t1;
		*b->batch = *a->batch;
		a->start(a);
		b->start(b);
		b->wait(b);
		a->wait(a);
		for (u32 i = 0; i < a->batch->n; i++)
			check_case(a, b, i, first + i);
	}
	free(pending);
	printf("insn: %llu random cases in %.1f s (%.1f s generating)\n", (unsigned long long)ALIGN_UP(opt_count, (u64)BATCH_CASES), now() - t0, tgen);
}

/* Every hand-written case from many states.  Returns the number that differed. */
static u64 run_directed(struct executor *a, struct executor *b)
{
	u64 bad = 0, ran = 0;
	struct rng r;
	for (unsigned n = 0; n < directed_count; n++) {
		rng_seed(&r, opt_seed, 0x100000 + n);
		gen_batch(a->batch, &r);
		a->batch->n = BATCH_CASES;
		for (u32 i = 0; i < BATCH_CASES; i++)
			directed_case(&a->batch->c[i], n, &r);
		*b->batch = *a->batch;
		a->start(a);
		b->start(b);
		b->wait(b);
		a->wait(a);
		for (u32 i = 0; i < BATCH_CASES; i++, ran++) {
			struct insn_case *c = &a->batch->c[i];
			if (compare_results(a->batch, c, &a->result[i], &b->result[i], NULL))
				continue;
			if (bad++ < 5 || opt_verbose) {
				printf("MISMATCH directed %u: %s\n", n, directed_name(n));
				print_case(a->batch, c, stdout);
				compare_results(a->batch, c, &a->result[i], &b->result[i], stdout);
			}
		}
	}
	printf("insn: %llu hand-written cases, %llu differ\n", (unsigned long long)ran, (unsigned long long)bad);
	return bad;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(forms[*(const u32 *)a].name, forms[*(const u32 *)b].name);
}

/* Returns the number of forms that were wanted and not run often enough. */
static u32 report_forms(void)
{
	u32 covered = 0, missed = 0, lacking = 0, never_done = 0, bad = 0;
	qsort(wanted, n_wanted, sizeof(*wanted), by_name);
	for (u32 i = 0; i < n_wanted; i++) {
		struct form *f = &forms[wanted[i]];
		if (f->mismatches) {
			bad++;
			printf("  differs: %-60s %llu of %llu\n", f->name, (unsigned long long)f->mismatches, (unsigned long long)f->runs);
		}
		if (f->runs < opt_min) {
			missed++;
			printf("  run only %llu times: %s\n", (unsigned long long)f->runs, f->name);
		} else if (f->ud == f->runs) {
			lacking++;
			if (opt_verbose)
				printf("  #UD on this host: %s\n", f->name);
		} else {
			covered++;
			if (!f->done) {
				never_done++;
				if (opt_verbose)
					printf("  never completed without an exception: %s\n", f->name);
			}
		}
	}
	printf("insn: %u forms known, %u excluded; %u covered (%u of them only ever raised an exception), %u raise #UD on this "
	       "host, %u not run %llu times; %u differ\n",
	       n_forms, n_forms - n_wanted, covered, never_done, lacking, missed, (unsigned long long)opt_min, bad);
	return missed;
}

static void list_forms(void)
{
	for (u32 i = 0; i < n_forms; i++)
		printf("%s%s%s\n", forms[i].name, forms[i].excluded ? "    EXCLUDED: " : "", forms[i].excluded ? forms[i].excluded : "");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "count", 1, 0, 'n' }, { "seed", 1, 0, 's' }, { "case", 1, 0, 'c' }, { "form", 1, 0, 'f' },
		{ "engines", 1, 0, 'e' }, { "list", 0, 0, 'l' }, { "min", 1, 0, 'm' }, { "verbose", 0, 0, 'v' },
		{ "sequences", 0, 0, 'q' }, { 0 },
	};
	char engines[64] = "native,interp";
	int o;
	while ((o = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (o) {
		case 'n': opt_count = strtoull(optarg, NULL, 0); break;
		case 's': opt_seed = strtoull(optarg, NULL, 0); break;
		case 'c': opt_case = strtoull(optarg, NULL, 0); break;
		case 'f': opt_form = optarg; break;
		case 'e': snprintf(engines, sizeof(engines), "%s", optarg); break;
		case 'l': opt_list = true; break;
		case 'm': opt_min = strtoull(optarg, NULL, 0); break;
		case 'q': opt_sequences = true; break;
		case 'v': opt_verbose = true; break;
		default: return 2;
		}
	char *second = strchr(engines, ',');
	if (!second || optind != argc) {
		fprintf(stderr, "usage: insn [--count N] [--seed S] [--case N] [--form TEXT] [--engines A,B] [--list] [--min N]\n");
		return 2;
	}
	*second++ = 0;
	if (!host_probe())
		return 77;
	gen_init();
	if (opt_list) {
		list_forms();
		return 0;
	}
	choose_forms();
	if (!n_wanted) {
		fprintf(stderr, "insn: no form contains \"%s\"\n", opt_form);
		return 2;
	}
	printf("insn: seed %llu, %s against %s, XCR0 %llx\n", (unsigned long long)opt_seed, second, engines,
	       (unsigned long long)host.xcr0);
	struct executor *a = make_executor(engines), *b = make_executor(second);
	if (!host_read_maps())
		return 2;
	if (opt_case == ~0ull && !opt_form && !opt_sequences)
		mismatches += run_directed(a, b);
	if (opt_count || opt_case != ~0ull)
		run_random(a, b);
	a->destroy(a);
	b->destroy(b);
	if (opt_case != ~0ull)
		return mismatches ? 1 : 0;
	report_known(stdout);
	u32 missed = opt_sequences ? 0 : report_forms();
	printf("insn: ended with");
	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++)
		if (ends[i])
			printf(" %s %llu", end_name(i), (unsigned long long)ends[i]);
	printf("; %llu byte strings that are no instruction\n", (unsigned long long)n_garbage);
	if (mismatches || missed) {
		printf("insn: FAILED: %llu mismatches, %u forms not covered\n", (unsigned long long)mismatches, missed);
		return 1;
	}
	printf("insn: OK\n");
	return 0;
}
