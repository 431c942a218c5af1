"""The real gdb, driving `tt gdb` over a real socket."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ROOT = Path(__file__).parents[2]
GDB = shutil.which("gdb")
needs_gdb = pytest.mark.skipif(GDB is None, reason="gdb is not installed")

SETTINGS = ("set pagination off", "set width 0", "set confirm off", "set height 0")


class GdbServer:
    """`tt gdb TRACE options...`, listening at a free port of this machine."""

    def __init__(self, trace: Path, *options: str, folder: Path | None = None) -> None:
        self.folder = folder or trace.parent
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tt.cli.main", "gdb", str(trace), "--listen", "127.0.0.1:0", *options],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"listening at (\S+);", self.said)
        if not found:
            self.process.kill()
            raise AssertionError(self.said + self.process.stdout.read())
        self.address = found[1]
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.said += line
                self._more.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until the server has said so."""
        with self._more:
            assert self._more.wait_for(lambda: text in self.said, 30), self.said

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self.address.removeprefix(":"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Press Ctrl-C in the server's terminal; it must end well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        assert "Traceback" not in self.said, self.said
        assert self.process.returncode == 0, self.said

    def gdb(self, *commands: str, before: Sequence[str] = (), timeout_s: float = 120) -> str:
        """Run gdb in batch with `commands` and return all that it printed."""
        lines = [*SETTINGS, *before, f"target remote {self.address}", *commands]
        words = [word for line in lines for word in ("-ex", line)]
        assert GDB is not None
        done = subprocess.run(
            [GDB, "-nx", "-batch", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert "Traceback" not in self.said, self.said
        return done.stdout


class LiveGdb:
    """gdb as a person uses it: commands one by one, and Ctrl-C."""

    def __init__(self, server: GdbServer) -> None:
        assert GDB is not None
        words = [word for line in SETTINGS for word in ("-ex", line)]
        self.process = subprocess.Popen(
            [GDB, "-nx", "-q", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=server.folder,
            start_new_session=True,
        )
        self._seen = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self(f"target remote {server.address}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            with self._changed:
                self._seen += data.decode(errors="replace")
                self._changed.notify_all()

    def send(self, command: str) -> None:
        """Type a command, and do not wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def __call__(self, command: str) -> str:
        """Type a command and return what it printed."""
        with self._changed:
            begin = len(self._seen)
        self.send(command)
        return self.wait(begin)

    def wait(self, begin: int = 0) -> str:
        """Wait until all that was typed is done, and return what was printed since `begin`."""
        mark = f"<done {os.urandom(4).hex()}>"
        self.send(f"echo {mark}\\n")
        with self._changed:
            assert self._changed.wait_for(lambda: f"{mark}\n" in self._seen[begin:], 120), self._seen[begin:]
            return self._seen[begin:]

    @property
    def printed(self) -> int:
        """How much was printed so far."""
        with self._changed:
            return len(self._seen)

    def wait_for(self, text: str, begin: int = 0) -> None:
        """Wait until gdb has printed `text`."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self._seen[begin:], 120), self._seen[begin:]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End gdb, whatever it does."""
        with contextlib.suppress(OSError):
            self.send("quit")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
