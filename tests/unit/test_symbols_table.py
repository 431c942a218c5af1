"""Names and addresses: the table, ELF files, System.map."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.symbols import Symbol, SymbolSet, SymbolTable, walk
from tt.symbols.table import parse_system_map

PROGRAM = """
    int counter = 3;
    static int hidden(int n) { return n * counter; }
    __attribute__((noinline)) int twice(int n) { return hidden(n) + hidden(n + 1); }
    __attribute__((alias("twice"))) int __twice(int n);
    int main(void) { return twice(counter); }
    void _start(void) { main(); }
"""
FLAGS = ["-O1", "-g", "-nostdlib", "-ffreestanding", "-fno-omit-frame-pointer", "-Wl,--build-id=none"]


def source(*symbols: tuple[int, int, str], label: str = "x", priority: int = 0, kind: str = "T") -> SymbolSet:
    return SymbolSet.sort(label, priority, [Symbol(addr, size, name, kind) for addr, size, name in symbols])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small program that is not position independent."""
    return build(tmp_path_factory.mktemp("program"), "-static", "-no-pie")


def build(folder: Path, *flags: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (folder / "program.c").write_text(PROGRAM)
    command = ["gcc", *FLAGS, *flags, "program.c", "-o", "program"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "program"


def nm(path: Path) -> dict[str, int]:
    lines = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in lines]
    return {name: int(addr, 16) for addr, _kind, name in rows}


# ---- the table


def test_an_address_belongs_to_the_symbol_before_it() -> None:
    table = SymbolTable([source((0x1000, 0, "one"), (0x1010, 0, "two"))])
    assert table.at(0x1000) == ("one", 0)
    assert table.at(0x100F) == ("one", 15)
    assert table.at(0x1010) == ("two", 0)
    assert table.at(0xFFF) is None
    assert table.describe(0x101C) == "two+0xc"
    assert table.describe(0x1010) == "two"
    assert table.describe(0xFFF) == "0xfff"
    assert table.span(0x1003) == ("one", 0x1000, 0x1010)


def test_nothing_belongs_to_the_last_symbol_for_ever() -> None:
    table = SymbolTable([source((0x1000, 0, "last"))])
    assert table.at(0x1FFF) == ("last", 0xFFF)
    assert table.at(0x2000) is None


def test_sizes_end_a_symbol() -> None:
    table = SymbolTable([source((0x1000, 4, "one"), (0x1010, 4, "two"))])
    assert table.at(0x1003) == ("one", 3)
    assert table.at(0x1004) is None


def test_of_two_names_for_an_address_the_first_is_shown_and_both_are_found() -> None:
    table = SymbolTable([source((0x1000, 0, "read"), (0x1000, 0, "__read"), (0x1008, 0, "end"))])
    assert table.at(0x1004) == ("read", 4)
    assert table.find("read") == table.find("__read") == 0x1000


def test_absolute_symbols_name_no_addresses() -> None:
    table = SymbolTable([source((0x1000, 0, "cpu_info"), kind="A"), source((0x5000, 0, "text"))])
    assert table.find("cpu_info") == 0x1000
    assert table.at(0x1000) is None


def test_one_name_of_many_functions() -> None:
    table = SymbolTable([source((0x3000, 0, "show"), (0x1000, 0, "show")), source((0x2000, 0, "show"))])
    assert table.find_all("show") == [0x1000, 0x2000, 0x3000]
    assert table.find("nothing") is None
    assert table.find_all("nothing") == []


def test_the_source_of_higher_priority_is_asked_first_then_the_later_one() -> None:
    low = source((0x1000, 0, "low"), (0x9000, 0, "both"), label="low", priority=1)
    high = source((0x1000, 0x10, "high"), (0x8000, 0, "both"), label="high", priority=2)
    later = source((0x1000, 0x10, "later"), label="later", priority=2)
    table = SymbolTable([high, low])
    assert (table.at(0x1001), table.at(0x1011), table.find("both")) == (("high", 1), ("low", 0x11), 0x8000)
    table.add(later)
    assert table.at(0x1001) == ("later", 1)
    table.drop("later")
    assert table.at(0x1001) == ("high", 1)
    other = SymbolTable([low])
    other.merge(table)
    assert other.at(0x1001) == ("high", 1)
    assert len(other) == len(table) + len(low.names)
    assert sorted(symbol.name for symbol in table) == ["both", "both", "high", "low"]


def test_names_by_their_beginning() -> None:
    table = SymbolTable(
        [source((1, 0, "sys_read"), (2, 0, "sys_write")), source((3, 0, "sys_read"), (4, 0, "t"))]
    )
    assert table.names("sys_") == ["sys_read", "sys_write"]
    assert table.names("sys_", limit=1) == ["sys_read"]
    assert table.names() == ["sys_read", "sys_write", "t"]
    assert table.names("zzz") == []


def test_an_empty_table_knows_nothing() -> None:
    table = SymbolTable()
    assert (len(table), table.find("x"), table.at(0), table.names(), table.describe(16)) == (
        0,
        None,
        None,
        [],
        "0x10",
    )


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9)), max_size=40), st.integers(-1, 6000))
def test_the_table_agrees_with_a_plain_search(rows: list[tuple[int, int]], addr: int) -> None:
    table = SymbolTable([source(*[(at, size, f"s{n}") for n, (at, size) in enumerate(rows)])])
    below = [row for row in rows if row[0] <= addr]
    found = table.span(addr)
    if not below:
        assert found is None
        return
    begin = max(at for at, _size in below)
    number = next(n for n, row in enumerate(rows) if row[0] == begin)
    end = begin + rows[number][1]
    if not rows[number][1]:
        end = min([at for at, _size in rows if at > begin] + [begin + 4096])
    assert found == ((f"s{number}", begin, end) if addr < end else None)


# ---- ELF


def test_an_elf_file_agrees_with_nm(program: Path) -> None:
    table, addresses = SymbolTable(), nm(program)
    assert table.load_elf(program) > 4
    for name in ("main", "twice", "hidden", "counter", "_start"):
        assert name not in addresses or table.find(name) == addresses[name]
    assert table.at(addresses["twice"] + 2) == ("twice", 2)
    assert table.find("__twice") == addresses["twice"]
    assert table.find("program.c") is None


def test_bytes_and_a_bias(program: Path) -> None:
    table = SymbolTable()
    table.load_elf(program.read_bytes(), bias=0x7000_0000)
    assert table.find("main") == nm(program)["main"] + 0x7000_0000


def test_a_stripped_library_has_its_dynamic_symbols(tmp_path: Path) -> None:
    path = build(tmp_path, "-shared", "-fPIC", "-s")
    table = SymbolTable()
    table.load_elf(path, bias=0x10_0000)
    assert (table.find("twice") or 0) > 0x10_0000
    assert table.find("hidden") is None


@pytest.mark.parametrize("bias", [0, 0x5555_0000_0000])
def test_callers_by_exception_tables(program: Path, bias: int) -> None:
    """At a function's first instruction its caller is on top of the stack; RBP is still the caller's."""
    table, addresses = SymbolTable(), nm(program)
    table.load_elf(program, bias)
    stack, back = 0x7FFF_0000_0000, addresses["main"] + bias + 9
    words = {stack: back, stack + 0x18: 0x1234, stack + 0x20: 0}

    def read(addr: int, size: int) -> bytes:
        if addr not in words or size != 8:
            raise IndexError(addr)
        return words[addr].to_bytes(8, "little")

    registers = {"cs": 0x33, "cr0": 1, "efer": 0x400, "rsp": stack, "rbp": stack + 0x18}
    found = walk({**registers, "rip": addresses["twice"] + bias}, read, table)
    assert [(frame.pc, frame.sp, frame.how) for frame in found.frames[:2]] == [
        (addresses["twice"] + bias, stack, "registers"),
        (back, stack + 8, "dwarf"),
    ]
    assert found.frames[1].name == "main+0x9"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(500), bytes(1000)])
def test_what_is_no_elf_file_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match="not an ELF file, or damaged"):
        SymbolTable().load_elf(data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for load in (SymbolTable().load_elf, SymbolTable().load_system_map):
        with pytest.raises(BadInput, match="nothing.here"):
            load(tmp_path / "nothing.here")
        with pytest.raises(BadInput, match="directory"):
            load(tmp_path)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_elf_files_raise_bad_input_at_worst(program: Path, data: st.DataObject) -> None:
    image = bytearray(program.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        # Headers are at both ends.
        at = data.draw(st.integers(0, 200) | st.integers(len(image) - 1500, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    table = SymbolTable()
    with suppress(BadInput):
        table.load_elf(bytes(image[: data.draw(st.integers(0, len(image)) | st.just(len(image)))]))
    table.describe(0x40_1000)
    table.call_frames.caller(0x40_1000, {"rsp": 0x1000, "rbp": 0}, lambda addr: addr)


# ---- System.map


def test_a_system_map(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text(
        "0000000000001000 A cpu_info\nffffffff81000000 T _text\n\n"
        "ffffffff81000040 t helper.cold\nffffffffc0000000 t probe\t[virtio_blk]\n"
    )
    table = SymbolTable()
    assert table.load_system_map(path) == 4
    assert table.describe(0xFFFFFFFF81000041) == "helper.cold+0x1"
    assert table.find("probe") == 0xFFFFFFFFC0000000
    slid = {symbol.name: symbol.addr for symbol in parse_system_map(path.read_bytes(), "map", 0x1000)}
    assert (slid["_text"], slid["cpu_info"]) == (0xFFFFFFFF81001000, 0x1000)


@pytest.mark.parametrize(
    "text", ["", "\n", "hello\n", "ffff T\n", "xyz T name\n", "1 TT name\n", "-1 T name\n"]
)
def test_what_is_no_system_map_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "System.map"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"System\.map"):
        SymbolTable().load_system_map(path)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_system_map(data: bytes) -> None:
    with suppress(BadInput):
        assert parse_system_map(data, "x")
