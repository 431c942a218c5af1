"""Translated blocks that come back with the bytes they were made of: never others, and never a wrong tick."""

from __future__ import annotations

import random

import pytest
from engine_rig import CODE, Guest, assemble, check_count, check_every_stop

from tt.vmm.engine import BREAK, HALT, STOP

F = 0x40000  # a page of functions that others write
PAGE, NOP = 4096, b"\x90"
ADD_1, ADD_5, LONGER = b"\x83\xc3\x01\xc3", b"\x83\xc3\x05\xc3", b"\x83\xc3\x01\x83\xc3\x20\xc3"


def revived(guest: Guest) -> int:
    return int(guest.engine.statistics["blocks_revived"])


def call_after_writing(*versions: bytes, times: int = 6) -> str:
    """Return a program that stores each version at F in turn and calls it, over and over."""
    stores = "".join(
        f"mov rax, {int.from_bytes(version.ljust(8, NOP), 'little')}\n mov [rsi], rax\n call rsi\n"
        for version in versions
    )
    return f"mov rsi, {F}\n mov ecx, {times}\n 1:\n {stores}\n dec ecx\n jnz 1b\n hlt"


@pytest.mark.parametrize(
    ("versions", "total"),
    [((ADD_1, ADD_5), 6), ((ADD_1, LONGER), 34), ((ADD_1, ADD_5, LONGER, ADD_5), 44), ((ADD_1, ADD_1), 2)],
)
def test_code_that_alternates(versions: tuple[bytes, ...], total: int) -> None:
    guest = Guest(call_after_writing(*versions))
    check_every_stop(guest)
    assert guest.engine.registers()["rbx"] == 6 * total
    assert revived(guest) > 0
    check_count(guest)


def test_only_the_page_that_it_was_made_of() -> None:
    """The same bytes at another physical page, and at another address of the same page, are other blocks."""
    guest = Guest(f"""
        mov ecx, 8
    1:  mov rsi, {F}
        mov dword ptr [rsi], 0xc301c383
        call rsi
        mov dword ptr [rsi], 0xc305c383
        mov rdi, 0x40000000                 # maps the same page
        call rdi
        mov rsi, {F + PAGE}
        mov dword ptr [rsi], 0xc301c383
        call rsi
        mov dword ptr [rsi], 0xc310c383
        call rsi
        dec ecx
        jnz 1b
        hlt
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, F | 0x67)
    check_every_stop(guest)
    assert guest.engine.registers()["rbx"] == 8 * (1 + 5 + 1 + 16)
    check_count(guest)


def test_a_block_that_stores_its_own_bytes_anew() -> None:
    guest = Guest("""
        mov ecx, 20
    1:  mov eax, [rip + 1b]
        mov [rip + 1b], eax
        inc ebx
        mov byte ptr [rip + 2f + 1], 7
    2:  mov al, 1
        mov byte ptr [rip + 2b + 1], 1
        loop 1b
        hlt
    """)
    check_every_stop(guest)
    assert guest.engine.registers()["rbx"] == 20
    check_count(guest)


def test_jumps_out_of_a_revived_block_go_where_they_should() -> None:
    """It had been chained to a block that is another one now."""
    guest = Guest(f"""
        mov rsi, {F}
        mov dword ptr [rsi], 0x000075eb         # jmp {F + 0x77:#x}
        mov byte ptr [rsi + 0x78], 0xc3
        mov ecx, 12
    1:  mov byte ptr [rsi + 0x77], 0x90
        call rsi
        call rsi
        mov word ptr [rsi + 0x77], 0xc3ff       # inc ebx; ret
        mov byte ptr [rsi + 0x79], 0xc3
        call rsi
        mov byte ptr [rsi + 0x78], 0xc3
        mov byte ptr [rsi], 0xeb
        call rsi
        dec ecx
        jnz 1b
        hlt
    """)
    guest.engine.write(F + 0x100, b"\xc3")
    check_every_stop(guest, most=1000)
    check_count(guest)


def test_a_breakpoint_in_a_block_that_comes_back() -> None:
    guest = Guest(call_after_writing(ADD_1, LONGER))
    guest.reset()
    guest.halt()
    guest.reset()
    guest.engine.set_breakpoints([F + 3])
    stops = []
    while guest.run() == BREAK:
        stops.append((guest.engine.registers()["rip"], guest.engine.read(F, 4)))
    assert stops == [(F + 3, ADD_1), (F + 3, LONGER[:4])] * 6
    guest.engine.set_breakpoints([])
    guest.reset()
    assert guest.run() == HALT
    # Blocks know of the address from when they were made: these were dropped before, and come back.
    guest.reset()
    guest.engine.set_breakpoints([F + 3])
    assert guest.run() == BREAK


def test_nothing_comes_back_after_the_buffer_began_anew() -> None:
    """A guest that makes new code all the time fills QEMU's buffer many times over."""
    guest = Guest(f"""
        mov rsi, {F}
        mov ecx, 6000
    1:  mov dword ptr [rsi], 0xc301c383
        call rsi
        mov byte ptr [rsi], 0x81                # add ebx, imm32
        mov [rsi + 2], ecx
        mov byte ptr [rsi + 6], 0xc3
        call rsi
        dec ecx
        jnz 1b
        hlt
    """)
    while guest.run() == STOP:  # it comes back now and then, for each new block takes long
        pass
    registers = guest.engine.registers()
    made = guest.engine.statistics["blocks_made"]
    assert registers["rbx"] == (6000 + 6000 * 6001 // 2) & 0xFFFFFFFF
    assert made > 6000 and revived(guest) > 5000
    state = guest.state()
    guest.reset()
    while guest.run() == STOP:
        pass
    assert guest.state() == state


def test_what_a_device_writes() -> None:
    """Bytes that come and go without the CPU storing them."""
    guest = Guest(f"mov rsi, {F}\n 1: out 0x80, al\n call rsi\n dec ecx\n jnz 1b\n hlt", registers={"rcx": 9})
    versions = [ADD_1, ADD_5, LONGER]
    turn = iter(range(10**6))
    guest.on_out = lambda port, size, value: guest.engine.write(F, versions[next(turn) % 3])
    registers = guest.halt()
    assert registers["rbx"] == 3 * (1 + 5 + 33)
    assert revived(guest) >= 6


@pytest.mark.parametrize("seed", range(4))
def test_going_back_and_forth_through_versions_of_a_page(seed: int) -> None:
    """What `Timeline` does: pages are stale, and fetched as they were at some other time."""
    rng = random.Random(seed)
    guest = Guest("1: call rsi\n dec ecx\n jnz 1b\n hlt", registers={"rsi": F, "rcx": 3})
    e = guest.engine
    filler = bytes(rng.randrange(256) for _ in range(PAGE))
    pages = []
    for _ in range(5):
        body = bytearray(filler)
        body[: len(LONGER)] = rng.choice([ADD_1, ADD_5, LONGER]).ljust(len(LONGER), b"\x90")
        at = rng.choice([8, 60, 64, 100, PAGE - 8])
        body[at] = rng.randrange(256)  # elsewhere on the page, or close by
        pages.append(bytes(body))
    e.write(F, pages[0])
    e.ram_digest()
    start, current = e.save(), pages[0]
    e.take_changes()
    e.fetch_page = lambda number: current if number == F // PAGE else e_pages[number]
    e_pages = {n: e.read(n * PAGE, PAGE) for n in range(e.size // PAGE)}
    digest = e.ram_digest()
    changed = bytearray(e.size // PAGE // 8)
    changed[F // PAGE // 8] |= 1 << F // PAGE % 8
    for _ in range(60):
        current = rng.choice(pages)
        e.revert(bytes(changed), digest)
        e.load(start)
        e.tick = 0
        assert guest.run() == HALT
        per_call = {ADD_1: 1, ADD_5: 5}.get(current[:4], 33)
        assert e.registers()["rbx"] == 3 * per_call
        assert e.read(F, PAGE) == current
    assert revived(guest) > 0


def test_the_code_is_where_the_rig_says() -> None:
    """What these tests rest on: a version is entered at its first byte."""
    assert assemble("add ebx, 1\n ret") == ADD_1 and assemble("add ebx, 5\n ret") == ADD_5
    assert assemble("add ebx, 1\n add ebx, 32\n ret") == LONGER and CODE != F
