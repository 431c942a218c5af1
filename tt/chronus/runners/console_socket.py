"""A guest's serial console as a unix socket: every client sees all of it, and may type."""

from __future__ import annotations

import select
import selectors
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_KEPT = 1 << 20  # bytes of earlier output that a new client is given
_MOST_BEHIND = 4 << 20  # bytes; a client that is further behind is disconnected
_MAX_CLIENTS = 16
_PIECE = 65536


class ConsoleSocket:
    """Serves a console at `path`, from a thread of its own, to any number of clients.

    `type` is called with what clients write, on that thread; `feed` takes what the guest prints.
    When it is closed, clients get the rest of the output, and then the end of the file.
    """

    def __init__(self, type: Callable[[bytes], object], past: bytes = b"") -> None:
        self._type = type
        self._folder = tempfile.TemporaryDirectory(prefix="chronus-console-")
        self.path = Path(self._folder.name) / "console"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))  # in a folder that only this user may enter
        self._listener.listen()
        self._listener.setblocking(False)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._lock = threading.Lock()
        self._past = bytearray(past[-_KEPT:])
        self._fresh = bytearray()
        self._clients: dict[socket.socket, bytearray] = {}  # what each has still to be sent
        self._writers: set[socket.socket] = set()  # clients that may still write
        self._over = self._closing = False
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="console socket", daemon=True)
        self._thread.start()

    def feed(self, data: bytes) -> None:
        """Pass on what the guest printed."""
        with self._lock:
            self._fresh += data
            del self._fresh[:-_MOST_BEHIND]
        self._ring()

    def end(self) -> None:
        """Nothing more will be printed: clients get the rest, and the end of the file."""
        self._over = True
        self._ring()

    def close(self) -> None:
        """Stop serving, and remove the socket."""
        self._closing = True
        self._ring()
        self._thread.join()
        self._folder.cleanup()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it is full: the thread will wake anyway
            self._waker.send(b"\0")

    # ---- the thread

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while not self._closing:
            for key, events in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._wake:
                    with suppress(BlockingIOError):
                        sock.recv(_PIECE)
                elif sock is self._listener:
                    self._accept()
                elif events & selectors.EVENT_READ:
                    self._hear(sock)
            self._pass_on()
        self._pass_on()
        for sock in [*self._clients, self._listener, self._wake, self._waker]:
            sock.close()
        self._selector.close()

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._listener.accept()
            if len(self._clients) >= _MAX_CLIENTS:
                sock.close()
                return
            sock.setblocking(False)
            self._clients[sock] = bytearray(self._past)
            self._writers.add(sock)

    def _hear(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._type(data)
        elif self._is_gone(sock):
            self._drop(sock)
        else:  # it will write no more, but may go on reading
            self._writers.discard(sock)

    def _is_gone(self, sock: socket.socket) -> bool:
        """Tell a client that left from one that only shut its writing side (as `socat -u` and `nc` do)."""
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _drop(self, sock: socket.socket) -> None:
        self._clients.pop(sock, None)
        self._writers.discard(sock)
        with suppress(KeyError):
            self._selector.unregister(sock)
        sock.close()

    def _pass_on(self) -> None:
        """Send clients the output that they have not received yet, as much as they take."""
        with self._lock:
            fresh, self._fresh = bytes(self._fresh), bytearray()
        self._past += fresh
        del self._past[:-_KEPT]
        for sock, pending in list(self._clients.items()):
            pending += fresh
            try:
                while pending:
                    del pending[: sock.send(pending[:_PIECE])]
            except BlockingIOError:
                pass
            except OSError:
                self._drop(sock)
                continue
            if len(pending) > _MOST_BEHIND or (self._over and not pending):
                self._drop(sock)
                continue
            self._await(sock, bool(pending))

    def _await(self, sock: socket.socket, pending: bool) -> None:
        """Have the selector wait for those events of a client that matter now."""
        wanted = selectors.EVENT_READ * (sock in self._writers) | selectors.EVENT_WRITE * pending
        if sock in self._selector.get_map():
            if wanted:
                self._selector.modify(sock, wanted)
            else:
                self._selector.unregister(sock)
        elif wanted:
            self._selector.register(sock, wanted)
