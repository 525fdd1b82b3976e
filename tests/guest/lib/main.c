/* Runs the cases, prints, ends the machine. */
#include "guest.h"

extern const struct test_case cases_start[], cases_end[];
void guest_main(void);
void trap_init(void);

static const char *case_name;
static unsigned case_number, first_failed, failures, case_failures;
static char *heap;

void guest_exit(u32 code)
{
	outl(0xf4, code);
	for (;;)
		asm volatile("cli; hlt");
}

static void put(char c) { outb(0xe9, (u8)c); }

static void put_number(u64 v, unsigned base)
{
	char buf[24];
	unsigned n = 0;
	do {
		/* 64-bit division without a library: digits from the binary, most significant first */
		u64 q = 0, r = 0;
		for (int i = 63; i >= 0; i--) {
			r = r << 1 | (v >> i & 1);
			if (r >= base) {
				r -= base;
				q |= BIT(i);
			}
		}
		buf[n++] = "0123456789abcdef"[r];
		v = q;
	} while (v);
	while (n)
		put(buf[--n]);
}

void print(const char *fmt, ...)
{
	__builtin_va_list ap;
	__builtin_va_start(ap, fmt);
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		unsigned longs = 0;
		while (*++fmt == 'l')
			longs++;
		if (*fmt == 's') {
			for (const char *s = __builtin_va_arg(ap, const char *); *s; s++)
				put(*s);
			continue;
		}
		if (*fmt == 'c') {
			put((char)__builtin_va_arg(ap, int));
			continue;
		}
		u64 v = longs == 2 ? __builtin_va_arg(ap, u64) : longs ? __builtin_va_arg(ap, uword)
								      : __builtin_va_arg(ap, u32);
		if (*fmt == 'd' && (s64)(longs ? v : (u64)(s32)v) < 0) {
			put('-');
			v = 0 - (longs ? v : (u64)(s32)v);
		}
		put_number(v, *fmt == 'x' ? 16 : 10);
	}
	__builtin_va_end(ap);
}

void check_failed(const char *file, int line, const char *what, u64 got, u64 want)
{
	const char *base = file;
	for (const char *p = file; *p; p++)
		if (*p == '/')
			base = p + 1;
	failures++;
	if (case_failures++ < 20) /* a broken matrix shall not flood the log */
		print("FAIL %s:%d %s: %s: got %llx expected %llx\n", base, line, case_name, what, got, want);
	if (!first_failed)
		first_failed = case_number;
}

bool on_tcg(void)
{
	struct cpuid c = cpuid(0x40000000, 0);
	return c.b == 0x54474354;
}

bool tcg_known_wrong(const char *reason)
{
	if (!on_tcg())
		return false;
	print("tcg-known-wrong %s: %s\n", case_name, reason);
	return true;
}

void skipped(const char *what) { print("skip %s: %s\n", case_name, what); }

void *memset(void *p, int c, uword n)
{
	void *d = p;
	asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *memcpy(void *d, const void *s, uword n)
{
	void *r = d;
	asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	return r;
}

int memcmp(const void *a, const void *b, uword n)
{
	const u8 *x = a, *y = b;
	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

void *page_alloc(unsigned pages)
{
	char *p = heap;
	heap += pages * PAGE;
	memset(p, 0, pages * PAGE);
	return p;
}

void guest_main(void)
{
	trap_init();
	outb(0x21, 0xff); /* mask the 8259s, where a firmware has started them */
	outb(0xa1, 0xff);
	for (const struct test_case *t = cases_start; t < cases_end; t++) {
		if (++case_number == EXIT_OK)
			case_number++;
		case_name = t->name;
		case_failures = 0;
		heap = (char *)0x1000000; /* 16 MiB: above every image */
#ifdef __x86_64__
		memset(&boot_pml4[1], 0, 511 * 8); /* whatever the last case has mapped */
		write_cr3((u64)boot_pml4);
#endif
		t->fn();
		trap_hook = NULL;
		trap_resume = 0;
		print("%s %s\n", case_failures ? "BAD" : "ok", t->name);
	}
	print(failures ? "FAILED %u checks\n" : "PASSED\n", failures);
	guest_exit(failures ? first_failed : EXIT_OK);
}
