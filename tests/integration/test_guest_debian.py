"""`tt guest build debian`: what comes out is the same each time, and boots (in QEMU, as a second opinion)."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tt.cli.main import main
from tt.errors import BadInput
from tt.guests import tools
from tt.guests.debian import DebianGuest, build

pytestmark = pytest.mark.slow

PROMPT = b"root@debian:~# "
# As tt boots it: no ACPI, no APIC, no MSI.
CMDLINE = "console=ttyS0 nolapic noapic acpi=off pci=conf1,nomsi nokaslr no_timer_check"


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> DebianGuest:
    """Build the guest once; skip where its packages cannot be had."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs"):
        try:
            tools.find(tool, "?")
        except BadInput:
            pytest.skip(f"{tool} is not installed")
    try:
        return build(tmp_path_factory.mktemp("debian"))
    except BadInput as e:
        if "apt" in str(e):
            pytest.skip(f"no packages: {e}")
        raise


class Qemu:
    """A guest in QEMU and its serial console."""

    def __init__(self, guest: DebianGuest, disk: Path, root: str = "/dev/vda") -> None:
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            pytest.skip("qemu-system-x86_64 is not installed")
        machine = ["-machine", "pc,acpi=off", "-cpu", "qemu64", "-m", "256", "-no-reboot", "-nic", "none"]
        console = ["-display", "none", "-monitor", "none", "-serial", "stdio"]
        kernel = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
        append = ["-append", f"root={root} ro {CMDLINE}"]
        drive = ["-drive", f"file={disk},if=none,id=d,format=raw"]
        devices = ["-device", "virtio-blk-pci,disable-modern=on,drive=d"]
        devices += ["-device", "virtio-rng-pci,disable-modern=on"]
        self._process = subprocess.Popen(
            [program, *machine, *console, *kernel, *append, *drive, *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._seen = b""

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, text: bytes, timeout_s: float = 120) -> str:
        """Return what the guest printed until `text`, without it."""
        output = self._process.stdout
        assert output is not None
        deadline = time.monotonic() + timeout_s
        while text not in self._seen:
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s: {self._seen[-2000:]!r}"
            if select.select([output], [], [], 1)[0]:
                data = os.read(output.fileno(), 1 << 16)
                assert data, f"QEMU ended with no {text!r}: {self._seen[-2000:]!r}"
                self._seen += data
        before, _, self._seen = self._seen.partition(text)
        return before.decode(errors="replace")

    def type(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def ask(self, command: str) -> str:
        """Type a command and return what it printed."""
        self.type(command)
        self.wait(b"\n")  # the echo
        return self.wait(PROMPT)


def test_the_image_is_sound(guest: DebianGuest) -> None:
    tools.run([tools.find("e2fsck", "e2fsprogs"), "-fn", str(guest.image)])
    assert guest.image.stat().st_blocks * 512 < guest.image.stat().st_size / 2, "the image is not sparse"
    linux, busybox = guest.packages
    assert linux == f"linux-image-{guest.kernel_version}"
    assert busybox == "busybox-static"


def test_a_second_build_gives_the_same_bytes(guest: DebianGuest, tmp_path: Path) -> None:
    again = build(tmp_path)
    for name in ("image", "kernel", "initrd"):
        assert getattr(again, name).read_bytes() == getattr(guest, name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debian.img", "initrd.img", "vmlinuz"]


def test_an_ordinary_user_gets_the_same_bytes(guest: DebianGuest, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("these tests run as an ordinary user already")
    nobody = 65534
    home = Path("/tmp") / f"tt-nobody-{os.getpid()}"
    home.mkdir()
    os.chown(home, nobody, nobody)
    code = f"from pathlib import Path; from tt.guests.debian import build; build(Path({str(home / 'out')!r}))"
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
    who: dict[str, Any] = {"user": nobody, "group": nobody, "extra_groups": [], "umask": 0o077}
    try:
        subprocess.run([_python_for_all(), "-B", "-c", code], env=env, cwd="/", check=True, **who)
        assert (home / "out" / "debian.img").read_bytes() == guest.image.read_bytes()
    finally:
        shutil.rmtree(home)


def _python_for_all() -> str:
    """Return a Python with this one's packages that user nobody may run (they may lie in root's home)."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        try:
            probe = [python, "-B", "-c", "import tt.guests.debian"]
            if subprocess.run(probe, user=65534, cwd="/", env=env, stderr=subprocess.DEVNULL).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip(f"user nobody may run neither {sys.executable} nor {system} with tt and its packages")


def test_it_boots_to_a_shell_with_its_services(guest: DebianGuest, tmp_path: Path) -> None:
    disk = Path(shutil.copy(guest.image, tmp_path))
    with Qemu(guest, disk) as qemu:
        qemu.wait(PROMPT)
        processes = qemu.ask("ps")
        for service in ("syslogd", "crond", "httpd"):
            assert service in processes
        assert "It works" in qemu.ask("wget -qO- http://127.0.0.1/")
        assert "syslogd started" in qemu.ask("cat /var/log/messages")
        assert "/dev/vda / ext4 rw" in qemu.ask("cat /proc/mounts")
        assert "virtio_rng.0" in qemu.ask("cat /sys/class/misc/hw_random/rng_current")
        assert "uid=0(root) gid=0(root)" in qemu.ask("id")
        qemu.ask("echo kept > /root/note; sync")
        qemu.type("poweroff")
        # With no ACPI there is nothing that could switch the power off, so Linux halts.
        qemu.wait(b"reboot: System halted")
    tools.run([tools.find("e2fsck", "e2fsprogs"), "-fn", str(disk)])
    with Qemu(guest, disk, root="LABEL=debian") as qemu:
        qemu.wait(PROMPT)
        assert "kept" in qemu.ask("cat /root/note")
        qemu.type("reboot")
        qemu.wait(b"reboot: Restarting system")


def test_a_wrong_root_ends_in_a_shell_that_says_so(guest: DebianGuest, tmp_path: Path) -> None:
    disk = Path(shutil.copy(guest.image, tmp_path))
    with Qemu(guest, disk, root="/dev/vdz") as qemu:
        qemu.wait(b"init: no disk /dev/vdz; here is a shell")
        qemu.wait(b"# ")


def test_the_command_line(guest: DebianGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guest", "build", "debian", "-o", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (linux, version), _ = guest.packages.items()
    assert lines[0] == f"{linux} {version}, cached"
    assert lines[-1] == f"try: tt record {tmp_path}/debian.img"
    assert main(["guest", "build", "debian", "--json", "-o", str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"] == guest.packages
    assert facts["built"][0] == f"{tmp_path}/debian.img"
