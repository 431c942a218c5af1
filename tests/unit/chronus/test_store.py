"""The time-travel disk: what was written is read again, at every instant."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import pytest
from chronus_rig import Model, lived, scribble, some_image

from tt.chronus.store import spool
from tt.chronus.store.history import History
from tt.chronus.store.live import LiveDisk, create
from tt.chronus.store.packer import recover
from tt.chronus.store.squash import copy_from, squash
from tt.cli.chronus.main import main
from tt.cli.main import main as tt_main
from tt.errors import BadInput, TTError, UsageError
from tt.log.disk_rows import LEVEL_SHIFT, ChangeKind, levels_of, runs
from tt.log.disk_writer import DiskWriter
from tt.log.schema import VERSION, probe, row_crc
from tt.vmm.disk import OverlayDisk, block_hash


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    return lived(tmp_path_factory.mktemp("lived"))


def test_every_instant_reads_as_it_was(past: tuple[Path, Model]) -> None:
    path, model = past
    with History.open(path) as history:
        assert history.count == max(model.then)
        for number, contents in model.then.items():
            assert history.at(number).read(0, history.sectors) == contents
        assert not history.has_machine
        assert history.trace.verify_structure() == []


def test_it_ends_as_one_file(past: tuple[Path, Model]) -> None:
    path, _model = past
    assert {p.name for p in path.parent.iterdir()} == {"disk.tt", "base.img"}
    assert probe(path) == VERSION


def test_equal_names_mean_equal_contents(past: tuple[Path, Model]) -> None:
    path, model = past
    with History.open(path) as history:
        instants = sorted(model.then)
        known: dict[tuple[int, bytes], bytes] = {}
        for instant in instants:
            for block in range(history.size // 4096):
                contents = model.then[instant][block * 4096 : block * 4096 + 4096]
                name = history.identity(block, instant)
                assert known.setdefault((block, name), contents) == contents


def test_changed_blocks_are_all_that_differ(past: tuple[Path, Model]) -> None:
    path, model = past
    with History.open(path) as history:
        one, other = sorted(model.then)[1], sorted(model.then)[-2]
        changed = history.changed_blocks(one, other)
        for block in range(-(-history.size // 4096)):
            at = slice(block * 4096, block * 4096 + 4096)
            if model.then[one][at] != model.then[other][at]:
                assert block in changed


def test_an_overlay_leaves_the_past_alone(past: tuple[Path, Model]) -> None:
    path, model = past
    with History.open(path) as history:
        disk = history.at(history.count).overlay()
        disk.write(8, b"\x5a" * 4096)
        assert disk.read(8, 8) == b"\x5a" * 4096
        assert history.at(history.count).read(0, history.sectors) == model.then[history.count]


def test_readers_see_whole_writes_while_the_writer_goes_on(tmp_path: Path) -> None:
    base = some_image(tmp_path / "base.img", 1 << 20)
    create(tmp_path / "disk.tt", base)
    model, chance = Model(base.read_bytes()), random.Random(3)
    with LiveDisk(tmp_path / "disk.tt") as disk:
        seen = 0
        for _round in range(3):
            scribble(disk, model, chance, 20)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with History.open(tmp_path / "disk.tt") as history:
                    seen = history.count
                    if seen in model.then and seen:
                        assert history.at(seen).read(0, history.sectors) == model.then[seen]
                if seen == disk.number:
                    break
                time.sleep(0.05)
            assert seen == disk.number


def test_packed_segments_give_way_and_are_read_from_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 100_000)
    base = some_image(tmp_path / "base.img", 1 << 20)
    create(tmp_path / "disk.tt", base)
    model, chance = Model(base.read_bytes()), random.Random(4)
    with LiveDisk(tmp_path / "disk.tt", cache_bytes=0) as disk:
        folder = spool.folder_of(tmp_path / "disk.tt")
        scribble(disk, model, chance, 60)
        assert disk.number
        deadline = time.monotonic() + 20
        while len(spool.segments(folder)) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(spool.segments(folder)) == 1
        assert b"".join(disk.read(0, disk.size)) == model.contents


def test_a_writer_waits_for_the_packer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 50_000)
    create(tmp_path / "disk.tt", None, 1 << 20)
    with LiveDisk(tmp_path / "disk.tt", backlog_bytes=200_000) as disk:
        for number in range(8):
            disk.write(number * 4096, bytes([number]) * 40_960)
        assert disk.read(7 * 4096, 1) == [b"\x07"]


def test_extents_tell_zeros(tmp_path: Path) -> None:
    create(tmp_path / "disk.tt", None, 1 << 20)
    with LiveDisk(tmp_path / "disk.tt") as disk:
        disk.write(8192, b"x" * 4096)
        assert disk.extents(0, 1 << 20) == [(8192, True), (4096, False), ((1 << 20) - 12288, True)]
        disk.trim(0, 1 << 20)
        assert disk.extents(4096, 8192) == [(8192, True)]


def test_only_one_serves_a_history(tmp_path: Path) -> None:
    create(tmp_path / "disk.tt", None, 1 << 20)
    with LiveDisk(tmp_path / "disk.tt"):
        with pytest.raises(BadInput, match="being served by another process"):
            LiveDisk(tmp_path / "disk.tt")
        with pytest.raises(BadInput, match="being served"):
            squash(tmp_path / "disk.tt", 0)
        assert not recover(tmp_path / "disk.tt")


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "disk.tt", None, 1 << 20)
    with LiveDisk(tmp_path / "disk.tt") as disk:
        disk.write(0, b"kept" * 1024)
        real = __import__("os").pwritev

        def full(descriptor: int, buffers: list[bytes], offset: int) -> int:
            real(descriptor, [buffers[0][:10]], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwritev", full)
        with pytest.raises(TTError, match="No space left"):
            disk.write(4096, b"lost" * 1024)
        monkeypatch.undo()
        disk.write(8192, b"more" * 1024)
        assert b"".join(disk.read(0, 12288)) == b"kept" * 1024 + bytes(4096) + b"more" * 1024
    with History.open(tmp_path / "disk.tt") as history:
        assert history.count == 2
        assert history.at(2).read(0, 24) == b"kept" * 1024 + bytes(4096) + b"more" * 1024


# Squashing


def test_squashing_keeps_every_later_instant(tmp_path: Path) -> None:
    path, model = lived(tmp_path, size=(1 << 20) + 1536, writes=90)
    instants = sorted(model.then)
    before = instants[len(instants) // 2]
    size = path.stat().st_size
    done = squash(path, before)
    assert done.size_after < size
    with History.open(path) as history:
        assert history.first == history.resolve("start") == before
        for number in instants:
            if number >= before:
                assert history.at(number).read(0, history.sectors) == model.then[number]
            else:
                with pytest.raises(UsageError, match="squashed"):
                    history.at(number)
        assert history.trace.verify_structure() == []
    squash(path, max(instants))
    with LiveDisk(path) as disk:
        assert b"".join(disk.read(0, disk.size)) == model.then[max(instants)]
        disk.write(0, b"y" * 512)
        assert disk.number == max(instants) + 1


def test_a_squashed_copy_holds_the_rest(past: tuple[Path, Model], tmp_path: Path) -> None:
    path, model = past
    before, newest = sorted(model.then)[2], max(model.then)
    with History.open(path) as history:
        copy_from(history, before, tmp_path / "copy.tt")
    with History.open(tmp_path / "copy.tt") as copy:
        assert copy.at(copy.resolve("@squashed")).read(0, copy.sectors) == model.then[before]
        assert copy.at(copy.count).read(0, copy.sectors) == model.then[newest]


def test_a_recording_is_not_squashed_in_place(demo_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["squash", str(demo_trace), "--before", "50%"]) == 2
    assert "give -o OUT.tt" in capsys.readouterr().err


def test_a_disks_history_is_no_recording(
    past: tuple[Path, Model], capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("verify", "replay"):
        assert tt_main([verb, str(past[0])]) == 3
        assert capsys.readouterr().err.endswith("look into it with chronus\n")
    assert tt_main(["info", str(past[0]), "--check"]) == 0


# Ranges


@pytest.mark.parametrize("seed", range(20))
def test_a_range_is_few_rows_that_cover_it_exactly(seed: int) -> None:
    chance = random.Random(seed)
    lba = chance.randrange(1 << chance.choice([4, 12, 24]))
    sectors = chance.randrange(1, 1 << chance.choice([4, 12, 22]))
    covered: dict[int, int] = {}
    rows = list(runs(lba, sectors))
    for key, place in rows:
        level, index = key >> LEVEL_SHIFT, key & (1 << LEVEL_SHIFT) - 1
        first, count = place & 15, place >> 4
        begin = (index << 8 * level) * 8 + first
        covered[begin] = (8 << 8 * level) if level else count
    at = lba
    for begin in sorted(covered):
        assert begin == at
        at += covered[begin]
    assert at == lba + sectors
    assert len(rows) < 2 * 256 * 4
    assert levels_of(lba // 8)[0] == lba // 8


def test_a_discard_of_a_whole_large_disk_is_a_few_rows(tmp_path: Path) -> None:
    create(tmp_path / "disk.tt", None, 1 << 40)
    with LiveDisk(tmp_path / "disk.tt") as disk:
        disk.write(5 << 30, b"a" * 4096)
        disk.trim(0, 1 << 32)
        disk.trim(4 << 30, 2 << 30)
        assert disk.read(5 << 30, 4) == [bytes(4)]
    assert (tmp_path / "disk.tt").stat().st_size < 200_000
    with History.open(tmp_path / "disk.tt") as history:
        assert history.changed_blocks(0, 3) == {5 << 30 >> 12}, "the rest was zeros before"
        assert history.at(1).read((5 << 30) // 512, 1) == b"a" * 512
        assert history.at(3).read((5 << 30) // 512, 1) == bytes(512)


# Adding by hand


def test_the_hosts_clock_may_step_back(tmp_path: Path) -> None:
    create(tmp_path / "disk.tt", None, 1 << 20)
    with DiskWriter(tmp_path / "disk.tt") as writer:
        for host_ns in (100, 50, 200):
            writer.add(0, 0, 0, 8, bytes([host_ns]) * 4096, host_ns)  # type: ignore[arg-type]
        writer.seal("done")
    with History.open(tmp_path / "disk.tt") as history:
        assert [write.host_ns for write in history.writes()] == [100, 100, 200]
        assert history.instant_at_host_ns(150) == 2


def test_rows_that_are_put_together_are_rows_of_the_format(tmp_path: Path) -> None:
    create(tmp_path / "disk.tt", None, 1 << 24)
    writes = [(ChangeKind.DATA, 0, 8), (ChangeKind.DATA, 3, 21), (ChangeKind.ZEROES, 5, 4000)]
    writes += [(ChangeKind.DISCARD, 0, 1 << 15), (ChangeKind.DATA, 7, 1), (ChangeKind.DATA, 0, 0)]
    with DiskWriter(tmp_path / "disk.tt") as writer:
        for number, (kind, lba, sectors) in enumerate(writes):
            data = random.Random(number).randbytes(sectors * 512) if kind is ChangeKind.DATA else b""
            writer.add(0, kind, lba, sectors, data, 10**18 + number)
        writer.seal("done")
    db = sqlite3.connect(tmp_path / "disk.tt")
    for table, columns in (("disk_writes", 10), ("disk_blocks", 6), ("blobs", 4)):
        rows = db.execute(f"SELECT * FROM {table}").fetchall()
        assert rows and all(len(row) == columns for row in rows)
        for *row, crc in rows:
            assert row_crc(table, *row) == crc, table
    db.close()


def test_the_digest_of_a_disk_is_the_sum_over_what_was_written() -> None:
    class Zeros:
        sectors = 64 * 8

        def read(self, lba: int, count: int) -> bytes:
            return bytes(count * 512)

    chance = random.Random(5)
    disk, other = OverlayDisk(Zeros()), OverlayDisk(Zeros())
    saved = disk.snapshot()
    for step in range(300):
        lba = chance.randrange(500)
        data = chance.randbytes(512 * chance.randrange(0, min(24, 513 - lba)))
        disk.write(lba, data)
        if step % 7 == 0:  # whenever it is asked for
            expected = sum(block_hash(block, held) for block, held in disk.blocks.items())
            assert disk.digest() == (expected % (1 << 128)).to_bytes(16, "little")
        if step == 150:
            saved = disk.snapshot()
            disk.restore(saved)
        other.write(lba, data)
    assert disk.digest() == other.digest()
    disk.restore(saved)
    assert disk.digest() == (saved[1] % (1 << 128)).to_bytes(16, "little")
    for block, held in other.blocks.items():
        disk.write(block * 8, held)
    assert disk.digest() == other.digest()
