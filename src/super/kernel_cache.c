/* Theory of operation: the name of an entry is the SHA-256 of the kernel file
 * and the version of the extractor.  An entry is written under no name
 * (O_TMPFILE; where the file system cannot, under a name of its own), by the
 * confined extract role through a descriptor, and gets its name when it is
 * complete and on disk: a reader never sees half of one, and two writers make
 * the same. */
#include "super/kernel_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"
#include "core/sha256.h"
#include "core/spawn.h"
#include "super/proto.h"

#define KERNEL_CACHE_VERSION 1 /* counts changes of what image_extract() writes */

struct kernel_cache_file {
	int fd;
	char temp[600];  /* its temporary name, or empty */
	char final[600]; /* the name it should get, or empty: not cached */
};

/* The words of a role that failed, or -errno when it died. */
static int kernel_cache_listen(int sock, struct spawned *role, struct err *e)
{
	static struct msg m;
	for (;;) {
		int r = msg_recv(sock, &m, proto_from_extract, proto_from_extract_n, false);
		if (r <= 0)
			break;
		if (m.type == PROTO_EXTRACTED)
			return 0;
		if (m.type == PROTO_FAILED) {
			struct proto_failed f;
			memcpy(&f, m.body, sizeof f);
			f.text[sizeof f.text - 1] = 0;
			return err_set(e, f.errnum > 0 && f.errnum < 4096 ? f.errnum : EINVAL, "%s", f.text);
		}
	}
	spawn_kill(role); /* it may have sent rubbish */
	int wstatus = 0;
	char how[64];
	spawn_reap(role, true, &wstatus);
	spawn_describe(wstatus, how, sizeof how);
	return err_set(e, ECHILD, "the process that takes kernels apart %s", how);
}

static int kernel_cache_extract(int kernel_fd, int out_fd, struct err *e)
{
	int sv[2];
	int r = msg_pair(sv);
	if (r)
		return err_sys(e, -r, "cannot make a socket");
	const struct spawn_fd fds[] = { { sv[1], ROLE_FD_CONTROL }, { kernel_fd, EXTRACT_FD_IN }, { out_fd, EXTRACT_FD_OUT } };
	const struct spawn_config cfg = { .role = "extract", .fds = fds, .n_fds = ARRAY_SIZE(fds), .new_session = true };
	struct spawned role;
	r = spawn_role(&cfg, &role, e);
	close(sv[1]);
	if (!r) {
		r = kernel_cache_listen(sv[0], &role, e);
		int wstatus;
		spawn_reap(&role, true, &wstatus);
	}
	close(sv[0]);
	return r;
}

static void kernel_cache_mkdirs(char *path)
{
	for (char *p = path + 1; (p = strchr(p, '/')); p++) {
		*p = 0;
		mkdir(path, 0700);
		*p = '/';
	}
}

/* Where the entry lives; false: no place. */
static bool kernel_cache_path(const char *cache_dir, const char *hash, char *out, size_t size)
{
	const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	int n = -1;
	if (cache_dir)
		n = snprintf(out, size, "%s/kernels/%s.%d", cache_dir, hash, KERNEL_CACHE_VERSION);
	else if (xdg && xdg[0] == '/')
		n = snprintf(out, size, "%s/umbra/kernels/%s.%d", xdg, hash, KERNEL_CACHE_VERSION);
	else if (home && home[0] == '/')
		n = snprintf(out, size, "%s/.cache/umbra/kernels/%s.%d", home, hash, KERNEL_CACHE_VERSION);
	return n > 0 && (size_t)n < size;
}

/* A complete entry of our own, or -errno. */
static int kernel_cache_open(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	struct stat st;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022) || st.st_size == 0) {
		close(fd);
		return -EPERM;
	}
	return fd;
}

/* An empty file in the cache's directory. */
static int kernel_cache_create(struct kernel_cache_file *f)
{
	char dir[600];
	snprintf(dir, sizeof dir, "%s", f->final);
	kernel_cache_mkdirs(dir);
	*strrchr(dir, '/') = 0;
	f->temp[0] = 0;
	f->fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (f->fd >= 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
		return -errno;
	int n = snprintf(f->temp, sizeof f->temp, "%s.tmp%d", f->final, (int)getpid());
	if (n < 0 || (size_t)n >= sizeof f->temp)
		return -ENAMETOOLONG;
	f->fd = open(f->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (f->fd < 0) {
		int r = -errno;
		f->temp[0] = 0;
		return r;
	}
	return 0;
}

/* Gives a complete file its name. */
static int kernel_cache_commit(const struct kernel_cache_file *f)
{
	if (fdatasync(f->fd))
		return -errno;
	if (f->temp[0])
		return rename(f->temp, f->final) ? -errno : 0;
	char self[64];
	snprintf(self, sizeof self, "/proc/self/fd/%d", f->fd);
	if (linkat(AT_FDCWD, self, AT_FDCWD, f->final, AT_SYMLINK_FOLLOW) == 0 || errno == EEXIST)
		return 0;
	return -errno;
}

/* A descriptor of the same file that cannot write. */
static int kernel_cache_readonly(int fd)
{
	char self[64];
	snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
	int ro = open(self, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		return fd;
	close(fd);
	return ro;
}

/* Into the cache.  A descriptor, or -errno; *content: the kernel file is to blame, elsewhere would not help. */
static int kernel_cache_fill(int kernel_fd, const char *path, bool *content, struct err *e)
{
	struct kernel_cache_file f;
	snprintf(f.final, sizeof f.final, "%s", path);
	*content = false;
	int r = kernel_cache_create(&f);
	if (r)
		return err_sys(e, -r, "cannot write the cache %s", path);
	r = kernel_cache_extract(kernel_fd, f.fd, e);
	if (r) {
		*content = r == -EINVAL;
		goto fail;
	}
	r = kernel_cache_commit(&f);
	if (r) {
		err_sys(e, -r, "cannot write the cache %s", path);
		goto fail;
	}
	return kernel_cache_readonly(f.fd);
fail:
	if (f.temp[0])
		unlink(f.temp);
	close(f.fd);
	return r;
}

static int kernel_cache_in_memory(int kernel_fd, struct err *e)
{
	int fd = memfd_create("umbra-kernel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return err_sys(e, errno, "cannot make a memory file");
	int r = kernel_cache_extract(kernel_fd, fd, e);
	if (!r && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		r = err_sys(e, errno, "cannot seal a memory file");
	if (r) {
		close(fd);
		return r;
	}
	return fd;
}

int kernel_cache_get(int kernel_fd, const char *kernel_name, const char *cache_dir, struct err *e)
{
	struct err why = { 0 };
	struct stat st;
	if (fstat(kernel_fd, &st))
		return err_sys(e, errno, "cannot read kernel %s", kernel_name);
	if (!S_ISREG(st.st_mode))
		return err_set(e, EINVAL, "cannot read kernel %s: not a regular file", kernel_name);
	u8 magic[4] = { 0 };
	ssize_t n = pread(kernel_fd, magic, sizeof magic, 0);
	if (n < 0)
		return err_sys(e, errno, "cannot read kernel %s", kernel_name);
	if (n == sizeof magic && !memcmp(magic, "\177ELF", 4)) { /* nothing to take apart */
		int fd = fcntl(kernel_fd, F_DUPFD_CLOEXEC, 3);
		return fd < 0 ? err_sys(e, errno, "cannot read kernel %s", kernel_name) : fd;
	}
	char hash[65], path[512];
	int fd = sha256_fd(kernel_fd, hash);
	if (fd < 0)
		return err_sys(e, -fd, "cannot read kernel %s", kernel_name);
	bool cacheable = kernel_cache_path(cache_dir, hash, path, sizeof path);
	if (cacheable) {
		fd = kernel_cache_open(path);
		if (fd >= 0)
			return fd;
		bool content;
		fd = kernel_cache_fill(kernel_fd, path, &content, &why);
		if (fd >= 0)
			return fd;
		if (content)
			return err_set(e, -fd, "cannot boot %s: %s", kernel_name, why.text);
		log_info("the kernel is not cached: %s", why.text);
	}
	fd = kernel_cache_in_memory(kernel_fd, &why);
	if (fd < 0)
		return err_set(e, -fd, "cannot boot %s: %s", kernel_name, why.text);
	return fd;
}
