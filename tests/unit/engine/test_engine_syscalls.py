"""SYSCALL, SYSENTER and their returns, compatibility mode, SWAPGS."""

from __future__ import annotations

from engine_rig import (
    CF,
    CODE,
    DF,
    GP,
    IF,
    KERNEL_CS64,
    KERNEL_DS,
    UD,
    USER_CS32,
    USER_CS64,
    USER_DS,
    USER_STACK,
    Guest,
    check_count,
    check_every_stop,
)
from test_engine_exceptions import TO_USER

SETUP = """
    mov ecx, 0xc0000081             # STAR: kernel 0x10/0x18, user 0x20 and on
    xor eax, eax
    mov edx, 0x00230010
    wrmsr
    mov ecx, 0xc0000082             # LSTAR
    lea rax, [rip + entry]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000083             # CSTAR
    lea rax, [rip + entry32]
    wrmsr
    mov ecx, 0xc0000084             # SFMASK: IF and DF
    mov eax, 0x600
    wrmsr
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1                       # SCE
    wrmsr
"""


def test_syscall_and_sysret() -> None:
    guest = Guest(
        SETUP
        + TO_USER.format(flags=IF | 2)
        + """
        std
        stc
        syscall
    back:
        pushfq
        pop rbx
        syscall
    entry:
        inc rsi
        cmp rsi, 2
        je 1f
        mov r12, rcx
        mov r13, r11
        mov r14, cs
        mov r15, ss
        pushfq
        pop r8
        sysretq
    1:  hlt
    entry32: hlt
        """
    )
    check_every_stop(guest)
    registers = guest.engine.registers()
    back = registers["r12"]
    assert guest.engine.read(back - 2, 2) == b"\x0f\x05"
    assert registers["r13"] == IF | DF | CF | 2
    assert (registers["r14"], registers["r15"]) == (KERNEL_CS64, KERNEL_DS)
    assert registers["r8"] & (IF | DF) == 0, "SFMASK"
    assert registers["rbx"] == IF | DF | CF | 2, "SYSRET gives all flags back"
    assert registers["rsp"] == USER_STACK, "SYSCALL changes no stack"
    check_count(guest)


def test_syscall_without_sce() -> None:
    for source in ("syscall", "sysretq"):
        guest = Guest(source)
        assert guest.frame().vector == UD
        check_every_stop(guest)


def test_syscall_from_compatibility_mode() -> None:
    guest = Guest(
        SETUP
        + """
        push UDS
        push USTACK
        push 2
        push UCS32
        push offset compat
        iretq
        .code32
    compat:
        mov eax, 0xffffffff
        inc eax                     # 32 bits: becomes 0
        mov ebx, cs
        .byte 0x48                  # dec eax, here
        syscall
        .code64
    entry: hlt
    entry32:
        mov r12, rcx
        mov r14, cs
        cmp rsi, 1
        je 1f
        inc rsi
        .byte 0x0f, 0x07            # SYSRET to 32 bits
    1:  hlt
        """
    )
    guest.engine.set_register("rsi", 1)
    guest.start_state = guest.engine.save()
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert registers["rax"] == 0xFFFFFFFF
    assert (registers["rbx"], registers["r14"]) == (USER_CS32, KERNEL_CS64)
    check_count(guest)
    guest.reset()
    guest.engine.set_register("rsi", 0)
    guest.start_state = guest.engine.save()
    while guest.engine.registers()["rsi"] == 0 or guest.engine.segment("cs")[0] == KERNEL_CS64:
        guest.run(guest.engine.tick + 1)
    assert (guest.engine.bits, guest.engine.registers()["cs"], guest.engine.registers()["ss"]) == (
        32, USER_CS32, USER_DS,
    )  # fmt: skip


def test_sysenter_and_sysexit() -> None:
    guest = Guest(
        """
        mov ecx, 0x174
        mov eax, 0x10
        xor edx, edx
        wrmsr
        mov ecx, 0x175
        mov eax, 0x2f000
        wrmsr
        mov ecx, 0x176
        lea rax, [rip + entry]
        wrmsr
        """
        + TO_USER.format(flags=IF | 2)
        + """
        sysenter
    back:
        mov rbx, cs
        mov rbp, rsp
        sysenter
    entry:
        cmp rsi, 1
        je 1f
        inc rsi
        mov r12, rsp
        pushfq
        pop r13
        lea rdx, [rip + back]
        mov rcx, USTACK - 64
        .byte 0x48, 0x0f, 0x35      # SYSEXIT to 64 bits
    1:  hlt
        """
    )
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert registers["r12"] == 0x2F000
    assert registers["r13"] & IF == 0
    assert registers["rbx"] == USER_CS64, "CS 0x10 + 32, RPL 3"
    assert registers["rbp"] == USER_STACK - 64
    check_count(guest)


def test_sysenter_without_a_selector() -> None:
    guest = Guest("sysenter")
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip) == (GP, 0, CODE)


def test_swapgs() -> None:
    guest = Guest("""
        mov ecx, 0xc0000101
        mov eax, 0x40000
        xor edx, edx
        wrmsr
        mov ecx, 0xc0000102
        mov eax, 0x50000
        wrmsr
        mov qword ptr [0x40000], 1
        mov qword ptr [0x50000], 2
        mov rbx, gs:[0]
        swapgs
        mov rsi, gs:[0]
        rdmsr
        mov edi, eax
        swapgs
        mov rbp, gs:[0]
        hlt
    """)
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert [registers[name] for name in ("rbx", "rsi", "rdi", "rbp")] == [1, 2, 0x40000, 1]
    assert registers["gs_base"] == 0x40000
