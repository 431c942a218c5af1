"""A machine's pages: names for what they hold, changes across a large RAM, bytes across page borders."""

from __future__ import annotations

import struct

import pytest
from engine_rig import MB, Guest

from tt.errors import EngineError
from tt.vmm.engine import Engine

PAGE = 4096


def numbers(*pages: int) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


def test_a_page_is_named_by_what_it_holds() -> None:
    guest = Guest("mov qword ptr [0x40010], 5\nhlt", ram=4 * MB)
    engine = guest.engine
    zero = bytes(16)
    assert engine.page_names(numbers(0x40, 0x41)) == zero * 2
    guest.run()
    changed, _contents = engine.take_changes()
    names = engine.page_names(changed)
    of = {page: names[16 * i : 16 * i + 16] for i, (page,) in enumerate(struct.iter_unpack("<I", changed))}
    assert of[0x40] != zero
    assert engine.page_hashes()[16 * 0x40 :][:16] == of[0x40]

    engine.write(0x40010, (6).to_bytes(8, "little"))
    other = engine.page_names(numbers(0x40))
    assert other not in (of[0x40], zero)
    engine.write(0x40010, (5).to_bytes(8, "little"))
    assert engine.page_names(numbers(0x40)) == of[0x40]
    engine.write(0x40010, bytes(8))
    assert engine.page_names(numbers(0x40)) == zero


def test_names_of_pages_gone_back_to_are_those_of_the_past() -> None:
    engine = Engine(4 * MB)
    engine.write(7 * PAGE, b"then")
    numbers_then, contents = engine.take_changes()
    digest, name = engine.ram_digest(), engine.page_names(numbers(7))
    engine.write(7 * PAGE, b"now")
    engine.fetch_page = lambda number: contents if number == 7 else bytes(PAGE)
    engine.revert(bytes(128), digest)
    assert (numbers_then, engine.stale_pages) == (numbers(7), 1)
    assert engine.page_names(numbers(7)) == name
    assert engine.stale_pages == 0


@pytest.mark.parametrize("bad", [0x400, 0xFFFFFFFF])
def test_names_outside_ram_and_halves_of_numbers_are_refused(bad: int) -> None:
    engine = Engine(4 * MB)
    with pytest.raises(IndexError, match="outside RAM"):
        engine.page_names(numbers(1, bad))
    with pytest.raises(EngineError, match="5 bytes are no page numbers"):
        engine.page_names(b"\0" * 5)
    assert engine.page_names(b"") == b""


def test_changes_are_found_wherever_they_are() -> None:
    """Pages at the ends of what is scanned at once, in a RAM whose size is no multiple of it."""
    pages = 3 * 256 + 5
    engine = Engine(pages * PAGE)
    engine.take_changes()
    wanted = [0, 1, 7, 8, 31, 32, 63, 64, 255, 256, pages - 2, pages - 1]
    for page in wanted:
        engine.write(page * PAGE + page % PAGE, b"x")
    found, contents = engine.take_changes()
    assert found == numbers(*wanted)
    assert contents == b"".join(engine.read(page * PAGE, PAGE) for page in wanted)
    assert engine.take_changes() == (b"", b"")

    fresh = Engine(pages * PAGE)
    for page in reversed(wanted):
        fresh.write(page * PAGE, engine.read(page * PAGE, PAGE))
    assert fresh.ram_digest() == engine.ram_digest()


def test_going_back_makes_exactly_these_pages_stale() -> None:
    pages = 256 + 5
    engine = Engine(pages * PAGE)
    digest = engine.ram_digest()
    asked: list[int] = []

    def fetch(number: int) -> bytes:
        asked.append(number)
        return bytes(PAGE)

    engine.fetch_page = fetch
    engine.write(100 * PAGE, b"since the last checkpoint")
    changed = [0, 9, 64, 127, pages - 1]
    bits = sum(1 << page for page in changed) | 1 << pages  # one bit past the end is nobody's page
    engine.revert(bits.to_bytes((pages + 7) // 8, "little"), digest)
    assert engine.stale_pages == len(changed) + 1
    assert engine.read(0, pages * PAGE) == bytes(pages * PAGE)
    assert asked == sorted([*changed, 100])
    assert engine.ram_digest() == digest


def test_bytes_across_pages() -> None:
    engine = Engine(MB)
    data = bytes(range(256)) * 48
    engine.write(PAGE - 100, data)
    assert engine.read(PAGE - 100, len(data)) == data
    assert engine.read(0, 4 * PAGE)[PAGE - 100 :][: len(data)] == data
    assert engine.restore_ram(bytes(MB)) == 4
    assert engine.read(0, MB) == bytes(MB)


def test_virtual_bytes_across_pages_and_up_to_a_hole() -> None:
    guest = Guest("hlt", ram=4 * MB)
    data = bytes(range(200)) * 41
    guest.engine.write(0x50F00, data)
    assert guest.engine.read_virtual(0x50F00, len(data)) == data
    for size in (PAGE, 1 << 40):
        with pytest.raises(IndexError, match="0x400000 is not mapped to RAM"):
            guest.engine.read_virtual(0x3FFF00, size)
