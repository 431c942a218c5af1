"""Probes on the real QEMU, which boots an instant over NBD: consoles, commands inside and beside it."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from boot_sector import talking_disk

from tt.chronus.probes.console import ConsoleProbe
from tt.chronus.probes.guest import GuestProbe
from tt.chronus.probes.run import RunProbe
from tt.chronus.runners.kvm import runs
from tt.chronus.runners.qemu import BINARY, QemuGuest, QemuRunner
from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import Outcome, ProbeError
from tt.chronus.store.view import DiskView, ImageView
from tt.errors import BadInput

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not installed"),
]
PATIENT = Setup(timeout_s=240)


def printed(guest: QemuGuest, what: bytes) -> bool:
    while what not in guest.console and guest.ended is None and guest.seconds < 100:
        guest.read(1)
    return what in guest.console


@pytest.fixture
def talking(tmp_path: Path) -> ImageView:
    return ImageView(talking_disk(tmp_path / "disk.img", b"hello from the boot sector\r\n"))


@pytest.mark.parametrize("bus", ["virtio", "ide"])
def test_firmware_boots_a_boot_sector(talking: ImageView, bus: str) -> None:
    with QemuRunner(firmware=True, bus=bus).start(talking, PATIENT) as guest:
        assert printed(guest, b"hello from the boot sector\r\n")
        guest.write(b"ab")
        assert printed(guest, b"\r\nab")
        guest.write(b"q")
        while guest.ended is None and guest.seconds < 100:
            guest.read(1)
        assert guest.ended == "reset"
        assert guest.reads == {0}
    guest.stop()  # twice does no harm
    assert guest.read(1) == b""


def test_a_disk_that_nothing_boots_from(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(CannotBoot) as e:
        QemuRunner().start(ImageView(path), PATIENT)
    assert e.value.reads
    verdict = ConsoleProbe("expect /login:/", "a", "qemu:firmware", PATIENT).run(ImageView(path))
    assert (verdict.outcome, verdict.signature) == (Outcome.CRASH, "No bootable device.")


def test_a_console_script_on_firmware(talking: ImageView) -> None:
    script = 'expect /sector/\nsend "x"\nexpect /x/\nbad if /y/\ngood after 500ms'
    assert ConsoleProbe(script, "a", "qemu", PATIENT).run(talking).outcome is Outcome.GOOD
    verdict = ConsoleProbe('expect /sector/\nsend "q"\nexpect /y/', "a", "qemu", PATIENT).run(talking)
    assert (verdict.outcome, verdict.signature) == (Outcome.CRASH, "reset")


def test_a_guest_that_prints_for_ever(tmp_path: Path) -> None:
    disk = ImageView(talking_disk(tmp_path / "disk.img", b"hello", flood=True))
    verdict = ConsoleProbe("expect /AB/", "a", "qemu", Setup(timeout_s=4)).run(disk)
    assert verdict.outcome is Outcome.HANG
    assert verdict.console.endswith("AAAA") and len(verdict.console) == 4000


def test_damage_is_no_verdict(talking: ImageView) -> None:
    class Damaged(DiskView):
        sectors, size, where = talking.sectors, talking.size, "a damaged disk"
        whole = True

        def blocks(self, first: int, count: int) -> list[bytes]:
            if not self.whole:
                raise BadInput("the history is damaged")
            return talking.blocks(first, count)

    disk = Damaged()
    runner = QemuRunner(firmware=True)
    with pytest.raises(BadInput, match="the history is damaged"), runner.start(disk, PATIENT) as guest:
        disk.whole = False
        printed(guest, b"what it cannot")


def test_what_qemu_refuses_is_a_probe_error(talking: ImageView) -> None:
    with pytest.raises(ProbeError, match=r"^QEMU does not start: .*nonsense"):
        QemuRunner(more=("-nonsense",)).start(talking, PATIENT)
    with pytest.raises(ProbeError, match="beside a virtio disk only"):
        QemuRunner(bus="ide").start(talking, Setup(script_disk=b"x"))


def test_the_self_test_runs_without_kvm() -> None:
    path = shutil.which(BINARY)
    assert path is not None
    assert runs(path, "tcg", "max")
    assert not runs(path, "no such thing", "max")


_PARENT = """
import sys
from pathlib import Path
from tt.chronus.store.view import ImageView
from tt.chronus.runners.qemu import QemuRunner
from tt.chronus.runners.runner import Setup
guest = QemuRunner(firmware=True).start(ImageView(Path(sys.argv[1])), Setup())
print(guest._process.pid, flush=True)
if sys.argv[2] == "killed":
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "leaves"])
def test_no_qemu_survives_us(talking: ImageView, tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "disk.img"), how]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # for what a killed process leaves behind
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        pid = int(parent.stdout.readline())
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # gone already, with who started it
        if how == "killed":
            parent.send_signal(signal.SIGKILL)
        ready, _, _ = select.select([watched], [], [], 60)
        os.close(watched)
        assert ready


def test_a_command_beside_the_guest(talking: ImageView) -> None:
    talk = f"""{sys.executable} - <<'X'
import os, socket
console = socket.socket(socket.AF_UNIX)
console.connect(os.environ["CHRONUS_CONSOLE"])
heard = b""
while b"sector" not in heard:
    heard += console.recv(100)
console.sendall(b"k")
while not heard.endswith(b"k"):
    heard += console.recv(100)
socket.create_connection(("127.0.0.1", int(os.environ["CHRONUS_PORT_80"]))).close()
print(os.environ["CHRONUS_INSTANT"], os.environ["CHRONUS_NBD"])
X
[ $? = 0 ] && exit 7"""
    setup = Setup(timeout_s=100, forward=(22, 80))
    verdict = RunProbe(talk, "qemu", setup, after="sector").run(talking)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.BAD, 7), verdict.output
    assert verdict.output.startswith(f"{talking.where} nbd+unix:///disk?socket=")


def test_a_command_that_takes_too_long_ends_with_all_it_started(talking: ImageView, tmp_path: Path) -> None:
    path = tmp_path / "alive"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    command = f"(exec 3> {path}; sleep 1000) & sleep 1000"
    verdict = RunProbe(command, "qemu", Setup(timeout_s=3), after="sector").run(talking)
    assert verdict.outcome is Outcome.HANG
    assert os.read(reader, 1) == b""  # nobody has it open any more
    os.close(reader)


def test_verdicts_of_a_dying_guest(talking: ImageView) -> None:
    quit_it = f"""{sys.executable} -c '
import os, socket
console = socket.socket(socket.AF_UNIX)
console.connect(os.environ["CHRONUS_CONSOLE"])
console.sendall(b"q")
while console.recv(100): pass
'; exit """
    setup = Setup(timeout_s=100)
    assert RunProbe(quit_it + "0", "qemu", setup, "sector").run(talking).outcome is Outcome.GOOD
    assert RunProbe(quit_it + "3", "qemu", setup, "sector").run(talking).outcome is Outcome.BAD
    verdict = RunProbe("exit 0", "qemu", Setup(timeout_s=2), "never printed").run(talking)
    assert verdict.outcome is Outcome.HANG


def test_debian_over_nbd(debian_image: Path) -> None:
    before = hashlib.sha256(debian_image.read_bytes()).digest()
    disk = ImageView(debian_image)
    script = "login root\nrun touch /root/x; sync; test -e /root/x\nrun grep -q nonesuch /etc/fstab"
    for runner in ("qemu", "tt"):
        verdict = ConsoleProbe(script, "a", runner, PATIENT).run(disk)
        assert (verdict.outcome, verdict.exit_code) == (Outcome.BAD, 1), verdict
        assert verdict.output == "a:3: 'grep -q nonesuch /etc/fstab' exits with 1"
        assert verdict.reads and len(verdict.reads) > 1000
    verdict = GuestProbe("cat /etc/hostname; exit 3", "qemu", PATIENT, early=True).run(disk)
    assert (verdict.outcome, verdict.exit_code, verdict.output) == (Outcome.BAD, 3, "debian\n")
    verdict = GuestProbe("pidof crond > /dev/null", "qemu", PATIENT).run(disk)
    assert verdict.outcome is Outcome.GOOD, verdict
    assert hashlib.sha256(debian_image.read_bytes()).digest() == before


def test_a_panic_is_a_crash(debian_image: Path) -> None:
    setup = Setup(timeout_s=240, append="root=/dev/nonesuch rdinit=/nonesuch")
    verdict = ConsoleProbe("expect /login:/", "a", "qemu", setup).run(ImageView(debian_image))
    assert verdict.outcome is Outcome.CRASH
    assert "Cannot open root device" in verdict.signature
