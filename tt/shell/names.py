"""The names of addresses in the guest, found by themselves, and those of files that somebody named."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tt.log.text import printable

if TYPE_CHECKING:
    from tt.shell.session import Session
    from tt.symbols import SymbolTable
    from tt.travel import Timeline

_PARTS = 20  # a kernel's own table is looked for in memory once in each such part of the recording


class Symbols:
    """The names of addresses where a session stands."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tables: WeakKeyDictionary[Timeline, SymbolTable] = WeakKeyDictionary()
        self._looked: WeakKeyDictionary[Timeline, set[int]] = WeakKeyDictionary()
        self._exhausted = False
        self._loaded: list[tuple[Path, int]] = []

    @property
    def table(self) -> SymbolTable:
        """What is known where the session stands."""
        from tt.symbols import for_timeline

        session = self._session
        timeline = session.timeline
        part = session.tick * _PARTS // max(session.end_tick, 1)
        looked = self._looked.setdefault(timeline, set())
        if part not in looked:
            looked.add(part)
            fresh = timeline not in self._tables
            self._tables[timeline] = for_timeline(timeline)
            if fresh:
                for path, bias in self._loaded:
                    self._tables[timeline].load(path, bias)
        return self._tables[timeline]

    def load(self, path: Path, bias: int = 0) -> int:
        """Add the symbols of an ELF file or a System.map; return how many.  Raises `BadInput`."""
        added = self.table.load(path, bias)
        self._loaded.append((path, bias))
        return added

    def __len__(self) -> int:
        return len(self.table)

    def find(self, name: str) -> int | None:
        """Return the address of a name, or None."""
        return self.table.find(name)

    def at(self, addr: int) -> tuple[str, int] | None:
        """Return (name, offset) of the symbol that an address lies in, or None."""
        return self.table.at(addr)

    def names(self, prefix: str, limit: int | None = None) -> list[str]:
        """Return the names that begin with `prefix`, at most `limit`."""
        return self.table.names(prefix, limit)

    def is_data(self, name: str) -> bool:
        """Whether a name is one of a variable."""
        for source in self.table.sources:
            addr = source.by_name.get(name)
            if addr is not None:
                at = bisect_left(source.addresses, addr)
                while at < len(source.names) and source.addresses[at] == addr:
                    if source.names[at] == name:
                        return source.kinds[at] in "dDbBrRvV"
                    at += 1
        return False

    def describe(self, addr: int) -> str:
        """Return `name+0x12`, or ""."""
        found = self.at(addr)
        if found is None:
            return ""
        name, offset = found
        return printable(f"{name}+{offset:#x}" if offset else name)

    def look_further(self) -> bool:
        """Look for a kernel's names at the recording's end, once; true if there are names then."""
        session = self._session
        if self._exhausted or len(self.table) or session.live is not None:
            return False
        self._exhausted = True
        return session.quietly_elsewhere(session.timeline.end_tick, lambda: bool(len(self.table)))
