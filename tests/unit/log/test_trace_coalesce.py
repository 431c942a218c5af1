"""Console runs: the same for the same events, whatever happens in between."""

from __future__ import annotations

from boot_stream import boot_stream
from hypothesis import given
from hypothesis import strategies as st

from tt.events import Event, Kind
from tt.log.coalesce import MAX_RUN_BYTES, MAX_RUN_TICKS, ConsoleCoalescer
from tt.log.text import MAX_LINE, lines


def printed(tick: int, text: bytes, unit: int = 0) -> Event:
    return Event(tick, Kind.CONSOLE, unit, 0, text)


def coalesce(events: list[Event], expire_at: frozenset[int] = frozenset()) -> list[Event]:
    runs = []
    coalescer = ConsoleCoalescer()
    for at, event in enumerate(events):
        if at in expire_at:
            runs += coalescer.expire(event.tick)
        runs += coalescer.add(event)
    return runs + coalescer.flush()


def test_a_line_is_one_run_at_its_first_byte() -> None:
    events = [printed(10 + at, bytes([byte])) for at, byte in enumerate(b"ok\nno")]
    assert coalesce(events) == [printed(10, b"ok\n"), printed(13, b"no")]


def test_a_run_ends_before_other_events_and_units() -> None:
    irq = Event(2, Kind.IRQ, 0, 32)
    events = [printed(1, b"a"), irq, printed(3, b"b"), printed(4, b"c", unit=1)]
    assert coalesce(events) == events


def test_a_run_ends_when_it_is_long_or_old() -> None:
    assert [len(run.data) for run in coalesce([printed(0, b"x" * 150)])] == [MAX_RUN_BYTES, MAX_RUN_BYTES, 22]
    late = [printed(0, b"a"), printed(MAX_RUN_TICKS, b"b"), printed(MAX_RUN_TICKS + 1, b"c")]
    assert coalesce(late) == [printed(0, b"ab"), printed(MAX_RUN_TICKS + 1, b"c")]


consoles = st.builds(
    Event,
    st.integers(0, 3 * MAX_RUN_TICKS),
    st.sampled_from([Kind.CONSOLE, Kind.CONSOLE, Kind.CONSOLE, Kind.IRQ]),
    st.sampled_from([0, 0, 0, 1]),
    st.just(0),
    st.binary(max_size=3),
)


@given(st.lists(consoles, max_size=40), st.frozensets(st.integers(0, 40)))
def test_expiring_changes_nothing_and_order_holds(events: list[Event], expire_at: frozenset[int]) -> None:
    events.sort(key=lambda event: event.tick)
    runs = coalesce(events)
    assert coalesce(events, expire_at) == runs
    assert [run.tick for run in runs] == sorted(run.tick for run in runs)
    for unit in (0, 1):
        before = b"".join(e.data for e in events if e.kind is Kind.CONSOLE and e.unit == unit)
        after = b"".join(e.data for e in runs if e.kind is Kind.CONSOLE and e.unit == unit)
        assert before == after
    assert coalesce(runs) == runs  # so a log can be fed through again


def test_runs_of_a_boot_are_few() -> None:
    events = boot_stream()
    runs = coalesce(events)
    assert sum(e.kind is Kind.CONSOLE for e in events) > 20 * sum(e.kind is Kind.CONSOLE for e in runs)


def test_lines() -> None:
    runs = [(5, 0, b"Debian "), (9, 1, b"other\n"), (12, 0, b"login\r\nroot"), (20, 0, "é".encode()[:1])]
    runs += [(30, 0, "é".encode()[1:])]
    assert list(lines(runs)) == [(9, 1, "other"), (5, 0, "Debian login"), (12, 0, "rooté")]


def test_a_line_without_end_does_not_fill_memory() -> None:
    pieces = list(lines((at, 0, b"x" * 1000) for at in range(200)))
    assert max(len(text) for _tick, _unit, text in pieces) <= MAX_LINE + 1000
    assert sum(len(text) for _tick, _unit, text in pieces) == 200_000
