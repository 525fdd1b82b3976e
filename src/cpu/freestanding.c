/* What a compiler may call without being asked to; see freestanding.h. */
#include <stddef.h>

void *cpu_memcpy(void *to, const void *from, size_t n);
void *cpu_memmove(void *to, const void *from, size_t n);
void *cpu_memset(void *to, int byte, size_t n);

void *cpu_memcpy(void *to, const void *from, size_t n)
{
	void *d = to;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *cpu_memmove(void *to, const void *from, size_t n)
{
	if ((const char *)to <= (const char *)from || (const char *)to >= (const char *)from + n)
		return cpu_memcpy(to, from, n);
	char *d = (char *)to + n - 1;
	const char *s = (const char *)from + n - 1;
	__asm__ volatile("std\n\trep movsb\n\tcld" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	return to;
}

void *cpu_memset(void *to, int byte, size_t n)
{
	void *d = to;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	return to;
}
