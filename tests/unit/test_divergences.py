"""Each way in which a replay may not agree with its record is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tt.errors import Divergence
from tt.events import ANSWERS, Event, Kind
from tt.log import Trace, TraceWriter
from tt.recording import record
from tt.replay import verify
from tt.travel import Timeline
from tt.vmm.configure import configure

Events = list[Event]


@pytest.fixture(scope="module")
def host_clock(denali_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of the demo in which the host's clock answered."""
    path = tmp_path_factory.mktemp("clock") / "demo.tt"
    record(configure(denali_demo, epoch=1_700_000_000, clock="host"), path)
    return path


def retold(sound: Path, path: Path, change: Callable[[Events], Events], **summary: Any) -> Path:
    """Write a trace of the same machine with other events, another summary, and no digests."""
    with Trace.open(sound) as trace, TraceWriter(path, trace.meta) as writer:
        for name in trace.files:
            writer.add_file(name, trace.file(name))
        written = trace.disk_writes()
        events = [
            event._replace(data=next(written).data()) if event.kind is Kind.DISK_WRITE else event
            for event in trace.events()
        ]
        for event in change(events):
            writer.add(event)
        writer.seal(trace.end_tick, trace.reason, {**trace.summary, **summary})
    return path


def said(path: Path) -> str:
    """Return what `verify` says of a trace."""
    with Trace.open(path) as trace:
        verdict = verify(trace)
    assert not verdict.good
    return verdict.message


def nth(events: Events, kind: Kind, number: int = 3) -> int:
    return [at for at, event in enumerate(events) if event.kind is kind][number]


def test_retold_without_a_change_it_is_good(demo_trace: Path, tmp_path: Path) -> None:
    path = retold(demo_trace, tmp_path / "same.tt", lambda events: events)
    with Trace.open(path) as trace:
        assert verify(trace).good


def changed(kind: Kind, **fields: Any) -> Callable[[Events], Events]:
    """Return the change of one event of a kind."""

    def change(events: Events) -> Events:
        at = nth(events, kind)
        return [*events[:at], events[at]._replace(**fields), *events[at + 1 :]]

    return change


def lost(kind: Kind) -> Callable[[Events], Events]:
    """Return the loss of one event of a kind."""

    def change(events: Events) -> Events:
        at = nth(events, kind)
        return [*events[:at], *events[at + 1 :]]

    return change


def one_more(events: Events) -> Events:
    return [*events, events[-1]._replace(kind=Kind.CONSOLE, unit=0, value=0, data=b"more")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(Kind.CONSOLE, data=b"lies"), "value 0x0, data 6c696573), replayed console at"),
        (changed(Kind.DISK_WRITE, data=b"x" * 4096), "event #23: recorded disk write at tick 9,250,000"),
        (changed(Kind.DISK_WRITE, value=8), "disk write at tick 9,250,000 (unit 0, value 0x8,"),
        (
            changed(Kind.TIMER, value=77),
            "event #17: recorded timer at tick 9,023,391 (unit 0, value 0x4d), replayed timer",
        ),
        (lost(Kind.TIMER), "recorded batch at tick 9,023,391 (unit 0, value 0x1), replayed timer"),
        (lambda events: events[:-3], "the record has nothing more"),
        (one_more, "in the replay nothing more happens"),
    ],
    ids=["console", "bytes written", "place written", "time", "lost", "cut", "one more"],
)
def test_an_event_that_was_another(
    demo_trace: Path, tmp_path: Path, change: Callable[[Events], Events], says: str
) -> None:
    message = said(retold(demo_trace, tmp_path / "other.tt", change))
    assert message.startswith("replay diverges at tick ")
    assert says in message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"value": 8}, "the guest writes 8 sectors at lba 24 of disk 0, the record has 8 at lba 8"),
        ({"data": b"x" * 4096}, "the guest writes other bytes than recorded at lba 24 of disk 0, 0 bytes in"),
    ],
)
def test_a_timeline_finds_another_disk_write(
    demo_trace: Path, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    path = retold(demo_trace, tmp_path / "other.tt", changed(Kind.DISK_WRITE, **fields))
    with Trace.open(path) as trace, pytest.raises(Divergence, match=says):
        Timeline(trace).seek(9_300_000)


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ({"guest_ns": 5}, "at the end, and was 5 ns"),
        ({"ended": "a triple fault"}, "the recording ended there (a triple fault), the replay goes on"),
    ],
)
def test_an_end_that_was_another(
    demo_trace: Path, tmp_path: Path, summary: dict[str, Any], says: str
) -> None:
    message = said(retold(demo_trace, tmp_path / "other.tt", lambda events: events, **summary))
    assert says in message


def test_answers_that_were_others(host_clock: Path, tmp_path: Path) -> None:
    def cut(events: Events) -> Events:
        last = max(at for at, event in enumerate(events) if event.kind in ANSWERS)
        return [*events[:last], *events[last + 1 :]]

    def another(events: Events) -> Events:
        at = [at for at, event in enumerate(events) if event.kind in ANSWERS][5]
        return [*events[:at], events[at]._replace(unit=9), *events[at + 1 :]]

    message = said(retold(host_clock, tmp_path / "cut.tt", cut))
    assert ": the guest asks for clock (unit 0), the record has nothing more" in message
    message = said(retold(host_clock, tmp_path / "another.tt", another))
    assert ": the guest asks for clock (unit 0), the record has clock at tick " in message
