/* A multiboot 1 image that is loaded by the address fields of its header, whatever the container (here a 64-bit ELF). */
#include "lib/guest.h"

static volatile u32 data = 0x12345678, zero[1024];

CASE(loaded)
{
	CHECK_EQ(boot_magic, 0x2badb002);
	CHECK(boot_info != 0);
	CHECK_EQ(data, 0x12345678);
	for (unsigned i = 0; i < ARRAY_SIZE(zero); i++)
		CHECK_EQ(zero[i], 0);
}
