"""Guests with a network, for tests: recorded on one side, and somebody on the host who talks to them."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from boot_rig import EPOCH

from tt.events import Event, Kind
from tt.net.spec import add_forwards, cards, connect, parse_net
from tt.recording import Recording, record
from tt.vmm.config import MachineConfig
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource, seeded_entropy

needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve the files of a folder by HTTP on the loopback; the block gets the port."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def soon(what: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait until something holds; return whether it does."""
    late = time.monotonic() + seconds
    while not what() and time.monotonic() < late:
        time.sleep(0.01)
    return what()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def children(pid: int, name: str = "") -> list[int]:
    """Return the processes that a process has started, those called `name` if it is given."""
    found = []
    for started in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in started.read_text().split()]
    return [child for child in found if not name or name in Path(f"/proc/{child}/comm").read_text()]


class Conversation:
    """A guest with a network, recorded in this thread while `talk(conversation)` runs in another.

    The recording ends when `talk` returns, or has raised; then `failed` holds why.  `nets` are as `--net`
    has them, `forwards` as `--forward`.
    """

    def __init__(
        self,
        image: Path,
        trace: Path,
        talk: Callable[[Conversation], None],
        *,
        nets: Sequence[str] = ("user",),
        forwards: Sequence[str] = (),
        append: str = "",
        script: Sequence[str] = (),
        timeout_s: float = 240,
        config: Callable[..., MachineConfig] = configure,
    ) -> None:
        self.trace = trace
        self.failed: BaseException | None = None
        self.said: list[str] = []
        self._console = bytearray()
        self._moved = threading.Condition()
        self._over = False
        self._late = time.monotonic() + timeout_s
        specs = add_forwards([parse_net(text) for text in nets], forwards)
        self._source = LiveSource(pace=True, script=[f"{line}\n".encode() for line in script], forever=True)
        network = connect(specs, self.said.append)
        self._source.network = network
        self.network = network
        self._talk = talk
        thread = threading.Thread(target=self._run)
        try:
            thread.start()
            self.recording: Recording = record(
                config(image, epoch=EPOCH, nets=cards(specs, "pc"), append=append),
                trace,
                self._source,
                timeout_s=timeout_s,
                entropy=seeded_entropy(1),
                networks=list(map(str, specs)),
                on_event=self._see,
            )
        finally:
            self._over = True
            self._source.stop()
            with self._moved:
                self._moved.notify_all()
            thread.join()
            network.close()
        if self.failed is not None:
            raise AssertionError(
                f"{self.failed}; the guest printed:\n{self.console[-3000:]}"
            ) from self.failed

    # ---- for `talk`

    def type(self, line: str) -> None:
        """Type a line into the guest's console."""
        self._source.type(f"{line}\n".encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the guest has printed something; return it, and forget what was before its end."""
        with self._moved:
            while True:
                found = re.search(pattern, self.console[self._seen :])
                if found is not None:
                    self._seen += found.end()
                    return found
                if self._over or time.monotonic() > self._late:
                    raise TimeoutError(f"the guest never printed {pattern!r}")
                self._moved.wait(1)

    def ask(self, line: str, answer: str) -> re.Match[str]:
        """Type a line; return what the guest answers to it."""
        self.type(line)
        return self.wait_for(answer)

    @property
    def console(self) -> str:
        """What the guest has printed."""
        return re.sub("\r+\n", "\n", self._console.decode(errors="replace"))

    # ---- inside

    _seen = 0

    def _see(self, event: Event) -> None:
        if event.kind is Kind.CONSOLE:
            with self._moved:
                self._console += event.data
                self._moved.notify_all()

    def _run(self) -> None:
        try:
            self._talk(self)
        except BaseException as e:
            self.failed = e
        finally:
            self._source.stop("all was said")
