"""What a fork takes over from its parent: the events up to the fork, and the files it boots from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tt.events import FRAMES, Event, Kind
from tt.log import BackgroundWriter
from tt.log.coalesce import MAX_RUN_TICKS
from tt.recording import Recorder, with_checksum
from tt.replay import run_on
from tt.vmm.config import MachineConfig

if TYPE_CHECKING:
    from tt.log import Trace
    from tt.log.reader import DiskWrite, Frame
    from tt.travel.timeline import Timeline

_BOOT_FILES = ("kernel", "initrd", "guest")


class Past:
    """The parent's events up to the timeline's tick, on first arrival, ready to be copied.

    The log says at which tick an event was, but not whether before or after the arrival
    there, and it gathers console bytes into runs that may go on beyond the fork.  So
    the last stretch, `recent`, is replayed once more and its events are noted.
    """

    def __init__(self, timeline: Timeline, prompt: bool = False) -> None:
        self.trace = timeline.trace
        self.end = timeline.tick
        self.begin = self.end  # before this tick the log's events count, from it on those in `recent`
        self.recent: list[Event] = []
        self.printed: Event | None = None  # the last output; looked for only if a `prompt` is waited for
        last: Event | None = None
        for event in self.trace.events(max(0, self.end - MAX_RUN_TICKS - 1), self.end):
            if event.tick < self.end:
                last = event
        if last is not None and last.kind is Kind.CONSOLE:
            self.begin = last.tick
        self.links: dict[int, bool] = {}
        """Whether the cable of a card is plugged in, for those where that was told."""
        if prompt:
            for event in self.trace.events(last_tick=max(self.begin - 1, 0), kinds={Kind.CONSOLE}):
                self.printed = event
        self._watch(timeline)
        if MachineConfig.without_parts(self.trace.meta).nets:
            told = (
                e for e in self.trace.events(last_tick=self.begin, kinds={Kind.LINK}) if e.tick < self.begin
            )
            for event in (*told, *(e for e in self.recent if e.kind is Kind.LINK)):
                self.links[event.unit] = bool(event.value)

    def _watch(self, timeline: Timeline) -> None:
        machine = timeline.machine

        def see(event: Event) -> None:
            if event.tick >= self.begin:
                if event.kind is Kind.CONSOLE:
                    self.printed = event
                self.recent.append(with_checksum(machine, event))

        timeline.seek(max(self.begin - 1, 0))
        machine.door.subscribe(see)
        try:
            # Not by `seek`, which may jump to a checkpoint.
            run_on(machine, self.end)
        finally:
            machine.door.unsubscribe(see)

    def copy(self, writer: BackgroundWriter, recorder: Recorder) -> None:
        """Log it all, with the digests."""
        writes, frames = self.trace.disk_writes(), self.trace.frames()
        for event in self.trace.events(last_tick=self.begin):
            if event.tick >= self.begin:
                break
            host_ns = 0
            if event.kind is Kind.DISK_WRITE:
                write = next(writes)
                event, host_ns = event._replace(data=write.data()), write.host_ns
            elif event.kind in FRAMES:
                host_ns = next(frames).host_ns
            writer.add(event, host_ns or None)
            recorder.counts[event.kind] += 1
        for event in self.recent:
            timed: DiskWrite | Frame | None = None  # the parent's, from which it has its host time
            if event.kind is Kind.DISK_WRITE:
                timed = next(writes, None)
            elif event.kind in FRAMES:
                timed = next(frames, None)
            recorder.log(event, None if timed is None else timed.host_ns or None)
        for tick, digest in self.trace.digests():
            if tick < self.end:
                writer.add_digest(tick, digest)


def copy_files(parent: Trace, writer: BackgroundWriter) -> list[Path]:
    """Store the parent's files in the child; return temporary files to remove when it is written."""
    spool = []
    for name in parent.files:
        if name in _BOOT_FILES:
            writer.add_file(name, parent.file(name))
            continue
        descriptor, temporary = tempfile.mkstemp(prefix="tt-fork-")
        spool.append(Path(temporary))
        with os.fdopen(descriptor, "wb") as f:
            for piece in parent.file_pieces(name):
                f.write(piece)
        writer.add_file(name, Path(temporary))
    return spool
