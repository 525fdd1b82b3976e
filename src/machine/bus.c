#include "machine/bus.h"

#include <string.h>

void bus_add(struct bus_space *s, const struct bus_region *r)
{
	ASSERT(s->n < BUS_MAX_REGIONS && r->size && r->max_access);
	for (unsigned i = 0; i < s->n; i++)
		ASSERT(r->base + r->size <= s->region[i].base || s->region[i].base + s->region[i].size <= r->base);
	s->region[s->n++] = *r;
}

static const struct bus_region *find(const struct bus_space *s, u64 addr)
{
	for (unsigned i = 0; i < s->n; i++)
		if (addr - s->region[i].base < s->region[i].size)
			return &s->region[i];
	return NULL;
}

void bus_access(struct bus_space *s, u64 addr, unsigned len, bool write, void *data)
{
	u8 *p = data;
	bool claimed = true;
	for (unsigned done = 0; done < len;) {
		const struct bus_region *r = find(s, addr + done);
		unsigned n = 1;
		if (!r) {
			claimed = false;
			if (!write)
				p[done] = 0xff;
			done++;
			continue;
		}
		u64 off = addr + done - r->base, left = r->size - off;
		while (2 * n <= r->max_access && 2 * n <= len - done && 2 * n <= left)
			n *= 2;
		u64 v = 0;
		if (write) {
			memcpy(&v, p + done, n);
			r->write(r->dev, off, n, v);
		} else {
			v = r->read(r->dev, off, n);
			memcpy(p + done, &v, n);
		}
		done += n;
	}
	if (!claimed) {
		u64 i = atomic_fetch_add_explicit(&s->unclaimed, 1, memory_order_relaxed);
		atomic_store_explicit(&s->log[i % BUS_UNCLAIMED_LOG], addr | (write ? BIT(63) : 0), memory_order_relaxed);
	}
}
