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

    .text
    .globl  jump_words
    .type   jump_words, @function
jump_words:
    .cfi_startproc
    endbr64
    cmp     $3, %edi
    ja      wordx
    lea     words(%rip), %rax
    movswq  (%rax,%rdi,2), %rcx
    add     %rax, %rcx
    lea     word0(%rip), %rdx
    lea     words(%rip), %rax
    sub     %rax, %rcx
    add     %rdx, %rcx
    jmp     *%rcx
word0: mov $20, %eax
    ret
word1: lea words_in_text(%rip), %rax
    mov (%rax), %eax
    ret
word2: mov $22, %eax
    ret
word3: call sum_words
    ret
wordx: xor %eax, %eax
    ret
    .cfi_endproc
    .size   jump_words, . - jump_words
    .section .rodata.words, "a"
    .p2align 1
words: .short 0, word1 - word0, word2 - word0, word3 - word0
    .section .note.GNU-stack, "", @progbits
