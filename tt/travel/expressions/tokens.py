"""Cutting an expression into tokens, and saying where it is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tt.errors import UsageError

LONGEST = 1000  # characters of an expression
_LONGEST_NUMBER = 90  # 64 binary digits, with underscores between most of them

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[0-9]\w*)
    | (?P<char>'(?:[^'\\]|\\.)*')
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<register>\$\w*)
    | (?P<name>[A-Za-z_][\w.]*)
    | (?P<op>&&|\|\||==|!=|<=|>=|<<|>>|[-+*/%<>&|^!~?:()\[\]])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_NUMBER = re.compile(r"(0x[0-9a-f_]+|0b[01_]+|0o[0-7_]+|0|[1-9][0-9_]*)(u|l|ul|lu|ll|ull|llu)?")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, "e": 27}
_HINTS = {
    "=": "`==` compares, nothing is assigned here",
    ",": "write 1_000, without commas",
    ".": "there are only whole numbers here",
}


class ExpressionError(UsageError):
    """An expression is wrong at `column` (from 1) of `text`."""

    def __init__(self, message: str, text: str, column: int) -> None:
        self.message, self.text, self.column = message, text, column
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        super().__init__(f"{message}: column {column} of {shown!r}")


class UnknownName(ExpressionError):
    """A name in an expression is unknown: no symbol has it, and it is nothing else."""


@dataclass(frozen=True)
class Token:
    """A piece of an expression: `kind` is a group of the pattern above; `column` counts from 1."""

    kind: str
    text: str
    column: int


def tokens(text: str) -> list[Token]:
    """Return the tokens of an expression, the last of kind `end`; raises `ExpressionError`."""
    if len(text) > LONGEST:
        raise ExpressionError(f"an expression has at most {LONGEST:,} characters", text, LONGEST)
    found: list[Token] = []
    at = 0
    while not found or found[-1].kind != "end":
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            wrong = text[at : at + 1]
            hint = _HINTS.get(
                wrong, "the quote is not closed" if wrong in "\"'" else "that means nothing here"
            )
            raise ExpressionError(f"{wrong!r}: {hint}", text, at + 1)
        found.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        at = match.end()
    return found


def number(token: Token, text: str) -> tuple[int, bool]:
    """Return the value of a number or a character, and whether it must be unsigned."""
    if token.kind == "char":
        data = unescape(token.text[1:-1])
        if len(data) != 1:
            raise ExpressionError("a character is one byte between quotes", text, token.column)
        return data[0], False
    match = _NUMBER.fullmatch(token.text.lower()) if len(token.text) <= _LONGEST_NUMBER else None
    if match is None:
        octal = token.text.startswith("0") and token.text.isdigit()
        hint = "octal is written 0o17" if octal else "there are 12, 1_000, 0x1f, 0b101 and 0o17"
        raise ExpressionError(f"{token.text[:40]!r} is not a number: {hint}", text, token.column)
    try:
        value = int(match[1], 0)
    except ValueError:  # 1__0, 0x_
        raise ExpressionError(f"{token.text!r} is not a number", text, token.column) from None
    if value >> 64:
        raise ExpressionError("that number has more than 64 bits", text, token.column)
    return value, bool(value >> 63) or "u" in (match[2] or "")


def unescape(text: str) -> bytes:
    r"""Return the bytes of a C text: \n, \x1b, \033, and any other character for itself."""
    data, at = b"", 0
    for match in _ESCAPE.finditer(text):
        data += text[at : match.start()].encode(errors="replace")
        if match[1]:
            data += bytes([int(match[1], 16)])
        elif match[2]:
            data += bytes([int(match[2], 8) & 0xFF])
        else:
            data += bytes([_ESCAPES[match[3]]]) if match[3] in _ESCAPES else match[3].encode(errors="replace")
        at = match.end()
    return data + text[at:].encode(errors="replace")
