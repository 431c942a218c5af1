"""What probes said, kept beside the history: nothing is probed twice, and a search goes on where it was cut.

`x.tt.verdicts` is JSON lines, one a verdict, appended as they come:

    {"probe": 16 hex digits of the probe's key, "about": its description, "instant": 17, "outcome": "good",
     ..., "print": hex of what the probe sees, or null, "reads": blocks as gaps, packed, or null}

A verdict holds for another instant where the probe would see the same: the same fingerprint, or the same
contents in all blocks that the run read (AutoBash's causal skipping, SOSP'07; sound because runs are
deterministic).  A line that is not whole is what a kill left, and is passed over.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tt.chronus.history import History
from tt.chronus.verdicts import Outcome, Probe, Verdict
from tt.errors import BadInput

_MOST_READS = 1 << 24


@dataclass(frozen=True)
class Entry:
    """One line: what a probe said of an instant."""

    probe: str
    about: str
    instant: int
    verdict: Verdict
    print: bytes | None = None


class VerdictLog:
    """The verdicts of one history; with `path` None they are kept in memory only."""

    def __init__(self, history: History, path: Path | None) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._history = history
        self._written: dict[tuple[int, int], set[int]] = {}
        if path is not None and path.exists():
            self.entries = list(read(path))

    def find(self, probe: Probe, instant: int, fingerprint: bytes | None = None) -> Verdict | None:
        """Return what is known of an instant, from a verdict there or where the probe would see the same."""
        key = key_of(probe)
        mine = [entry for entry in self.entries if entry.probe == key]
        for entry in mine:
            if entry.instant == instant:
                return replace(entry.verdict, cached=True)
        for entry in mine:
            if fingerprint is not None and entry.print == fingerprint:
                return replace(entry.verdict, cached=True)
            if entry.verdict.reads is not None and self._same(entry.verdict.reads, entry.instant, instant):
                return replace(entry.verdict, cached=True)
        return None

    def add(self, probe: Probe, instant: int, verdict: Verdict, fingerprint: bytes | None = None) -> None:
        """Keep a verdict."""
        entry = Entry(key_of(probe), probe.describe(), instant, verdict, fingerprint)
        self.entries.append(entry)
        self.append(entry)

    def append(self, entry: Entry) -> None:
        """Write one line; a folder that cannot be written is no reason to lose a search."""
        if self.path is None:
            return
        line = json.dumps(plain(entry), ensure_ascii=False) + "\n"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = "\n" + line
                os.write(descriptor, line.encode("utf-8", "replace"))
            finally:
                os.close(descriptor)
        except OSError:
            self.path = None

    def _same(self, reads: frozenset[int], one: int, other: int) -> bool:
        """Tell whether all blocks in `reads` have the same contents at two instants."""
        low, high = sorted((one, other))
        written = self._written.get((low, high))
        if written is None:
            if len(self._written) > 64:
                self._written.clear()
            written = self._written[low, high] = self._history.changed_blocks(low, high)
        return all(
            self._history.identity(block, one) == self._history.identity(block, other)
            for block in (written & reads)
        )


def key_of(probe: Probe) -> str:
    """Return 16 hex digits by which a probe is known in the log."""
    return blake2b(probe.key().encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a log, passing over lines that are none; raises `BadInput` for an unreadable one."""
    try:
        with path.open("rb") as f:
            for line in f:
                with suppress(ValueError, KeyError, TypeError, RecursionError, zlib.error):
                    yield parse(json.loads(line))
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}") from None


def plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON-able data."""
    v = entry.verdict
    return {
        "probe": entry.probe, "about": entry.about, "instant": entry.instant, "outcome": v.outcome.value,
        "signature": v.signature, "exit_code": v.exit_code, "output": v.output, "console": v.console,
        "seconds": round(v.seconds, 3), "print": entry.print.hex() if entry.print is not None else None,
        "reads": None if v.reads is None else _pack(v.reads),
    }  # fmt: skip


def parse(fact: dict[str, Any]) -> Entry:
    """Return the entry that `plain` made into `fact`; raises as Python does where it is none."""
    reads = None if fact["reads"] is None else _unpack(fact["reads"])
    code = None if fact["exit_code"] is None else int(fact["exit_code"])
    verdict = Verdict(
        Outcome(fact["outcome"]), str(fact["signature"]), code, str(fact["output"]), str(fact["console"]),
        float(fact["seconds"]), reads,
    )  # fmt: skip
    seen = None if fact["print"] is None else bytes.fromhex(fact["print"])
    return Entry(str(fact["probe"]), str(fact["about"]), int(fact["instant"]), verdict, seen)


def _pack(blocks: frozenset[int]) -> str:
    """Return blocks as text: runs of (gap, length), compressed."""
    words: list[int] = []
    end = 0
    for block in sorted(blocks):
        if words and block == end:
            words[-1] += 1
        else:
            words += (block - end, 1)
        end = block + 1
    return base64.b64encode(zlib.compress(" ".join(map(str, words)).encode())).decode()


def _unpack(text: str) -> frozenset[int]:
    engine = zlib.decompressobj()
    words = list(map(int, engine.decompress(base64.b64decode(text), 64 << 20).split()))
    blocks: set[int] = set()
    at = 0
    for gap, length in zip(words[::2], words[1::2], strict=True):
        at += gap
        if gap < 0 or length < 0 or len(blocks) + length > _MOST_READS:
            raise ValueError("these are no blocks")
        blocks.update(range(at, at + length))
        at += length
    return frozenset(blocks)
