"""A client of NBD that does as it is told, rightly or wrongly."""

from __future__ import annotations

import socket
import struct
from typing import Self

from tt.chronus.nbd import protocol as nbd
from tt.chronus.nbd.server import Server

PATIENCE_S = 20


class Client:
    """A connection; `connect` negotiates, `Client(server)` alone only connects."""

    def __init__(self, server: Server) -> None:
        kind, _, rest = server.address.partition(":")
        if kind == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(rest)
        else:
            self.sock = socket.create_connection((kind, int(rest)))
        self.sock.settimeout(PATIENCE_S)
        self.size = self.flags = 0
        self.structured = False

    @classmethod
    def connect(cls, server: Server, name: str = "", structured: bool = True) -> Self:
        """Connect and take an export."""
        client = cls(server)
        client.greet()
        if structured:
            assert client.option(nbd.OPT_STRUCTURED_REPLY)[-1][0] == nbd.REP_ACK
            client.structured = True
            query = named(name) + struct.pack(">I", 1) + named("base:allocation")
            assert client.option(nbd.OPT_SET_META_CONTEXT, query)[0][0] == nbd.REP_META_CONTEXT
        replies = client.option(nbd.OPT_GO, named(name) + bytes(2))
        assert replies[-1][0] == nbd.REP_ACK, replies
        for kind, data in replies:
            if kind == nbd.REP_INFO and data[:2] == bytes(2):
                client.size, client.flags = struct.unpack(">QH", data[2:])
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def recv(self, size: int) -> bytes:
        """Return exactly `size` bytes; raises `EOFError` where the server left."""
        data = b""
        while len(data) < size:
            try:
                more = self.sock.recv(size - len(data))
            except ConnectionError:
                more = b""
            if not more:
                raise EOFError
            data += more
        return data

    def gone(self) -> bool:
        """Return whether the server closes the connection, whatever it says before."""
        try:
            while self.recv(1):
                pass
        except EOFError:
            return True
        return False

    def greet(self, flags: int = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES) -> None:
        """Exchange flags."""
        magic, option, _ = nbd.GREETING.unpack(self.recv(nbd.GREETING.size))
        assert (magic, option) == (nbd.INIT_MAGIC, nbd.OPTION_MAGIC)
        self.sock.sendall(nbd.CLIENT_FLAGS.pack(flags))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option and return the replies up to the one that ends it."""
        self.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            magic, of, kind, size = nbd.OPTION_REPLY.unpack(self.recv(nbd.OPTION_REPLY.size))
            assert (magic, of) == (nbd.OPTION_REPLY_MAGIC, option)
            replies.append((kind, self.recv(size)))
            if kind == nbd.REP_ACK or kind >> 31:
                return replies

    def reply(self, read_bytes: int = 0) -> tuple[int, int, bytes]:
        """Return (cookie, error, data) of the next answer; data is put together, holes of it as zeros."""
        data, error, cookie, start = bytearray(), 0, 0, -1
        while True:
            (magic,) = struct.unpack(">I", self.recv(4))
            if magic == nbd.SIMPLE_MAGIC:
                error, cookie = struct.unpack(">IQ", self.recv(12))
                return cookie, error, self.recv(0 if error or self.structured else read_bytes)
            assert magic == nbd.STRUCTURED_MAGIC
            flags, kind, cookie, size = struct.unpack(">HHQI", self.recv(16))
            body = self.recv(size)
            if kind == nbd.REPLY_OFFSET_DATA:
                (offset,) = struct.unpack_from(">Q", body)
                start = offset if start < 0 else start
                assert offset == start + len(data)
                data += body[8:]
            elif kind == nbd.REPLY_BLOCK_STATUS:
                data += body
            elif kind == nbd.REPLY_ERROR:
                error, length = struct.unpack_from(">IH", body)
                assert 6 + length == size
            else:
                assert kind == nbd.REPLY_NONE and not size
            if flags & nbd.REPLY_DONE:
                return cookie, error, bytes(data)

    def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> tuple[int, bytes]:
        """Send one request and return (error, data) of its answer."""
        self.sock.sendall(request(command, offset, length or len(data), flags=flags) + data)
        cookie, error, found = self.reply(length if command == nbd.CMD_READ else 0)
        assert cookie == 7
        return error, found

    def read(self, offset: int, length: int) -> bytes:
        """Read, which has to go well."""
        error, data = self.ask(nbd.CMD_READ, offset, length)
        assert not error and len(data) == length
        return data

    def extents(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Return (bytes, state) of parts."""
        error, data = self.ask(nbd.CMD_BLOCK_STATUS, offset, length, flags=flags)
        assert not error
        return [(size, state) for size, state in struct.iter_unpack(">II", data[4:])]


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> bytes:
    """Return a request's head."""
    return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


def named(name: str) -> bytes:
    """Return a string with its size before it."""
    return struct.pack(">I", len(name.encode())) + name.encode()
