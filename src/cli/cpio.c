/* Writer of newc cpio archives: see cpio.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cpio.h"

void cpio_begin(struct cpio *c, int fd, u64 max)
{
	c->fd = fd;
	c->size = 0;
	c->max = max;
	c->ino = 0;
	c->errnum = 0;
	c->fill = 0;
}

u32 cpio_new_ino(struct cpio *c) { return ++c->ino; }

static void flush(struct cpio *c)
{
	for (size_t done = 0; done < c->fill && !c->errnum;) {
		ssize_t n = write(c->fd, c->buf + done, c->fill - done);
		if (n > 0)
			done += (size_t)n;
		else if (n < 0 && errno != EINTR)
			c->errnum = -errno;
	}
	c->fill = 0;
}

void cpio_raw(struct cpio *c, const void *p, size_t n)
{
	const u8 *b = p;
	if (!c->errnum && c->max && n > c->max - c->size)
		c->errnum = -EFBIG;
	while (n && !c->errnum) {
		size_t k = sizeof c->buf - c->fill;
		if (k > n)
			k = n;
		memcpy(c->buf + c->fill, b, k);
		c->fill += k;
		c->size += k;
		b += k;
		n -= k;
		if (c->fill == sizeof c->buf)
			flush(c);
	}
}

void cpio_pad(struct cpio *c)
{
	static const u8 zero[4];
	cpio_raw(c, zero, -c->size & 3);
}

void cpio_data(struct cpio *c, const void *p, size_t n) { cpio_raw(c, p, n); }
void cpio_end_member(struct cpio *c) { cpio_pad(c); }

void cpio_member(struct cpio *c, const struct cpio_member *m)
{
	char head[111];
	u32 nlink = m->nlink ? m->nlink : (m->mode & S_IFMT) == S_IFDIR ? 2 : 1;
	size_t name_size = strlen(m->name) + 1;
	if (m->size > UINT32_MAX || name_size > 4096) {
		if (!c->errnum)
			c->errnum = m->size > UINT32_MAX ? -EFBIG : -ENAMETOOLONG;
		return;
	}
	/* magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check */
	snprintf(head, sizeof head, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		 m->ino ? m->ino : cpio_new_ino(c), m->mode, 0u, 0u, nlink, m->mtime, (u32)m->size, 0u, 0u,
		 m->rdev_major, m->rdev_minor, (u32)name_size, 0u);
	cpio_raw(c, head, 110);
	cpio_raw(c, m->name, name_size);
	cpio_pad(c);
}

void cpio_dir(struct cpio *c, const char *name, u32 perms)
{
	cpio_member(c, &(struct cpio_member){ .name = name, .mode = S_IFDIR | perms });
	cpio_end_member(c);
}

void cpio_symlink(struct cpio *c, const char *name, const char *target)
{
	cpio_member(c, &(struct cpio_member){ .name = name, .mode = S_IFLNK | 0777, .size = strlen(target) });
	cpio_data(c, target, strlen(target));
	cpio_end_member(c);
}

void cpio_file(struct cpio *c, const char *name, u32 perms, const void *data, size_t n)
{
	cpio_member(c, &(struct cpio_member){ .name = name, .mode = S_IFREG | perms, .size = n });
	cpio_data(c, data, n);
	cpio_end_member(c);
}

void cpio_chardev(struct cpio *c, const char *name, u32 perms, u32 major, u32 minor)
{
	cpio_member(c, &(struct cpio_member){
			       .name = name, .mode = S_IFCHR | perms, .rdev_major = major, .rdev_minor = minor });
	cpio_end_member(c);
}

int cpio_finish(struct cpio *c)
{
	cpio_member(c, &(struct cpio_member){ .name = "TRAILER!!!", .mode = 0 });
	cpio_pad(c);
	flush(c);
	return c->errnum;
}
