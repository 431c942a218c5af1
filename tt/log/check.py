"""Looking a whole trace over, without replaying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tt.errors import BadInput
from tt.events import Kind
from tt.log.blobs import contents_digest
from tt.log.connection import guard

if TYPE_CHECKING:
    from tt.log.reader import Trace


def problems(trace: Trace) -> Iterator[str]:
    """Read everything in `trace` and yield what is wrong, a line each."""
    for check in (_tables, _events, _disk_writes, _digests, _bookmarks, _files, _blobs):
        yield from _caught(check, trace)


def _caught(check: Callable[[Trace], Iterator[str]], trace: Trace) -> Iterator[str]:
    try:
        yield from check(trace)
    except BadInput as e:
        yield str(e)


def _tables(trace: Trace) -> Iterator[str]:
    """SQLite's own look at its pages."""
    for line in trace.integrity():
        if line != "ok":
            yield f"{trace.path} is damaged: {line}"


def _events(trace: Trace) -> Iterator[str]:
    for _event in trace.events():
        pass
    yield from ()


def _disk_writes(trace: Trace) -> Iterator[str]:
    """Every DISK_WRITE event has its row, with the contents the event was logged with."""
    writes = trace.disk_writes()
    for number, event in trace.numbered_events(kinds={Kind.DISK_WRITE}):
        write = next(writes, None)
        if write is None or (write.number, write.tick, write.disk, write.lba) != (
            number,
            event.tick,
            event.unit,
            event.value,
        ):
            yield f"{trace.path} is damaged: event #{number} and the disk writes disagree"
            return
        if contents_digest(write.data()) != event.data:
            yield f"{trace.path} is damaged: the contents of disk write #{number} are others"
    if next(writes, None) is not None:
        yield f"{trace.path} is damaged: it holds disk writes that are no events"


def _digests(trace: Trace) -> Iterator[str]:
    for tick, _digest in trace.digests():
        if tick > trace.end_tick:
            yield f"{trace.path} is damaged: a digest is of tick {tick}, past the end"


def _bookmarks(trace: Trace) -> Iterator[str]:
    for name, tick in trace.bookmarks.items():
        if tick > trace.end_tick:
            yield f"{trace.path} is damaged: the bookmark {name!r} is at tick {tick}, past the end"


def _files(trace: Trace) -> Iterator[str]:
    for name in trace.files:
        for _piece in trace.file_pieces(name):
            pass
    yield from ()


def _blobs(trace: Trace) -> Iterator[str]:
    with guard(trace.path):
        for key, *_rest in trace.rows("blobs", "hash, raw_size, packed"):
            trace.blob(key)
    yield from ()
