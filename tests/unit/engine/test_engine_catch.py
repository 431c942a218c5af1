"""Catching system calls and exceptions, and who touched watched bytes: at the right ticks."""

from __future__ import annotations

import pytest
from engine_rig import CODE, DE, IDT, KERNEL_STACK, PD, PF, PS, UD, A, D, Guest, P, U, W, gate64
from test_engine_syscalls import SETUP

from tt.errors import EngineError
from tt.vmm.engine import BREAK, CATCH, HALT, WATCH

SKIP_UD, SKIP_PF, PLAIN = CODE + 0x800, CODE + 0x820, CODE + 0x840
SOURCE = (
    SETUP
    + """
    mov r15d, 3
again:
    mov eax, r15d
    syscall
back:
    ud2
    mov eax, 77
    int 0x80
    movabs rbx, 0x10000000000
    mov rax, [rbx]
    mov [0x40000], r15
    dec r15
    jnz again
    int 0x21
    hlt
entry:
    inc r14
    jmp rcx
entry32: hlt
.org 0x800
    add qword ptr [rsp], 2
    iretq
.org 0x820
    pop rcx
    add qword ptr [rsp], 3
    iretq
.org 0x840
    iretq
"""
)


def guest() -> Guest:
    made = Guest(SOURCE)
    for vector, handler in ((UD, SKIP_UD), (PF, SKIP_PF), (0x80, PLAIN), (0x21, PLAIN)):
        made.write(IDT + 16 * vector, gate64(handler))
    return made


def straight() -> tuple[tuple[int, bytes, bytes], dict[int, tuple[int, int]]]:
    """Return the end state, and (RIP, EAX) at each tick."""
    made = guest()
    seen = {}
    while True:
        registers = made.engine.registers()
        seen[made.engine.tick] = (registers["rip"], registers["rax"] & 0xFFFFFFFF)
        if made.run(made.engine.tick + 1) == HALT:
            return made.state(), seen


def caught(syscalls: list[int] | None, exceptions: list[int] | None) -> list[tuple[int, str, int]]:
    made = guest()
    made.engine.set_catches(syscalls, exceptions)
    found = []
    while (reason := made.run()) == CATCH:
        assert made.engine.caught is not None
        found.append((made.engine.tick, *made.engine.caught))
    assert reason == HALT and made.engine.caught is None
    assert made.state() == straight()[0], "catching changes nothing"
    return found


def test_system_calls_are_caught_before_they_happen() -> None:
    code = {SOURCE_AT[0]: b"\x0f\x05", SOURCE_AT[1]: b"\xcd\x80"}
    by_steps = [(tick, "syscall", eax) for tick, (rip, eax) in straight()[1].items() if rip in code]
    assert [number for _tick, _what, number in by_steps] == [3, 77, 2, 77, 1, 77]
    assert caught([], None) == by_steps
    assert caught([77, 500], None) == [one for one in by_steps if one[2] == 77]
    assert caught([4], None) == []


def places() -> tuple[int, int]:
    """Return where SYSCALL and INT 0x80 are."""
    code = guest().engine.read(CODE, 0x800)
    return CODE + code.index(b"\x0f\x05"), CODE + code.index(b"\xcd\x80")


SOURCE_AT = places()


def test_exceptions_are_caught_before_they_happen() -> None:
    steps = straight()[1]
    code = guest().engine.read(CODE, 0x800)
    faults = {
        CODE + code.index(b"\x0f\x0b"): UD,
        CODE + code.index(b"\x48\x8b\x03"): PF,
        CODE + code.index(b"\xcd\x21"): 0x21,
    }
    by_steps = [(tick, "exception", faults[rip]) for tick, (rip, _eax) in steps.items() if rip in faults]
    assert [vector for _tick, _what, vector in by_steps] == [UD, PF] * 3 + [0x21]
    assert caught(None, []) == by_steps
    assert caught(None, [PF]) == [one for one in by_steps if one[2] == PF]
    assert caught(None, [DE]) == []


def test_both_at_once_with_breakpoints_and_watchpoints() -> None:
    made = guest()
    made.engine.set_catches([], [])
    made.engine.set_breakpoints([SKIP_UD, PLAIN])
    made.engine.set_watchpoints([(0x40000, 8, False, True, False)])
    reasons = []
    while (reason := made.run()) != HALT:
        reasons.append((made.engine.tick, reason))
    assert made.state() == straight()[0]
    counts = {kind: sum(reason == kind for _tick, reason in reasons) for kind in (CATCH, BREAK, WATCH)}
    assert counts == {CATCH: 13, BREAK: 7, WATCH: 3}
    assert len(reasons) == len(set(reasons))


def test_a_handlers_first_instruction_shares_the_tick_of_the_fault() -> None:
    made = guest()
    made.engine.set_breakpoints([SKIP_UD])
    assert made.run() == BREAK
    assert made.engine.entered_at == made.engine.tick
    made.engine.set_breakpoints([PLAIN])
    assert made.run() == BREAK
    assert made.engine.entered_at != made.engine.tick, "INT n has retired when its handler begins"


def test_where_one_stands_does_not_count() -> None:
    made = guest()
    made.engine.set_catches([], None)
    assert made.run() == CATCH
    first = made.engine.tick
    made.engine.set_catches([], None)
    assert made.run() == CATCH
    assert made.engine.tick > first


def test_too_many_calls() -> None:
    with pytest.raises(EngineError, match="65 system calls"):
        guest().engine.set_catches(range(65), None)


# ---- who touched it


def test_what_the_cpu_pushes_on_its_way_into_a_handler() -> None:
    """It happens between two instructions: one stands after the second."""
    made = guest()
    made.engine.set_watchpoints([(KERNEL_STACK - 40, 8, False, True, False)])
    assert made.run() == WATCH
    assert made.engine.hit_by == "interrupt"
    assert made.engine.hits == [(0, False, True, bytes(8))]
    assert made.engine.tick == made.engine.entered_at + 1
    assert made.engine.registers()["rip"] == SKIP_UD + 5
    assert made.u64(KERNEL_STACK - 40) == SOURCE_AT[0] + 4, "the handler's own store to it"
    assert made.run() == WATCH


def test_an_instruction_that_faults_has_touched_nothing() -> None:
    """MOVSQ reads, and cannot write: only when the page is there it has read."""
    made = Guest("lea rsi, [0x40000]\n movabs rdi, 0x10000000000\n movsq\n hlt")
    made.engine.set_watchpoints([(0x40000, 8, True, False, False)])
    assert made.run() == HALT, "in the stub of the page fault"
    assert made.vector == PF


def test_all_of_several_watchpoints_that_one_instruction_hits() -> None:
    made = Guest("lea rsi, [0x40000]\n lea rdi, [0x50000]\n movsq\n hlt")
    made.write(0x40000, b"from....")
    watches = [
        (0x50000, 2, False, True, True),
        (0x40004, 8, True, True, False),
        (0x50000, 100, True, True, False),
    ]
    made.engine.set_watchpoints(watches)
    assert made.run() == WATCH
    assert made.engine.hits == [
        (0, False, True, bytes(2)),
        (1, True, False, b"...." + bytes(4)),
        (2, False, True, None),
    ]
    assert made.engine.hit_by == "instruction"
    assert made.run() == HALT


def test_a_page_walk_marks_an_entry() -> None:
    made = Guest("nop\n nop\n mov byte ptr [0x600000], 1\n nop\n nop\n hlt")
    entry = PD + 8 * 3
    made.put64(entry, 3 << 21 | P | W | U | PS | A)
    made = Guest("nop\n nop\n mov byte ptr [0x600000], 1\n nop\n nop\n hlt", ram=8 << 20)
    made.put64(entry, 3 << 21 | P | W | U | PS | A)
    made.engine.flush_tlb()
    made.engine.set_watchpoints([(entry, 8, False, True, True)])
    assert made.run() == WATCH
    assert (made.engine.tick, made.engine.hit_by) == (3, "page walk")
    assert made.u64(entry) & D
    assert made.run() == HALT


def test_what_a_device_writes_outside_of_a_run() -> None:
    made = Guest("nop\n nop\n nop\n hlt")
    made.engine.set_watchpoints([(0x40000, 4, False, True, True)])
    made.run(1)
    made.engine.write(0x3FFFE, b"abcdef")
    assert made.run() == WATCH
    assert (made.engine.tick, made.engine.hit_by, made.engine.hits) == (
        2,
        "device",
        [(0, False, True, bytes(4))],
    )
    assert made.engine.hit == (0x40000, 0x3FFFE, 6, True)
    assert made.run() == HALT


def test_a_device_writes_and_the_next_instruction_halts() -> None:
    made = Guest("nop\n hlt\n nop\n hlt")
    made.engine.set_watchpoints([(0x40000, 4, False, True, True)])
    made.run(1)
    made.engine.write(0x40000, b"abcd")
    assert made.run() == HALT
    assert made.run() == WATCH, "it was not told yet"
    assert made.engine.tick == 2
    assert made.run() == HALT


def test_bytes_on_the_next_page_of_ram_are_not_touched_by_an_access_across_a_border() -> None:
    """An access that crosses a page touches what is mapped there, not what follows in RAM."""
    made = Guest("mov qword ptr [0x5ffffc], 1\n hlt", ram=8 << 20)
    made.put64(PD + 8 * 3, 1 << 21 | P | W | U | PS | A | D)  # 0x600000 is elsewhere: 0x200000
    made.engine.flush_tlb()
    made.engine.set_watchpoints([(0x600000, 4, False, True, True)])
    assert made.run() == HALT
    made.reset()
    made.engine.set_watchpoints([(0x200000, 4, False, True, True)])
    assert made.run() == WATCH
