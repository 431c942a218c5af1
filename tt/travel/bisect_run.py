"""A command as the judge of a state: `tt bisect --run`, with the exit codes of `git bisect run`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tt.errors import TTError, UsageError
from tt.travel.expressions.console_text import ExactConsole, recorded_console

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

GOOD, SKIP = 0, 125
_NOT_RUNNABLE = {126: "make it executable, with chmod +x", 127: "no such command is found, give its path"}
_CHUNK = 1 << 20


class CommandError(TTError):
    """The command gave up: it ended with 128 or more, or was killed."""


class CommandPredicate:
    """A predicate for `tt.travel.bisect` that asks a shell command.

    Its exit code is the answer: 0 good, 1 to 124 bad, 125 skip.  126 and 127 (it cannot be run)
    raise `UsageError`, 128 or more (it gave up, or a signal killed it) `CommandError`.  It finds
    in its environment

        TT_TRACE      the trace
        TT_TICK       the tick to judge
        TT_NS         guest time there, in ns
        TT_REGISTERS  a JSON file of the registers: {"rax": 1, ...}
        TT_CONSOLE    a file of what the guest had printed
        TT_MEMORY     with `memory`, a sparse file of guest-physical memory

    and whatever `environment` adds.  Its output goes to stderr.  Use it with `with`: the files
    are in a folder that goes away.
    """

    def __init__(self, command: str, *, memory: bool = False, environment: Mapping[str, str] | None = None):
        self.command = command
        self._memory = memory
        self._environment = dict(environment or {})
        self._console: ExactConsole | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="tt-bisect-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def __call__(self, timeline: Timeline) -> bool | None:
        """Judge the state where `timeline` stands; raises `UsageError` or `CommandError`."""
        sys.stderr.flush()
        done = subprocess.run(
            ["/bin/sh", "-c", self.command],
            env=self._surroundings(timeline),
            stdin=subprocess.DEVNULL,
            stdout=2,  # our stdout is for the answer
            check=False,
        )
        return _answer(done.returncode, self.command)

    def _surroundings(self, timeline: Timeline) -> dict[str, str]:
        """Write the state into files, and return the environment variables that name them."""
        folder = Path(self._folder.name)
        registers, console, memory = folder / "registers.json", folder / "console", folder / "memory"
        registers.write_text(json.dumps(timeline.registers()))
        if self._console is None:
            self._console = ExactConsole(recorded_console(timeline))
        text, size = self._console(timeline)
        console.write_bytes(text[:size])
        found = {
            **_path_to_tt(),
            "TT_TRACE": str(timeline.trace.path.resolve()),
            "TT_TICK": str(timeline.tick),
            "TT_NS": str(timeline.machine.now_ns),
            "TT_REGISTERS": str(registers),
            "TT_CONSOLE": str(console),
        }
        if self._memory:
            _write_memory(timeline, memory)
            found["TT_MEMORY"] = str(memory)
        return dict(os.environ) | found | self._environment


def _answer(code: int, command: str) -> bool | None:
    """Return what an exit code means; raises `UsageError` or `CommandError`."""
    if code in _NOT_RUNNABLE:
        raise UsageError(f"{command!r} cannot be run (exit code {code}): {_NOT_RUNNABLE[code]}")
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt  # Ctrl-C reaches the command and this process alike
    if code < 0 or code >= 128:
        how = f"was killed by signal {-code}" if code < 0 else f"exits with {code}"
        raise CommandError(f"{command!r} {how}, which ends the search: 0 is good, 1 to 124 bad, 125 a skip")
    return None if code == SKIP else code != GOOD


def _path_to_tt() -> dict[str, str]:
    """Return a PATH on which this `tt` is found, where there is none yet."""
    beside = Path(sys.executable).parent
    if shutil.which("tt") is not None or not (beside / "tt").exists():
        return {}
    return {"PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}"}


def _write_memory(timeline: Timeline, path: Path) -> None:
    """Write guest-physical memory as a file whose zeros take no room."""
    engine = timeline.machine.engine
    zeros = bytes(_CHUNK)
    with path.open("wb") as f:
        for addr in range(0, engine.size, _CHUNK):
            data = engine.read(addr, min(_CHUNK, engine.size - addr))
            if data != zeros[: len(data)]:
                f.seek(addr)
                f.write(data)
        f.truncate(engine.size)
