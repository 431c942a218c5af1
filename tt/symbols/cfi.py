"""DWARF call frame information of loaded ELF files, in .debug_frame and .eh_frame (DWARF 5, section 6.4)."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile

# System V ABI of each, "DWARF Register Number Mapping"; the last is the return address.
_REGISTERS64 = (
    *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
_REGISTERS32 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip")
_MOST_BYTES = 1 << 20  # pyelftools takes seconds for that
_SECTIONS = {".debug_frame": False, ".eh_frame": True}
_TOP = 1 << 64


@dataclass(frozen=True)
class Caller:
    """A caller's registers, as far as known; `outermost` if the code says that it has none."""

    registers: dict[str, int]
    outermost: bool = False


class CallFrames:
    """Where callers' registers are, for the code of some ELF files: (contents, bias added to addresses)."""

    def __init__(self, images: Sequence[tuple[bytes, int]]) -> None:
        self._images = [_Image(data, bias) for data, bias in images]

    def caller(self, pc: int, registers: dict[str, int], word: Callable[[int], int]) -> Caller | None:
        """Return the registers of the caller of the code at `pc`, None where nothing is known of it.

        `registers` holds those that are known, rsp among them; `word` reads an address from
        memory, and the `IndexError` it raises comes out.
        """
        for image in self._images:
            row = image.row(pc)
            if row is not None:
                return _apply(row, image.registers, registers, word)
        return None


class _Image:
    def __init__(self, data: bytes, bias: int) -> None:
        self._data = data
        self._bias = bias
        self.registers = _REGISTERS32 if data[4:5] == b"\1" else _REGISTERS64

    @cached_property
    def _entries(self) -> tuple[list[int], list[FDE]]:
        """The entries, and where the code of each begins, in order; none where they are damaged."""
        try:
            file = ELFFile(io.BytesIO(self._data))
            entries = [
                entry
                for name, of_exceptions in _SECTIONS.items()
                for entry in _entries(file, self._data, name, of_exceptions)
                if type(entry) is FDE
            ]
            entries.sort(key=lambda entry: int(entry["initial_location"]))
            return [int(entry["initial_location"]) for entry in entries], entries
        except Exception:  # pyelftools lets all sorts of exceptions out for damaged files
            return [], []

    def row(self, pc: int) -> dict[Any, Any] | None:
        """Return the row of the table that holds for `pc`."""
        begins, entries = self._entries
        at = (pc - self._bias) % _TOP
        number = bisect_right(begins, at) - 1
        if number < 0 or at >= begins[number] + int(entries[number]["address_range"]):
            return None
        try:
            table = entries[number].get_decoded().table
        except Exception:  # as above
            return None
        rows = [row for row in table if row["pc"] <= at]
        return rows[-1] if rows else None


def _entries(file: ELFFile, data: bytes, name: str, of_exceptions: bool) -> list[Any]:
    """Return the entries of a section; none where it is missing, packed, or too long."""
    section = file.get_section_by_name(name)
    if section is None or section.compressed or section["sh_type"] == "SHT_NOBITS":
        return []
    at, size = section["sh_offset"], section["sh_size"]
    if size > _MOST_BYTES or at + size > len(data):
        return []
    structs = DWARFStructs(file.little_endian, dwarf_format=32, address_size=file.elfclass // 8)
    stream = io.BytesIO(data[at : at + size])
    return list(CallFrameInfo(stream, size, section["sh_addr"], structs, of_exceptions).get_entries())


def _apply(
    row: dict[Any, Any], names: tuple[str, ...], registers: dict[str, int], word: Callable[[int], int]
) -> Caller | None:
    """Return the caller's registers by the rules of `row`; None where they need what is not known."""
    rule = row.get("cfa")
    if rule is None or rule.reg is None or rule.reg >= len(names) or names[rule.reg] not in registers:
        return None
    cfa = (registers[names[rule.reg]] + rule.offset) % _TOP
    found = {**registers, "rsp": cfa}
    found.pop("rip", None)
    for number, name in enumerate(names):
        how = row.get(number)
        if how is None or how.type == "SAME_VALUE":
            continue
        if how.type == "OFFSET":
            found[name] = word((cfa + how.arg) % _TOP)
        elif how.type == "VAL_OFFSET":
            found[name] = (cfa + how.arg) % _TOP
        elif how.type == "REGISTER" and 0 <= how.arg < len(names) and names[how.arg] in registers:
            found[name] = registers[names[how.arg]]
        elif how.type == "UNDEFINED" and name == "rip":
            return Caller(found, outermost=True)
        else:
            found.pop(name, None)
    return Caller(found) if "rip" in found else None
