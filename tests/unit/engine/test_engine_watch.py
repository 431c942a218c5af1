"""Breakpoints and watchpoints: where they stop, and that they change nothing."""

from __future__ import annotations

import random

import pytest
from engine_rig import CODE, Guest

from tt.errors import EngineError
from tt.vmm.engine import BREAK, HALT, STOP, WATCH

LOOP = """
    mov ecx, 500
1:  mov [0x40000], ecx
    inc eax
    mov ebx, [0x40004]
    push rcx
    pop rdx
    xchg [0x40008], edx
    dec ecx
    jnz 1b
    hlt
"""
STORE, ADD, LOAD, XCHG = CODE + 5, CODE + 12, CODE + 14, CODE + 23


def straight() -> tuple[int, bytes, bytes]:
    guest = Guest(LOOP)
    assert guest.engine.run(10**6) == HALT
    return guest.engine.tick, guest.engine.save(), guest.engine.ram_digest()


def test_a_breakpoint_stops_before_its_instruction_each_time_round() -> None:
    engine = Guest(LOOP).engine
    engine.set_breakpoints([ADD])
    for i in range(5):
        assert engine.run(10**6) == BREAK
        assert engine.registers()["rip"] == ADD
        assert engine.registers()["rax"] == i
        assert engine.tick == 2 + 8 * i


def test_two_breakpoints_in_one_block_and_on_its_first_instruction() -> None:
    engine = Guest(LOOP).engine
    engine.set_breakpoints([STORE, LOAD])
    seen = []
    for _ in range(4):
        assert engine.run(10**6) == BREAK
        seen.append((engine.tick, engine.registers()["rip"]))
    assert seen == [(1, STORE), (3, LOAD), (9, STORE), (11, LOAD)]


def test_a_breakpoint_set_after_its_block_was_translated() -> None:
    engine = Guest(LOOP).engine
    assert engine.run(100) == STOP
    engine.set_breakpoints([XCHG])
    assert engine.run(10**6) == BREAK
    assert engine.registers()["rip"] == XCHG
    engine.set_breakpoints([])
    assert engine.run(10**6) == HALT


def test_a_stop_at_a_breakpoint_comes_first() -> None:
    engine = Guest(LOOP).engine
    engine.set_breakpoints([ADD])
    assert engine.run(2) == STOP
    assert engine.registers()["rip"] == ADD
    assert engine.run(10**6) == BREAK
    assert engine.tick == 2, "nobody has been told of it"
    assert engine.run(10**6) == BREAK
    assert engine.tick == 10, "the instruction that one stands on has been seen"
    engine.set_breakpoints([ADD])
    assert engine.run(10**6) == BREAK
    assert engine.tick == 18, "where one stands when it is set does not count"


@pytest.mark.parametrize("physical", [False, True])
def test_a_watchpoint_stops_right_after_the_store(physical: bool) -> None:
    engine = Guest(LOOP).engine
    engine.set_watchpoints([(0x40002, 1, False, True, physical)])
    for i in range(4):
        assert engine.run(10**6) == WATCH
        assert engine.hit == (0x40000, 0x40000, 4, True)
        assert engine.registers()["rip"] == ADD
        assert engine.tick == 2 + 8 * i
        assert int.from_bytes(engine.read(0x40000, 4), "little") == 500 - i


def test_reads_and_writes_are_told_apart() -> None:
    engine = Guest(LOOP).engine
    engine.set_watchpoints([(0x40000, 4, True, False, False), (0x40004, 4, False, True, False)])
    assert engine.run(10**6) == HALT
    engine = Guest(LOOP).engine
    engine.set_watchpoints([(0x40004, 4, True, False, False)])
    assert engine.run(10**6) == WATCH
    assert engine.hit == (0x40004, 0x40004, 4, False)


def test_a_watched_stack_and_an_exchange() -> None:
    engine = Guest(LOOP).engine
    engine.set_watchpoints([(0x20000 - 8, 8, True, True, False), (0x40008, 4, True, True, False)])
    kinds = []
    for _ in range(3):
        assert engine.run(10**6) == WATCH
        assert engine.hit is not None
        kinds.append((engine.tick, engine.hit[0], engine.hit[3]))
    assert kinds[:2] == [(5, 0x1FFF8, True), (6, 0x1FFF8, False)]
    assert kinds[2][:2] == (7, 0x40008)


UNALIGNED = """
    mov ecx, 50
1:  mov [0x40f1e - 1], rcx
    mov [0x40003], rcx
    mov rdx, [0x40f1d]
    mov [0x40ffd], rcx
    dec ecx
    jnz 1b
    hlt
"""


@pytest.mark.parametrize("physical", [False, True])
def test_unaligned_accesses_elsewhere_on_the_page_do_not_stop(physical: bool) -> None:
    engine = Guest(UNALIGNED).engine
    engine.set_watchpoints([(0x40000, 3, True, True, physical), (0x41008, 8, True, True, physical)])
    assert engine.run(10**6) == HALT, hex(engine.hit[0]) if engine.hit else ""
    engine = Guest(UNALIGNED).engine
    engine.set_watchpoints([(0x4000A, 1, True, True, physical), (0x41004, 1, True, True, physical)])
    for i in range(3):
        assert engine.run(10**6) == WATCH
        assert engine.tick == 3 + 6 * i
        assert engine.run(10**6) == WATCH
        assert engine.tick == 5 + 6 * i


@pytest.mark.parametrize("physical", [False, True])
@pytest.mark.parametrize("half", [0, 8])
def test_an_exchange_of_two_words_happens_once(half: int, physical: bool) -> None:
    """CMPXCHG16B stores two words; watching the second must not make it compare with the first anew."""
    guest = Guest("""
        mov rdi, 0x40010
        mov ebx, 7
        mov ecx, 9
        inc ebp
        cmpxchg16b [rdi]
        sete r8b
        hlt
    """)
    engine = guest.engine
    engine.set_watchpoints([(0x40010 + half, 8, False, True, physical)])
    assert engine.run(10**6) == WATCH
    assert (engine.tick, engine.registers()["rflags"] & 0x40) == (5, 0x40)
    assert (guest.u64(0x40010), guest.u64(0x40018)) == (7, 9)
    assert engine.run(10**6) == HALT
    assert engine.registers()["r8"] == 1 and engine.registers()["rax"] == 0


def test_neighbouring_bytes_do_not_stop() -> None:
    engine = Guest(LOOP).engine
    engine.set_watchpoints([(0x4000C, 8, True, True, False), (0x3FFF8, 8, True, True, False)])
    assert engine.run(10**6) == HALT
    assert engine.hit is None


def test_code_on_a_watched_page_still_runs() -> None:
    engine = Guest(f"mov eax, [{CODE + 64}]\n mov dword ptr [{CODE + 68}], 7\n hlt").engine
    engine.set_watchpoints([(CODE + 64, 4, True, False, False), (CODE + 68, 4, False, True, False)])
    assert engine.run(100) == WATCH
    assert (engine.tick, engine.hit) == (1, (CODE + 64, CODE + 64, 4, False))
    assert engine.run(100) == WATCH
    assert (engine.tick, engine.hit) == (2, (CODE + 68, CODE + 68, 4, True))
    assert engine.run(100) == HALT


def test_a_device_store_hits() -> None:
    guest = Guest("mov dx, 0x80\n nop\n out dx, al\n nop\n hlt")
    guest.on_out = lambda port, size, value: guest.engine.write(0x40000, b"dma!")
    guest.engine.set_watchpoints([(0x40002, 1, False, True, True)])
    assert guest.engine.run(100) == WATCH
    assert guest.engine.tick == 3
    assert guest.engine.run(100) == HALT


@pytest.mark.parametrize("seed", range(8))
def test_set_and_removed_they_change_no_tick_and_no_byte(seed: int) -> None:
    expected = straight()
    chance = random.Random(seed)
    engine = Guest(LOOP).engine
    reason = STOP
    while reason != HALT:
        engine.set_breakpoints(chance.sample([STORE, ADD, LOAD, XCHG], chance.randrange(4)))
        watches = [(0x40000 + chance.randrange(12), 1 + chance.randrange(4), True, True, False)]
        engine.set_watchpoints(watches if chance.random() < 0.5 else [])
        reason = engine.run(engine.tick + 1 + chance.randrange(300))
    engine.set_watchpoints([])
    assert (engine.tick, engine.save(), engine.ram_digest()) == expected


def test_too_many_and_empty_ones_are_refused() -> None:
    engine = Guest("hlt").engine
    with pytest.raises(EngineError, match="too many"):
        engine.set_breakpoints(range(257))
    with pytest.raises(EngineError, match="0 bytes"):
        engine.set_watchpoints([(0, 0, True, True, False)])
