"""The server's side of a live disk's packer: starting the process, and reading its messages."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FINISH_S = 3600


class PackerProcess:
    """`tt.chronus.store.packer` for the history at `path`, in a process that inherits its `lock`.

    `on_progress` is told (number of the last write that is packed, segment that is being packed),
    `on_failure` that it ended when it should not have; both in a thread of this object's.
    """

    def __init__(
        self,
        path: Path,
        lock: int,
        on_progress: Callable[[int, int], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._on_progress, self._on_failure = on_progress, on_failure
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tt.chronus.store.packer", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[lock],
        )
        self._thread = threading.Thread(target=self._listen, name="packer's listener", daemon=True)
        self._thread.start()

    def finish(self) -> int:
        """Have it pack what is left, and return its exit code, -1 where it took too long."""
        try:
            with suppress(BrokenPipeError):
                assert self._process.stdin is not None
                self._process.stdin.write(b"finish\n")
                self._process.stdin.flush()
            code = self._process.wait(_FINISH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = -1
        self._thread.join(5)
        return code

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, segment = map(int, line.split())
            self._on_progress(number, segment)
        if self._process.wait():
            self._on_failure()
