"""Running a probe's command on the host: in a process group of its own that ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

TAIL = 4000  # characters of output that are kept


def run_command(
    command: str, environment: Mapping[str, str], timeout_s: float, folder: Path | None = None
) -> tuple[int | None, str]:
    """Run a shell command; return its exit code (None: it took longer than that) and what it said last."""
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
        code: int | None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - 4 * TAIL))
        return code, said.read().decode("utf-8", "replace")[-TAIL:]
