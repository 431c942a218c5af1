"""Moving writes from a live disk's spool into its history: a process beside the server, and recovery.

The server starts `python -m tt.chronus.store.packer PATH` with its lock inherited, and reads lines from it:

    N S     every write up to number N is safe in the history; segments below S are needed no more

A line "finish" on its input means that no more will be written: it packs what is left, seals and
ends.  The end of its input without that line means that the server is gone: it ends at once, and
what is left in the spool is packed when the disk is served again.

The disk's user has priority: the packer runs at a raised nice value, and packs when the disk has been idle
for a moment, or when much is to be packed.  Nothing waits for it: writes in the spool are as safe, and are
read from there.  (It does not run as SCHED_IDLE: on a busy machine the end of a server would then take
minutes, and only root may raise the priority again.)
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tt.chronus.store import spool
from tt.errors import BadInput, TTError
from tt.log.disk_writer import DiskWriter

LOOK_EVERY_S = 0.25
_COMMIT_BYTES = 32 << 20
_PATIENT_BYTES = 512 << 20  # of the spool that may wait while the disk is busy
_PATIENT_S = 10.0  # that they may wait
_NICE = 10  # of a busy processor it gets about a tenth
_CLOSED = "closed by chronus serve"


class Packer:
    """Packs the spool of the history at `path`, as far as it is written."""

    def __init__(self, path: Path) -> None:
        self.writer = DiskWriter(path)
        self._folder = spool.folder_of(path)
        self._segment = 0
        self._descriptor = -1
        self._offset = 0

    @property
    def segment(self) -> int:
        """The segment being packed: those below it are done."""
        return self._segment

    def step(self) -> int:
        """Pack some 32 MB at most, and commit; return how many bytes of the spool that was."""
        packed = 0
        while packed < _COMMIT_BYTES:
            before = packed
            if self._descriptor >= 0:
                for records, end in spool.batches(self._descriptor, self._offset):
                    packed += end - self._offset
                    self._offset = end
                    self._add(records)
                    if packed >= _COMMIT_BYTES:
                        break
            if packed == before and not self._next_segment():
                break
        self.writer.commit()
        return packed

    @property
    def waiting(self) -> tuple[int, tuple[int, int]]:
        """How many bytes of the spool are not packed, and where it ends: (segment, offset)."""
        sizes = {
            number: spool.segment_path(self._folder, number).stat().st_size
            for number in spool.segments(self._folder)
            if number >= self._segment
        }
        newest = max(sizes.items(), default=(0, 0))
        return sum(sizes.values()) - (self._offset if self._segment in sizes else 0), newest

    def _add(self, records: Sequence[spool.Record]) -> None:
        for kind, number, host_ns, lba, sectors, data in records:
            if number > self.writer.count + 1:
                raise BadInput(f"{self._folder} is damaged: write {self.writer.count + 1} is missing")
            if number > self.writer.count:
                self.writer.add(0, kind, lba, sectors, data, host_ns)

    def close(self) -> None:
        """Let go of the files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self.writer.close()

    def _next_segment(self) -> bool:
        """Go to the segment after this one; false where there is none yet."""
        later = [number for number in spool.segments(self._folder) if number > self._segment]
        if not later:
            return False
        if self._descriptor >= 0:
            # Nothing more was read, and the next one exists: is this one complete now?
            if any(True for _ in spool.batches(self._descriptor, self._offset)):
                return True
            os.close(self._descriptor)
        self._segment, self._offset = later[0], 0
        self._descriptor = os.open(
            spool.segment_path(self._folder, self._segment), os.O_RDONLY | os.O_CLOEXEC
        )
        return True


def recover(path: Path, say: Callable[[str], None] = lambda line: None) -> bool:
    """Move what a killed server left in the spool into the history; true if there was something.

    Does nothing while a server runs.  Raises `BadInput` where the folder cannot be written.
    """
    folder = spool.folder_of(path)
    if not folder.is_dir() or not spool.segments(folder):
        return False
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder} holds writes that are not in {path} yet: make both writable")
    try:
        lock = spool.Lock(path)
    except BadInput:
        return False
    try:
        size = sum(spool.segment_path(folder, number).stat().st_size for number in spool.segments(folder))
        say(f"{path}: moving {size >> 20:,} MB of writes that a killed server left into the history")
        packer = Packer(path)
        try:
            while packer.step():
                pass
            packer.writer.seal("recovered")
        finally:
            packer.close()
        for number in spool.segments(folder):
            spool.segment_path(folder, number).unlink()
    finally:
        lock.release()
    return True


def main() -> int:
    """Pack for the server on the other side of stdin and stdout."""
    os.nice(_NICE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the server, which then says "finish"
    packer = Packer(Path(sys.argv[1]))
    patience = _Patience()
    finishing = False
    try:
        while True:
            waiting, newest = packer.waiting
            worked = 0
            if finishing or patience.ends(waiting, newest):
                worked = packer.step()
            if worked:
                _tell(packer)
            elif finishing:
                packer.writer.seal(_CLOSED)
                return 0
            if not finishing and select.select([0], [], [], 0 if worked else LOOK_EVERY_S)[0]:
                finishing = b"finish" in os.read(0, 100)
                if not finishing:
                    return 0
    except TTError as e:
        sys.stderr.write(f"chronus: {e}\n")
        return e.exit_code
    except BrokenPipeError:
        return 0
    finally:
        packer.close()


class _Patience:
    """When to pack: the disk is idle, or it has been busy for long, or much is to be packed."""

    def __init__(self) -> None:
        self._newest = (0, 0)
        self._since = time.monotonic()

    def ends(self, waiting: int, newest: tuple[int, int]) -> bool:
        """Return whether to pack now, where the spool ends at `newest` and `waiting` bytes are not packed."""
        alone, self._newest = newest == self._newest, newest
        if not waiting or alone or time.monotonic() - self._since > _PATIENT_S:
            self._since = time.monotonic()
            return waiting > 0
        return waiting > _PATIENT_BYTES


def _tell(packer: Packer) -> None:
    sys.stdout.write(f"{packer.writer.count} {packer.segment}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
