"""Names of addresses, from several sources at once."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, repeat
from operator import le
from pathlib import Path
from typing import NamedTuple

from tt.errors import BadInput
from tt.symbols.cfi import CallFrames
from tt.symbols.symbol import Symbol

ELF_PRIORITY = 20
KALLSYMS_PRIORITY = 10
MODULE_PRIORITY = 8
SYSTEM_MAP_PRIORITY = 5

_TAIL = 4096  # bytes that a source's last symbol reaches where nothing says its size
_REACH = 16 << 20  # and any other: more than the largest array of a kernel
_TOP = 1 << 64


class OrcPlace(NamedTuple):
    """Where a guest's ORC tables are (see `tt.symbols.orc`): virtual addresses, and how many entries."""

    ips: int
    entries: int
    length: int


@dataclass(frozen=True, eq=False)
class SymbolSet:
    """Symbols of one origin, in the order of their addresses; the four columns are as long as each other.

    Of several names for one address the first is shown.  `sizes` is None where no size is known:
    a symbol then reaches to the next one.  `orc` are the unwind tables of the code, in memory.
    """

    label: str
    priority: int
    addresses: array[int]
    names: list[str]
    kinds: str
    sizes: array[int] | None = None
    orc: OrcPlace | None = None

    @classmethod
    def sort(cls, label: str, priority: int, symbols: Iterable[Symbol]) -> SymbolSet:
        """Make a source of symbols in any order; those with equal addresses keep theirs."""
        rows = sorted(symbols, key=lambda symbol: symbol.addr)
        return cls(
            label,
            priority,
            array("Q", [row.addr for row in rows]),
            [row.name for row in rows],
            "".join(row.kind for row in rows),
            array("Q", [row.size for row in rows]) if any(row.size for row in rows) else None,
        )

    @cached_property
    def _places(self) -> tuple[array[int], array[int]]:
        """The distinct addresses in order, and the number of the symbol that is shown for each.

        Absolute symbols are no places: Linux's are offsets into each CPU's own data.
        """
        first: dict[int, int] = {}
        for number, (addr, kind) in enumerate(zip(self.addresses, self.kinds, strict=True)):
            if kind not in "Aa":
                first.setdefault(addr, number)
        return array("Q", first), array("Q", first.values())

    @cached_property
    def by_name(self) -> dict[str, int]:
        """The lowest address of each name."""
        return dict(zip(reversed(self.names), reversed(self.addresses), strict=True))

    @cached_property
    def sorted_names(self) -> list[str]:
        """Every name once, in order."""
        return sorted(set(self.names))

    def span(self, addr: int) -> tuple[str, int, int] | None:
        """Return (name, begin, end) of the symbol that `addr` belongs to."""
        places, numbers = self._places
        at = bisect_right(places, addr) - 1
        if at < 0:
            return None
        begin, number = places[at], numbers[at]
        end = min(places[at + 1], begin + _REACH) if at + 1 < len(places) else begin + _TAIL
        if self.sizes is not None and self.sizes[number]:
            end = begin + self.sizes[number]
        elif self.sizes is not None:
            end = min(end, begin + _TAIL)
        return (self.names[number], begin, end) if addr < end else None


class SymbolTable:
    """Finds addresses by name and names by address.

    Where sources disagree, the one with the higher priority is right; of two with the
    same, the one whose symbol is nearer, and then the one added later.  Addresses are
    unsigned 64-bit.
    """

    def __init__(self, sources: Iterable[SymbolSet] = ()) -> None:
        self.sources: list[SymbolSet] = []
        self.images: list[tuple[bytes, int]] = []
        """The ELF files that were loaded, and the bias of each, for their debug information."""
        self._call_frames: CallFrames | None = None
        for source in sources:
            self.add(source)

    def __len__(self) -> int:
        return sum(len(source.names) for source in self.sources)

    def __iter__(self) -> Iterator[Symbol]:
        """Yield every symbol of every source; a size of 0 is unknown."""
        for source in self.sources:
            sizes = repeat(0) if source.sizes is None else source.sizes
            yield from map(Symbol, source.addresses, sizes, source.names, source.kinds)

    def add(self, source: SymbolSet) -> None:
        """Add a source, in the place its priority gives it."""
        self.sources.append(source)
        # Later ones first among equals: `sort` is stable, so they have to come first already.
        self.sources.insert(0, self.sources.pop())
        self.sources.sort(key=lambda one: -one.priority)

    def drop(self, label: str) -> None:
        """Remove the sources of that label, if there are any."""
        self.sources = [source for source in self.sources if source.label != label]

    def merge(self, other: SymbolTable) -> None:
        """Add all sources of `other`; its own order among equals is kept."""
        for source in reversed(other.sources):
            self.add(source)
        self.images += other.images
        self._call_frames = None

    @property
    def call_frames(self) -> CallFrames:
        """The DWARF call frame information of the loaded ELF files."""
        if self._call_frames is None:
            self._call_frames = CallFrames(self.images)
        return self._call_frames

    def find(self, name: str) -> int | None:
        """Return the address of `name`; the lowest where a source has several of that name."""
        for source in self.sources:
            addr = source.by_name.get(name)
            if addr is not None:
                return addr
        return None

    def find_all(self, name: str) -> list[int]:
        """Return every address that has `name`, rising: static functions of one name are many."""
        found: set[int] = set()
        for source in self.sources:
            if name in source.by_name:
                found.update(compress(source.addresses, map(name.__eq__, source.names)))
        return sorted(found)

    def span(self, addr: int) -> tuple[str, int, int] | None:
        """Return (name, begin, end) of the symbol that `addr` belongs to, None if it belongs to none."""
        holder = self._holder(addr)
        return None if holder is None else holder[1]

    def source_of(self, addr: int) -> SymbolSet | None:
        """Return the source that knows the symbol `addr` belongs to."""
        holder = self._holder(addr)
        return None if holder is None else holder[0]

    def _holder(self, addr: int) -> tuple[SymbolSet, tuple[str, int, int]] | None:
        """Return who knows `addr`: of sources with equal priority, whose symbol begins nearest before it."""
        best: tuple[SymbolSet, tuple[str, int, int]] | None = None
        for source in self.sources:
            if best is not None and source.priority < best[0].priority:
                break
            span = source.span(addr)
            if span is not None and (best is None or span[1] > best[1][1]):
                best = source, span
        return best

    def at(self, addr: int) -> tuple[str, int] | None:
        """Return (name, offset in bytes) of the symbol that `addr` belongs to."""
        span = self.span(addr)
        return None if span is None else (span[0], addr - span[1])

    def names(self, prefix: str = "", limit: int | None = None) -> list[str]:
        """Return the names that begin with `prefix`, in order, at most `limit`."""
        found: set[str] = set()
        for source in self.sources:
            names = source.sorted_names
            begin = bisect_left(names, prefix)
            end = bisect_left(names, prefix + chr(0x10FFFF), begin) if prefix else len(names)
            found.update(names[begin : end if limit is None else min(end, begin + limit)])
        return sorted(found)[:limit]

    def describe(self, addr: int) -> str:
        """Return `addr` in words: `schedule`, `schedule+0x1c`, or the bare number in hex."""
        found = self.at(addr)
        if found is None:
            return f"{addr:#x}"
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name

    def load(self, path: Path, bias: int = 0) -> int:
        """Add the symbols of a file, an ELF file or a System.map, whichever it is; return how many.

        Raises `BadInput` where it is neither, or cannot be read.
        """
        try:
            with path.open("rb") as f:
                is_elf = f.read(4) == b"\x7fELF"
        except (OSError, ValueError) as e:
            raise BadInput(f"cannot read symbols from {path}: {getattr(e, 'strerror', None) or e}") from None
        return self.load_elf(path, bias) if is_elf else self.load_system_map(path, bias)

    def load_elf(
        self, file: str | os.PathLike[str] | bytes, bias: int = 0, priority: int = ELF_PRIORITY
    ) -> int:
        """Add the symbols of an ELF file, given by path or as bytes; return how many.

        `bias` is what the loader added to its addresses: that of a position independent
        program.  Raises `BadInput` when it is damaged or not an ELF file.
        """
        from tt.symbols.elf import elf_symbols

        data, label = (file, "an ELF file") if isinstance(file, bytes) else (_contents(file), str(file))
        symbols = elf_symbols(data, label, bias)
        self.add(SymbolSet.sort(label, priority, symbols))
        self.images.append((data, bias))
        self._call_frames = None
        return len(symbols)

    def load_system_map(
        self, path: str | os.PathLike[str], bias: int = 0, priority: int = SYSTEM_MAP_PRIORITY
    ) -> int:
        """Add the symbols of a `System.map`, or of a copy of `/proc/kallsyms`; return how many.

        Raises `BadInput` when it is something else.
        """
        symbols = parse_system_map(_contents(path), str(path), bias)
        self.add(SymbolSet.sort(str(path), priority, symbols))
        return len(symbols)


def parse_system_map(data: bytes, label: str, bias: int = 0) -> list[Symbol]:
    """Return the symbols of lines `ffffffff81000000 T _text`; raises `BadInput`.

    `bias` is added to all but absolute ones.
    """
    symbols = []
    for number, line in enumerate(data.splitlines(), 1):
        words = line.split(None, 3)
        if not words:
            continue
        try:
            addr, kind, name = int(words[0], 16), words[1].decode("ascii"), words[2].decode("utf-8")
            if len(kind) != 1 or not 0 <= addr < _TOP:
                raise ValueError
        except (ValueError, IndexError):
            raise BadInput(
                f"{label}, line {number}: not an address, a letter and a name: is it a System.map?"
            ) from None
        symbols.append(Symbol(addr if kind in "Aa" else (addr + bias) % _TOP, 0, name, kind))
    if not symbols:
        raise BadInput(f"{label} holds no symbols: give the System.map of the guest's own kernel")
    return symbols


def is_sorted(values: Sequence[int]) -> bool:
    """Tell whether no value is below the one before it."""
    return all(map(le, values, values[1:]))


def columns(label: str, priority: int, addresses: array[int], names: list[str], kinds: str) -> SymbolSet:
    """Make a source without sizes of columns in any order, cheaply where they are in order already."""
    if is_sorted(addresses):
        return SymbolSet(label, priority, addresses, names, kinds)
    return SymbolSet.sort(label, priority, map(Symbol, addresses, repeat(0), names, kinds))


def _contents(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read()
    except OSError as e:
        raise BadInput(f"cannot read symbols from {os.fspath(path)}: {e.strerror or e}") from None
