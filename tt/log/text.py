"""Text from a trace: console runs put together to lines, and what may be shown on a terminal."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

MAX_LINE = 64 << 10  # characters; a guest that never ends its line must not fill memory

_LONGEST_MESSAGE = 200  # characters
_Utf8 = codecs.getincrementaldecoder("utf-8")


class _Line:
    """The line that one console is in the middle of."""

    def __init__(self) -> None:
        self.tick = 0
        self.text = ""
        self.decoder = _Utf8("replace")  # a run may end inside a character


def lines(runs: Iterable[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, str]]:
    """Yield (tick of its first run, unit, text) of each line in `runs` of (tick, unit, bytes).

    Lines end at a newline, and lose it and the carriage returns before it.
    The last line is included even if no newline ended it.
    """
    open_lines: dict[int, _Line] = {}
    for tick, unit, data in runs:
        line = open_lines.setdefault(unit, _Line())
        if not line.text:
            line.tick = tick
        line.text += line.decoder.decode(data)
        *ended, line.text = line.text.split("\n")
        for text in ended:
            yield line.tick, unit, text.rstrip("\r")
            line.tick = tick
        if len(line.text) > MAX_LINE:
            yield line.tick, unit, line.text
            line.text = ""
    for unit, line in open_lines.items():
        if line.text:
            yield line.tick, unit, line.text


def printable(text: str) -> str:
    """Return text that does nothing to a terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception) -> str:
    """Return what an error says as one printable line of bounded length; SQLite may quote the file's text."""
    text = " ".join(str(error).split())
    return printable(text[:_LONGEST_MESSAGE]) or type(error).__name__
