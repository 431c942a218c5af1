"""Exceptions and interrupts: what reaches the handler, on which stack, in every mode."""

from __future__ import annotations

import pytest
from engine_rig import (
    CF,
    CODE,
    DB,
    DE,
    DOUBLE,
    GDT,
    GP,
    IDT,
    IF,
    IST1,
    IST2,
    KERNEL_CS32,
    KERNEL_CS64,
    KERNEL_DS,
    KERNEL_STACK,
    NP,
    PF,
    PML4,
    REAL_CODE,
    RF,
    RING_STACK,
    STUBS,
    UD,
    USER_CS32,
    USER_CS64,
    USER_DS,
    USER_STACK,
    Guest,
    check_count,
    check_every_stop,
    gate32,
    gate64,
)

from tt.vmm.engine import HALT, SHUTDOWN, STOP

TO_USER = """
    push UDS
    push USTACK
    push {flags}
    push UCS64
    lea rax, [rip + user]
    push rax
    iretq
user:
"""
TO_USER32 = """
    push UDS
    push USTACK
    push {flags}
    push UCS32
    lea eax, user
    push eax
    iretd
user:
"""


def user(source: str, flags: int = 2) -> str:
    return TO_USER.format(flags=flags) + source


@pytest.mark.parametrize(
    ("source", "vector", "error", "at"),
    [
        ("xor ecx, ecx\n div ecx", DE, None, 2),
        ("mov eax, 0x80000000\n mov edx, -1\n mov ecx, -1\n idiv ecx", DE, None, 15),
        ("ud2", UD, None, 0),
        (".byte 0x0f, 0xff", UD, None, 0),
        ("mov ax, 0x1238\n mov ds, ax", GP, 0x1238, 4),
        ("mov rax, 1 << 60\n mov al, [rax]", GP, 0, 10),
        ("mov ax, 0x3b\n ltr ax", GP, 0x38, 4),
        ("int 0x80\n", 0x80, None, 2),
        ("int3", 3, None, 1),
        ("mov eax, [0x200000]\n mov eax, [0x8000000000]", PF, 0, 7),
    ],
)
def test_long_mode_frames(source: str, vector: int, error: int | None, at: int) -> None:
    """SS:RSP is always pushed, on a stack aligned to 16 bytes, RIP is that of it or the next."""
    source = source.replace("mov eax, [0x8000000000]", "movabs eax, [0x8000000000]")
    guest = Guest(f"mov esp, 0x1fff3\n {source}")
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip) == (vector, error, CODE + 5 + at)
    assert (frame.cs, frame.ss, frame.rsp) == (KERNEL_CS64, KERNEL_DS, 0x1FFF3)
    assert frame.at == 0x1FFF0 - 40 - 8 * (error is not None)
    assert check_every_stop(guest) == guest.engine.tick
    check_count(guest)


def test_an_interrupt_gate_clears_if_and_a_trap_gate_does_not() -> None:
    for kind, flag in ((0xE, 0), (0xF, IF)):
        guest = Guest("sti\n stc\n int 0x40")
        guest.write(IDT + 16 * 0x40, gate64(STUBS + 4 * 0x40, kind=kind))
        frame = guest.frame()
        assert frame.flags & (IF | CF) == IF | CF
        assert guest.engine.registers()["rflags"] & IF == flag


def test_ist_and_ring_change_stacks() -> None:
    for ring, source in ((0, "ud2"), (3, user("ud2"))):
        for ist, stack in ((1, IST1), (2, IST2), (0, KERNEL_STACK if ring == 0 else RING_STACK)):
            guest = Guest(source)
            guest.write(IDT + 16 * UD, gate64(STUBS + 4 * UD, ist=ist))
            frame = guest.frame()
            assert frame.at == stack - 40
            assert (frame.cs, frame.ss) == ((KERNEL_CS64, KERNEL_DS) if ring == 0 else (USER_CS64, USER_DS))
            assert frame.rsp == (KERNEL_STACK if ring == 0 else USER_STACK)
            ss = guest.engine.registers()["ss"]
            # On a real CPU an IST stack alone leaves SS as it is; QEMU makes it null with every new stack.
            assert ss == (0 if ring or ist else KERNEL_DS)
            check_every_stop(guest)


def test_int_from_user_code_needs_dpl_3() -> None:
    guest = Guest(user("int 0x40"))
    frame = guest.frame()
    assert (frame.vector, frame.error) == (GP, 0x40 * 16 + 2)
    guest.write(IDT + 16 * 0x40, gate64(STUBS + 4 * 0x40, dpl=3))
    guest.reset()
    frame = guest.frame()
    assert (frame.vector, frame.cs, frame.at) == (0x40, USER_CS64, RING_STACK - 40)
    guest.reset()
    check_every_stop(guest)


@pytest.mark.parametrize(
    "source",
    ["hlt", "cli", "sti", "lgdt [0x600]", "mov rax, cr0", "mov cr3, rax", "rdmsr", "wrmsr", "invlpg [rax]",
     "in al, 0x20", "out 0x20, al", "wbinvd", "clts", "mov rax, dr7", "lmsw ax", "mov rax, cr8", "swapgs"],
)  # fmt: skip
def test_privileged_instructions(source: str) -> None:
    guest = Guest(user(source))
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.cs) == (GP, 0, USER_CS64)
    assert frame.rip == CODE + guest.engine.read(CODE, 64).index(b"\x48\xcf") + 2
    check_every_stop(guest)
    check_count(guest)


def test_an_absent_gate() -> None:
    guest = Guest("int 0x40")
    guest.write(IDT + 16 * 0x40, bytes(16))
    frame = guest.frame()
    # A real CPU says 8 * vector + 2; this QEMU counts the long gates' 16 bytes.
    assert (frame.vector, frame.error, frame.rip) == (GP, 0x40 * 16 + 2, CODE)
    assert guest.engine.tick == 1, "an INT that faults does not retire"
    assert check_count(guest) == 1
    guest = Guest("int 0x40")
    guest.write(IDT + 16 * 0x40, gate64(STUBS)[:5] + b"\x0e" + gate64(STUBS)[6:])
    guest.reset()
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip) == (NP, 0x40 * 16 + 2, CODE)


def test_a_double_fault_and_a_triple_fault() -> None:
    guest = Guest("nop\n ud2\n")
    guest.write(IDT + 16 * UD, bytes(16))  # #UD without a gate: #GP
    frame = guest.frame()
    assert (frame.vector, frame.error) == (GP, UD * 16 + 2)
    guest.write(IDT + 16 * GP, bytes(16))
    guest.write(CODE, b"\x90\x31\xc9\xf7\xf1")  # nop; xor ecx, ecx; div ecx
    guest.write(IDT + 16 * DE, bytes(16))  # #DE, then #GP for its gate: contributory both
    guest.reset()
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip) == (DOUBLE, 0, CODE + 3)
    guest.write(IDT + 16 * DOUBLE, bytes(16))
    for step in (1000, 1):
        guest.reset()
        while (reason := guest.run(guest.engine.tick + step)) == STOP:
            pass
        assert (reason, guest.engine.tick) == (SHUTDOWN, 2)


def test_faults_one_after_another_are_not_double() -> None:
    """Each contributory fault is delivered and over: the second one of a guest's life is no double fault."""
    guest = Guest("xor ecx, ecx\n div ecx\n mov ax, 0x1238\n mov ds, ax\n div ecx\n hlt\n .org 0x800\n iretq")
    skip = b"\x48\x83\x04\x24\x02\x48\xcf"  # add qword [rsp], 2; iretq
    guest.write(CODE + 0x800, skip)
    guest.write(CODE + 0x840, b"\x48\x83\xc4\x08" + skip)  # first, drop the error code
    guest.write(IDT + 16 * DE, gate64(CODE + 0x800))
    guest.write(IDT + 16 * GP, gate64(CODE + 0x840))
    assert check_every_stop(guest) == 3 + 2 + 3 + 2
    assert check_count(guest) == 10


def test_a_page_fault_while_delivering_a_page_fault() -> None:
    guest = Guest("mov rsp, 0x50000000\n mov al, [0x60000000]\n")  # neither is mapped
    assert guest.run() == SHUTDOWN  # the double fault has the same stack
    guest.write(IDT + 16 * DOUBLE, gate64(STUBS + 4 * DOUBLE, ist=1))
    guest.reset()
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip, frame.rsp) == (DOUBLE, 0, CODE + 7, 0x50000000)
    assert guest.engine.registers()["cr2"] == 0x50000000 - 8
    check_every_stop(guest)


def test_the_shadow_after_mov_ss() -> None:
    guest = Guest("sti\n nop\n mov ax, ss\n mov ss, ax\n nop\n nop\n hlt")
    guest.engine.acknowledge = lambda: 0x30
    for tick, expected in ((2, 2), (3, 3), (4, 5), (5, 5), (6, 6)):
        guest.reset()
        guest.run(tick)
        guest.engine.set_intr(True)
        guest.halt()
        assert (guest.vector, guest.engine.tick) == (0x30, expected + 1)


def test_sti_hlt_cannot_lose_an_interrupt() -> None:
    guest = Guest("sti\n hlt\n cli\n hlt")
    guest.engine.acknowledge = lambda: 0x30
    for tick in (0, 1):
        guest.reset()
        guest.run(tick)
        guest.engine.set_intr(True)
        assert guest.run(1000) == HALT
        assert guest.engine.tick == 2
        assert guest.engine.interruptible
        frame = guest.frame()
        assert (frame.vector, frame.rip, guest.engine.tick) == (0x30, CODE + 2, 3)


def test_a_spurious_interrupt_changes_nothing() -> None:
    guest = Guest("sti\n nop\n nop\n hlt")

    def acknowledge() -> int:
        guest.engine.set_intr(False)
        return -1

    guest.engine.acknowledge = acknowledge
    guest.engine.set_intr(True)
    guest.halt()
    assert (guest.vector, guest.engine.tick) == (None, 4)


def test_single_steps_trap_and_count() -> None:
    """TF: a trap after each instruction, each REP iteration and each turn of a loop onto itself."""
    guest = Guest("""
        mov ecx, 3
        mov edi, 0x40000
        pushfq
        or qword ptr [rsp], 0x100
        popfq
        rep stosb
        mov ecx, 2
    1:  loop 1b
        pushfq
        and qword ptr [rsp], ~0x100
        popfq
        hlt
        .org 0x800
        inc rbp
        iretq
    """)
    guest.write(IDT + 16 * DB, gate64(CODE + 0x800))
    traps = 3 + 1 + 2 + 3
    assert check_every_stop(guest) == 5 + 3 * traps + 1
    assert guest.engine.registers()["rbp"] == traps
    assert check_count(guest) == 5 + 3 * traps + 1


@pytest.mark.parametrize("place", ["1: nop\n nop", "mov ecx, 4\n nop\n1: loop 1b", "1: hlt"])
def test_hardware_breakpoints(place: str) -> None:
    """An instruction breakpoint is a fault: nothing counts, and RF lets the handler go on."""
    guest = Guest(f"""
        lea rax, [rip + 1f]
        mov dr0, rax
        mov eax, 0x402
        mov dr7, rax
        nop
        {place}
        hlt
        .org 0x800
        inc rbp
        mov rbx, dr6
        or qword ptr [rsp + 16], {RF}
        iretq
    """)
    guest.write(IDT + 16 * DB, gate64(CODE + 0x800))
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert registers["rbp"] == (4 if "loop" in place else 1)
    assert registers["rbx"] & 0xF == 1
    check_count(guest)


# ---- protected mode, 32 bits


def test_protected_mode_frames() -> None:
    guest = Guest("ud2", "protected32")
    frame = guest.frame()
    assert (frame.vector, frame.rip, frame.cs, frame.at) == (UD, CODE, KERNEL_CS64, KERNEL_STACK - 12)
    check_every_stop(guest)


def test_protected_mode_ring_change() -> None:
    guest = Guest(TO_USER32.format(flags=2) + "mov eax, 5\n int 0x40", "protected32")
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.cs) == (GP, 0x40 * 8 + 2, USER_CS32)
    assert (frame.rsp, frame.ss, frame.at) == (USER_STACK, USER_DS, RING_STACK - 24)
    assert guest.engine.registers()["cs"] == KERNEL_CS32
    guest.write(IDT + 8 * 0x40, gate32(STUBS + 4 * 0x40, dpl=3))
    guest.reset()
    frame = guest.frame()
    assert (frame.vector, frame.cs, frame.rsp, frame.at) == (0x40, USER_CS32, USER_STACK, RING_STACK - 20)
    check_every_stop(guest)
    check_count(guest)


def test_a_task_gate() -> None:
    """A hardware task switch through a task gate: QEMU does it, and it is the same at every stop."""
    source = """
        mov word ptr [0xb000 + 102], 0x1000
        mov dword ptr [0xb000 + 28], 0      # CR3
        mov dword ptr [0xb000 + 32], offset task
        mov dword ptr [0xb000 + 36], 2
        mov dword ptr [0xb000 + 56], 0x28000
        mov dword ptr [0xb000 + 76], 8      # CS
        mov dword ptr [0xb000 + 72], 0x18
        mov dword ptr [0xb000 + 80], 0x18
        mov dword ptr [0xb000 + 84], 0x18
        mov dword ptr [0x640], 0xb0000067   # a second TSS
        mov dword ptr [0x644], 0x8900
        mov dword ptr [IDT + 0x40 * 8], 0x400000
        mov dword ptr [IDT + 0x40 * 8 + 4], 0x8500
        mov ebx, 7
        int 0x40
        mov ecx, 9
        hlt
    task:
        mov edx, 5
        iretd
    """
    guest = Guest(source, "protected32")
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert (registers["rbx"], registers["rcx"], registers["tr"]) == (7, 9, 0x38)
    check_count(guest)


# ---- real mode


def test_real_mode_vectors() -> None:
    guest = Guest("mov esp, 0x7000\n stc\n int 0x21", "real16")
    guest.halt()
    assert guest.vector == 0x21
    assert guest.engine.registers()["rsp"] == 0x7000 - 6
    assert guest.engine.bits == 16
    words = [int.from_bytes(guest.engine.read(0x7000 - 6 + 2 * i, 2), "little") for i in range(3)]
    assert words == [REAL_CODE + 9, 0, 2 | CF]
    check_every_stop(guest)
    check_count(guest)


def test_real_mode_faults_push_no_error_code() -> None:
    guest = Guest("mov esp, 0x7000\n xor cx, cx\n div cx", "real16")
    guest.halt()
    assert (guest.vector, guest.engine.registers()["rsp"]) == (DE, 0x7000 - 6)
    assert check_every_stop(guest) == 2 + 1


def test_from_real_mode_to_long_mode() -> None:
    """Protected mode, PAE, EFER.LME, paging, far jumps: every tick of it can be stopped at."""
    guest = Guest(
        """
        cli
        lgdt [gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp 8:protected
        .code32
    protected:
        mov ax, 0x18
        mov ds, ax
        mov ss, ax
        mov eax, 0x20
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, 0x80000011
        mov cr0, eax
        jmp 0x10:long
    long:
        .byte 0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff  # mov rax, -1
        .byte 0x48, 0xc1, 0xe8, 4                       # shr rax, 4
        hlt
    gdtr: .word 0x47
        .long GDT
        """,
        "real16",
    )
    long = Guest("hlt")
    guest.write(GDT, long.start_ram[GDT : GDT + 0x48])
    guest.write(PML4, long.start_ram[PML4 : PML4 + 0x3000])
    assert check_every_stop(guest) == 6 + 13 + 1 + 3
    assert guest.engine.registers()["rax"] == (1 << 60) - 1
    assert guest.engine.bits == 64
    check_count(guest)
