"""Who wrote this?  The last store to some bytes, and where its value came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.travel.stops import Watchpoint
from tt.travel.traps import number
from tt.vmm.linear import linear_pc

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_PAGE = 4096


@dataclass(frozen=True)
class Write:
    """One store to watched bytes: the instruction at linear `rip` retired as tick `tick`.

    `old` and `new` are the watched bytes before and after it.  `by` is
    "instruction", or what else did it on the way from tick - 1 to `tick`: "device",
    "interrupt" (the CPU, entering a handler) or "page walk" (the CPU, marking a page).
    """

    tick: int
    rip: int
    old: bytes
    new: bytes
    by: str = "instruction"
    addr: int = 0
    size: int = 0
    physical: bool = False

    def __str__(self) -> str:
        who = f"the instruction at {self.rip:#x}"
        if self.by != "instruction":
            who = f"{self.by} at tick {self.tick - 1:,}"
        return f"tick {self.tick:,}: {number(self.old)} -> {number(self.new)} by {who}"


def last_write(
    timeline: Timeline,
    addr: int,
    size: int = 8,
    *,
    physical: bool = False,
    before: int | None = None,
    just_now: bool = False,
) -> Write | None:
    """Return the last store to `size` bytes at `addr` before here (or tick `before`), and go right after it.

    A store that retired as the current tick is passed over, so that asking again finds earlier ones;
    with `just_now` it counts.  A virtual `addr` means the memory that is mapped there now; all writes to that
    memory count, through any address, and those of devices too.  Returns None, at power-on, if
    nothing wrote there.  The timeline's own stops play no part.  Raises `UsageError` where nothing
    is mapped; then, as after any exception, the timeline is where it was.
    """
    from tt.travel.search import Search, arrive_at, excursion

    with excursion(timeline):
        if before is not None:
            timeline.seek(before)
        watches = [
            Watchpoint(at, length, physical=True) for at, length in _pieces(timeline, addr, size, physical)
        ]
        if just_now and timeline.tick < timeline.end_tick:
            timeline.seek(timeline.tick + 1)
        group = next(Search(timeline, watches).backward(), None)
        if group is None:
            timeline.seek(0)
            return None
        tick = group[0].tick

        def content() -> bytes:
            return b"".join(timeline.machine.engine.read(w.addr, w.size) for w in watches)

        arrive_at(timeline, tick - 1)
        old, rip = content(), linear_pc(timeline.machine.engine)
        timeline.seek(tick)
        return Write(tick, rip, old, content(), group[0].by or "instruction", addr, size, physical)


def _pieces(timeline: Timeline, addr: int, size: int, physical: bool) -> list[tuple[int, int]]:
    """Return the guest-physical (addr, size) of a range, joined where they are neighbours."""
    engine = timeline.machine.engine
    if size < 1 or addr < 0 or (physical and addr + size > engine.size):
        raise UsageError(f"{size} bytes at {addr:#x} are not within RAM ({engine.size:#x} bytes)")
    if physical:
        return [(addr, size)]
    pieces: list[tuple[int, int]] = []
    while size:
        length = min(size, _PAGE - addr % _PAGE)
        at = engine.translate(addr)
        if at is None or at + length > engine.size:
            raise UsageError(
                f"nothing is mapped at {addr:#x} here: go where it is, or give a physical address"
            )
        if pieces and sum(pieces[-1]) == at:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
        else:
            pieces.append((at, length))
        addr, size = (addr + length) % (1 << 64), size - length
    return pieces
