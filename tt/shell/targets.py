"""What the words of a command name: a number of times, an address, a range of memory, a condition."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.shell.command import shorten
from tt.vmm.linear import linear_pc

if TYPE_CHECKING:
    from tt.shell.session import Session

_SUBSCRIPT = re.compile(r"([usp])(8|16|32|64)\s*\[(.*)\]", re.S)
_POINTER = re.compile(r"\*\s*\(([\w\s]+?)\*\s*\)(.+)", re.S)
_WITH_SIZE = re.compile(r"(.*\S)\s+(0x[0-9a-fA-F]+|[0-9_]+)", re.S)
_MOST_REPEATS = 1_000_000


def count(text: str, most: int = _MOST_REPEATS) -> int:
    """Return a number of times, 1 to `most`; raises `UsageError`."""
    digits = text.replace("_", "").replace(",", "")
    try:
        value = int(digits, 0) if len(digits) <= 40 else 0
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise UsageError(f"{shorten(text)}: give a number from 1 to {most:,}")
    return value


def location(session: Session, text: str) -> int:
    """Return the address of a location: a symbol, `*ADDR`, an address, or nothing for here."""
    text = text.strip()
    if not text:
        return linear_pc(session.machine.engine)
    return session.address(text[1:] if text.startswith("*") else text)


def memory_range(session: Session, text: str) -> tuple[int, int, bool, str]:
    """Return (addr, size, physical, what was typed for addr) of memory as `watch` names it.

    Raises `UsageError`.
    """
    text = text.strip()
    if match := _SUBSCRIPT.fullmatch(text):
        return session.address(match[3]), int(match[2]) // 8, match[1] == "p", text
    if match := _POINTER.fullmatch(text):
        return session.address(match[2]), _size_of(match[1]), False, text
    if match := _WITH_SIZE.fullmatch(text):
        # `$rsp 8` is an address and a size, `$rsp + 8` an address.
        try:
            return session.address(match[1].removeprefix("*")), count(match[2], 1 << 40), False, match[1]
        except UsageError:
            pass
    return session.address(text.removeprefix("*")), 8, False, text


def _size_of(name: str) -> int:
    from tt.travel.expressions.values import SPELLINGS

    known = SPELLINGS.get(name.split()[-1] if name.split() else "")
    if known is None or not known.size:
        raise UsageError(f"{shorten(name.strip())} is no type tt knows: say u8, u16, u32 or u64")
    return known.size


def compiled(session: Session, text: str) -> Any:
    """Return a compiled condition, names of later in the recording too; raises `UsageError`."""
    from tt.travel.expressions import UnknownName, compile_condition

    try:
        return compile_condition(text, session.symbols)
    except UnknownName:
        if not session.symbols.look_further():
            raise
        return compile_condition(text, session.symbols)
