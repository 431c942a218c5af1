"""Event chunks: many events in columns, delta-coded, then compressed as one zstd frame.

Before compression a chunk of `count` events is:

    count x u8       kind
    count x varint   unit
    count x varint   tick, minus that of the event before it (of the first: minus first_tick)
    count x varint   zigzag of value, minus that of the chunk's last event of the same kind and unit (or 0)
    count x varint   length of data
    bytes            the data of all events, one after the other

`count` and `first_tick` are columns of the chunk's row.  A varint is LEB128:
seven bits a byte, least significant first, the top bit set on all but the
last.  Differences of values are taken modulo 2**64, read as signed, and
zigzagged (0, -1, 1, -2, ... become 0, 1, 2, 3, ...), so that the regular steps
of a timer turn into a column of equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import zstandard

from tt.errors import BadInput
from tt.events import Event, Kind
from tt.log.blobs import inflate

MAX_EVENTS = 1 << 16
MAX_RAW = 16 << 20  # bytes of a chunk before compression
MAX_DATA = 1 << 20  # bytes of data of one event
LEVEL = 9  # events are few and small; a better level costs nothing that can be measured
MAX_TICK = (1 << 63) - 1
_U64 = (1 << 64) - 1

_KINDS = {int(kind): kind for kind in Kind}


def encode(events: Sequence[Event]) -> tuple[int, bytes]:
    """Pack `events` (at least one, ticks not falling); return (raw size, zstd frame).

    Raises `ValueError` when the events cannot be stored: the caller's mistake.
    """
    last_tick = events[0].tick
    steps = []
    for event in events:
        if not last_tick <= event.tick <= MAX_TICK:
            raise ValueError(f"event at tick {event.tick} after one at tick {last_tick}")
        steps.append(event.tick - last_tick)
        last_tick = event.tick
    seen: dict[tuple[int, int], int] = {}
    changes = []
    for event in events:
        if not (0 <= event.unit <= _U64 and 0 <= event.value <= _U64):
            raise ValueError(f"unit {event.unit} or value {event.value} is not in 0..2**64-1")
        key = (event.kind, event.unit)
        changes.append(_zigzag(event.value - seen.get(key, 0)))
        seen[key] = event.value
    raw = bytearray(event.kind for event in events)
    _put_varints(raw, (event.unit for event in events))
    _put_varints(raw, steps)
    _put_varints(raw, changes)
    _put_varints(raw, (len(event.data) for event in events))
    for event in events:
        raw += event.data
    return len(raw), zstandard.ZstdCompressor(level=LEVEL).compress(raw)


def decode(frame: bytes, raw_size: int, count: int, first_tick: int) -> list[Event]:
    """Unpack a chunk that `encode` packed; raises `BadInput` when it is damaged."""
    if not (0 < count <= MAX_EVENTS and 0 <= raw_size <= MAX_RAW):
        raise BadInput(f"a chunk claims {count} events in {raw_size} bytes")
    raw = inflate(frame, raw_size)
    kinds = raw[:count]
    if len(kinds) < count or any(kind not in _KINDS for kind in set(kinds)):
        raise BadInput("a chunk holds events of no known kind")
    units, at = _take_varints(raw, count, count)
    steps, at = _take_varints(raw, at, count)
    changes, at = _take_varints(raw, at, count)
    sizes, at = _take_varints(raw, at, count)
    if sum(sizes) != raw_size - at:
        raise BadInput("a chunk's data does not have the length it claims")
    events = []
    tick = first_tick
    seen: dict[tuple[int, int], int] = {}
    for number, unit, step, change, size in zip(kinds, units, steps, changes, sizes, strict=True):
        tick += step
        key = (number, unit)
        value = seen[key] = (seen.get(key, 0) + _unzigzag(change)) & _U64
        events.append(Event(tick, _KINDS[number], unit, value, raw[at : at + size]))
        at += size
    if tick > MAX_TICK:
        raise BadInput("a chunk's ticks are out of range")
    return events


def _zigzag(difference: int) -> int:
    difference &= _U64
    return (difference << 1) & _U64 if difference < 1 << 63 else ((~difference & _U64) << 1) | 1


def _unzigzag(code: int) -> int:
    return (code >> 1) ^ -(code & 1)


def _put_varints(out: bytearray, numbers: Iterable[int]) -> None:
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)


def _take_varints(raw: bytes, at: int, count: int) -> tuple[Sequence[int], int]:
    """Return `count` varints from `raw[at:]`, and where they end."""
    column = raw[at : at + count]
    if len(column) == count and max(column) < 0x80:  # one byte each: most columns of most chunks
        return column, at + count
    numbers = []
    number = shift = 0
    for end, byte in enumerate(memoryview(raw)[at:], at + 1):
        number |= (byte & 0x7F) << shift
        if byte >= 0x80:
            shift += 7
            if shift > 63:
                break
            continue
        if number > _U64:
            break
        numbers.append(number)
        if len(numbers) == count:
            return numbers, end
        number = shift = 0
    raise BadInput("a chunk's columns are cut short")
