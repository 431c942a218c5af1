"""A progress bar on a terminal, for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_SHOW_AFTER_S = 1.0
_EVERY_S = 0.1
_WIDTH = 30


class Progress:
    """A line on stderr that tells how far something is, and is gone when it is done.

    Call it with how much is done and how much there is.  Where stderr is no
    terminal nothing is shown.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._next_s = time.monotonic() + _SHOW_AFTER_S if sys.stderr.isatty() else float("inf")
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if now < self._next_s or not total:
            return
        self._next_s = now + _EVERY_S
        self._shown = True
        share = min(1.0, done / total)
        bar = "#" * int(share * _WIDTH)
        print(f"\r{self._what} [{bar:<{_WIDTH}}] {share:4.0%}", end="", file=sys.stderr, flush=True)
