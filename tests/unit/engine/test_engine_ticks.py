"""Ticks: exact at every stop, however it is reached, and equal to an independent count."""

from __future__ import annotations

import pytest
from engine_rig import (
    CODE,
    DE,
    IF,
    KERNEL_CS64,
    UD,
    USER_CS64,
    Guest,
    check_count,
    check_every_stop,
    gate64,
)

from tt.vmm.engine import HALT, STOP

RETURN = "add qword ptr [rsp + {skip}], {length}\n iretq\n"


def with_handlers(source: str, **handlers: str) -> str:
    """Return `source` with labels for handlers after it."""
    return source + "".join(
        f"\n.org 0x{0x800 + 0x40 * i:x}\n{text}" for i, text in enumerate(handlers.values())
    )


def handler_at(index: int) -> int:
    return CODE + 0x800 + 0x40 * index


def test_branches_and_calls() -> None:
    guest = Guest("""
        mov ecx, 7
    1:  call 2f
        loop 1b
        jmp 3f
    2:  test cl, 1
        jz 4f
        add rax, rcx
    4:  ret
    3:  cmp rax, 16
        setz bl
        hlt
    """)
    # 7 x (call, test, jz, ret, loop), 4 of them with the add; mov, jmp, cmp, setz, hlt
    assert check_every_stop(guest) == 7 * 5 + 4 + 5
    assert check_count(guest) == 44
    assert guest.engine.registers()["rbx"] == 1


@pytest.mark.parametrize(
    ("source", "ticks"),
    [
        ("mov ecx, 0\n rep stosb\n hlt", 3),  # the step that finds RCX zero
        ("mov ecx, 1\n rep stosb\n hlt", 4),  # an iteration, and that step
        ("mov ecx, 9\n rep stosb\n hlt", 12),
        ("mov ecx, 9\n rep movsq\n hlt", 12),
        ("mov ecx, 9\n rep lodsd\n hlt", 12),
        ("mov ecx, 9\n repe scasb\n hlt", 3),  # RAM is 0, AL is 1: the first comparison ends it
        ("mov ecx, 9\n repne scasb\n hlt", 12),
        ("mov ecx, 9\n repe cmpsb\n hlt", 12),
        ("mov ecx, 9\n repne cmpsb\n hlt", 3),
    ],
)
def test_each_rep_iteration_is_a_tick(source: str, ticks: int) -> None:
    """n iterations that end because RCX is zero count n + 1; those that end by ZF count n.

    The additional one is QEMU's: after each iteration it comes back to the
    instruction, and only there finds that nothing is left.
    """
    guest = Guest("mov al, 1\n mov edi, 0x40000\n mov esi, 0x42000\n" + source)
    assert check_every_stop(guest) == 3 + ticks
    assert check_count(guest) == 3 + ticks


def test_rep_in_an_interrupt_shadow() -> None:
    """There QEMU translates it in another way: no additional step, and the shadow covers all iterations."""
    guest = Guest("mov edi, 0x40000\n mov ecx, 1\n sti\n rep stosb\n hlt")
    assert check_every_stop(guest) == 5
    guest = Guest("mov edi, 0x40000\n mov ecx, 3\n sti\n rep stosb\n nop\n hlt")
    assert check_every_stop(guest) == 8
    guest.engine.acknowledge = lambda: 0x30
    guest.reset()
    guest.engine.set_intr(True)
    assert guest.frame().rip == CODE + 13
    assert guest.engine.tick == 6 + 1
    assert check_count(guest) == 8


def test_stop_in_the_middle_of_rep() -> None:
    guest = Guest("mov edi, 0x40000\n mov ecx, 1000\n mov al, 7\n rep stosb\n hlt")
    for done in (0, 1, 2, 500, 999, 1000):
        guest.reset()
        assert guest.run(3 + done) == STOP
        registers = guest.engine.registers()
        assert (registers["rcx"], registers["rdi"], registers["rip"]) == (
            1000 - done,
            0x40000 + done,
            CODE + 12,
        )
        assert guest.engine.read(0x40000, 1001) == b"\7" * done + bytes(1001 - done)
    assert guest.run(1004) == STOP  # the step that finds RCX zero
    assert guest.engine.registers()["rip"] == CODE + 14
    assert guest.run(2000) == HALT


def test_faults_do_not_count() -> None:
    guest = Guest(
        with_handlers(
            """
            mov ecx, 3
        1:  xor edx, edx
            mov eax, 5
            div edx             # #DE: 2 bytes, skipped by its handler
            ud2                 # #UD
            inc rbx
            loop 1b
            hlt
            """,
            de=RETURN.format(skip=0, length=2),
            ud=RETURN.format(skip=0, length=2),
        )
    )
    guest.write(0x4000 + 16 * DE, gate64(handler_at(0)))
    guest.write(0x4000 + 16 * UD, gate64(handler_at(1)))
    ticks = 1 + 3 * (4 + 2 + 2) + 1
    assert check_every_stop(guest) == ticks
    assert check_count(guest) == ticks


def test_software_interrupts_count() -> None:
    guest = Guest(with_handlers("int 0x40\n int3\n int 0x40\n hlt", a="inc rax\n iretq"))
    for vector in (3, 0x40):
        guest.write(0x4000 + 16 * vector, gate64(handler_at(0)))
    assert check_every_stop(guest) == 3 * 3 + 1
    assert check_count(guest) == 10
    assert guest.engine.registers()["rax"] == 3


def test_hardware_interrupts_at_every_boundary() -> None:
    """Raise INTR at each tick in turn: one interrupt is taken, exactly there if IF allows."""
    guest = Guest(
        with_handlers(
            "nop\n nop\n sti\n nop\n mov ecx, 3\n mov edi, 0x40000\n rep stosb\n cli\n nop\n nop\n hlt",
            irq="mov rbp, [rsp]\n out 0x20, al\n iretq",
        )
    )
    guest.write(0x4000 + 16 * 0x21, gate64(handler_at(0)))
    taken: list[int] = []

    def acknowledge() -> int:
        taken.append(guest.engine.tick)
        return 0x21

    def end_of_interrupt(port: int, size: int, value: int) -> None:
        guest.engine.set_intr(False)

    guest.engine.acknowledge = acknowledge
    guest.on_out = end_of_interrupt
    guest.reset()
    guest.halt()
    quiet = guest.engine.tick
    assert quiet == 14
    for tick in range(quiet):
        runs = []
        for steps in (False, True):
            guest.reset()
            taken.clear()
            guest.run(tick)
            guest.engine.set_intr(True)
            while guest.run(guest.engine.tick + 1 if steps else 1000) == STOP:
                pass
            runs.append((list(taken), guest.state(), list(guest.io)))
        assert runs[0] == runs[1], tick
        # sti is instruction 3, its shadow instruction 4: IF counts from tick 4 to the cli (instruction 11)
        expected = [max(tick, 4)] if tick < 11 else []
        assert runs[0][0] == expected, tick


def test_interrupts_in_user_code_and_counting() -> None:
    guest = Guest(
        with_handlers(
            f"""
            push {0x2B}
            push 0x30000
            push {0x202}
            push {USER_CS64}
            push offset user
            iretq
        user:
            mov ecx, 20
        1:  add rax, rcx
            loop 1b
            int 0x40
            """,
            irq="inc rbx\n out 0x20, al\n iretq",
            leave="hlt",
        )
    )
    guest.write(0x4000 + 16 * 0x21, gate64(handler_at(0)))
    guest.write(0x4000 + 16 * 0x40, gate64(handler_at(1), dpl=3))
    guest.engine.acknowledge = lambda: 0x21
    guest.on_out = lambda port, size, value: guest.engine.set_intr(False)
    guest.inputs = lambda port, size: 0
    guest.reset()
    guest.run(10)
    guest.engine.set_intr(True)
    assert guest.run(13) == STOP  # inc, out and iretq have run
    assert guest.engine.registers()["cs"] == USER_CS64
    assert guest.engine.registers()["rbx"] == 1
    guest.halt()
    assert guest.engine.registers()["cs"] == KERNEL_CS64
    total = guest.engine.tick
    assert total == 6 + 1 + 40 + 1 + 1 + 3
    guest.reset()
    guest.engine.count_instructions()
    for tick in range(1, total):
        guest.run(tick)
        if tick == 10:
            guest.engine.set_intr(True)
    guest.halt()
    assert guest.engine.tick == guest.engine.counted == total


def test_running_to_a_tick_that_is_reached_does_nothing() -> None:
    guest = Guest("nop\n nop\n hlt")
    guest.run(2)
    before = guest.state()
    for stop in (0, 1, 2):
        assert guest.run(stop) == STOP
        assert guest.state() == before
    guest.engine.limit = 2
    assert guest.run(100) == STOP
    assert guest.state() == before
    guest.engine.limit = 100
    assert guest.run(100) == HALT


def test_the_limit_ends_a_run() -> None:
    guest = Guest("1: inc rax\n jmp 1b")
    guest.engine.limit = 1001
    assert guest.run(5000) == STOP
    assert (guest.engine.tick, guest.engine.registers()["rax"]) == (1001, 501)
    guest.engine.limit = 10_000
    assert guest.run(5000) == STOP
    assert guest.engine.tick == 5000


def test_a_block_longer_than_any_cut() -> None:
    """Blocks are cut at 512 instructions and at pages; the ticks do not notice."""
    guest = Guest("inc rax\n" * 1500 + "hlt")
    for tick in (1, 2, 511, 512, 513, 1024, 1025, 1365, 1366, 1499, 1500):
        guest.reset()
        guest.run(tick)
        assert (guest.engine.tick, guest.engine.registers()["rax"]) == (tick, tick)
    assert guest.run(5000) == HALT
    assert guest.engine.tick == 1501


def test_setting_the_tick() -> None:
    guest = Guest("1: inc rax\n jmp 1b")
    guest.engine.tick = 1 << 60
    guest.run((1 << 60) + 7)
    assert guest.engine.tick == (1 << 60) + 7
    assert guest.engine.registers()["rax"] == 4


def test_interrupts_off_keeps_the_line_waiting() -> None:
    guest = Guest("mov ecx, 100\n1: loop 1b\n sti\n nop\n hlt")
    guest.engine.acknowledge = lambda: 0x30
    guest.engine.set_intr(True)
    frame = guest.frame()
    assert frame.vector == 0x30
    assert guest.engine.tick == 1 + 100 + 2 + 1  # mov, loops, sti and its shadow, then the stub's hlt
    assert frame.flags & IF
    assert frame.rip == CODE + 5 + 2 + 2
