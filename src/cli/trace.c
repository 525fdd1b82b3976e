/* umbra trace: decodes the binary event trace of run --trace. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "core/trace.h"

int cli_trace_main(const struct cli_verb *self, int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { 0 } };
	for (int c; (c = getopt_long(argc, argv, ":h", options, NULL)) >= 0;)
		switch (c) {
		case 'h': return cli_help(self);
		default: return cli_bad_option(self, argc, argv, c);
		}
	if (optind + 1 != argc)
		return cli_error("trace: one trace file, please (see umbra trace --help)");
	const char *path = argv[optind];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return cli_error("cannot open trace %s: %s", path, strerror(errno));
	struct err e = { 0 };
	int r = trace_decode(fd, 1, &e);
	close(fd);
	return r ? cli_error("cannot decode trace %s: %s", path, e.text) : 0;
}
