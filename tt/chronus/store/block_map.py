"""Where each block of a live disk is: in the base, in the history, in the spool, or (zeros) nowhere.

For each block of 4 KB of the regions (1 MB) that were touched, a code:

    0  the base      1  the history      2  zeros      else  segment << 40 | offset in the spool
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from tt.log.disk_rows import FANOUT_BITS
from tt.vmm.disk import BLOCK

BASE, PACKED, ZERO = 0, 1, 2
OFFSET_BITS = 40
OFFSET = (1 << OFFSET_BITS) - 1
_REGION_BITS = FANOUT_BITS
_REGION = 1 << _REGION_BITS
_WITHIN = _REGION - 1
_UNTOUCHED = array("Q", [BASE]) * _REGION
_ALL_ZERO = array("Q", [ZERO]) * _REGION  # shared: a discard may cover a million regions


class BlockMap:
    """The codes of a disk's blocks.

    `packed_in` yields those blocks of a range that the history knows; None where it knows none.
    """

    def __init__(self, packed_in: Callable[[range], Iterable[int]] | None) -> None:
        self._regions: dict[int, array[int]] = {}
        self._packed_in = packed_in

    def set(self, block: int, count: int, code: int) -> None:
        """Note that `count` neighbouring blocks lie one behind the other in the spool, from `code` on."""
        if count == 1:
            region = self._regions.get(block >> _REGION_BITS)
            if region is None or region is _ALL_ZERO:
                region = self._region(block >> _REGION_BITS)
            region[block & _WITHIN] = code
            return
        at = 0
        while at < count:
            within = (block + at) & _WITHIN
            some = min(_REGION - within, count - at)
            region = self._region((block + at) >> _REGION_BITS)
            region[within : within + some] = array(
                "Q", range(code + at * BLOCK, code + (at + some) * BLOCK, BLOCK)
            )
            at += some

    def set_zero(self, block: int, count: int) -> None:
        """Note that blocks are zeros."""
        end = block + count
        while block < end:
            index, within = block >> _REGION_BITS, block & _WITHIN
            some = min(_REGION - within, end - block)
            if some == _REGION:
                self._regions[index] = _ALL_ZERO
            else:
                self._region(index)[within : within + some] = _ALL_ZERO[:some]
            block += some

    def set_packed(self, block: int, count: int, segment: int) -> None:
        """Note that blocks in a segment of the spool are from now on in the history alone."""
        for at in range(block, block + count):
            region = self._regions[at >> _REGION_BITS]
            if region[at & _WITHIN] >> OFFSET_BITS == segment:
                region[at & _WITHIN] = PACKED

    def spans(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (code, block, blocks) of neighbouring blocks that lie side by side in one place."""
        code, begin, length = -1, first, 0
        block, end = first, first + count
        while block < end:
            index, within = block >> _REGION_BITS, block & _WITHIN
            some = min(_REGION - within, end - block)
            region = self._regions.get(index)
            if region is None:
                region = self._region(index) if self._packed_in else _UNTOUCHED
            for next_code in region[within : within + some]:
                follows = code + length * BLOCK if code > ZERO else code
                if length and next_code == follows:
                    length += 1
                else:
                    if length:
                        yield code, begin, length
                    code, begin, length = next_code, block, 1
                block += 1
        if length:
            yield code, begin, length

    def _region(self, index: int) -> array[int]:
        """Return a region's codes, to be changed."""
        region = self._regions.get(index)
        if region is _ALL_ZERO:
            region = self._regions[index] = _ALL_ZERO[:]
        if region is None:
            region = array("Q", bytes(8 * _REGION))
            if self._packed_in is not None:
                first = index << _REGION_BITS
                for block in self._packed_in(range(first, first + _REGION)):
                    region[block & _WITHIN] = PACKED
            self._regions[index] = region
        return region
