"""Machines behind one switch, each on a core of its own, recorded so that the same run comes out each time.

No frame gets from one machine to another in less than two latencies: into the switch, and out of it.  So
all machines may run that far ahead of the one that is behind, in any order, without seeing a difference
(conservative parallel simulation, as Chandy and Misra's).  A round:

    1. The earliest guest time at which any machine can send something: `next_ns` of each.
    2. The switch serves what reaches it before that and one latency; what it gives out is brought to
       the machines.
    3. Each machine runs to that and two latencies, or to where it only waits.
    4. What they sent goes into their cables, with the guest time of each frame.

All of it follows from the guests, their scripts and seeds; the host's time only says when traces are
committed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tt.errors import UsageError
from tt.events import Event
from tt.fleet.member import Member
from tt.net.link import Conditions
from tt.net.port import Ports
from tt.net.switch import Switch
from tt.recording import LiveRecording, Recording, why
from tt.vmm.config import MachineConfig
from tt.vmm.live import seeded_entropy

FOREVER_NS = 1 << 62
LATENCY_NS = 100_000
"""The latency of a cable to the switch, where nothing is said: two of them from machine to machine."""


@dataclass
class Seat:
    """A machine at the switch: its recording and its source; its card `k` is at port `first_port` + k."""

    name: str
    live: LiveRecording
    source: Member
    first_port: int = 0
    result: Recording | None = None
    """How it ended, once it has."""


class Lan:
    """Machines at the ports of `switch`, in the order of their cards.

    Raises `UsageError` for a cable without latency: then no machine could run ahead of the others.
    """

    def __init__(self, seats: Sequence[Seat], switch: Switch) -> None:
        if switch.latency_ns <= 0:
            raise UsageError("each cable between machines needs a latency above 0, such as latency=100us")
        self.seats = list(seats)
        self.switch = switch
        self.rounds = 0
        self._stop = ""
        self._owners: list[tuple[Seat, int]] = []  # by port: whose card it is, and which
        for seat in self.seats:
            seat.first_port = len(self._owners)
            self._owners += [(seat, card) for card in range(len(seat.source.ports.sent))]
        if len(self._owners) != switch.ports:
            raise UsageError(f"the switch has {switch.ports} ports for {len(self._owners)} network cards")

    def stop(self, reason: str = "stopped by the user") -> None:
        """End all recordings soon; may be called from another thread."""
        self._stop = self._stop or reason
        for seat in self.seats:
            seat.source.stop(reason)

    def run(self, *, max_ns: int = FOREVER_NS, timeout_s: float | None = None) -> list[Recording]:
        """Run all machines until they are done; return their recordings, in order.

        That is when each has ended or stands at a prompt with no line of its script left, when nothing
        can wake any of them, at `max_ns` of guest time, or after `timeout_s` of the host's.
        """
        begin = time.monotonic()
        reason = ""
        while not reason:
            reason = self._round(max_ns)
            if self._stop:
                reason = self._stop
            elif timeout_s is not None and time.monotonic() - begin >= timeout_s:
                reason = "time is up"
        return [seat.result or self._end(seat, reason) for seat in self.seats]

    def close(self) -> None:
        """Close all traces, at their last commits where `run` did not end them."""
        for seat in self.seats:
            seat.live.close()

    # ---- inside

    def _round(self, max_ns: int) -> str:
        """Run a round; return why there is none after it, if so."""
        there = [seat for seat in self.seats if seat.result is None]
        if not there:
            return "all machines have ended"
        if all(seat.source.over for seat in there):
            return "all scripts are typed, and the guests wait for more"
        latency_ns = self.switch.latency_ns
        times = [at for seat in there if (at := seat.source.next_ns) is not None]
        at_switch = self.switch.next_ns()
        if at_switch is not None:
            times.append(at_switch + latency_ns)
        if not times:
            return "idle for ever: nothing can wake a guest"
        now_ns = min(times)
        if now_ns >= max_ns:
            return f"reached {max_ns:,} ns of guest time"
        self.rounds += 1
        for port, at_ns, frame in self.switch.advance(now_ns + latency_ns):
            seat, card = self._owners[port]
            if seat.result is None:
                seat.source.ports.bring(card, at_ns, frame)
        for seat in there:
            if seat.source.open(min(now_ns + 2 * latency_ns, max_ns)):
                self._run(seat)
        for seat in there:
            for at_ns, card, frame in seat.source.ports.fetch():
                self.switch.send(seat.first_port + card, frame, at_ns)
            if seat.result is None:
                self._commit(seat)  # also one that stands still while others run
        return ""

    def _run(self, seat: Seat) -> None:
        while True:
            stop = seat.live.step()
            if stop.reason == "pause":
                self._commit(seat)
                if seat.source.reached or seat.source.stop_requested:
                    return
            elif stop.reason != "tick":
                self._end(seat, why(stop))
                return

    def _commit(self, seat: Seat) -> None:
        if seat.source.wants_air:
            seat.live.commit()
            seat.source.breathed()

    def _end(self, seat: Seat, reason: str) -> Recording:
        seat.source.horizon_ns = FOREVER_NS  # nothing stops it on its way to the next tick
        seat.result = seat.live.end(reason)
        return seat.result


@dataclass(frozen=True)
class Guest:
    """A machine that is to be in a LAN: what it is, what is typed, where its trace goes (None: nowhere)."""

    name: str
    config: MachineConfig
    output: Path | None = None
    script: Sequence[bytes] = ()
    cables: Sequence[Conditions] = ()
    """Of each of its network cards to the switch; none given: `LATENCY_NS` and nothing bad."""


def open_lan(
    guests: Sequence[Guest],
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_event: Callable[[str, Event], None] | None = None,
) -> Lan:
    """Build the machines of `guests` behind a switch; raises `TTError`s as recordings do, having closed all.

    With `seed`, the random bytes of each follow from it and from its number.  `on_event` is told of
    every event, with the name of its machine.
    """
    seats: list[Seat] = []
    cables: list[Conditions] = []
    try:
        for number, guest in enumerate(guests):
            cards = len(guest.config.nets)
            ports = Ports(cards)
            source = Member(ports, guest.script, prompts=guest.config.machine == "pc")
            others = ", ".join(other.name for other in guests if other is not guest)
            live = LiveRecording(
                guest.config,
                guest.output,
                source,
                overwrite=overwrite,
                entropy=os.urandom if seed is None else seeded_entropy(f"{seed}/{number}"),
                networks=[f"a switch with {others}"] * cards,
                on_event=None if on_event is None else partial(on_event, guest.name),
            )
            seats.append(Seat(guest.name, live, source))
            cables += guest.cables or [Conditions(latency_ns=LATENCY_NS)] * cards
        return Lan(seats, Switch(cables))
    except BaseException:
        for seat in seats:
            seat.live.close()
        raise
