"""The search over a disk's history: ends, skips, crashes, turns, repeats, sharing, resuming."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tt.chronus.search.bisect import NothingToFind, Options, Probed, bisect, default_log
from tt.chronus.search.verdict_log import VerdictLog, parse, plain, read
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.history import History, Instant
from tt.chronus.store.live import create
from tt.chronus.store.view import DiskView, TrackedView
from tt.errors import UsageError
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter

BLOCKS = 64
SECOND = 10**9


def history_of(folder: Path, writes: list[int], gap: int = 10) -> Path:
    """Make a history of writes of one block each, to the blocks given; a burst ends after each `gap`."""
    path = folder / "disk.tt"
    create(path, None, BLOCKS * 4096)
    with DiskWriter(path) as writer:
        for number, block in enumerate(writes, 1):
            data = b"%8d" % number * 512
            writer.add(0, ChangeKind.DATA, block * 8, 8, data, (number + number // gap * 100) * SECOND // 50)
        writer.seal("made")
    return path


@dataclass
class Says:
    """A probe that is a function of the instant, or of block 0's newest write."""

    answer: Callable[[int], Outcome | str]
    name: str = "says"
    looks_at_disk: bool = False
    asked: list[int] = field(default_factory=list)

    def key(self) -> str:
        return self.name

    def describe(self) -> str:
        return f"--files {self.name}"

    def run(self, disk: DiskView) -> ProbeVerdict:
        assert isinstance(disk, Instant)
        self.asked.append(disk.number)
        reads = None
        value = disk.number
        if self.looks_at_disk:
            tracked = TrackedView(disk)
            value = int(tracked.block(0)[:8].strip(b"\0 ") or 0)
            reads = frozenset(tracked.reads)
        found = self.answer(value)
        if isinstance(found, str):
            return ProbeVerdict(Outcome.CRASH, found, reads=reads)
        return ProbeVerdict(found, output=f"saw {value}", reads=reads)


def turned(at: int) -> Callable[[int], Outcome]:
    return lambda number: Outcome.BAD if number >= at else Outcome.GOOD


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(5)
    return history_of(tmp_path_factory.mktemp("made"), [chance.randrange(1, BLOCKS) for _ in range(400)])


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


@pytest.mark.parametrize("at", [1, 2, 137, 399, 400])
def test_the_guilty_write_is_found(path: Path, at: int) -> None:
    with History.open(path) as history:
        probe = Says(turned(at))
        shown: list[Probed] = []
        found = bisect(history, probe, 0, 400, on_probe=shown.append)
        (turn,) = found.turns
        assert (turn.before, turn.after, turn.becomes_bad, turn.candidates) == (at - 1, at, True, (at,))
        assert shown == found.probed
        assert probe.asked[:2] == [0, 400], "both ends first"
        assert len(probe.asked) == found.ran <= 2 + 11
        bursts = bisect(history, Says(turned(at), "bursts"), 0, 400, Options(bursts=True)).turns[0]
        assert bursts.before < at <= bursts.after


def test_a_fix_is_found(path: Path) -> None:
    with History.open(path) as history:
        found = bisect(history, Says(lambda n: Outcome.GOOD if n >= 77 else Outcome.BAD), 400, 0)
        assert (found.turns[0].before, found.turns[0].after, found.turns[0].becomes_bad) == (76, 77, False)


def test_ends_are_not_believed(path: Path) -> None:
    with History.open(path) as history:
        with pytest.raises(NothingToFind, match="the bad end, w100, is good.*it said: saw 100"):
            bisect(history, Says(turned(200)), 0, 100)
        with pytest.raises(NothingToFind, match="the good end, w250, is bad"):
            bisect(history, Says(turned(200), "again"), 250, 300)
        with pytest.raises(NothingToFind, match="the good end, w0, is skip"):
            bisect(history, Says(lambda _n: Outcome.SKIP, "skips"), 0, 300)
        with pytest.raises(UsageError, match="the same instant"):
            bisect(history, Says(turned(1)), 5, 5)
        with pytest.raises(UsageError, match="no instant w401"):
            bisect(history, Says(turned(1)), 5, 401)


def test_a_span_that_does_not_boot_is_stepped_over(path: Path) -> None:
    def answer(number: int) -> Outcome | str:
        return "Kernel panic" if 100 <= number < 300 else turned(350)(number)

    with History.open(path) as history:
        probe = Says(answer)
        found = bisect(history, probe, 0, 400)
        assert found.turns[0].candidates == (350,)
        assert len(probe.asked) <= 30


def test_where_only_skips_remain_the_candidates_are_named(path: Path) -> None:
    def answer(number: int) -> Outcome:
        return Outcome.SKIP if 120 <= number < 140 else turned(130)(number)

    with History.open(path) as history:
        turn = bisect(history, Says(answer), 0, 400).turns[0]
        assert turn.candidates == tuple(range(120, 141))


def test_a_crash_counts_as_bad_where_the_bad_end_is_the_same_crash(path: Path) -> None:
    def answer(number: int) -> Outcome | str:
        if number >= 210:
            return "VFS: Unable to mount root fs"
        return "another panic" if 50 <= number < 60 else Outcome.GOOD

    with History.open(path) as history:
        assert bisect(history, Says(answer), 0, 400).turns[0].candidates == (210,)


def test_every_turn(path: Path) -> None:
    def answer(number: int) -> Outcome:
        return Outcome.BAD if 90 <= number < 200 or number >= 333 else Outcome.GOOD

    with History.open(path) as history:
        turns = bisect(history, Says(answer), 0, 400, Options(every=True)).turns
        assert [(turn.after, turn.becomes_bad) for turn in turns] == [(90, True), (200, False), (333, True)]


def test_repeated_probes_outvote_a_flake(path: Path) -> None:
    chance = random.Random(3)

    def answer(number: int) -> Outcome:
        return turned(222)(number) if chance.random() > 0.05 else Outcome.GOOD

    with History.open(path) as history:
        found = bisect(history, Says(answer), 0, 400, Options(repeat=9, keep=False))
        assert found.turns[0].candidates == (222,)


def test_flaky_probes_come_with_a_confidence(path: Path) -> None:
    chance = random.Random(4)

    def answer(number: int) -> Outcome:
        truth = number >= 222
        lied = number not in (0, 400) and chance.random() < 0.1
        return Outcome.BAD if truth != lied else Outcome.GOOD

    with History.open(path) as history:
        found = bisect(history, Says(answer), 0, 400, Options(wrong=0.1, confidence=0.999))
        (turn,) = found.turns
        assert turn.candidates == (222,)
        assert 0.99 < turn.confidence < 1


def test_instants_that_look_the_same_to_the_probe_are_not_probed(tmp_path: Path) -> None:
    chance = random.Random(6)
    writes = [chance.randrange(1, BLOCKS) for _ in range(400)]
    writes[299] = 0  # write 300, the only one that the probe can see
    path = history_of(tmp_path, writes)
    with History.open(path) as history:
        probe = Says(lambda seen: Outcome.BAD if seen == 300 else Outcome.GOOD, looks_at_disk=True)
        found = bisect(history, probe, 0, 400)
        assert found.turns[0].candidates == (300,)
        assert found.ran == len(probe.asked) == 2
        assert found.shared == len(found.probed) - 2 > 0


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_an_interrupted_search_goes_on(path: Path, after: int) -> None:
    class Cut(Exception):
        pass

    with History.open(path) as history:
        probe = Says(turned(137))

        def cut(probed: Probed) -> None:
            if len(probe.asked) > after:
                raise Cut

        with pytest.raises(Cut):
            bisect(history, probe, 0, 400, on_probe=cut)
        asked = len(probe.asked)
        # The end of what a kill may leave.
        with default_log(history).open("ab") as f:
            f.write(b'{"probe": "12')
        again = Says(turned(137))
        assert bisect(history, again, 0, 400).turns[0].candidates == (137,)
        assert not set(again.asked) & set(probe.asked[:asked])
        third = Says(turned(137))
        assert bisect(history, third, 0, 400).turns[0].candidates == (137,)
        assert third.asked == []


def test_a_probe_that_cannot_be_run_ends_the_search(path: Path) -> None:
    def answer(number: int) -> Outcome:
        if number == 0:
            return Outcome.GOOD
        raise ProbeError("'./check.sh' cannot be run (exit code 126): make it executable, with chmod +x")

    with History.open(path) as history, pytest.raises(ProbeError, match="chmod"):
        bisect(history, Says(answer), 0, 400)


def test_verdicts_are_read_as_they_were_written(path: Path, tmp_path: Path) -> None:
    verdict = ProbeVerdict(
        Outcome.CRASH, "panic", None, "out\u00e9\n", "\x1b[0m", 1.5, frozenset({1, 2, 3, 900, 7})
    )
    with History.open(path) as history:
        log = VerdictLog(history, tmp_path / "log")
        log.add(Says(turned(1)), 5, verdict, b"\x01\x02")
        (entry,) = read(tmp_path / "log")
        assert replace(entry.verdict, reads=entry.reads) == verdict
        assert parse(json.loads(json.dumps(plain(entry)))) == entry


def test_a_folder_that_cannot_be_written_loses_no_search(path: Path) -> None:
    with History.open(path) as history:
        options = Options(log=Path("/proc/nowhere/log"))
        assert bisect(history, Says(turned(137)), 0, 400, options).turns[0].candidates == (137,)
