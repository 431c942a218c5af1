"""The history of a disk: its base image, and every write since, so that it can be read at any instant."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tt.chronus.store import positions, spool
from tt.chronus.store.bursts import BURST_GAP_NS, Burst, bursts
from tt.chronus.store.host_file import data_ranges
from tt.chronus.store.images import ImageSpan, image_spans, span_around
from tt.chronus.store.spooled import MissingWrites, SpooledLog
from tt.chronus.store.view import DiskView
from tt.chronus.store.write import Write
from tt.errors import UsageError
from tt.events import Kind
from tt.log import Trace
from tt.log.blobs import HASH_SIZE
from tt.log.disk_log import DiskLog, Entry, Piece
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DISK_ONLY
from tt.log.sectors import BLOCK_SECTORS, SECTOR
from tt.vmm.config import MachineConfig
from tt.vmm.disk import BLOCK, Base, BaseImage
from tt.vmm.disk_images import open_disks

_CACHED_BLOCKS = 4096
_FEW_BLOCKS = 1 << 16
_TRIES = 2  # to open a history that is being served


class History:
    """One disk of a trace, at every instant of its past.  Use `History.open`.

    Instant n is the disk after the first n writes of the trace: 0 is the base image, `count` the
    newest, `first` the oldest that is known: 0, unless older ones were squashed.
    `size` is in bytes, `sectors` of 512 bytes, `disk` the number of the disk in its trace.

    The history is only read; writes that a killed server left in the spool are read there.
    """

    def __init__(self, trace: Trace, base: Base, disk: int) -> None:
        self.trace = trace
        self.disk = disk
        self.name = str(trace.path)
        self.sectors = base.sectors
        self.size = base.sectors * SECTOR
        self._base = base
        self._log: DiskLog = trace.disk_log
        self._contents: Callable[[bytes, int], bytes] = trace.blob
        if not self.has_machine and spool.segments(spool.folder_of(trace.path)):
            self._log = spooled = SpooledLog(trace)
            self._contents = spooled.contents
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # (block, last piece) -> contents

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        base: Path | None = None,
        disk: int = 0,
        check_base: bool = True,
    ) -> Self:
        """Open the history of disk `disk` in the trace at `path`.

        `base` says where its base image is now; with `check_base`, one that has changed is refused.
        Raises `BadInput` for a damaged trace or a missing base, `UsageError` where there is no such disk.
        """
        for _try in range(_TRIES):
            with suppress(MissingWrites):  # writes were packed after the trace was opened: open it again
                return cls._open(path, base, disk, check_base)
        return cls._open(path, base, disk, check_base)

    @classmethod
    def _open(cls, path: str | os.PathLike[str], base: Path | None, disk: int, check_base: bool) -> Self:
        trace = Trace.open(path)
        try:
            config = config_of(trace)
            if not 0 <= disk < len(config.disks):
                there = (
                    f"it has disks 0 to {len(config.disks) - 1}" if config.disks else "its machine had none"
                )
                raise UsageError(f"{path} has no disk {disk}: {there}")
            bases = _bases(trace, config, disk, base)
            return cls(trace, open_disks(config, bases, check=check_base)[disk].base, disk)
        except BaseException:
            trace.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if isinstance(self._log, SpooledLog):
            self._log.close()
        self.trace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def has_machine(self) -> bool:
        """Whether the trace is a recording, whose writes have ticks, rather than a disk's history alone."""
        return bool(self.trace.meta.get("machine") != DISK_ONLY)

    @property
    def base(self) -> Base:
        """What the disk started out as."""
        return self._base

    # Writes

    @property
    def count(self) -> int:
        """How many writes there are: the instants are 0 to `count`."""
        return self._log.count

    @property
    def first(self) -> int:
        """The oldest instant."""
        return self._log.first - 1

    def write(self, number: int) -> Write:
        """Return write `number`, from `first` + 1 to `count`."""
        if not self.first < number <= self.count:
            raise UsageError(
                f"there is no write w{number}: {self.name} has w{self.first + 1} to w{self.count}"
            )
        return self._write(self._log.entry(number))

    def writes(self, first: int = 1, last: int | None = None) -> Iterator[Write]:
        """Yield the writes to this disk from number `first` to `last`, both among them."""
        for entry in self._log.entries(first, last):
            if entry.disk == self.disk:
                yield self._write(entry)

    def bursts(self, first: int = 0, last: int | None = None, gap_ns: int = BURST_GAP_NS) -> list[Burst]:
        """Group the writes between two instants: a burst ends where nothing is written for `gap_ns`.

        Where a bookmark is, one ends too; each imported image is one.
        """
        end = self.count if last is None else last
        ends = {*self.bookmarks.values(), *(span.last for span in self.images)}
        return bursts(self.rhythm(first + 1, end), self.write, gap_ns, ends)

    def rhythm(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield (number, time in ns, sectors) of the writes to this disk from number `first` to `last`.

        The time is the guest's where there is a machine, else the host's.
        """
        for number, tick, host_ns, sectors in self._log.rhythm(self.disk, first, last):
            yield number, self._guest_ns(tick) if self.has_machine else host_ns, sectors

    @cached_property
    def images(self) -> list[ImageSpan]:
        """The images that the history was imported from, none for the history of a disk that was used."""
        return image_spans(self.trace)

    @property
    def starts_empty(self) -> bool:
        """Whether w0 is an empty disk before the first imported image, a state the disk never had."""
        return bool(self.images) and not isinstance(self._base, BaseImage)

    def image_at(self, instant: int) -> ImageSpan | None:
        """Return the imported image that ends with write `instant`, None where none does."""
        return next((span for span in self.images if span.last == instant), None)

    def inside_image(self, instant: int) -> ImageSpan | None:
        """Return the imported image of which an instant has only a part: a state the disk never had."""
        return span_around(self.images, instant)

    def changed_blocks(self, one: int, other: int) -> set[int]:
        """Return the blocks of 4 KB that writes between two instants may have changed."""
        low, high = sorted((one, other))
        found: set[int] = set()
        for write in self.writes(low + 1, high):
            blocks = write.blocks
            if write.kind is ChangeKind.DATA or len(blocks) <= _FEW_BLOCKS:
                found.update(blocks)
                continue
            # Most of a discarded range was zeros before: only the rest can have changed.
            found.update(self._log.blocks_in(self.disk, blocks.start, blocks.stop - 1))
            found.update(self._base_data(blocks))
        return found

    # Contents

    def at(self, instant: int) -> Instant:
        """Return the disk at an instant; raises `UsageError` where there is none."""
        self.check(instant)
        return Instant(self, instant)

    def check(self, instant: int) -> int:
        """Return `instant`; raises `UsageError` where this history does not have it."""
        if not self.first <= instant <= self.count:
            known = f"w{self.first} (older ones were squashed)" if self.first else "w0 (the base)"
            raise UsageError(f"there is no instant w{instant}: {self.name} has {known} to w{self.count}")
        return instant

    def block(self, block: int, instant: int) -> bytes:
        """Return a block of 4 KB at an instant (the last of a disk may be shorter)."""
        return self.blocks(block, 1, instant)[0]

    def blocks(self, first: int, count: int, instant: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB at an instant."""
        return [self._block(block, instant) for block in range(first, first + count)]

    def pieces(self, block: int, instant: int) -> list[Piece]:
        """Return what the writes up to an instant made a block of, oldest first: see `DiskLog.pieces`."""
        return self._log.pieces(self.disk, block, instant)

    def identity(self, block: int, instant: int) -> bytes:
        """Return a name for a block's contents: 16 bytes, or `base`; equal names mean equal contents."""
        pieces = self.pieces(block, instant)
        if not pieces:
            return b"base"
        if len(pieces) == 1 and pieces[0].size == BLOCK:
            return pieces[0].key
        joined = b"".join(b"%d+%d:" % (p.offset, p.size) + p.key for p in pieces)
        return blake2b(joined, digest_size=HASH_SIZE).digest()

    # Positions

    def resolve(self, text: str, current: int | None = None) -> int:
        """Return the instant that `text` names; see `tt.chronus.store.positions`.  Raises `UsageError`."""
        return positions.resolve(self, text, self.count if current is None else current)

    def label(self, instant: int) -> str:
        """Return the short name of an instant: `w17`."""
        return f"w{instant}"

    def describe(self, instant: int) -> str:
        """Return an instant as people read it: its number, and when that was as far as is known."""
        return positions.describe(self, instant)

    def instant_at_tick(self, tick: int) -> int:
        """Return the instant at which a tick first found the disk.

        Without a machine, ticks are numbers of writes.
        """
        if not self.has_machine:
            return min(tick, self.count)
        return self._log.first_at("tick", tick)

    def instant_at_host_ns(self, host_ns: int) -> int:
        """Return the newest instant up to a time of the host's clock, in ns since 1970."""
        return self._log.first_at("host_ns", host_ns + 1)

    @property
    def bookmarks(self) -> Mapping[str, int]:
        """Instants that have names."""
        return {name: self.instant_at_tick(tick) for name, tick in self.trace.bookmarks.items()}

    # ---- inside

    def _write(self, entry: Entry) -> Write:
        guest_ns = self._guest_ns(entry.tick) if self.has_machine else None
        number, tick, host_ns, disk, kind, lba, sectors = entry
        return Write(number, disk, kind, lba, sectors, tick, guest_ns, host_ns or None)

    def _guest_ns(self, tick: int) -> int:
        ticks, idled = self._idling
        at = bisect_right(ticks, tick)
        return tick * self.trace.period_ns + (idled[at - 1] if at else 0)

    @cached_property
    def _idling(self) -> tuple[list[int], list[int]]:
        """The ticks at which the guest woke, and how many ns it had idled by then."""
        ticks, idled, total = [], [], 0
        for wake in self.trace.events(kinds={Kind.WAKE}):
            total += wake.value
            ticks.append(wake.tick)
            idled.append(total)
        return ticks, idled

    def _block(self, block: int, instant: int) -> bytes:
        pieces = self.pieces(block, instant)
        if not pieces:
            return self._base_block(block)
        key = (block, pieces[-1].number)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        contents = bytearray(b"" if pieces[0].size == BLOCK else self._base_block(block))
        for piece in pieces:
            data = self._contents(piece.key, piece.size) if piece.key else bytes(piece.size)
            contents[piece.offset : piece.offset + piece.size] = data
        found = bytes(contents)
        self._cache[key] = found
        if len(self._cache) > _CACHED_BLOCKS:
            self._cache.popitem(last=False)
        return found

    def _base_data(self, blocks: range) -> Iterator[int]:
        """Yield those of some blocks that are no holes of the base image."""
        if not isinstance(self._base, BaseImage):
            return
        begin, stop = blocks.start * BLOCK, min(blocks.stop * BLOCK, self.size)
        with self._base.path.open("rb") as f:
            for low, high in data_ranges(f.fileno(), stop, begin):
                yield from range(low // BLOCK, -(-high // BLOCK))

    def _base_block(self, block: int) -> bytes:
        lba = block * BLOCK_SECTORS
        return self._base.read(lba, min(BLOCK_SECTORS, self.sectors - lba))


class Instant(DiskView):
    """A disk of a history after its first `number` writes."""

    def __init__(self, history: History, number: int) -> None:
        self.history = history
        self.number = number
        self.sectors = history.sectors
        self.size = history.size
        self.where = f"{history.name} at {history.label(number)}"

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB."""
        return self.history.blocks(first, count, self.number)

    def identity(self, block: int) -> bytes:
        """Return a name of a block's contents: the same name at two instants means the same contents."""
        return self.history.identity(block, self.number)


def config_of(trace: Trace) -> MachineConfig:
    """Return what a trace says of its machine and its disks; raises `BadInput`."""
    plain: Any = trace.meta.get("config")
    if not isinstance(plain, dict):
        raise trace.damaged("it does not say which disks it had")
    return MachineConfig.from_plain(plain, {})


def _bases(trace: Trace, config: MachineConfig, disk: int, base: Path | None) -> dict[int, Path]:
    from tt.replay import extract_embedded

    if base is not None:
        return {disk: base}
    return extract_embedded(trace, config) or {}
