"""The kernel's own symbols, found in memory: every layout, and memory that is out to deceive."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symbols_rig import (
    LAYOUTS,
    LONG,
    PROTECTED,
    TEXT64,
    Layout,
    Memory,
    around,
    kallsyms,
    memory_with,
    rows_of,
)

from tt.errors import BadInput
from tt.symbols import guest, of_machine
from tt.symbols.kallsyms import Patience, find

LAYOUT_61 = LAYOUTS[2]


@pytest.fixture(autouse=True)
def forget() -> None:
    """Let no test find what another one left."""
    guest._known.clear()


def by_name(layout: Layout) -> pytest.param:
    return pytest.param(layout, id=layout.name)


@pytest.mark.parametrize("layout", [by_name(layout) for layout in LAYOUTS])
@pytest.mark.parametrize("count", [257, 512, 700, 2560])
def test_every_layout_is_read(layout: Layout, count: int) -> None:
    rows = rows_of(layout, count)
    found = find(memory_with(layout, rows, layout.text + 0x10_0000), layout.text + 0x10_0000)
    assert found is not None
    source = found.source
    assert list(zip(source.addresses, source.kinds, source.names, strict=True)) == rows


@pytest.mark.parametrize("layout", [by_name(layout) for layout in LAYOUTS])
def test_it_says_which_bytes_it_is_made_of(layout: Layout) -> None:
    addr = layout.text + 0x10_0000
    blob = kallsyms(layout, rows_of(layout), addr=addr + 3 * 4096)
    data = around(blob)
    found = find(data, addr)
    assert found is not None
    again = find(data[found.begin : found.end], addr + found.begin)
    assert again is not None
    assert again.source.names == found.source.names
    assert found.begin >= data.index(blob)
    assert found.end <= data.index(blob) + len(blob)


def test_long_names_take_two_bytes_of_length() -> None:
    rows = [(addr, letter, f"Ж{name}{'Q' * 300}" if n % 50 == 0 else name)
            for n, (addr, letter, name) in enumerate(rows_of(LAYOUT_61))]  # fmt: skip
    found = find(kallsyms(LAYOUT_61, rows))
    assert found is not None
    assert found.source.names == [name for _addr, _letter, name in rows]


@pytest.mark.parametrize("layout", [by_name(layout) for layout in LAYOUTS])
def test_a_kernel_is_found_by_its_interrupt_table(layout: Layout) -> None:
    rows = rows_of(layout)
    memory = Memory()
    memory.put(layout.text, bytes(20 * 4096))
    memory.put(layout.text + 0x30_1000, memory_with(layout, rows, layout.text + 0x30_1000, 16 * 4096))
    handler, idt = layout.text + 0x1234, layout.text + 0x9000
    low, high = struct.pack("<H", handler & 0xFFFF), struct.pack("<Q", handler)
    size = 2 * layout.width
    gate = (low + b"\x10\0\0\x8e" + high[2:8]).ljust(size, b"\0")[:size]
    memory.put(idt, gate * 33)
    registers = {**(LONG if layout.width == 8 else PROTECTED), "idtr_base": idt, "rip": 0x401000, "cs": 0x33}
    table = of_machine(registers, memory.read)
    assert table.find("tcp_v4_rcv") == layout.text + 48
    assert table.describe(layout.text + 49) == "tcp_v4_rcv+0x1"
    assert not any(part in table.describe(0x1001) for part in ("percpu", "cpu_debug"))


def test_a_slid_kernel_has_slid_symbols() -> None:
    slide = 0x1A20_0000
    memory = Memory()
    memory.put(TEXT64 + slide, around(kallsyms(LAYOUT_61, rows_of(LAYOUT_61), slide)))
    table = of_machine({**LONG, "rip": 0x401000, "cs": 0x33}, memory.read)
    assert table.find("_text") == TEXT64 + slide
    assert table.find("cpu_debug_store") == 0x1000


def test_a_kernel_that_has_no_page_tables_yet_is_found_where_it_runs() -> None:
    memory = Memory()
    memory.put(0x100_0000, around(kallsyms(LAYOUT_61, rows_of(LAYOUT_61))))
    assert of_machine({**LONG, "rip": 0x100_0040}, memory.read).find("_text") == TEXT64


def test_the_second_time_costs_two_reads() -> None:
    memory = Memory()
    memory.put(TEXT64, around(kallsyms(LAYOUT_61, rows_of(LAYOUT_61))))
    registers = {**LONG, "rip": TEXT64 + 0x10}
    first = of_machine(registers, memory.read)
    memory.reads = 0
    second = of_machine(registers, memory.read)
    assert memory.reads <= 2
    assert second.sources[0] is first.sources[0]
    assert second is not first


def test_another_kernel_at_the_same_place_is_another() -> None:
    memory = Memory()
    registers = {**LONG, "rip": TEXT64 + 0x10}
    rows = rows_of(LAYOUT_61)
    memory.put(TEXT64, around(kallsyms(LAYOUT_61, rows)))
    of_machine(registers, memory.read)
    memory.put(TEXT64, around(kallsyms(LAYOUT_61, [(a, k, n.replace("tcp", "udp")) for a, k, n in rows])))
    assert of_machine(registers, memory.read).find("udp_v4_rcv") == TEXT64 + 48


def test_it_says_plainly_that_there_is_nothing_yet() -> None:
    memory = Memory()
    memory.put(0, bytes(1 << 20))
    with pytest.raises(BadInput, match="no Linux kernel symbols .* later tick"):
        of_machine({"rip": 0xFFF0, "cr0": 0x10, "efer": 0}, memory.read)
    with pytest.raises(BadInput):
        of_machine({}, memory.read)


# ---- deceit


@cache
def blobs() -> list[bytes]:
    return [memory_with(layout, rows_of(layout, 300), layout.text, 0) for layout in LAYOUTS]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_kallsyms_raise_nothing(data: st.DataObject) -> None:
    blob = bytearray(data.draw(st.sampled_from(blobs())))
    for _ in range(data.draw(st.integers(1, 30))):
        at = data.draw(st.integers(0, len(blob) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        blob[at : at + len(piece)] = piece
    cut = data.draw(st.integers(0, len(blob)))
    found = find(bytes(blob[cut:] if data.draw(st.booleans()) else blob), TEXT64)
    if found is not None:
        columns = found.source.addresses, found.source.kinds, found.source.names
        assert len({len(column) for column in columns}) == 1
        found.source.span(TEXT64 + 100)


HOSTILE = given(
    st.dictionaries(
        st.sampled_from(["rip", "efer", "cr0", "cs", "idtr_base", "cr3"]),
        st.sampled_from([0, 1, 0x10, 0x33, 0xD01, TEXT64, 0xC100_0000, 0xFFFF_FFFF_FFFF_F000, 0x20_0000])
        | st.integers(0, (1 << 64) - 1),
    ),
    st.integers(0, 1 << 32),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def hostile_memory(registers: dict[str, int], seed: int, mapped: float) -> None:
    calls, chance = 0, random.Random(seed)
    piece = blobs()[2]

    def read(addr: int, size: int) -> bytes:
        nonlocal calls
        calls += 1
        if not 0 <= addr < 1 << 64 or chance.random() > mapped:
            raise IndexError(addr)
        if size > 1 << 16:
            return bytes(size - len(piece)) + piece[: size // 2] + piece[size // 2 :]
        return piece[addr % 512 : addr % 512 + size] or bytes(size)

    guest._known.clear()
    with suppress(BadInput):
        of_machine(registers, read)
    assert calls < 1_000_000


@pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_hostile_memory_gives_bad_input_at_worst(examples: int) -> None:
    settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])(
        HOSTILE(hostile_memory)
    )()


def token_table() -> bytes:
    table = b"".join(bytes([n or 1]) + b"\0" for n in range(256))
    return table + struct.pack("<256H", *range(0, 512, 2))


@pytest.mark.parametrize(
    "filler",
    [
        bytes(1 << 20),
        struct.pack("<I", 1) * (1 << 18),
        struct.pack("<II", 0, 600) * (1 << 17),
        b"".join(struct.pack("<I", 600 * n) for n in range(1 << 18)),
        b"\1" * (1 << 20),
        b"\0\0\0\0\1\1\1\1" * (1 << 17),
    ],
    ids=["zeros", "ones", "markers", "rising", "names", "both"],
)
def test_a_search_has_an_end(filler: bytes) -> None:
    """Memory made of what the search looks for uses its patience up, and no more."""
    patience = Patience(200_000)
    assert find((filler + token_table()) * 3, TEXT64, patience) is None
