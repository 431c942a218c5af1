"""The trace: one `.tt` file that holds everything a replay needs.

This room knows bytes and tables; it imports neither the VMM nor Unicorn, so a
trace can be read where neither is installed.  `docs/trace-format.md` draws the
format.

Writing::

    with TraceWriter(path, meta={"machine": {...}, "period_ns": 4}) as writer:
        writer.add_file("kernel", kernel_bytes)     # named bytes of any size, stored in pieces
        writer.add(event)                           # ticks must not go backwards
        writer.add_digest(tick, digest_bytes)
        writer.bookmark("before-crash", tick)
        writer.commit(tick)                         # all up to `tick` is now safe; once a second or oftener
        writer.seal(tick, "power off", {...})       # the recording ended well

Leaving the `with` without `seal` closes the file unsealed.  `add` of a
DISK_WRITE takes the contents in `data`; they go into rows and shared blocks,
and the event log keeps only `contents_digest(data)` (16 bytes) in their place.
`add_blob(data) -> hash` stores bytes once by content.  Console output should go
through a `ConsoleCoalescer` first (see there; the recorder and the replay
checker both use it).  Whatever cannot be written raises `TTError`; what was
committed stays safe.

Reading::

    with Trace.open(path) as trace:
        trace.meta, trace.sealed, trace.reason, trace.summary, trace.end_tick
        for event in trace.events(first_tick=0, last_tick=None, kinds=None): ...
        trace.event_count, trace.event(17)          # events are numbered from 0
        trace.digests() -> iterator of (tick, digest)
        trace.checkpoints -> list of StoredCheckpoint (tick, digest, changed, .state, .page(number))
        trace.disk_writes() -> iterator of DiskWrite (number, tick, disk, lba, sectors, .data())
        trace.frames() -> iterator of Frame (number, tick, ns, card, incoming, data)
        trace.bookmarks -> {name: tick}
        trace.console() -> iterator of (tick, unit, bytes)
        trace.files -> {name: size};  trace.file("kernel") -> bytes;  trace.blob(hash) -> bytes
        trace.resolve("50%", current=0) -> tick     # the grammar of tt.position
        trace.tick_at_ns(ns), trace.ns_at_tick(tick)   # guest time, from meta["period_ns"] and WAKE events
        trace.sql("select kind, count(*) from events group by 1") -> Rows (columns, iterable)
        trace.verify_structure() -> list of problems, empty when the file is sound

A damaged or hostile file raises `BadInput` with one clear line.
"""

from __future__ import annotations

from tt.log.ahead import EventsAhead
from tt.log.background import BackgroundWriter
from tt.log.blobs import contents_digest
from tt.log.coalesce import ConsoleCoalescer
from tt.log.reader import DiskWrite, Frame, Trace
from tt.log.writer import TraceWriter

__all__ = [
    "BackgroundWriter",
    "ConsoleCoalescer",
    "DiskWrite",
    "EventsAhead",
    "Frame",
    "Trace",
    "TraceWriter",
    "contents_digest",
]
