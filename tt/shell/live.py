"""A live branch in the shell: it runs forward only, can be changed, and is recorded as it goes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.events import Event, Kind
from tt.inspect import Answer, bare
from tt.log.text import lines as console_lines
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.targets import memory_range

if TYPE_CHECKING:
    from pathlib import Path

    from tt.log import Trace
    from tt.shell.session import Session
    from tt.travel.branches.fork import Fork
    from tt.vmm.machine import Machine

_SLICE_TICKS = 5_000_000
_SLICE_S = 0.1
_MOST_TICKS = 2_000_000_000  # a guest that never waits for anybody is looked at now and then
_KEPT_RUNS = 20_000
_MOST_SHOWN = 40  # lines of output after one command


class Live:
    """A fork that somebody has in hand, with the face that expressions look at."""

    def __init__(self, fork: Fork, trace: Trace) -> None:
        self.fork = fork
        self.trace = trace
        self._printed: deque[tuple[int, int, bytes]] = deque(maxlen=_KEPT_RUNS)
        self._fresh: list[tuple[int, int, bytes]] = []
        fork.machine.door.subscribe(self._see)

    @property
    def name(self) -> str:
        """What the branch is called."""
        return self.fork.name

    @property
    def machine(self) -> Machine:
        """The machine that runs."""
        return self.fork.machine

    @property
    def tick(self) -> int:
        """Where it is."""
        return self.fork.tick

    def registers(self) -> dict[str, int]:
        """Return the CPU's registers by name."""
        return self.fork.registers()

    def read(self, addr: int, size: int) -> bytes:
        """Return memory at a virtual address; raises `IndexError`."""
        return self.fork.read(addr, size)

    # ---- commands

    def carry_on(self, session: Session, ticks: int | None = None, ns: int | None = None) -> Answer:
        """Run on: for so many ticks or ns, or until the guest waits for somebody to type, ends, or Ctrl-C."""
        goal = self.tick + (_MOST_TICKS if ticks is None else ticks)
        until_ns = None if ns is None else self.machine.now_ns + ns
        slice_s = _SLICE_S if self.fork.cables.is_live else None  # an idle guest's ticks hardly move then
        self._fresh.clear()
        reason = ""
        try:
            while self.tick < goal and not reason:
                idle_ns, now_ns = self.machine.clock.idle_ns, self.machine.now_ns
                stop = self.fork.run(until=min(goal, self.tick + _SLICE_TICKS), timeout_s=slice_s)
                session.heed(self.tick)
                if stop.reason == "power":
                    reason = f"the machine has ended: {stop.detail}"
                elif stop.reason == "idle":
                    reason = "nothing can wake the guest but `type`"
                elif until_ns is not None:
                    if self.machine.now_ns >= until_ns:
                        break
                elif ticks is None and self._waits():
                    idled_ns = self.machine.clock.idle_ns - idle_ns
                    if 2 * idled_ns > self.machine.now_ns - now_ns:
                        reason = "the guest idles, and waits for somebody to type"
                        if self.fork.cables.is_live:
                            reason += " (`continue 10s` lets it serve its network)"
        except KeyboardInterrupt:
            reason = "interrupted"  # the branch has lived on until here, and that is recorded
        if not reason and ticks is None and ns is None:
            reason = f"it has run {format_tick(_MOST_TICKS)} ticks: `continue` lets it go on"
        told = self._output()
        data = {"reason": reason, "output": b"".join(run[2] for run in self._fresh).decode(errors="replace")}
        return session.arrive([*told, *([reason] if reason else [])], data)

    def advance(self, session: Session, ticks: int) -> Answer:
        """Run on for so many ticks."""
        return self.carry_on(session, ticks)

    def assign(self, session: Session, target: str, value: int) -> Answer:
        """Set `$rax`, or memory as `watch` names it."""
        name = target.removeprefix("$").lower()
        if target.startswith("$") or (name.isidentifier() and name in self.registers()):
            self.fork.set_register(name, value)
            return Answer(
                {"register": name, "value": value}, [f"${printable(name)} = {value & (1 << 64) - 1:#x}"]
            )
        addr, size, physical, _ = memory_range(session, target)
        if size not in (1, 2, 4, 8):
            raise UsageError(f"a number has 1, 2, 4 or 8 bytes, not {size}: say u8[...] to u64[...]")
        if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
            raise UsageError(f"{value:#x} does not fit into {size} bytes")
        self.fork.write(addr, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), physical=physical)
        where = f"{'physical ' if physical else ''}{addr:#x}"
        line = f"{size} byte{'s' * (size > 1)} at {where} = {value:#x}"
        return Answer({"addr": addr, "size": size, "value": value}, [line])

    def type(self, text: bytes) -> Answer:
        """Type into the guest's console, from the next step on."""
        self.fork.type(text)
        ended = self.fork.machine.ended is not None
        hint = ", too late: the machine has ended" if ended else ": `continue` lets it run"
        typed = f"{len(text)} byte{'s' * (len(text) != 1)} typed{hint}"
        return Answer({"typed": text.decode(errors="replace")}, [typed])

    def plug(self, card: int, up: bool) -> Answer:
        """Plug the cable of a network card in, or pull it out, with the next step."""
        self.fork.plug(card, up)
        told = f"the cable of network card {card} is {'plugged in' if up else 'pulled out'}: `continue`"
        return Answer({"card": card, "up": up}, [told])

    def receive(self, card: int, frame: bytes) -> Answer:
        """Let a network card get a frame with the next step."""
        self.fork.receive_frame(card, frame)
        told = f"a frame of {len(frame):,} bytes for network card {card}: `continue` lets it come"
        return Answer({"card": card, "size": len(frame)}, [told])

    def console(self, number: int) -> Answer:
        """Return the last lines printed in the branch and before it."""
        before = (run for run in self.trace.console() if run[0] < self.fork.fork_tick)
        runs = [*deque(before, maxlen=_KEPT_RUNS), *self._printed]
        last = deque(console_lines(runs), maxlen=number)
        width = max((len(format_tick(tick)) for tick, _unit, _text in last), default=0)
        return Answer(
            {"console": [{"tick": tick, "unit": unit, "text": text} for tick, unit, text in last]},
            [f"{format_tick(tick):>{width}}  {bare(text)}" for tick, _unit, text in last],
        )

    def close(self) -> Path:
        """Seal its recording and return where that is."""
        return self.fork.close()

    # ---- how

    def _see(self, event: Event) -> None:
        if event.kind is Kind.CONSOLE:
            run = (event.tick, event.unit, event.data)
            self._printed.append(run)
            self._fresh.append(run)

    def _waits(self) -> bool:
        """Whether the guest may be at a prompt: it listens, has read all, and its last line has no end."""
        last = self._fresh[-1][2] if self._fresh else b""
        return self.machine.wants_input and not last.endswith(b"\n")

    def _output(self) -> list[str]:
        shown = [f"| {bare(text)}" for _tick, _unit, text in console_lines(self._fresh)]
        if len(shown) > _MOST_SHOWN:
            left = len(shown) - _MOST_SHOWN
            shown = [f"| ... {left:,} lines more, see `console {len(shown)}`", *shown[-_MOST_SHOWN:]]
        return shown
