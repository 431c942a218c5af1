"""Files that gdb may read over its connection: the guest's program, so that gdb needs no file of its own.

`qXfer:exec-file:read` names it, and `vFile` packets read it (the gdb manual, appendix
E, "Host I/O Packets").  There is nothing else in this file system.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tt.gdb.packets import MAX_PACKET, escape, parse_bytes, parse_hex

_ENOENT, _EBADF, _EMFILE, _EROFS = 2, 9, 24, 30
_READ_ONLY_FILE = 0o100444
_WRITE_FLAGS = 0x3  # O_WRONLY, O_RDWR
_MOST_OPEN = 32
_MOST_BYTES = MAX_PACKET // 2 - 64  # in one answer: each byte may need an escape


@dataclass
class Files:
    """Named files; `executable` is the name of the one that is the guest's program, "" if there is none."""

    contents: dict[str, bytes] = field(default_factory=dict)
    executable: str = ""
    _open: dict[int, bytes] = field(default_factory=dict)

    def answer(self, rest: bytes) -> bytes:
        """Return the answer to `vFile:` and `rest`; raises `BadPacket` for what makes no sense."""
        operation, _, arguments = rest.partition(b":")
        words = arguments.split(b",")
        match operation, len(words):
            case b"setfs", 1:
                return b"F0"
            case b"open", 3:
                return self._open_file(parse_bytes(words[0]), parse_hex(words[1]))
            case b"close", 1:
                return b"F0" if self._open.pop(parse_hex(words[0]), None) is not None else _error(_EBADF)
            case b"pread", 3:
                return self._read(*(parse_hex(word) for word in words))
            case b"fstat", 1:
                data = self._open.get(parse_hex(words[0]))
                return _error(_EBADF) if data is None else _attached(_stat(len(data)))
            case b"readlink" | b"unlink", 1:
                return _error(_ENOENT)
        return b""

    def forget_open(self) -> None:
        """Close all files: a new client knows nothing of them."""
        self._open.clear()

    def _open_file(self, name: bytes, flags: int) -> bytes:
        data = self.contents.get(name.decode(errors="replace"))
        if data is None:
            return _error(_ENOENT)
        if flags & _WRITE_FLAGS:
            return _error(_EROFS)
        if len(self._open) >= _MOST_OPEN:
            return _error(_EMFILE)
        number = next(n for n in range(3, 4 + _MOST_OPEN) if n not in self._open)
        self._open[number] = data
        return b"F%x" % number

    def _read(self, number: int, size: int, offset: int) -> bytes:
        data = self._open.get(number)
        if data is None:
            return _error(_EBADF)
        return _attached(data[offset : offset + min(size, _MOST_BYTES)])


def _error(number: int) -> bytes:
    return b"F-1,%x" % number


def _attached(data: bytes) -> bytes:
    return b"F%x;" % len(data) + escape(data)


def _stat(size: int) -> bytes:
    """Return the protocol's own `struct stat`, big-endian: dev, ino, mode, nlink, uid, ..."""
    blocks = -(-size // 512)
    return struct.pack(">7I3Q3I", 0, 0, _READ_ONLY_FILE, 1, 0, 0, 0, size, 4096, blocks, 0, 0, 0)
