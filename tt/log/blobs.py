"""Bytes of a trace, stored once by content: hashing, packing, and unpacking with bounds.

A blob row of the `blobs` table:

    hash      16 bytes   BLAKE2b-128 of the contents
    raw_size  integer    bytes of the contents, at most 64 MiB
    packed    bytes      one zstd frame of the contents, or the contents themselves
                         where that is not smaller (then len(packed) == raw_size)
"""

from __future__ import annotations

import threading
from hashlib import blake2b

import zstandard

from tt.errors import BadInput

HASH_SIZE = 16
MAX_BLOB = 64 << 20
LEVEL = 1  # for blocks and pages: they are packed while the guest runs
_SMALLEST_WORTH_PACKING = 64


class _Local(threading.local):
    # A compressor is for one thread at a time, and each trace under way has a thread that writes it.
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)


_local = _Local()


def contents_digest(data: bytes) -> bytes:
    """Return the 16 bytes by which `data` is known in a trace (BLAKE2b-128)."""
    return blake2b(data, digest_size=HASH_SIZE).digest()


def pack(data: bytes) -> bytes:
    """Return `data` compressed, or unchanged where that would not make it smaller."""
    if len(data) < _SMALLEST_WORTH_PACKING:
        return data
    packed = _local.compressor.compress(data)
    return packed if len(packed) < len(data) else data


def unpack(packed: bytes, raw_size: int, limit: int = MAX_BLOB) -> bytes:
    """Return the `raw_size` bytes that `pack` was given.

    Never makes more than `raw_size` (at most `limit`) bytes, whatever the frame
    claims.  Raises `BadInput`.
    """
    if not 0 <= raw_size <= limit:
        raise BadInput(f"a packed piece claims {raw_size} bytes (at most {limit} are allowed)")
    if len(packed) == raw_size:
        return packed
    return inflate(packed, raw_size)


def inflate(frame: bytes, raw_size: int) -> bytes:
    """Return the contents of one zstd frame that must hold exactly `raw_size` bytes; raises `BadInput`."""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        # The frame states its own size; the decompressor trusts it when it allocates, so it must agree.
        if parameters.content_size != raw_size:
            raise BadInput(f"a packed piece should hold {raw_size} bytes, its frame says otherwise")
        data = zstandard.ZstdDecompressor(max_window_size=MAX_BLOB).decompress(frame)
    except zstandard.ZstdError as e:
        raise BadInput(f"a packed piece does not decompress ({e})") from None
    if len(data) != raw_size:
        raise BadInput(f"a packed piece should hold {raw_size} bytes, it holds {len(data)}")
    return data
