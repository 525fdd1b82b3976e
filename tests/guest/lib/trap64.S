/* Exception and interrupt stubs of the 64-bit runtime: a struct frame on the stack, then trap(). */
	.text
	.globl trap_stubs
	.balign 16
trap_stubs:				/* 16 bytes each */
	.set v, 0
	.rept 256
	.balign 16
	.if (v != 8) && (v != 10) && (v != 11) && (v != 12) && (v != 13) && (v != 14) && (v != 17) && (v != 21)
	push $0
	.endif
	push $v
	jmp trap_common
	.set v, v + 1
	.endr

trap_common:
	push %r15
	push %r14
	push %r13
	push %r12
	push %r11
	push %r10
	push %r9
	push %r8
	push %rdi
	push %rsi
	push %rbp
	push %rsp
	push %rbx
	push %rdx
	push %rcx
	push %rax
	cld
	mov %rsp, %rdi
	mov %rsp, %rbx
	and $-16, %rsp
	call trap
	mov %rbx, %rsp
	pop %rax
	pop %rcx
	pop %rdx
	pop %rbx
	add $8, %rsp
	pop %rbp
	pop %rsi
	pop %rdi
	pop %r8
	pop %r9
	pop %r10
	pop %r11
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	add $16, %rsp
	.globl trap_iret
trap_iret:
	iretq

	/* void run_enter(struct frame *f): f is writable with room below it */
	.globl run_enter, run_leave, run_iret
run_enter:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, run_rsp(%rip)
	mov %rdi, %rsp
	pop %rax
	pop %rcx
	pop %rdx
	pop %rbx
	add $8, %rsp
	pop %rbp
	pop %rsi
	pop %rdi
	pop %r8
	pop %r9
	pop %r10
	pop %r11
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	add $16, %rsp
run_iret:
	iretq
run_leave:
	mov run_rsp(%rip), %rsp
	mov $0x23, %eax
	mov %eax, %ds
	mov %eax, %es
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	push $2
	popf
	ret

	.bss
	.balign 8
run_rsp: .skip 8
	.section .note.GNU-stack, "", @progbits
