"""What the boot tests share: record a guest until it has printed something, and replay it exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tt.events import Event, Kind
from tt.log import Trace
from tt.recording import Recording, record
from tt.replay import Replay
from tt.vmm.config import MachineConfig
from tt.vmm.live import LiveSource, seeded_entropy

EPOCH = 1_700_000_000
MAX_TICKS = 3_000_000_000
QUICK = "cryptomgr.notests"
"""Leaves out the kernel's self-tests of its cryptography: most of the instructions of a boot."""
COMMAND_LINE = b"Command line:"
PROMPT = b"root@debian:~# "


class Boot:
    """A recorded boot: `console` is all that the guest printed, `recording` what came of it."""

    def __init__(
        self,
        config: MachineConfig,
        trace: Path | None = None,
        *,
        script: Sequence[str] = (),
        until: bytes | None = None,
        max_ticks: int = MAX_TICKS,
    ) -> None:
        self.config = config
        self.trace = trace
        self._console = bytearray()
        self._until = until
        lines = [line.encode() + b"\n" for line in script]
        self._source = LiveSource(script=lines, forever=until is not None)
        self.recording: Recording = record(
            config, trace, self._source, max_ticks=max_ticks, entropy=seeded_entropy(1), on_event=self._see
        )

    @property
    def console(self) -> str:
        """What the guest printed."""
        return re.sub("\r+\n", "\n", self._console.decode(errors="replace"))

    def _see(self, event: Event) -> None:
        if event.kind is Kind.CONSOLE:
            self._console += event.data
            if self._until is not None and self._until in self._console[-200 - len(event.data) :]:
                self._source.stop("the guest has printed what was waited for")


def replays_exactly(trace: Path) -> Replay:
    """Replay a trace to its end, every event and every digest being the recorded one; return the replay."""
    with Trace.open(trace) as opened:
        replay = Replay(opened)
        replay.finish()
        assert replay.tick == opened.end_tick
        assert replay.digests_checked == len(list(opened.digests()))
        assert replay.checker.checked == len(list(opened.events()))
    return replay
