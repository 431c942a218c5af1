"""The `tt` command as a process: run to its end, or used by a person at a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tt.cli.main import TT as PROGRAM
from tt.cli.main import Program, main

ROOT = Path(__file__).parents[1]


def unmeasured() -> dict[str, str]:
    """Return the environment for a process of which is asked what it loads: coverage would load more."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


class TT:
    """The `tt` command, as a process in a folder of its own."""

    command = (sys.executable, "-m", "tt.cli.main")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def __call__(
        self, *words: object, code: int = 0, stdin: bytes = b"", timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `tt words...` and check its exit code."""
        done = subprocess.run(
            [*self.command, *map(str, words)],
            cwd=self.folder,
            env=self.env | env,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
        )
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    def out(self, *words: object, **options: object) -> str:
        """Run a command and return what it printed."""
        return self(*words, **options).stdout.decode()  # type: ignore[arg-type]


class Inside(TT):
    """The `tt` command in the process of the test: as a process of its own, in less of its time.

    Not for tests of signals, of a terminal, of a closed stream, or of output of commands that `tt` starts.
    """

    def __init__(self, folder: Path, program: Program = PROGRAM) -> None:
        super().__init__(folder)
        self.program = program

    def __call__(
        self, *words: object, code: int = 0, stdin: bytes = b"", timeout_s: float = 120, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `tt words...`, or another program, and check its exit code."""

        given, out, err = (
            io.TextIOWrapper(io.BytesIO(data), write_through=True) for data in (stdin, b"", b"")
        )
        argv = list(map(str, words))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, stream in (("stdin", given), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, stream)
            for name, value in env.items():
                patch.setenv(name, value)
            exit_code = main(argv, self.program)
        done = subprocess.CompletedProcess(argv, exit_code, _all(out), _all(err))
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done


def _all(stream: io.TextIOWrapper) -> bytes:
    """Return what was written to a stream in memory."""
    stream.seek(0)
    return stream.buffer.read()


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self._master, self._slave = pty.openpty()
        self.settings = self.look()
        self.seen = b""
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(end)

    def look(self) -> list[Any]:
        """Return the terminal's settings."""
        return termios.tcgetattr(self._slave)

    def type(self, data: bytes) -> None:
        """Type keys."""
        os.write(self._master, data)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def wait_for(self, text: bytes, timeout_s: float = 30) -> None:
        """Read until the process has printed `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s: {self.seen[-2000:]!r}"
            assert self.process.poll() is None or self._read(), (
                f"ended with no {text!r}: {self.seen[-2000:]!r}"
            )
            self._read()

    def wait(self, timeout_s: float = 30) -> float:
        """Read until the process ends well; return how long that took."""
        begin = time.monotonic()
        while self.process.poll() is None:
            assert time.monotonic() < begin + timeout_s, f"it goes on: {self.seen[-2000:]!r}"
            self._read()
        took = time.monotonic() - begin
        while self._read():
            pass
        assert self.process.returncode == 0, (self.process.returncode, self.seen[-2000:])
        return took

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.02)[0]:
            return False
        data = os.read(self._master, 1 << 16)
        self.seen += data
        return bool(data)
