"""Colours for answers, by pygments: code, memory, and places."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from pygments.formatters import TerminalFormatter  # type: ignore[import-untyped]
from pygments.lexers import NasmLexer  # type: ignore[import-untyped]
from pygments.token import Token  # type: ignore[import-untyped]

from tt.inspect import Answer

Piece = tuple[Any, str]

_CODE = re.compile(
    r"(?P<arrow>->|  ) (?P<addr>0x[0-9a-f]+)(?P<mid>  .*?)(?P<raw>[0-9a-f]{2,30})(?P<gap> +)(?P<text>[a-z].*)"
)
_DUMP = re.compile(r"(?P<addr>0x[0-9a-f]+(?: <[^>]*>)?:?)(?P<body>  .*)")
_PLACE = re.compile(r"(?P<tick>[0-9,]+)  (?P<name>\S+)   (?P<text>.*?)(?P<state>   \[.*)?")
_WORD = re.compile(r"(0x[0-9a-f]+|[0-9a-f]{2,16})(?=\s|$)|(<[^>]*>)|(\s+)|(\S)")


def painted(answer: Answer) -> list[str]:
    """Return an answer's lines with the colours of a terminal."""
    paint = {"code": _code, "memory": _memory, "place": _place}.get(answer.look)
    if paint is None:
        return answer.lines
    return [_shown(list(paint(line))) for line in answer.lines]


def _shown(pieces: list[Piece]) -> str:
    out = io.StringIO()
    _formatter().format(iter(pieces), out)
    return out.getvalue().rstrip("\n")


@cache
def _formatter() -> TerminalFormatter:
    return TerminalFormatter(bg="dark")


@cache
def _lexer() -> NasmLexer:
    return NasmLexer()


def _assembly(text: str) -> Iterator[Piece]:
    for kind, piece in _lexer().get_tokens(text):
        yield kind, piece.rstrip("\n")


def _code(line: str) -> Iterator[Piece]:
    match = _CODE.fullmatch(line)
    if match is None:
        yield Token.Text, line
        return
    here = match["arrow"] == "->"
    yield (Token.Generic.Strong if here else Token.Text), f"{match['arrow']} "
    yield Token.Name.Label if here else Token.Comment, match["addr"]
    yield Token.Name.Function, match["mid"]
    yield Token.Comment, f"{match['raw']}{match['gap']}"
    yield from _assembly(match["text"])


def _memory(line: str) -> Iterator[Piece]:
    match = _DUMP.fullmatch(line)
    if match is None:
        yield Token.Text, line
        return
    yield Token.Comment, match["addr"]
    body = match["body"]
    text_at = 2 + 23 + 2 + 23 + 2  # of a dump in bytes: the text on the right is shown as it is
    is_dump = re.match(r"  [0-9a-f]{2}( |$)", body) is not None
    numbers, text = (body[:text_at], body[text_at:]) if is_dump else (body, "")
    for word in _WORD.finditer(numbers):
        value, name, _blank, _other = word.groups()
        if value is not None:
            zero = not value.removeprefix("0x").strip("0")
            yield Token.Comment if zero else Token.Number.Hex, value
        else:
            yield Token.Name.Function if name else Token.Text, word[0]
    yield Token.String, text


def _place(line: str) -> Iterator[Piece]:
    match = _PLACE.fullmatch(line)
    if match is None:
        yield Token.Text, line
        return
    yield Token.Generic.Strong, match["tick"]
    yield Token.Name.Function, f"  {match['name']}   "
    yield from _assembly(match["text"])
    if match["state"]:
        yield Token.Comment, match["state"]
