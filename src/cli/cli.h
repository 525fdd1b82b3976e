/* What the verbs share: the table entry, errors, sizes.  Conventions of the
 * command line: errors are one line on stderr, "umbra: what failed: why (what
 * to do)"; status 125 for umbra's own failures. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "core/base.h"

#define CLI_FAIL 125 /* umbra's own failure */
#define CLI_CANNOT_RUN 126
#define CLI_NOT_FOUND 127

#define CLI_VERSION UMBRA_VERSION

struct cli_verb {
	const char *name;
	int (*main)(const struct cli_verb *self, int argc, char **argv); /* argv[0] is the verb; returns the exit status */
	const char *args;    /* after the verb's name in its usage line */
	const char *summary; /* one line for the list of verbs */
	const char *help;    /* the options, whole lines */
};

extern const struct cli_verb cli_verbs[];
extern const unsigned cli_n_verbs;

/* Prints "umbra: " and one line on stderr; control characters from file names and arguments are
 * shown as '?'.  Returns CLI_FAIL. */
int cli_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Usage, summary and options of a verb, to stdout; returns 0. */
int cli_help(const struct cli_verb *v);

/* For the default: case of getopt_long with opterr = 0: says which option is unknown or lacks its value. */
int cli_bad_option(const struct cli_verb *v, int argc, char **argv, int c);

/* "512M", "2G", "65536K", "1048576" (bytes) -> bytes; false: not a size, or more than fits 64 bits. */
bool cli_parse_size(const char *s, u64 *bytes);

/* Decimal or 0x number without sign or trailing text. */
bool cli_parse_u64(const char *s, u64 *out);

/* Verb families. */
int cli_run_main(const struct cli_verb *self, int argc, char **argv);
int cli_doctor_main(const struct cli_verb *self, int argc, char **argv);
int cli_kernel_main(const struct cli_verb *self, int argc, char **argv);
int cli_trace_main(const struct cli_verb *self, int argc, char **argv);
int cli_compare_main(const struct cli_verb *self, int argc, char **argv);
int cli_help_main(const struct cli_verb *self, int argc, char **argv);

#endif
