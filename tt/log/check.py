"""Looking a whole trace over, without replaying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tt.errors import BadInput
from tt.events import Kind
from tt.log.blobs import contents_digest
from tt.log.connection import guard
from tt.log.disk_rows import ChangeKind
from tt.log.sectors import BLOCK_SECTORS

if TYPE_CHECKING:
    from tt.log.reader import DiskWrite, Trace


def problems(trace: Trace) -> Iterator[str]:
    """Read everything in `trace` and yield what is wrong, a line each."""
    for check in (_tables, _events, _disk_writes, _digests, _bookmarks, _files, _frames, _blobs):
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
    """Every DISK_WRITE event has its row, with the contents it was logged with, and the index agrees."""
    writes = trace.disk_writes()
    for number, event in trace.numbered_events(kinds={Kind.DISK_WRITE}):
        write = next(writes, None)
        if write is None or (write.event, write.tick, write.disk, write.lba) != (
            number,
            event.tick,
            event.unit,
            event.value,
        ):
            yield f"{trace.path} is damaged: event #{number} and the disk writes disagree"
            return
        if contents_digest(write.data()) != event.data:
            yield f"{trace.path} is damaged: disk write w{write.number} does not match its event"
        yield from _indexed(trace, write)
    for write in writes:
        if write.event >= 0:
            yield f"{trace.path} is damaged: it holds disk writes that have no event"
            return
        if write.kind is ChangeKind.DATA:
            write.data()
        yield from _indexed(trace, write)


def _indexed(trace: Trace, write: DiskWrite) -> Iterator[str]:
    """Each piece of a write is found again by its block."""
    if trace.version < 3 or write.kind is not ChangeKind.DATA:
        return
    for lba, key, size in write.pieces():
        found = trace.disk_log.pieces(write.disk, lba // BLOCK_SECTORS, write.number)
        if not found or (found[-1].number, found[-1].key, found[-1].size) != (write.number, key, size):
            yield f"{trace.path} is damaged: the index of its disk writes does not know w{write.number}"
            return


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


def _frames(trace: Trace) -> Iterator[str]:
    if trace.version >= 5:
        trace.check_frames()
    yield from ()


def _blobs(trace: Trace) -> Iterator[str]:
    with guard(trace.path):
        for key, *_rest in trace.rows("blobs", "hash, raw_size, packed"):
            trace.blob(key)
    yield from ()
