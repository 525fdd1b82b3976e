/* libFuzzer entry: a kernel file as the extract role gets it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine/image/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

_Noreturn void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, expr);
	abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int in = -1, out = -1;
	struct image_info info;
	char err[256];
	if (in < 0) {
		in = memfd_create("in", 0);
		out = memfd_create("out", 0);
	}
	if (ftruncate(in, 0) || ftruncate(out, 0) || lseek(out, 0, SEEK_SET) || pwrite(in, data, size, 0) != (ssize_t)size)
		abort();
	int r = image_extract(in, out, &info, err, sizeof err);
	if ((r == 0) != (info.error == IMAGE_OK) || (r && !err[0]) || strlen(err) >= sizeof err || strchr(err, '\n'))
		abort();
	if (r == 0 && lseek(out, 0, SEEK_END) != (off_t)info.output_size)
		abort();
	return 0;
}
