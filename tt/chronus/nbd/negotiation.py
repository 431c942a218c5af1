"""The first part of a connection: which export it is about, and what both sides can do.

Everything here is small, bounded, and over before a deadline, whatever a client sends.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

import tt.chronus.nbd.protocol as nbd
from tt.chronus.nbd.exports import Export

MAX_OPTION = 16 << 10  # bytes of an option: a name and some queries
MAX_OPTIONS = 1000  # of one client
_MAX_QUERIES = 64


class Gone(Exception):
    """The connection is to end; the message says why, for the server's log ("" if nothing is wrong)."""


@dataclass
class Session:
    """What was agreed upon."""

    export: Export
    structured: bool = False
    block_status: bool = False


def negotiate(sock: socket.socket, exports: Mapping[str, Export], seconds: float) -> Session:
    """Negotiate with a client that has just connected; raises `Gone`."""
    try:
        return _Negotiation(_Wire(sock, time.monotonic() + seconds), exports).run()
    except TimeoutError:
        raise Gone(f"it did not finish its negotiation within {seconds:g} s") from None
    except OSError:
        raise Gone("") from None


class _Wire:
    """Whole messages from and to a socket, until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._limit()
            more = self._sock.recv(size - len(data))
            if not more:
                raise Gone("")
            data += more
        return data

    def write(self, data: bytes) -> None:
        self._limit()
        self._sock.sendall(data)

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)


class _Refused(Exception):
    """An option that gets an error reply: the reply's type and a line for people."""

    def __init__(self, reply: int, line: str) -> None:
        super().__init__(line)
        self.reply = reply


class _Negotiation:
    def __init__(self, wire: _Wire, exports: Mapping[str, Export]) -> None:
        self._wire = wire
        self._exports = exports
        self._structured = False
        self._status_of: Export | None = None  # for which block status was asked

    def run(self) -> Session:
        handshake = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        self._wire.write(nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, handshake))
        (flags,) = nbd.CLIENT_FLAGS.unpack(self._wire.read(4))
        if flags & ~handshake:
            raise Gone(f"it sent unknown flags {flags:#x}")
        for _ in range(MAX_OPTIONS):
            magic, option, size = nbd.OPTION.unpack(self._wire.read(nbd.OPTION.size))
            if magic != nbd.OPTION_MAGIC:
                raise Gone("it does not speak NBD's newstyle protocol")
            if size > MAX_OPTION:
                raise Gone(f"it sent an option of {size:,} bytes")
            data = self._wire.read(size)
            if option == nbd.OPT_EXPORT_NAME:
                return self._by_name(data, bool(flags & nbd.NO_ZEROES))
            try:
                export = self._answer(option, data)
            except _Refused as e:
                self._reply(option, e.reply, str(e).encode())
                continue
            except struct.error:
                self._reply(option, nbd.REP_ERR_INVALID, b"the option is not as long as it says")
                continue
            self._reply(option, nbd.REP_ACK)
            if option == nbd.OPT_ABORT:
                raise Gone("")
            if option == nbd.OPT_GO and export is not None:
                return Session(export, self._structured, self._status_of is export)
        raise Gone(f"it sent {MAX_OPTIONS:,} options and took no export")

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._wire.write(nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _by_name(self, name: bytes, no_zeroes: bool) -> Session:
        """Answer the oldest way of taking an export, which has no error reply."""
        export = self._exports.get(name.decode(errors="replace"))
        if export is None:
            raise Gone("it asked for an export that does not exist")
        rest = b"" if no_zeroes else bytes(124)
        self._wire.write(nbd.EXPORT_NAME_REPLY.pack(export.size, self._flags(export)) + rest)
        return Session(export, self._structured, self._status_of is export)

    def _answer(self, option: int, data: bytes) -> Export | None:
        """Carry out an option, except for its final acknowledgement."""
        match option:
            case nbd.OPT_ABORT:
                return None
            case nbd.OPT_LIST:
                _expect(not data, "a list takes no data")
                for name, export in self._exports.items():
                    raw = name.encode()
                    about = _description(export)
                    self._reply(option, nbd.REP_SERVER, struct.pack(">I", len(raw)) + raw + about)
                return None
            case nbd.OPT_STRUCTURED_REPLY:
                _expect(not data, "structured replies take no data")
                self._structured = True
                return None
            case nbd.OPT_INFO | nbd.OPT_GO:
                return self._info(option, data)
            case nbd.OPT_LIST_META_CONTEXT | nbd.OPT_SET_META_CONTEXT:
                self._contexts(option, data)
                return None
        raise _Refused(nbd.REP_ERR_UNSUP, f"option {option} is not known here")

    def _info(self, option: int, data: bytes) -> Export:
        export, at = self._named(data)
        (count,) = struct.unpack_from(">H", data, at)
        _expect(len(data) == at + 2 + 2 * count, "the list of information requests is not as long as it says")
        wishes = struct.unpack_from(f">{count}H", data, at + 2)
        facts = [
            struct.pack(">HQH", nbd.INFO_EXPORT, export.size, self._flags(export)),
            struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, nbd.PREFERRED_BLOCK, nbd.MAX_REQUEST),
        ]
        if nbd.INFO_NAME in wishes:
            facts.append(struct.pack(">H", nbd.INFO_NAME) + export.name.encode())
        if nbd.INFO_DESCRIPTION in wishes and _description(export):
            facts.append(struct.pack(">H", nbd.INFO_DESCRIPTION) + _description(export))
        for fact in facts:
            self._reply(option, nbd.REP_INFO, fact)
        return export

    def _contexts(self, option: int, data: bytes) -> None:
        """List or choose kinds of block status: there is `base:allocation` alone."""
        choosing = option == nbd.OPT_SET_META_CONTEXT
        if choosing:
            self._status_of = None
        _expect(self._structured, "structured replies come first")
        export, at = self._named(data)
        (count,) = struct.unpack_from(">I", data, at)
        _expect(count <= _MAX_QUERIES, f"more than {_MAX_QUERIES} queries")
        at += 4
        queries = []
        for _ in range(count):
            (size,) = struct.unpack_from(">I", data, at)
            query = data[at + 4 : at + 4 + size]
            _expect(len(query) == size, "a query is not as long as it says")
            queries.append(query)
            at += 4 + size
        _expect(at == len(data), "there are bytes after the last query")
        wanted = nbd.BASE_ALLOCATION in queries
        if not choosing:
            wanted = wanted or not queries or b"base:" in queries
        if wanted:
            self._reply(option, nbd.REP_META_CONTEXT, struct.pack(">I", int(choosing)) + nbd.BASE_ALLOCATION)
            if choosing:
                self._status_of = export

    def _named(self, data: bytes) -> tuple[Export, int]:
        """Return the export that an option is about, and where its name ends."""
        (size,) = struct.unpack_from(">I", data)
        _expect(size <= nbd.MAX_NAME and 4 + size <= len(data), "the name is not as long as it says")
        name = data[4 : 4 + size].decode(errors="replace")
        export = self._exports.get(name)
        if export is None:
            raise _Refused(nbd.REP_ERR_UNKNOWN, f"there is no export {name[:100]!r} here")
        return export, 4 + size

    def _flags(self, export: Export) -> int:
        flags = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.CAN_MULTI_CONN
        flags |= nbd.READ_ONLY if export.readonly else nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES
        return flags | nbd.SEND_DF if self._structured else flags


def _expect(good: bool, line: str) -> None:
    if not good:
        raise _Refused(nbd.REP_ERR_INVALID, line)


def _description(export: Export) -> bytes:
    return str(getattr(export, "description", "")).encode(errors="replace")[: nbd.MAX_NAME]
