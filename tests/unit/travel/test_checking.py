"""Whatever way a timeline goes, every event on it is compared with the record."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tt.errors import Divergence
from tt.events import Event, Kind
from tt.log import Trace
from tt.travel import Timeline


def lying(timeline: Timeline, lie: Callable[[Event], Event | None]) -> None:
    """Have the machine's door tell the subscribers what `lie` makes of each event; None: nothing."""
    door = timeline.machine.door
    tell = door._tell

    def told(event: Event) -> None:
        changed = lie(event)
        if changed is not None:
            tell(changed)

    door._tell = told  # type: ignore[method-assign]


def console_byte(event: Event) -> Event | None:
    return event._replace(data=b"?" + event.data[1:]) if event.kind is Kind.CONSOLE else event


def console_lost(event: Event) -> Event | None:
    return None if event.kind is Kind.CONSOLE else event


def timer_time(event: Event) -> Event | None:
    return event._replace(value=event.value + 1) if event.kind is Kind.TIMER else event


def batch_twice(event: Event) -> Event | None:
    return event._replace(value=event.value ^ 2) if event.kind is Kind.BATCH else event


@pytest.mark.parametrize("lie", [console_byte, console_lost, timer_time, batch_twice])
@pytest.mark.parametrize("position", ["40%", "77%"])
def test_a_wrong_event_is_found_where_it_happens(
    demo_trace: Path, lie: Callable[[Event], Event | None], position: str
) -> None:
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        timeline.seek("end")
        timeline.seek(position)
        start = timeline.tick
        lying(timeline, lie)
        kinds = {console_byte: Kind.CONSOLE, console_lost: Kind.CONSOLE, timer_time: Kind.TIMER}
        kind = kinds.get(lie, Kind.BATCH)
        ticks = [event.tick for event in trace.events(start + 1, kinds={kind})]
        # A piece of console output is compared when it ends: at the latest when something else happens.
        late = next(event.tick for event in trace.events(ticks[1] + 1) if event.kind is not kind) + 1
        with pytest.raises(Divergence):
            timeline.seek(late)
        assert start < timeline.tick <= late


def test_a_timeline_that_diverged_can_go_on(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        timeline.seek("50%")
        middle = timeline.tick, timeline.digest()
        tell = timeline.machine.door._tell
        lying(timeline, timer_time)
        with pytest.raises(Divergence):
            timeline.step(3_000_000)
        timeline.machine.door._tell = tell  # type: ignore[method-assign]
        timeline.seek("end")
        timeline.seek(middle[0])
        assert (timeline.tick, timeline.digest()) == middle


def test_every_way_agrees_with_the_record(demo_trace: Path) -> None:
    """From stored checkpoints, from kept ones, and onwards, also within console output."""
    chance = random.Random(20)
    with Trace.open(demo_trace) as trace:
        events = [event.tick for event in trace.events()]
        for _ in range(2):
            timeline = Timeline(trace)
            for _ in range(60):
                near = chance.choice(events) + chance.choice((-1, 0, 1, 2, 40))
                timeline.seek(max(0, min(near, trace.end_tick)))
                if chance.random() < 0.3:
                    timeline.keep_here()
        timeline.seek("end")
        checker = timeline._checker
        checker.finish()
        assert checker.is_through


def test_from_a_tick_alone_the_first_piece_of_output_is_compared_too(demo_trace: Path) -> None:
    """A comparison that begins in the middle of a line finds out what was printed before."""
    with Trace.open(demo_trace) as trace:
        lines = [event for event in trace.events(kinds={Kind.CONSOLE}) if len(event.data) > 8]
        for line in lines[::5]:
            timeline = Timeline(trace)
            timeline.seek(min(line.tick + 1, trace.end_tick))
            timeline._checker.go_to(timeline.tick)  # as after a checkpoint of the trace
            timeline.seek("end")
            timeline._checker.finish()
