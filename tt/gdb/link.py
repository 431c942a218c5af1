"""One connection: packets in and out, and a look at the socket while the guest runs."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque

from tt.gdb.packets import Ack, Decoder, Interrupt, Packet, frame

_PIECE = 1 << 16
_SEND_TIMEOUT_S = 30.0
_MOST_WAITING = 64  # packets sent while the guest runs; gdb sends none
_MOST_READS = 16  # in one look: a client that floods the socket must not hold the server there


class Gone(Exception):
    """The client went away, or cannot be talked to any more."""


class Link:
    """Packets over the connected socket `sock`, which it owns.

    `no_ack` is set when the client has asked for no acknowledgements.
    `was_interrupted` tells that an interrupt came while the guest stood still: the
    protocol wants it to stop when it is told to run next.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.no_ack = False
        self.was_interrupted = False
        self._sock = sock
        self._decoder = Decoder()
        self._waiting: deque[bytes | Interrupt] = deque()  # in the order in which they came
        self._last_sent = b""
        self._is_new = True
        sock.settimeout(_SEND_TIMEOUT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's number, for `select`."""
        return self._sock.fileno()

    @property
    def has_packet(self) -> bool:
        """Whether something came that `receive` has not looked at."""
        return bool(self._waiting)

    def receive(self) -> bytes:
        """Wait for a packet and return its payload; raises `Gone`."""
        while True:
            while self._waiting:
                item = self._waiting.popleft()
                if isinstance(item, bytes):
                    return item
                self.was_interrupted = True
            self._take(None)

    def poll(self) -> bool:
        """Take what has come, without waiting; return whether there was an interrupt.  Raises `Gone`."""
        for _ in range(_MOST_READS):
            if not self._take(0):
                break
        interrupts = [item for item in self._waiting if isinstance(item, Interrupt)]
        for interrupt in interrupts:
            self._waiting.remove(interrupt)
        return bool(interrupts)

    def send(self, payload: bytes) -> None:
        """Send a packet; raises `Gone`."""
        self._last_sent = frame(payload)
        self._write(self._last_sent)

    def send_raw(self, data: bytes) -> None:
        """Send bytes outside of packets; raises `Gone`."""
        self._write(data)

    # ---- inside

    def _take(self, timeout_s: float | None) -> bool:
        """Read once, and sort what came; false if nothing came in time."""
        try:
            if not select.select([self._sock], [], [], timeout_s)[0]:
                return False
            data = self._sock.recv(_PIECE)
        except (OSError, ValueError) as e:
            raise Gone(str(e)) from None
        if not data:
            raise Gone("it closed the connection")
        if self._is_new and data[0] not in b"+-$\x03":
            # A web page can have a browser send anything to this port, but not without an HTTP header.
            raise Gone("it does not speak gdb's protocol")
        self._is_new = False
        for item in self._decoder.feed(data):
            if isinstance(item, Ack):
                if not item.good and self._last_sent and not self.no_ack:
                    self._write(self._last_sent)
                continue
            if isinstance(item, Packet) and not self.no_ack:
                self._write(b"+" if item.good else b"-")
            if len(self._waiting) >= _MOST_WAITING:
                raise Gone("it sends packets without waiting for answers")
            if isinstance(item, Interrupt):
                self._waiting.append(item)
            elif item.good:
                self._waiting.append(item.payload)
        return True

    def _write(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as e:
            raise Gone(str(e)) from None


class Pace:
    """Tells when something is due again, at most every `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next_s = time.monotonic() + seconds

    def due(self) -> bool:
        """Return whether it is time; if so the next time is `seconds` from now."""
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + self._seconds
        return True
