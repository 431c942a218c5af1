"""Port I/O: exact ticks, values, privileges, and interrupts that an access causes."""

from __future__ import annotations

import pytest
from engine_rig import CODE, GP, IDT, TSS, Guest, check_count, check_every_stop, gate64
from test_engine_exceptions import TO_USER

from tt.vmm.engine import HALT, STOP


def test_the_tick_in_a_callback_is_that_before_the_instruction() -> None:
    guest = Guest("""
        nop
        nop
        in al, 0x60             # 2
        mov dx, 0x1234
        nop
        in ax, dx               # 5
        in eax, dx              # 6
        out 0x80, al            # 7
        mov eax, 0xdeadbeef
        out dx, ax              # 9
        out dx, eax             # 10
        hlt
    """)
    guest.inputs = lambda port, size: 0x1122334455667788 >> 8 * size & (1 << 8 * size) - 1
    check_every_stop(guest)
    assert guest.io == [
        (2, "in", 0x60, 1, 0x77),
        (5, "in", 0x1234, 2, 0x5566),
        (6, "in", 0x1234, 4, 0x11223344),
        (7, "out", 0x80, 1, 0x44),
        (9, "out", 0x1234, 2, 0xBEEF),
        (10, "out", 0x1234, 4, 0xDEADBEEF),
    ]
    assert check_count(guest) == 12


def test_in_changes_only_its_bytes() -> None:
    guest = Guest(
        "mov rax, -1\n mov rbx, rax\n in al, 1\n xchg rax, rbx\n in ax, 2\n"
        "mov rcx, rax\n mov rax, -1\n in eax, 4\n hlt"
    )
    guest.inputs = lambda port, size: 0
    registers = guest.halt()
    assert registers["rbx"] == 0xFFFFFFFFFFFFFF00
    assert registers["rcx"] == 0xFFFFFFFFFFFF0000
    assert registers["rax"] == 0


def test_string_io() -> None:
    guest = Guest("""
        mov edi, 0x40000
        mov ecx, 4
        mov dx, 0x1f0
        rep insw
        mov esi, 0x40000
        mov ecx, 3
        rep outsb
        insd
        outsd
        hlt
    """)

    def inputs(port: int, size: int) -> int:
        return guest.engine.tick * 0x0101 & (1 << 8 * size) - 1

    guest.inputs = inputs
    assert check_every_stop(guest) == 3 + 5 + 2 + 4 + 3
    assert [entry[:4] for entry in guest.io] == (
        [(3 + i, "in", 0x1F0, 2) for i in range(4)]
        + [(10 + i, "out", 0x1F0, 1) for i in range(3)]
        + [(14, "in", 0x1F0, 4), (15, "out", 0x1F0, 4)]
    )
    assert guest.engine.read(0x40000, 8) == b"\3\3\4\4\5\5\6\6"
    assert [entry[4] for entry in guest.io[4:7]] == [3, 3, 4]
    check_count(guest)


def test_rep_ins_that_faults_in_the_middle() -> None:
    """The read that has no place to go to happens again after the fault is repaired, as QEMU has it."""
    guest = Guest("""
        mov edi, 0x40000ffe
        mov ecx, 4
        mov dx, 0x60
        rep insb
        hlt
        .org 0x800
        or dword ptr [0x63008], 1
        add rsp, 8
        iretq
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067, 0x51066)
    guest.write(IDT + 14 * 16, gate64(CODE + 0x800))
    guest.inputs = lambda port, size: 0x41 + guest.engine.tick
    assert check_every_stop(guest) == 3 + 5 + 3 + 1
    assert check_count(guest) == 12
    assert guest.engine.read(0x50FFE, 4) == bytes([0x44, 0x45, 0x49, 0x4A])


@pytest.mark.parametrize("iopl", [0, 3])
@pytest.mark.parametrize("source", ["in al, 0x60", "out 0x60, al", "in eax, 0x60", "mov dx, 0x60\n outsb"])
def test_user_io_needs_iopl_or_the_bitmap(source: str, iopl: int) -> None:
    guest = Guest(TO_USER.format(flags=2 | iopl << 12) + source + "\n int 0x40")
    guest.write(IDT + 0x40 * 16, gate64(0x8000 + 4 * 0x40, dpl=3))
    guest.engine.set_register("rsi", 0x40000)
    guest.start_state = guest.engine.save()
    frame = guest.frame()
    assert frame.vector == (0x40 if iopl == 3 else GP)
    assert len(guest.io) == (iopl == 3)
    check_every_stop(guest)
    check_count(guest)


def test_the_io_bitmap() -> None:
    bitmap = bytearray(b"\xff" * 0x100)
    bitmap[0x60 // 8] &= ~0b11  # 0x60 and 0x61
    allowed = (("in al, 0x60", True), ("in ax, 0x60", True), ("in eax, 0x60", False), ("in ax, 0x61", False))
    for source, fine in allowed:
        guest = Guest(TO_USER.format(flags=2) + source + "\n int 0x40")
        guest.write(IDT + 0x40 * 16, gate64(0x8000 + 4 * 0x40, dpl=3))
        guest.write(TSS + 102, (0x68).to_bytes(2, "little"))
        guest.write(TSS + 0x68, bytes(bitmap))
        frame = guest.frame()
        assert (frame.vector, len(guest.io)) == ((0x40, 1) if fine else (GP, 0)), source
        check_every_stop(guest)


def test_an_interrupt_caused_by_an_access_is_taken_right_after_it() -> None:
    guest = Guest("""
        sti
        nop
        nop
        out 0x42, al            # tick 3, in the middle of what would be one block
        nop
        nop
        nop
        hlt
        .org 0x800
        mov rbp, [rsp]
        out 0x20, al
        iretq
    """)
    guest.write(IDT + 16 * 0x30, gate64(CODE + 0x800))
    guest.on_out = lambda port, size, value: guest.set_intr(port == 0x42)
    taken: list[int] = []

    def acknowledge() -> int:
        taken.append(guest.engine.tick)
        return 0x30

    guest.engine.acknowledge = acknowledge
    for stop in range(11):
        guest.reset()
        taken.clear()
        if stop:
            guest.run(stop)
        guest.halt()
        assert taken == [4], stop
        assert guest.engine.registers()["rbp"] == CODE + 5
        assert guest.engine.tick == 8 + 3
    check_every_stop(guest)
    assert check_count(guest) == 11


def test_an_access_may_end_the_run() -> None:
    guest = Guest("1: inc rax\n out 0x42, al\n inc rbx\n jmp 1b")

    def stop_here(port: int, size: int, value: int) -> None:
        if value == 3:
            guest.engine.limit = guest.engine.tick

    guest.on_out = stop_here
    assert guest.run(1000) == STOP
    registers = guest.engine.registers()
    assert (guest.engine.tick, registers["rax"], registers["rbx"], registers["rip"]) == (10, 3, 2, CODE + 5)


@pytest.mark.parametrize("error", [ValueError("a device"), KeyboardInterrupt()])
@pytest.mark.parametrize("source", ["in al, 0x60", "out 0x60, al", "rdtsc", "sti\n nop\n nop"])
def test_an_exception_comes_out_of_run_and_the_engine_goes_on(source: str, error: BaseException) -> None:
    guest = Guest(f"nop\n {source}\n nop\n hlt")
    broken = [True]

    def fail(*_: int) -> int:
        if broken:
            broken.clear()
            raise error
        return 5

    guest.engine.port_read = guest.engine.tsc = guest.engine.acknowledge = fail
    guest.engine.port_write = lambda port, size, value: (fail(), None)[1]
    guest.engine.host_tsc = True
    if source.startswith("sti"):
        guest.engine.set_intr(True)
    with pytest.raises(type(error)) as caught:
        guest.run()
    assert caught.value is error
    at = guest.engine.tick
    assert at == {"in": 2, "ou": 2, "rd": 1, "st": 3}[source[:2]]
    guest.engine.set_intr(False)
    assert guest.run() == HALT
    assert guest.vector is None
    guest.reset()
    assert guest.run() == HALT


def test_a_callback_that_returns_nonsense() -> None:
    guest = Guest("in al, 0x60\n hlt")
    guest.engine.port_read = lambda port, size: "x"  # type: ignore[assignment, return-value]
    with pytest.raises(TypeError):
        guest.run()
    assert guest.engine.registers()["rax"] == 0xFF
    assert guest.run() == HALT
