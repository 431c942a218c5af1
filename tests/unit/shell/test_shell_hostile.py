"""Whatever is typed, the answer is an answer or one line of complaint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.errors import TTError
from tt.log import Trace
from tt.shell import COMMANDS, Session
from tt.shell.command import names, split
from tt.shell.completion import complete
from tt.shell.paint import painted
from tt.shell.strip import Row, draw, spread

# What takes long, makes files or waits for somebody is tried elsewhere.
_LEFT_OUT = {"fork", "gdb", "switch", "symbols", "bisect", "diff", "search", "digest"}
_WORDS = st.sampled_from(
    [
        *("$rax", "main", "crc32", "0x1000", "8", "-1", "if", "1 == 1", "tick", "+", "*", "(", ")", "[", "]"),
        *("u8[", "'", '"', "/", "@", "#", "%", "50%", "end", "ls", "cat", "console", "disk", "syscall", "é"),
        *("0xffffffffffffffff", "99999999999999999999999", "\x1b[2J", "\0", "1_000", "1,000", "=", "<", "in"),
        *("..", "bookmark", "display"),
    ]
)
_STRANGE = [
    *("(" * 5000, "-" * 900 + "1", "9" * 5000, "a" * 9000, "\ud800", "' " * 100, "$" * 50),
    *("/etc", "..", "~nobody_of_that_name/x", "a\0b"),
]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FORMS = st.sampled_from(
    ["", "", "", "/x", "/8xg", "/3i", "/s", "/999999999x", "/-1x", "/é", "/", "/p", "/f", "/2c"]
)


@pytest.fixture(scope="module")
def shared(demo_trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return one session for all that is typed here."""
    path = tmp_path_factory.mktemp("hostile") / "demo.tt"
    path.write_bytes(demo_trace.read_bytes())
    with Trace.open(path) as trace:
        session = Session(trace)
        session.timeline.seek(trace.end_tick // 2)
        yield session


def typed(session: Session, line: str) -> None:
    """Type a line; whatever is refused leaves one where one was."""
    complete(session, line)
    for part in split(line):
        before = session.tick
        try:
            answer = session.run(part)
        except TTError as e:
            assert str(e)
            assert "\n" not in str(e)
            assert session.tick == before
            continue
        assert all("\n" not in text and "\x1b" not in text and "\0" not in text for text in answer.lines)
        plain = [_COLOUR.sub("", line).rstrip() for line in painted(answer)]
        assert plain == [line.rstrip() for line in answer.lines]
    if len(session.timeline.stops) > 5:
        session.timeline.stops.clear()
    session.displays.clear()
    session.ended = False


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from([name for name in names() if name not in _LEFT_OUT]),
    form=_FORMS,
    words=st.lists(_WORDS, max_size=5),
    glue=st.sampled_from([" ", " ", ""]),
)
def test_commands_with_odd_arguments(
    shared: Session, name: str, form: str, words: list[str], glue: str
) -> None:
    from tt.shell.command import find

    if find(name).name not in _LEFT_OUT:
        typed(shared, f"{name}{form} {glue.join(words)}")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(line=st.text(max_size=60))
def test_any_text(shared: Session, line: str) -> None:
    if not line.strip().startswith(tuple("fgsbd")):
        typed(shared, line)


@pytest.mark.parametrize("text", _STRANGE, ids=lambda text: ascii(text[:8]))
def test_long_and_strange_arguments(shared: Session, text: str) -> None:
    for name in sorted(set(COMMANDS) - {"fork", "gdb", "quit"}):
        try:
            typed(shared, f"{name} {text}")
        except Exception as e:
            e.add_note(f"typed: {name} and {text[:40]!a}")
            raise


def test_a_line_without_end(shared: Session) -> None:
    with pytest.raises(TTError, match="characters"):
        shared.run("p " + "1" * 20_000)


@settings(max_examples=200, deadline=None)
@given(
    ticks=st.lists(st.integers(0, 10**12), max_size=50),
    here=st.integers(0, 10**12),
    end=st.integers(0, 10**12),
    inner=st.integers(1, 200),
    blocks=st.booleans(),
)
def test_any_strip(ticks: list[int], here: int, end: int, inner: int, blocks: bool) -> None:
    counts = spread(ticks, end, inner)
    assert sum(counts) == len(ticks)
    lines = draw([Row("row", counts)], min(here, end), end, ("0 s", "1 s", "2 s"), 80, blocks)
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    if not blocks:
        assert all(line.isascii() for line in lines)
    if ticks and inner < 60:
        assert lines[0].strip("row |0123456789")
