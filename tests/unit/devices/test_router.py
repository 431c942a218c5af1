"""The message router: default handlers, parents before them, and what passes the door."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st
from virtio_driver import RamDisk

from tt.errors import BadInput, Divergence, UsageError
from tt.events import Event, Kind
from tt.vmm.live import LiveSource
from tt.vmm.messages import (
    Answer,
    ConsoleInput,
    ConsoleWrite,
    DiskDiscard,
    DiskFlush,
    DiskRead,
    DiskSize,
    DiskWrite,
    Message,
    TimerExpired,
    decode,
    encode,
    fit,
    unit_of,
)
from tt.vmm.nondeterminism import Door, Quiet
from tt.vmm.router import FORWARD, LATER, MORE, PASS, PIECE, Call, Router
from tt.vmm.wiring import size_of, wire_disk


class Recorded(Quiet):
    """A source that gives recorded steps again."""

    def __init__(self, events: list[Event]) -> None:
        self.answers = [event for event in events if event.kind is Kind.PARENT]
        self.inputs = [event for event in events if event.kind in (Kind.ROUTE, Kind.PARENT_LATER)]

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        event = self.answers.pop(0)
        assert (event.tick, event.kind, event.unit) == (tick, kind, unit)
        return event.data

    def take_inputs(self, tick: int) -> list[Event]:
        due = [event for event in self.inputs if event.tick == tick]
        self.inputs = [event for event in self.inputs if event.tick != tick]
        return due


class Bench:
    """A disk behind a router; `go` moves to a tick and takes inputs there, as a machine does."""

    def __init__(self, events: list[Event] | None = None) -> None:
        self.rig = Rig()
        rig = self.rig
        source = None if events is None else Recorded(events)
        rig.door = Door(lambda: rig.ns, source, rig.clock)
        rig.door.subscribe(rig.events.append)
        self.disk = RamDisk(16)
        self.router = Router(rig.door)
        self.port = wire_disk(self.router, rig.door, self.disk, 0)
        self.answers: list[tuple[int, int, Answer]] = []
        self.port.completed = lambda token, message, answer: self.answers.append((rig.ns, token, answer))

    def go(self, tick: int) -> None:
        self.rig.ns = tick
        for event in self.rig.door.take_inputs():
            self.router.take(event)


def parents(bench: Bench, *interposers: Callable[[Call], None]) -> Bench:
    for interposer in interposers:
        bench.router.interpose("disk0", interposer)
    bench.go(1)
    return bench


def the_same_again(first: Bench, drive: Callable[[Bench], None]) -> None:
    """A bench with the record and no parents does the same."""
    second = Bench(list(first.rig.events))
    second.go(1)
    drive(second)
    assert second.answers == first.answers
    assert second.disk.data == first.disk.data
    assert second.rig.events == first.rig.events
    assert second.router.save() == first.router.save()


def test_default_handler() -> None:
    bench = Bench()
    for token, message in enumerate(
        [DiskWrite(2, b"x" * 1024), DiskRead(3, 1), DiskFlush(), DiskRead(16, 1), DiskDiscard(3, 1)]
    ):
        bench.port.send(message, token)
    assert [answer for _, _, answer in bench.answers] == [b"", b"x" * 512, b"", None, b""]
    assert bench.disk.log == [("write", 2, 2), ("read", 3, 1), ("flush", 0, 0), ("write", 3, 1)]
    assert [event.kind for event in bench.rig.events] == [Kind.DISK_WRITE, Kind.DISK_FLUSH, Kind.DISK_WRITE]
    assert size_of(bench.port) == 16
    assert bench.router.save() == {}


def test_parents_stack_and_come_off() -> None:
    seen: list[str] = []

    def shout(call: Call) -> None:
        seen.append("shout")
        if isinstance(call.message, DiskRead):
            call.ask(call.message, lambda answer: call.answer((answer or b"").upper()))
        else:
            call.pass_on()

    def swallow(call: Call) -> None:
        seen.append("swallow")
        if isinstance(call.message, DiskWrite):
            call.answer()
        else:
            call.pass_on()

    def drive(bench: Bench) -> None:
        bench.port.send(DiskRead(0, 1), 1)
        bench.port.send(DiskWrite(0, b"z" * 512), 2)
        bench.go(5)
        bench.port.send(DiskWrite(0, b"z" * 512), 3)

    bench = Bench()
    bench.disk.data[:512] = b"q" * 512
    parents(bench, swallow, shout)
    bench.port.send(DiskRead(0, 1), 1)
    bench.port.send(DiskWrite(0, b"z" * 512), 2)
    assert bench.disk.data[:1] == b"q"
    bench.router.restore("disk0")
    bench.go(5)
    bench.port.send(DiskWrite(0, b"z" * 512), 3)
    assert bench.disk.data[:1] == b"z"
    assert seen == ["shout", "swallow"] * 2
    assert bench.answers == [(1, 1, b"Q" * 512), (1, 2, b""), (5, 3, b"")]
    again = Bench(list(bench.rig.events))
    again.disk.data[:512] = b"q" * 512
    again.go(1)
    drive(again)
    assert again.answers == bench.answers
    assert again.rig.events == bench.rig.events


def test_what_is_passed_on_as_it_is_takes_two_bytes() -> None:
    bench = parents(Bench(), lambda call: call.pass_on())
    bench.port.send(DiskWrite(0, b"z" * 512), 2)
    told = [(event.kind, event.value, event.data[:1]) for event in bench.rig.events]
    assert told == [(Kind.ROUTE, 1, b""), (Kind.PARENT, 0, bytes([PASS])), (Kind.DISK_WRITE, 0, b"z")]
    assert bench.rig.events[1].data == bytes([PASS])
    the_same_again(bench, lambda b: b.port.send(DiskWrite(0, b"z" * 512), 2))


def test_another_message_is_passed_on() -> None:
    def mirror(call: Call) -> None:
        assert isinstance(call.message, DiskWrite)
        call.ask(DiskWrite(8, call.message.data))
        call.pass_on(DiskWrite(call.message.lba + 1, call.message.data))

    bench = parents(Bench(), mirror)
    bench.port.send(DiskWrite(0, b"z" * 512), 2)
    assert bench.disk.log == [("write", 8, 1), ("write", 1, 1)]
    assert bench.answers == [(1, 2, b"")]
    the_same_again(bench, lambda b: b.port.send(DiskWrite(0, b"z" * 512), 2))


def test_an_answer_that_comes_later() -> None:
    waiting: list[Call] = []
    bench = parents(Bench(), waiting.append)
    bench.port.send(DiskRead(0, 1), 7)
    bench.port.send(DiskFlush(), 8)
    assert bench.answers == []
    assert bench.rig.events[-1].data == bytes([LATER])
    bench.go(10)
    waiting[1].fail()
    waiting[0].after(20, lambda: waiting[0].answer(b"i" * 512))
    assert bench.rig.door.next_input() == 11, "at the next tick: inputs of this one have been taken"
    assert bench.answers == [], "not in the middle of an instruction"
    bench.go(20)
    assert bench.answers == [(20, 8, None)]
    bench.go(30)
    assert bench.answers == [(20, 8, None), (30, 7, b"i" * 512)]
    with pytest.raises(UsageError, match="twice"):
        waiting[0].pass_on()

    def drive(again: Bench) -> None:
        again.port.send(DiskRead(0, 1), 7)
        again.port.send(DiskFlush(), 8)
        for tick in (10, 20, 30):
            again.go(tick)

    the_same_again(bench, drive)


def test_a_key_that_comes_too_late_for_its_tick() -> None:
    """Once the inputs of a tick are taken and its timers have fired, a key waits for the next tick."""
    rig = Rig()
    source = LiveSource()
    door = Door(lambda: rig.ns, source, rig.clock)
    assert list(door.take_inputs()) == []
    source.type(b"x")
    assert door.next_input() == 1
    rig.ns = 1
    assert [event.tick for event in door.take_inputs()] == [1]
    rig.ns = 5
    source.type(b"x")
    assert door.next_input() == 5, "nothing has happened here yet"


def test_saved_with_a_message_under_way() -> None:
    waiting: list[Call] = []
    bench = parents(Bench(), waiting.append)
    bench.port.send(DiskWrite(3, b"w" * 512), 7)
    state = json.loads(json.dumps(bench.router.save()))
    bench.go(10)
    waiting[0].pass_on()
    bench.go(11)
    later = [event for event in bench.rig.events if event.tick > 1]
    other = Bench(later)
    other.router.load(state)
    assert other.router.save() == state
    other.go(11)
    assert other.answers == bench.answers == [(11, 7, b"")]
    assert other.disk.data == bench.disk.data
    assert other.rig.events == later
    assert other.router.save() == bench.router.save()


def test_messages_of_a_device_that_was_reset() -> None:
    waiting: list[Call] = []
    bench = parents(Bench(), waiting.append)
    bench.port.send(DiskWrite(3, b"w" * 512), 7)
    bench.port.forget()
    waiting[0].pass_on()
    bench.go(9)
    assert bench.answers == []
    assert bench.disk.log == []


def test_removing_a_parent_passes_on_what_it_has_not_answered() -> None:
    bench = parents(Bench(), lambda call: None)
    bench.port.send(DiskWrite(3, b"w" * 512), 7)
    bench.router.restore_all()
    bench.go(4)
    assert bench.answers == [(4, 7, b"")]
    assert [event.kind for event in bench.rig.events[-3:]] == [Kind.PARENT_LATER, Kind.DISK_WRITE, Kind.ROUTE]


def test_what_has_to_be_answered_at_once() -> None:
    calls: list[Call] = []

    def double(call: Call) -> None:
        calls.append(call)
        if len(calls) == 1:
            call.ask(DiskSize(), lambda answer: call.answer((2 * 16).to_bytes(8, "little")))

    bench = parents(Bench(), double)
    assert [size_of(bench.port), size_of(bench.port)] == [32, 16]
    calls[1].answer(bytes(8))
    bench.go(2)
    assert bench.answers == []


def test_a_parent_that_writes_by_itself() -> None:
    calls: list[Call] = []

    def keep(call: Call) -> None:
        calls.append(call)
        call.answer()

    bench = parents(Bench(), keep)
    bench.port.send(DiskWrite(0, b"a" * 512), 1)
    answers: list[Answer] = []
    calls[0].ask(DiskWrite(5, b"b" * 512), answers.append)
    calls[0].ask(DiskWrite(99, b"b" * 512), answers.append)
    bench.go(6)
    assert answers == [b"", None]
    assert bench.disk.log == [("write", 5, 1)]

    def drive(again: Bench) -> None:
        again.port.send(DiskWrite(0, b"a" * 512), 1)
        again.go(6)

    the_same_again(bench, drive)


def test_a_step_larger_than_an_event() -> None:
    size = 3 * PIECE
    bench = Bench()
    bench.disk = RamDisk(size // 512)
    bench.port = wire_disk(bench.router, bench.rig.door, bench.disk, 1)
    taken: list[Answer] = []
    bench.port.completed = lambda token, message, answer: taken.append(answer)
    bench.router.interpose("disk1", lambda call: call.answer(bytes(range(256)) * (size // 256)))
    bench.go(1)
    bench.port.send(DiskRead(0, size // 512))
    told = [event.data for event in bench.rig.events if event.kind is Kind.PARENT]
    assert [data[0] for data in told[:-1]] == [MORE] * (len(told) - 1)
    assert max(map(len, told)) <= PIECE + 1
    again = Bench(list(bench.rig.events))
    again.port = wire_disk(again.router, again.rig.door, RamDisk(size // 512), 1)
    again.port.completed = lambda token, message, answer: taken.append(answer)
    again.go(1)
    again.port.send(DiskRead(0, size // 512))
    assert taken[0] == taken[1] == bytes(range(256)) * (size // 256)


def test_answer_of_the_wrong_length() -> None:
    """A parent that answers nonsense is an I/O error, not a crash of the device."""
    bench = parents(Bench(), lambda call: call.answer(b"short"))
    bench.port.send(DiskRead(0, 1), 1)
    assert bench.answers == [(1, 1, None)]


def test_unknown_device() -> None:
    router = Bench().router
    with pytest.raises(UsageError, match=r"no device 'disk9'.*disk0"):
        router.interpose("disk9", lambda call: None)
    with pytest.raises(UsageError, match="disk9"):
        router.restore("disk9")


def test_damaged_records() -> None:
    bench = parents(Bench(), lambda call: None)
    for event, words in (
        (Event(2, Kind.ROUTE, 99, 1), "device 99"),
        (Event(2, Kind.PARENT_LATER, 0, 0, bytes([PASS])), "step cannot be read"),
        (Event(2, Kind.PARENT_LATER, 0, 0, b""), "step cannot be read"),
        (Event(2, Kind.PARENT_LATER, 0, 0, bytes([FORWARD, 99])), "message of a device cannot be read"),
        (Event(2, Kind.PARENT_LATER, 0, 0, bytes([77])), "step cannot be read"),
    ):
        with pytest.raises(BadInput, match=words):
            bench.router.take(event)
    with pytest.raises(Divergence, match="answers message 5 of disk0"):
        bench.router.take(Event(2, Kind.PARENT_LATER, 0, 5, bytes([PASS])))


_U64 = st.integers(0, (1 << 64) - 1)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(DiskRead, _U64, _U64),
    st.builds(DiskWrite, _U64, st.integers(0, 3).map(lambda n: b"s" * 512 * n)),
    st.just(DiskFlush()),
    st.builds(DiskDiscard, _U64, _U64),
    st.just(DiskSize()),
    st.builds(ConsoleWrite, st.binary()),
    st.builds(ConsoleInput, st.binary()),
    st.builds(TimerExpired, _U64),
)


@given(MESSAGES)
def test_messages_as_bytes(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=40))
def test_bytes_that_are_no_message(raw: bytes) -> None:
    try:
        assert encode(decode(raw)) == raw
    except BadInput as e:
        assert "cannot be read" in str(e)


def test_names_and_lengths() -> None:
    assert [unit_of(name) for name in ("disk0", "disk3", "console0", "timer1")] == [0, 48, 1, 18]
    assert fit(DiskSize(), b"1234567") is None
    assert fit(ConsoleWrite(b"x"), b"what") == b""
