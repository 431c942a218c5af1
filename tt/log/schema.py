"""The tables of a trace, and what can be told of a file before anything in it is decoded.

A trace is an SQLite 3 database.  Two fields of SQLite's own header say what it
is, so that `file`, a hex dump, or `probe` below can tell without SQLite:

    offset  size
       0     16   "SQLite format 3\\0"
      18      1   2 while a recording runs or was cut off (WAL), 1 once closed
      60      4   format version, big-endian         (PRAGMA user_version)
      68      4   "ttvm"                             (PRAGMA application_id)

Every row ends with `crc`: the CRC-32 of the table's name and the row's other
columns, in order (see `row_crc`), checked whenever the row is read.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from tt.errors import BadInput

MAGIC = b"ttvm"
VERSION = 5
PIECE = 64 << 10  # named files are stored in pieces of this many bytes
MAX_DIGEST = 64  # bytes
MAX_FILE_PIECES = 1 << 22
MAX_VALUE = 80 << 20  # bytes of any one column
HEADER_SIZE = 100

# One row an element, except that events come in chunks.  Explained, with the
# bytes of the packed columns, in docs/trace-format.md.
TABLES: dict[str, str] = {
    # What was recorded: the machine's configuration, versions, hashes of base images.
    "meta": """CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,  -- JSON
        crc INTEGER NOT NULL
    )""",
    # How far the recording has come: one row, replaced by every commit.
    "progress": """CREATE TABLE progress (
        id INTEGER PRIMARY KEY,  -- 1
        end_tick INTEGER NOT NULL,  -- recorded up to here
        events INTEGER NOT NULL,  -- how many there are of each, so that a lost row is noticed
        disk_writes INTEGER NOT NULL,
        digests INTEGER NOT NULL,
        sealed INTEGER NOT NULL,  -- 1 when the recorder closed the trace itself
        reason TEXT NOT NULL,  -- why the recording ended
        summary TEXT NOT NULL,  -- JSON
        crc INTEGER NOT NULL
    )""",
    "chunks": """CREATE TABLE chunks (
        number INTEGER PRIMARY KEY,  -- of its first event; events are numbered from 0
        count INTEGER NOT NULL,
        first_tick INTEGER NOT NULL,
        last_tick INTEGER NOT NULL,
        raw_size INTEGER NOT NULL,  -- bytes before compression
        packed BLOB NOT NULL,  -- tt/log/chunks.py
        crc INTEGER NOT NULL
    )""",
    # Contents, stored once.
    "blobs": """CREATE TABLE blobs (
        hash BLOB PRIMARY KEY,  -- BLAKE2b-128 of the contents
        raw_size INTEGER NOT NULL,
        packed BLOB NOT NULL,  -- tt/log/blobs.py
        crc INTEGER NOT NULL
    )""",
    # The log of what was written to disks, and the index of it by block: tt/log/disk_log.py.
    "disk_writes": """CREATE TABLE disk_writes (
        number INTEGER PRIMARY KEY,  -- from 1, over all disks
        event INTEGER NOT NULL,  -- number of its DISK_WRITE event; -1 in a disk's history without a machine
        tick INTEGER NOT NULL,
        host_ns INTEGER NOT NULL,  -- when it was logged, since 1970; never less than the one before
        disk INTEGER NOT NULL,
        kind INTEGER NOT NULL,  -- 0 data, 1 zeros, 2 a discard
        lba INTEGER NOT NULL,  -- 512-byte sectors
        sectors INTEGER NOT NULL,
        hashes BLOB NOT NULL,  -- of data: 16 bytes for each piece, cut on the disk's 4 KB grid
        crc INTEGER NOT NULL
    )""",
    "disk_blocks": """CREATE TABLE disk_blocks (
        disk INTEGER NOT NULL,
        block INTEGER NOT NULL,  -- of 4 KB, or a run of 256, 256 * 256, ... of them
        number INTEGER NOT NULL,  -- of the write that touched it
        place INTEGER NOT NULL,  -- which of its sectors
        hash BLOB NOT NULL,  -- of the piece, empty for zeros
        crc INTEGER NOT NULL,
        PRIMARY KEY (disk, block, number)
    ) WITHOUT ROWID""",
    # Named bytes of any size: kernel, initrd, an embedded base image.
    "files": """CREATE TABLE files (
        name TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        hashes BLOB NOT NULL,  -- 16 bytes for each piece of 64 KB
        crc INTEGER NOT NULL
    )""",
    # Digests of the whole machine's state, to be compared in replay.
    "digests": """CREATE TABLE digests (
        tick INTEGER PRIMARY KEY,
        digest BLOB NOT NULL,
        crc INTEGER NOT NULL
    )""",
    "bookmarks": """CREATE TABLE bookmarks (
        name TEXT PRIMARY KEY,
        tick INTEGER NOT NULL,
        crc INTEGER NOT NULL
    )""",
    # Since version 2.  Places to go back to, and the pages of RAM that they are made of.
    "checkpoints": """CREATE TABLE checkpoints (
        tick INTEGER PRIMARY KEY,
        digest BLOB NOT NULL,  -- of RAM
        state BLOB NOT NULL,  -- tt/log/checkpoints.py
        changed BLOB NOT NULL,
        refs BLOB NOT NULL,
        crc INTEGER NOT NULL
    )""",
    "page_packs": """CREATE TABLE page_packs (
        number INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,  -- pages of 4 KB
        packed BLOB NOT NULL,
        crc INTEGER NOT NULL
    )""",
    # Since version 5.  The contents of Ethernet frames.
    "frame_packs": """CREATE TABLE frame_packs (
        number INTEGER PRIMARY KEY,  -- of its first contents; contents are numbered from 0
        count INTEGER NOT NULL,
        raw_size INTEGER NOT NULL,  -- bytes before compression
        packed BLOB NOT NULL,  -- tt/log/frames.py
        crc INTEGER NOT NULL
    )""",
}
_SINCE = {"checkpoints": 2, "page_packs": 2, "disk_blocks": 3, "frame_packs": 5}
_DISK_WRITES_BEFORE_3 = """CREATE TABLE disk_writes (
        number INTEGER PRIMARY KEY,  -- of its DISK_WRITE event
        tick INTEGER NOT NULL,
        disk INTEGER NOT NULL,
        lba INTEGER NOT NULL,  -- 512-byte sectors
        sectors INTEGER NOT NULL,
        hashes BLOB NOT NULL,  -- 16 bytes for each piece, cut on the disk's 4 KB grid
        crc INTEGER NOT NULL
    )"""

Column = int | str | bytes
_INTEGER, _LENGTH = struct.Struct("<cq").pack, struct.Struct("<cQ").pack
_I, _B, _S = b"i", b"b", b"s"


def tables_of(version: int) -> dict[str, str]:
    """Return the tables that a trace of format `version` has."""
    tables = {name: create for name, create in TABLES.items() if version >= _SINCE.get(name, 1)}
    if version < 3:
        tables["disk_writes"] = _DISK_WRITES_BEFORE_3
    return tables


def row_crc(table: str, *columns: Column) -> int:
    """Return the CRC-32 that ends a row.

    It covers the table's name and then each column as

        "i" int64 LE     or     "b" length u64 LE, bytes     or     "s" length u64 LE, UTF-8
    """
    crc = zlib.crc32(table.encode())
    for column in columns:
        if isinstance(column, int):
            crc = zlib.crc32(_INTEGER(_I, column), crc)
        elif isinstance(column, bytes):
            crc = zlib.crc32(column, zlib.crc32(_LENGTH(_B, len(column)), crc))
        else:
            text = column.encode()
            crc = zlib.crc32(text, zlib.crc32(_LENGTH(_S, len(text)), crc))
    return crc


def probe(path: Path) -> int:
    """Return the format version of the trace at `path`.

    Reads the first 100 bytes and decodes nothing else.  Raises `BadInput` when
    the file cannot be read, is not a trace, or is of a version this tt cannot read.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise BadInput(f"{path} {what}: give the name of a trace, as `tt record -o` wrote it")
        with path.open("rb") as f:
            header = f.read(HEADER_SIZE)
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}") from None
    if len(header) < HEADER_SIZE or header[:16] != b"SQLite format 3\0" or header[68:72] != MAGIC:
        raise BadInput(f"{path} is not a tt trace")
    version: int = struct.unpack(">I", header[60:64])[0]
    if version == 0:
        raise BadInput(f"{path} has no format version: it is damaged")
    if version > VERSION:
        raise BadInput(f"{path} is of format version {version}, newer than {VERSION}: use a newer tt")
    return version
