"""The server: listens, and serves one gdb after the other."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tt.errors import UsageError
from tt.gdb.guest import Guest
from tt.gdb.link import Gone, Link, Pace
from tt.gdb.monitor import Monitor
from tt.gdb.motion import Interrupted, Motion
from tt.gdb.session import Session
from tt.travel import Timeline

DEFAULT_LISTEN = "127.0.0.1:1234"
_KEEP_ALIVE_S = 0.5  # gdb gives an answer 2 s
_TELL_AFTER_S = 3.0  # of a search, and then again as often

Say = Callable[[str], None]


@dataclass(frozen=True)
class Address:
    """Where to listen: a host and a port, or (`path` not empty) a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def for_gdb(self) -> str:
        """What `target remote` takes on this machine."""
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'' if self.host == '127.0.0.1' else host}:{self.port}"


def parse_listen(text: str) -> Address:
    """Return where `ADDR:PORT`, `:PORT`, `PORT`, `[IPV6]:PORT` or `unix:PATH` is; raises `UsageError`."""
    if text.startswith("unix:") and len(text) > 5:
        return Address(path=text[5:])
    host, colon, port = text.rpartition(":")
    if not colon and "." in port:
        port = ""
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(
            f"--listen {text}: give ADDRESS:PORT, a PORT alone, or unix:PATH, as in --listen {DEFAULT_LISTEN}"
        )
    return Address(host, int(port))


class Server:
    """Listens at `address` from the moment it is made; `serve` serves.

    Only this machine may connect unless `allow_remote`: whoever connects reads all of
    the guest's memory: there is no password.  Raises `UsageError` for
    another address, or where the address cannot be listened at.
    """

    def __init__(self, timeline: Timeline, address: Address, *, allow_remote: bool = False) -> None:
        self.guest = Guest(timeline)
        self._timeline = timeline
        self._socket_path: Path | None = None
        self._socket = self._listen(address, allow_remote)
        self.address = address
        if not address.path:
            self.address = Address(address.host, self._socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)

    def serve(self, say: Say, *, once: bool = False) -> None:
        """Serve clients until Ctrl-C, or (`once`) until the first has gone; tell `say` of what happens."""
        while True:
            connection, peer = self._socket.accept()
            name = f"gdb at {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "gdb"
            say(f"{name} is connected")
            link = Link(connection)
            try:
                self._session(link, say)
                say(f"{name} has left, at tick {self._timeline.tick:,}")
            except Gone as e:
                say(f"{name} is gone ({e}), at tick {self._timeline.tick:,}")
            finally:
                link.close()
            if once:
                return

    def _session(self, link: Link, say: Say) -> None:
        timeline = self._timeline
        report = timeline.progress
        files = self.guest.files
        files.forget_open()
        motion = Motion(timeline)
        session = Session(link, timeline, motion, files, Monitor(timeline, motion), say)
        timeline.progress = _Attention(link, session, timeline.end_tick, report)
        try:
            while not session.over:
                self._wait_for(link, say)
                session.serve_one()
        finally:
            timeline.progress = report
            motion.close()

    def _wait_for(self, link: Link, say: Say) -> None:
        """Wait until the client sends something; turn others away meanwhile."""
        while not link.has_packet:
            ready, _, _ = select.select([link.fileno(), self._socket.fileno()], [], [])
            if link.fileno() in ready:
                return
            with contextlib.suppress(OSError):
                self._socket.accept()[0].close()
                say("a second gdb wanted to connect: turned away, one is connected already")

    def _listen(self, address: Address, allow_remote: bool) -> socket.socket:
        try:
            if address.path:
                return self._listen_at_path(address.path)
            family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[
                0
            ]
            if not allow_remote and not ipaddress.ip_address(where[0]).is_loopback:
                raise UsageError(
                    f"{address.host} can be reached from other machines, and whoever connects reads all of "
                    "the guest's memory: say --allow-remote if that is meant"
                )
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(1)
            return listening
        except OSError as e:
            raise UsageError(
                f"cannot listen at {address.path or f'{address.host}:{address.port}'}: {e.strerror or e}"
            ) from None

    def _listen_at_path(self, path: str) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        self._socket_path = Path(path)
        self._socket_path.chmod(0o600)
        listening.listen(1)
        return listening


class _Attention:
    """`Timeline.progress` while a client is served: look for interrupts, and keep gdb from timing out."""

    def __init__(
        self, link: Link, session: Session, end_tick: int, report: Callable[[int], None] | None
    ) -> None:
        self._link = link
        self._session = session
        self._end_tick = end_tick
        self._report = report
        self._alive = Pace(_KEEP_ALIVE_S)
        self._packet = 0
        self._tell = Pace(_TELL_AFTER_S)

    def __call__(self, tick: int) -> None:
        if self._report is not None:
            self._report(tick)
        if self._packet != self._session.packets:
            self._packet = self._session.packets
            self._tell = Pace(_TELL_AFTER_S)
        if self._link.poll():
            raise Interrupted
        if self._alive.due():
            self._session.keep_alive()
        if self._tell.due():
            self._session.tell(f"tt: at tick {tick:,}, {tick / max(self._end_tick, 1):.0%} of the recording")


def serve(
    timeline: Timeline,
    listen: str = DEFAULT_LISTEN,
    *,
    say: Say,
    allow_remote: bool = False,
    once: bool = False,
) -> None:
    """Let gdb drive `timeline`: listen at `listen` (see `parse_listen`) and serve until Ctrl-C.

    `say` is told lines for the user, how to connect among them.  With `once` it returns
    when the first client has gone.  The timeline stays where gdb left it, with the
    stops that it had before.  Raises `UsageError` where `listen` cannot be listened at.
    """
    server = Server(timeline, parse_listen(listen), allow_remote=allow_remote)
    try:
        say(f"listening; connect with: gdb -ex 'target remote {server.address.for_gdb}'")
        server.serve(say, once=once)
    finally:
        server.close()
