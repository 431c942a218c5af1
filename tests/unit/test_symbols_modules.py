"""Modules of a Linux guest by its own list and BTF, in memory made by hand; and the symbols of a trace."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_rig import LAYOUTS, LONG, TEXT64, Memory, around, kallsyms, orc_entry, orc_tables, rows_of

from tt.symbols import Symbol, SymbolSet, SymbolTable, for_timeline, guest, walk
from tt.symbols.btf import struct_offsets
from tt.symbols.modules import update
from tt.symbols.orc import SP

MODULES = 0xFFFF_FFFF_C000_0000
HEAD = TEXT64 + 0x50_0000
BTF = TEXT64 + 0x60_0000
FIELDS = {
    "module": {"state": 0, "list": 8, "name": 24, "kallsyms": 0x180, "arch": 0x200},
    "mod_kallsyms": {"symtab": 0, "num_symtab": 8, "strtab": 16, "typetab": 24},
    "mod_arch_specific": {"num_orcs": 0, "orc_unwind_ip": 8, "orc_unwind": 16},
}


def btf(structs: Mapping[str, Mapping[str, int]], flag: int = 0) -> bytes:
    """Encode structs, with types of every other kind between them."""
    strings = bytearray(b"\0")

    def name(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text) - 1

    sizes = {1: 4, 3: 12, 5: 24, 6: 16, 13: 16, 14: 4, 15: 24, 17: 4, 19: 24}
    types = bytearray()
    for kind in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19):
        count = 2 if sizes.get(kind, 0) in (16, 24) else 0
        types += struct.pack("<III", name(f"kind{kind}"), kind << 24 | count, 8) + bytes(sizes.get(kind, 0))
    for title, fields in structs.items():
        types += struct.pack("<III", name(title), flag << 31 | 4 << 24 | len(fields), 0)
        for field, offset in fields.items():
            types += struct.pack("<III", name(field), 1, offset * 8 | (5 << 24 if flag else 0))
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return bytes(header + types + strings)


def put_module(memory: Memory, addr: int, name: str, symbols: Sequence[tuple[str, int]], succ: int) -> None:
    """Lay a `struct module` with its tables at `addr`; `succ` is the list's next node."""
    strings = b"\0" + b"".join(text.encode() + b"\0" for text, _value in symbols)
    rows, at = [struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)], 1
    for text, value in symbols:
        rows.append(struct.pack("<IBBHQQ", at, 2, 0, 1, value, 0x40))
        at += len(text) + 1
    memory.put(addr, bytes(0x400))
    memory.put(addr + 8, struct.pack("<QQ", succ, 0) + name.encode())
    memory.put(addr + 0x180, struct.pack("<Q", addr + 0x300))
    memory.put(addr + 0x300, struct.pack("<QQQQ", addr + 0x800, len(rows), addr + 0x600, addr + 0x700))
    memory.put(addr + 0x600, strings)
    memory.put(addr + 0x700, b"atT"[: len(rows)].ljust(len(rows), b"t"))
    memory.put(addr + 0x800, b"".join(rows))
    ips, entries = orc_tables(
        addr + 0x900, [(value, orc_entry(0x18, 0, SP, 0, 0)) for _text, value in symbols if value >= TEXT64]
    )
    memory.put(addr + 0x900, ips)
    memory.put(addr + 0xA00, entries)
    memory.put(addr + 0x200, struct.pack("<QQQ", len(ips) // 4, addr + 0x900, addr + 0xA00))


def world() -> tuple[Memory, SymbolSet]:
    """Return a kernel with two modules loaded, each with code in the page before it."""
    memory = Memory()
    blob = btf(FIELDS)
    memory.put(BTF, blob)
    one, two = MODULES + 0x1000, MODULES + 0x5000
    put_module(memory, one, "virtio", [("probe", one - 0x1000), ("remove", one - 0xF00)], two + 8)
    put_module(memory, two, "virtio_blk", [("queue", two - 0x1000)], HEAD)
    memory.put(HEAD, struct.pack("<QQ", one + 8, two + 8))
    rows = [("modules", HEAD), ("__start_BTF", BTF), ("__stop_BTF", BTF + len(blob)), ("_text", TEXT64)]
    return memory, SymbolSet.sort("kallsyms", 10, [Symbol(addr, 0, name, "D") for name, addr in rows])


@pytest.mark.parametrize("flag", [0, 1])
def test_fields_are_where_btf_says(flag: int) -> None:
    assert struct_offsets(btf(FIELDS, flag), FIELDS) == FIELDS
    assert struct_offsets(btf(FIELDS, flag), ["module", "nothing"]) == {"module": FIELDS["module"]}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_btf_raises_nothing(data: st.DataObject) -> None:
    blob = bytearray(btf(FIELDS))
    for _ in range(data.draw(st.integers(0, 20))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    struct_offsets(bytes(blob[: data.draw(st.integers(0, len(blob)))]), FIELDS)


def test_modules_are_found_once() -> None:
    memory, kernel = world()
    table = SymbolTable([kernel])
    assert update(table, kernel, memory.read) == 2
    assert table.describe(MODULES + 4) == "probe+0x4"
    assert table.describe(MODULES + 0x104) == "remove+0x4"
    assert table.describe(MODULES + 0x4000) == "queue"
    assert [source.kinds for source in table.sources if "virtio at" in source.label] == ["tT"]
    assert update(table, kernel, memory.read) == 0


def test_a_module_in_anothers_place_replaces_it() -> None:
    memory, kernel = world()
    table = SymbolTable([kernel])
    update(table, kernel, memory.read)
    two = MODULES + 0x5000
    put_module(memory, two, "ext4", [("ext4_read", two - 0x1000)], HEAD)
    assert update(table, kernel, memory.read) == 1
    assert table.describe(MODULES + 0x4000) == "ext4_read"
    assert table.find("queue") is None
    assert table.find("probe") == MODULES


def test_a_module_that_loads_does_not_push_others_out() -> None:
    """Its init code and its tables lie elsewhere for a while, and what was its own goes to another later."""
    memory, kernel = world()
    one, two = MODULES + 0x1000, MODULES + 0x5000
    loading = [("queue", two - 0x1000), ("init", MODULES + 0x9000), ("____versions", 0xFFFF_C900_0000_0000)]
    put_module(memory, two, "virtio_blk", loading, HEAD)
    memory.put(two, struct.pack("<Q", 1))
    table = SymbolTable([kernel])
    update(table, kernel, memory.read)
    assert table.describe(MODULES + 0x9004) == "init+0x4"
    assert table.describe(MODULES + 4) == "probe+0x4"
    assert table.find("____versions") is None
    three = MODULES + 0xA000
    put_module(memory, two, "virtio_blk", loading[:1], three + 8)
    put_module(memory, three, "virtio_rng", [("entropy", MODULES + 0x9000)], HEAD)
    assert update(table, kernel, memory.read) == 2
    assert [table.describe(at) for at in (MODULES, two - 0x1000, three - 0x1000)] == [
        "probe",
        "queue",
        "entropy",
    ]
    assert table.find("init") is None
    assert one + 8 == struct.unpack("<Q", memory.read(HEAD, 8))[0]


def test_the_frames_of_a_module_go_by_its_own_orc() -> None:
    memory, kernel = world()
    table = SymbolTable([kernel])
    update(table, kernel, memory.read)
    stack = 0xFFFF_C900_0000_0000
    memory.put(stack, struct.pack("<4Q", 0, 0, MODULES + 0x4010, 0))
    found = walk({**LONG, "rip": MODULES + 8, "rsp": stack}, memory.read, table)
    assert [(frame.name, frame.how) for frame in found.frames[:2]] == [
        ("probe+0x8", "registers"),
        ("queue+0x10", "orc"),
    ]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_list_raises_nothing(data: st.DataObject) -> None:
    memory, kernel = world()
    values = st.sampled_from([0, 1, HEAD, MODULES, MODULES + 0x1008, (1 << 64) - 1]) | st.integers(
        0, (1 << 64) - 1
    )
    for _ in range(data.draw(st.integers(1, 12))):
        page = data.draw(st.sampled_from([HEAD, MODULES + 0x1000, MODULES + 0x5000]))
        memory.put(page + 8 * data.draw(st.integers(0, 300)), struct.pack("<Q", data.draw(values)))
    table = SymbolTable([kernel])
    assert update(table, kernel, memory.read) <= 2
    walk({**LONG, "rip": MODULES + 8, "rsp": HEAD}, memory.read, table)


# ---- a trace


class FakeTrace:
    def __init__(self, kind: str, **files: bytes) -> None:
        self.meta = {"config": {"boot_kind": kind}}
        self._files = files
        self.files = {name: len(data) for name, data in files.items()}

    def file(self, name: str) -> bytes:
        return self._files[name]


class Place:
    def __init__(self, trace: FakeTrace, memory: Memory, rip: int) -> None:
        self.trace, self.memory, self.rip, self.tick = trace, memory, rip, 0

    def registers(self) -> dict[str, int]:
        return {**LONG, "rip": self.rip}

    def read(self, addr: int, size: int) -> bytes:
        return self.memory.read(addr, size)


def vmlinux(contents: bytes) -> bytes:
    """Return an ELF file without sections whose one segment holds `contents`."""
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, TEXT64, 0x100_0000, len(contents), len(contents), 4096)
    return (head + segment).ljust(0x1000, b"\0") + contents


def test_what_was_found_in_memory_stays_and_the_image_stands_in_until_then() -> None:
    guest._known.clear()
    layout = LAYOUTS[2]
    rows = rows_of(layout)
    slid = 0x200_0000
    trace = FakeTrace("linux-elf", kernel=vmlinux(around(kallsyms(layout, rows))))
    memory = Memory()
    place = Place(trace, memory, 0x7C00)
    table = for_timeline(place)  # type: ignore[arg-type]
    assert table.find("_text") == TEXT64
    assert len(table) == len(rows)
    memory.put(TEXT64 + slid, around(kallsyms(layout, rows, slid)))
    place.tick, place.rip = 5, TEXT64 + slid
    assert for_timeline(place) is table  # type: ignore[arg-type]
    assert table.find("_text") == TEXT64 + slid
    assert len(table) == len(rows)
    place.tick, place.memory = 3, Memory()
    for_timeline(place)  # type: ignore[arg-type]
    assert table.find("_text") == TEXT64 + slid


@pytest.mark.parametrize("kernel", [b"", b"\x7fELF", vmlinux(b"nothing" * 1000), b"\0" * 5000])
@pytest.mark.parametrize("kind", ["linux-elf", "multiboot", "linux-bzimage"])
def test_a_guest_without_symbols_has_none(kernel: bytes, kind: str) -> None:
    guest._known.clear()
    place = Place(FakeTrace(kind, kernel=kernel), Memory(), 0x7C00)
    assert len(for_timeline(place)) == 0  # type: ignore[arg-type]
    assert len(for_timeline(Place(FakeTrace(kind), Memory(), 0))) == 0  # type: ignore[arg-type]
