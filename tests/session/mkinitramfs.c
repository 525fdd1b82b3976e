/* Writes the initramfs of a run to stdout, for tests of the guest's side under another VMM:
 *   mkinitramfs [ROOT [MODULES RELEASE]] */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/initramfs.h"

int main(int argc, char **argv)
{
	struct initramfs_config c = { .base_fd = -1 };
	if (argc > 1 && *argv[1])
		c.root = argv[1];
	if (argc > 3) {
		c.modules = argv[2];
		c.release = argv[3];
	}
	struct initramfs i;
	struct err e = { 0 };
	if (initramfs_build(&c, &i, &e)) {
		fprintf(stderr, "mkinitramfs: %s\n", e.text);
		return 1;
	}
	if (i.n_skipped)
		fprintf(stderr, "mkinitramfs: %u skipped, first %s\n", i.n_skipped, i.skipped);
	static char buf[1 << 16];
	for (u64 at = 0; at < i.size;) {
		ssize_t n = pread(i.fd, buf, sizeof buf, (off_t)at);
		if (n <= 0 || write(1, buf, (size_t)n) != n)
			return 1;
		at += (u64)n;
	}
	return 0;
}
