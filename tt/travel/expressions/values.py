"""The numbers that expressions compute with: types, signs, and how memory becomes one.

All arithmetic is in 64 bits.  A value is a Python integer that is normal for its type: 0 to
2**64 - 1 where unsigned, -2**63 to 2**63 - 1 where signed.  As in C, an operation is unsigned
where one of its sides is an unsigned 64-bit number (a register, u64[...], an address, a literal
that fits nothing else); narrower numbers fit a signed one and keep their value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

MASK = (1 << 64) - 1
LONGEST_TEXT = 4096  # bytes of str[...]
_PAGE = 4096


class NoValue(UsageError):
    """An expression has no value here: no memory is mapped there, or it divides by zero."""


@dataclass(frozen=True)
class Type:
    """A type: `size` bytes; a pointer has a `target`, text has size 0."""

    name: str
    size: int
    signed: bool = False
    target: Type | None = None

    def normal(self, value: int) -> int:
        """Return a number as this type holds it."""
        bits = 8 * self.size
        value &= (1 << bits) - 1
        return value - (1 << bits) if self.signed and value >> (bits - 1) else value

    def pointer(self) -> Type:
        """Return the type of a pointer to this."""
        return Type(f"{self.name}*", 8, False, self)


TEXT = Type("text", 0)
VOID = Type("void", 0)
U64, S64 = Type("u64", 8), Type("s64", 8, True)
INTEGERS = {
    f"{sign}{8 * size}": Type(f"{sign}{8 * size}", size, sign == "s")
    for sign in "us"
    for size in (1, 2, 4, 8)
}
# How C and the kernel spell them; `unsigned long` and the like are put together by the parser.
SPELLINGS = {
    **INTEGERS,
    **{f"i{8 * size}": INTEGERS[f"s{8 * size}"] for size in (1, 2, 4, 8)},
    **{f"int{8 * size}_t": INTEGERS[f"s{8 * size}"] for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}_t": INTEGERS[f"u{8 * size}"] for size in (1, 2, 4, 8)},
    "char": INTEGERS["s8"],
    "short": INTEGERS["s16"],
    "int": INTEGERS["s32"],
    "long": S64,
    "size_t": U64,
    "uintptr_t": U64,
    "bool": INTEGERS["u8"],
    "void": VOID,
}
SIGNS = {"unsigned": "u", "signed": "s"}


def type_of(words: list[str]) -> Type | None:
    """Return the type of `unsigned long` and its like, or None."""
    signs = [word for word in words if word in SIGNS]
    rest = [word for word in words if word not in SIGNS]
    if len(rest) > 1 and rest[-1] == "int":
        rest.pop()
    if rest == ["long", "long"]:
        rest.pop()
    kind = SPELLINGS[rest[0]] if rest else SPELLINGS["int"]
    if (
        len(signs) > 1
        or len(rest) > 1
        or signs
        and (rest or ["int"])[0] not in ("char", "short", "int", "long")
    ):
        return None
    return INTEGERS[f"{SIGNS[signs[0]]}{8 * kind.size}"] if signs else kind


def common(left: Type, right: Type) -> Type:
    """Return the type in which two numbers meet: C's usual arithmetic conversions, in 64 bits."""
    return U64 if any(side.size == 8 and not side.signed for side in (left, right)) else S64


class View:
    """The guest's state where a timeline stands, for one evaluation: registers are asked once."""

    def __init__(self, timeline: Timeline, console: Callable[[Timeline], tuple[bytes, int]]) -> None:
        self.timeline = timeline
        self._console = console

    @cached_property
    def registers(self) -> dict[str, int]:
        """The CPU's registers by name."""
        return self.timeline.registers()

    def console(self) -> tuple[bytes, int]:
        """Return a text and how many bytes of it the guest had printed."""
        return self._console(self.timeline)

    def load(self, addr: int, kind: Type, physical: bool = False) -> int:
        """Return the little-endian number at an address; raises `NoValue`."""
        data = self.bytes_at(addr & MASK, kind.size, physical)
        return int.from_bytes(data, "little", signed=kind.signed)

    def bytes_at(self, addr: int, size: int, physical: bool = False) -> bytes:
        """Return bytes of memory; raises `NoValue`."""
        read = self.timeline.machine.engine.read if physical else self.timeline.read
        try:
            return read(addr, size)
        except (IndexError, OverflowError):
            where = "physical " if physical else ""
            raise NoValue(f"no memory is mapped at {where}{addr:#x}") from None

    def text_at(self, addr: int) -> bytes:
        """Return the bytes before the first NUL at `addr`, at most `LONGEST_TEXT`."""
        text = b""
        addr &= MASK
        while len(text) < LONGEST_TEXT:
            at = addr + len(text)
            try:
                piece = self.bytes_at(at, min(_PAGE - at % _PAGE, LONGEST_TEXT - len(text)))
            except NoValue:
                if not text:
                    raise
                break
            text += piece
            if b"\0" in piece:
                break
        return text.partition(b"\0")[0]
