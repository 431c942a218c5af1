"""Running a probe's command on the host: in a process group of its own that ends with it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

_MOST_SCRIPT = 16 << 20
TAIL = 4000  # characters of output that are kept

_LOOK_S = 0.2  # how often `cancel` is looked at


def named_files(command: str, folder: Path | None = None) -> str:
    """Return hex digits of the contents of files that a command names: in `folder`, or absolute.

    Part of a probe's key: with a corrected script it is another probe, and old verdicts do not count.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    digest = blake2b(digest_size=8)
    for word in words:
        path = Path(word) if folder is None else folder / word
        with suppress(OSError, ValueError):
            if path.is_absolute() and path.is_file() and path.stat().st_size <= _MOST_SCRIPT:
                digest.update(word.encode("utf-8", "surrogateescape") + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run_command(
    command: str,
    environment: Mapping[str, str],
    timeout_s: float,
    folder: Path | None = None,
    cancel: threading.Event | None = None,
) -> tuple[int | None, str]:
    """Run a shell command; return its exit code (None: it took longer than that) and its last output.

    Another thread may end it before its time by setting `cancel`.
    """
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            while code is None and (left := deadline - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(left if cancel is None else min(left, _LOOK_S))
                if cancel is not None and cancel.is_set():
                    break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - 4 * TAIL))
        return code, said.read().decode("utf-8", "replace")[-TAIL:]
