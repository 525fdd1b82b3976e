/* umbra's command line: the table of verbs and what they share. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/help.h"
#include "roles/roles.h"

const struct cli_verb cli_verbs[] = {
	{ "run", cli_run_main, "[OPTION…] [--] [COMMAND [ARG…]]", "boot a VM, run COMMAND in it, return its status",
	  help_run },
	{ "kernel", cli_kernel_main, "list [--json] | fetch [cloud|amd64|PACKAGE]…", "guest kernels: list, fetch",
	  help_kernel },
	{ "trace", cli_trace_main, "FILE", "show the events recorded by run --trace", help_trace },
	{ "compare", cli_compare_main, "A B", "the first difference of two deterministic runs", help_compare },
	{ "doctor", cli_doctor_main, "[--json]", "what this host offers to VMs, and what is missing", help_doctor },
	{ "help", cli_help_main, "[VERB]", "this list, or the options of VERB", "" },
};
const unsigned cli_n_verbs = ARRAY_SIZE(cli_verbs);

int cli_error(const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	for (char *p = line; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	fflush(stdout);
	fprintf(stderr, "umbra: %s\n", line);
	return CLI_FAIL;
}

int cli_help(const struct cli_verb *v)
{
	printf("usage: umbra %s %s\n\n%s\n%s", v->name, v->args, v->summary, v->help);
	return fflush(stdout) ? cli_error("cannot write the help: %s", strerror(errno)) : 0;
}

int cli_bad_option(const struct cli_verb *v, int argc, char **argv, int c)
{
	const char *arg = optind > 0 && optind <= argc ? argv[optind - 1] : "";
	if (c == ':')
		return cli_error("%s: option %s needs a value (see umbra %s --help)", v->name, arg, v->name);
	if (optopt && isprint(optopt) && !(arg[0] == '-' && arg[1] == '-'))
		return cli_error("%s: unknown option -%c (see umbra %s --help)", v->name, optopt, v->name);
	if (optopt && strchr(arg, '='))
		return cli_error("%s: option %.*s takes no value (see umbra %s --help)", v->name,
				 (int)(strchr(arg, '=') - arg), arg, v->name);
	return cli_error("%s: unknown or ambiguous option %s (see umbra %s --help)", v->name, arg, v->name);
}

bool cli_parse_u64(const char *s, u64 *out)
{
	if (!isdigit((unsigned char)*s))
		return false;
	char *end;
	errno = 0;
	unsigned long long n = strtoull(s, &end, s[0] == '0' && (s[1] == 'x' || s[1] == 'X') ? 16 : 10);
	if (errno || *end)
		return false;
	*out = n;
	return true;
}

bool cli_parse_size(const char *s, u64 *bytes)
{
	if (!isdigit((unsigned char)*s))
		return false;
	char *end;
	errno = 0;
	unsigned long long n = strtoull(s, &end, 10);
	if (errno)
		return false;
	unsigned shift = 0;
	switch (*end) {
	case 0: break;
	case 'b': case 'B': break;
	case 'k': case 'K': shift = 10; break;
	case 'm': case 'M': shift = 20; break;
	case 'g': case 'G': shift = 30; break;
	case 't': case 'T': shift = 40; break;
	default: return false;
	}
	if (*end)
		end++;
	if (shift && (!strcasecmp(end, "b") || !strcasecmp(end, "ib")))
		end += strlen(end);
	u64 unit = 1ull << shift, result;
	if (*end || __builtin_mul_overflow((u64)n, unit, &result))
		return false;
	*bytes = result;
	return true;
}

static int usage(FILE *f)
{
	fprintf(f, "usage: umbra VERB [OPTION…] [ARG…]\n\n"
		   "Virtual machines for an ordinary user: no root, no kernel module, no /dev/kvm.\n\n");
	for (unsigned i = 0; i < cli_n_verbs; i++)
		fprintf(f, "  %-8s %s\n", cli_verbs[i].name, cli_verbs[i].summary);
	fprintf(f, "\numbra VERB --help shows a verb's options; umbra --version the version.\n");
	return fflush(f) ? CLI_FAIL : 0;
}

static const struct cli_verb *find_verb(const char *name)
{
	for (unsigned i = 0; i < cli_n_verbs; i++)
		if (!strcmp(cli_verbs[i].name, name))
			return &cli_verbs[i];
	return NULL;
}

int cli_help_main(const struct cli_verb *self, int argc, char **argv)
{
	if (argc < 2)
		return usage(stdout);
	const struct cli_verb *v = find_verb(argv[1]);
	if (!v)
		return cli_error("no such verb: %s (see umbra help)", argv[1]);
	return cli_help(v);
}

static bool std_fds(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_WRONLY : O_RDONLY) != fd)
			return false;
	return true;
}

int main(int argc, char **argv)
{
	/* A role has exactly the descriptors it was handed. */
	if (argc > 1 && !strncmp(argv[1], "--role=", 7))
		return role_main(argv[1] + 7);
	/* A process started without stdin, stdout or stderr would hand those numbers to other files. */
	if (!std_fds())
		return CLI_FAIL;
	if (argc < 2) {
		usage(stderr);
		return CLI_FAIL;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return usage(stdout);
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
		printf("umbra %s\n", CLI_VERSION);
		return fflush(stdout) ? CLI_FAIL : 0;
	}
	const struct cli_verb *v = find_verb(argv[1]);
	if (!v)
		return cli_error("no such verb: %s (see umbra help)", argv[1]);
	return v->main(v, argc - 1, argv + 1);
}
