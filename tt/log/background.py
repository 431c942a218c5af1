"""A trace writer in a thread of its own, so that packing and fsync never hold up a guest."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tt.errors import BadInput, TTError, UsageError
from tt.events import FRAMES, Event, Kind
from tt.log.writer import TraceWriter

_TIMED = FRAMES | {Kind.DISK_WRITE}
_WAITING_COMMITS = 8  # before the recorder has to wait for the disk
_LARGE_BYTES = 8 << 20


class BackgroundWriter:
    """`TraceWriter`'s interface for one recording thread; the work is done in another.

    What is added becomes safe at the next `commit`, as with `TraceWriter`, but a little later.
    An error of the writing thread (a full disk) is raised by the next call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Mapping[str, Any],
        overwrite: bool = False,
        checkpoint_bytes: int = 1 << 62,
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise UsageError(f"{self.path} exists already: choose another name, or remove it first")
        if not self.path.absolute().parent.is_dir():
            raise BadInput(f"cannot write {self.path}: the folder {self.path.parent} does not exist")
        self._meta = meta
        self._overwrite = overwrite
        self._checkpoint_bytes = checkpoint_bytes
        self._events: list[tuple[Event, int]] = []
        self._bytes = 0
        self._digests: list[tuple[int, bytes]] = []
        self._error: BaseException | None = None
        self._jobs: queue.Queue[Callable[[TraceWriter], object] | None] = queue.Queue(_WAITING_COMMITS)
        # A daemon: a writer that was not closed leaves the trace at its last commit, and the process can end.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="trace writer", daemon=True
        )
        self._thread.start()

    def add(self, event: Event, host_ns: int | None = None) -> None:
        """Log an event; `host_ns` says when a disk write or a frame was (ns since 1970; None: now)."""
        if host_ns is None:
            host_ns = time.time_ns() if event.kind in _TIMED else 0
        self._events.append((event, host_ns))
        self._bytes += len(event.data)
        if self._bytes > _LARGE_BYTES:
            self._hand_over()

    def add_digest(self, tick: int, digest: bytes) -> None:
        """Log the digest of the machine's state at `tick`."""
        self._digests.append((tick, digest))

    def add_file(self, name: str, contents: bytes | Path) -> None:
        """Store named bytes, or a file of the host's."""

        def job(writer: TraceWriter) -> None:
            if isinstance(contents, Path):
                with contents.open("rb") as f:
                    writer.add_file(name, f)
            else:
                writer.add_file(name, contents)

        self._submit(job)

    def add_checkpoint(
        self,
        tick: int,
        state: dict[str, Any],
        digest: bytes,
        pages: bytes,
        contents: bytes,
        cost: int | None = None,
    ) -> None:
        """Store the machine at `tick`: see `TraceWriter.add_checkpoint`."""
        self._submit(lambda writer: writer.add_checkpoint(tick, state, digest, pages, contents, cost))

    @property
    def behind(self) -> bool:
        """Whether the writing thread has more waiting than it should."""
        return self._jobs.qsize() > _WAITING_COMMITS // 2

    def commit(self, tick: int) -> None:
        """Have everything so far, up to `tick`, made safe."""
        self._hand_over()
        self._submit(lambda writer: writer.commit(tick))

    def wait(self) -> None:
        """Return when all that was submitted is done; raises what went wrong."""
        done = threading.Event()
        self._submit(lambda writer: done.set())
        while not done.wait(0.02):
            if self._error is not None:
                raise self._error

    def seal(self, end_tick: int, reason: str, summary: Mapping[str, Any] | None = None) -> None:
        """Commit, mark the trace as complete, close it, and wait until that is done."""
        self._hand_over()
        self._submit(lambda writer: writer.seal(end_tick, reason, summary))
        self._finish()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file at its last commit; what was not committed is lost."""
        self._finish()

    # ---- inside

    def _hand_over(self) -> None:
        events, self._events = self._events, []
        digests, self._digests = self._digests, []
        self._bytes = 0
        if not events and not digests:
            return

        def job(writer: TraceWriter) -> None:
            for event, host_ns in events:
                writer.add(event, host_ns)
            for digest in digests:
                writer.add_digest(*digest)

        self._submit(job)

    def _submit(self, job: Callable[[TraceWriter], object]) -> None:
        if self._error is not None:
            raise self._error
        if self._thread is None:
            raise TTError(f"cannot write {self.path}: it is closed")
        self._jobs.put(job)

    def _finish(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        writer: TraceWriter | None = None
        try:
            writer = TraceWriter(
                self.path,
                self._meta,
                overwrite=self._overwrite,
                checkpoint_bytes=self._checkpoint_bytes,
            )
            while (job := self._jobs.get()) is not None:
                job(writer)
        except BaseException as error:
            self._error = error
            while self._jobs.get() is not None:  # empty the queue: `put` would wait for ever on a full one
                pass
        finally:
            if writer is not None:
                writer.close()
