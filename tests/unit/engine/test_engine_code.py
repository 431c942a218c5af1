"""Code that changes, lies in odd places or is missing: never a stale instruction, never a wrong tick."""

from __future__ import annotations

import pytest
from engine_rig import (
    CODE,
    IDT,
    MB,
    PF,
    UD,
    Guest,
    P,
    assemble,
    check_count,
    check_every_stop,
    gate64,
)

from tt.vmm.engine import HALT, STOP


def test_a_block_that_rewrites_what_comes_next() -> None:
    guest = Guest("""
        mov byte ptr [rip + 1f + 1], 7  # the immediate of the next instruction
    1:  mov al, 1
        mov byte ptr [rip + 2f], 0x90   # removes the increment
        nop
        nop
    2:  .byte 0xf4                      # would halt
        inc bl
        hlt
    """)
    assert check_every_stop(guest) == 8
    assert guest.engine.registers()["rax"] & 0xFF == 7
    assert guest.engine.registers()["rbx"] == 1
    assert check_count(guest) == 8


def test_a_loop_that_rewrites_itself_each_time() -> None:
    guest = Guest("""
        mov ecx, 40
    1:  .byte 5, 0, 0, 0, 0             # add eax, 0: its immediate counts up
        inc dword ptr [rip + 1b + 1]
        loop 1b
        hlt
    """)
    assert check_every_stop(guest) == 1 + 120 + 1
    assert guest.engine.registers()["rax"] == sum(range(40))
    assert check_count(guest) == 122


def test_rep_stos_over_itself() -> None:
    guest = Guest("""
        lea rdi, [rip + 1f]
        mov ecx, 8
        mov al, 0x90
    1:  rep stosb                       # the first two iterations replace the instruction itself
        nop
        nop
        nop
        nop
        nop
        nop
        hlt
    """)
    check_every_stop(guest)
    check_count(guest)
    assert guest.vector is None


def test_another_page_written_and_run_alternately() -> None:
    """More often than the page may flip between its classes for free."""
    guest = Guest("""
        mov rbx, 0x40000
        mov dword ptr [rbx], 0xc300b0       # mov al, 0; ret
        mov ecx, 30
    1:  inc byte ptr [rbx + 1]
        call rbx
        add edx, eax
        mov [rbx + 0x800], eax              # data in the same page
        loop 1b
        hlt
    """)
    assert check_every_stop(guest) == 3 + 30 * 7 + 1
    assert guest.engine.registers()["rdx"] == sum(range(1, 31))
    assert check_count(guest) == 214


@pytest.mark.parametrize("reads_first", [False, True])
def test_code_written_through_another_mapping(reads_first: bool) -> None:
    guest = Guest(f"""
        mov rbx, 0x40000000                 # maps 0x50000
        mov rsi, 0x50000
        mov dword ptr [rsi], 0xc300b0
        {"mov al, [rbx]" if reads_first else "nop"}
        mov ecx, 20
    1:  inc byte ptr [rbx + 1]
        call rsi
        add edx, eax
        inc byte ptr [rsi + 1]
        call rbx
        add ebp, eax
        loop 1b
        hlt
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067)
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert (registers["rdx"], registers["rbp"]) == (sum(range(1, 41, 2)), sum(range(2, 41, 2)))
    check_count(guest)


def test_one_address_two_pages_in_turn() -> None:
    """The same virtual code address in two address spaces."""
    guest = Guest("""
        mov rbx, 0x40000000
        mov ecx, 10
    1:  call rbx
        xor qword ptr [0x63000], 0x1000
        invlpg [rbx]
        loop 1b
        hlt
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067)
    guest.write(0x50000, assemble("inc rax\n ret"))
    guest.write(0x51000, assemble("add rdx, 3\n nop\n ret"))
    assert check_every_stop(guest) == 2 + 10 * 4 + 5 * 2 + 5 * 3 + 1
    registers = guest.engine.registers()
    assert (registers["rax"], registers["rdx"]) == (5, 15)
    check_count(guest)


def crossing(tail: str, present: int) -> Guest:
    """Return a guest that runs over the end of page 0x40000000; the next is `present` or not."""
    guest = Guest(f"mov rbx, 0x40000ff0\n jmp rbx\n .org 0x800\n {tail}")
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067, 0x51066 | present)
    # 14 bytes: inc rax x 3, nop x 5; then a 10-byte mov from 0xffe on
    guest.write(
        0x50FF0,
        assemble(
            "inc rax\n inc rax\n inc rax\n nop\n nop\n nop\n nop\n nop\n movabs rdx, 0x1122334455667788\n hlt"
        ),
    )
    return guest


def test_an_instruction_across_two_pages() -> None:
    guest = crossing("hlt", P)
    guest.write(0x51000, guest.start_ram[0x51000:0x51009])
    assert check_every_stop(guest) == 2 + 8 + 2
    assert guest.engine.registers()["rdx"] == 0x1122334455667788
    check_count(guest)


def test_an_instruction_whose_second_page_is_missing() -> None:
    guest = crossing("hlt", 0)
    frame = guest.frame()
    assert (frame.vector, frame.error, frame.rip) == (PF, 0, 0x40000FFE)
    registers = guest.engine.registers()
    assert (registers["cr2"], registers["rax"]) == (0x40001000, 3)
    assert guest.engine.tick == 2 + 8 + 1
    check_every_stop(guest)
    check_count(guest)


def test_the_missing_second_page_appears() -> None:
    guest = crossing("or byte ptr [0x63008], 1\n add rsp, 8\n iretq", 0)
    guest.write(IDT + 16 * PF, gate64(CODE + 0x800))
    assert check_every_stop(guest) == 2 + 8 + 3 + 2
    assert guest.engine.registers()["rdx"] == 0x1122334455667788
    assert check_count(guest) == 15


def test_a_cached_crossing_block_whose_second_page_goes() -> None:
    guest = crossing("hlt", P)
    guest.write(0x51008, b"\xc3")  # ret in place of the HLT, after the crossing instruction
    guest.write(
        CODE,
        assemble("""
        mov rbx, 0x40000ff0
        call rbx
        call rbx
        and byte ptr [0x63008], 0xfe
        mov rax, 0x40001000
        invlpg [rax]
        call rbx
        hlt
    """),
    )
    frame = guest.frame()
    assert (frame.vector, frame.rip) == (PF, 0x40000FFE)
    assert guest.engine.tick == 1 + 2 * 11 + 3 + 1 + 8 + 1
    check_every_stop(guest)
    check_count(guest)


def test_the_last_bytes_of_ram() -> None:
    """Running over the end of RAM: the floating bus is no instruction."""
    guest = Guest("mov rbx, 0xffffa\n jmp rbx")
    guest.write(MB - 6, b"\x90" * 6)
    frame = guest.frame()
    assert (frame.vector, frame.rip, guest.engine.tick) == (UD, MB, 2 + 6 + 1)
    check_every_stop(guest)
    guest.write(MB - 6, b"\x90\x90\x90\xf4\x90\x90")
    guest.reset()
    guest.halt()
    assert guest.engine.tick == 6
    check_every_stop(guest)
    check_count(guest)


@pytest.mark.parametrize("target", [MB, 0x3FFFFFF0, 0x200000])
def test_a_jump_outside_ram(target: int) -> None:
    guest = Guest(f"mov rbx, {target}\n jmp rbx")
    frame = guest.frame()
    assert (frame.vector, frame.rip, guest.engine.tick) == (UD, target, 3)
    check_every_stop(guest)
    check_count(guest)


@pytest.mark.parametrize("target", [0xFFFF_FFFF_FFFF_F000, 0xFFFF_FFFF_FFFF_FFF0])
def test_the_last_page_of_the_address_space(target: int) -> None:
    guest = Guest(f"mov rbx, {target:#x}\n jmp rbx")
    guest.put64(0x1FF8, 0x60007)
    guest.put64(0x60FF8, 0x61007)
    guest.put64(0x61FF8, 0x62007)
    guest.put64(0x62FF8, 0x50067)
    guest.write(0x50000, b"\x48\xff\xc0" * 2 + b"\xf4")
    guest.write(0x50FF0, b"\x48\xff\xc0" * 2 + b"\xf4")
    assert check_every_stop(guest) == 5
    assert guest.engine.registers()["rax"] == 2
    check_count(guest)


def test_running_off_the_end_of_the_address_space() -> None:
    """After the last byte RIP is 0 again; QEMU wraps, where a real CPU raises #GP."""
    guest = Guest("mov rbx, 0xfffffffffffffffd\n jmp rbx")
    guest.put64(0x1FF8, 0x60007)
    guest.put64(0x60FF8, 0x61007)
    guest.put64(0x61FF8, 0x62007)
    guest.put64(0x62FF8, 0x50067)
    guest.write(0x50FFD, b"\x48\xff\xc0")
    guest.write(0, b"\xf4")
    assert check_every_stop(guest) == 4
    assert guest.engine.registers()["rip"] == 1


def test_a_device_writes_over_code_that_ran() -> None:
    guest = Guest("1: mov al, 1\n add edx, eax\n jmp 1b")
    guest.run(30)
    assert guest.engine.registers()["rdx"] == 10
    guest.engine.write(CODE + 1, b"\x05")
    guest.run(60)
    assert guest.engine.registers()["rdx"] == 10 + 50
    guest.engine.write(CODE - 1, b"\x90\xb0\x07")
    guest.run(90)
    assert guest.engine.registers()["rdx"] == 60 + 70


def test_a_device_writes_the_running_block_from_a_callback() -> None:
    guest = Guest("""
        mov ecx, 5
    1:  out 0x42, al
        mov al, 0
        add edx, eax
        loop 1b
        hlt
    """)
    guest.on_out = lambda port, size, value: guest.engine.write(CODE + 8, bytes([value + 1]))
    check_every_stop(guest)
    assert guest.engine.registers()["rdx"] == 1 + 2 + 3 + 4 + 5
    assert check_count(guest) == 1 + 20 + 1


def test_invalid_and_overlong_instructions() -> None:
    guest = Guest(".byte " + "0x66, " * 15 + "0x90\n hlt")
    frame = guest.frame()
    assert (frame.vector, frame.rip) in {(UD, CODE), (13, CODE)}
    check_every_stop(guest)
    check_count(guest)


def test_jumping_into_the_middle_of_an_instruction() -> None:
    guest = Guest("""
        mov ecx, 3
    1:  mov eax, 0x90f4c0ff     # inc eax; hlt; nop
        loop 1b
        lea rbx, [rip + 1b + 1]
        jmp rbx
    """)
    assert check_every_stop(guest) == 1 + 6 + 2 + 2
    check_count(guest)


def test_a_jump_to_itself_can_be_stopped_anywhere() -> None:
    guest = Guest("1: jmp 1b")
    for tick in (1, 2, 1000, 1001, 1_000_000):
        assert guest.run(tick) == STOP
        assert guest.engine.tick == tick
    guest.engine.write(CODE, b"\xf4")
    assert guest.run(2_000_000) == HALT
