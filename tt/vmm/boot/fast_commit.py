"""Fast commits of ext4: changes of inodes and names behind the log of the journal (fs/ext4/fast_commit.c).

    block     record, record, ...; none crosses the end of its block
    record    u16 tag, u16 length, value; all numbers little-endian
      HEAD      features u32 (none are known), transaction u32
      ADD_RANGE inode u32, extent of 12 bytes as in an inode
      DEL_RANGE inode u32, first block u32, blocks u32
      CREAT, LINK, UNLINK  directory u32, inode u32, name
      INODE     inode u32, the inode's bytes; of its map of blocks only inline data counts
      PAD       fills a block
      TAIL      transaction u32, CRC-32C of all since the last TAIL up to here u32; fills its block

A fast commit counts only with its TAIL.  An incomplete one is ignored: `fsync` had not returned.
(The kernel does not mount a volume whose very first one is cut short; here the log is still shown.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from tt.errors import BadInput
from tt.vmm.boot._crc32c import crc32c


class Tag(IntEnum):
    """What a record is."""

    ADD_RANGE = 1
    DEL_RANGE = 2
    CREAT = 3
    LINK = 4
    UNLINK = 5
    INODE = 6
    PAD = 7
    TAIL = 8
    HEAD = 9


@dataclass(frozen=True)
class Record:
    """A record of a complete fast commit, and where it is: at byte `offset` of `block` of the disk."""

    tag: Tag
    value: bytes
    block: int
    offset: int


def scan(blocks: Iterable[tuple[int, bytes]], transaction: int, inode_size: int, where: str) -> list[Record]:
    """Return the records of the fast commits of `transaction` that are whole (`ext4_fc_replay_scan`).

    Raises `BadInput` for features that are not known.
    """
    records: list[Record] = []
    whole = 0
    crc = 0
    for number, (block, data) in enumerate(blocks):
        if not number and int.from_bytes(data[:2], "little") != Tag.HEAD:
            break
        at = 0
        while at + 4 <= len(data):
            tag, length = struct.unpack_from("<HH", data, at)
            value = data[at + 4 : at + 4 + length]
            if tag == Tag.TAIL:
                # An older kernel lets its length pass the end of the block.
                crc = crc32c(data[at : at + 8], crc)
                if len(value) < 8 or struct.unpack_from("<II", value) != (transaction, crc):
                    return records[:whole]
                whole = len(records)
                crc = 0
                at += 4 + length
                continue
            if len(value) < length or not _length_is_right(tag, length, inode_size):
                return records[:whole]
            if tag == Tag.HEAD:
                features, owner = struct.unpack("<II", value)
                if owner != transaction:
                    return records[:whole]
                if features:
                    bit = (features & -features).bit_length() - 1
                    raise BadInput(f"a fast commit on {where} has a feature tt does not know: bit {bit}")
            crc = crc32c(data[at : at + 4 + length], crc)
            records.append(Record(Tag(tag), value, block, at))
            at += 4 + length
    return records[:whole]


def _length_is_right(tag: int, length: int, inode_size: int) -> bool:
    """Whether a record can be so long (`ext4_fc_value_len_isvalid`)."""
    if tag in (Tag.CREAT, Tag.LINK, Tag.UNLINK):
        return 1 <= length - 8 <= 255
    if tag == Tag.INODE:
        return 128 <= length - 4 <= inode_size
    return tag == Tag.PAD or _LENGTHS.get(tag) == length


_LENGTHS: dict[int, int] = {Tag.ADD_RANGE: 16, Tag.DEL_RANGE: 12, Tag.HEAD: 8}
