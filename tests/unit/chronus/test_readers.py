"""Readers of a history write nothing, also where its newest writes are still in the spool."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from chronus_rig import Model, scribble, some_image

from tt.chronus.store import live, spool
from tt.chronus.store.history import History
from tt.chronus.store.live import LiveDisk, create
from tt.chronus.store.packer import recover
from tt.cli.chronus.main import main
from tt.errors import BadInput, TTError


class NoPacker:
    """A packer that never comes to it."""

    def __init__(self, path: Path, lock: int, progress: Callable[[int, int], None], failure: object) -> None:
        pass

    def finish(self) -> int:
        return 1


def left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int = 60) -> tuple[Path, Model]:
    """Make a history of two sessions, the second of which is in the spool alone; return what it holds."""
    base = some_image(folder / "base.img", (1 << 20) + 1536)
    path = folder / "disk.tt"
    create(path, base)
    model, chance = Model(base.read_bytes()), random.Random(11)
    with LiveDisk(path) as disk:
        scribble(disk, model, chance, writes)
    with monkeypatch.context() as patch:
        patch.setattr(live, "PackerProcess", NoPacker)
        patch.setattr(spool, "SEGMENT_BYTES", 200_000)
        disk = LiveDisk(path)
        scribble(disk, model, chance, writes)
        with pytest.raises(TTError, match="its writes are safe"):
            disk.close()
    return path, model


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_in_the_spool_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = left_behind(tmp_path, monkeypatch)
    before = everything(tmp_path)
    seen = []
    for _opening in range(2):
        with History.open(path) as history:
            assert history.count == max(model.then)
            for number, contents in model.then.items():
                assert history.at(number).read(0, history.sectors) == contents
            writes = list(history.writes())
            blocks = range(history.size // 4096)
            names = [[history.identity(block, at) for block in blocks] for at in sorted(model.then)]
            changed = history.changed_blocks(0, history.count)
            seen.append((writes, [(b.first, b.last) for b in history.bursts()], names, changed))
        assert everything(tmp_path) == before
    assert seen[0] == seen[1]
    # Moved into the history it is the same.
    assert recover(path)
    assert not spool.folder_of(path).exists()
    with History.open(path) as history:
        assert list(history.writes()) == seen[0][0]
        assert [(b.first, b.last) for b in history.bursts()] == seen[0][1]
        assert history.changed_blocks(0, history.count) == seen[0][3]
        for number, contents in model.then.items():
            assert history.at(number).read(0, history.sectors) == contents


def test_a_folder_that_cannot_be_written_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = left_behind(tmp_path, monkeypatch)
    folder = spool.folder_of(path)
    for each in (folder, tmp_path):
        each.chmod(0o555)
    try:
        with monkeypatch.context() as patch:

            def refuse(*_args: object, **_options: object) -> None:
                raise OSError(30, "Read-only file system")

            for name in ("mkdir", "unlink", "rename", "replace", "rmdir", "ftruncate", "pwrite", "writev"):
                patch.setattr(f"os.{name}", refuse)
            assert main(["log", str(path), "--no-files"]) == 0
            assert f"w{max(model.then)}" in capsys.readouterr().out
    finally:
        for each in (tmp_path, folder):
            each.chmod(0o755)


def test_a_server_takes_over_what_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = left_behind(tmp_path, monkeypatch, writes=20)
    said: list[str] = []
    with LiveDisk(path, say=said.append) as disk:
        assert len(said) == 1
        assert disk.number == max(model.then)
        assert b"".join(disk.read(0, disk.size)) == model.contents


def test_the_spool_of_an_older_chronus_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _model = left_behind(tmp_path, monkeypatch, writes=20)
    segment = spool.segment_path(spool.folder_of(path), spool.segments(spool.folder_of(path))[0])
    segment.write_bytes(b"ttw1" + segment.read_bytes()[4:])
    with pytest.raises(BadInput, match="older chronus"):
        History.open(path)
    with pytest.raises(BadInput, match="older chronus"):
        LiveDisk(path)
    assert segment.exists()


@pytest.mark.parametrize("how", ["closed", "failed", "packed"])
def test_a_writer_that_waits_for_the_packer_is_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(live, "PackerProcess", NoPacker)
    path = tmp_path / "disk.tt"
    create(path, None, 1 << 20)
    disk = LiveDisk(path, backlog_bytes=4096)
    disk.write(0, bytes(8192))
    ended: list[object] = []

    def write() -> None:
        try:
            disk.write(8192, b"x" * 4096)
            ended.append(disk.number)
        except TTError as e:
            ended.append(str(e))

    waiting = threading.Thread(target=write)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    # Meanwhile the others go on: the lock is not held, and it is nobody else's to release.
    assert disk.read(0, 4096) == [bytes(4096)]
    disk.flush()
    expected: object = 2
    if how == "packed":
        disk._packed(1, disk._spool.segment)
    elif how == "failed":
        disk._packing_failed()
        expected = f"cannot write {path}: packing failed; what was flushed is safe in the spool"
    else:
        with pytest.raises(TTError, match="its writes are safe"):
            disk.close()
        expected = f"{path} is closed"
    waiting.join(20)
    assert ended == [expected]
    if how != "closed":
        with pytest.raises(TTError):
            disk.close()
    shutil.rmtree(spool.folder_of(path))
