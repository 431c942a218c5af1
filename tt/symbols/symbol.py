"""A symbol, the same for all sources of symbols."""

from __future__ import annotations

from typing import NamedTuple


class Symbol(NamedTuple):
    """A name for `addr`; `size` in bytes, 0 if unknown; `kind` a letter as nm prints it."""

    addr: int
    size: int
    name: str
    kind: str
