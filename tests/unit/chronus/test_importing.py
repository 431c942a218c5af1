"""Histories made of images and qcow2 snapshots."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chronus_rig import some_image

from tt.chronus.search.bisect import bisect
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store import importing, spool
from tt.chronus.store.history import History
from tt.chronus.store.importing import import_images, pictures
from tt.chronus.store.live import LiveDisk
from tt.chronus.store.squash import copy_from, squash
from tt.chronus.store.view import DiskView
from tt.cli.chronus.main import main
from tt.errors import BadInput, UsageError

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def test_images_become_instants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monday = some_image(tmp_path / "monday.img", 100_000)
    data = bytearray(monday.read_bytes())
    data[70_000:70_010] = b"configured"
    tuesday = tmp_path / "tuesday.img"
    tuesday.write_bytes(data + b"grown")
    out = tmp_path / "web.tt"
    assert main(["import", "-o", str(out), str(monday), str(tuesday), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [image["bookmark"] for image in facts["images"]] == ["monday", "tuesday"]
    assert facts["images"][1]["changed"] == 4096 + 2048  # the last block of the disk is short
    with History.open(out) as history:
        for name, image in (("@monday", monday), ("@tuesday", tuesday)):
            contents = image.read_bytes()
            assert history.at(history.resolve(name)).read(0, history.sectors)[: len(contents)] == contents
        assert [burst.after for burst in history.bursts()] == [history.resolve("@monday"), history.count]
        assert history.trace.verify_structure() == []
    monday.unlink()  # nothing is needed any more
    with History.open(out) as history:
        assert history.at(history.count).read(0, 1)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = some_image(tmp_path / "a.img", 8192)
    (tmp_path / "a.tt").write_text("mine")
    assert main(["import", "-o", str(tmp_path / "a.tt"), str(image)]) == 2
    assert (tmp_path / "a.tt").read_text() == "mine"
    assert "--force" in capsys.readouterr().err


@needs_qemu_img
def test_snapshots_inside_a_qcow2(tmp_path: Path) -> None:
    disk = tmp_path / "server.qcow2"
    image = some_image(tmp_path / "a.img", 1 << 20)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, disk], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "before upgrade", disk], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 64k 8k", disk], check=True, capture_output=True)
    assert main(["import", "-o", str(tmp_path / "s.tt"), str(disk)]) == 0
    with History.open(tmp_path / "s.tt") as history:
        assert history.at(history.resolve("@before-upgrade")).read(0, history.sectors) == image.read_bytes()
        assert history.at(history.count).read(128, 16) == b"\7" * 8192


@needs_qemu_img
def test_an_overlay_is_read_only_with_what_it_lies_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = some_image(tmp_path / "a.img", 1 << 20)
    base, over = tmp_path / "base.qcow2", tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, base], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, over], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 64k 8k", over], check=True, capture_output=True)
    assert main(["import", "-o", str(tmp_path / "no.tt"), str(over)]) == 3
    assert "give that image too" in capsys.readouterr().err
    assert main(["import", "-o", str(tmp_path / "yes.tt"), str(base), str(over)]) == 0
    with History.open(tmp_path / "yes.tt") as history:
        assert history.at(history.resolve("@base")).read(0, history.sectors) == image.read_bytes()
        assert history.at(history.count).read(128, 1) == b"\7" * 512


def test_a_missing_image_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "-o", str(tmp_path / "a.tt"), str(tmp_path / "none.img")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


# An image is one instant


class Marked:
    """Asks whether the last byte of the disk is below a number; notes every state that it saw."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: set[bytes] = set()

    def key(self) -> str:
        return f"below {self.limit}"

    describe = key

    def run(self, disk: DiskView) -> ProbeVerdict:
        contents = disk.read(0, disk.sectors)
        self.seen.add(contents)
        return ProbeVerdict(Outcome.BAD if contents[-1] >= self.limit else Outcome.GOOD)


@pytest.fixture
def week(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """Seven images, each of many writes: the last block of day n is full of n, and others change too."""
    days = []
    data = bytearray(some_image(tmp_path / "first.img", 400_384).read_bytes())
    for day in range(7):
        for at in range(day % 2 * 4096, len(data), 8192):
            data[at] ^= 1 + day
        data[-1] = day
        days.append(bytes(data))
        (tmp_path / f"day{day}.img").write_bytes(data)
        os.utime(tmp_path / f"day{day}.img", (1_700_000_000 + day, 1_700_000_000 + day))
    out = tmp_path / "week.tt"
    import_images(out, pictures([tmp_path / f"day{day}.img" for day in range(7)]))
    return out, days


@pytest.mark.parametrize("first_bad", [1, 3, 6])
def test_a_search_probes_whole_images_alone(week: tuple[Path, list[bytes]], first_bad: int) -> None:
    out, days = week
    with History.open(out) as history:
        assert len(history.images) == 7
        assert history.count > 100
        probe = Marked(first_bad)
        good = history.resolve("@day0")
        found = bisect(history, probe, good, history.count)
        assert probe.seen <= set(days)
        (turn,) = found.turns
        assert (turn.before, turn.after) == (
            history.resolve(f"@day{first_bad - 1}"),
            history.resolve(f"@day{first_bad}"),
        )
        assert len(history.bursts()) == 7


def test_a_search_over_images_tells_what_an_image_is(
    week: tuple[Path, list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _days = week
    ask = ["bisect", str(out), "--files", "true", "--no-cache"]
    assert main([*ask, "--good", "start"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "w0 is an empty disk" in line and "@day0" in line
    assert main([*ask, "--good", "w5"]) == 2
    assert "inside the import" in capsys.readouterr().err
    assert main([*ask, "--good", "@day0", "--bad", "w80"]) == 2
    assert "give @day" in capsys.readouterr().err
    for more in ([], ["--writes"]):
        assert main(["log", str(out), "--no-files", *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 7
        assert all(f"image @day{day}" in line for day, line in enumerate(lines))


def test_what_is_written_after_the_images_is_single_writes(week: tuple[Path, list[bytes]]) -> None:
    out, _days = week
    with LiveDisk(out) as disk:
        for number in range(10, 14):
            disk.write(disk.size // 4096 * 4096, bytes([number]) * (disk.size % 4096))
    with History.open(out) as history:
        found = bisect(history, Marked(12), history.resolve("@day4"), history.count)
        assert found.turns[0].after == history.count - 1
        assert found.turns[0].candidates == (history.count - 1,)


def test_images_stay_whole_when_a_history_is_squashed(week: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    out, days = week
    copy = tmp_path / "copy.tt"
    with History.open(out) as history:
        day3 = history.resolve("@day3")
        copy_from(history, day3 + 1, copy)
    squash(out, day3 + 1)
    for path in (out, copy):
        with History.open(path) as history:
            first = history.first if path == out else history.resolve("@squashed")
            assert history.at(first).read(0, history.sectors) == days[3]
            probe = Marked(5)
            (turn,) = bisect(history, probe, first, history.count).turns
            assert probe.seen <= set(days)
            assert history.at(turn.after).read(0, history.sectors) == days[5]


def test_a_list_of_images_that_makes_no_sense_is_damage(week: tuple[Path, list[bytes]]) -> None:
    out, _days = week
    for lie in ("everything", [["a", 1, 5], ["b", 3, 9]], [["a", 5, 1]], [["a", "1", 2]], [5]):
        with importing.DiskWriter(out) as writer:
            writer.note("images", lie)
            writer.seal("a lie")
        with History.open(out) as history, pytest.raises(BadInput, match="imported images"):
            history.bursts()


# Large, empty and cut off


def sparse(path: Path, size: int, marks: list[int]) -> Path:
    with path.open("wb") as f:
        f.truncate(size)
        for at in marks:
            f.seek(at)
            f.write(b"mark" * 1024)
    return path


def test_holes_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 40
    one = sparse(tmp_path / "one.img", size, [5 << 30, 900 << 30])
    two = sparse(tmp_path / "two.img", size, [900 << 30, 1000 << 30])
    read: list[int] = []
    real = importing._RawImage.read

    def counted(image: importing._RawImage, offset: int, count: int) -> bytes:
        read.append(count)
        return real(image, offset, count)

    monkeypatch.setattr(importing._RawImage, "read", counted)
    told: list[float] = []
    out = tmp_path / "big.tt"
    import_images(out, pictures([one, two]), progress=lambda what, done: told.append(done))
    assert sum(read) < 16 << 20
    assert told[-1] == 1.0 and told == sorted(told[:2]) + told[2:]
    with History.open(out) as history:
        assert history.count == 4
        assert history.at(2).read(5 << 21, 8) == b"mark" * 1024
        assert history.at(4).read(5 << 21, 8) == bytes(4096)
        assert history.at(4).read(1000 << 21, 8) == b"mark" * 1024


@needs_qemu_img
def test_a_sparse_qcow2_too(tmp_path: Path) -> None:
    disk = tmp_path / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1T"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 700G 64k", disk], check=True, capture_output=True)
    told: list[str] = []
    import_images(tmp_path / "big.tt", pictures([disk]), progress=lambda what, done: told.append(what))
    with History.open(tmp_path / "big.tt") as history:
        assert history.at(history.count).read(700 << 21, 128) == b"\7" * 65536
    assert told[-1] == "importing big.qcow2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_import_that_is_ended_leaves_nothing(tmp_path: Path, number: int) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(os.urandom(1 << 20) * 64)
    out = tmp_path / "out.tt"
    out.write_bytes(b"what was there before")
    command = [sys.executable, "-m", "tt.cli.chronus.main", "import", "--force", "-o", out, image]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob(".importing-*/out.tt-wal")):
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGTERM else 130)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img", "out.tt"]
    assert out.read_bytes() == b"what was there before"


def test_the_spool_of_another_history_is_not_taken_over(tmp_path: Path) -> None:
    image = some_image(tmp_path / "a.img", 8192)
    spool.folder_of(tmp_path / "a.tt").mkdir()
    with pytest.raises(BadInput, match="another history"):
        import_images(tmp_path / "a.tt", pictures([image]))
    with pytest.raises(UsageError):
        import_images(tmp_path / "a.tt", [])
