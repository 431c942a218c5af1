"""Histories made of images and qcow2 snapshots."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from chronus_rig import some_image

from tt.chronus.store.history import History
from tt.cli.chronus.main import main

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
