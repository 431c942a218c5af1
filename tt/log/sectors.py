"""How the contents of a disk write are cut into pieces that are stored once each.

Pieces end on the disk's 4 KB grid, so that a block written again, or by a
write of another length, has the same pieces:

    lba      5   6   7 | 8   9  10  11  12  13  14  15 | 16  17
    piece    \\___1____/ \\_______________2_____________/ \\__3__/
"""

from __future__ import annotations

SECTOR = 512
BLOCK_SECTORS = 8


def piece_sizes(lba: int, sectors: int) -> list[int]:
    """Return the bytes of each piece of a write of `sectors` at `lba`."""
    if not sectors:
        return []
    first = min(sectors, BLOCK_SECTORS - lba % BLOCK_SECTORS)
    whole, last = divmod(sectors - first, BLOCK_SECTORS)
    counts = [first, *[BLOCK_SECTORS] * whole, *([last] if last else [])]
    return [count * SECTOR for count in counts]


def piece_count(lba: int, sectors: int) -> int:
    """Return how many pieces there are, without making the list of them."""
    return -(-(lba % BLOCK_SECTORS + sectors) // BLOCK_SECTORS) if sectors else 0


def split_on_grid(lba: int, data: bytes) -> list[bytes]:
    """Cut the contents of a write at `lba` into its pieces."""
    pieces = []
    at = 0
    for size in piece_sizes(lba, len(data) // SECTOR):
        pieces.append(data[at : at + size])
        at += size
    return pieces
