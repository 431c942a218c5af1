"""What a crash is known by, from consoles as Linux, initramfs-tools and systemd print them."""

from __future__ import annotations

import pytest

from tt.chronus.probes.signatures import Watch, signature

CONSOLES = [
    (
        b"[    1.500000] VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
        b"[    1.600000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
        "VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    (
        b"[   10.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    ),
    (
        b"/bin/sh: error while loading shared libraries: libc.so.6: cannot open shared object file\r\n"
        b"[   10.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\r\n",
        "/bin/sh: error while loading shared libraries: libc.so.6: cannot open shared object file; "
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00",
    ),
    (
        b"switch_root: can't execute '/bin/sh': No such file or directory\r\n[ 2.0] Kernel panic - not x\r\n",
        "switch_root: can't execute '/bin/sh': No such file or directory",
    ),
    (
        b"ALERT!  UUID=d6a1 does not exist.  Dropping to a shell!\r\n",
        "ALERT! UUID=d6a1 does not exist. Dropping to a shell!",
    ),
    (b"\x1b[0;1;31mYou are in emergency mode\x1b[0m. After\tit\n", "You are in emergency mode. After it"),
    (b"No init found. Try passing init= bootarg.\n", "No init found. Try passing init= bootarg."),
    (b"\r\n(initramfs) ", "(initramfs)"),
    (b"init: vda does not mount; here is a shell\n", "init: vda does not mount; here is a shell"),
    (b"Welcome to Debian\r\nlogin: ", ""),
    (b"a web server: told of a Kernel panic - not syncing: in a mail\n", ""),
    (b"[ 3.1] Oops: 0002 [#1] PREEMPT SMP\n[ 3.2] systemd[1]: Started.\n", ""),
    (b"", ""),
]  # fmt: skip


@pytest.mark.parametrize(("console", "expected"), CONSOLES)
def test_signature(console: bytes, expected: str) -> None:
    """The first line that ends all hope, in one form; nothing for a guest that lives."""
    assert signature(console) == expected


@pytest.mark.parametrize(("console", "expected"), CONSOLES)
def test_pieces(console: bytes, expected: str) -> None:
    """It is the same when the console comes byte by byte."""
    watch = Watch()
    for byte in console:
        watch.feed(bytes([byte]))
    watch.feed(b"\n")
    assert watch.fatal == expected


def test_grave() -> None:
    """An oops is remembered for a guest that hangs after it, and counts for less than a panic."""
    watch = Watch()
    assert not watch.feed(b"[    3.1] BUG: kernel NULL pointer dereference, address: 0000000000000008\n")
    assert watch.grave == watch.worst == "BUG: kernel NULL pointer dereference, address: ..."
    assert watch.feed(b"[    3.2] Kernel panic - not syncing: Fatal exception\n")
    assert watch.worst == "Kernel panic - not syncing: Fatal exception"


def test_steady() -> None:
    """Addresses, process numbers and times are not part of it."""
    one = signature(b"[    3.19] Kernel panic - not syncing: stack of ffffffff81234567 in pid 17 is bad\n")
    other = signature(b"[  312.21] Kernel panic - not syncing: stack of ffff888003ac0000 in pid 4 is bad\n")
    assert one == other != ""


def test_hostile() -> None:
    """Megabytes without an end of line take bounded memory, and what follows is still seen."""
    watch = Watch()
    for _ in range(64):
        watch.feed(b"\x1b[" + b"x" * 65536)
    assert len(watch._line) <= 4096
    watch.feed(b"\nKernel panic - not syncing: \x1b[31m\x07\xff" + b"y" * 9999 + b"\n")
    assert watch.fatal.startswith("Kernel panic - not syncing: \ufffdyyy")
    assert len(watch.fatal) == 160
