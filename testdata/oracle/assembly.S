// Hand-written: data in the text, labels without types, computed jumps of 8- and 16-bit tables.
    .text
    .globl  sum_words
    .type   sum_words, @function
sum_words:
    .cfi_startproc
    lea     words_in_text(%rip), %rdx
    xor     %eax, %eax
    mov     $4, %ecx
1:  add     -4(%rdx,%rcx,4), %eax
    dec     %ecx
    jnz     1b
    ret
    .cfi_endproc
    .size   sum_words, . - sum_words
    .p2align 6
words_in_text:
    .long   0x12345678, 0x9abcdef0, 17, 1
    .asciz  "text in the text"
    .p2align 4

    .globl  jump_bytes
    .type   jump_bytes, @function
jump_bytes:
    .cfi_startproc
    endbr64
    and     $3, %edi
    lea     bytes(%rip), %rax
    movzbl  (%rax,%rdi), %ecx
    lea     case0(%rip), %rax
    add     %rcx, %rax
    jmp     *%rax
case0: mov $10, %eax
    ret
case1: mov $11, %eax
    ret
case2: mov $12, %eax
    ret
case3: mov $13, %eax
    ret
    .cfi_endproc
    .size   jump_bytes, . - jump_bytes
    .section .rodata.bytes, "a"
bytes: .byte 0, case1 - case0, case2 - case0, case3 - case0
    .section .note.GNU-stack, "", @progbits
