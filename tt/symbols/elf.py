"""The symbols of an ELF file."""

from __future__ import annotations

import io
import struct
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tt.errors import BadInput
from tt.symbols.symbol import Symbol

_TOP = 1 << 64
# Symbol types and bindings: System V ABI, "Symbol Table".
_NOTYPE, _OBJECT, _FUNC, _IFUNC = 0, 1, 2, 10
_LOCAL, _WEAK = 0, 2
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2
_RANK = {_FUNC: 0, _IFUNC: 0, _OBJECT: 1, _NOTYPE: 2}


def elf_symbols(data: bytes, label: str, bias: int = 0) -> list[Symbol]:
    """Return the functions, objects and labels of an ELF file, the best name of each address first.

    `bias` is added to each address.  A stripped file yields those of its dynamic
    linking, perhaps none.  Raises `BadInput` for what is not an ELF file.
    """
    try:
        tables = _tables(ELFFile(io.BytesIO(data)), data)
        rows = [row for table in tables for row in _rows(*table)]
    except BadInput:
        raise
    except Exception as e:
        # pyelftools and its `construct` let all sorts of exceptions out for damaged files.
        raise BadInput(f"{label} is not an ELF file, or damaged: {str(e) or type(e).__name__}") from None
    found: dict[tuple[str, int], tuple[int, Symbol]] = {}
    for value, size, name, kind, binding in rows:
        addr = (value + bias) % _TOP
        letter = {_FUNC: "t", _IFUNC: "i", _OBJECT: "d"}.get(kind, "n")
        if binding != _LOCAL:
            letter = "W" if binding == _WEAK else letter.upper()
        # Where several names share an address: functions first, global ones, short ones without underscores.
        rank = _RANK[kind] * 8 + (binding == _LOCAL) * 4 + min(len(name) - len(name.lstrip("_")), 3)
        found.setdefault((name, addr), (rank, Symbol(addr, min(size, _TOP - 1), name, letter)))
    return [symbol for _rank, symbol in sorted(found.values(), key=lambda pair: (pair[1].addr, pair[0]))]


def _tables(file: ELFFile, data: bytes) -> list[tuple[bytes, bytes, str]]:
    """Return (symbols, strings, struct format) of .symtab, or of .dynsym where there is none."""
    form = ("<" if file.little_endian else ">") + ("IBBHQQ" if file.elfclass == 64 else "IIIBBH")
    sections = [s for s in file.iter_sections() if isinstance(s, SymbolTableSection)]
    full = [s for s in sections if s["sh_type"] == "SHT_SYMTAB"]
    found = []
    for section in full or sections:
        strings: Any = section.stringtable
        # Not by `data()`: it unpacks, and believes any size of what is not in the file.
        parts = [data[s["sh_offset"] : s["sh_offset"] + s["sh_size"]] for s in (section, strings)]
        found.append((parts[0], parts[1], form))
    return found


def _rows(table: bytes, strings: bytes, form: str) -> list[tuple[int, int, str, int, int]]:
    """Return (value, size, name, type, binding) of what has an address and a name."""
    rows = []
    whole = len(table) // struct.calcsize(form) * struct.calcsize(form)
    for entry in struct.iter_unpack(form, table[:whole]):
        if form[1:] == "IBBHQQ":
            at, info, _other, section, value, size = entry
        else:
            at, value, size, info, _other, section = entry
        kind, binding = info & 15, info >> 4
        if section in (_UNDEFINED, _ABSOLUTE, _COMMON) or kind not in _RANK:
            continue
        end = strings.find(b"\0", at)
        name = strings[at : len(strings) if end < 0 else end].decode("utf-8", "replace")
        if name and not name.startswith("$"):
            rows.append((value, size, name, kind, binding))
    return rows
