"""Streams with the real thing: two tt, a tt and a QEMU, in both directions of connecting."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import TT
from denali_net_rig import ROUNDS, build_pingpong
from network_rig import Conversation, free_port

from tt.log import Trace
from tt.replay import verify

PROMPT = "root@debian:~# "


@contextlib.contextmanager
def started(tt: TT, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run `tt words...` while the block runs, and wait for its end."""
    command = [*tt.command, *map(str, words)]
    process = subprocess.Popen(
        command,
        cwd=tt.folder,
        env=tt.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
        process.wait(60)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["unix", pytest.param("tcp", marks=pytest.mark.slow)])
def test_two_recordings_talk_by_a_stream(tt: TT, tmp_path: Path, kind: str) -> None:
    guest = build_pingpong(tmp_path)
    where = f"stream:127.0.0.1:{free_port()}" if kind == "tcp" else f"stream:unix:{tmp_path}/net.sock"
    words = ("record", guest, "--timeout", 30)
    with started(tt, *words, "-o", "one.tt", "--net", f"{where},listen") as one:
        for _ in range(200):  # until it listens
            other = tt_run(tt, *words, "-o", "two.tt", "--force", "--net", f"{where},mac=52:54:00:74:01:00")
            if other.returncode == 0 or b"cannot connect" not in other.stderr:
                break
            time.sleep(0.05)
        assert other.returncode == 0, other.stderr
    assert one.returncode == 0
    for name in ("one.tt", "two.tt"):
        with Trace.open(tmp_path / name) as trace:
            console = "\n".join(text for _, _, text in trace.console_lines())
            assert re.search(rf"{ROUNDS} rounds in \d+ us", console), console
            assert verify(trace).good


def tt_run(tt: TT, *words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*tt.command, *map(str, words)],
        cwd=tt.folder,
        env=tt.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )


class Qemu:
    """A Debian in QEMU with a card at `netdev`, and its console."""

    def __init__(self, image: Path, netdev: str) -> None:
        self.console = ""
        self._moved = threading.Condition()
        folder = image.parent
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-display", "none", "-no-reboot"]
            + ["-serial", "stdio", "-monitor", "none", "-nodefaults", "-snapshot"]
            + ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img")]
            + ["-append", "root=/dev/vda ro console=ttyS0 quiet"]
            + ["-drive", f"file={image},if=virtio,format=raw"]
            + ["-netdev", netdev, "-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:02"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, line: str, answer: str, seconds: float = 120) -> None:
        """Type a line, and wait for what it prints."""
        assert self._process.stdin is not None
        with self._moved:
            if line:
                self.console = ""
                self._process.stdin.write(f"{line}\n".encode())
            late = time.monotonic() + seconds
            while re.search(answer, self.console) is None:
                assert time.monotonic() < late and self._process.poll() is None, self.console[-2000:]
                self._moved.wait(1)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read(4096):
            with self._moved:
                self.console += data.decode(errors="replace").replace("\r", "")
                self._moved.notify_all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86 is not installed")
@pytest.mark.parametrize("listens", ["tt", "qemu"])
def test_a_qemu_guest_and_a_tt_guest_talk(debian_image: Path, tmp_path: Path, listens: str) -> None:
    path = tmp_path / "net.sock"
    netdev = f"stream,id=n,addr.type=unix,addr.path={path},server={'off' if listens == 'tt' else 'on'}"
    with contextlib.ExitStack() as stack:

        def start() -> Qemu:
            qemu = Qemu(debian_image, netdev)
            stack.callback(qemu.close)
            return qemu

        def talk(guest: Conversation) -> None:
            qemu = start() if listens == "tt" else there
            guest.wait_for(PROMPT)
            qemu.ask("", PROMPT)
            qemu.ask("ifconfig eth0 10.1.0.2; echo R''EADY", "READY")
            guest.ask("ifconfig eth0 10.1.0.1; echo R''EADY", "READY")
            guest.ask("ping -c 3 10.1.0.2", "3 packets received")
            guest.ask("wget -qO- http://10.1.0.2/", "It works")
            qemu.ask("ping -c 3 10.1.0.1", "3 packets received")
            qemu.ask("wget -qO- http://10.1.0.1/", "It works")
            qemu.close()
            guest.ask(
                "sleep 1; cat /sys/class/net/eth0/carrier; ifconfig eth0 | grep RUNNING || echo D''OWN",
                "DOWN",
            )

        if listens == "qemu":
            there = start()
            for _ in range(100):
                if path.exists():
                    break
                time.sleep(0.1)
        net = f"stream:unix:{path}" + (",listen" if listens == "tt" else "")
        talked = Conversation(debian_image, tmp_path / "q.tt", talk, nets=[net])
    [line] = talked.said
    assert line.startswith(f"stream:unix:{path} is gone (")
    with Trace.open(tmp_path / "q.tt") as trace:
        assert verify(trace).good


@pytest.mark.slow
def test_a_peer_that_sends_garbage_to_a_debian(debian_image: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    chance = random.Random(9)
    kinds = (b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00", b"\x00\x40", b"\x88\xcc")

    def garbage() -> bytes:
        to = chance.choice((b"\xff" * 6, bytes.fromhex("525400740000"), bytes.fromhex("333300000001")))
        size = chance.choice((0, 1, 20, 46, 1500, chance.randrange(65_536)))
        # Often with the first byte of an IP header, so that it gets further.
        return (
            to
            + b"\2garba"
            + chance.choice(kinds)
            + chance.choice((b"", b"\x45", b"\x60"))
            + chance.randbytes(size)
        )

    def peer(count: int) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(path))
        for _ in range(count):
            frame = garbage()[:65_550]
            made.sendall(len(frame).to_bytes(4, "big") + frame)
        return made

    def talk(guest: Conversation) -> None:
        guest.wait_for(PROMPT)
        guest.ask("ifconfig eth0 10.1.0.1; echo R''EADY", "READY")
        with peer(2000) as first:
            guest.ask("echo al''ive", "alive")
            first.sendall(b"\xff" * 100)  # a length that none has: it is cut off
            with peer(500):  # waits until that has happened
                guest.ask("sleep 1; cat /sys/class/net/eth0/carrier", r"(?m)^1$")
        for _ in range(20):
            peer(5).close()
        guest.ask("sleep 1; ifconfig eth0 | grep RX; echo still al''ive", "still alive")

    talked = Conversation(debian_image, tmp_path / "g.tt", talk, nets=[f"stream:unix:{path},listen"])
    assert "it sent a frame of 4,294,967,295 bytes" in talked.said[0] and len(talked.said) == 5
    [counts] = talked.network.counters()
    assert counts["received"] + counts["dropped"] >= 2000
    with Trace.open(tmp_path / "g.tt") as trace:
        assert trace.summary["network"] == [counts]
        assert verify(trace).good
