"""States as plain data, and back: what a device saves, and the check of what it is to load.

A `load()` takes nothing but what the same device could have saved: anything else is one
`BadState` that names the device and the field.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from tt.errors import BadState

T = TypeVar("T")

# Integers of a `State` with the values they may have; `unpack` refuses others.
U8 = Annotated[int, range(1 << 8)]
U16 = Annotated[int, range(1 << 16)]
U32 = Annotated[int, range(1 << 32)]
U64 = Annotated[int, range(1 << 64)]
Ns = Annotated[int, range(1 << 62)]
"""Guest time, or a count of ticks."""


@dataclass(frozen=True)
class AtMost:
    """The most entries of a list, or bytes of a byte string: `Annotated[bytearray, AtMost(16)]`."""

    entries: int


def optional(default: Any) -> Any:
    """Return a field of a state that is left out as long as it has its default."""
    return field(default=default, metadata={"optional": True})


def pack(state: Any) -> dict[str, Any]:
    """Return a `State` dataclass as JSON-able data; bytes become hex strings."""
    packed = {}
    for name, plan in _plan(typing.cast(Any, type(state))).items():
        value = getattr(state, name)
        if not plan.optional or value != plan.default:
            packed[name] = _pack(value)
    return packed


def unpack(cls: type[T], data: object, where: str) -> T:
    """Return the `cls` dataclass that `pack` made `data` from.

    Every field must be there (but for an `optional` one with its default) and of its
    declared type: `int`, `bool`, `str`, `bytes`, `bytearray`, `list`, a dataclass, an
    `Annotated` int with a range, an `Annotated` list or byte string with `AtMost`, or a
    union of one of these with None.  A list or byte string whose default is not empty keeps
    that length.  Raises `BadState`, naming `where` and the field, when something does not fit.
    """
    try:
        return typing.cast(T, _build(cls, data))
    except _OddError as odd:
        raise misfit(where + odd.path, odd.what) from None


def misfit(where: str, what: str) -> BadState:
    """Return the error for a saved state of `where` that cannot be put back."""
    return BadState(f"saved state of {where} does not fit ({what}): damaged, or from another version of tt")


class _OddError(Exception):
    # What is wrong, and where below the value that was being read.
    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path


_Reader = Callable[[Any], Any]


def _pack(value: Any) -> Any:
    kind = type(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is bytearray or kind is bytes:
        return value.hex()
    if kind is list:
        return [_pack(item) for item in value]
    return pack(value) if dataclasses.is_dataclass(value) else value


def _build(cls: Any, data: object) -> Any:
    plan = _plan(cls)
    if not isinstance(data, dict):
        raise _OddError("it is not a table of fields")
    odd_names = [str(name) for name in data if name not in plan]
    odd_names += [name for name, p in plan.items() if name not in data and not p.optional]
    if odd_names:
        raise _OddError("missing or unknown: " + ", ".join(sorted(odd_names)))
    values = []
    for name, part in plan.items():
        if name not in data:
            values.append(part.default)
            continue
        try:
            value = part.read(data[name])
        except _OddError as odd:
            raise _OddError(odd.what, f".{name}{odd.path}") from None
        if part.length and len(value) != part.length:
            raise _OddError(f"{len(value)} entries instead of {part.length}", f".{name}")
        if part.optional and value == part.default:
            raise _OddError("it is left out where it has this value", f".{name}")
        values.append(value)
    return cls(*values)


class _Part(typing.NamedTuple):
    # How to read a field, its length if that is fixed, and whether it may be left out.
    read: _Reader
    length: int
    optional: bool
    default: Any


@functools.cache
def _plan(cls: Any) -> dict[str, _Part]:
    # The fields in order.
    fresh = cls()
    hints = typing.get_type_hints(cls, include_extras=True)
    plan = {}
    for part in dataclasses.fields(cls):
        default = getattr(fresh, part.name)
        length = len(default) if isinstance(default, (list, bytes, bytearray)) else 0
        plan[part.name] = _Part(
            _reader(hints[part.name]), length, bool(part.metadata.get("optional")), default
        )
    return plan


def _reader(hint: Any) -> _Reader:
    if dataclasses.is_dataclass(hint):
        return functools.partial(_build, hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(_reader(args[0]), args[1]) if isinstance(args[1], AtMost) else _ranged(args[1])
    if origin in (types.UnionType, typing.Union):
        inner = _reader(next(arg for arg in args if arg is not types.NoneType))
        return lambda value: None if value is None else inner(value)
    if origin is list:
        return _listed(_reader(args[0]))
    if hint in (bytes, bytearray):
        return _hexed(hint)
    return _typed(hint)


def _typed(kind: type) -> _Reader:
    def read(value: Any) -> Any:
        # A bool is an int to Python, but not here: digests of states compare spellings.
        if type(value) is not kind:
            raise _OddError(f"{kind.__name__} was expected")
        return value

    return read


def _ranged(allowed: range) -> _Reader:
    def read(value: Any) -> int:
        if type(value) is not int:
            raise _OddError("int was expected")
        if value not in allowed:
            raise _OddError(f"{value} is not in {allowed.start}..{allowed.stop - 1}")
        return value

    return read


def _bounded(reader: _Reader, bound: AtMost) -> _Reader:
    def read(value: Any) -> Any:
        found = reader(value)
        if len(found) > bound.entries:
            raise _OddError(f"{len(found)} entries, at most {bound.entries} can be")
        return found

    return read


def _listed(item: _Reader) -> _Reader:
    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _OddError("a list was expected")
        items = []
        for index, raw in enumerate(value):
            try:
                items.append(item(raw))
            except _OddError as odd:
                raise _OddError(odd.what, f"[{index}]{odd.path}") from None
        return items

    return read


def _hexed(kind: type) -> _Reader:
    def read(value: Any) -> Any:
        try:
            found = kind(bytes.fromhex(value))
        except (TypeError, ValueError):
            raise _OddError("hex digits were expected") from None
        if found.hex() != value:  # digests of states compare spellings
            raise _OddError("small hex digits with nothing between them were expected")
        return found

    return read
