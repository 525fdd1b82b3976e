/* Ring of bytes between a device register and a host descriptor.  Plain data:
 * whoever owns it locks it. */
#ifndef MACHINE_BYTEQ_H
#define MACHINE_BYTEQ_H

#include "core/base.h"

#define BYTEQ_SIZE 65536u /* power of two */

struct byteq {
	u32 head, tail; /* free running: head - tail bytes are held */
	u8 buf[BYTEQ_SIZE];
};

static inline u32 byteq_used(const struct byteq *q) { return q->head - q->tail; }
static inline u32 byteq_room(const struct byteq *q) { return BYTEQ_SIZE - byteq_used(q); }

static inline void byteq_put(struct byteq *q, u8 b)
{
	ASSERT(byteq_room(q));
	q->buf[q->head++ % BYTEQ_SIZE] = b;
}

static inline u8 byteq_get(struct byteq *q)
{
	ASSERT(byteq_used(q));
	return q->buf[q->tail++ % BYTEQ_SIZE];
}

/* The longest stretch to read from, to write into; then account for it. */
static inline u32 byteq_head_span(const struct byteq *q, u32 *at)
{
	u32 to_end = BYTEQ_SIZE - q->head % BYTEQ_SIZE, room = byteq_room(q);
	*at = q->head % BYTEQ_SIZE;
	return room < to_end ? room : to_end;
}

static inline u32 byteq_tail_span(const struct byteq *q, u32 *at)
{
	u32 to_end = BYTEQ_SIZE - q->tail % BYTEQ_SIZE, used = byteq_used(q);
	*at = q->tail % BYTEQ_SIZE;
	return used < to_end ? used : to_end;
}

#endif
