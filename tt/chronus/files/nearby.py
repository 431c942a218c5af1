"""Which blocks may differ between two views of one disk, so that only those need to be compared."""

from __future__ import annotations

from tt.chronus.files.patch import PatchedDisk
from tt.chronus.store.history import Instant
from tt.chronus.store.view import DiskView


def blocks_between(one: DiskView, other: DiskView) -> set[int] | None:
    """Return the blocks of 4 KB that were written to between two views, None if they are not related.

    Related are the instants of one history, and the patched disks made from them.
    """
    left, blocks = _origin(one)
    right, more = _origin(other)
    if left is None or right is None or left.history is not right.history:
        return None
    return left.history.changed_blocks(left.number, right.number) | blocks | more


def _origin(view: DiskView) -> tuple[Instant | None, set[int]]:
    blocks: set[int] = set()
    while isinstance(view, PatchedDisk):
        blocks |= view.written.keys()
        view = view.base
    return (view if isinstance(view, Instant) else None), blocks
