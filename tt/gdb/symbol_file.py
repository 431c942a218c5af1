"""A small ELF file that holds only symbols, for gdb's `symbol-file`.

A kernel image on a guest's disk has no symbols that gdb could read; the running
kernel has, in its memory.  The file has one empty `.text` section that spans the
code and one `.data` section, so that gdb knows functions from data.

    ELF header | program headers | .symtab | .strtab | .shstrtab | section headers
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tt.symbols import Symbol

_EM_386, _EM_X86_64 = 3, 62
_EXECUTABLE = 2
_PROGBITS, _SYMTAB, _STRTAB, _NOBITS = 1, 2, 3, 8
_WRITE, _ALLOC, _CODE = 1, 2, 4
_OBJECT, _FUNCTION, _NO_TYPE = 1, 2, 0
_GLOBAL, _LOCAL = 1, 0
_ABSOLUTE = 0xFFF1
_CODE_KINDS = "tTwWiI"


def symbol_file(symbols: Iterable[Symbol], *, is_64bit: bool = True) -> bytes:
    """Return an ELF file of `symbols`, whose `kind` is the letter that `nm` and `/proc/kallsyms` give."""
    listed = sorted(symbols, key=lambda s: (s.kind.isupper(), s.addr))  # local ones first, as ELF wants it
    spans = [_span(listed, True), _span(listed, False)]
    names = bytearray(b"\0")
    word = struct.Struct("<IBBHQQ" if is_64bit else "<IIIBBH")
    table = bytearray(word.size)
    first_global = 1
    for symbol in listed:
        is_code = symbol.kind in _CODE_KINDS
        section = 1 if is_code else 2
        if symbol.kind in "aA":
            section = _ABSOLUTE
        binding = _GLOBAL if symbol.kind.isupper() else _LOCAL
        first_global += binding == _LOCAL
        info = binding << 4 | (_FUNCTION if is_code else _NO_TYPE if section == _ABSOLUTE else _OBJECT)
        at = len(names)
        names += symbol.name.encode(errors="replace").replace(b"\0", b"") + b"\0"
        if is_64bit:
            table += word.pack(at, info, 0, section, symbol.addr, symbol.size)
        else:
            table += word.pack(at, symbol.addr & 0xFFFFFFFF, symbol.size & 0xFFFFFFFF, info, 0, section)
    return _assemble(is_64bit, spans, bytes(table), bytes(names), first_global)


def _span(symbols: list[Symbol], code: bool) -> tuple[int, int]:
    """Return where the code, or the data, begins, and its size."""
    ends = [
        (symbol.addr, symbol.addr + max(symbol.size, 1))
        for symbol in symbols
        if symbol.kind not in "aA" and (symbol.kind in _CODE_KINDS) == code
    ]
    if not ends:
        return 0, 0
    first = min(addr for addr, _end in ends)
    return first, max(end for _addr, end in ends) - first


def _assemble(
    is_64bit: bool, spans: list[tuple[int, int]], table: bytes, names: bytes, first_global: int
) -> bytes:
    section_names = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"
    header_size, section_size = (64, 64) if is_64bit else (52, 40)
    entry_size = 24 if is_64bit else 16
    at = header_size
    body = b""
    offsets = []
    for part in (table, names, section_names):
        pad = -at % 8
        offsets.append(at + pad)
        body += bytes(pad) + part
        at += pad + len(part)
    pad = -at % 8
    sections_at = at + pad
    word = "<IIQQQQIIQQ" if is_64bit else "<10I"
    named = {
        name: section_names.index(b"\0." + name) + 1
        for name in (b"text", b"data", b"symtab", b"strtab", b"shstrtab")
    }
    sections = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (named[b"text"], _NOBITS, _ALLOC | _CODE, spans[0][0], header_size, spans[0][1], 0, 0, 16, 0),
        (named[b"data"], _NOBITS, _ALLOC | _WRITE, spans[1][0], header_size, spans[1][1], 0, 0, 16, 0),
        (named[b"symtab"], _SYMTAB, 0, 0, offsets[0], len(table), 4, first_global, 8, entry_size),
        (named[b"strtab"], _STRTAB, 0, 0, offsets[1], len(names), 0, 0, 1, 0),
        (named[b"shstrtab"], _STRTAB, 0, 0, offsets[2], len(section_names), 0, 0, 1, 0),
    ]
    mask = (1 << 64 if is_64bit else 1 << 32) - 1
    packed = b"".join(struct.pack(word, *(value & mask for value in row)) for row in sections)
    machine = _EM_X86_64 if is_64bit else _EM_386
    ident = b"\x7fELF" + bytes((2 if is_64bit else 1, 1, 1)) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH" if is_64bit else "<HHIIIIIHHHHHH",
        *(_EXECUTABLE, machine, 1, 0, 0, sections_at, 0),
        *(header_size, 0, 0, section_size, len(sections), len(sections) - 1),
    )
    return header + body + bytes(pad) + packed
