/* The few macros of a unit test: every CHECK is counted, a failed one names itself, main() returns check_result(). */
#ifndef TESTS_UNIT_CHECK_H
#define TESTS_UNIT_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

static unsigned check_count, check_failed;

#define CHECK(x)                                                                       \
	do {                                                                           \
		check_count++;                                                         \
		if (!(x)) {                                                            \
			check_failed++;                                                \
			printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #x);         \
		}                                                                      \
	} while (0)

#define CHECK_EQ(a, b)                                                                                              \
	do {                                                                                                        \
		uint64_t check_a = (uint64_t)(a), check_b = (uint64_t)(b);                                          \
		check_count++;                                                                                      \
		if (check_a != check_b) {                                                                           \
			check_failed++;                                                                             \
			printf("%s:%d: failed: %s is 0x%" PRIx64 ", expected 0x%" PRIx64 "\n", __FILE__, __LINE__, \
			       #a, check_a, check_b);                                                               \
		}                                                                                                   \
	} while (0)

static inline int check_result(void)
{
	printf("%u checks, %u failed\n", check_count, check_failed);
	return check_failed ? 1 : 0;
}

#endif
