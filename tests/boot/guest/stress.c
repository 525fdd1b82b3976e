/* All of memory: takes as much as there is (MemAvailable less a reserve), writes a different word to every page, reads
 * all back, in two orders; then once more in several processes at once; nothing may be lost or doubled. */
#include "t.h"

static u64 available_kib(void)
{
	static char text[8192];
	int fd = open("/proc/meminfo", O_RDONLY);
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	CHECK(1, n > 0);
	char *p = strstr(text, "MemAvailable:");
	CHECK(2, p);
	return strtoull(p + 13, NULL, 10);
}

int main(void)
{
	u64 kib = available_kib();
	u64 limit = getenv("T_NATIVE") ? 64 << 10 : 6ull << 20;
	if (kib > limit)
		kib = limit;
	CHECK(3, kib > 16384, "only %" PRIu64 " KiB", kib);
	u64 pages = (kib - kib / 10 - 8192) / 4;
	printf("stress: %" PRIu64 " pages\n", pages);
	u8 *m = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(4, m != MAP_FAILED);
	for (u64 i = 0; i < pages; i++) {
		*(u64 *)(m + i * PAGE) = i * 0x9e3779b97f4a7c15ull;
		*(u64 *)(m + i * PAGE + PAGE - 8) = ~i;
	}
	for (u64 i = pages; i-- > 0;) {
		CHECK(5, *(u64 *)(m + i * PAGE) == i * 0x9e3779b97f4a7c15ull, "page %" PRIu64, i);
		CHECK(6, *(u64 *)(m + i * PAGE + PAGE - 8) == ~i, "page %" PRIu64, i);
	}
	u64 seed = 77;
	for (u64 n = 0; n < pages; n++) {
		u64 i = t_random(&seed) % pages;
		CHECK(7, *(u64 *)(m + i * PAGE) == i * 0x9e3779b97f4a7c15ull, "page %" PRIu64, i);
	}
	munmap(m, pages * PAGE);
	enum { PROCESSES = 4 };
	for (u64 p = 0; p < PROCESSES; p++)
		if (!fork()) {
			u64 mine = pages / PROCESSES;
			u64 *w = mmap(NULL, mine * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			for (u64 i = 0; i < mine; i++)
				w[i * 512 + (i & 511)] = i << 8 | p;
			for (u64 i = 0; i < mine; i++)
				if (w[i * 512 + (i & 511)] != (i << 8 | p))
					_exit(1);
			_exit(0);
		}
	int status;
	for (unsigned p = 0; p < PROCESSES; p++)
		CHECK(8, wait(&status) > 0 && !status, "%#x", status);
	return 0;
}
