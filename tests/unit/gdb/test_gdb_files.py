"""What gdb may read of the server's machine: the guest's program, nothing else; symbols made for it."""

from __future__ import annotations

import io
import struct

from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tt.gdb.files import Files
from tt.gdb.packets import unescape
from tt.gdb.symbol_file import symbol_file
from tt.symbols import Symbol, SymbolTable

NAME = b"/tt/guest.elf"


def files() -> Files:
    return Files({NAME.decode(): bytes(range(256)) * 4}, NAME.decode())


def test_reading_a_file() -> None:
    served = files()
    assert served.answer(b"setfs:0") == b"F0"
    assert served.answer(b"open:%s,0,0" % NAME.hex().encode()) == b"F3"
    answer = served.answer(b"pread:3,10,20")
    assert answer.startswith(b"F10;") and unescape(answer[4:]) == bytes(range(0x20, 0x30))
    answer = served.answer(b"fstat:3")
    assert answer.startswith(b"F40;")
    stat = unescape(answer[4:])
    assert len(stat) == 64 and struct.unpack_from(">Q", stat, 28)[0] == 1024
    assert served.answer(b"pread:3,ffff,400") == b"F0;"
    assert served.answer(b"close:3") == b"F0"
    assert served.answer(b"pread:3,1,0") == b"F-1,9"


def test_nothing_else_can_be_read_or_written() -> None:
    served = files()
    for name in (b"/etc/passwd", b"/tt/../etc/passwd", b"", b"\xff"):
        assert served.answer(b"open:%s,0,0" % name.hex().encode()) == b"F-1,2"
    assert served.answer(b"open:%s,1,1ff" % NAME.hex().encode()) == b"F-1,1e"
    assert served.answer(b"unlink:%s" % NAME.hex().encode()) == b"F-1,2"
    assert served.answer(b"pwrite:3,0,xx") == b""
    for _ in range(32):
        assert served.answer(b"open:%s,0,0" % NAME.hex().encode()).startswith(b"F")
    assert served.answer(b"open:%s,0,0" % NAME.hex().encode()) == b"F-1,18"
    served.forget_open()
    assert served.answer(b"open:%s,0,0" % NAME.hex().encode()) == b"F3"


SYMBOLS = st.builds(
    Symbol,
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 20),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12),
    st.sampled_from("tTdDbBrRaAwW"),
)


@given(st.lists(SYMBOLS, max_size=20, unique_by=lambda symbol: symbol.name))
def test_symbol_files_can_be_read(symbols: list[Symbol]) -> None:
    data = symbol_file(symbols)
    table = ELFFile(io.BytesIO(data)).get_section_by_name(".symtab")
    assert table is not None
    rows = {s.name: (s["st_value"], s["st_size"]) for s in table.iter_symbols() if s.name}
    assert rows == {s.name: (s.addr, s.size) for s in symbols}
    first_global = table["sh_info"]
    bindings = [s["st_info"]["bind"] for s in table.iter_symbols()]
    assert set(bindings[:first_global]) == {"STB_LOCAL"} and "STB_LOCAL" not in bindings[first_global:]


def test_symbol_file_of_32_bits() -> None:
    data = symbol_file([Symbol(0xC1000000, 16, "start_kernel", "T")], is_64bit=False)
    table = SymbolTable()
    assert table.load_elf(data) == 1
    assert table.find("start_kernel") == 0xC1000000
    assert ELFFile(io.BytesIO(data)).elfclass == 32
