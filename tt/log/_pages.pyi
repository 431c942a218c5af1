"""Pages of RAM on their way into a trace and out of it, in C and without Python's lock.

The bytes are explained in `tt.log.checkpoints`.
"""

from collections.abc import Iterable

class PagePacker:
    """Names the contents of pages, and gathers those that are new.

    It remembers the last contents of each page, so all changes of one RAM must be given to it in order.
    Takes about as much memory as the pages that it was given.
    """

    def pack(self, pages: bytes, contents: bytes) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        """Return the references of pages, u32 each, and new packs: number, count of pages, raw bytes.

        `pages` are u32 numbers, rising; `contents` 4096 bytes for each.  Raises `ValueError` where
        these do not fit together.
        """

class DeltaPack:
    """A pack of deltas, unpacked; raises `ValueError` when it is damaged."""

    count: int
    size: int
    """Bytes it was made of."""

    def __init__(self, raw: bytes, count: int) -> None: ...
    def base(self, slot: int) -> int:
        """Return the reference of the page that a delta is based on; raises `IndexError`."""

    @property
    def bases(self) -> set[int]:
        """What `base` gives for all slots."""

    def page(self, slot: int, base: bytes | memoryview) -> bytes:
        """Return a page: `base` with the words of a delta in place; raises `IndexError`."""

class ChangeIndex:
    """Which of some bitmaps (a bit for each page, lowest first), one after the other in time, have a page."""

    def __init__(self, maps: Iterable[bytes], pages: int) -> None: ...
    def last(self, number: int, upto: int) -> int:
        """Return the last bitmap up to number `upto` that has page `number`, or -1."""

    def rank(self, at: int, number: int) -> int:
        """Return how many pages below `number` bitmap `at` has."""

def rank(bitmap: bytes, number: int) -> int:
    """Return how many bits below `number` are set."""
