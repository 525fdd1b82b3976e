/* What all translations share: where state lies in struct cpu (reached through GS), and the routines they jump to:
 * entering from C, calling C, the dispatcher. */
#ifndef ENGINE_TR_ROUTINES_H
#define ENGINE_TR_ROUTINES_H

#include <stddef.h>

#include "engine/tr/emit.h"
#include "engine/tr/translate.h"

static inline size_t r_off(unsigned reg) { return offsetof(struct cpu, r) + 8 * reg; }
#define TR(field) (offsetof(struct cpu, trs) + offsetof(struct tr_state, field))
#define SLOT(n) (TR(slot) + 8 * (n))

/* Emits them for c and notes their addresses (in the writable view) in t.  Returns the end. */
u8 *routines_emit(struct translator *t, struct emit *e, struct cpu *c);

#endif
