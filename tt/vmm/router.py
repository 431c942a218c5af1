"""Where the messages of devices go: to the default handler, or to parents that stand before it.

This is µDenali's hardware interposition (Whitaker et al., NSDI'04, section 3): a
device sends typed messages (`tt.vmm.messages`), and who answers them is its
implementation.  An *interposer* (a parent) may answer a message, now or at a later
tick, pass it on, or pass on another one instead.

    device ── Port.send ──> [interposer] ──> [interposer] ──> default handler
      └──── completed(token, message, answer) <─────────────────┘

What interposers do is nothing that the machine could compute, so each of their
steps passes the door: PARENT events while the device is sending, PARENT_LATER
events between two instructions, and ROUTE where a device's messages begin or cease
to go to parents.  A replay has no interposers: it takes the recorded steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tt.errors import BadInput, Divergence, UsageError
from tt.events import Event, Kind
from tt.vmm.messages import Answer, Message, decode, encode, fit, unit_of
from tt.vmm.nondeterminism import Door
from tt.vmm.state import U64, misfit, pack, unpack

Handler = Callable[[Message], Answer]
Completed = Callable[[int, Message, Answer], None]

# Steps of a parent: the first byte of PARENT and PARENT_LATER events.
PASS, ANSWER, FAIL, LATER, FORWARD, MORE = range(6)
PIECE = 512 << 10
"""Most bytes of a step in one event."""

_AT_ONCE = -1  # the token of a message whose answer the device waits for in the middle of an instruction


class Call:
    """A message in the hands of an interposer.

    Each has to be answered, failed or passed on once, now or later, from the
    thread that runs the machine.  What is done later happens between two
    instructions, at the next place where the machine takes inputs.
    """

    def __init__(
        self, router: Router, port: Port, number: int, level: int, message: Message, then: _Then | None
    ) -> None:
        self.message = message
        """What the device, or the interposer above, said."""
        self.done = False
        """Whether it has been answered, failed or passed on."""
        self._router, self._port, self._number = router, port, number
        self._level = level  # how many interposers stand below this one
        self._then = then  # who gets the answer; None: the device

    @property
    def device(self) -> str:
        """The device that sent the message: "disk0"."""
        return self._port.name

    def answer(self, data: bytes = b"") -> None:
        """Answer the message."""
        self._finish()
        if self._then is not None:
            self._then(data)
        else:
            self._router.step(self._port, self._number, ANSWER, data)

    def fail(self) -> None:
        """Answer that it failed: the guest sees an I/O error."""
        self._finish()
        if self._then is not None:
            self._then(None)
        else:
            self._router.step(self._port, self._number, FAIL)

    def pass_on(self, message: Message | None = None) -> None:
        """Let whoever stands below answer: the same message, or another one instead."""
        self._finish()
        passed = self.message if message is None else message
        if self._level:
            self._router.hand(self._port, self._number, self._level - 1, passed, self._then)
        elif self._then is not None:
            self._router.carry_out(self._port, self._number, passed, self._then)
        else:
            sent = self._port.waiting.get(self._number)
            same = sent is not None and sent.message is passed
            self._router.step(self._port, self._number, PASS, b"" if same else encode(passed))

    def ask(self, message: Message, then: Callable[[Answer], None] | None = None) -> None:
        """Send a message of one's own to whoever stands below; `then` is given the answer."""
        then = then or _ignore
        if self._level:
            self._router.hand(self._port, self._number, self._level - 1, message, then)
        else:
            self._router.carry_out(self._port, self._number, message, then)

    def after(self, ns: int, do: Callable[[], None]) -> None:
        """Call `do` once so much guest time (ns) has passed; it may answer this call, for instance."""
        self._router.after(ns, do)

    def _finish(self) -> None:
        if self.done:
            raise UsageError(f"a message of {self._port.name} is answered twice: {self.message}")
        self.done = True


_Then = Callable[[Answer], None]
Interposer = Callable[[Call], None]


@dataclass(frozen=True)
class Sent:
    """A message that went to parents and is not answered yet; `token` is the device's own name for it."""

    number: int
    token: int
    message: Message


@dataclass
class _Held:
    # A message that is not answered yet, in a saved state.
    number: U64 = 0
    token: U64 = 0
    message: bytes = b""


@dataclass
class _PortState:
    name: str = ""
    routed: bool = False
    waiting: list[_Held] = field(default_factory=list)


@dataclass
class _State:
    sent: U64 = 0
    ports: list[_PortState] = field(default_factory=list)


class Port:
    """One device's end of the router.

    `handler` answers the messages where nobody interposes; `completed(token,
    message, answer)` is given each answer.
    """

    def __init__(self, router: Router, name: str, handler: Handler, completed: Completed) -> None:
        self.name = name
        self.unit = unit_of(name)
        self.handler = handler
        self.completed = completed
        self.routed = False  # whether messages go to parents: part of the machine's state
        self.waiting: dict[int, Sent] = {}  # so are these
        self.chain: list[Interposer] = []  # the parents here; the last one sees a message first
        self._router = router
        self._at_once: Answer = None

    def send(self, message: Message, token: int = 0) -> None:
        """Send a message; `completed` is called with its answer, now or at a later tick."""
        if self.routed:
            self._router.ask_parents(self, message, token)
        else:
            self.completed(token, message, self.handler(message))

    def query(self, message: Message) -> Answer:
        """Send a message and return its answer; a parent that does not answer at once is passed over."""
        if not self.routed:
            return self.handler(message)
        self._router.ask_parents(self, message, _AT_ONCE)
        return self._at_once

    def forget(self) -> None:
        """Drop the messages that are not answered yet: the guest has reset the device."""
        self.waiting.clear()

    def complete(self, number: int, answer: Answer) -> None:
        """Give the device the answer to message `number`."""
        sent = self.waiting.pop(number)
        answer = fit(sent.message, answer)
        if sent.token == _AT_ONCE:
            self._at_once = answer
        else:
            self.completed(sent.token, sent.message, answer)


class Router:
    """The ports of one machine, and who stands before them."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._ports: dict[str, Port] = {}
        self._sent = 0  # messages that went to parents, ever
        self._sending = 0  # the number of the message being sent right now
        self._piece = b""  # of a step that comes in several events

    def port(self, device: str, handler: Handler) -> Port:
        """Make the port of a device; answers are ignored until its `completed` is set."""
        port = self._ports[device] = Port(self, device, handler, _ignored)
        return port

    def deliver(self, device: str, message: Message) -> None:
        """Give the guest what came for `device` from outside; a device that is not there ignores it."""
        port = self._ports.get(device)
        if port is not None:
            port.send(message)

    # ---- parents

    def interpose(self, device: str, interposer: Interposer) -> None:
        """Show each message of `device` to `interposer` first, from the next instruction on.

        Interposers stack: the last one in sees a message first.  Raises
        `UsageError` when the machine has no such device.
        """
        port = self._known(device)
        port.chain.append(interposer)
        self.after(0, partial(self._route, port))

    def restore(self, device: str) -> None:
        """Take every interposer off `device`; what they have not answered is passed on.

        Raises `UsageError` when there is no such device.
        """
        port = self._known(device)
        port.chain.clear()
        for number in list(port.waiting):
            self.after(0, partial(self.step, port, number, PASS))
        self.after(0, partial(self._route, port))

    def restore_all(self) -> None:
        """Take every interposer off every device that has one, or had one when this machine was saved."""
        for port in self._ports.values():
            if port.routed or port.chain:
                self.restore(port.name)

    def after(self, ns: int, do: Callable[[], None]) -> None:
        """Call `do` between two instructions, once `ns` of guest time have passed."""
        self._door.after(ns, do)

    # ---- called by ports

    def ask_parents(self, port: Port, message: Message, token: int) -> None:
        """Let the parents of a port, or the record, say what becomes of a message."""
        self._sent += 1
        number = self._sent
        port.waiting[number] = Sent(number, token, message)
        while number in port.waiting:
            step = self._door.recall(Kind.PARENT, port.unit)
            if not step:
                self._ask_live(port, number, message, token)
                return
            if self._take_step(port, number, step) == LATER:
                return

    def _ask_live(self, port: Port, number: int, message: Message, token: int) -> None:
        before, self._sending = self._sending, number
        try:
            if port.chain:
                self.hand(port, number, len(port.chain) - 1, message, None)
            if number in port.waiting and (token == _AT_ONCE or not port.chain):
                self.step(port, number, PASS)
        finally:
            self._sending = before
        if number in port.waiting:
            self._door.note(Kind.PARENT, port.unit, 0, bytes([LATER]))

    # ---- called by calls

    def hand(self, port: Port, number: int, level: int, message: Message, then: _Then | None) -> None:
        """Give a message to the interposer that has `level` others below it."""
        if level < len(port.chain):
            port.chain[level](Call(self, port, number, level, message, then))
        else:  # taken off in the meantime
            Call(self, port, number, 0, message, then).pass_on()

    def carry_out(self, port: Port, number: int, message: Message, then: _Then) -> None:
        """Let the default handler carry out a parent's own message."""
        self.step(port, number, FORWARD, encode(message), then)

    def step(
        self, port: Port, number: int, step: int, payload: bytes = b"", then: _Then | None = None
    ) -> None:
        """Take a parent's step: now where the machine can be told, else as soon as it can."""
        waits = number in port.waiting
        if not waits and step != FORWARD:
            return  # the device was reset and has forgotten the message
        if waits and number == self._sending:
            kind, value = Kind.PARENT, 0
        elif self._door.between_instructions:
            kind, value = Kind.PARENT_LATER, number if waits else 0
        else:
            self.after(0, partial(self.step, port, number, step, payload, then))
            return
        last = max(0, len(payload) - 1) // PIECE * PIECE
        for at in range(0, last, PIECE):
            self._door.note(kind, port.unit, value, bytes([MORE]) + payload[at : at + PIECE])
        self._door.note(kind, port.unit, value, bytes([step]) + payload[last:])
        answer = self._carry_out(port, number, step, payload)
        if then is not None:
            then(answer)

    # ---- a recorded step

    def take(self, event: Event) -> None:
        """Do what a ROUTE or PARENT_LATER event says; raises a `TTError` where it cannot have happened."""
        port = next((port for port in self._ports.values() if port.unit == event.unit), None)
        if port is None:
            raise BadInput(f"the record names device {event.unit}, which the machine does not have: damaged")
        if event.kind is Kind.ROUTE:
            port.routed = bool(event.value)
            return
        number = event.value
        if number and number not in port.waiting:
            raise Divergence(
                f"replay diverges at tick {event.tick:,}: a parent answers message {number} of {port.name}, "
                "which does not wait for an answer"
            )
        self._take_step(port, number, event.data)

    def _take_step(self, port: Port, number: int, step: bytes) -> int:
        code, payload = step[0] if step else MORE + 1, self._piece + step[1:]
        if code > MORE or (not number and code not in (FORWARD, MORE)):
            raise BadInput(f"a parent's step cannot be read ({step[:20].hex()}): the trace is damaged")
        self._piece = payload if code == MORE else b""
        if code not in (MORE, LATER):
            self._carry_out(port, number, code, payload)
        return code

    def _carry_out(self, port: Port, number: int, step: int, payload: bytes) -> Answer:
        if step == FORWARD:
            message = decode(payload)
            return fit(message, port.handler(message))
        if step == PASS:
            message = decode(payload) if payload else port.waiting[number].message
            port.complete(number, port.handler(message))
        else:
            port.complete(number, payload if step == ANSWER else None)
        return None

    # ---- state

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; empty as long as no message ever went to a parent."""
        ports = [
            _PortState(
                name,
                port.routed,
                [_Held(s.number, s.token, encode(s.message)) for s in port.waiting.values()],
            )
            for name, port in self._ports.items()
            if port.routed or port.waiting
        ]
        return pack(_State(self._sent, ports)) if self._sent or ports else {}

    def start_over(self) -> None:
        """Become as at power-on: no message ever went to a parent; the interposers stay."""
        self._sent = 0
        for port in self._ports.values():
            port.routed, port.waiting = False, {}

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the interposers stay.  Raises `BadState`."""
        saved = unpack(_State, state, "the router")
        if not saved.sent and not saved.ports:
            raise misfit("the router", "it is left out as long as no message went to a parent")
        ports: dict[str, tuple[bool, dict[int, Sent]]] = {}
        for at, entry in enumerate(saved.ports):
            where = f"the router.ports[{at}]"
            if entry.name not in self._ports or entry.name in ports:
                raise misfit(where, f"{entry.name[:20]!r} is not a device, or is here twice")
            if not entry.routed and not entry.waiting:
                raise misfit(where, "a port with nothing to say is left out")
            waiting: dict[int, Sent] = {}
            for held in entry.waiting:
                try:
                    message = decode(held.message)
                except BadInput as e:
                    raise misfit(where, str(e)) from None
                if held.number > saved.sent or held.number <= max(waiting, default=0):
                    raise misfit(where, f"message {held.number} is out of order, of {saved.sent}")
                waiting[held.number] = Sent(held.number, held.token, message)
            ports[entry.name] = entry.routed, waiting
        self._sent = saved.sent
        for name, port in self._ports.items():
            port.routed, port.waiting = ports.get(name, (False, {}))

    # ---- inside

    def _route(self, port: Port) -> None:
        wanted = bool(port.chain)
        if port.routed != wanted:
            self._door.note(Kind.ROUTE, port.unit, int(wanted))
            port.routed = wanted

    def _known(self, device: str) -> Port:
        try:
            return self._ports[device]
        except KeyError:
            known = ", ".join(self._ports) or "none"
            raise UsageError(f"no device {device!r} sends messages (those that do: {known})") from None


def _ignored(token: int, message: Message, answer: Answer) -> None:
    """Take an answer that says nothing."""


def _ignore(answer: Answer) -> None:
    """Take the answer to a parent's own message."""
