/* Builds the initramfs of a run: see initramfs.h.
 *
 * The built-in system is busybox and umbra's agent as /init.  A user's tree or
 * initramfs is packed as it is; the agent lies beside it in /.umbra, from where
 * it removes itself when it runs.  Everything belongs to root inside: the user
 * is root of this machine.  Device nodes, sockets and other file systems
 * mounted in the tree stay out (the guest mounts its own /dev). */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cpio.h"
#include "cli/initramfs.h"
#include "core/agent_proto.h"

extern const u8 embed_agent[], embed_agent_end[], embed_busybox[], embed_busybox_end[];

static const char *const applets[] = {
#include "applets.h"
};

static const struct { const char *name; u32 perms; } system_dirs[] = {
	{ "bin", 0755 }, { "sbin", 0755 }, { "usr", 0755 }, { "usr/bin", 0755 }, { "usr/sbin", 0755 }, { "etc", 0755 },
	{ "root", 0700 }, { "home", 0755 }, { "var", 0755 }, { "var/tmp", 01777 }, { "dev", 0755 }, { "proc", 0555 },
	{ "sys", 0555 }, { "run", 0755 }, { "tmp", 01777 }, { "mnt", 0755 }, { "lib", 0755 },
};

static const struct { const char *name, *text; } system_files[] = {
	{ "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n" },
	{ "etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n" },
	{ "etc/hosts", "127.0.0.1 localhost\n::1 localhost\n" },
};

static void builtin_system(struct cpio *c)
{
	cpio_dir(c, ".", 0755);
	for (unsigned i = 0; i < ARRAY_SIZE(system_dirs); i++)
		cpio_dir(c, system_dirs[i].name, system_dirs[i].perms);
	for (unsigned i = 0; i < ARRAY_SIZE(system_files); i++)
		cpio_file(c, system_files[i].name, 0644, system_files[i].text, strlen(system_files[i].text));
	cpio_chardev(c, "dev/console", 0600, 5, 1); /* init's descriptors before devtmpfs is mounted */
	cpio_file(c, "bin/busybox", 0755, embed_busybox, (size_t)(embed_busybox_end - embed_busybox));
	for (unsigned i = 0; i < ARRAY_SIZE(applets); i++)
		if (strcmp(applets[i], "bin/busybox"))
			cpio_symlink(c, applets[i], "/bin/busybox");
	cpio_file(c, "init", 0755, embed_agent, (size_t)(embed_agent_end - embed_agent));
}

/* ---- a directory tree ---- */

struct hard_link {
	dev_t dev;
	ino_t host;
	u32 ino; /* in the archive */
};

static int hard_link_cmp(const void *a, const void *b)
{
	const struct hard_link *x = a, *y = b;
	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	return x->host < y->host ? -1 : x->host > y->host;
}

struct tree {
	struct cpio *c;
	struct initramfs *out;
	const char *prefix; /* in the archive, "" or "lib/modules/…" */
	void *links;        /* tsearch tree of struct hard_link */
};

static void skip(struct tree *t, const char *path, int errnum)
{
	if (!t->out->n_skipped++)
		snprintf(t->out->skipped, sizeof t->out->skipped, "%.200s: %s", path, strerror(errnum));
}

static void add_file(struct tree *t, const char *path, const char *name, const struct stat *seen)
{
	static u8 buf[64 << 10];
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		skip(t, path, fd < 0 ? errno : EINVAL);
		if (fd >= 0)
			close(fd);
		return;
	}
	struct cpio_member m = { .name = name, .mode = st.st_mode, .mtime = (u32)st.st_mtime, .size = (u64)st.st_size };
	if (st.st_nlink > 1) {
		m.nlink = (u32)st.st_nlink;
		struct hard_link *new = malloc(sizeof *new), **have = NULL;
		if (new) {
			*new = (struct hard_link){ st.st_dev, st.st_ino, 0 };
			have = tsearch(new, &t->links, hard_link_cmp);
		}
		if (have && *have != new) {
			/* A further name: the kernel links it to the first one, which carried the data. */
			m.ino = (*have)->ino;
			m.size = 0;
			free(new);
		} else if (have) {
			m.ino = new->ino = cpio_new_ino(t->c);
		} else {
			free(new);
			m.nlink = 1;
		}
	}
	cpio_member(t->c, &m);
	/* The header promised st_size bytes, whatever the file does meanwhile. */
	for (u64 left = m.size; left && !t->c->errnum;) {
		size_t want = left < sizeof buf ? (size_t)left : sizeof buf;
		ssize_t n = read(fd, buf, want);
		if (n <= 0) {
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0)
				skip(t, path, errno);
			memset(buf, 0, want);
			n = (ssize_t)want;
		}
		cpio_data(t->c, buf, (size_t)n);
		left -= (u64)n;
	}
	cpio_end_member(t->c);
	close(fd);
}

static int by_name(const FTSENT **a, const FTSENT **b) { return strcmp((*a)->fts_name, (*b)->fts_name); }

/* Packs dir under prefix.  0 or -errno with words. */
static int add_tree(struct tree *t, const char *dir, struct err *e)
{
	struct stat st;
	if (stat(dir, &st))
		return err_sys(e, errno, "cannot use %s as a directory tree", dir);
	if (!S_ISDIR(st.st_mode))
		return err_set(e, ENOTDIR, "cannot use %s as a directory tree: not a directory", dir);
	if (access(dir, R_OK | X_OK))
		return err_sys(e, errno, "cannot read directory %s", dir);
	char top[PATH_MAX];
	if (snprintf(top, sizeof top, "%s/.", dir) >= (int)sizeof top)
		return err_sys(e, ENAMETOOLONG, "cannot use %.100s…", dir);
	char *paths[] = { top, NULL };
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, by_name);
	if (!fts)
		return err_sys(e, errno, "cannot walk %s", dir);
	char name[PATH_MAX + 300];
	size_t skip_len = strlen(top);
	for (FTSENT *f; (f = fts_read(fts)) && !t->c->errnum;) {
		const char *rel = f->fts_path + skip_len;
		rel += *rel == '/';
		if (!*rel) { /* the top itself */
			if (f->fts_info == FTS_D)
				cpio_dir(t->c, *t->prefix ? t->prefix : ".", f->fts_statp->st_mode & 07777);
			continue;
		}
		snprintf(name, sizeof name, "%s%s%s", t->prefix, *t->prefix ? "/" : "", rel);
		struct cpio_member m = { .name = name, .mode = f->fts_statp->st_mode,
					 .mtime = (u32)f->fts_statp->st_mtime };
		switch (f->fts_info) {
		case FTS_D:
			cpio_member(t->c, &m);
			break;
		case FTS_DNR: skip(t, f->fts_path, f->fts_errno); break; /* its FTS_D was written: an empty directory */
		case FTS_F: add_file(t, f->fts_path, name, f->fts_statp); break;
		case FTS_SL:
		case FTS_SLNONE: {
			char target[PATH_MAX];
			ssize_t n = readlink(f->fts_path, target, sizeof target);
			if (n <= 0) {
				skip(t, f->fts_path, errno);
				break;
			}
			m.size = (u64)n;
			cpio_member(t->c, &m);
			cpio_data(t->c, target, (size_t)n);
			cpio_end_member(t->c);
			break;
		}
		case FTS_DEFAULT: /* device, FIFO, socket */
			if (S_ISFIFO(f->fts_statp->st_mode))
				cpio_member(t->c, &m);
			break;
		case FTS_NS:
		case FTS_ERR: skip(t, f->fts_path, f->fts_errno); break;
		default: break;
		}
	}
	fts_close(fts);
	return 0;
}

static int add_base(struct cpio *c, int fd, const char *name, struct err *e)
{
	static u8 buf[64 << 10];
	u64 at = 0;
	for (;;) {
		ssize_t n = pread(fd, buf, sizeof buf, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_sys(e, errno, "cannot read initrd %s", name);
		if (!n)
			break;
		cpio_raw(c, buf, (size_t)n);
		at += (u64)n;
	}
	cpio_pad(c);
	return 0;
}

static void add_modules(struct tree *t, const struct initramfs_config *cfg, char prefix[300])
{
	/* A member "lib" would replace the link of a tree whose /lib is /usr/lib. */
	char path[PATH_MAX];
	struct stat st;
	snprintf(path, sizeof path, "%s/lib", cfg->root ? cfg->root : "");
	const char *lib = cfg->root && !lstat(path, &st) && S_ISLNK(st.st_mode) ? "usr/lib" : "lib";
	snprintf(prefix, 300, "%s/modules", lib);
	cpio_dir(t->c, lib, 0755);
	cpio_dir(t->c, prefix, 0755);
	snprintf(prefix, 300, "%s/modules/%s", lib, cfg->release);
	t->prefix = prefix;
}

int initramfs_build(const struct initramfs_config *cfg, struct initramfs *out, struct err *e)
{
	*out = (struct initramfs){ .fd = -1 };
	int fd = memfd_create("umbra-initramfs", MFD_CLOEXEC);
	struct cpio *c = malloc(sizeof *c);
	if (fd < 0 || !c) {
		free(c);
		return err_sys(e, errno, "cannot make the initramfs");
	}
	cpio_begin(c, fd, cfg->max);
	struct tree t = { .c = c, .out = out, .prefix = "" };
	int r = 0;
	char prefix[300];
	if (cfg->base_fd >= 0)
		r = add_base(c, cfg->base_fd, cfg->base_name, e);
	if (cfg->root || cfg->base_fd >= 0) {
		out->init = "/.umbra/agent";
		if (!r && cfg->root)
			r = add_tree(&t, cfg->root, e);
		cpio_dir(c, "dev", 0755);
		cpio_chardev(c, "dev/console", 0600, 5, 1);
		cpio_dir(c, ".umbra", 0700);
		cpio_file(c, ".umbra/agent", 0755, embed_agent, (size_t)(embed_agent_end - embed_agent));
	} else {
		out->init = "/init";
		builtin_system(c);
	}
	if (cfg->run) {
		cpio_dir(c, ".umbra", 0700);
		cpio_file(c, &AGENT_RUN_FILE[1], 0600, cfg->run, cfg->run_len);
	}
	if (!r && cfg->modules) {
		add_modules(&t, cfg, prefix);
		r = add_tree(&t, cfg->modules, e);
	}
	tdestroy(t.links, free);
	int w = cpio_finish(c);
	out->size = c->size;
	free(c);
	if (!r && w == -EFBIG)
		r = err_set(e, EFBIG, "%s does not fit", cfg->root ? cfg->root : cfg->modules ? cfg->modules : "initramfs");
	else if (!r && w)
		r = err_sys(e, -w, "cannot write the initramfs");
	if (r) {
		close(fd);
		return r;
	}
	out->fd = fd;
	return 0;
}
