"""The server: a socket, and a thread for each client."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tt.chronus.nbd.exports import Export
from tt.chronus.nbd.negotiation import Gone, negotiate
from tt.chronus.nbd.protocol import MAX_NAME
from tt.chronus.nbd.transmission import Budget, Transmission
from tt.errors import TTError, UsageError

DEFAULT_PORT = 10809
MAX_CLIENTS = 64
_MAX_STRANGERS = 16  # clients that are still negotiating; one more, and the oldest of them has to go
_NEGOTIATION_S = 30.0
_LARGE_BYTES = 256 << 20  # for writes of more than 1 MB, of all clients together
_SOCKET_BUFFER = 1 << 20
_STOP_S = 5.0  # for clients to take their last answers


class Server:
    """Serves `exports`, by their names, on `listen`: `unix:PATH`, `HOST:PORT` or `PORT` (of 127.0.0.1).

    Without `listen`, on a socket in a folder of its own; port 0 is any free one.  Addresses beyond
    loopback need `allow_remote`: everybody who can reach the server can read and write, because it has no
    passwords and no encryption.  `say` gets a line when a client misbehaves or an export fails.  Raises
    `UsageError` for addresses and names that make no sense, `TTError` where it cannot listen.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        listen: str | None = None,
        *,
        allow_remote: bool = False,
        negotiation_s: float = _NEGOTIATION_S,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._exports = {export.name: export for export in exports}
        if not exports or len(self._exports) < len(exports):
            raise UsageError("a server needs exports, each with a name of its own")
        for name in self._exports:
            if len(name.encode()) > MAX_NAME or not name.isprintable():
                raise UsageError(f"{name[:50]!r} cannot be the name of an export")
        self._say = say
        self._negotiation_s = negotiation_s
        self._budget = Budget(_LARGE_BYTES)
        self._mutex = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._strangers: list[socket.socket] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._path: Path | None = None
        if listen is None:
            self._folder = tempfile.TemporaryDirectory(prefix="chronus-nbd-")
            listen = f"unix:{self._folder.name}/socket"
        if listen.startswith("unix:"):
            path = Path(listen.removeprefix("unix:")).absolute()
            self._socket = _listen_unix(path)
            self._path = path
        else:
            self._socket = _listen_tcp(listen, allow_remote)
        self._wake, self._waker = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, name="NBD server", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens: `unix:PATH` or `HOST:PORT`."""
        if self._path is not None:
            return f"unix:{self._path}"
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def url(self, name: str | None = None) -> str:
        """Return the NBD URL of an export (by default the first), as qemu and libnbd understand it."""
        name = next(iter(self._exports)) if name is None else name
        if self._path is not None:
            return f"nbd+unix:///{quote(name, safe='')}?socket={quote(str(self._path))}"
        return f"nbd://{self.address}/{quote(name, safe='')}"

    def start(self) -> Self:
        """Begin to serve, in threads."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening, finish the requests that have arrived, and close the connections."""
        if self._stopping:
            return
        self._stopping = True
        self._waker.close()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._wake.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        deadline = time.monotonic() + _STOP_S
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            with self._mutex:
                clients = dict(self._clients)
            for sock in clients:
                with suppress(OSError):
                    sock.shutdown(how)
            for thread in clients.values():
                thread.join(max(0.1, deadline - time.monotonic()))
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()

    # ---- threads

    def _accept(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN | select.POLLHUP)
        while True:
            if any(fd == self._wake.fileno() for fd, _ in poll.poll()):
                return
            try:
                sock, _ = self._socket.accept()
            except OSError:  # it disconnected already, or no descriptor is free
                time.sleep(0.01)
                continue
            with self._mutex:
                if len(self._clients) >= MAX_CLIENTS:
                    sock.close()
                    self._say(f"a client was sent away: {MAX_CLIENTS} are connected")
                    continue
                if len(self._strangers) >= _MAX_STRANGERS:
                    with suppress(OSError):
                        self._strangers.pop(0).shutdown(socket.SHUT_RDWR)
                thread = threading.Thread(target=self._serve, args=(sock,), name="NBD client", daemon=True)
                self._clients[sock] = thread
                self._strangers.append(sock)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        """Serve one client, from its first byte to its last."""
        try:
            _tune(sock)
            try:
                session = negotiate(sock, self._exports, self._negotiation_s)
            finally:
                with self._mutex, suppress(ValueError):
                    self._strangers.remove(sock)
            sock.settimeout(None)
            Transmission(sock, session, self._budget, self._say).run()
        except Gone as e:
            if str(e):
                self._say(f"the connection of a client was closed: {e}")
        except OSError:
            pass  # the connection broke
        finally:
            with self._mutex:
                del self._clients[sock]
            sock.close()


@contextmanager
def serving(exports: Sequence[Export], listen: str | None = None, **options: Any) -> Iterator[Server]:
    """Serve `exports` while the context lasts, in threads; `options` as of `Server`."""
    with Server(exports, listen, **options) as server:
        yield server


def _tune(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a path that only this user may connect to; a socket without a server is replaced."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise UsageError(f"another server listens on {path}: stop it, or take another path")
        os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)  # what bind gives the path
        sock.bind(str(path))
        sock.listen(MAX_CLIENTS)
        return sock
    except OSError as e:
        sock.close()
        raise TTError(f"cannot listen on {path}: {e.strerror or e}") from None
    except BaseException:
        sock.close()
        raise


def _listen_tcp(text: str, allow_remote: bool) -> socket.socket:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address: unix:PATH, or HOST:PORT as in 127.0.0.1:{DEFAULT_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        if not ipaddress.ip_address(address[0]).is_loopback and not allow_remote:
            raise UsageError(
                f"{host} is open to other machines: --allow-remote serves to all that reach it, "
                "with no password and no encryption"
            )
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(MAX_CLIENTS)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as e:
        raise TTError(f"cannot listen on {text}: {e.strerror or e}") from None
