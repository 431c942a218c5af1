"""The live disk and its history, killed at any moment, damaged, and lied to."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tt.chronus.store import spool
from tt.chronus.store.history import History
from tt.chronus.store.live import LiveDisk, create
from tt.chronus.store.packer import recover
from tt.errors import BadInput, TTError
from tt.log.schema import row_crc

BLOCKS = 512
CHILD = """
import sys
from pathlib import Path
from tt.chronus.store import spool
from tt.chronus.store.live import LiveDisk
sys.path.insert(0, {here!r})
from test_chronus_store import BLOCKS, contents
spool.SEGMENT_BYTES = 1 << 20
disk = LiveDisk(Path({path!r}), cache_bytes=1 << 20)
number = disk.number
while True:
    for _ in range(1 + number % 7):
        number += 1
        disk.write(number % BLOCKS * 4096, contents(number))
    disk.flush()
    print(number, flush=True)
"""


def contents(number: int) -> bytes:
    """Return what write `number` writes."""
    return random.Random(number).randbytes(2048) + b"%020d" % number + bytes(2028)


def killed(path: Path, after_s: float) -> int:
    """Run a writer on a history for so long, kill it, and return the number of its last flushed write."""
    code = CHILD.format(here=str(Path(__file__).parent), path=str(path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    lines = [first, *child.stdout.read().splitlines(keepends=True)]
    child.wait()
    whole = [int(line) for line in lines if line.endswith("\n") and line.strip()]
    assert whole, "the writer never came to a flush"
    return whole[-1]


def check(path: Path, flushed: int) -> int:
    """Check that a history has every write up to `flushed`, whole and in order; return how many it has."""
    with History.open(path) as history:
        count = history.count
        assert count >= flushed
        for number in {*range(max(1, count - BLOCKS), count + 1), *range(1, count, 97)}:
            assert history.at(number).block(number % BLOCKS) == contents(number)
    return count


def test_a_killed_server_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "disk.tt"
    create(path, None, BLOCKS * 4096)
    for seed in range(2):
        flushed = killed(path, random.Random(seed).random() * 0.4)
        check(path, flushed)
    with History.open(path) as history:
        assert history.trace.verify_structure() == []


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    path = tmp_path / "disk.tt"
    create(path, None, BLOCKS * 4096)
    count = 0
    for seed in range(20):
        flushed = killed(path, random.Random(1000 + seed).random() * 0.8)
        assert flushed > count
        count = check(path, flushed)
    with LiveDisk(path) as disk:
        assert disk.number == count


def orphaned(folder: Path) -> Path:
    """Leave a history with 40 writes in its spool, and none packed."""
    path = folder / "disk.tt"
    create(path, None, BLOCKS * 4096)
    spooled = spool.folder_of(path)
    spooled.mkdir()
    with spool.segment_path(spooled, 1).open("wb") as f:
        for number in range(1, 41):
            data = contents(number)
            f.write(spool.batch_of_data(number, number, [(number * 4096, data)]) + data)
    return path


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_spool_gives_what_comes_before_the_damage(tmp_path: Path, seed: int) -> None:
    path = orphaned(tmp_path)
    segment = spool.segment_path(spool.folder_of(path), 1)
    data = bytearray(segment.read_bytes())
    record = len(data) // 40
    chance = random.Random(seed)
    at = chance.randrange(len(data))
    if seed % 2:
        data[at] ^= 1 << chance.randrange(8)
    else:
        del data[at:]
    segment.write_bytes(data)
    with History.open(path) as history:
        assert history.count == at // record
        for number in range(1, history.count + 1):
            assert history.at(number).block(number) == contents(number)


def test_a_spool_with_a_missing_segment_is_refused_and_kept(tmp_path: Path) -> None:
    path = orphaned(tmp_path)
    folder = spool.folder_of(path)
    data = contents(50)
    spool.segment_path(folder, 3).write_bytes(spool.batch_of_data(50, 50, [(0, data)]) + data)
    with pytest.raises(BadInput, match="write 41 is missing"):
        History.open(path)
    assert spool.segment_path(folder, 3).exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = orphaned(tmp_path_factory.mktemp("sound"))
    assert recover(path)
    return path


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_history_is_right_or_refused(sound: Path, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "disk.tt"
    data = bytearray(sound.read_bytes())
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 1, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    try:
        with History.open(path) as history:
            for number in range(1, history.count + 1):
                assert history.at(number).block(number) == contents(number)
    except TTError as e:
        assert "\n" not in str(e)


LIES = {
    "a place outside its block": "UPDATE disk_blocks SET place = 15 | 15 << 4 WHERE number = 5",
    "a place of nothing": "UPDATE disk_blocks SET place = 0 WHERE number = 5",
    "contents that are not there": "UPDATE disk_blocks SET hash = zeroblob(16) WHERE number = 5",
    "a hash that is none": "UPDATE disk_blocks SET hash = x'00' WHERE number = 5",
    "a text for a hash": "UPDATE disk_blocks SET hash = 'abc' WHERE number = 5",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_forged_index_is_found_out(sound: Path, tmp_path: Path, lie: str) -> None:
    path = tmp_path / "disk.tt"
    shutil.copy(sound, path)
    db = sqlite3.connect(path)
    db.execute(LIES[lie])
    columns = "disk, block, number, place, hash"
    if lie != "a text for a hash":
        for row in db.execute(f"SELECT {columns} FROM disk_blocks WHERE number = 5").fetchall():
            db.execute("UPDATE disk_blocks SET crc = ? WHERE number = 5", (row_crc("disk_blocks", *row),))
    db.commit()
    db.close()
    with History.open(path) as history, pytest.raises(BadInput, match="damaged"):
        history.at(10).block(5)


def test_a_lost_row_of_the_index_is_told_by_a_look_over(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.tt"
    shutil.copy(sound, path)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM disk_blocks WHERE number = 5")
    db.commit()
    db.close()
    with History.open(path) as history:
        assert any("w5" in line for line in history.trace.verify_structure())
