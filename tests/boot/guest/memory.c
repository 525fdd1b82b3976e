/* Memory: mmap, munmap, mprotect, mremap, copy on write, shared mappings, files, huge zero runs, MADV_DONTNEED, brk. */
#include "t.h"
#include <setjmp.h>

static sigjmp_buf back;
static void *fault_at;

static void fault(int s, siginfo_t *si, void *uc)
{
	fault_at = si->si_addr;
	siglongjmp(back, 1);
}

static bool faults(volatile u8 *p, bool write)
{
	if (sigsetjmp(back, 1))
		return fault_at == (void *)p;
	if (write)
		*p = *p;
	else
		(void)*p;
	return false;
}

int main(void)
{
	enum { N = 300 };
	t_signal(SIGSEGV, fault, 0);
	u8 *m = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(1, m != MAP_FAILED);
	for (unsigned i = 0; i < N * PAGE; i += 97)
		CHECK(2, m[i] == 0, "at %u", i);
	for (unsigned i = 0; i < N; i++)
		memset(m + i * PAGE, (int)i, PAGE);
	/* holes: every third page goes */
	for (unsigned i = 0; i < N; i += 3)
		CHECK(3, !munmap(m + i * PAGE, PAGE));
	for (unsigned i = 0; i < N; i++)
		if (i % 3)
			CHECK(4, m[i * PAGE + i] == (u8)i);
		else
			CHECK(5, faults(m + i * PAGE + i, i & 1));
	for (unsigned i = 0; i < N; i += 3)
		CHECK(6, mmap(m + i * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m + i * PAGE);
	for (unsigned i = 0; i < N; i += 3)
		CHECK(7, m[i * PAGE + 9] == 0);
	/* rights change back and forth */
	for (unsigned round = 0; round < 20; round++) {
		u8 *p = m + (7 * round + 1) * PAGE;
		p[0] = 1;
		CHECK(8, !mprotect(p, PAGE, PROT_READ) && p[0] == 1 && faults(p, true));
		CHECK(9, !mprotect(p, PAGE, PROT_NONE) && faults(p, false));
		CHECK(10, !mprotect(p, PAGE, PROT_READ | PROT_WRITE) && p[0] == 1 && !faults(p, true));
	}
	/* moving and growing */
	u8 *a = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < 16; i++)
		a[i * PAGE] = (u8)(i + 1);
	u8 *target = mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u8 *b = mremap(a, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	CHECK(11, b == target);
	for (unsigned i = 0; i < 32; i++)
		CHECK(12, b[i * PAGE] == (i < 16 ? i + 1 : 0));
	CHECK(13, faults(a, false));
	CHECK(14, mremap(b, 32 * PAGE, 4 * PAGE, 0) == b && b[3 * PAGE] == 4 && faults(b + 4 * PAGE, false));
	/* thrown away: reads as zero again */
	CHECK(15, !madvise(b, 4 * PAGE, MADV_DONTNEED) && b[0] == 0 && b[3 * PAGE] == 0);
	/* one file, private and shared views at once */
	int fd = memfd_create("file", 0);
	CHECK(16, fd >= 0 && !ftruncate(fd, 8 * PAGE));
	u8 *s1 = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	u8 *s2 = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 4 * PAGE);
	u8 *pr = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(17, s1 != MAP_FAILED && s2 != MAP_FAILED && pr != MAP_FAILED);
	s1[5 * PAGE] = 77;
	CHECK(18, s2[PAGE] == 77 && pr[5 * PAGE] == 77);
	pr[5 * PAGE] = 78;
	CHECK(19, s1[5 * PAGE] == 77 && s2[PAGE] == 77);
	s1[5 * PAGE] = 79;
	CHECK(20, pr[5 * PAGE] == 78 && s2[PAGE] == 79);
	u8 c;
	CHECK(21, pread(fd, &c, 1, 5 * PAGE) == 1 && c == 79);
	c = 80;
	CHECK(22, pwrite(fd, &c, 1, 5 * PAGE) == 1 && s2[PAGE] == 80);
	pid_t pid = fork();
	if (!pid) {
		s1[0] = 5;
		pr[0] = 6;
		_exit(0);
	}
	int status;
	CHECK(23, waitpid(pid, &status, 0) == pid && !status && s1[0] == 5 && pr[0] == 5);
	/* a system call writes through a read-only or a copy-on-write page: EFAULT, and a private copy */
	int p[2];
	CHECK(24, !pipe(p) && write(p[1], "abcd", 4) == 4);
	CHECK(25, read(p[0], (void *)s2, 2) == -1 && errno == EFAULT);
	u8 *cow = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cow[PAGE - 1] = cow[PAGE] = 1;
	pid = fork();
	if (!pid)
		_exit(read(p[0], cow + PAGE - 1, 2) == 2 && cow[PAGE - 1] == 'a' && cow[PAGE] == 'b' ? 0 : 1);
	CHECK(26, waitpid(pid, &status, 0) == pid && !status && cow[PAGE - 1] == 1 && cow[PAGE] == 1);
	CHECK(27, !munmap(cow + PAGE, PAGE) && pread(fd, cow + PAGE - 1, 2, 5 * PAGE) == 1 && cow[PAGE - 1] == 80);
	/* 2 MiB pages if the kernel gives them: a run of 8 MiB, aligned, then splintered by mprotect */
	u8 *h = mmap(NULL, 12 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	h = (u8 *)(((u64)h + (2 << 20) - 1) & ~((2ull << 20) - 1));
	madvise(h, 8 << 20, MADV_HUGEPAGE);
	for (size_t i = 0; i < 8 << 20; i += PAGE)
		*(u64 *)(h + i) = i;
	CHECK(28, !mprotect(h + (3 << 20), PAGE, PROT_READ) && faults(h + (3 << 20), true));
	h[(3 << 20) + PAGE + 100] = 1;
	for (size_t i = 0; i < 8 << 20; i += PAGE)
		CHECK(29, *(u64 *)(h + i) == i, "at %#zx", i);
	pid = fork();
	if (!pid) {
		for (size_t i = 0; i < 8 << 20; i += 8 * PAGE)
			if (i != 3 << 20)
				h[i] = 0xff;
		_exit(0);
	}
	CHECK(30, waitpid(pid, &status, 0) == pid && !status);
	for (size_t i = 0; i < 8 << 20; i += PAGE)
		CHECK(31, *(u64 *)(h + i) == i, "at %#zx", i);
	u8 *brk0 = sbrk(0);
	CHECK(32, sbrk(100 * PAGE) == brk0);
	memset(brk0, 1, 100 * PAGE);
	CHECK(33, sbrk(-(intptr_t)(100 * PAGE)) == brk0 + 100 * PAGE && sbrk(0) == brk0);
	return 0;
}
