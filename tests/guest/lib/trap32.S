/* Exception and interrupt stubs of the 32-bit runtime. */
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
	push %edi
	push %esi
	push %ebp
	push %esp
	push %ebx
	push %edx
	push %ecx
	push %eax
	push %gs
	push %fs
	push %es
	push %ds
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	cld
	mov %esp, %ebx
	and $-16, %esp
	sub $12, %esp
	push %ebx
	call trap
	mov %ebx, %esp
	pop %ds
	pop %es
	pop %fs
	pop %gs
	pop %eax
	pop %ecx
	pop %edx
	pop %ebx
	add $4, %esp
	pop %ebp
	pop %esi
	pop %edi
	add $8, %esp
	iret

	/* void run_enter(struct frame *f) */
	.globl run_enter, run_leave, run_iret
run_enter:
	mov 4(%esp), %eax
	push %ebx
	push %ebp
	push %esi
	push %edi
	mov %esp, run_esp
	mov %eax, %esp
	pop %ds
	pop %es
	pop %fs
	pop %gs
	pop %eax
	pop %ecx
	pop %edx
	pop %ebx
	add $4, %esp
	pop %ebp
	pop %esi
	pop %edi
	add $8, %esp
run_iret:
	iret
run_leave:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov run_esp, %esp
	pop %edi
	pop %esi
	pop %ebp
	pop %ebx
	push $2
	popf
	ret

	.bss
	.balign 8
run_esp: .skip 4
	.section .note.GNU-stack, "", @progbits
