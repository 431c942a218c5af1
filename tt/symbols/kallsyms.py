"""The kernel's own symbol table, kallsyms, found in a piece of its memory by the shape it has.

scripts/kallsyms.c of the kernel writes it, kernel/kallsyms.c reads it.  These parts lie
close together in .rodata, each aligned to a pointer; two orders exist:

    before 6.4   offsets, relative base, count, names, markers, (6.2: seqs), token table, token index
    since 6.4    count, names, markers, token table, token index, offsets, relative base, seqs

    count        u32 (before 4.20 a pointer's width): the number of symbols
    names        each: u8 length (from 0x80: ULEB128 in two bytes), then that many token numbers;
                 the name put together of tokens begins with the symbol's letter
    markers      u32 (before 4.20 a pointer's width) per 256 symbols: where in `names` they begin
    token table  256 strings, each ended by a zero byte
    token index  256 x u16: where in the token table each begins
    offsets      s32 per symbol.  With CONFIG_KALLSYMS_ABSOLUTE_PERCPU one >= 0 is itself an absolute
                 address, one < 0 means base - 1 - offset; else, unsigned, base + offset.
                 Kernels without a relative base have whole addresses instead; in the newest ones
                 (--pc-relative) an offset counts from its own place.

Nothing here trusts the memory it looks at: whatever does not fit is not it.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from operator import gt

from tt.symbols.table import KALLSYMS_PRIORITY, SymbolSet, columns

LABEL = "kallsyms"
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_ZERO = ord("0")
_TOKENS = 256
_INDEX = struct.Struct("<256H")
_U32, _U64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from
_LONGEST_TOKEN = 512
_MOST_CANDIDATES = 64
_MOST_STEPS = 500_000  # about a second
_SEARCH_STEPS = 64  # what looking through 32 KB costs, in such steps
_BLOCK = 256  # symbols per marker
_MOST_SYMBOLS = 2_000_000
_LONGEST_NAME = 0x80  # tokens, on the average of a block
# How far before the token table the markers may begin: the 3-byte `seqs` of 6.2 lie between.
_MARKERS_WITHIN = 4 << 20
_ZEROS = 1 << 16
_HALF64 = 0xFFFF_8000_0000_0000
_HALF32 = 0x4000_0000  # CONFIG_PAGE_OFFSET is this at least


class Patience:
    """How many more steps a search may take: memory may be made to look like kallsyms all over."""

    def __init__(self, steps: int = _MOST_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> bool:
        """Take `steps` away; false when there are none left."""
        self._left -= steps
        return self._left > 0


@dataclass(frozen=True)
class Found:
    """A kallsyms: its symbols, and the bytes it takes, from `begin` to `end` in what was searched."""

    source: SymbolSet
    begin: int
    end: int


@dataclass(frozen=True)
class Parts:
    """Where in the searched bytes the parts of a kallsyms are; see the module for what they are.

    `width` is a pointer's, 4 or 8 bytes; `names_end` is after the last name.
    """

    width: int
    count: int
    count_at: int
    names_at: int
    names_end: int
    tokens: tuple[bytes, ...]
    tokens_at: int
    index_at: int


def find(data: bytes, addr: int = 0, patience: Patience | None = None) -> Found | None:
    """Return the kallsyms in `data`, None where there is none.

    `data` is contiguous kernel memory from `addr` on, which is a page boundary.  Names that are
    not UTF-8 get replacement characters.
    """
    patience = patience or Patience()
    for tokens_at, index_at, tokens in token_tables(data):
        for place in _places(data, tokens_at, index_at, tokens, patience):
            found = _addresses(data, place, addr)
            if found is None:
                continue
            addresses, begin, end = found
            names = _names(data, place)
            kinds = "".join([name[0] for name in names])
            bare = [name[1:] for name in names]
            source = columns(LABEL, KALLSYMS_PRIORITY, addresses, bare, kinds)
            return Found(source, min(begin, place.count_at), max(end, index_at + _INDEX.size))
    return None


def token_tables(data: bytes) -> Iterator[tuple[int, int, tuple[bytes, ...]]]:
    """Yield (where, where its index is, the 256 tokens) of each token table.

    Every kernel's names have all ten digits, and a character that occurs is a token of its
    own at its ASCII number.  So "0\\0 1\\0 ... 9\\0" is somewhere in each table.
    """
    at = -1
    for _ in range(_MOST_CANDIDATES):
        at = data.find(_DIGITS, at + 1)
        if at < 0:
            return
        end = at
        for _ in range(_TOKENS - _ZERO):
            end = data.find(b"\0", end, end + _LONGEST_TOKEN) + 1
            if not end:
                break
        else:
            for width in (4, 8):
                index_at = _up(end, width)
                tokens = _tokens(data, at, end, index_at)
                if tokens is not None:
                    yield end - len(b"\0".join(tokens)) - 1, index_at, tokens
                    break


def _tokens(data: bytes, digits_at: int, end: int, index_at: int) -> tuple[bytes, ...] | None:
    """Return the tokens, if the index at `index_at` belongs to the table that ends at `end`."""
    if index_at + _INDEX.size > len(data):
        return None
    index = _INDEX.unpack_from(data, index_at)
    start = digits_at - index[_ZERO]
    if index[0] or start < 0:
        return None
    tokens = data[start : end - 1].split(b"\0")
    at = 0
    for number, token in enumerate(tokens):
        if number >= _TOKENS or index[number] != at:
            return None
        at += len(token) + 1
    return tuple(tokens) if len(tokens) == _TOKENS else None


# ---- count, names and markers, which in every version lie in this order


def _places(
    data: bytes, tokens_at: int, index_at: int, tokens: tuple[bytes, ...], patience: Patience
) -> Iterator[Parts]:
    for markers_at, markers in _markers(data, tokens_at, patience):
        for width in (8, 4):
            place = _names_before(data, markers_at, markers, width, patience)
            if place is not None:
                count, count_at, names_at, names_end = place
                yield Parts(width, count, count_at, names_at, names_end, tokens, tokens_at, index_at)


def _markers(data: bytes, tokens_at: int, patience: Patience) -> Iterator[tuple[int, list[int]]]:
    """Yield (where, values) of what may be the markers, the nearest to the token table first."""
    begin, at = max(0, tokens_at - _MARKERS_WITHIN), tokens_at
    least, most = 2 * _BLOCK, _LONGEST_NAME * _BLOCK
    while (at := data.rfind(b"\0\0\0\0", begin, at + 3) // 4 * 4) >= begin:
        if not patience.spend():
            return
        if not any(data[at + 4 : at + 16]):
            # In a run of zeros only the last one may be a first marker: go on before it.
            low = max(begin, at - _ZEROS)
            at = low + len(data[low:at].rstrip(b"\0")) // 4 * 4
            continue
        for unpack, step in ((_U32, 4), (_U64, 8)):
            if at + step > tokens_at or unpack(data, at)[0]:
                continue
            markers = [0]
            for next_at in range(at + step, tokens_at - step + 1, step):
                (value,) = unpack(data, next_at)
                if not least <= value - markers[-1] <= most:
                    break
                markers.append(value)
            if len(markers) > 1:
                if not patience.spend(len(markers)):
                    return
                yield at, markers


def _names_before(
    data: bytes, markers_at: int, markers: list[int], width: int, patience: Patience
) -> tuple[int, int, int, int] | None:
    """Return (count, where it is, where the names begin and end), the names that `markers` divide.

    The names end where the markers begin, but for padding; so how long the last block
    is says where they begin, and the count before them has to agree.
    """
    # What follows the markers may look like one more of them.
    for number in range(len(markers), max(1, len(markers) - 3), -1):
        if not patience.spend(_SEARCH_STEPS):
            return None
        last = markers[number - 1]
        low, high = markers_at - last - _LONGEST_NAME * _BLOCK, markers_at - last
        for count_at in _counts(data, max(0, low - width), high - width, number, width):
            names_at = count_at + width
            (count,) = struct.unpack_from("<I" if width == 4 else "<Q", data, count_at)
            if not patience.spend(2 * _BLOCK):
                return None
            if _walk(data, names_at, markers_at, _BLOCK) != names_at + markers[1]:
                continue
            end = _walk(data, names_at + last, markers_at, count - (number - 1) * _BLOCK)
            if end is not None and _up(end, width) == markers_at and not any(data[end:markers_at]):
                return count, count_at, names_at, end
    return None


def _counts(data: bytes, begin: int, end: int, number: int, width: int) -> Iterator[int]:
    """Yield where in [begin, end) a count is that needs `number` markers, the last first."""
    if number * _BLOCK > _MOST_SYMBOLS:
        return
    upper = (number - 1).to_bytes(width - 1, "little")
    for skip, rest in ((1, upper), (0, (number * _BLOCK).to_bytes(width, "little"))):
        at = end
        while (at := data.rfind(rest, begin + skip, at + len(rest) - 1 + skip) - skip) >= begin:
            # The low byte is any but 0: that would be a multiple of a block, and one marker less.
            if at % width == 0 and (data[at] or not skip):
                yield at


def _walk(data: bytes, at: int, end: int, count: int) -> int | None:
    """Return where `count` names from `at` end, None where they cannot be names or pass `end`."""
    for _ in range(count):
        if at + 1 >= end:
            return None
        length = data[at]
        if length >= 0x80:
            at += 1
            length = length & 0x7F | data[at] << 7
        if not length:
            return None
        at += 1 + length
    return at if at <= end else None


def _names(data: bytes, place: Parts) -> list[str]:
    """Return all names, each with its letter before it."""
    token = place.tokens.__getitem__
    names = []
    at, join = place.names_at, b"".join
    for _ in range(place.count):
        if at >= place.names_end:
            break
        length = data[at]
        at += 1
        if length >= 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        names.append(join(map(token, data[at : at + length])))
        at += length
    text = b"\n".join(names).decode("utf-8", "replace").split("\n")
    # Damaged tokens may hold line ends, or nothing: those are expanded one by one.
    if len(text) != place.count or not all(text):
        text = [name.decode("utf-8", "replace") or "?" for name in names]
        text += ["?"] * (place.count - len(text))
    return text


# ---- addresses


def _addresses(data: bytes, place: Parts, addr: int) -> tuple[array[int], int, int] | None:
    """Return (the symbols' addresses, where they begin and end), wherever this kernel keeps them."""
    width, count = place.width, place.count
    offsets_size = _up(4 * count, width)
    after = _up(place.index_at + _INDEX.size, width)
    before = place.count_at - width
    for offsets_at, base_at in ((before - offsets_size, before), (after, after + offsets_size)):
        addresses = _relative(data, offsets_at, base_at, count, width)
        if addresses is not None:
            return addresses, offsets_at, base_at + width
    for at in (place.count_at - width * count, after):
        addresses = _absolute(data, at, count, width)
        if addresses is not None:
            return addresses, at, at + width * count
    if width == 8 and after + 4 * count <= len(data):
        offsets = struct.unpack_from(f"<{count}i", data, after)
        places = range(addr + after, addr + after + 4 * count, 4)
        addresses = array(
            "Q", [(at + offset) % (1 << 64) for at, offset in zip(places, offsets, strict=True)]
        )
        if addresses[0] >= _HALF64 and _in_order(addresses):
            return addresses, after, after + 4 * count
    return None


def _relative(data: bytes, offsets_at: int, base_at: int, count: int, width: int) -> array[int] | None:
    if offsets_at < 0 or base_at + width > len(data):
        return None
    base = int.from_bytes(data[base_at : base_at + width], "little")
    top = 1 << 8 * width
    if not (_HALF64 if width == 8 else _HALF32) <= base < top:
        return None
    offsets = array("I" if array("I").itemsize == 4 else "L", data[offsets_at : offsets_at + 4 * count])
    if base + offsets[-1] < top and _in_order(offsets):
        return array("Q", [(base + offset) % top for offset in offsets])
    minus = base - 1 + (1 << 32)  # base - 1 - (offset as signed)
    addresses = array("Q", [(n if n < 1 << 31 else minus - n) % top for n in offsets])
    return addresses if _in_order(addresses) else None


def _absolute(data: bytes, at: int, count: int, width: int) -> array[int] | None:
    if at < 0 or at + width * count > len(data):
        return None
    addresses = array("Q", struct.unpack_from(f"<{count}{'Q' if width == 8 else 'I'}", data, at))
    half = _HALF64 if width == 8 else _HALF32
    return addresses if _in_order(addresses) and addresses[-1] >= half else None


def _in_order(values: array[int]) -> bool:
    """Tell whether the values rise, except for one in a thousand."""
    return sum(map(gt, values, values[1:])) * 1000 <= len(values) and values[-1] > values[0]


def _up(value: int, width: int) -> int:
    return -(-value // width) * width
