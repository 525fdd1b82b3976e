/* A program that writes code and runs it: same page rewritten while writable and executable, mprotect toggled, written
 * through a second mapping, an instruction over a page boundary, code that changes the instruction right behind it,
 * code freed and another mapped at its place, code read from a file, many functions thrown away in turn. */
#include "t.h"

typedef u32 (*fn)(void);

static void emit(u8 *p, u32 v)
{
	p[0] = 0xb8; /* mov $v, %eax; ret */
	memcpy(p + 1, &v, 4);
	p[5] = 0xc3;
}

static u32 call(u8 *p)
{
	asm volatile("" ::: "memory");
	return ((fn)p)();
}

int main(void)
{
	u8 *rwx = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(1, rwx != MAP_FAILED);
	for (u32 i = 0; i < 3000; i++) {
		emit(rwx, i);
		CHECK(2, call(rwx) == i);
	}
	/* only one byte of an immediate changes */
	for (u32 i = 0; i < 3000; i++) {
		rwx[1] = (u8)i;
		CHECK(3, (call(rwx) & 0xff) == (i & 0xff));
	}
	/* code and its data on the same page: stores that do not touch code must not lose anything either */
	u32 *data = (u32 *)(rwx + 1024);
	emit(rwx, 7);
	for (u32 i = 0; i < 3000; i++) {
		*data = i;
		CHECK(4, call(rwx) == 7 && *data == i);
	}
	/* an instruction over the boundary of two pages, both halves changed separately */
	for (u32 i = 0; i < 500; i++) {
		emit(rwx + PAGE - 3, i * 0x01010101u);
		CHECK(5, call(rwx + PAGE - 3) == i * 0x01010101u);
		rwx[PAGE + 1] = (u8)~i; /* the immediate's last byte */
		CHECK(6, call(rwx + PAGE - 3) >> 24 == (u8)~i);
	}
	/* toggled rights */
	u8 *rx = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (u32 i = 0; i < 300; i++) {
		CHECK(7, !mprotect(rx, PAGE, PROT_READ | PROT_WRITE));
		emit(rx + i, i);
		CHECK(8, !mprotect(rx, PAGE, PROT_READ | PROT_EXEC) && call(rx + i) == i);
	}
	/* one memory, two addresses */
	int fd = memfd_create("code", 0);
	CHECK(9, fd >= 0 && !ftruncate(fd, 2 * PAGE));
	u8 *w = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	u8 *x = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	CHECK(10, w != MAP_FAILED && x != MAP_FAILED);
	for (u32 i = 0; i < 1000; i++) {
		emit(w + PAGE - 2, i ^ 0x5a5a5a5a);
		CHECK(11, call(x + PAGE - 2) == (i ^ 0x5a5a5a5a));
	}
	/* the kernel writes the code: read() and pwrite() into the shared memory */
	for (u32 i = 0; i < 200; i++) {
		u8 code[6];
		emit(code, i + 5);
		CHECK(12, pwrite(fd, code, 6, 64) == 6 && call(x + 64) == i + 5);
		int p[2];
		emit(code, i + 9);
		CHECK(13, !pipe(p) && write(p[1], code, 6) == 6 && read(p[0], rwx + 2 * PAGE, 6) == 6 && call(rwx + 2 * PAGE) == i + 9);
		close(p[0]);
		close(p[1]);
	}
	/* another process writes it */
	emit(w, 1);
	CHECK(14, call(x) == 1);
	pid_t pid = fork();
	if (!pid) {
		emit(w, 2);
		_exit(0);
	}
	CHECK(15, waitpid(pid, NULL, 0) == pid && call(x) == 2);
	/* copy on write of code: the child changes its own */
	emit(rwx, 11);
	CHECK(16, call(rwx) == 11);
	int status;
	pid = fork();
	if (!pid) {
		if (call(rwx) != 11)
			_exit(1);
		emit(rwx, 12);
		_exit(call(rwx) == 12 ? 0 : 2);
	}
	CHECK(17, waitpid(pid, &status, 0) == pid && !status && call(rwx) == 11, "%#x", status);
	/* other code mapped at the same address */
	u8 *at = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fds[2] = { memfd_create("a", 0), memfd_create("b", 0) };
	for (u32 k = 0; k < 2; k++) {
		u8 code[6];
		emit(code, 100 + k);
		CHECK(18, !ftruncate(fds[k], PAGE) && pwrite(fds[k], code, 6, 0) == 6);
	}
	for (u32 i = 0; i < 200; i++) {
		CHECK(19, mmap(at, PAGE, PROT_READ | PROT_EXEC, (i & 2 ? MAP_PRIVATE : MAP_SHARED) | MAP_FIXED, fds[i & 1], 0) == at);
		CHECK(20, call(at) == 100 + (i & 1));
	}
	/* code that changes the instruction right behind it (straight line, then the immediate of a later loop pass) */
	static const u8 self[] = {
		0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x2a, /* movb $42, 1(%rip): the immediate of the next instruction */
		0xb8, 0x01, 0x00, 0x00, 0x00,             /* mov $1, %eax */
		0xc3,
	};
	for (u32 i = 0; i < 50; i++) {
		memcpy(rwx + 3 * PAGE, self, sizeof self);
		CHECK(21, call(rwx + 3 * PAGE) == 42);
	}
	static const u8 loop[] = {
		0x31, 0xc0,                               /* xor %eax, %eax */
		0xb9, 0x0a, 0x00, 0x00, 0x00,             /* mov $10, %ecx */
		0x83, 0xc0, 0x01,                         /* 1: add $1, %eax */
		0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff,       /* incb -7(%rip): the addend above, hence 1 + 2 + … + 10 */
		0xe2, 0xf5,                               /* loop 1b */
		0xc3,
	};
	for (u32 i = 0; i < 50; i++) {
		u8 *p = rwx + 3 * PAGE + 512 + i;
		memcpy(p, loop, sizeof loop);
		u32 sum = call(p);
		CHECK(22, sum == 55, "%u", sum);
	}
	/* many functions, thrown away in turn */
	for (u32 i = 0; i < 400; i++) {
		u8 *m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (u32 k = 0; k < 20; k++)
			emit(m + k * 300, i * 100 + k);
		for (u32 k = 0; k < 20; k++)
			CHECK(23, call(m + k * 300) == i * 100 + k);
		munmap(m, 2 * PAGE);
	}
	return 0;
}
