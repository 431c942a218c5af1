"""What every device is, and how its state becomes plain data and comes back."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

from tt.errors import BadInput

T = TypeVar("T")

# Integers of a `State` with the values they may have; `unpack` refuses others.
U8 = Annotated[int, range(1 << 8)]
U16 = Annotated[int, range(1 << 16)]
U32 = Annotated[int, range(1 << 32)]


class Stateful(Protocol):
    """Something with a name whose whole state can be saved and put back."""

    name: str

    def save(self) -> dict[str, Any]:
        """Return the whole state as JSON-able data."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadInput` when it does not fit."""
        ...


class Registers(Protocol):
    """A block of registers: offsets within the block, not port numbers."""

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes (1, 2 or 4) at `offset`, little-endian."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `size` bytes at `offset`."""
        ...


class Device(Stateful, Registers, Protocol):
    """A device with one block of registers."""


def pack(state: Any) -> dict[str, Any]:
    """Return a `State` dataclass as JSON-able data; bytes become hex strings."""
    return {name: _pack(getattr(state, name)) for name in _plan(typing.cast(Any, type(state)))}


def unpack(cls: type[T], data: object, where: str) -> T:
    """Return the `cls` dataclass that `pack` made `data` from.

    Every field must be there and of its declared type (`int`, `bool`, `str`,
    `bytes`, `bytearray`, `list`, a dataclass, an `Annotated` int with a range,
    or a union of these with None); a list or byte string whose default is not
    empty keeps that length.  Raises `BadInput`, naming `where` and the field,
    when something does not fit.
    """
    try:
        return typing.cast(T, _build(cls, data))
    except _OddError as odd:
        raise misfit(where + odd.path, odd.what) from None


def misfit(where: str, what: str) -> BadInput:
    """Return the error for a saved state of `where` that cannot be put back."""
    return BadInput(f"saved state of {where} does not fit ({what}): damaged, or from another version of tt")


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
    if data.keys() != plan.keys():
        raise _OddError("missing or unknown: " + ", ".join(sorted(map(str, data.keys() ^ plan.keys()))))
    values = []
    for name, (reader, length) in plan.items():
        try:
            value = reader(data[name])
        except _OddError as odd:
            raise _OddError(odd.what, f".{name}{odd.path}") from None
        if length and len(value) != length:
            raise _OddError(f"{len(value)} entries instead of {length}", f".{name}")
        values.append(value)
    return cls(*values)


@functools.cache
def _plan(cls: Any) -> dict[str, tuple[_Reader, int]]:
    # For each field, in order: how to read it, and its length if that is fixed.
    fresh = cls()
    hints = typing.get_type_hints(cls, include_extras=True)
    plan = {}
    for field in dataclasses.fields(cls):
        default = getattr(fresh, field.name)
        length = len(default) if isinstance(default, (list, bytes, bytearray)) else 0
        plan[field.name] = _reader(hints[field.name]), length
    return plan


def _reader(hint: Any) -> _Reader:
    if dataclasses.is_dataclass(hint):
        return functools.partial(_build, hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _ranged(args[1])
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
            return kind(bytes.fromhex(value))
        except (TypeError, ValueError):
            raise _OddError("hex digits were expected") from None

    return read
