"""What gdb may load of the guest: its program or its symbols, and a script that does the rest."""

from __future__ import annotations

from pathlib import Path

from tt.errors import BadInput, UsageError
from tt.gdb.files import Files
from tt.gdb.symbol_file import symbol_file
from tt.gdb.target import LONG_MODE_ACTIVE
from tt.symbols import Symbol, SymbolTable, for_timeline
from tt.travel import Timeline

_TOP32 = 1 << 32

SCRIPT = """# Made by `tt gdb`: connects gdb to the recording, and gives it tt's commands.
# tt moves the guest behind gdb's back: let gdb look again after each of its commands.
define hookpost-monitor
  maintenance flush dcache
  maintenance flush register-cache
end
define seek
  monitor seek $arg0
  frame 0
end
document seek
Go to a position of the recording: seek 1_234_567, +N, -N, 50%, start, end, @bookmark, #event, 12.5s.
end
define when
  monitor when
end
document when
Tell the tick and the guest time.
end
define bookmark
  monitor bookmark $arg0
end
document bookmark
Name this tick: bookmark NAME; `seek @NAME` comes back.
end
define lastwrite
  eval "monitor last-write %#lx %lu", (unsigned long) &($arg0), (unsigned long) sizeof($arg0)
end
document lastwrite
Tell who wrote a variable last: lastwrite VARIABLE.
end
"""


class Guest:
    """The guest of `timeline`, as far as gdb can use it; `symbols` may be empty."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._made: tuple[list[str], bytes] = ([], b"")
        self._files = Files()

    @property
    def symbols(self) -> SymbolTable:
        """The symbols known at the current tick."""
        return for_timeline(self._timeline)

    @property
    def program(self) -> bytes:
        """The guest's program as an ELF file with symbols, or an ELF file of symbols; b"" without any."""
        table = self.symbols
        for image, bias in table.images:
            if not bias:
                return image
        labels = [source.label for source in table.sources]
        if labels != self._made[0]:
            self._made = labels, self._make(table)
        return self._made[1]

    @property
    def files(self) -> Files:
        """What gdb may read: the program."""
        program = self.program
        if program and program not in self._files.contents.values():
            name = "/tt/guest.elf" if self.symbols.images else "/tt/symbols.elf"
            self._files = Files({name: program}, name)
        return self._files

    def write_symbols(self, path: Path) -> None:
        """Write `program` to a file; raises `UsageError` where there is none, `BadInput` where it cannot."""
        program = self.program
        if not program:
            raise UsageError(
                f"no symbols of this guest are known at tick {self._timeline.tick:,}, so {path} was not "
                "written: begin later, where the guest's kernel runs"
            )
        try:
            path.write_bytes(program)
        except OSError as e:
            raise BadInput(f"cannot write {path}: {e.strerror or e}") from None

    def script(self, connect: str, symbols: Path | None = None) -> str:
        """Return gdb commands that load `symbols` (or what the server offers) and connect to `connect`."""
        lines = [f'file "{symbols.absolute()}"'] if symbols is not None else []
        return SCRIPT + "\n".join([*lines, f"target remote {connect}", ""])

    def _make(self, table: SymbolTable) -> bytes:
        is_64bit = bool(self._timeline.registers()["efer"] & LONG_MODE_ACTIVE)
        found: dict[tuple[str, int], Symbol] = {}
        for source in table.sources:
            sizes = source.sizes or [0] * len(source.names)
            for row in zip(source.addresses, sizes, source.names, source.kinds, strict=True):
                symbol = Symbol(*row)
                if is_64bit or symbol.addr < _TOP32:
                    found.setdefault((symbol.name, symbol.addr), symbol)
        is_64bit = is_64bit or any(symbol.addr >= _TOP32 for symbol in found.values())
        return symbol_file(found.values(), is_64bit=is_64bit) if found else b""
