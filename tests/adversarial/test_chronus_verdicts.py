"""ProbeVerdict files that somebody damaged, or made up, or that belong to another history."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tt.chronus.search.bisect import bisect, default_log
from tt.chronus.search.verdict_log import VerdictLog, key_of, plain, read, unpack
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.history import History, Instant
from tt.chronus.store.live import create
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter

WRITES, TURN = 60, 41


class Honest:
    """A probe, and what it was asked."""

    timeout_s = 10.0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def key(self) -> str:
        return "honest"

    def describe(self) -> str:
        return "--honest"

    def run(self, disk: DiskView) -> ProbeVerdict:
        assert isinstance(disk, Instant)
        self.asked.append(disk.number)
        outcome = Outcome.BAD if disk.number >= TURN else Outcome.GOOD
        return ProbeVerdict(outcome, reads=frozenset(range(64)))


def made(path: Path, seed: int = 0) -> Path:
    create(path, None, 64 * 4096)
    with DiskWriter(path) as writer:
        for number in range(1, WRITES + 1):
            data = b"%8d" % (number + seed) * 512
            writer.add(0, ChangeKind.DATA, number % 60 * 8, 8, data, number * 10**9)
        writer.seal("made")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made(tmp_path / "disk.tt")


def answer(path: Path) -> tuple[tuple[int, ...], list[int]]:
    probe = Honest()
    with History.open(path) as history:
        return bisect(history, probe, 0, WRITES).turns[0].candidates, probe.asked


def log_of(path: Path) -> Path:
    with History.open(path) as history:
        return default_log(history)


def lines_of(path: Path) -> list[dict[str, Any]]:
    answer(path)
    return [json.loads(line) for line in log_of(path).read_text().splitlines()]


def test_a_file_of_noise_is_passed_over(path: Path) -> None:
    chance = random.Random(1)
    deep = b"[" * 100_000 + b"]" * 100_000
    numbers = b'{"instant": ' + b"9" * 10_000 + b"}"
    noise = [chance.randbytes(5000), deep, numbers, b"null", b"[]", b'"x"', b"{}", b"\0" * 10_000]
    log_of(path).write_bytes(b"\n".join(noise))
    assert answer(path)[0] == (TURN,)
    assert answer(path) == ((TURN,), []), "what was added to it is read again"


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_never_end_in_a_traceback(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    lines_of(path)
    data = bytearray(log_of(path).read_bytes())
    for _ in range(20):
        data[chance.randrange(len(data))] = chance.randrange(256)
    log_of(path).write_bytes(data[: chance.randrange(len(data))])
    list(read(log_of(path)))
    with History.open(path) as history:
        log = VerdictLog(history, log_of(path))
        for instant in range(WRITES + 1):
            log.find(Honest(), instant)


def test_every_field_of_every_wrong_kind(path: Path) -> None:
    facts = lines_of(path)
    odd = [None, -1, 2**70, 1e308, float("nan"), "x", "\ud800", [], {}, [1], True, "9" * 5000, "\x1b[2J"]
    out = []
    for name in facts[0]:
        for value in odd:
            out.append({**facts[0], name: value})
        out.append({key: value for key, value in facts[0].items() if key != name})
    log_of(path).write_text("".join(json.dumps(fact) + "\n" for fact in out))
    with History.open(path) as history:
        log = VerdictLog(history, log_of(path))
        for instant in range(WRITES + 1):
            log.find(Honest(), instant)
            log.samples(Honest(), instant)
        for entry in list(read(log_of(path))):
            log.take_over(entry)


@pytest.mark.slow
def test_blocks_that_unpack_to_too_much_are_none() -> None:
    import base64
    import zlib

    def packed(text: str) -> str:
        return base64.b64encode(zlib.compress(text.encode())).decode()

    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in ("0 99999999999", "0 -5", "-1 1", "0 2000000 5 2000000", "1", "a b", "1 " * (5 << 20)):
        with pytest.raises(ValueError):
            unpack(packed(text))
    assert time.monotonic() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


def test_verdicts_of_another_history_do_not_count(path: Path, tmp_path: Path) -> None:
    """Somebody records again, under the same name: the same instants are other disks."""
    answer(path)
    kept = log_of(path).read_bytes()
    path.unlink()
    made(path, seed=1000)
    log_of(path).write_bytes(kept)
    found, asked = answer(path)
    assert found == (TURN,)
    assert asked, "nothing was taken from the other's"
    with History.open(path) as history:
        log = VerdictLog(history, log_of(path))
        for line in kept.splitlines():
            fact = json.loads(line)
            (entry,) = [e for e in read(log_of(path)) if plain(e) == fact]
            assert log.take_over(entry) == (entry.instant == 0), "only the empty disk is the same"


def test_a_verdict_that_was_moved_to_another_instant_does_not_count(path: Path) -> None:
    facts = [{**fact, "instant": (fact["instant"] + 7) % WRITES} for fact in lines_of(path)]
    log_of(path).write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    assert answer(path)[0] == (TURN,)


def test_a_hang_counts_only_for_the_time_that_it_had(path: Path) -> None:
    probe = Honest()
    with History.open(path) as history:
        log = VerdictLog(history, None)
        log.add(probe, 5, ProbeVerdict(Outcome.HANG))
        assert log.find(probe, 5) is not None
        probe.timeout_s = 5
        assert log.find(probe, 5) is not None
        probe.timeout_s = 60
        assert log.find(probe, 5) is None
        log.add(probe, 5, ProbeVerdict(Outcome.GOOD))
        found = log.find(probe, 5)
        assert found is not None and found.outcome is Outcome.GOOD


def test_other_probes_and_disks_do_not_count(path: Path) -> None:
    facts = lines_of(path)
    other = [{**fact, "probe": "0" * 16} for fact in facts] + [{**fact, "disk": 1} for fact in facts]
    log_of(path).write_text("".join(json.dumps(fact) + "\n" for fact in other))
    assert key_of(Honest()) != "0" * 16
    assert answer(path)[1] != []


def test_a_log_that_cannot_be_read_is_an_error(path: Path) -> None:
    log_of(path).mkdir()
    with pytest.raises(BadInput, match="cannot read"):
        answer(path)


def test_one_long_line_is_not_read_into_memory(path: Path) -> None:
    with log_of(path).open("wb") as f:
        f.write(b'{"x": "')
        f.truncate(128 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(read(log_of(path))) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
