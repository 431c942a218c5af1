"""What a person does while a recording runs: keys, signals, and lines from a pipe.

During a recording the machine runs for many milliseconds before it returns to Python, and a signal may come
at any instant.  So a separate thread waits for both.  Python's C-level signal handler writes the signal's
number into a pipe (`signal.set_wakeup_fd`), and the thread waits for that pipe and for stdin together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, Self

from tt.vmm.live import LiveSource

PREFIX = 0x01  # Ctrl-A
END = 0x03  # Ctrl-C
ENTER = b"\r"

HELP = """\
Ctrl-A x  end the recording (so does Ctrl-C)
Ctrl-A c  send Ctrl-C to the guest
Ctrl-A a  send Ctrl-A to the guest
Ctrl-A h  this help
"""

_SIGNALS = {
    signal.SIGINT: "stopped by the user",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "the terminal was closed",
}
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")
_PATIENCE_S = 2.0  # a second signal after this long does not wait for a clean end


class Key(Enum):
    """What a key stands for, when it is not for the guest."""

    END = "end"
    HELP = "help"


class Keys:
    """Tells what was typed for the guest from what was typed for tt."""

    def __init__(self) -> None:
        self._prefixed = False

    def split(self, data: bytes) -> Iterator[bytes | Key]:
        """Yield bytes for the guest, and keys for tt."""
        typed = bytearray()
        for byte in data:
            action: Key | None = None
            if self._prefixed:
                self._prefixed = False
                match chr(byte).lower():
                    case "a" | "\x01":
                        typed.append(PREFIX)
                    case "c":
                        typed.append(END)
                    case "x" | "\x18" | "\x03":
                        action = Key.END
                    case _:
                        action = Key.HELP
            elif byte == PREFIX:
                self._prefixed = True
            elif byte == END:
                action = Key.END
            else:
                typed.append(byte)
            if action is not None:
                if typed:
                    yield bytes(typed)
                    typed.clear()
                yield action
        if typed:
            yield bytes(typed)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Hand every key over as it is typed, unechoed, while the block runs; then put the terminal back.

    What is printed is left alone too: each line has to end with a carriage return and a newline.
    """
    before = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[0] &= ~(
        termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, raw)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is closed: nothing to restore
            termios.tcsetattr(fd, termios.TCSANOW, before)


class Listener:
    """Passes keys, lines and signals on to a live source, while its `with` block runs.

    `keys` is the descriptor of a raw terminal, `lines` one whose lines are typed
    at the guest's prompts; either may be None.  `say` shows the help.
    """

    def __init__(
        self,
        source: LiveSource,
        *,
        keys: int | None = None,
        lines: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._source = source
        self._keys = Keys()
        self._key_fd = keys
        self._line_fd = lines
        self._say = say
        self._rest = b""
        self._signalled_at: float | None = None
        self._handlers: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._listen, name="tt-listener", daemon=True)

    def __enter__(self) -> Self:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if number is not signal.SIGHUP or not ignored:  # a hangup that nohup had ignored stays so
                self._handlers[number] = signal.signal(number, self._signalled)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._wake_write, b"\0")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """Do nothing the first time: the thread handles it.  A second one, some time later, acts at once."""
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > _PATIENCE_S:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        inputs = {fd for fd in (self._key_fd, self._line_fd) if fd is not None}
        while True:
            ready, _, _ = select.select([self._wake_read, *inputs], [], [])
            if self._wake_read in ready:
                for number in os.read(self._wake_read, 64):
                    if number == 0:
                        return
                    if reason := _SIGNALS.get(signal.Signals(number)):
                        self._source.stop(reason)
                continue
            for fd in ready:
                data = _read(fd)
                if not data:
                    inputs.discard(fd)
                if fd == self._key_fd:
                    self._typed(data)
                else:
                    self._lines(data)

    def _typed(self, data: bytes) -> None:
        if not data:
            self._source.stop("the terminal was closed")
        for part in self._keys.split(data):
            if part is Key.END:
                self._source.stop()
                return
            if part is Key.HELP:
                self._say(HELP)
            elif isinstance(part, bytes):
                self._source.type(part)

    def _lines(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._source.feed(line.rstrip(b"\r") + ENTER)
        if not data:
            if self._rest:
                self._source.feed(self._rest + ENTER)
            self._source.end_feeding()


def script_lines(text: bytes) -> list[bytes]:
    """Return the lines of a script as a person would type them, each with Enter."""
    lines = text.replace(b"\r\n", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line + ENTER for line in lines]


class ConsoleOutput:
    """Shows what the guest prints: in few writes, and without delaying a stop.

    `flush` is called whenever the machine returns to Python.  A reader that stops reading
    blocks the machine until the recording is stopped; one that closes its end stops the recording.
    """

    _MOST = 4096  # bytes; a pipe that is ready takes as many at once (PIPE_BUF)

    def __init__(self, fd: int, source: LiveSource, *, raw: bool = False) -> None:
        self.at_line_start = True
        self._fd = fd
        self._source = source
        self._raw = raw  # a raw terminal: not every guest gives its newlines the carriage return they need
        self._last = b""
        self._waiting = bytearray()
        self._gone = False

    def show(self, data: bytes) -> None:
        """Show bytes soon."""
        if self._raw:
            paired = self._last == b"\r" and data.startswith(b"\n")
            self._last = data[-1:]
            data = _BARE_NEWLINE.sub(b"\r\n", data)[paired:]
        self._waiting += data
        self.at_line_start = self._waiting.endswith(b"\n")
        if len(self._waiting) >= self._MOST:
            self.flush()

    def flush(self) -> None:
        """Write what is still to be shown."""
        while self._waiting and not self._gone:
            try:
                if select.select([], [self._fd], [], 0.1)[1]:
                    del self._waiting[: os.write(self._fd, self._waiting[: self._MOST])]
                elif self._source.stop_requested:
                    break
            except BlockingIOError:
                continue
            except OSError as e:
                self._gone = True
                if e.errno not in (errno.EPIPE, errno.EIO):
                    print(f"tt: cannot write the guest's console: {e.strerror}", file=sys.stderr)
                self._source.stop("the guest's console is not read any more")
        if self._gone:
            self._waiting.clear()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # the terminal was hung up
        return b""
