"""Numbers and memory in gdb's formats: x d u o t a c f s z i."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.log.text import printable
from tt.shell.command import shorten

if TYPE_CHECKING:
    from tt.shell.session import Session

MASK = (1 << 64) - 1
_UNITS = {"b": 1, "h": 2, "w": 4, "g": 8}
_LETTERS = "xduotacfszi"
_FORM = re.compile(r"(-?[0-9]{0,9})([a-z]{0,2})")
_MOST = 100_000
_LONGEST_TEXT = 1000  # bytes


@dataclass(frozen=True)
class Form:
    """What `8xg` says: a number of units, a format's letter, and a unit's size in bytes; 0 where not said."""

    number: int = 1
    letter: str = ""
    size: int = 0


def parse_form(text: str) -> Form:
    """Return the meaning of `8xg`; raises `UsageError`."""
    match = _FORM.fullmatch(text)
    letter, size = "", 0
    if match is not None and not match[1].startswith("-"):
        for c in match[2]:
            if c in _UNITS and not size:
                size = _UNITS[c]
            elif c in _LETTERS and not letter:
                letter = c
            else:
                break
        else:
            number = int(match[1] or 1)
            if 0 < number <= _MOST:
                return Form(number, letter, size)
    raise UsageError(
        f"/{shorten(text, False)} is no format: it is a number (up to {_MOST:,}), a letter of "
        f"{' '.join(_LETTERS)} and a size b, h, w or g, as in x/8xg"
    )


def show(value: int | bytes, letter: str, session: Session, size: int = 8) -> str:
    """Return a value as text in the format of a letter; "" shows a number as people want it."""
    if isinstance(value, bytes):
        # Of much text, such as `console`, the end is what matters.
        cut = "..." if len(value) > _LONGEST_TEXT else ""
        return f'{cut}"{printable(value[-_LONGEST_TEXT:].decode(errors="replace"))}"'
    bits = value & ((1 << 8 * size) - 1)
    signed = bits - (1 << 8 * size) if bits >> (8 * size - 1) else bits
    match letter:
        case "x" | "z":
            return f"0x{bits:0{2 * size}x}" if letter == "z" else f"{bits:#x}"
        case "d":
            return str(signed)
        case "u":
            return str(bits)
        case "o":
            return f"0{bits:o}"
        case "t":
            return f"{bits:b}"
        case "a":
            named = session.symbol(bits)
            return f"{bits:#x} <{named}>" if named else f"{bits:#x}"
        case "c":
            byte = bits & 0xFF
            return f"{byte} {chr(byte)!r}" if 32 <= byte < 127 else f"{byte} '\\x{byte:02x}'"
        case "f":
            return _floating(bits, size)
    if value < 0:
        return f"{value:,} ({bits:#x})"
    if value < 10:
        return str(value)
    named = session.symbol(bits) if bits >= 1 << 16 else ""
    return f"{bits:#x} ({f'<{named}>' if named else f'{value:,}'})"


def _floating(bits: int, size: int) -> str:
    codes = {8: "<d", 4: "<f", 2: "<e"}
    if size not in codes:
        raise UsageError("a float has 2, 4 or 8 bytes: f with h, w or g")
    return repr(struct.unpack(codes[size], bits.to_bytes(size, "little"))[0])
