"""Ctrl-C during long runs: noted at once, raised when the machine is in a consistent state.

Python raises `KeyboardInterrupt` between any two of its instructions: in a
device's handler, say, half of whose work is then lost.  So while a timeline
runs, the signal is only noted, and raised where it tells its progress; a fork
looks at the note itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline


@contextmanager
def deferred(timeline: Timeline) -> Iterator[None]:
    """Raise `KeyboardInterrupt` out of `timeline.progress` only, or at the end.

    Does nothing where Python's own handler is not in place (then other code handles
    the signal), and outside of the main thread.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False
    outer = timeline.progress

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    def progress(tick: int) -> None:
        nonlocal pressed
        if pressed:
            pressed = False
            raise KeyboardInterrupt
        if outer is not None:
            outer(tick)

    timeline.progress = progress
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timeline.progress = outer
    if pressed:  # pressed after the last call of `progress`: it must not be lost
        raise KeyboardInterrupt


@contextmanager
def noted() -> Iterator[list[int]]:
    """Let Ctrl-C only put its signal's number into the list that is given."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is None or before is signal.SIG_IGN:
        yield seen
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
