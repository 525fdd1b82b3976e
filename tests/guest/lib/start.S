/* Entry in 32-bit protected mode (multiboot 1, or PVH when PVH is defined), then long mode with the address space
 * guest.h describes. */
	.code32
#ifdef PVH
	/* XEN_ELFNOTE_PHYS32_ENTRY */
	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad _start
#else
	.section .multiboot, "a"
	.balign 4
multiboot_header:
#ifdef MB_ADDRESS_FIELDS
#define MB_FLAGS 0x00010003
#else
#define MB_FLAGS 0x00000003
#endif
	.long 0x1badb002, MB_FLAGS, -(0x1badb002 + MB_FLAGS)
	.long multiboot_header, image_start, image_data_end, image_end, _start
#endif

	.text
	.globl _start
_start:
	cli
	cld
	mov $boot_stack_top, %esp
#ifdef PVH
	xor %eax, %eax
#endif
	mov %eax, boot_magic
	mov %ebx, boot_info
	mov $0x620, %eax		/* PAE, OSFXSR, OSXMMEXCPT */
	mov %eax, %cr4
	mov $boot_pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		/* EFER: LME, NXE, SCE */
	rdmsr
	or $0x901, %eax
	wrmsr
	mov $0x80010033, %eax		/* PG WP NE ET MP PE */
	mov %eax, %cr0
	lgdt gdtr
	ljmp $0x08, $start64

	.code64
start64:
	mov $0x23, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov $0x10, %eax
	mov %eax, %ss
	xor %ebp, %ebp
	lea boot_stack_top(%rip), %rsp
	fninit
	call guest_main
1:	hlt
	jmp 1b

	.data
	.balign 4096
	.globl boot_pml4, boot_pdpt
boot_pml4:
	.quad boot_pdpt + 7
	.fill 511, 8, 0
boot_pdpt:
	.quad boot_pd0 + 7, 0, boot_pd2 + 7, boot_pd3 + 7
	.fill 508, 8, 0
	.set i, 0
boot_pd0:
	.rept 512
	.quad i * 0x200000 + 0x83
	.set i, i + 1
	.endr
	.set i, 0
boot_pd2:
	.rept 512
	.quad i * 0x200000 + 0x87
	.set i, i + 1
	.endr
	.set i, 0
boot_pd3:
	.rept 512
	.quad 0xc0000000 + i * 0x200000 + 0x9b
	.set i, i + 1
	.endr

	.globl gdt, gdtr
	.balign 16
gdt:
	.quad 0
	.quad 0x00af9b000000ffff	/* 08 ring 0 code, 64-bit */
	.quad 0x00cf93000000ffff	/* 10 ring 0 data */
	.quad 0x00cffb000000ffff	/* 18 ring 3 code, 32-bit */
	.quad 0x00cff3000000ffff	/* 20 ring 3 data */
	.quad 0x00affb000000ffff	/* 28 ring 3 code, 64-bit */
	.quad 0x00cff3000000ffff	/* 30 ring 3 data (SYSEXIT) */
	.quad 0x00cf9b000000ffff	/* 38 ring 0 code, 32-bit */
	.quad 0x000f9b000000ffff	/* 40 ring 0 code, 16-bit, byte granular, base 0 */
	.quad 0x000f93000000ffff	/* 48 ring 0 data, 16-bit */
	.fill 118, 8, 0
gdtr:	.word 128 * 8 - 1
	.quad gdt
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
