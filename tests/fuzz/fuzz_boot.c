/* libFuzzer entry: an extracted kernel as the vm role gets it: ELF, notes,
 * multiboot header, relocations; loaded into a 16 MiB machine without engine.
 * The first byte chooses protocol and randomization. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../machine/fake_hv.h"
#include "machine/machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int ram_fd = -1;
	char err[512] = "";
	struct machine_config cfg;
	struct machine *m;
	if (!size)
		return 0;
	if (ram_fd < 0)
		ram_fd = ram_memfd_create("ram", 64 * MiB);
	memset(&fake, 0, sizeof fake);
	machine_config_init(&cfg);
	cfg.hv = &fake_hv;
	cfg.ram_size = 64 * MiB;
	cfg.ram_fd = ram_fd;
	cfg.boot = data[0] & 3;
	cfg.have_seed = data[0] & 4;
	cfg.seed[7] = cfg.seed[15] = data[0];
	cfg.kernel_fd = memfd_create("kernel", 0);
	if (pwrite(cfg.kernel_fd, data + 1, size - 1, 0) != (ssize_t)size - 1 ||
	    machine_create(&cfg, &m, err, sizeof err))
		abort();
	int r = machine_load(m, err, sizeof err);
	if ((r != 0) != (err[0] != 0) || strchr(err, '\n'))
		abort();
	machine_destroy(m);
	close(cfg.kernel_fd);
	return 0;
}
