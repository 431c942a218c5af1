"""A stream socket as the far end of a cable: a QEMU, a passt, another tt.

The format is that of QEMU's `-netdev stream` (and of its older `-netdev socket`): each frame
behind its length, 4 bytes, most significant first.
"""

from __future__ import annotations

import contextlib
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tt.errors import TTError, UsageError
from tt.vmm.messages import LONGEST_FRAME, SHORTEST_FRAME

_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 << 10
_WAITING_BYTES = 1 << 20  # frames that a slow peer has not taken yet
_CONNECT_S = 5.0
_MOST_SAID = 5  # a peer that comes and goes is told of no more often


class Stream:
    """A cable's end at a connected socket, or at one that listens for a peer.

    `say` is told in a line when the peer goes or sends something that is no frame.  A listening end
    waits for the next peer then; a connected one stays down.  What the peer sent before it went
    still arrives.
    """

    def __init__(
        self,
        name: str,
        peer: socket.socket | None,
        *,
        listening: socket.socket | None = None,
        say: Callable[[str], None] = lambda line: None,
        remove: Path | None = None,
    ) -> None:
        self.name = name
        self.lost = 0
        self._say = say
        self._listening = listening
        self._remove = remove
        self._peer: socket.socket | None = None
        self._in = bytearray()
        self._frames: deque[bytes] = deque()
        self._out = bytearray()
        self._goings = 0
        if listening is not None:
            listening.setblocking(False)
        if peer is not None:
            self._take(peer)

    @property
    def up(self) -> bool:
        """Whether there is a peer, or something left that it sent."""
        return self._peer is not None or bool(self._frames)

    def fileno(self) -> int:
        """Return the descriptor to wait for, -1 if there is none any more."""
        active = self._peer or self._listening
        return -1 if active is None else active.fileno()

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Send a frame, or lose it where the peer is gone or does not take any more."""
        if self._peer is None or len(self._out) > _WAITING_BYTES:
            self.lost += 1
            return
        self._out += _LENGTH.pack(len(frame))
        self._out += frame
        self._push()

    def receive(self, most: int, now_ns: int = 0) -> list[bytes]:
        """Return frames that have come."""
        if self._peer is not None or (not self._frames and self._accepted()):
            self._push()
            if len(self._frames) < most:
                self._pull()
        frames = self._frames
        if len(frames) <= most:
            self._frames = deque()
            return list(frames)
        return [frames.popleft() for _ in range(most)]

    def due_ns(self) -> int | None:
        """Return None: when something comes is up to the peer."""
        return None

    def close(self) -> None:
        """Close the sockets, and remove what listening made."""
        for each in (self._peer, self._listening):
            if each is not None:
                each.close()
        self._peer = self._listening = None
        if self._remove is not None:
            self._remove.unlink(missing_ok=True)

    # ---- inside

    def _take(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._in.clear()
        self._out.clear()

    def _accepted(self) -> bool:
        if self._listening is None:
            return False
        try:
            peer, _address = self._listening.accept()
        except OSError:
            return False
        self._take(peer)
        return True

    def _pull(self) -> None:
        assert self._peer is not None
        try:
            data = self._peer.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._hang_up(e.strerror or str(e))
            return
        if not data:
            self._hang_up("it closed the connection")
            return
        self._in += data
        at, end = 0, len(self._in)
        while end - at >= 4:
            (size,) = _LENGTH.unpack_from(self._in, at)
            if not 0 < size <= LONGEST_FRAME:
                self._hang_up(
                    f"it sent a frame of {size:,} bytes, which none can have (at most {LONGEST_FRAME:,})"
                )
                return
            if end - at < 4 + size:
                break
            if size >= SHORTEST_FRAME:
                self._frames.append(bytes(self._in[at + 4 : at + 4 + size]))
            at += 4 + size
        del self._in[:at]

    def _push(self) -> None:
        if not self._out or self._peer is None:
            return
        try:
            sent = self._peer.send(self._out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._hang_up(e.strerror or str(e))
            return
        del self._out[:sent]

    def _hang_up(self, why: str) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None
            self._goings += 1
            if self._goings <= _MOST_SAID:
                more = "; no more is said of it" if self._goings == _MOST_SAID else ""
                self._say(f"{self.name} is gone ({why}): the guest's cable is unplugged{more}")


def open_stream(where: str, *, listen: bool, say: Callable[[str], None] = lambda line: None) -> Stream:
    """Connect to `where`, or listen there for one peer at a time.

    `where` is `unix:PATH` or `HOST:PORT`.  Raises `UsageError` when it is neither, `TTError`
    where nobody answers.
    """
    name = f"stream:{where}"
    if where.startswith("unix:"):
        path = where.removeprefix("unix:")
        if not path:
            raise UsageError(f"--net {name}: give the path of a socket, stream:unix:/tmp/net.sock")
        family, address, remove = socket.AF_UNIX, path, Path(path)
    else:
        host, colon, port = where.rpartition(":")
        if not colon or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--net {name}: give stream:HOST:PORT or stream:unix:PATH")
        host = host.strip("[]") or "127.0.0.1"
        family, remove = (socket.AF_INET6 if ":" in host else socket.AF_INET), None
        address = (host, int(port))  # type: ignore[assignment]
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if listen:
            if family == socket.AF_UNIX:
                _remove_stale(path)
            else:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(1)
            return Stream(name, None, listening=made, say=say, remove=remove)
        made.settimeout(_CONNECT_S)
        made.connect(address)
        return Stream(name, made, say=say)
    except OSError as e:
        made.close()
        doing = "listen at" if listen else "connect to"
        hint = "" if listen else "; is the other side up, or should this one listen (`,listen`)?"
        raise TTError(f"--net {name}: cannot {doing} {where}: {e.strerror or e}{hint}") from None


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens at any more, and nothing else."""
    if not Path(path).exists() or not stat.S_ISSOCK(Path(path).stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
