#include "machine/image/elf_image.h"

#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTES_MAX (64 * KiB)
#define XEN_ELFNOTE_PHYS32_ENTRY 18 /* xen/include/public/elfnote.h */

__attribute__((format(printf, 3, 4))) static int bad(char *err, size_t len, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(err, len, fmt, ap);
	va_end(ap);
	return -ENOEXEC;
}

int elf_pread(int fd, void *buf, u64 len, u64 off)
{
	for (u64 done = 0; done < len;) {
		u64 n = len - done < GiB ? len - done : GiB;
		ssize_t r = pread(fd, (u8 *)buf + done, n, (off_t)(off + done));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -EIO;
		done += (u64)r;
	}
	return 0;
}

/* Both classes in one form. */
struct header {
	u64 entry, phoff, shoff;
	unsigned phnum, phentsize, shnum, shentsize;
};

static int read_header(int fd, struct elf_image *img, struct header *h, char *err, size_t errlen)
{
	union {
		unsigned char ident[EI_NIDENT];
		Elf32_Ehdr e32;
		Elf64_Ehdr e64;
	} u = { 0 };
	/* A 32-bit ELF may be shorter than a 64-bit header. */
	u64 n = img->file_size < sizeof(u) ? img->file_size : sizeof(u);
	int r = elf_pread(fd, &u, n, 0);
	if (r)
		return bad(err, errlen, "cannot read the kernel image: %s", strerror(-r)), r;
	if (n < sizeof(Elf32_Ehdr) || memcmp(u.ident, ELFMAG, SELFMAG))
		return bad(err, errlen, "the kernel image is not an ELF");
	if (u.ident[EI_DATA] != ELFDATA2LSB || (u.e32.e_machine != EM_X86_64 && u.e32.e_machine != EM_386))
		return bad(err, errlen, "the kernel image is an ELF for another architecture");
	if (u.ident[EI_CLASS] == ELFCLASS64 && n >= sizeof(Elf64_Ehdr)) {
		img->is64 = true;
		*h = (struct header){ u.e64.e_entry, u.e64.e_phoff, u.e64.e_shoff, u.e64.e_phnum, u.e64.e_phentsize,
				      u.e64.e_shnum, u.e64.e_shentsize };
	} else if (u.ident[EI_CLASS] == ELFCLASS32) {
		*h = (struct header){ u.e32.e_entry, u.e32.e_phoff, u.e32.e_shoff, u.e32.e_phnum, u.e32.e_phentsize,
				      u.e32.e_shnum, u.e32.e_shentsize };
	} else {
		return bad(err, errlen, "the kernel image has a damaged ELF header");
	}
	if (h->phentsize != (img->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || !h->phnum)
		return bad(err, errlen, "the kernel image has no ELF program headers");
	if (h->phnum > 256)
		return bad(err, errlen, "the kernel image has %u program headers: the limit is 256", h->phnum);
	return 0;
}

static int read_phdr(int fd, const struct elf_image *img, const struct header *h, unsigned i, Elf64_Phdr *p)
{
	u64 at;
	if (__builtin_add_overflow(h->phoff, (u64)i * h->phentsize, &at) || at > img->file_size ||
	    h->phentsize > img->file_size - at)
		return -ENOEXEC;
	if (img->is64)
		return elf_pread(fd, p, sizeof(*p), at);
	Elf32_Phdr q;
	int r = elf_pread(fd, &q, sizeof(q), at);
	*p = (Elf64_Phdr){ .p_type = q.p_type, .p_flags = q.p_flags, .p_offset = q.p_offset, .p_vaddr = q.p_vaddr,
			   .p_paddr = q.p_paddr, .p_filesz = q.p_filesz, .p_memsz = q.p_memsz, .p_align = q.p_align };
	return r;
}

static void grow_end(struct elf_image *img, u64 off, u64 len)
{
	u64 end;
	if (!__builtin_add_overflow(off, len, &end) && end <= img->file_size && end > img->elf_end)
		img->elf_end = end;
}

/* Elf64_Nhdr and Elf32_Nhdr are the same; name and descriptor are padded to 4. */
static void scan_notes(struct elf_image *img, const u8 *p, u64 len)
{
	for (u64 at = 0; len - at >= sizeof(Elf64_Nhdr);) {
		Elf64_Nhdr n;
		memcpy(&n, p + at, sizeof(n));
		at += sizeof(n);
		u64 name = ALIGN_UP((u64)n.n_namesz, 4), desc = ALIGN_UP((u64)n.n_descsz, 4);
		if (name > len - at || desc > len - at - name)
			return;
		if (n.n_namesz == 4 && !memcmp(p + at, "Xen", 4) && n.n_type == XEN_ELFNOTE_PHYS32_ENTRY &&
		    n.n_descsz >= 4) {
			memcpy(&img->pvh_entry, p + at + name, 4); /* a 64-bit descriptor: its low half */
			img->has_pvh = true;
		}
		at += name + desc;
	}
}

static int add_segment(struct elf_image *img, const Elf64_Phdr *p, char *err, size_t errlen)
{
	u64 end;
	if (p->p_memsz == 0)
		return 0;
	if (p->p_offset > img->file_size || p->p_filesz > img->file_size - p->p_offset)
		return bad(err, errlen, "the kernel image is cut off: a segment ends at byte %llu of %llu",
			   (unsigned long long)(p->p_offset + p->p_filesz), (unsigned long long)img->file_size);
	if (p->p_memsz < p->p_filesz || __builtin_add_overflow(p->p_paddr, p->p_memsz, &end))
		return bad(err, errlen, "the kernel image has a segment of impossible size");
	for (unsigned i = 0; i < img->nsegments; i++) {
		const struct elf_segment *s = &img->segment[i];
		if (p->p_paddr < s->paddr + s->memsz && s->paddr < end)
			return bad(err, errlen, "the kernel image has overlapping segments");
	}
	if (img->nsegments == ELF_MAX_SEGMENTS)
		return bad(err, errlen, "the kernel image has more than %u loadable segments", ELF_MAX_SEGMENTS);
	img->segment[img->nsegments++] = (struct elf_segment){ .offset = p->p_offset, .filesz = p->p_filesz,
							       .paddr = p->p_paddr, .memsz = p->p_memsz,
							       .vaddr = p->p_vaddr };
	if (p->p_paddr < img->paddr_min)
		img->paddr_min = p->p_paddr;
	if (end > img->paddr_end)
		img->paddr_end = end;
	return 0;
}

int elf_parse(int fd, struct elf_image *img, char *err, size_t errlen)
{
	struct header h = { 0 };
	struct stat st;
	memset(img, 0, sizeof(*img));
	img->paddr_min = UINT64_MAX;
	if (fstat(fd, &st) < 0)
		return bad(err, errlen, "cannot examine the kernel image: %s", strerror(errno)), -EIO;
	img->file_size = (u64)st.st_size;
	int r = read_header(fd, img, &h, err, errlen);
	if (r)
		return r;
	img->entry = h.entry;
	grow_end(img, 0, img->is64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr));
	grow_end(img, h.phoff, (u64)h.phnum * h.phentsize);
	grow_end(img, h.shoff, (u64)h.shnum * h.shentsize);

	u8 *notes = malloc(NOTES_MAX);
	if (!notes)
		return bad(err, errlen, "no memory"), -ENOMEM;
	for (unsigned i = 0; i < h.phnum && !r; i++) {
		Elf64_Phdr p;
		r = read_phdr(fd, img, &h, i, &p);
		if (r) {
			bad(err, errlen, "the kernel image is cut off within its program headers");
			break;
		}
		if (p.p_type == PT_LOAD || p.p_type == PT_NOTE)
			grow_end(img, p.p_offset, p.p_filesz);
		if (p.p_type == PT_LOAD)
			r = add_segment(img, &p, err, errlen);
		if (p.p_type == PT_NOTE && p.p_filesz <= NOTES_MAX && p.p_offset <= img->file_size &&
		    p.p_filesz <= img->file_size - p.p_offset) {
			if (!elf_pread(fd, notes, p.p_filesz, p.p_offset))
				scan_notes(img, notes, p.p_filesz);
		}
	}
	free(notes);
	if (!r && !img->nsegments)
		r = bad(err, errlen, "the kernel image has nothing to load");
	return r;
}
