/* IN and OUT (SDM vol. 1 chapter 19): permission, and the exit to whoever owns the port. */
#include "cpu/seg.h"

int io_check(struct cpu *c, const struct insn *i, u16 port, unsigned size)
{
	if (likely(cpu_real(c) || (!cpu_vm86(c) && c->cpl <= ((c->sflags >> FL_IOPL_SHIFT) & 3))))
		return 0;
	u16 map, bits;
	int st;
	c->rip = insn_rip(c, i);
	if (c->tr.unusable || (c->tr.type != SYS_TSS && c->tr.type != SYS_TSS_BUSY) || c->tr.limit < 103)
		return exc_gp(c, i, 0);
	if ((st = sys_read(c, c->tr.base + 102, &map, 2)))
		return st;
	/* Two bytes are always read, so that a port range may cross a byte. */
	u32 at = (u32)map + port / 8;
	if (at + 1 > c->tr.limit)
		return exc_gp(c, i, 0);
	if ((st = sys_read(c, c->tr.base + at, &bits, 2)))
		return st;
	return (bits >> (port % 8)) & MASK(size) ? exc_gp(c, i, 0) : 0;
}

void io_breakpoint(struct cpu *c, u16 port, unsigned size)
{
	if (likely(!(c->dr7 & 0xff) || !(c->cr4 & CR4_DE)))
		return;
	for (unsigned n = 0; n < 4; n++) {
		u64 len = (c->dr7 >> (18 + 4 * n)) & 3;
		u64 bytes = len == 2 ? 8 : len + 1, at = c->dr[n] & ~(bytes - 1);
		if (((c->dr7 >> (2 * n)) & 3) && ((c->dr7 >> (16 + 4 * n)) & 3) == 2 && port < at + bytes && at < port + (u64)size)
			c->db_pending |= BIT(n);
	}
}

static unsigned port_size(const struct insn *i)
{
	return i->opsize > 4 ? 4 : i->opsize; /* REX.W has no effect */
}

int op_in(struct cpu *c, const struct insn *i)
{
	u16 port = i->aux ? REG16(c, RDX * 8) : (u8)i->imm;
	unsigned size = port_size(i);
	int st = io_check(c, i, port, size);
	if (st)
		return st;
	if (c->io.done && !c->io.write && c->io.port == port && c->io.size == size) {
		c->io.done = false;
		io_breakpoint(c, port, size);
		reg_write(c, RAX * 8, size, c->io.data & MASK(size * 8));
		NEXT(c, i);
	}
	c->io.port = port;
	c->io.size = (u8)size;
	c->io.write = false;
	c->io.done = false;
	c->io.data = 0;
	c->stats.exits_io++;
	c->rip = insn_rip(c, i);
	c->exit = CPU_EXIT_IO;
	return STEP_EXIT;
}

int op_out(struct cpu *c, const struct insn *i)
{
	u16 port = i->aux ? REG16(c, RDX * 8) : (u8)i->imm;
	unsigned size = port_size(i);
	int st = io_check(c, i, port, size);
	if (st)
		return st;
	c->io.port = port;
	c->io.size = (u8)size;
	c->io.write = true;
	c->io.done = false;
	c->io.data = (u32)reg_read(c, RAX * 8, size);
	io_breakpoint(c, port, size);
	c->stats.exits_io++;
	c->rip = insn_next_rip(c, i);
	c->exit = CPU_EXIT_IO;
	return STEP_EXIT;
}
