/* Finding guest kernels: see kernels.h. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/kernels.h"

bool kernels_dir(char out[PATH_MAX])
{
	const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
	int n;
	if (data && data[0] == '/')
		n = snprintf(out, PATH_MAX, "%s/umbra/kernels", data);
	else if (home && home[0] == '/')
		n = snprintf(out, PATH_MAX, "%s/.local/share/umbra/kernels", home);
	else
		return false;
	return n > 0 && n < PATH_MAX;
}

struct list {
	struct kernel_found *k;
	unsigned n, cap;
};

static void list_add(struct list *l, const char *release, const char *path, const char *modules, bool fetched)
{
	struct stat st;
	if (stat(path, &st) || !S_ISREG(st.st_mode))
		return;
	if (l->n == l->cap) {
		unsigned cap = l->cap ? 2 * l->cap : 8;
		struct kernel_found *k = realloc(l->k, cap * sizeof *k);
		if (!k)
			return;
		l->k = k;
		l->cap = cap;
	}
	struct kernel_found *k = &l->k[l->n];
	memset(k, 0, sizeof *k);
	if (strlen(release) >= sizeof k->release || strlen(path) >= sizeof k->path)
		return;
	strcpy(k->release, release);
	strcpy(k->path, path);
	if (strlen(modules) < sizeof k->modules && !access(modules, R_OK | X_OK))
		strcpy(k->modules, modules);
	k->fetched = fetched;
	k->readable = !access(path, R_OK);
	k->size = (u64)st.st_size;
	l->n++;
}

static int newest_first(const void *a, const void *b)
{
	const struct kernel_found *x = a, *y = b;
	if (x->fetched != y->fetched)
		return x->fetched ? -1 : 1;
	return strverscmp(y->release, x->release);
}

unsigned kernels_list(struct kernel_found **out)
{
	struct list l = { 0 };
	char dir[PATH_MAX], path[PATH_MAX + 300], modules[PATH_MAX + 300];
	DIR *d = kernels_dir(dir) ? opendir(dir) : NULL;
	for (struct dirent *e; d && (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s/vmlinuz", dir, e->d_name);
		snprintf(modules, sizeof modules, "%s/%s/modules", dir, e->d_name);
		list_add(&l, e->d_name, path, modules, true);
	}
	if (d)
		closedir(d);
	d = opendir("/boot");
	for (struct dirent *e; d && (e = readdir(d));) {
		if (strncmp(e->d_name, "vmlinuz-", 8))
			continue;
		snprintf(path, sizeof path, "/boot/%s", e->d_name);
		snprintf(modules, sizeof modules, "/lib/modules/%s", e->d_name + 8);
		list_add(&l, e->d_name + 8, path, modules, false);
	}
	if (d)
		closedir(d);
	if (l.n)
		qsort(l.k, l.n, sizeof *l.k, newest_first);
	*out = l.k;
	return l.n;
}

bool kernels_default(struct kernel_found *out)
{
	struct kernel_found *k;
	unsigned n = kernels_list(&k), i = 0;
	while (i < n && !k[i].readable)
		i++;
	if (i < n)
		*out = k[i];
	free(k);
	return i < n;
}

bool kernel_is_bare(int fd)
{
	static const char banner[] = "Linux version "; /* every vmlinux has it in its read-only data */
	enum { PIECE = 1 << 20, OVERLAP = sizeof banner - 2 };
	char magic[4];
	if (pread(fd, magic, sizeof magic, 0) != sizeof magic || memcmp(magic, "\177ELF", sizeof magic))
		return false;
	char *buf = malloc(PIECE);
	bool found = !buf;
	ssize_t n;
	for (off_t at = 0; !found && (n = pread(fd, buf, PIECE, at)) > OVERLAP; at += n - OVERLAP)
		found = memmem(buf, (size_t)n, banner, sizeof banner - 1) != NULL;
	free(buf);
	return !found;
}
