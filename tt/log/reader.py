"""Reading a trace.  Nothing in the file is trusted: every row's CRC and bounds are checked on the way."""

from __future__ import annotations

import json
import os
import sqlite3
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tt import position
from tt.errors import BadInput, UsageError
from tt.events import FRAMES, Event, Kind
from tt.log import chunks
from tt.log.blobs import HASH_SIZE, contents_digest, unpack
from tt.log.checkpoints import CheckpointReader, StoredCheckpoint
from tt.log.connection import connect, guard
from tt.log.disk_log import DiskLog, open_log
from tt.log.disk_rows import ChangeKind
from tt.log.frames import FrameReader, Reference, reference
from tt.log.kept import Kept
from tt.log.schema import MAX_DIGEST, MAX_FILE_PIECES, PIECE, probe, row_crc
from tt.log.sectors import SECTOR, piece_count, piece_sizes
from tt.log.text import lines

if TYPE_CHECKING:
    from tt.log.query import Rows, Tables

DEFAULT_PERIOD_NS = 4
_DEEPEST = 50
_KEPT_CHUNKS = 1024
_KEPT_BYTES = 64 << 20  # of the events' data in them
_DISK_WRITE_COLUMNS = {
    False: "number, tick, disk, lba, sectors, hashes",
    True: "number, event, tick, host_ns, disk, kind, lba, sectors, hashes",
}


@dataclass(frozen=True)
class Chunk:
    """Where a chunk of events is, without its contents."""

    number: int
    count: int
    first_tick: int
    last_tick: int


@dataclass(frozen=True)
class Frame:
    """The `number`-th Ethernet frame (from 1) that a card of the guest got or sent: event `event`.

    `card` counts from 0; `incoming` says that the guest got it; `ns` is guest time since power-on,
    `host_ns` when it was logged, since 1970; `data` begins with the destination's address and has
    no checksum at its end.
    """

    number: int
    event: int
    tick: int
    ns: int
    host_ns: int
    card: int
    incoming: bool
    data: bytes


@dataclass(frozen=True)
class DiskWrite:
    """The `number`-th write (from 1) that reached a disk: `sectors` of 512 bytes from `lba`.

    It was logged as event `event`, -1 where the trace has no machine, at `host_ns` (ns since 1970; 0
    where a trace of before format 3 does not say).
    """

    trace: Trace
    number: int
    event: int
    tick: int
    host_ns: int
    disk: int
    kind: ChangeKind
    lba: int
    sectors: int
    hashes: bytes

    def pieces(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (lba, content hash, bytes) of each piece; see `tt.log.sectors`."""
        lba = self.lba
        for at, size in enumerate(piece_sizes(self.lba, self.sectors)):
            yield lba, self.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE], size
            lba += size // SECTOR

    def data(self) -> bytes:
        """Return the contents; raises `BadInput` when they are damaged."""
        if self.kind is not ChangeKind.DATA:
            return bytes(self.sectors * SECTOR)
        return b"".join(self.trace.blob(key, size) for _lba, key, size in self.pieces())


class Trace:
    """The reading end of one trace, as it was when it was opened.  Use `Trace.open`.

    `meta` is the recorder's description of what was recorded; `end_tick` the
    tick up to which it is complete; `sealed` whether the recorder closed it
    itself, giving `reason` and `summary`.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self.version = probe(path)
        self._db = db
        self._decoded: tuple[int, list[Event]] = (-1, [])
        self._chosen: Kept[tuple[int, frozenset[Kind]], tuple[Event, ...]] = Kept(_KEPT_BYTES, _KEPT_CHUNKS)
        self._frames = FrameReader(self, db)
        self._frames_before = [(0, 0)]  # frames, and ns of idling, before each chunk, as far as is known
        self._tables: Tables | None = None
        with guard(path):
            self.meta: dict[str, Any] = self._read_meta()
            self._read_progress()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """Open the trace at `path` for reading; raises `BadInput` when it is damaged or no trace."""
        path = Path(path)
        db = connect(path)
        try:
            return cls(path, db)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._tables is not None:
            self._tables.close()
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # Events

    def events(
        self, first_tick: int = 0, last_tick: int | None = None, kinds: Collection[Kind] | None = None
    ) -> Iterator[Event]:
        """Yield the events with first_tick <= tick <= last_tick in order, of `kinds` or of all.

        A DISK_WRITE carries the `contents_digest` of its contents as data.
        """
        for _number, event in self.numbered_events(first_tick, last_tick, kinds):
            yield event

    def numbered_events(
        self, first_tick: int = 0, last_tick: int | None = None, kinds: Collection[Kind] | None = None
    ) -> Iterator[tuple[int, Event]]:
        """Yield (number, event) as `events` does; numbers count all events from 0."""
        last = self.end_tick if last_tick is None else last_tick
        for chunk in self.chunks:
            if chunk.last_tick < first_tick:
                continue
            if chunk.first_tick > last:
                return
            for number, event in enumerate(self._load(chunk), chunk.number):
                if first_tick <= event.tick <= last and (kinds is None or event.kind in kinds):
                    yield number, event

    def events_in(self, at: int, kinds: frozenset[Kind]) -> tuple[Event, ...]:
        """Return the events of `kinds` in the chunk `chunks[at]`; the last chunks asked for are kept."""
        key = (at, kinds)
        found = self._chosen.get(key)
        if found is None:
            found = tuple(event for event in self._load(self.chunks[at]) if event.kind in kinds)
            self._chosen.put(key, found, sum(len(event.data) for event in found))
        return found

    def event(self, number: int) -> Event:
        """Return event `number` (from 0); raises `UsageError` when there is none."""
        if not 0 <= number < self.event_count:
            raise UsageError(f"there is no event #{number}: {self.path} has #0 to #{self.event_count - 1}")
        chunk = self.chunks[bisect_right(self.chunks, number, key=lambda c: c.number) - 1]
        if self._decoded[0] != chunk.number:
            self._decoded = (chunk.number, self._load(chunk))
        return self._decoded[1][number - chunk.number]

    def timed_events(self, kinds: Collection[Kind]) -> Iterator[tuple[int, Event]]:
        """Yield (guest ns, event) of the events of `kinds`."""
        idled = 0
        for event in self.events(kinds={*kinds, Kind.WAKE}):
            if event.kind is Kind.WAKE:
                idled += event.value
            if event.kind in kinds:
                yield event.tick * self.period_ns + idled, event

    @property
    def event_log_size(self) -> int:
        """Bytes of the packed event chunks in the file."""
        with guard(self.path):
            return int(self._db.execute("SELECT ifnull(sum(length(packed)), 0) FROM chunks").fetchone()[0])

    def console(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (tick, unit, bytes) of what the guest printed, as it was logged: see `ConsoleCoalescer`."""
        for event in self.events(kinds={Kind.CONSOLE}):
            yield event.tick, event.unit, event.data

    def console_lines(self) -> Iterator[tuple[int, int, str]]:
        """Yield (tick of the first byte, unit, text) of each line printed, without its line end."""
        return lines(self.console())

    # Everything else

    @cached_property
    def bookmarks(self) -> dict[str, int]:
        """The ticks that have names."""
        names = {}
        for name, tick in self.rows("bookmarks", "name, tick"):
            names[str(name)] = self._natural(tick, "a bookmark")
        return names

    @cached_property
    def files(self) -> dict[str, int]:
        """The named files in the trace, and their sizes in bytes."""
        return {name: size for name, size, _hashes in self._file_rows()}

    def file(self, name: str) -> bytes:
        """Return the contents of a named file; raises `BadInput` when it is not there."""
        return b"".join(self.file_pieces(name))

    def file_pieces(self, name: str) -> Iterator[bytes]:
        """Yield the contents of a named file in pieces of 64 KB (the last may be shorter)."""
        for found, size, hashes in self._file_rows():
            if found == name:
                for at in range(len(hashes) // HASH_SIZE):
                    length = min(PIECE, size - at * PIECE)
                    yield self.blob(hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE], length)
                return
        raise BadInput(f"{self.path} holds no file named {name}: it has {', '.join(self.files) or 'none'}")

    def digests(self) -> Iterator[tuple[int, bytes]]:
        """Yield (tick, digest of the whole state), by tick; raises `BadInput` when one is missing."""
        count, last = 0, -1
        for tick, digest in self.rows("digests", "tick, digest"):
            whole = isinstance(tick, int) and isinstance(digest, bytes) and len(digest) <= MAX_DIGEST
            if not whole or tick <= last:
                raise self.damaged("the digests are out of order")
            count, last = count + 1, tick
            yield tick, digest
        if count != self.digest_count:
            raise self.damaged(f"it should hold {self.digest_count} digests, it holds {count}")

    @cached_property
    def checkpoints(self) -> list[StoredCheckpoint]:
        """The checkpoints that were recorded, by tick; none in a trace of format version 1."""
        return CheckpointReader(self, self._db).all() if self.version > 1 else []

    def frames(self, first_tick: int = 0, last_tick: int | None = None) -> Iterator[Frame]:
        """Yield the Ethernet frames with first_tick <= tick <= last_tick, in order, numbered from 1."""
        last = self.end_tick if last_tick is None else last_tick
        period, before = self.period_ns, self._frames_before
        for at, chunk in enumerate(self.chunks):
            if chunk.first_tick > last:
                return
            if chunk.last_tick < first_tick and at + 1 < len(before):
                continue
            number, idled = before[at]
            for event_number, event in enumerate(self._stored(chunk), chunk.number):
                if event.kind is Kind.WAKE:
                    idled += event.value
                if event.kind not in FRAMES:
                    continue
                number += 1
                if first_tick <= event.tick <= last:
                    told = self._reference(event)
                    incoming = event.kind is Kind.FRAME_IN
                    data = self._frames.contents(told)
                    yield Frame(
                        number, event_number, event.tick, event.tick * period + idled, told.host_ns,
                        event.unit, incoming, data,
                    )  # fmt: skip
            if at + 1 == len(before):
                before.append((number, idled))

    def check_frames(self) -> None:
        """Read the contents of all frames; raises `BadInput`."""
        self._frames.check()

    def disk_writes(self) -> Iterator[DiskWrite]:
        """Yield the writes to all disks, in the order they happened."""
        number, last_event, last_host = self.squashed_before, -1, 0
        for row in self.rows("disk_writes", _DISK_WRITE_COLUMNS[self.version >= 3]):
            *plain, hashes = row
            if self.version >= 3:
                found, event, tick, host_ns, disk, kind, lba, sectors = plain
            else:
                (event, tick, disk, lba, sectors), found, host_ns, kind = plain, number + 1, 0, 0
            for value in (tick, host_ns, disk, kind, lba, sectors):
                self._natural(value, "a disk write")
            number += 1
            with_machine = isinstance(event, int) and event > last_event
            if found != number or not (with_machine or event == last_event == -1) or host_ns < last_host:
                raise self.damaged("the disk writes are out of order")
            pieces = piece_count(lba, sectors) if kind == ChangeKind.DATA else 0
            if kind > max(ChangeKind) or not isinstance(hashes, bytes) or len(hashes) != HASH_SIZE * pieces:
                raise self.damaged(f"disk write {number} has the wrong number of pieces")
            last_event, last_host = event, host_ns
            yield DiskWrite(
                self, number, event, tick, host_ns, disk, ChangeKind(kind), lba, sectors, hashes
            )  # fmt: skip
        if number != self.disk_write_count:
            raise self.damaged(f"it should hold {self.disk_write_count} disk writes, it holds {number}")

    @cached_property
    def squashed_before(self) -> int:
        """The number of writes that were squashed: the instants before the last of them are forgotten."""
        return self._natural(self.meta.get("squashed_before", 0), "squashed_before")

    @cached_property
    def disk_log(self) -> DiskLog:
        """The disk writes, found by number, time and block."""
        return open_log(self, self._db)

    def blob(self, key: bytes, size: int | None = None) -> bytes:
        """Return the contents stored under a hash (of `size` bytes, if given); raises `BadInput`."""
        with guard(self.path):
            query = "SELECT raw_size, packed, crc FROM blobs WHERE hash = ?"
            row = self._db.execute(query, (key,)).fetchone()
            if row is None:
                raise self.damaged(f"the contents {key.hex()} are missing")
            raw_size, packed, crc = row
            if not isinstance(raw_size, int) or not isinstance(packed, bytes):
                raise self.damaged(f"the contents {key.hex()} are not bytes")
            if row_crc("blobs", key, raw_size, packed) != crc or size not in (None, raw_size):
                raise self.damaged(f"the contents {key.hex()} have a wrong checksum or size")
            try:
                data = unpack(packed, raw_size)
            except BadInput as e:
                raise self.damaged(str(e)) from None
            if contents_digest(data) != key:
                raise self.damaged(f"the contents {key.hex()} do not match their hash")
            return data

    def sql(self, query: str, timeout_s: float | None = None) -> Rows:
        """Run one read-only query, in which packed events appear as plain tables.

        Raises `UsageError` when the query is wrong; see `tt.log.query`.
        """
        return self._sql_tables().run(query, timeout_s)

    def sql_tables(self) -> dict[str, dict[str, str]]:
        """Return the tables that `sql` can name: their columns and the columns' types."""
        return self._sql_tables().schema()

    def verify_structure(self) -> list[str]:
        """Read everything; return what is wrong with the file, one line each."""
        from tt.log.check import problems

        return list(problems(self))

    # Positions

    def resolve(self, text: str, current: int = 0) -> int:
        """Return the tick that `text` names (see `tt.position`), standing at `current`."""
        return position.resolve(position.parse(text), _Standing(self, current))

    def tick_at_ns(self, ns: int) -> int:
        """Return the first tick at which guest time has reached `ns`, as far as the trace goes."""
        idled = 0
        for wake in self.events(kinds={Kind.WAKE}):
            if wake.tick * self.period_ns + idled + wake.value >= ns:
                return min(wake.tick, self._tick_after(ns - idled))
            idled += wake.value
        return self._tick_after(ns - idled)

    def ns_at_tick(self, tick: int) -> int:
        """Return guest time at `tick`, after the idling that ended there."""
        return tick * self.period_ns + sum(w.value for w in self.events(last_tick=tick, kinds={Kind.WAKE}))

    @property
    def period_ns(self) -> int:
        """Guest ns per tick."""
        period = self.meta.get("period_ns", DEFAULT_PERIOD_NS)
        if not isinstance(period, int) or period <= 0:
            raise self.damaged("its period_ns is not a positive number")
        return period

    def _tick_after(self, busy_ns: int) -> int:
        return max(0, -(-busy_ns // self.period_ns))

    # How

    def _sql_tables(self) -> Tables:
        if self._tables is None:
            from tt.log.query import Tables

            self._tables = Tables(self)
        return self._tables

    def rows(self, table: str, columns: str, where: str = "true") -> Iterator[tuple[Any, ...]]:
        """Yield a table's rows in the order of its key, their CRCs checked and left out."""
        with guard(self.path):
            last: Any = None
            for *row, crc in self._db.execute(f"SELECT {columns}, crc FROM {table} WHERE {where} ORDER BY 1"):
                plain = all(isinstance(value, (int, str, bytes)) for value in row)
                if not plain or row_crc(table, *row) != crc:
                    raise self.damaged(f"a row of {table} has a wrong checksum")
                # A file whose pages form a loop would give the same rows for ever.
                if last is not None and not (type(last) is type(row[0]) and last < row[0]):
                    raise self.damaged(f"the rows of {table} are out of order")
                last = row[0]
                yield tuple(row)

    def integrity(self) -> Iterator[str]:
        """Yield what SQLite finds wrong with its pages, or "ok"."""
        with guard(self.path):
            for (line,) in self._db.execute("PRAGMA integrity_check(20)"):
                yield from str(line).splitlines()

    def damaged(self, what: str) -> BadInput:
        """Return the error that says so."""
        return BadInput(f"{self.path} is damaged: {what}")

    def _natural(self, value: Any, what: str) -> int:
        if not isinstance(value, int) or value < 0:
            raise self.damaged(f"{what} has a number that makes no sense")
        return value

    def _read_meta(self) -> dict[str, Any]:
        meta = {}
        for key, value in self.rows("meta", "key, value"):
            meta[str(key)] = _plain(json.loads(value))
        return meta

    def _read_progress(self) -> None:
        columns = "id, end_tick, events, disk_writes, digests, sealed, reason, summary"
        rows = list(self.rows("progress", columns))
        if len(rows) != 1:
            raise self.damaged("it does not say how far it was recorded")
        _id, tick, events, disk_writes, digests, sealed, reason, summary = rows[0]
        self.end_tick = self._natural(tick, "progress")
        self.event_count = self._natural(events, "progress")
        self.disk_write_count = self._natural(disk_writes, "progress")
        self.digest_count = self._natural(digests, "progress")
        self.sealed = bool(sealed)
        self.reason = str(reason)
        self.summary: dict[str, Any] = _plain(json.loads(summary))
        if not isinstance(self.summary, dict):
            raise self.damaged("its summary is not a table")

    @property
    def end_state(self) -> str:
        """What the last digest is of: `arrival` at the last tick, `idle` or `power` after its events.

        Empty where that is not known: in a recording that was cut off, or is of an older version.
        """
        if not self.sealed:
            return ""
        state = self.summary.get("at", "power" if self.summary.get("ended") else "")
        return state if state in ("arrival", "idle", "power") else ""

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All chunks of events, checked to follow one another with none missing."""
        found: list[Chunk] = []
        number = tick = 0
        with guard(self.path):
            rows = self._db.execute("SELECT number, count, first_tick, last_tick FROM chunks ORDER BY number")
            for row in rows:
                if not all(isinstance(value, int) for value in row):
                    raise self.damaged("the list of event chunks holds something other than numbers")
                chunk = Chunk(*row)
                if chunk.number != number or not 0 < chunk.count <= chunks.MAX_EVENTS:
                    raise self.damaged(f"the events from #{number} on are missing")
                if not tick <= chunk.first_tick <= chunk.last_tick <= self.end_tick:
                    raise self.damaged(f"the ticks of the events from #{number} on are out of order")
                number, tick = number + chunk.count, chunk.last_tick
                found.append(chunk)
                if number > self.event_count:
                    break
        if number != self.event_count:
            raise self.damaged(f"it should hold {self.event_count} events, it holds {number}")
        return found

    def _load(self, chunk: Chunk) -> list[Event]:
        """Return the events of a chunk as they happened: frames with their contents."""
        events = self._stored(chunk)
        for at, event in enumerate(events):
            if event.kind in FRAMES:
                events[at] = event._replace(data=self._frames.contents(self._reference(event)))
        return events

    def _reference(self, event: Event) -> Reference:
        try:
            return reference(event.data)
        except BadInput as e:
            raise self.damaged(f"tick {event.tick:,}: {e}") from None

    def _stored(self, chunk: Chunk) -> list[Event]:
        with guard(self.path):
            query = "SELECT raw_size, packed, crc FROM chunks WHERE number = ?"
            row = self._db.execute(query, (chunk.number,)).fetchone()
            raw_size, packed, crc = row or (None, None, None)
            if not isinstance(raw_size, int) or not isinstance(packed, bytes):
                raise self.damaged(f"the events from #{chunk.number} on are missing")
            if row_crc("chunks", *astuple(chunk), raw_size, packed) != crc:
                raise self.damaged(f"the chunk of events from #{chunk.number} on has a wrong checksum")
            try:
                events = chunks.decode(packed, raw_size, chunk.count, chunk.first_tick)
            except BadInput as e:
                raise self.damaged(f"the events from #{chunk.number} on: {e}") from None
            if events[-1].tick != chunk.last_tick:
                raise self.damaged(f"the events from #{chunk.number} on end at another tick than they claim")
            return events

    def _file_rows(self) -> Iterator[tuple[str, int, bytes]]:
        for name, size, hashes in self.rows("files", "name, size, hashes"):
            pieces = -(-self._natural(size, "a file") // PIECE)
            if not isinstance(hashes, bytes) or pieces > MAX_FILE_PIECES or len(hashes) != pieces * HASH_SIZE:
                raise self.damaged(f"the file {name} has the wrong number of pieces")
            yield str(name), size, hashes


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a JSON value, having refused one so deep that walking it would end in a RecursionError."""
    if depth > _DEEPEST:
        raise ValueError(f"its description is nested more than {_DEEPEST} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain(inner, depth + 1)
    return value


@dataclass
class _Standing:
    """The place in a trace that `tt.position` resolves positions from."""

    trace: Trace
    tick: int

    @property
    def end_tick(self) -> int:
        return self.trace.end_tick

    @property
    def bookmarks(self) -> dict[str, int]:
        return self.trace.bookmarks

    def event_tick(self, number: int) -> int:
        return self.trace.event(number).tick

    def tick_at_ns(self, ns: int) -> int:
        return self.trace.tick_at_ns(ns)
