"""`chronus serve` with the clients that people use: qemu-img, qemu-io, libnbd's tools."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_rig import ROOT

from tt.chronus.nbd import RawFileExport, serving
from tt.chronus.store.history import History
from tt.cli.chronus.main import main

SIZE = 2 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return an image, half data and half hole."""
    path = tmp_path / "base.img"
    path.write_bytes(random.Random(1).randbytes(SIZE // 2))
    os.truncate(path, SIZE)
    return path


@contextmanager
def chronus_serve(*words: object, ends: signal.Signals = signal.SIGTERM) -> Iterator[list[dict[str, Any]]]:
    """Serve while the context lasts, and yield what is served."""
    command = [sys.executable, "-m", "tt.cli.chronus.main", "serve", "--json", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["exports"]
        process.send_signal(ends)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def tool(name: str, *words: object) -> str:
    """Run a client, which has to go well, and return what it prints."""
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    done = subprocess.run([name, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_qemu_img_and_qemu_io(tmp_path: Path, base: Path) -> None:
    contents = bytearray(base.read_bytes())
    history = tmp_path / "disk.tt"
    with chronus_serve(history, "--base", base, "--listen", f"unix:{tmp_path}/s") as (disk,):
        url = disk["url"]
        assert disk["live"] and not disk["readonly"]
        assert json.loads(tool("qemu-img", "info", "--output=json", url))["virtual-size"] == SIZE
        tool("qemu-img", "compare", "-f", "raw", "-F", "raw", base, url)
        parts = json.loads(tool("qemu-img", "map", "--output=json", "-f", "raw", url))
        assert [(part["start"], part["length"], part["zero"]) for part in parts] == [
            (0, SIZE // 2, False),
            (SIZE // 2, SIZE // 2, True),
        ]
        commands = ["write -P 0x11 4096 8192", "write -f -P 0x22 70000 100", "flush", "write -z 8192 4096"]
        commands += ["discard 65536 4096", "read -P 0x22 70000 100", "read -P 0 8192 4096"]
        words = [word for command in commands for word in ("-c", command)]
        assert "failed" not in tool("qemu-io", "-f", "raw", *words, url)
        contents[4096:12288] = b"\x11" * 4096 + bytes(4096)
        contents[65536:69632] = bytes(4096)
        contents[70000:70100] = b"\x22" * 100
        tool("qemu-img", "convert", "-f", "raw", "-O", "raw", url, tmp_path / "copy.img")
        assert (tmp_path / "copy.img").read_bytes() == contents
        tool("qemu-img", "bench", "-f", "raw", "-c", 300, "-d", 16, "-w", "--pattern=51", url)
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", base, url)
    with History.open(history) as opened:
        assert opened.at(opened.count).read(0, opened.sectors) == base.read_bytes()
        assert any(opened.at(number).read(0, opened.sectors) == contents for number in range(1, 8))
        assert opened.bursts() and all(write.host_ns for write in opened.writes())


def test_libnbd(tmp_path: Path, base: Path) -> None:
    data = random.Random(2).randbytes(SIZE)
    (tmp_path / "new.img").write_bytes(data)
    with chronus_serve(tmp_path / "disk.tt", "--base", base, "--listen", "127.0.0.1:0") as (disk,):
        facts = json.loads(tool("nbdinfo", "--json", disk["url"]))
        assert facts["protocol"] == "newstyle-fixed" and facts["structured"]
        export = facts["exports"][0]
        assert export["can_multi_conn"] and export["can_fua"] and export["can_trim"] and export["can_zero"]
        tool("nbdcopy", "--connections=4", tmp_path / "new.img", disk["url"])
        tool("nbdcopy", disk["url"], tmp_path / "back.img")
        assert (tmp_path / "back.img").read_bytes() == data
        assert len(json.loads(tool("nbdinfo", "--map", "--json", disk["url"]))) >= 1


def test_the_past(tmp_path: Path, base: Path) -> None:
    history, listen = tmp_path / "disk.tt", f"unix:{tmp_path}/s"
    with chronus_serve(history, "--base", base, "--listen", listen, ends=signal.SIGINT) as (disk,):
        tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 4096", "-c", "write -P 2 0 4096", disk["url"])
    exports = ["--export", "old=w1", "--export", "new=end", "--at", "base"]
    with chronus_serve(history, *exports, "--listen", listen) as disks:
        assert [disk["name"] for disk in disks] == ["", "old", "new"]
        assert all(disk["readonly"] for disk in disks)
        tool("qemu-img", "compare", "-f", "raw", "-F", "raw", base, disks[0]["url"])
        for disk, value in zip(disks[1:], (1, 2), strict=True):
            tool("qemu-io", "-r", "-f", "raw", "-c", f"read -P {value} 0 4096", disk["url"])
        assert len(json.loads(tool("nbdinfo", "--list", "--json", disks[0]["url"]))["exports"]) == 3
    with chronus_serve(history, "--at", "w1", "--overlay", "--listen", listen) as (disk,):
        tool("qemu-io", "-f", "raw", "-c", "read -P 1 0 4096", "-c", "write -P 9 0 4096", disk["url"])
        tool("qemu-io", "-f", "raw", "-c", "read -P 9 0 4096", disk["url"])
    with chronus_serve(history, "--export", "=live", "--export", "old=w1", "--listen", "0") as disks:
        tool("qemu-io", "-f", "raw", "-c", "read -P 2 0 4096", "-c", "write -P 3 0 4096", disks[0]["url"])
        tool("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 4096", disks[1]["url"])
    with History.open(history) as opened:
        assert opened.count == 3 and opened.at(3).read(0, 1) == b"\3" * 512


def test_a_raw_file_for_many_sizes_of_request(tmp_path: Path, base: Path) -> None:
    with RawFileExport(base) as export, serving([export]) as server:
        for size in (512, 4096, 65536, 1 << 20, SIZE):
            tool("qemu-img", "bench", "-f", "raw", "-c", 40, "-d", 64, "-s", size, server.url())
            tool("qemu-img", "bench", "-f", "raw", "-c", 40, "-d", 64, "-s", size, "-w", server.url())
    assert base.read_bytes() == bytes(SIZE)


@pytest.mark.slow
def test_a_qemu_guest_lives_on_it(tmp_path: Path, debian_image: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64")
    history, listen = tmp_path / "disk.tt", f"unix:{tmp_path}/s"
    with chronus_serve(history, "--base", debian_image, "--listen", listen) as (disk,):
        command = ["qemu-system-x86_64", "-m", "256", "-nographic", "-no-reboot", "-nodefaults"]
        command += ["-serial", "stdio"]
        command += ["-machine", "pc,accel=tcg", "-cpu", "qemu64"]
        command += [
            "-kernel",
            str(debian_image.parent / "vmlinuz"),
            "-initrd",
            str(debian_image.parent / "initrd.img"),
        ]
        command += ["-append", "root=/dev/vda rw console=ttyS0 nokaslr panic=-1"]
        command += ["-drive", f"file={disk['url']},format=raw,if=virtio"]
        guest = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert guest.stdin is not None and guest.stdout is not None
        watchdog = threading.Timer(200, guest.kill)
        watchdog.start()
        try:
            console = b""
            orders = b"mount -o remount,rw /; echo hello > /written; sync; echo do''ne\n"
            for until, typed in ((b"# ", orders), (b"done", b"")):
                while until not in console:
                    more = os.read(guest.stdout.fileno(), 1 << 16)
                    assert more, console.decode(errors="replace")[-2000:]
                    console += more
                guest.stdin.write(typed)
                guest.stdin.flush()
        finally:
            watchdog.cancel()
            guest.kill()
            guest.communicate()
    with History.open(history) as opened:
        assert opened.count > 0
        disk_now = opened.at(opened.count)
        assert any(b"hello\n" in disk_now.block(block) for block in opened.changed_blocks(0, opened.count))


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["none.tt"], 2, "--base IMAGE or --size"),
        (["none.tt", "--size", "1000"], 2, "whole sectors"),
        (["none.tt", "--at", "w1"], 3, "none.tt"),
        (["none.tt", "--export", "x"], 2, "NAME=POS"),
        (["none.tt", "--export", "x=w1", "--export", "x=w2"], 2, "a name of its own"),
        (["none.tt", "--export", "x=live", "--export", "y=live"], 2, "once"),
        (["none.tt", "--overlay"], 2, "for instants"),
        (["new.tt", "--size", "1M", "--listen", "0.0.0.0:0"], 2, "--allow-remote"),
        (["new.tt", "--size", "1M", "--listen", "here"], 2, "no address"),
    ],
)
def test_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    words[0] = str(tmp_path / words[0])
    assert main(["serve", *words]) == code
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1
