"""The second part of a connection: requests and their answers, as quickly as Python can.

What makes it quick: one receive takes in as many requests as there are; neighbouring reads become one
read of the export and neighbouring writes one call; one send carries all the answers.  Data goes from
the receive buffer to the export, and from the export to the socket, without a copy in between.

What bounds it: a connection owns a buffer of 1 MB; a larger write needs a share of what all
connections have for that, and has to arrive swiftly; a larger read is answered in pieces.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import tt.chronus.nbd.protocol as nbd
from tt.chronus.nbd.negotiation import Gone, Session
from tt.chronus.store.host_file import Buffer
from tt.errors import TTError

_ROOM = (1 << 20) + 4096  # of the receive buffer
_RUN = 256 << 10  # bytes of neighbouring reads that are read at once
_PIECE = 256 << 10  # of a long read
_SEND_AT = 256 << 10  # bytes of answers that are sent without waiting for more
_MOST_BUFFERS = 1000  # of one sendmsg (IOV_MAX is 1,024)
_SWIFT_S = 60  # for a large write to arrive whole: it holds memory that others may be waiting for
_MOST_EXTENTS = 4096  # of one answer
_NO_LIMIT = struct.pack("ll", 0, 0)
_LIMIT = struct.pack("ll", _SWIFT_S, 0)

_HEAD = nbd.REQUEST.size
_OPTIONS = {  # flags that a command may carry
    nbd.CMD_READ: nbd.FLAG_FUA | nbd.FLAG_DF,
    nbd.CMD_WRITE: nbd.FLAG_FUA,
    nbd.CMD_FLUSH: nbd.FLAG_FUA,
    nbd.CMD_TRIM: nbd.FLAG_FUA,
    nbd.CMD_WRITE_ZEROES: nbd.FLAG_FUA | nbd.FLAG_NO_HOLE,
    nbd.CMD_BLOCK_STATUS: nbd.FLAG_FUA | nbd.FLAG_REQ_ONE,
}
_CHANGES = (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)
_EPERM, _EIO, _EINVAL, _ENOSPC = 1, 5, 22, 28  # the protocol's own, "Error values"


class Budget:
    """Memory that connections share for large requests; a request that needs more than is free waits."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


class Transmission:
    """One connection after its negotiation."""

    def __init__(
        self, sock: socket.socket, session: Session, budget: Budget, say: Callable[[str], None]
    ) -> None:
        self._sock = sock
        self._export = session.export
        self._size = session.export.size
        self._structured = session.structured
        self._block_status = session.block_status
        self._budget = budget
        self._say = say
        self._read_into = getattr(session.export, "read_into", None)
        self._room = memoryview(bytearray(_SEND_AT + _RUN))  # for bytes that were read and are not sent yet
        self._room_at = 0
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._reads: list[tuple[int, int]] = []  # (cookie, bytes) of neighbouring reads, to be read at once
        self._reads_begin = self._reads_end = 0
        self._writes: list[tuple[int, Buffer]] = []
        self._write_cookies: list[int] = []
        self._fua = False

    def run(self) -> None:
        """Answer until the client leaves; raises `Gone` where it did not ask to, `OSError`."""
        buffer = memoryview(bytearray(_ROOM))
        begin = have = 0  # the bytes that have arrived and are not handled yet
        need = _HEAD  # bytes of the request at `begin`
        while True:
            if begin == have:
                begin = have = 0
            elif begin + need > _ROOM:
                buffer[: have - begin] = buffer[begin:have]
                begin, have = 0, have - begin
            got = self._sock.recv_into(buffer[have:])
            if not got:
                if begin < have:
                    raise Gone("it disconnected in the middle of a request")
                return
            have += got
            if have - begin < need:
                continue
            begin, need = self._take(buffer, begin, have)
            self._settle()
            self._send()
            if not need:
                return
            if need > _ROOM:
                self._large_write(buffer[begin:have], need)
                begin, have, need = 0, 0, _HEAD

    # ---- requests

    def _take(self, buffer: memoryview, at: int, have: int) -> tuple[int, int]:
        """Take the requests that are whole in `buffer` from `at` to `have`.

        Returns where the next one begins and how many bytes it needs; 0 where the client is done.
        """
        unpack, size = nbd.REQUEST.unpack_from, self._size
        while have - at >= _HEAD:
            magic, flags, command, cookie, offset, length = unpack(buffer, at)
            if magic != nbd.REQUEST_MAGIC:
                raise Gone("it sent something that is not a request")
            if (
                command == nbd.CMD_READ
                and not flags
                and length <= _RUN
                and offset + length <= size
                and length
            ):
                at += _HEAD
                if self._writes:
                    self._write()
                if offset != self._reads_end or offset + length - self._reads_begin > _RUN:
                    self._read()
                if not self._reads:
                    self._reads_begin = offset
                self._reads_end = offset + length
                self._reads.append((cookie, length))
            elif command == nbd.CMD_WRITE:
                if length > nbd.MAX_REQUEST:
                    raise Gone(f"it sent a write of {length:,} bytes")
                end = at + _HEAD + length
                if end > have:
                    return at, _HEAD + length
                if self._good(command, flags, cookie, offset, length):
                    if self._reads:
                        self._read()
                    self._writes.append((offset, buffer[at + _HEAD : end]))
                    self._write_cookies.append(cookie)
                    self._fua = self._fua or flags > 0
                at = end
            elif command == nbd.CMD_DISC:
                return at, 0
            else:
                at += _HEAD
                if self._good(command, flags, cookie, offset, length):
                    self._settle()
                    self._other(command, flags, cookie, offset, length)
        return at, _HEAD

    def _good(self, command: int, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Return whether a request can be carried out; refuse it if not."""
        if flags & ~_OPTIONS.get(command, 0xFFFF):
            self._fail(cookie, _EINVAL, f"flags {flags:#x} do not go with command {command}")
        elif command in _CHANGES and self._export.readonly:
            self._fail(cookie, _EPERM, "this export is read-only")
        elif command != nbd.CMD_FLUSH and offset + length > self._size:
            past_end = _ENOSPC if command in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES) else _EINVAL
            self._fail(cookie, past_end, f"{offset}+{length} is past the end of the disk, at {self._size}")
        else:
            return True
        return False

    def _large_write(self, head: memoryview, need: int) -> None:
        """Take in a write that is larger than the buffer, and do it."""
        with self._budget.share(need):
            buffer = memoryview(bytearray(need))
            have = len(head)
            buffer[:have] = head
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LIMIT)
            deadline = time.monotonic() + _SWIFT_S
            try:
                while have < need:
                    if time.monotonic() > deadline:
                        raise BlockingIOError
                    got = self._sock.recv_into(buffer[have:])
                    if not got:
                        raise Gone("it disconnected in the middle of a request")
                    have += got
            except BlockingIOError:
                raise Gone(f"a large write did not arrive within {_SWIFT_S} s") from None
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NO_LIMIT)
            self._take(buffer, 0, need)
            self._settle()
        self._send()

    # ---- carrying out

    def _settle(self) -> None:
        """Carry out the reads and writes that were put together."""
        if self._reads:
            self._read()
        if self._writes:
            self._write()

    def _read(self) -> None:
        """Read what neighbouring requests want, at once."""
        reads, self._reads = self._reads, []
        if not reads:
            return
        begin = self._reads_begin
        try:
            pieces = self._fetch(begin, self._reads_end - begin)
        except Exception as e:
            if len(reads) == 1:
                self._fail(reads[0][0], *self._errors(e))
                return
            for cookie, length in reads:  # one by one: an error goes only to those that fail
                self._reads, self._reads_begin, self._reads_end = [(cookie, length)], begin, begin + length
                self._read()
                begin += length
            return
        out, structured = self._out, self._structured
        pack = nbd.OFFSET_DATA.pack
        if len(reads) == 1:
            cookie, length = reads[0]
            if structured:
                out.append(
                    pack(
                        nbd.STRUCTURED_MAGIC, nbd.REPLY_DONE, nbd.REPLY_OFFSET_DATA, cookie, length + 8, begin
                    )
                )
            else:
                out.append(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie))
            out.extend(pieces)
        else:
            data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            at = 0
            for cookie, length in reads:
                if structured:
                    head = pack(
                        nbd.STRUCTURED_MAGIC,
                        nbd.REPLY_DONE,
                        nbd.REPLY_OFFSET_DATA,
                        cookie,
                        length + 8,
                        begin + at,
                    )
                else:
                    head = nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie)
                out += (head, data[at : at + length])
                at += length
        self._out_bytes += self._reads_end - self._reads_begin
        if self._out_bytes >= _SEND_AT or len(out) >= _MOST_BUFFERS:
            self._send()

    def _fetch(self, offset: int, size: int) -> Sequence[Buffer]:
        if self._read_into is None:
            return self._export.read(offset, size)
        memory = self._room[self._room_at : self._room_at + size]
        self._read_into(offset, memory)
        self._room_at += size
        return [memory]

    def _write(self) -> None:
        """Do the writes that came together, in one call of the export."""
        writes, cookies, fua = self._writes, self._write_cookies, self._fua
        self._writes, self._write_cookies, self._fua = [], [], False
        try:
            self._export.write_many(writes, fua)
        except Exception as e:
            code, line = self._errors(e)
            for cookie in cookies:
                self._fail(cookie, code, line)
            return
        pack = nbd.SIMPLE.pack
        self._put(b"".join([pack(nbd.SIMPLE_MAGIC, 0, cookie) for cookie in cookies]))

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Carry out a request of any other kind, whose place on the disk is good."""
        export, fua = self._export, bool(flags & nbd.FLAG_FUA)
        try:
            match command:
                case nbd.CMD_READ if length:
                    self._long_read(cookie, offset, length, bool(flags & nbd.FLAG_DF))
                    return
                case nbd.CMD_BLOCK_STATUS if self._block_status and length:
                    self._status(cookie, offset, length, bool(flags & nbd.FLAG_REQ_ONE))
                    return
                case nbd.CMD_READ:
                    if self._structured:
                        self._put(self._chunk(nbd.REPLY_NONE, cookie, 0))
                        return
                case nbd.CMD_FLUSH:
                    export.flush()
                case nbd.CMD_TRIM:
                    if length:
                        export.trim(offset, length)
                    if fua:
                        export.flush()
                case nbd.CMD_WRITE_ZEROES:
                    if length:
                        export.zero(offset, length, not flags & nbd.FLAG_NO_HOLE, fua)
                case _:
                    self._fail(
                        cookie, _EINVAL, f"command {command} is not known here, or was not agreed upon"
                    )
                    return
        except Exception as e:
            self._fail(cookie, *self._errors(e))
            return
        self._put(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie))

    def _long_read(self, cookie: int, offset: int, length: int, whole: bool) -> None:
        """Answer a read that is long, or has flags: in pieces, so that it takes little memory.

        With structured replies each piece is a chunk (unless `whole`, the client wants one); without,
        the first piece decides whether there is an error, and a later one ends the connection.
        """
        if length > nbd.MAX_REQUEST:
            self._fail(cookie, _EINVAL, f"a read of {length:,} bytes: {nbd.MAX_REQUEST:,} at most")
            return
        chunks = self._structured and not whole
        for at in range(0, length, _PIECE):
            some = min(_PIECE, length - at)
            try:
                pieces = self._fetch(offset + at, some)
            except Exception as e:
                if at and not chunks:
                    raise Gone(f"in the middle of a read: {self._errors(e)[1]}") from None
                self._fail(cookie, *self._errors(e))
                return
            if chunks or (not at and self._structured):
                size = some if chunks else length
                done = nbd.REPLY_DONE if at + some == length or not chunks else 0
                head = self._chunk(nbd.REPLY_OFFSET_DATA, cookie, size + 8, done)
                self._out.append(head + (offset + at).to_bytes(8, "big"))
            elif not at:
                self._out.append(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie))
            self._out.extend(pieces)
            self._send()

    def _status(self, cookie: int, offset: int, length: int, one: bool) -> None:
        """Tell which parts are zeros."""
        extents = self._export.extents(offset, length)[: 1 if one else _MOST_EXTENTS]
        hole = nbd.STATE_HOLE | nbd.STATE_ZERO
        found = b"".join(nbd.EXTENT.pack(size, hole if zero else 0) for size, zero in extents)
        head = self._chunk(nbd.REPLY_BLOCK_STATUS, cookie, 4 + len(found))
        self._put(head + (1).to_bytes(4, "big") + found)  # 1 is the context's number, from the negotiation

    # ---- answers

    def _chunk(self, kind: int, cookie: int, size: int, flags: int = nbd.REPLY_DONE) -> bytes:
        return nbd.STRUCTURED.pack(nbd.STRUCTURED_MAGIC, flags, kind, cookie, size)

    def _fail(self, cookie: int, code: int, line: str) -> None:
        if self._structured:
            text = line.encode(errors="replace")[: nbd.MAX_NAME]
            head = self._chunk(nbd.REPLY_ERROR, cookie, 6 + len(text))
            self._put(head + struct.pack(">IH", code, len(text)) + text)
        else:
            self._put(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, code, cookie))

    def _errors(self, error: Exception) -> tuple[int, str]:
        """Return the protocol's number of an error of the export, and a line about it, also logged."""
        cause = error if isinstance(error, OSError) else error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, (TTError, OSError)):
            line = str(error)
        else:
            line = f"{type(error).__name__}: {error} (a bug: please report it)"
        self._say(f"export {self._export.name!r}: {line}")
        return _ENOSPC if full else _EIO, line

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= _SEND_AT or len(self._out) >= _MOST_BUFFERS:
            self._send()

    def _send(self) -> None:
        """Send the answers that are ready."""
        out, self._out, self._out_bytes, self._room_at = self._out, [], 0, 0
        for first in range(0, len(out), _MOST_BUFFERS):
            send_all(self._sock, out[first : first + _MOST_BUFFERS])


def send_all(sock: socket.socket, buffers: Sequence[Buffer]) -> None:
    """Send buffers, also where the system takes only a part of them at once."""
    sent = sock.sendmsg(buffers)
    total = sum(map(len, buffers))
    if sent == total:
        return
    for buffer in buffers:
        if sent < len(buffer):
            sock.sendall(memoryview(buffer)[sent:])
            sent = 0
        else:
            sent -= len(buffer)
