/* Guest kernels on this host: those fetched into the user's data directory
 * (KERNELS/RELEASE/vmlinuz, config, System.map, modules/) and those of /boot. */
#ifndef CLI_KERNELS_H
#define CLI_KERNELS_H

#include <limits.h>

#include "core/base.h"

struct kernel_found {
	char release[128];      /* as uname -r: 6.1.0-56-cloud-amd64 */
	char path[PATH_MAX];    /* the image */
	char modules[PATH_MAX]; /* directory of modules, "" when there is none */
	bool fetched;           /* in the data directory, not /boot */
	bool readable;
	u64 size;               /* bytes */
};

/* ${XDG_DATA_HOME:-$HOME/.local/share}/umbra/kernels; false: no home directory is known. */
bool kernels_dir(char out[PATH_MAX]);

/* Newest first, the data directory before /boot.  Returns how many; *list is malloced. */
unsigned kernels_list(struct kernel_found **list);

/* The kernel a run takes by default.  False: there is none. */
bool kernels_default(struct kernel_found *out);

/* Is this an ELF without Linux in it (a test program, another kernel: multiboot or PVH)?  It runs no command. */
bool kernel_is_bare(int fd);

#endif
