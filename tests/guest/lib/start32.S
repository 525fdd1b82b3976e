/* Multiboot 1 entry of the programs that stay in 32-bit protected mode without paging. */
	.code32
	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 3, -(0x1badb002 + 3)

	.text
	.globl _start
_start:
	cli
	cld
	mov $boot_stack_top, %esp
	mov %eax, boot_magic
	mov %ebx, boot_info
	mov %cr0, %eax
	or $0x10032, %eax		/* WP NE ET MP */
	mov %eax, %cr0
	mov %cr4, %eax
	or $0x600, %eax			/* OSFXSR, OSXMMEXCPT */
	mov %eax, %cr4
	fninit
	lgdt gdtr
	ljmp $0x08, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov %eax, %ss
	call guest_main
2:	hlt
	jmp 2b

	.data
	.globl gdt, gdtr
	.balign 16
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	/* 08 ring 0 code */
	.quad 0x00cf93000000ffff	/* 10 ring 0 data */
	.quad 0x00cffb000000ffff	/* 18 ring 3 code */
	.quad 0x00cff3000000ffff	/* 20 ring 3 data */
	.quad 0x00affb000000ffff	/* 28 ring 3 code, 64-bit */
	.quad 0x00cff3000000ffff	/* 30 ring 3 data */
	.quad 0x00cf9b000000ffff	/* 38 ring 0 code */
	.quad 0x000f9b000000ffff	/* 40 ring 0 code, 16-bit, limit 1 MiB */
	.quad 0x0000930000000000 + 0xffff /* 48 ring 0 data, 16-bit, limit 64 KiB */
	.fill 118, 8, 0
gdtr:	.word 128 * 8 - 1
	.long gdt
	.globl boot_magic, boot_info
	.balign 8
boot_magic: .long 0
boot_info: .long 0

	.bss
	.balign 16
	.globl boot_stack_top, trap_stack_top, run_stack_top
	.skip 32768
boot_stack_top:
	.skip 16384
trap_stack_top:
	.skip 16384
run_stack_top:
	.skip 64
	.section .note.GNU-stack, "", @progbits
