"""Unpacking kernels: every compression Linux packs its x86 images with, bounded against hostile input.

The formats are those of `scripts/Makefile.lib` in Linux ("Compression"): the
stream is followed by the unpacked size as 4 little-endian bytes (gzip has its
own), so bytes after the end of a stream are not an error.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import TypeVar

import lz4.block  # type: ignore[import-untyped]
import zstandard
from lzallright import LZOCompressor

from tt.errors import BadInput

MAX_UNPACKED = 512 << 20
"""Most bytes a kernel may unpack to; the largest seen in the wild are under 100 MB."""

_Buffer = TypeVar("_Buffer", bytes, bytearray)
_MEMORY_LIMIT = 256 << 20
_LZ4_CHUNK = 8 << 20
_LZO_MAX_BLOCK = 256 << 10  # the kernel's own bound (lib/decompress_unlzo.c)


class _Damaged(Exception):
    """The stream ends early, or is too large; the text says which."""


def sniff_compression(data: bytes) -> str | None:
    """Name the compression `data` begins with (`gzip`, `xz`, ...), None for any other data."""
    for magic, name, _ in _FORMATS:
        if data.startswith(magic):
            return name
    return None


def unpack(data: bytes, what: str) -> bytes:
    """Unpack a compressed kernel; `what` names it in errors.

    Raises `BadInput` for an unknown format, damaged data, or more than
    `MAX_UNPACKED` bytes.
    """
    for magic, name, unpacker in _FORMATS:
        if not data.startswith(magic):
            continue
        try:
            return unpacker(data)
        except Exception as e:  # each library has errors of its own; all mean damaged input here
            raise BadInput(f"{what} does not unpack: its {name} data is damaged ({e})") from None
    raise BadInput(f"{what} is compressed in an unknown format (it begins {data[:4].hex()})")


def _bounded(data: _Buffer) -> _Buffer:
    if len(data) > MAX_UNPACKED:
        raise _too_large()
    return data


def _too_large() -> _Damaged:
    return _Damaged(f"unpacks to more than {MAX_UNPACKED >> 20} MB")


def _gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out = _bounded(stream.decompress(data, MAX_UNPACKED + 1))
    if not stream.eof:
        raise _Damaged("it ends early")
    return out


def _bzip2(data: bytes) -> bytes:
    stream = bz2.BZ2Decompressor()
    out = _bounded(stream.decompress(data, MAX_UNPACKED + 1))
    if not stream.eof:
        raise _Damaged("it ends early")
    return out


def _xz(data: bytes) -> bytes:
    return _lzma_stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT), data)


def _lzma_alone(data: bytes) -> bytes:
    return _lzma_stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY_LIMIT), data)


def _lzma_stream(stream: lzma.LZMADecompressor, data: bytes) -> bytes:
    out = _bounded(stream.decompress(data, MAX_UNPACKED + 1))
    if not stream.eof:
        raise _Damaged("it ends early")
    return out


def _zstd(data: bytes) -> bytes:
    # The stream object has no bound on its output, so it is fed in pieces: a
    # kilobyte can unpack to 32 MB at most (a 4-byte block gives up to 128 KB).
    stream = zstandard.ZstdDecompressor(max_window_size=_MEMORY_LIMIT).decompressobj()
    out = bytearray()
    for position in range(0, len(data), 1024):
        out += stream.decompress(data[position : position + 1024])
        _bounded(out)
        if stream.eof:
            return bytes(out)
    raise _Damaged("it ends early")


def _lz4_legacy(data: bytes) -> bytes:
    # lz4_Frame_format.md, "Legacy frame": magic, then blocks, each a little-endian
    # size and the data, which unpacks to 8 MB but for the last.
    blocks: list[bytes] = []  # joined at the end: a kernel has 60 MB, and growing copies it again and again
    total = 0
    position = 4
    while position + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == int.from_bytes(data[:4], "little"):  # frames may be joined
            continue
        if size > len(data) - position:
            raise _Damaged("a block is longer than the data")
        blocks.append(lz4.block.decompress(data[position : position + size], uncompressed_size=_LZ4_CHUNK))
        total += len(blocks[-1])
        if total > MAX_UNPACKED:
            raise _too_large()
        position += size
    if not blocks:
        raise _Damaged("it ends early")
    return b"".join(blocks)


def _lzop(data: bytes) -> bytes:
    # The file format of lzop (its conf.h): magic, header, then blocks, each with
    # its unpacked and packed size, big-endian, and checksums as the flags say.
    version, _, _, _, _, flags = struct.unpack_from(">HHHBBI", data, 9)
    position = 9 + 12
    if flags & 0x800:  # F_H_FILTER
        position += 4
    position += 8 + (4 if version >= 0x0940 else 0)  # mode, times
    position += 1 + data[position]  # file name
    position += 4  # header checksum
    if flags & 0x40:  # F_H_EXTRA_FIELD
        position += 8 + int.from_bytes(data[position : position + 4], "big")
    unpacked_sums = bool(flags & 0x1) + bool(flags & 0x100)
    packed_sums = bool(flags & 0x2) + bool(flags & 0x200)
    out = bytearray()
    while True:
        (size,) = struct.unpack_from(">I", data, position)
        if not size:
            break
        (packed,) = struct.unpack_from(">I", data, position + 4)
        position += 8 + 4 * unpacked_sums + (4 * packed_sums if packed < size else 0)
        if size > _LZO_MAX_BLOCK or packed > size or position + packed > len(data):
            raise _Damaged("a block is longer than the data")
        block = data[position : position + packed]
        out += block if packed == size else LZOCompressor.decompress(block, output_size_hint=size)
        _bounded(out)
        position += packed
    return bytes(out)


_FORMATS: list[tuple[bytes, str, Callable[[bytes], bytes]]] = [
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4_legacy),
    (b"BZh", "bzip2", _bzip2),
    (b"\x89LZO\0\r\n\x1a\n", "lzo", _lzop),
    (b"\x5d\x00\x00", "lzma", _lzma_alone),
]
