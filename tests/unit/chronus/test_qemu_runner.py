"""What QEMU is told: its arguments, the kernel's words; what is said where it cannot run."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tt.chronus.probes.run import RunProbe
from tt.chronus.runners.boot_files import BootFiles
from tt.chronus.runners.kvm import self_test_kernel
from tt.chronus.runners.named import runner
from tt.chronus.runners.qemu import QemuRunner, companions, kernel_words, what_boots
from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.view import ImageView
from tt.errors import UsageError
from tt.vmm.boot.loader import PC_CMDLINE
from tt.vmm.boot.modules import Module, pack


def words(cmdline: str, setup: Setup | None = None) -> str:
    return kernel_words(BootFiles(b"", None, cmdline, "a test"), setup or Setup())


def test_the_kernel_is_told_what_it_needs_here() -> None:
    assert words("root=/dev/vda ro") == "root=/dev/vda ro console=ttyS0 panic=-1"
    assert words("console=ttyS0,115200 panic=5 x") == "console=ttyS0,115200 panic=5 x"
    assert words("console=tty0 -- s") == "console=tty0 console=ttyS0 panic=-1 -- s"
    assert words("ro", Setup(append="debug")) == "ro console=ttyS0 panic=-1 debug"
    init = Setup(init=("/bin/sh", "/dev/vdb"))
    assert words("ro quiet", init) == "ro quiet console=ttyS0 panic=-1 init=/bin/sh -- /dev/vdb"


def test_what_a_recorded_kernel_was_told_of_tts_machine_is_left_out() -> None:
    assert words(f"root=/dev/vda {' '.join(PC_CMDLINE)} ro") == "root=/dev/vda console=ttyS0 ro panic=-1"
    assert "nokaslr" in words("root=/dev/vda nokaslr")  # somebody's own wish


def test_a_multiboot_kernel_is_told_nothing_of_ours() -> None:
    modules = [Module("a, b", b"1"), Module("", b"2")]
    files = BootFiles(b"", pack(modules), "x", "a test", "multiboot1")
    assert kernel_words(files, Setup(append="y")) == "x y"
    assert companions(files) == [("a, b", b"1"), ("", b"2")]
    assert companions(BootFiles(b"", None, "", "a test", "multiboot1")) == []
    assert companions(BootFiles(b"", b"i", "", "a test", "linux-bzimage")) == [("", b"i")]
    with pytest.raises(CannotBoot, match="QEMU boots no Multiboot2 kernel by itself"):
        companions(BootFiles(b"", None, "", "a test", "multiboot2"))


def test_a_runner_by_name() -> None:
    assert runner("qemu") == QemuRunner()
    named = runner("qemu:firmware,bus=ide,cpus=2,network=open")
    assert named == QemuRunner(firmware=True, bus="ide", cpus=2, network="open")
    assert QemuRunner.named("qemu:accelerator=tcg").key() == QemuRunner().key()
    assert named.key() != QemuRunner().key()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("qemu:frobnicate", "--runner qemu:frobnicate: 'frobnicate' is none of firmware, bus=ide|scsi"),
        ("qemu:firmware=1", "'firmware=1' is none of"),
        ("qemu:bus", "'bus' is none of"),
        ("qemu:cpus=many", "'cpus=many' is none of"),
        ("qemu:cpus=\u00b2", "is none of"),
        ("qemu:more=x", "'more=x' is none of"),
        ("qemu:bus=floppy", "the qemu runner has no bus 'floppy': virtio, ide, scsi"),
        ("qemu:cpus=0", "the qemu runner cannot have 0 cpus: 1 to 64"),
    ],
)
def test_options_that_make_no_sense(name: str, error: str) -> None:
    with pytest.raises(UsageError) as e:
        runner(name)
    assert error in str(e.value)


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProbeError) as e:
        runner("qemu").start(ImageView(tmp_path / "disk"), Setup())
    assert str(e.value) == (
        "--runner qemu needs qemu-system-x86_64, which is not installed: "
        "apt install qemu-system-x86, or use --runner tt"
    )


def test_what_boots(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(CannotBoot):
        what_boots(ImageView(path), Setup())
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    assert what_boots(ImageView(path), Setup()) is None
    with pytest.raises(CannotBoot):
        what_boots(ImageView(path), Setup(append="quiet"))
    assert what_boots(ImageView(path), Setup(), firmware=True) is None
    with pytest.raises(ProbeError, match="the disk's own boot loader decides on the kernel"):
        what_boots(ImageView(path), Setup(init=("/bin/sh",)), firmware=True)


def test_ports_need_a_network() -> None:
    assert "hostfwd=tcp:127.0.0.1:0-:22" in QemuRunner().forwards((22,))[1]
    assert "restrict=on" in QemuRunner().forwards(())[1]
    assert "restrict" not in QemuRunner(network="open").forwards(())[1]
    assert QemuRunner(network="none").forwards(()) == []
    with pytest.raises(ProbeError, match="cannot be forwarded without a network"):
        QemuRunner(network="none").forwards((22,))
    with pytest.raises(ProbeError, match="99999 is no TCP port"):
        QemuRunner().forwards((99999,))


def test_any_clock_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QemuRunner, "path", lambda self: "qemu")
    runner = QemuRunner(accelerator="tcg")
    assert "base=2026-01-01T00:00:00" in runner.machine(1 << 20, 1_767_225_600)
    assert "base=1970-01-01T00:00:00" in runner.machine(1 << 20, -5)
    assert "base=9999-12-31T23:59:59" in runner.machine((1 << 20) + 1, 1 << 70)


def test_the_self_test_is_a_multiboot_kernel() -> None:
    kernel = self_test_kernel()
    magic, flags, checksum, header, load, _, _, entry = struct.unpack_from("<8I", kernel)
    assert (magic, (magic + flags + checksum) & 0xFFFFFFFF) == (0x1BADB002, 0)
    assert flags & 1 << 16 and header == load == 0x100000 and entry == load + 32
    tables = struct.unpack_from("<QQ", kernel[4096:])[0], struct.unpack_from("<Q", kernel, 8192)[0]
    assert tables == (0x102003, 0x103003)
    assert struct.unpack_from("<512Q", kernel, 12288)[511] == (511 << 21) | 0x83


def test_a_command_to_run_after_what_is_no_regex() -> None:
    with pytest.raises(ProbeError, match="is no regex to wait for"):
        RunProbe("true", "qemu", Setup(), after="(")


_PARENT = """
import sys, threading
from tt.chronus.runners.child import spawn
made = []
thread = threading.Thread(target=lambda: made.append(spawn(["/bin/sleep", "1000"])))
thread.start()
thread.join()  # the child outlives the thread that asked for it
assert made[0].poll() is None
print(made[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends children on Linux only")
def test_a_child_ends_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        watched = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        ready, _, _ = select.select([watched], [], [], 20)  # readable when it has ended
        os.close(watched)
    assert ready
