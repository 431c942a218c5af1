"""What probes said, kept beside the history: nothing is probed twice, and a search can be resumed.

`x.tt.verdicts` is JSON lines, one a verdict, appended as they come and never changed:

    {"trace": the history's id, "disk": 0, "instant": 17, "write": hex of what write 17 was,
     "probe": 16 hex digits of the probe's key, "about": its description, "timeout": seconds,
     "kind": "sound" | "sample", "outcome": "good" ..., "signature", "exit_code", "output", "console",
     "seconds", "seen": hex of a digest of what the probe saw, or null, "reads": blocks, packed, or null}

A verdict holds for another instant where the probe would see the same: the same digest, or the same contents
in all blocks that the run read (AutoBash's causal skipping, SOSP'07; sound as far as runs are
deterministic).  Samples are answers of probes that may be wrong: each counts once, for its own instant.
An incomplete line, left by a process that was killed, is skipped; so are lines of another history.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tt.chronus.search.verdicts import Outcome, Probe, ProbeVerdict
from tt.chronus.store.history import History
from tt.errors import BadInput

SOUND, SAMPLE = "sound", "sample"
_MOST_LINE = 16 << 20
_MOST_READS = 1 << 21  # blocks of a run: 8 GB
_MOST_READS_KEPT = 1 << 22
_MOST_TEXT = 16_000  # characters of output
_KEPT_SPANS = 64


@dataclass(frozen=True)
class Entry:
    """One line: what a probe said of an instant.  `packed` are the blocks read; see `reads`."""

    trace: str
    disk: int
    instant: int
    write: str
    probe: str
    about: str
    timeout: float
    kind: str
    verdict: ProbeVerdict
    seen: bytes | None = None
    packed: str | None = None

    @property
    def reads(self) -> frozenset[int] | None:
        """The blocks that the answer depended on; None where that is not known."""
        if self.packed is None:
            return None
        try:
            return unpack(self.packed)
        except (ValueError, zlib.error):
            return None


@dataclass
class _Known:
    """The verdicts of one probe."""

    sound: dict[int, Entry] = field(default_factory=dict)
    samples: dict[int, list[Entry]] = field(default_factory=dict)
    seen: dict[bytes, Entry] = field(default_factory=dict)
    reads: list[tuple[Entry, frozenset[int]]] = field(default_factory=list)


class VerdictLog:
    """The verdicts of one disk of one history; with `path` None they are kept in memory only.

    `trouble` says why they cannot be written, empty if they can.  Raises `BadInput` for a file that
    cannot be read.
    """

    def __init__(self, history: History, path: Path | None) -> None:
        self.path = path
        self.trouble = ""
        self._history = history
        self._trace = trace_id(history)
        self._probes: dict[str, _Known] = {}
        self._waiting: dict[str, list[Entry]] = {}  # by probe, for those not asked for yet
        self._written: dict[tuple[int, int], set[int]] = {}
        self._room = _MOST_READS_KEPT
        if path is not None and path.exists():
            for entry in self.entries(read(path)):
                self._waiting.setdefault(entry.probe, []).append(entry)

    def entries(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield those that are about this disk."""
        for entry in entries:
            if (entry.trace, entry.disk) == (self._trace, self._history.disk):
                yield entry

    def find(self, probe: Probe, instant: int, seen: bytes | None = None) -> ProbeVerdict | None:
        """Return what is known of an instant, from a verdict there or where the probe saw the same."""
        entry = self._find(probe, instant, seen)
        return None if entry is None else replace(entry.verdict, cached=True)

    def samples(self, probe: Probe, instant: int) -> list[ProbeVerdict]:
        """Return the answers of a probe that may be wrong, in their order."""
        return [replace(e.verdict, cached=True) for e in self._known(probe).samples.get(instant, ())]

    def add(
        self, probe: Probe, instant: int, verdict: ProbeVerdict, seen: bytes | None = None, kind: str = SOUND
    ) -> None:
        """Keep a verdict."""
        entry = Entry(
            self._trace, self._history.disk, instant, stamp(self._history, instant), key_of(probe),
            probe.describe(), timeout_of(probe), kind, replace(verdict, cached=False), seen,
            None if verdict.reads is None or kind == SAMPLE else pack(verdict.reads),
        )  # fmt: skip
        self._take(self._known(probe), entry, verdict.reads)
        self._append(entry)

    def take_over(self, entry: Entry) -> bool:
        """Keep an entry from elsewhere; return false where this history has another write there."""
        history = self._history
        if not history.first <= entry.instant <= history.count:
            return False
        if entry.disk != history.disk or entry.write != stamp(history, entry.instant):
            return False
        self._append(replace(entry, trace=self._trace))
        return True

    # ---- inside

    def _known(self, probe: Probe) -> _Known:
        key = key_of(probe)
        known = self._probes.setdefault(key, _Known())
        for entry in self._waiting.pop(key, ()):
            # The file may have come with the trace, from anywhere: entries that do not fit are ignored.
            if (
                self._history.first <= entry.instant <= self._history.count
                and stamp(self._history, entry.instant) == entry.write
            ):
                self._take(known, entry, entry.reads)
        return known

    def _take(self, known: _Known, entry: Entry, reads: frozenset[int] | None) -> None:
        if entry.kind == SAMPLE:
            known.samples.setdefault(entry.instant, []).append(entry)
            return
        known.sound[entry.instant] = entry  # the newest counts: it may have had a longer time-out
        if entry.seen is not None:
            known.seen[entry.seen] = entry
        if reads is not None and len(reads) <= self._room:
            self._room -= len(reads)
            known.reads.append((entry, reads))

    def _find(self, probe: Probe, instant: int, seen: bytes | None) -> Entry | None:
        known = self._known(probe)
        timeout = timeout_of(probe)
        if (here := known.sound.get(instant)) is not None and _holds(here, timeout):
            return here
        if seen is not None and (same := known.seen.get(seen)) is not None and _holds(same, timeout):
            return same
        for entry, reads in sorted(known.reads, key=lambda one: abs(one[0].instant - instant)):
            if _holds(entry, timeout) and self._same(reads, entry.instant, instant):
                return entry
        return None

    def _same(self, reads: frozenset[int], one: int, other: int) -> bool:
        """Tell whether all blocks in `reads` have the same contents at two instants."""
        low, high = sorted((one, other))
        blocks: frozenset[int] | set[int] = reads
        if len(reads) > high - low:
            # So few writes that it is quicker to look which blocks they touched.
            written = self._written.get((low, high))
            if written is None:
                if len(self._written) >= _KEPT_SPANS:
                    self._written.clear()
                written = self._written[low, high] = self._history.changed_blocks(low, high)
            blocks = written & reads
        identity = self._history.identity
        return all(identity(block, one) == identity(block, other) for block in blocks)

    def _append(self, entry: Entry) -> None:
        """Write one line; if it cannot be written, the search goes on without."""
        if self.path is None or self.trouble:
            return
        line = json.dumps(plain(entry)) + "\n"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = "\n" + line  # a process was killed while it wrote the line before
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as e:
            self.trouble = f"cannot write {self.path}: {e.strerror}"


def _holds(entry: Entry, timeout: float) -> bool:
    """Tell whether a verdict still holds with another time-out: a hang may not."""
    return entry.verdict.outcome is not Outcome.HANG or entry.timeout >= timeout


def trace_id(history: History) -> str:
    """Return a text that identifies a history, also against one made under its name later."""
    meta = history.trace.meta
    known = meta.get("id")
    if isinstance(known, str) and known:
        return known
    plain_config = json.dumps(meta.get("config"), sort_keys=True, default=str)
    return blake2b(plain_config.encode(), digest_size=16).hexdigest()


def stamp(history: History, instant: int) -> str:
    """Return hex digits of the write that made an instant: where it went, and what was there after it."""
    if instant <= history.first:
        return "base" if not instant else "first"
    write = history.write(instant)
    digest = blake2b(f"{write.number} {write.disk} {write.lba} {write.sectors}".encode(), digest_size=8)
    if write.disk == history.disk:
        digest.update(history.identity(write.blocks[0], instant))
    return digest.hexdigest()


def key_of(probe: Probe) -> str:
    """Return 16 hex digits by which a probe is known in the log."""
    return blake2b(probe.key().encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def timeout_of(probe: Probe) -> float:
    """Return how many seconds a probe may take, 0 where it does not say."""
    own = getattr(probe, "timeout_s", None)
    return float(getattr(getattr(probe, "setup", None), "timeout_s", 0.0) if own is None else own)


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a log, skipping invalid lines; raises `BadInput` where it cannot be read."""
    try:
        with path.open("rb") as f:
            while line := f.readline(_MOST_LINE):
                with suppress(ValueError, KeyError, TypeError, RecursionError, OverflowError):
                    yield parse(json.loads(line))
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}") from None


def plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON-able data."""
    v = entry.verdict
    return {
        "trace": entry.trace, "disk": entry.disk, "instant": entry.instant, "write": entry.write,
        "probe": entry.probe, "about": entry.about, "timeout": entry.timeout, "kind": entry.kind,
        "outcome": v.outcome.value, "signature": v.signature, "exit_code": v.exit_code,
        "output": v.output[-_MOST_TEXT:], "console": v.console[-_MOST_TEXT:], "seconds": round(v.seconds, 3),
        "seen": None if entry.seen is None else entry.seen.hex(), "reads": entry.packed,
    }  # fmt: skip


def parse(fact: dict[str, Any]) -> Entry:
    """Return the entry that `plain` made into `fact`; raises Python's own errors where it is invalid."""
    code = None if fact["exit_code"] is None else int(fact["exit_code"])
    verdict = ProbeVerdict(
        Outcome(fact["outcome"]), str(fact["signature"]), code, str(fact["output"]), str(fact["console"]),
        float(fact["seconds"]),
    )  # fmt: skip
    if fact["kind"] not in (SOUND, SAMPLE):
        raise ValueError(fact["kind"])
    return Entry(
        str(fact["trace"]), int(fact["disk"]), int(fact["instant"]), str(fact["write"]), str(fact["probe"]),
        str(fact["about"]), float(fact["timeout"]), fact["kind"], verdict,
        None if fact["seen"] is None else bytes.fromhex(fact["seen"]),
        None if fact["reads"] is None else str(fact["reads"]),
    )  # fmt: skip


def pack(blocks: frozenset[int]) -> str:
    """Return blocks as text: pairs of a gap and a length, compressed."""
    words: list[int] = []
    end = 0
    for block in sorted(blocks):
        if words and block == end:
            words[-1] += 1
        else:
            words += (block - end, 1)
        end = block + 1
    return base64.b64encode(zlib.compress(" ".join(map(str, words)).encode())).decode()


def unpack(text: str) -> frozenset[int]:
    """Return the blocks that `pack` made into `text`; raises `ValueError` or `zlib.error`."""
    data = zlib.decompressobj().decompress(base64.b64decode(text), 64 << 20)
    words = [int(word) for word in data.split()]
    blocks: set[int] = set()
    at = 0
    for gap, length in zip(words[::2], words[1::2], strict=True):
        at += gap
        if gap < 0 or not 0 <= length <= _MOST_READS - len(blocks):
            raise ValueError("not a list of blocks")
        blocks.update(range(at, at + length))
        at += length
    return frozenset(blocks)
