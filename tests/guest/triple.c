/* Ends in a triple fault: the machine must shut down, never go on. */
#include "lib/guest.h"

CASE(triple_fault)
{
	static const struct dtr none = {0, 0};
	print("about to triple-fault\n");
	asm volatile("lidt %0; ud2" : : "m"(none));
	check_failed(__FILE__, __LINE__, "still running", 1, 0);
}
