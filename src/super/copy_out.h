/* From a memory file that a role filled to a file of the user's. */
#ifndef SUPER_COPY_OUT_H
#define SUPER_COPY_OUT_H

#include "core/base.h"

/* Copies the first size bytes of from to to's position; blocks of zeros become
 * holes where to can have them.  Says on its own what went wrong: the run it
 * belongs to is over. */
void copy_out(int from, int to, u64 size, const char *what);

#endif
