/* Hand-written cases: what one random instruction cannot show.  Each is a piece of code up to the INT3 behind it, run
 * from many random states. */
#include <string.h>

#include "gen_internal.h"

enum {
	D_RBX_CODE = 1,  /* RBX = address of the code */
	D_RSI_DATA = 2,  /* RSI = somewhere in the data */
	D_TF = 4,        /* single-stepped */
	D_PAGE_END = 8,  /* the code ends with the page, the next one is not present */
	D_CROSS = 16,    /* the code crosses into the second page behind byte .at */
	D_RCX_SMALL = 32,
};

static const struct directed {
	const char *name;
	u8 len, flags, at;
	const char *bytes;
} directed[] = {
	/* mov byte [rbx+10], 0xc8; nop; nop; nop...; inc eax → dec eax */
	{ "store into the next instruction", 10, D_RBX_CODE, 0, "\xc6\x43\x09\xc8\x90\x90\x90\x90\xff\xc0" },
	{ "store into the next instruction, crossing its start", 10, D_RBX_CODE, 0, "\x66\xc7\x43\x08\xff\xc9\x90\x90\xff\xc0" },
	{ "store turns the next instruction into UD2", 8, D_RBX_CODE, 0, "\x66\xc7\x43\x06\x0f\x0b\x90\x90" },
	{ "store into itself", 6, D_RBX_CODE, 0, "\xc6\x43\x00\x90\x90\x90" },
	{ "vector store (of FF) into the next instruction", 13, D_RBX_CODE, 0,
	  "\x66\x0f\x74\xc0\x66\x0f\xd6\x43\x09\x90\x90\x90\x90" },
	{ "rep stosb over the code behind", 11, D_RBX_CODE, 0, "\x48\x8d\x7b\x0a\xb9\x01\x00\x00\x00\xf3\xaa" },
	{ "store into code executed before, then jump back", 13, D_RBX_CODE, 0,
	  "\xff\xc0\x81\x3b\xff\xc8\x90\x90\xc6\x43\x01\xc9\x90" },
	/* loop: add rax, rcx; dec rcx; jnz loop */
	{ "loop", 8, D_RCX_SMALL, 0, "\x48\x01\xc8\x48\xff\xc9\x75\xf8" },
	{ "LOOP", 5, D_RCX_SMALL, 0, "\x48\x01\xc8\xe2\xfb" },
	{ "call and return", 11, 0, 0, "\xe8\x02\x00\x00\x00\xeb\x03\xff\xc0\xc3\x90" },
	{ "call and return, single step", 11, D_TF, 0, "\xe8\x02\x00\x00\x00\xeb\x03\xff\xc0\xc3\x90" },
	{ "pushf, change TF, popf: trap behind the next instruction", 13, 0, 0,
	  "\x9c\x48\x81\x0c\x24\x00\x01\x00\x00\x9d\x90\x90\x90" },
	{ "mov ss, then single step", 7, D_TF, 0, "\x8c\xd0\x8e\xd0\xff\xc0\x90" },
	{ "popf sets TF before mov ss", 17, 0, 0, "\x8c\xd2\x9c\x48\x81\x0c\x24\x00\x01\x00\x00\x9d\x8e\xd2\xff\xc0\x90" },
	{ "15 bytes", 15, 0, 0, "\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\xff\xc0" },
	{ "16 bytes", 16, 0, 0, "\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\xff\xc0" },
	{ "15 prefixes and nothing", 15, 0, 0, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66" },
	{ "15 bytes against the page end", 15, D_PAGE_END, 0, "\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\xff\xc0" },
	{ "runs into the missing page", 4, D_PAGE_END, 0, "\xff\xc0\xff\xc3" },
	{ "an instruction half in the missing page", 4, D_PAGE_END, 0, "\xff\xc0\x48\x81" },
	{ "undefined opcode against the missing page", 2, D_PAGE_END, 0, "\x0f\x0b" },
	{ "across pages", 9, D_CROSS, 4, "\xff\xc0\x48\x81\xc3\x78\x56\x34\x12" },
	{ "across pages, branch", 9, D_CROSS, 3, "\xff\xc0\x0f\x84\x01\x00\x00\x00\x90" },
	{ "store across pages into code across pages", 9, D_RBX_CODE | D_CROSS, 7, "\x66\xc7\x43\x06\xff\xc1\xff\xc0\x90" },
	{ "x87: fld1, fldpi, fyl2x, fstp", 8, D_RSI_DATA, 0, "\xd9\xe8\xd9\xeb\xd9\xf1\xdb\x3e" },
	{ "x87 then MMX then emms", 9, D_RSI_DATA, 0, "\xd9\xe8\x0f\x6f\x06\x0f\xfc\xc1\x90" },
	{ "lock cmpxchg16b, twice", 10, D_RSI_DATA, 0, "\xf0\x48\x0f\xc7\x0e\xf0\x48\x0f\xc7\x0e" },
	{ "xsave, change, xrstor", 15, D_RSI_DATA, 0, "\x48\x83\xe6\xc0\x0f\xae\x26\x0f\x57\xc0\x0f\xae\x2e\x90\x90" },
	{ "wrfsbase then fs:", 11, D_RSI_DATA, 0, "\xf3\x48\x0f\xae\xd6\x64\x48\x8b\x04\x25\x00" },
	{ "enter 16,3; leave", 5, D_RSI_DATA, 0, "\xc8\x10\x00\x03\xc9" },
	{ "push and pop of everything", 12, 0, 0, "\x50\x53\x54\x55\x9c\x41\x57\x9d\x58\x5d\x5c\x5b" },
	{ "pop rsp", 3, 0, 0, "\x56\x5c\x90" },
	{ "push [rsp], pop [rsp+8]", 7, 0, 0, "\xff\x34\x24\x8f\x44\x24\x08" },
	{ "rep movsb onto itself, one ahead", 9, D_RSI_DATA | D_RCX_SMALL, 0, "\x48\x8d\x7e\x01\x83\xe1\x3f\xf3\xa4" },
	{ "std; rep movsb; cld", 10, D_RSI_DATA | D_RCX_SMALL, 0, "\x48\x8d\x7e\x01\x83\xe1\x3f\xfd\xf3\xa4" },
};
const unsigned directed_count = ARRAY_SIZE(directed);

const char *directed_name(unsigned n) { return directed[n].name; }

void directed_case(struct insn_case *c, unsigned n, struct rng *r)
{
	const struct directed *d = &directed[n];
	memset(c, 0, offsetof(struct insn_case, vec_val));
	gen_state(c, r);
	c->form = FORM_DIRECTED;
	c->len = d->len;
	memset(c->bytes, 0xcc, sizeof(c->bytes));
	memcpy(c->bytes, d->bytes, d->len);
	c->rip = CODE_BASE + 0x200 + rng_below(r, 512);
	if (d->flags & D_PAGE_END)
		c->rip = CODE_BASE + CODE_SIZE - d->len;
	if (d->flags & D_CROSS)
		c->rip = CODE_BASE + PAGE_SIZE - d->at;
	if (d->flags & D_RBX_CODE)
		c->gpr[3] = c->rip;
	if (d->flags & D_RSI_DATA)
		c->gpr[6] = DATA_BASE + rng_below(r, DATA_RW_SIZE - 4096);
	if (d->flags & D_RCX_SMALL)
		c->gpr[1] = 1 + rng_below(r, 300);
	c->gpr[5] = DATA_BASE + 512 + rng_below(r, DATA_RW_SIZE - 1024);
	c->rflags &= ~BIT(8);
	if (d->flags & D_TF)
		c->rflags |= BIT(8);
}
