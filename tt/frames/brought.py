"""Which frame brought what lies in a guest's memory."""

from __future__ import annotations

from collections.abc import Reversible
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tt.log import Frame

AROUND = 32
"""How many bytes on either side of a value help to tell frames apart."""


def brought(
    frames: Reversible[Frame], value: bytes, left: bytes = b"", right: bytes = b""
) -> tuple[Frame, int] | None:
    """Return the frame that brought `value`, and the value's offset in it; None if no frame has it.

    In memory `left` and `right` stand on either side of the value.  The frame that agrees with most of
    that is taken, of equal ones the last.
    """
    if not value:
        return None
    widths = ((AROUND, AROUND), (0, AROUND), (AROUND, 0), (8, 8), (0, 8), (8, 0), (0, 0))
    for before, behind in widths:
        start = left[len(left) - before :] if before else b""
        needle = start + value + right[:behind]
        for frame in reversed(frames):
            at = frame.data.find(needle)
            if at >= 0:
                return frame, at + len(start)
    return None
