"""How lines become commands: names, beginnings, formats, separators; and how commands explain themselves."""

from __future__ import annotations

import pytest

from tt.errors import UsageError
from tt.shell import COMMANDS
from tt.shell.command import THEMES, find, names, parse, split
from tt.shell.commands.housekeeping import explain
from tt.shell.commands.network import as_text

# What fingers know from gdb, rr and WinDbg's TTD, and what it has to be here.
FINGERS = {
    "si": "step",
    "stepi": "step",
    "s": "step",
    "rsi": "reverse-step",
    "reverse-stepi": "reverse-step",
    "n": "next",
    "ni": "next",
    "rn": "reverse-next",
    "fin": "finish",
    "rfin": "reverse-finish",
    "c": "continue",
    "rc": "reverse-continue",
    "b": "break",
    "tb": "tbreak",
    "d": "delete",
    "i": "info",
    "p": "print",
    "r": "run",
    "h": "help",
    "q": "quit",
    "backtrace": "bt",
    "disassemble": "disas",
    "seek-ticks": "goto",
    "when-ticks": "when",
    "checkpoint": "bookmark",
    "g-": "reverse-continue",
    "p-": "reverse-next",
    "t-": "reverse-step",
    "!tt": "goto",
    "where": "when",
    "u": "advance",
}


@pytest.mark.parametrize("typed", FINGERS)
def test_names_that_fingers_know(typed: str) -> None:
    found = find(typed)
    assert found.name == FINGERS[typed]
    assert parse(typed if found.most == 0 else f"{typed} 1").command is found


@pytest.mark.parametrize(
    ("begun", "name"),
    [("reverse-c", "reverse-continue"), ("timel", None), ("cont", "continue"), ("dig", "digest")],
)
def test_unique_beginnings(begun: str, name: str | None) -> None:
    if name is not None:
        assert find(begun).name == name
    else:
        with pytest.raises(UsageError, match="may be timeline, timelines"):
            find(begun)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean break"):
        find("brek")
    with pytest.raises(UsageError, match=r"^'fly' is no command: `help` lists them$"):
        find("fly")


def test_formats_belong_to_some_commands() -> None:
    call = parse("x/8xg $rsp + 8")
    assert (call.command.name, call.arguments.form, call.arguments.text) == ("x", "8xg", "$rsp + 8")
    assert parse("p/x 5").arguments.form == "x"
    with pytest.raises(UsageError, match="goto takes no /x"):
        parse("goto/x 5")


@pytest.mark.parametrize("line", ["goto", "goto 1 2", "x", "when now", "ignore 1"])
def test_the_number_of_words(line: str) -> None:
    with pytest.raises(UsageError, match="it is "):
        parse(line)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a; b;c", ["a", " b", "c"]),
        ('catch console "a;b"; c', ['catch console "a;b"', " c"]),
        ("p 'x;y", ["p 'x;y"]),
        ("a\n# a comment; c\n b", ["a", " b"]),
        ("goto #17", ["goto #17"]),
        ("#17\n# 17", ["#17"]),
        ("si; type ls; exit", ["si", " type ls; exit"]),
        ("", []),
    ],
)
def test_lines_are_cut_at_semicolons_outside_quotes(text: str, parts: list[str]) -> None:
    assert list(split(text)) == parts


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_explains_itself(command: object) -> None:
    from tt.shell import Command

    assert isinstance(command, Command)
    assert command.theme in THEMES
    assert command.about.endswith("."), command.about
    assert len(command.about) <= 75
    assert command.examples
    for line, what in command.examples:
        assert line and what
        assert parse(line.replace("`", "")) or True
    text = "\n".join(explain(command))
    assert command.about in text
    assert all(line in text for line, _what in command.examples)


def test_no_name_means_two_commands() -> None:
    assert len(names()) == len(set(names()))
    for name in COMMANDS:
        assert find(name).name == name


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ["GET / HTTP/1.1", "Host: x", ""]),
        ("grüß\x1b[1m\tGott".encode(), ["grüß\\x1b[1m\\tGott"]),
        (
            b"HTTP/1.0 200 OK\r\n\r\n" + bytes(range(200)) * 10,
            ["HTTP/1.0 200 OK", "", f"2,000 bytes that are no text: {bytes(range(16)).hex(' ')} ..."],
        ),
        (b"\xff\xfd\x01", ["3 bytes that are no text: ff fd 01"]),
        (b"x" * 200 + b"\x00\nmore", ["x" * 200 + "\\x00", "more"]),
        (b"y" * (70 << 10), ["y" * (64 << 10), "... 6,144 bytes more"]),
        (b"", []),
    ],
)  # fmt: skip
def test_what_a_side_of_a_connection_said(data: bytes, told: list[str]) -> None:
    assert as_text(data) == told
