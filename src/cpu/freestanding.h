/* Included first in every file of src/cpu where the compiler cannot be told to expand memcpy and memset inline (clang):
 * the calls it makes up for copies of structures go to our own, which use no vector register. */
__asm__("memcpy = cpu_memcpy\n\tmemset = cpu_memset\n\tmemmove = cpu_memmove");
