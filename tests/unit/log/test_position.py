"""The grammar of positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt.errors import UsageError
from tt.position import Anchor, Position, format_tick, parse, resolve


@dataclass
class Place:
    tick: int = 500
    end_tick: int = 2_000_000
    bookmarks: dict[str, int] = field(default_factory=lambda: {"boot": 42, "50%": 7})

    def event_tick(self, number: int) -> int:
        if number > 9:
            raise UsageError(f"there is no event #{number}")
        return number * 100

    def tick_at_ns(self, ns: int) -> int:
        return ns // 4


@pytest.mark.parametrize(
    ("text", "tick"),
    [
        ("0", 0),
        ("1234567", 1_234_567),
        ("1_234_567", 1_234_567),
        ("1,234,567", 1_234_567),
        (" 12 ", 12),
        ("+100", 600),
        ("-100", 400),
        ("+1_000", 1500),
        ("-0", 500),
        ("50%", 1_000_000),
        ("0.5%", 10_000),
        ("100%", 2_000_000),
        ("33.333333%", 666_666),
        ("start", 0),
        ("end", 2_000_000),
        ("@boot", 42),
        ("@50%", 7),
        ("#3", 300),
        ("0.001s", 250_000),
        ("2ms", 500_000),
        ("2.5us", 625),
        ("400ns", 100),
    ],
)
def test_positions(text: str, tick: int) -> None:
    assert resolve(parse(text), Place()) == tick


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "12x",
        "1,23",
        "12,3456",
        "1__2",
        "_1",
        "1.5",
        "%",
        "-5%",
        "1e6",
        "0x10",
        "#",
        "#-1",
        "@",
        "s",
        "5m",
    ]
    + ["+-5", "5 %", "END", "٣", "1" * 100, "5ss", ".5s", "inf", "nan%", "1;2", "12\n13"],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="is not a position") as said:
        parse(text)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 250


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("2000001", "2,000,001 is past the end of the trace, 2,000,000"),
        ("-501", "1 ticks before the start"),
        ("+2_000_000", "past the end"),
        ("101%", "more than the whole"),
        ("#10", "no event #10"),
        ("@shutdown", "no bookmark 'shutdown': the trace has 50%, boot"),
        ("1s", "past the end"),
    ],
)
def test_places_that_are_not_there(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve(parse(text), Place())


def test_a_position_is_plain_data() -> None:
    assert parse("50%") == Position(Anchor.PERCENT, Fraction(50))
    assert parse("-3") == Position(Anchor.HERE, Fraction(-3))
    assert parse("12.5s") == Position(Anchor.TIME, Fraction(12_500_000_000))
    assert len({parse("end"), parse("end"), parse("@end")}) == 2


@given(st.integers(0, 2_000_000))
def test_a_printed_tick_can_be_typed(tick: int) -> None:
    assert resolve(parse(format_tick(tick)), Place()) == tick


@given(st.text(max_size=80))
def test_anything_typed_is_a_position_or_a_usage_error(text: str) -> None:
    try:
        tick = resolve(parse(text), Place())
    except UsageError as e:
        assert "\n" not in str(e)
    else:
        assert 0 <= tick <= 2_000_000
