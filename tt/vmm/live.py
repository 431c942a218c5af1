"""The live side of the door: typed input, host time, and how an idle guest's time passes."""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from tt.events import Event, Kind

COMMIT_EVERY_S = 0.5
"""Host seconds between pauses of a live machine, in which its recorder can commit."""

_SELECT_MOST = 1024  # FD_SETSIZE: descriptors from here on are beyond `select`
_LINE_GAP_NS = 20_000_000  # guest time that a prompt must stand before the next line is typed


def seeded_entropy(seed: int | str) -> Callable[[int], bytes]:
    """Return a stand-in for `os.urandom` that gives the same bytes for the same seed."""
    return random.Random(seed).randbytes


def readable(descriptors: list[int], seconds: float) -> list[int]:
    """Wait until one of `descriptors` is readable, or closed by its peer; return those that are."""
    if max(descriptors) < _SELECT_MOST:  # to the microsecond, where poll counts milliseconds
        return select.select(descriptors, [], [], seconds)[0]
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _what in poll.poll(math.ceil(seconds * 1000))]


class Network(Protocol):
    """What the network cards of a live machine are connected to; see `tt.net.network`."""

    room: Callable[[int], int | None]
    """How many frames a card has room for, None where nobody listens; set by the owner of the machine."""

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        """Take a frame that the guest sent at guest time `now_ns`."""
        ...

    def poll(self, now_ns: int) -> bool:
        """Move what is due at guest time `now_ns`; return whether something is there for the guest."""
        ...

    def take(self, tick: int) -> list[Event]:
        """Return, and forget, what `poll` found, as inputs at `tick`."""
        ...

    def due_ns(self, now_ns: int) -> int | None:
        """Return the guest time after `now_ns` at which something is due next, or None."""
        ...

    def descriptors(self) -> list[int]:
        """Return the descriptors that become readable when something comes from outside."""
        ...

    def counters(self) -> list[dict[str, int]]:
        """Return what became of each card's frames, by name: received, sent, dropped, lost."""
        ...

    def close(self) -> None:
        """Let go of everything; its owner calls it."""
        ...


class LiveSource:
    """Answers and inputs from the host.

    With `pace`, an idle guest sleeps until its next timer or an input, and
    guest time never runs ahead of the host's; without, it jumps there at once.
    `script` lines are typed one at a time, each when the guest idles at a
    prompt: it listens, has read everything, and the last thing it printed is
    not the end of a line.  A guest that looks for input again and again instead of
    idling is at a prompt too.  So what a script does depends on the guest alone.

    At a prompt with no line left the recording ends, unless `forever`.  While
    `feeding`, more lines may come through `feed`: the guest's time stands still
    at the prompt until one does.  Without `prompts` (a machine whose guests are no
    shells) a line is typed whenever the guest idles and listens, and the script's
    end ends nothing.

    `network` is what the cards of the machine are connected to, if anything.
    """

    def __init__(
        self,
        *,
        pace: bool = False,
        script: Sequence[bytes] = (),
        forever: bool = False,
        feeding: bool = False,
        prompts: bool = True,
        network: Network | None = None,
    ) -> None:
        self.network = network
        self.pace = pace
        self.forever = forever  # the end of the script ends nothing: the recording has another end
        self.feeding = feeding
        self.prompts = prompts
        self.stop_requested = False
        self.stop_reason = ""
        self.now_ns: Callable[[], int] = lambda: 0  # guest time, set by the owner of the machine
        # The tick at which guest time has reached so many ns, and whether the guest listens: set likewise.
        self.ticks_until: Callable[[int], int] = lambda ns: 0
        self.wants_input: Callable[[], bool] = lambda: False
        self.looked_up: Callable[[], None] = lambda: None  # called often, on the machine's thread
        self._script = deque(script)
        self._script_lines = len(script)
        self._typed: deque[tuple[int, bytes]] = deque()
        self._bell, self._ring = os.pipe()  # wakes a sleeping machine
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)
        self._air_at = time.monotonic() + COMMIT_EVERY_S
        self._printed: bytes = b""
        self._prompt_since: int | None = None
        self._polled_at: int | None = None  # the tick at which the guest was taken for an idle one
        self._looked_ns = -1  # guest time at which the network was asked last, and all it had was taken
        self._ahead_s = 0.0  # host time at which guest time was 0
        self._started = False

    def __del__(self) -> None:
        """Close the bell."""
        for end in (self._bell, self._ring):
            os.close(end)

    # ---- from other threads

    def type(self, data: bytes, unit: int = 0) -> None:
        """Type `data` into a console of the guest."""
        self._typed.append((unit, data))
        self._wake()

    def feed(self, line: bytes) -> None:
        """Add a line to the script."""
        self._script.append(line)
        self._script_lines += 1
        self._wake()

    def end_feeding(self) -> None:
        """Say that no more lines will come."""
        self.feeding = False
        self._wake()

    def stop(self, reason: str = "stopped by the user") -> None:
        """End the recording soon."""
        self.stop_reason = self.stop_reason or reason
        self.stop_requested = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been rung often enough
            os.write(self._ring, b"\0")

    # ---- from the machine

    def see(self, event: Event) -> None:
        """Take note of what the guest prints and sends: a subscriber of the door."""
        if event.kind is Kind.FRAME_OUT:
            if self.network is not None:
                self.network.send(event.unit, event.data, self.now_ns())
        elif event.kind is Kind.CONSOLE and event.data:
            self._printed = event.data
            self._prompt_since = None

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return a live answer."""
        return live()

    def resumed(self) -> None:
        """Take note that the machine stood still: guest time keeps to the host's from here."""
        self._started = False

    def next_input(self, tick: int) -> int | None:
        """Return `tick` when something was typed or came by the network, or when something will come."""
        if self._typed:
            return tick
        if self.network is None:
            return None
        now = self.now_ns()
        if now != self._looked_ns and self.network.poll(now):
            return tick
        due = self.network.due_ns(now)
        return None if due is None else max(tick, self.ticks_until(due))

    def take_inputs(self, tick: int) -> list[Event]:
        """Return what was typed, and what came by the network."""
        inputs = []
        while self._typed:
            unit, data = self._typed.popleft()
            inputs.append(Event(tick, Kind.INPUT, unit, 0, data))
        if self.network is None:
            return inputs
        self._looked_ns = self.now_ns()
        self.network.poll(self._looked_ns)  # time may have passed since `next_input`: the guest was idle
        return inputs + self.network.take(tick)

    def wants_pause(self, tick: int) -> bool:
        """Whether somebody asked to stop, or it is time to commit."""
        self.looked_up()
        return self.stop_requested or time.monotonic() >= self._air_at

    def breathed(self) -> None:
        """Take note that the owner did what the pause was for."""
        self._air_at = time.monotonic() + COMMIT_EVERY_S

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Sleep, or jump ahead; see `Source.idle`."""
        if self.network is not None:
            now = self.now_ns()
            due = self.network.due_ns(now)
            if due is not None:
                most_ns = due - now if most_ns is None else min(most_ns, due - now)
        if self._waits(most_ns if tick != self._polled_at else None):
            self._serve_prompt()
            return 0
        if not self.pace:
            return most_ns
        return self._sleep(most_ns)

    def polled(self, tick: int) -> bool:
        """Whether the guest looks for a line of the script, or its end; see `Source.polled`."""
        waits = self._waits(None)
        self._polled_at = tick if waits else None
        return waits

    def _sleep(self, most_ns: int | None) -> int | None:
        now = self.now_ns()
        if not self._started:
            self._started = True
            self._ahead_s = time.monotonic() - now / 1e9
        begin = time.monotonic()
        late_s = begin - self._ahead_s - now / 1e9  # how far guest time lags behind
        if most_ns is not None and late_s * 1e9 >= most_ns:
            # Too slow for the host's clock: it starts again from now.  With a network it does so at once,
            # for what comes would find a guest that makes up for lost time only late.
            if late_s > (1 if self.network is None else 0.01):
                self._ahead_s = begin - (now + most_ns) / 1e9
            return most_ns
        wait = min(
            1.0 if most_ns is None else most_ns / 1e9 - max(late_s, 0.0), max(0.0, self._air_at - begin)
        )
        if not self._typed:
            self._wait(wait)
        passed = max(0, int((time.monotonic() - self._ahead_s) * 1e9) - now)
        return passed if most_ns is None else min(passed, most_ns)

    def _wait(self, seconds: float) -> None:
        """Wait until something arrives, `seconds` at most."""
        outside = [] if self.network is None else self.network.descriptors()
        if self._bell in readable([self._bell, *outside], 0 if self.stop_requested else seconds):
            os.read(self._bell, 4096)

    def _waits(self, most_ns: int | None) -> bool:
        """Whether the guest waits for the script; `most_ns` until it goes on by itself, None: it does not."""
        if (not self._script and self.forever and not self.feeding) or not self.wants_input():
            return False
        if self.prompts and (not self._printed or self._printed.endswith(b"\n")):
            return False
        if not self.prompts and not self._script:
            return False
        now = self.now_ns()
        if self._prompt_since is None:
            self._prompt_since = now
        stood = now - self._prompt_since >= _LINE_GAP_NS
        return stood or most_ns is None or not self.prompts

    def _serve_prompt(self) -> None:
        """Type the next line of the script; with none left, end the recording."""
        if self._script:
            self.type(self._script.popleft())
            self._prompt_since = None
        elif self.feeding:
            self._wait(max(0.0, self._air_at - time.monotonic()))
        elif not self.forever:
            typed = f"all {self._script_lines} lines of the script are typed"
            self.stop(f"{typed if self._script_lines else 'no input is given'}, and the guest waits for more")
