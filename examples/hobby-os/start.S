/* Entry from the boot loader, exception and interrupt stubs, and the program that runs in ring 3. */

        .set MULTIBOOT_MAGIC, 0x1BADB002
        .set MULTIBOOT_FLAGS, 2                 /* tell me about memory */
        .set KERNEL_DATA, 0x10
        .set USER_CODE, 0x18 | 3
        .set USER_DATA, 0x20 | 3

        .section .multiboot, "a"
        .align 4
        .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .text
        .globl _start
_start: mov $kernel_stack_top, %esp
        push %ebx                               /* Multiboot information */
        push %eax                               /* the boot loader's magic number */
        call kernel_main
1:      cli
        hlt
        jmp 1b

/* void load_gdt(const void *gdtr): and give all segment registers new selectors. */
        .globl load_gdt
load_gdt:
        mov 4(%esp), %eax
        lgdt (%eax)
        ljmp $0x08, $1f
1:      mov $KERNEL_DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %fs
        mov %eax, %gs
        mov %eax, %ss
        ret

/* One stub a vector.  Those without an error code push a zero in its place. */
        .macro stub vector
        .align 16
        .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17)
        push $0
        .endif
        push $\vector
        jmp enter_kernel
        .endm

        .align 16
        .globl interrupt_stubs
interrupt_stubs:
        .set vector, 0
        .rept 48
        stub vector
        .set vector, vector + 1
        .endr
        .globl system_call_stub
system_call_stub:
        push $0
        push $0x80

enter_kernel:                                   /* builds struct frame, see hobby.h */
        pusha
        push %ds
        push %es
        mov $KERNEL_DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        cld
        push %esp
        call interrupt
        add $4, %esp
        pop %es
        pop %ds
        popa
        add $8, %esp                            /* vector and error code */
        iret

/* void run_user(void *entry, void *stack): go to ring 3, come back by leave_user. */
        .globl run_user
run_user:
        mov 4(%esp), %eax
        mov 8(%esp), %ecx
        pushf
        pusha
        mov %esp, kernel_esp
        mov $USER_DATA, %edx
        mov %edx, %ds
        mov %edx, %es
        push $USER_DATA
        push %ecx
        pushf
        push $USER_CODE
        push %eax
        iret

/* void leave_user(void): called in a system call of ring 3; returns from run_user. */
        .globl leave_user
leave_user:
        mov kernel_esp, %esp
        mov $KERNEL_DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        popa
        popf                                    /* a system call has interrupts off */
        ret

/* The ring 3 program: write(text), then exit(CS), so that the kernel sees where it came from. */
        .section .user, "ax"
        .globl user_program
user_program:
        mov $1, %eax
        mov $user_text, %ebx
        int $0x80
        mov $0, %eax
        mov %cs, %ebx
        int $0x80
        ud2                                     /* exit does not return */
user_text:
        .asciz "user: hello from ring 3\n"

        .section .user_stack, "aw"
        .skip 4096
        .globl user_stack_top
user_stack_top:

        .bss
        .align 16
        .skip 16384
        .globl kernel_stack_top
kernel_stack_top:
kernel_esp:
        .skip 4
        .globl interrupt_stack_top
        .align 16
        .skip 8192
interrupt_stack_top:
