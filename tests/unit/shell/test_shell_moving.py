"""Going about in a recording by commands: where one arrives, and what is told."""

from __future__ import annotations

import pytest

from tt.errors import TTError, UsageError
from tt.shell import Interrupted, Session


@pytest.mark.parametrize(
    ("line", "offset"),
    [
        ("step", 1),
        ("si 100", 100),
        ("reverse-step", -1),
        ("rsi 100", -100),
        ("forward 1_000", 1000),
        ("back 1,000", -1000),
        ("goto +5", 5),
        ("goto -5", -5),
    ],
)
def test_by_ticks(session: Session, line: str, offset: int) -> None:
    before = session.tick
    answer = session.run(line)
    assert session.tick == before + offset == answer.data["tick"]
    assert answer.lines[-1].startswith(f"{before + offset:,}  ")
    assert answer.data["instruction"] in answer.lines[-1]


def test_positions(session: Session) -> None:
    end = session.end_tick
    for text, tick in (
        ("start", 0),
        ("end", end),
        ("25%", end // 4),
        ("#100", session.trace.event(100).tick),
    ):
        session.run(f"goto {text}")
        assert session.tick == tick
    session.run("goto 1s")
    assert session.tick == session.trace.tick_at_ns(10**9)
    now_ns = session.machine.now_ns
    session.run("back 100ms")
    assert session.tick == session.trace.tick_at_ns(now_ns - 10**8)
    there = session.tick
    session.run("forward 10%")
    assert session.tick == there + end // 10
    session.run("goto -")
    assert session.tick == there


@pytest.mark.parametrize("text", ["50%", "1_000", "1,000", "+5", "-5", "#100", "1s", "@half"])
def test_a_position_alone_is_goto(session: Session, text: str) -> None:
    session.run("bookmark half 40%")
    before = session.tick
    session.run(text)
    there = session.tick
    assert there != before or text == "50%"
    session.run("goto end")
    session.run("-")
    assert session.tick == there


def test_the_place_has_a_name(session: Session) -> None:
    session.run("tbreak crc32")
    answer = session.run("rc")
    assert answer.data["symbol"] == "crc32"
    assert "crc32" in answer.lines[-1]
    before = session.run("rfin")
    assert "call" in before.lines[-1]
    assert "<crc32>" in before.lines[-1]
    assert before.data["symbol"].startswith("main+")


def test_over_calls_and_out_of_them(session: Session) -> None:
    session.run("tbreak crc32")
    session.run("rc")
    entry = session.tick
    call = session.run("reverse-finish").data["tick"]
    assert call == entry - 1
    after = session.run("next").data["tick"]
    assert after > entry + 1000
    assert session.run("reverse-next").data["tick"] == call
    session.run("step")
    assert session.run("finish").data["tick"] == after


def test_the_ends_are_told(session: Session) -> None:
    assert session.run("continue").lines[0] == "nothing stopped on the way: this is the end"
    assert "[the end: terminated with status 0]" in session.run("goto end").lines[-1]
    assert session.run("step").lines[0] == "this is the end of the recording"
    assert session.run("reverse-continue").lines[0] == "nothing stopped on the way back: this is power-on"
    assert session.run("reverse-step").lines[0] == "this is power-on"
    assert session.run("run").lines[-1].endswith("[power-on]")


def test_an_empty_line_repeats_the_last_motion(session: Session) -> None:
    before = session.tick
    session.run("step 10")
    session.run("")
    assert session.tick == before + 20
    session.run("when")
    assert session.run("").lines == []
    assert session.tick == before + 20


def test_an_empty_line_after_x_goes_on(session: Session) -> None:
    first = session.run("x/2xg 0x100000").data
    second = session.run("").data
    assert second["addr"] == first["addr"] + 16
    assert session.run("").data["addr"] == first["addr"] + 32


def test_advance(session: Session) -> None:
    session.run("break main")
    assert session.run("advance crc32").data["symbol"] == "crc32"
    assert [point.text for point in session.timeline.stops] == ["main"]
    tick = session.tick
    session.run("advance crc32")
    assert session.run("reverse-advance crc32").data["tick"] == tick


def test_a_stop_ends_many_steps(session: Session) -> None:
    session.run("break crc32")
    answer = session.run("step 10_000_000")
    assert answer.data["symbol"] == "crc32"
    assert session.run("rsi 10_000_000").data["symbol"] == "crc32"


@pytest.mark.parametrize(
    "line",
    ["goto nowhere", "goto 99999999999999", "goto @none", "goto -1_000_000_000", "back soon", "step 0",
     "step x", "restart none", "forward 1e9", "advance nothing_of_that_name", "goto #99999999", "c 0"],
)  # fmt: skip
def test_what_makes_no_sense_moves_nothing(session: Session, line: str) -> None:
    before = session.tick
    with pytest.raises(UsageError) as e:
        session.run(line)
    assert session.tick == before
    assert "\n" not in str(e.value)


def test_an_interrupt_leaves_one_where_one_was(session: Session) -> None:
    before, digest = session.tick, session.machine.digest()
    session.run("break crc32 if $rip == 0")

    def press(_tick: int) -> None:
        session.interrupt()

    session.on_progress = press
    for line in ("reverse-continue", "continue", "goto end", "last-write 0x102010"):
        with pytest.raises(Interrupted):
            session.run(line)
        assert session.tick == before
        session.on_progress = press
    session.on_progress = None
    assert session.machine.digest() == digest
    assert session.run("step").data["tick"] == before + 1


def test_the_prompt(session: Session) -> None:
    session.run("goto 1_234_567")
    assert session.prompt() == "(tt 1,234,567) "
    status = session.status()
    assert status.tick == 1_234_567
    assert 0 < status.percent < 100


def test_displays_follow(session: Session) -> None:
    assert session.run("display $rip").lines[0].startswith("1: $rip = 0x")
    session.run("display/d tick")
    answer = session.run("step")
    assert answer.lines[-1] == f"2: tick = {session.tick}"
    assert answer.data["displays"]["tick"] == session.tick
    session.run("undisplay 1")
    assert not any(line.startswith("1:") for line in session.run("step").lines)
    session.run("delete display")
    assert len(session.run("step").lines) == 1


def test_errors_are_of_ours_only(session: Session) -> None:
    for line in ("p 1/0", "p *0xffffffffffffffff", "watch 0 0", "disk cat /x", "switch nothing", "diff x"):
        with pytest.raises(TTError):
            session.run(line)
