/* Prints doc/cpuid.md from the tables of src/cpu; with a file name: fails when that file says anything else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu_stubs.h"

static const char *const reg_names[] = { "EAX", "EBX", "ECX", "EDX" };
static const char *const vendor_names[] = { "", "Intel", "AMD" };

static const char intro[] =
	"# What CPUID and the MSRs tell the guest\n\n"
	"Generated from `src/cpu/cpuid.c` and `src/cpu/msr.c` (`build/tests/unit/cpuid_doc > doc/cpuid.md`); a test compares.\n\n"
	"Vendor, family, model, brand and every feature of unprivileged code are the host's; supervisor features are umbra's own\n"
	"and the same on every host. A bit that is not listed is absent. `host`: as the host has it. `on`: provided whatever the\n"
	"host has (for the vendor named). `off`: absent whatever the host has. `dynamic`: follows the virtual CPU's state.\n\n"
	"The guest finds a CPU that needs no mitigation: Linux then uses no page-table isolation and no retpolines\n"
	"(`/sys/devices/system/cpu/vulnerabilities`: \"Not affected\", spectre_v2 \"Enhanced / Automatic IBRS\").\n\n";

static void print(FILE *f)
{
	fputs(intro, f);
	fprintf(f, "## Feature bits\n\n| leaf | register, bit | name | | why |\n|---|---|---|---|---|\n");
	for (unsigned i = 0; i < cpuid_bits_count; i++) {
		const struct cpuid_bit *b = &cpuid_bits[i];
		fprintf(f, "| %#x.%u | %s %u | %s | %s%s%s | %s |\n", b->leaf, b->subleaf, reg_names[b->reg], b->bit, b->name,
			cpuid_policy_names[b->policy], b->vendor ? ", " : "", vendor_names[b->vendor], b->why);
	}
	fprintf(f, "\n## Leaves of numbers\n\n| leaf | what | value |\n|---|---|---|\n");
	for (unsigned i = 0; i < cpuid_numbers_count; i++)
		fprintf(f, "| %#x | %s | %s |\n", cpuid_numbers[i].leaf, cpuid_numbers[i].what, cpuid_numbers[i].why);
	fprintf(f, "\n## MSRs\n\nAny other index is #GP, as on hardware, and counted (`run --stats`: unknown_msr).\n\n"
		   "| index | name | vendor |\n|---|---|---|\n");
	u32 first, last;
	unsigned vendor;
	const char *name;
	for (unsigned i = 0; msr_row(i, &first, &last, &name, &vendor); i++) {
		if (first == last)
			fprintf(f, "| %#x | %s | %s |\n", first, name, vendor_names[vendor]);
		else
			fprintf(f, "| %#x-%#x | %s | %s |\n", first, last, name, vendor_names[vendor]);
	}
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		print(stdout);
		return 0;
	}
	char *want = NULL, *have;
	size_t n = 0, got;
	FILE *f = open_memstream(&want, &n);
	if (!f)
		return 2;
	print(f);
	fclose(f);
	f = fopen(argv[1], "r");
	if (!f) {
		perror(argv[1]);
		return 1;
	}
	have = calloc(1, n + 2);
	got = fread(have, 1, n + 1, f);
	fclose(f);
	CHECK_EQ(got, n);
	CHECK(got == n && !memcmp(have, want, n));
	if (check_failed)
		printf("%s is stale: generate it again\n", argv[1]);
	free(have);
	free(want);
	return check_result();
}
