"""What each feature of an ext file system and of its journal means for reading it.

Every bit that the kernel (fs/ext4/ext4.h, include/linux/jbd2.h) or e2fsprogs (lib/ext2fs/ext2_fs.h)
has a name for is in these tables, with one of three words:

- `read`: this reader does what the feature asks for;
- `harmless`: nothing that is read is stored another way; `why` says what the feature is about;
- `refused`: files could be read wrongly, so that nothing is read.

A bit that has no name here is refused by its number, of the compatible features too: fast commits are
one of those, and they hold changes that are nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tt.errors import BadInput

How = Literal["read", "harmless", "refused"]


@dataclass(frozen=True)
class Feature:
    """A feature bit: its name as e2fsprogs writes it, what is done about it, and why."""

    mask: int
    name: str
    how: How
    why: str


def _features(*rows: tuple[int, str, How, str]) -> dict[int, Feature]:
    return {row[0]: Feature(*row) for row in rows}


COMPAT = _features(
    (0x1, "dir_prealloc", "harmless", "blocks set aside for directories"),
    (0x2, "imagic_inodes", "harmless", "a number in unused fields of inodes"),
    (0x4, "has_journal", "read", "replayed in memory where needs_recovery asks for it"),
    (0x8, "ext_attr", "read", "attributes in inodes and blocks"),
    (0x10, "resize_inode", "harmless", "blocks set aside for descriptors"),
    (0x20, "dir_index", "read", "a hashed directory is also a plain one"),
    (0x40, "lazy_bg", "harmless", "groups without bitmaps, which are not read"),
    (0x80, "exclude_inode", "harmless", "bitmaps of snapshots, never released"),
    (0x100, "snapshot_bitmap", "harmless", "bitmaps of snapshots"),
    (0x200, "sparse_super2", "read", "which groups have a copy of the superblock"),
    (0x400, "fast_commit", "read", "replayed in memory with the journal"),
    (0x800, "stable_inodes", "harmless", "a promise not to renumber inodes"),
    (0x1000, "orphan_file", "harmless", "deleted files that are still open have no name to be seen by"),
)  # fmt: skip

RO_COMPAT = _features(
    (0x1, "sparse_super", "read", "which groups have a copy of the superblock"),
    (0x2, "large_file", "read", "sizes of 64 bits"),
    (0x4, "btree_dir", "harmless", "never released"),
    (0x8, "huge_file", "harmless", "how the count of a file's blocks is written, which is not read"),
    (0x10, "uninit_bg", "read", "how many inodes of a group were never used"),
    (0x20, "dir_nlink", "harmless", "a directory with 65,000 others in it counts 1 link"),
    (0x40, "extra_isize", "read", "how long an inode is"),
    (0x80, "has_snapshot", "harmless", "snapshots are further files"),
    (0x100, "quota", "harmless", "quotas are files without a name"),
    (0x200, "bigalloc", "read", "blocks given out in clusters; maps and descriptors count blocks"),
    (0x400, "metadata_csum", "harmless", "checksums of metadata; the journal's own are checked"),
    (0x800, "replica", "harmless", "never released"),
    (0x1000, "read-only", "harmless", "not to be written to"),
    (0x2000, "project", "harmless", "a number in inodes that quotas use"),
    (0x4000, "shared_blocks", "harmless", "files that share blocks are read as any other"),
    (0x8000, "verity", "harmless", "checksums behind the end of a file"),
    (0x10000, "orphan_present", "harmless", "orphan_file is in use"),
)  # fmt: skip

INCOMPAT = _features(
    (0x1, "compression", "refused", "never released; contents would be compressed"),
    (0x2, "filetype", "read", "entries of directories say what they lead to"),
    (0x4, "needs_recovery", "read", "the journal is replayed in memory"),
    (0x8, "journal_dev", "refused", "a journal for another device, and no files"),
    (0x10, "meta_bg", "read", "where descriptors of groups are"),
    (0x40, "extent", "read", "maps of files by extents"),
    (0x80, "64bit", "read", "block numbers of 48 bits and longer descriptors"),
    (0x100, "mmp", "harmless", "a block that says who has it mounted"),
    (0x200, "flex_bg", "read", "bitmaps and tables of inodes anywhere"),
    (0x400, "ea_inode", "read", "long values of attributes in inodes of their own"),
    (0x1000, "dirdata", "harmless", "data behind names in directories, inside of the entry's length"),
    (0x2000, "metadata_csum_seed", "harmless", "checksums of metadata"),
    (0x4000, "large_dir", "read", "deeper hashed directories; sizes of directories of 64 bits"),
    (0x8000, "inline_data", "read", "contents of small files in their inodes"),
    (0x10000, "encrypt", "read", "names are shown as they are stored, and contents refused file by file"),
    (0x20000, "casefold", "harmless", "names are kept as they were given; they are looked up exactly"),
)  # fmt: skip

JOURNAL_COMPAT = _features(
    (0x1, "journal_checksum", "read", "one checksum over a transaction, in its commit block"),
)  # fmt: skip

JOURNAL_INCOMPAT = _features(
    (0x1, "journal_incompat_revoke", "read", "blocks that must not be replayed"),
    (0x2, "journal_64bit", "read", "block numbers of 64 bits"),
    (0x4, "journal_async_commit", "read", "commit blocks that count by their checksum alone"),
    (0x8, "journal_checksum_v2", "read", "a checksum for each block, 16 bits for those of data"),
    (0x10, "journal_checksum_v3", "read", "a checksum for each block"),
    (0x20, "fast_commit", "read", "changes of inodes and names behind the log"),
)  # fmt: skip

JOURNAL_RO_COMPAT: dict[int, Feature] = {}


def check(where: str, compat: int, incompat: int, ro_compat: int) -> None:
    """Raise `BadInput` where a file system has features that forbid reading it."""
    if incompat & 0x8:
        raise BadInput(f"{where} is an ext journal device: give the disk with the file system itself")
    _check(
        f"the ext file system on {where}",
        (("compat", COMPAT, compat), ("incompat", INCOMPAT, incompat), ("ro_compat", RO_COMPAT, ro_compat)),
    )


def check_journal(where: str, compat: int, incompat: int, ro_compat: int) -> None:
    """Raise `BadInput` where a journal has features that forbid replaying it."""
    _check(
        f"the ext journal on {where}, which has changes that are nowhere else,",
        (
            ("compat", JOURNAL_COMPAT, compat),
            ("incompat", JOURNAL_INCOMPAT, incompat),
            ("ro_compat", JOURNAL_RO_COMPAT, ro_compat),
        ),
    )


def _check(what: str, words: tuple[tuple[str, dict[int, Feature], int], ...]) -> None:
    for word, table, value in words:
        for bit in range(32):
            mask = 1 << bit
            if not value & mask:
                continue
            feature = table.get(mask)
            if feature is None:
                raise BadInput(f"{what} has a feature tt does not know: bit {bit} of {word} ({mask:#x})")
            if feature.how == "refused":
                raise BadInput(
                    f"{what} has the feature {feature.name}, which tt does not read: {feature.why}"
                )
