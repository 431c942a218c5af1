"""What was used last of something that is costly to make: as much as fits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Values by key, those used last: at most `most_bytes` in all, as `put` says, and `most` of them.

    The newest one is always kept.
    """

    def __init__(self, most_bytes: int, most: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._most = most
        self._bytes = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of a key, which is used now, or None."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size: int) -> V:
        """Keep a value of `size` bytes under a key that `get` did not find; return it."""
        values = self._values
        values[key] = value, size
        self._bytes += size
        while len(values) > 1 and (
            self._bytes > self._most_bytes or (self._most is not None and len(values) > self._most)
        ):
            self._bytes -= values.popitem(last=False)[1][1]
        return value
