/* Entry, event upcall and exception upcall of the Denali guest kit.
 *
 * An upcall saves RIP, RFLAGS, RSP and RAX in a frame in the register page and
 * changes RIP alone: RSP and RAX are therefore free to use here.  Each kind of
 * upcall has a stack of its own, so an exception within an event handler (a TLB
 * miss, say) does no harm.
 */
#define RETURN_FROM_EVENT 2
#define RETURN_FROM_EXCEPTION 3

#define EVENT_MASK 0x1120

    .macro save_registers
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    .endm

    .macro restore_registers
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rbp
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    .endm

    .section .text.start, "ax", @progbits
    .globl _start
    .type _start, @function
_start:
    mov $main_stack_top, %rsp
    xor %ebp, %ebp
    call kit_start
    call main
    movslq %eax, %rdi
    xor %eax, %eax                  /* terminate */
    vmcall
    ud2
    .size _start, . - _start

    .globl event_upcall
    .type event_upcall, @function
event_upcall:
    cld                             /* the flags are the interrupted code's */
    mov $event_stack_top, %rsp
    save_registers                  /* 14 pushes: the stack stays 16-aligned */
    mov EVENT_MASK, %rdi
    call kit_events
    restore_registers
    mov $RETURN_FROM_EVENT, %eax
    vmcall
    .size event_upcall, . - event_upcall

    .globl exception_upcall
    .type exception_upcall, @function
exception_upcall:
    cld
    mov $exception_stack_top, %rsp
    save_registers
    mov %rsp, %rdi
    call kit_exception
    restore_registers
    mov $RETURN_FROM_EXCEPTION, %eax
    vmcall
    .size exception_upcall, . - exception_upcall

    .section .bss.stacks, "aw", @nobits
    .balign 4096
    .skip 16384
main_stack_top:
    .skip 8192
event_stack_top:
    .skip 8192
exception_stack_top:

    .section .note.GNU-stack, "", @progbits

/* The mark of a Denali guest: an ELF note of name "Denali", type 1, holding the
 * version of the machine.  It is not loaded; `tt record` looks for it.
 */
    .section .note.denali, "", @note
    .balign 4
    .long 7, 4, 1
    .asciz "Denali"
    .balign 4
    .long 1
