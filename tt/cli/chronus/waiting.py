"""For verbs that work for long: a line of progress, and a clean end by a signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENDS = (signal.SIGTERM, signal.SIGHUP)


class ProgressLine:
    """A line on stderr that says how far something is; none unless `shown`."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._line = ""

    def show(self, what: str, done: float) -> None:
        """Say that `done`, from 0 to 1, of `what` is done."""
        line = f"{100 * done:3.0f}% {what}"
        if self._shown and line != self._line:
            sys.stderr.write(f"\r{line.ljust(len(self._line))}")
            sys.stderr.flush()
            self._line = line

    def clear(self) -> None:
        """Take the line away."""
        if self._line:
            sys.stderr.write(f"\r{' ' * len(self._line)}\r")
            sys.stderr.flush()
            self._line = ""


class _Ended(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def undone_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block as an exception does, and only then end the process."""
    before = {number: signal.getsignal(number) for number in _ENDS}

    def end(number: int, _frame: object) -> None:
        for each in _ENDS:
            signal.signal(each, signal.SIG_IGN)  # the clean-up must not be interrupted
        raise _Ended(number)

    for number in _ENDS:
        if before[number] is not signal.SIG_IGN:  # a signal that nohup had ignored stays so
            signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
