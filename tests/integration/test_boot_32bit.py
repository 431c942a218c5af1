"""A 32-bit Debian kernel and a 32-bit userland, with two-level page tables and with PAE."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_rig import EPOCH, QUICK, Boot, replays_exactly

from tt.errors import BadInput
from tt.guests import apt, cpio, tools
from tt.log import Trace
from tt.net.spec import cards, connect, parse_net
from tt.recording import record
from tt.vmm.configure import configure_pc
from tt.vmm.live import LiveSource

pytestmark = pytest.mark.slow

CR4_PAE = 0x20

INIT = """\
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys
busybox mount -t proc proc /proc
busybox uname -m
busybox grep -c processor /proc/cpuinfo
busybox ls -1 /bin
i=0; while [ $i -lt 500 ]; do i=$((i + 1)); done; echo counted to $i
echo user $(busybox id -u), process $$
busybox reboot -f
"""


@pytest.fixture(scope="module")
def i386(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[apt.Apt]:
    """Return an apt for 32-bit packages with lists of its own; skip where they cannot be had."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        try:
            tools.find(tool, "?")
        except BadInput as e:
            pytest.skip(str(e))
    monkeypatch_module.setattr(apt, "ARCHITECTURE", "i386")
    cache = apt.cache_directory() / "i386"
    cache.mkdir(exist_ok=True)

    def ready(candidate: apt.Apt) -> apt.Apt:
        candidate.show("busybox-static")
        return candidate

    try:
        found = apt.with_lists(cache, ready)
    except BadInput as e:
        try:
            # Lists that did arrive serve as well, when it was another one that could not be had.
            found = ready(apt.Apt(cache, private=True))
        except BadInput:
            pytest.skip(f"no 32-bit packages: {e}")
    yield found


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def fetch(i386: apt.Apt, name: str) -> Path:
    try:
        return i386.fetch(i386.show(name))
    except BadInput as e:
        pytest.skip(f"no 32-bit package {name}: {e}")


def member(package: Path, pattern: str) -> bytes:
    """Return the one file of a package whose name is like `pattern`."""
    command = [tools.find("dpkg-deb", "dpkg"), "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
    ):
        for entry in archive:
            if re.fullmatch(pattern, entry.name) and (contents := archive.extractfile(entry)):
                data = contents.read()
                unpacking.kill()
                return data
    pytest.fail(f"{package.name} holds no {pattern}")


@pytest.fixture(scope="module")
def initrd(i386: apt.Apt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = member(fetch(i386, "busybox-static"), r"\./(usr/)?bin/busybox")
    assert busybox[:5] == b"\x7fELF\x01"
    entries = {
        "bin": cpio.directory(),
        "dev": cpio.directory(),
        "dev/console": cpio.character_device(5, 1),
        "init": cpio.file(INIT.encode(), 0o755),
        "bin/busybox": cpio.file(busybox, 0o755),
        "bin/sh": cpio.symlink("busybox"),
    }
    path = tmp_path_factory.mktemp("i386") / "initrd.img"
    path.write_bytes(cpio.archive(entries, EPOCH))
    return path


@pytest.mark.parametrize("flavour", ["686", "686-pae"])
def test_to_userland_and_back(i386: apt.Apt, initrd: Path, tmp_path: Path, flavour: str) -> None:
    meta = i386.show(f"linux-image-{flavour}")
    name = re.search(rf"linux-image-[0-9][^ ,(|]*-{flavour}\b", meta.depends)
    assert name is not None, meta.depends
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(member(fetch(i386, name.group()), r"\./boot/vmlinuz-.*"))
    config = configure_pc(kernel, initrd=initrd, append=QUICK, epoch=EPOCH)
    assert "32-bit entry" in config.description[0]
    # tt unpacks the kernel: its own code would take 2.3 G ticks for that.
    assert "unpacks itself" not in config.description[0]
    boot = Boot(config, tmp_path / "x.tt")
    said = boot.console[boot.console.index("Run /init as init process") :].split("\n", 1)[1]
    assert said.startswith("i686\n1\nbusybox\nsh\ncounted to 500\nuser 0, process 1\n"), said
    assert said.rstrip().endswith("reboot: machine restart"), said
    assert boot.recording.reason == "reset"
    replay = replays_exactly(tmp_path / "x.tt")
    assert bool(replay.machine.engine.registers()["cr4"] & CR4_PAE) == (flavour == "686-pae")


NETWORK_INIT = """\
#!/bin/sh
b=/bin/busybox
$b mkdir /proc /sys; $b mount -t devtmpfs d /dev; $b mount -t proc p /proc; $b mount -t sysfs s /sys
$b insmod /e1000.ko; $b ifconfig eth0 up
$b cat > /s << 'X'
#!/bin/sh
[ "$1" = bound ] && /bin/busybox ifconfig $interface $ip netmask $subnet mtu 1500
exit 0
X
$b chmod 755 /s; $b udhcpc -i eth0 -q -n -s /s > /dev/null 2>&1
$b wget -q -O /got http://10.0.2.2:PORT/; $b sha256sum < /got
$b nc 10.0.2.2 PORT < /got; $b poweroff -f
"""


def test_linux_drives_an_e1000_card(i386: apt.Apt, tmp_path: Path) -> None:
    """Linux's own driver, untouched: DHCP, and half a megabyte each way, segmented by the card."""
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")
    meta = i386.show("linux-image-686")
    name = re.search(r"linux-image-[0-9][^ ,(|]*-686\b", meta.depends)
    assert name is not None, meta.depends
    package = fetch(i386, name.group())
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(member(package, r"\./boot/vmlinuz-.*"))
    body = random.Random(1).randbytes(500_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sent: list[bytes] = []
        served = threading.Thread(target=serve, args=(server, body, sent), daemon=True)
        served.start()
        init = NETWORK_INIT.replace("PORT", str(server.getsockname()[1]))
        entries = {
            "bin": cpio.directory(),
            "dev": cpio.directory(),
            "dev/console": cpio.character_device(5, 1),
            "init": cpio.file(init.encode(), 0o755),
            "e1000.ko": cpio.file(member(package, r"\./lib/modules/.*/e1000\.ko")),
            "bin/busybox": cpio.file(member(fetch(i386, "busybox-static"), r"\./(usr/)?bin/busybox"), 0o755),
            "bin/sh": cpio.symlink("busybox"),
        }
        initrd = tmp_path / "initrd.img"
        initrd.write_bytes(cpio.archive(entries, EPOCH))
        nets = [parse_net("user,model=e1000")]
        config = configure_pc(kernel, initrd=initrd, append=QUICK, epoch=EPOCH, nets=cards(nets, "pc"))
        network = connect(nets)
        try:
            source = LiveSource(pace=True, forever=True, network=network)
            record(config, tmp_path / "x.tt", source, timeout_s=200)
        finally:
            network.close()
        served.join(10)
    with Trace.open(tmp_path / "x.tt") as trace:
        said = "\n".join(text for _tick, _unit, text in trace.console_lines())
        assert hashlib.sha256(body).hexdigest() in said, said[-2000:]
        assert sent == [body]
        assert sum(len(frame.data) for frame in trace.frames() if frame.incoming) > len(body)
    replays_exactly(tmp_path / "x.tt")


def serve(server: socket.socket, body: bytes, sent: list[bytes]) -> None:
    """Answer one request of HTTP with `body`, and keep what the next connection sends."""
    server.settimeout(150)
    with server.accept()[0] as asked:
        asked.recv(4096)
        asked.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with server.accept()[0] as sending:
        sending.settimeout(60)
        got = bytearray()
        while len(got) < len(body) and (piece := sending.recv(1 << 16)):
            got += piece
        sent.append(bytes(got))
