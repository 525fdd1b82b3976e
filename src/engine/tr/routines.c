#include "engine/tr/routines.h"

#include "cpu/exec.h"
#include "engine/rt/rt.h"

/* All guest registers and flags to c->r, host stack, call fn(c); resume or return. */
static void emit_call_c(struct translator *t, struct emit *e, s64 (*fn)(struct cpu *), const u8 *leave, const u8 *reload)
{
	(void)t;
	for (unsigned r = 0; r < 16; r++)
		emit_store_gs(e, r_off(r), r);
	emit_load_gs(e, RSP, TR(host_rsp));
	EMIT(e, 0x9c);                                 /* pushfq */
	EMIT(e, 0x65, 0x8f, 0x04, 0x25);               /* pop gs:[aflags] */
	emit_u32(e, (u32)offsetof(struct cpu, aflags));
	EMIT(e, 0xf3, 0x48, 0x0f, 0xae, 0xcf);         /* rdgsbase rdi */
	EMIT(e, 0x48, 0xb8);                           /* mov rax, fn */
	u64 f = (u64)fn;
	emit_bytes(e, &f, 8);
	EMIT(e, 0xff, 0xd0);                           /* call rax */
	EMIT(e, 0x48, 0x85, 0xc0);                     /* test rax, rax */
	emit_patch(emit_jcc(e, 8), reload);            /* js reload */
	emit_patch(emit_jmp(e), leave);
}

u8 *routines_emit(struct translator *t, struct emit *e, struct cpu *c)
{
	/* reload: registers and flags from c, jump to tr.target */
	u8 *reload = e->p;
	/* SF ZF AF PF CF by SAHF, OF by an addition that overflows when AL is 1: POPF costs five times as much. */
	emit_load_gs(e, RAX, offsetof(struct cpu, aflags));
	EMIT(e, 0x89, 0xc1);                           /* mov ecx, eax */
	EMIT(e, 0xc1, 0xe9, 0x0b);                     /* shr ecx, 11 */
	EMIT(e, 0x83, 0xe1, 0x01);                     /* and ecx, 1 */
	EMIT(e, 0x88, 0xc4, 0x88, 0xc8);               /* mov ah, al; mov al, cl */
	EMIT(e, 0x04, 0x7f, 0x9e);                     /* add al, 127; sahf */
	for (unsigned r = 0; r < 16; r++)
		emit_load_gs(e, r, r_off(r));
	EMIT(e, 0x65, 0xff, 0x24, 0x25);               /* jmp gs:[tr.target] */
	emit_u32(e, (u32)TR(target));

	/* leave: return rax to the C caller of enter */
	u8 *leave = e->p;
	EMIT(e, 0x48, 0x83, 0xc4, 0x08);               /* add rsp, 8 */
	EMIT(e, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3); /* pop r15 r14 r13 r12 rbp rbx; ret */

	/* enter: called from C */
	t->enter = e->p;
	EMIT(e, 0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57); /* push rbx rbp r12 r13 r14 r15 */
	EMIT(e, 0x48, 0x83, 0xec, 0x08);               /* sub rsp, 8: calls from here are aligned */
	emit_store_gs(e, TR(host_rsp), RSP);
	emit_patch(emit_jmp(e), reload);

	t->call_site = e->p;
	emit_call_c(t, e, rt_call, leave, reload);
	t->leave_early = e->p;
	emit_call_c(t, e, rt_early, leave, reload);
	t->link = e->p;
	emit_call_c(t, e, rt_link, leave, reload);
	t->find_return = e->p;
	emit_call_c(t, e, rt_return, leave, reload);
	u8 *miss = e->p;
	emit_call_c(t, e, rt_miss, leave, reload);

	/* dispatch: all guest registers and flags live, R_RIP holds the target */
	t->dispatch = e->p;
	const size_t jc = (size_t)((u8 *)c->jcache - (u8 *)c);
	emit_store_gs(e, SLOT(0), RAX);
	EMIT(e, 0x9f, 0x0f, 0x90, 0xc0);               /* lahf; seto al */
	emit_store_gs(e, SLOT(1), RCX);
	emit_store_gs(e, SLOT(2), RDX);
	emit_load_gs(e, RCX, r_off(R_RIP));
	emit_mov(e, RDX, RCX);
	EMIT(e, 0x48, 0xc1, 0xea, JCACHE_BITS);        /* shr rdx, JCACHE_BITS */
	EMIT(e, 0x48, 0x31, 0xca);                     /* xor rdx, rcx */
	EMIT(e, 0x81, 0xe2);                           /* and edx, mask */
	emit_u32(e, (u32)MASK(JCACHE_BITS));
	emit_lea(e, RDX, RDX, RDX, 1, 0);              /* sizeof(struct jcache_entry) = 24 = 3 * 8 */
	EMIT(e, 0x65, 0x48, 0x3b, 0x0c, 0xd5);         /* cmp rcx, gs:[rdx*8 + rip] */
	emit_u32(e, (u32)(jc + offsetof(struct jcache_entry, rip)));
	u8 *m1 = emit_jcc(e, 5);
	emit_load_gs(e, RCX, TR(jkey));
	EMIT(e, 0x65, 0x48, 0x3b, 0x0c, 0xd5);         /* cmp rcx, gs:[rdx*8 + key] */
	emit_u32(e, (u32)(jc + offsetof(struct jcache_entry, key)));
	u8 *m2 = emit_jcc(e, 5);
	EMIT(e, 0x65, 0x48, 0x8b, 0x14, 0xd5);         /* mov rdx, gs:[rdx*8 + block] */
	emit_u32(e, (u32)(jc + offsetof(struct jcache_entry, block)));
	EMIT(e, 0x80, 0x7a, (u8)offsetof(struct block, dead), 0); /* cmp byte [rdx + dead], 0 */
	u8 *m3 = emit_jcc(e, 5);
	EMIT(e, 0x48, 0x8b, 0x52, (u8)offsetof(struct block, code)); /* mov rdx, [rdx + code] */
	EMIT(e, 0x48, 0x85, 0xd2);                     /* test rdx, rdx */
	u8 *m4 = emit_jcc(e, 4);
	emit_store_gs(e, TR(target), RDX);
	EMIT(e, 0x04, 0x7f, 0x9e);                     /* add al, 127; sahf */
	emit_load_gs(e, RAX, SLOT(0));
	emit_load_gs(e, RCX, SLOT(1));
	emit_load_gs(e, RDX, SLOT(2));
	EMIT(e, 0x65, 0xff, 0x24, 0x25);
	emit_u32(e, (u32)TR(target));
	u8 *no = e->p;
	EMIT(e, 0x04, 0x7f, 0x9e);
	emit_load_gs(e, RAX, SLOT(0));
	emit_load_gs(e, RCX, SLOT(1));
	emit_load_gs(e, RDX, SLOT(2));
	emit_patch(emit_jmp(e), miss);
	emit_patch(m1, no);
	emit_patch(m2, no);
	emit_patch(m3, no);
	emit_patch(m4, no);
	return e->p;
}
_Static_assert(sizeof(struct jcache_entry) == 24, "the dispatcher scales by 3 * 8");
_Static_assert(offsetof(struct block, dead) < 128 && offsetof(struct block, code) < 128, "disp8 in the dispatcher");
