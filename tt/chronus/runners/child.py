"""Child processes that cannot outlive this one, however it ends."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

# Linux kills the child when the *thread* that made it ends (prctl(2), PR_SET_PDEATHSIG).  The request holds
# on over exec, so a small program makes it and then becomes the command: code between fork and exec in
# a process with threads may hang.  If the parent ended in the meantime, the command is not started.
# It writes no core files.
_BECOME = """
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_Answer = queue.SimpleQueue["subprocess.Popen[Any] | BaseException"]
_Request = tuple[Sequence[str], dict[str, Any], _Answer]


def spawn(
    command: Sequence[str], *, pass_fds: Sequence[int] = (), output: IO[bytes] | int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start `command` (a path first, and not through a shell); it is killed when this process ends.

    It has a session of its own, no input, and both outputs in `output`.  Raises `OSError`.
    """
    full = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command]
    options = {
        "pass_fds": tuple(pass_fds),
        "stdin": subprocess.DEVNULL,
        "stdout": output,
        "stderr": output,
        "start_new_session": True,
    }
    answer: _Answer = queue.SimpleQueue()
    _requests().put((full, options, answer))
    made = answer.get()
    if isinstance(made, BaseException):
        raise made
    return made


_lock = threading.Lock()
_thread: threading.Thread | None = None
_queue: queue.SimpleQueue[_Request] = queue.SimpleQueue()


def _requests() -> queue.SimpleQueue[_Request]:
    """Return the queue of the thread that starts all children; it runs as long as this process."""
    global _thread, _queue
    with _lock:
        if _thread is None or not _thread.is_alive():  # a forked process does not have it
            _queue = queue.SimpleQueue()
            _thread = threading.Thread(target=_make, args=(_queue,), name="children", daemon=True)
            _thread.start()
        return _queue


def _make(requests: queue.SimpleQueue[_Request]) -> None:
    while True:
        command, options, answer = requests.get()
        try:
            answer.put(subprocess.Popen(command, **options))
        except BaseException as e:
            answer.put(e)
