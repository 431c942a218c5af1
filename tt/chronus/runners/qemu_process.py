"""One process of QEMU: its serial console, its monitor (QMP), and its end."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tt.chronus.runners.child import spawn
from tt.chronus.search.verdicts import ProbeError

_START_S = 60.0  # for a machine that is very busy
_ANSWER_S = 20.0
_STOP_S = 2.0
_PIECE = 65536
_MAX_LINE = 4 << 20  # of the monitor
_REASONS = {"guest-shutdown": "powered off", "guest-reset": "reset", "guest-panic": "panicked"}


class QemuProcess:
    """QEMU with `arguments`, a console and a monitor; raises `ProbeError` where it does not start.

    `files` are descriptors that the arguments name as /dev/fd/N or in -add-fd.  The monitor is spoken as in
    QEMU's docs/interop/qmp-spec.  Use it from one thread at a time, but for `write`.
    """

    def __init__(self, binary: str, arguments: Sequence[str], files: Sequence[int] = ()) -> None:
        self.ended: str | None = None
        self._said = tempfile.TemporaryFile(prefix="chronus-qemu-")  # noqa: SIM115
        self._console, console = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._lines = bytearray()
        self._to_guest = bytearray()
        self._typing = threading.Lock()
        command = [
            *(binary, *arguments),
            *("-chardev", f"socket,id=console,fd={console.fileno()}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"),
        ]
        try:
            with console, monitor:
                descriptors = [*files, console.fileno(), monitor.fileno()]
                self._process = spawn(command, pass_fds=descriptors, output=self._said)
        except OSError as e:
            self._close()
            raise ProbeError(f"cannot start {binary}: {e.strerror or e}") from None
        try:
            self._console.setblocking(False)
            self._message("QMP", _START_S)
            self.execute("qmp_capabilities")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def execute(self, command: str, **arguments: object) -> Any:
        """Have the monitor do something; return its answer, raises `ProbeError` where there is none."""
        request = {"execute": command, "arguments": arguments}
        with suppress(OSError):  # QEMU has ended, which the missing answer will show
            self._monitor.sendall(json.dumps(request).encode() + b"\n")
        message = self._message("return", _ANSWER_S)
        return message["return"]

    def read(self, timeout_s: float) -> bytes:
        """Return what the guest prints next, some of it; empty after `timeout_s` or at the end."""
        deadline = time.monotonic() + timeout_s
        while self.ended is None:
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(self._console, select.POLLIN | (select.POLLOUT if self._to_guest else 0))
            poll.register(self._monitor, select.POLLIN)
            ready = dict(poll.poll(max(0.0, left) * 1000))
            self._flush()
            data = self._hear() if self._console.fileno() in ready else b""
            if data:
                return data
            if self._monitor.fileno() in ready:
                self._listen()
            if left <= 0:
                return b""
        return self._hear()

    def write(self, data: bytes) -> None:
        """Type into the console; what the guest does not take yet is kept."""
        with self._typing:
            self._to_guest += data
        self._flush()

    def stop(self) -> None:
        """End it: by the monitor, and by force where that does not help."""
        with suppress(OSError):
            self._monitor.sendall(b'{"execute": "quit"}\n')
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.ended = self.ended or "stopped"
        self._close()

    # ---- inside

    def _hear(self) -> bytes:
        try:
            return self._console.recv(_PIECE)
        except OSError:  # nothing there, or it is closed
            return b""

    def _flush(self) -> None:
        with self._typing, suppress(OSError):
            while self._to_guest:
                del self._to_guest[: self._console.send(self._to_guest[:_PIECE])]

    def _message(self, wanted: str, within_s: float) -> dict[str, Any]:
        """Return the next message that holds `wanted`."""
        self._monitor.settimeout(within_s)
        while True:
            line = self._line()
            if line is None:
                self._monitor.settimeout(None)
                raise ProbeError(f"QEMU does not start: {self._complaint()}")
            message = self._understand(line)
            if "error" in message:
                raise ProbeError(f"QEMU refuses: {message['error'].get('desc', '')}")
            if wanted in message:
                self._monitor.settimeout(None)
                return message

    def _line(self) -> bytes | None:
        """Return a line of the monitor, None where there comes none."""
        while b"\n" not in self._lines:
            try:
                data = self._monitor.recv(_PIECE)
            except OSError:
                data = b""
            if not data or len(self._lines) > _MAX_LINE:
                return None
            self._lines += data
        line, _, rest = bytes(self._lines).partition(b"\n")
        self._lines = bytearray(rest)
        return line

    def _listen(self) -> None:
        """Handle an event that the monitor reports by itself."""
        self._monitor.settimeout(0)
        while (line := self._line()) is not None:
            self._understand(line)
        self._monitor.settimeout(None)
        if self.ended is None and self._is_gone():
            code = self._process.wait()
            raise ProbeError(f"QEMU ended with {code}, which is no verdict on the disk: {self._complaint()}")

    def _is_gone(self) -> bool:
        """Whether the process has ended: its monitor is closed."""
        try:
            return self._monitor.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _understand(self, line: bytes) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise ProbeError(f"QEMU's monitor is not understood: {line[:80]!r}") from None
        event = message.get("event")
        if event == "SHUTDOWN":
            reason = str(message.get("data", {}).get("reason", ""))
            self.ended = self.ended or _REASONS.get(reason, f"QEMU was ended ({reason or 'no reason given'})")
        elif event == "STOP":
            self.ended = self.ended or "QEMU stopped the guest, because it cannot emulate what the guest did"
        return message

    def _complaint(self) -> str:
        """Return the last line that QEMU wrote, or its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - 4096))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        if lines:
            return lines[-1]
        return f"it said nothing (exit code {self._process.poll()})"

    def _close(self) -> None:
        for end in (self._console, self._monitor, self._said):
            end.close()
