/* The initramfs of a run, built on the fly into a memfd. */
#ifndef CLI_INITRAMFS_H
#define CLI_INITRAMFS_H

#include "core/base.h"
#include "core/error.h"

struct initramfs_config {
	const char *root;     /* directory to pack; NULL: the built-in busybox system, unless base_fd */
	int base_fd;          /* the user's own initramfs, which comes first; -1: none */
	const char *base_name;
	const char *modules;  /* directory to pack as /lib/modules/RELEASE; NULL: none */
	const char *release;  /* of those modules */
	const void *run;      /* payload of AGENT_RUN to carry as AGENT_RUN_FILE; NULL: none */
	u64 run_len;
	u64 max;              /* bytes the archive may have; more: -EFBIG */
};

struct initramfs {
	int fd;              /* memfd, read-only from here on */
	u64 size;            /* bytes */
	const char *init;    /* the rdinit= it needs */
	unsigned n_skipped;  /* files of the tree that could not be read */
	char skipped[256];   /* the first of them, and why */
};

/* 0 or -errno with words. */
int initramfs_build(const struct initramfs_config *cfg, struct initramfs *out, struct err *e);

#endif
