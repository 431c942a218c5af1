"""`--guest` on tt's machine: verdicts of a real Debian, whole and damaged in many ways, always the same."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tt.chronus.probes.guest import GuestProbe
from tt.chronus.runners import warm
from tt.chronus.runners.runner import Setup, setup_of
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.history import History
from tt.chronus.store.view import DiskView, ImageView
from tt.cli.main import main as tt_main

pytestmark = pytest.mark.slow

SETUP = Setup(timeout_s=30.0)
Damage = Callable[..., DiskView]


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    """Give the memory of the kept machine back in the end."""
    yield
    warm.forget()


@pytest.fixture
def whole(debian_image: Path) -> DiskView:
    return ImageView(debian_image)


@pytest.fixture
def damaged(debian_image: Path, tmp_path: Path) -> Damage:
    """Return a function that makes a disk on which files are removed, or have other contents."""

    def damage(*removed: str, **contents: bytes) -> DiskView:
        image = tmp_path / "damaged.img"
        subprocess.run(["cp", "--sparse=always", str(debian_image), str(image)], check=True)
        commands = [f"rm {path}" for path in removed]
        for name, data in contents.items():
            path = Path(name.replace("__", "/"))
            (tmp_path / "contents").write_bytes(data)
            commands = [
                *commands,
                f"rm {path}",
                f"cd /{path.parent}",
                f"write {tmp_path / 'contents'} {path.name}",
                "cd /",
                f"sif {path} mode 0100755",
            ]
        subprocess.run(
            ["debugfs", "-w", "-f", "-", str(image)],
            input="\n".join(commands),
            text=True,
            check=True,
            capture_output=True,
        )
        return ImageView(image)

    return damage


def ask(disk: DiskView, command: str, *, early: bool = True, setup: Setup = SETUP) -> ProbeVerdict:
    return GuestProbe(command, "tt", setup, early).run(disk)


@pytest.mark.parametrize(
    ("command", "outcome", "code", "output"),
    [
        ("exit 0", Outcome.GOOD, 0, ""),
        ("exit 1", Outcome.BAD, 1, ""),
        ("exit 124", Outcome.BAD, 124, ""),
        ("echo unsure; exit 125", Outcome.SKIP, 125, "unsure\n"),
        ("cat /etc/hostname", Outcome.GOOD, 0, "debian\n"),
        ("printf '\\0\\377\\nx'; exit 2", Outcome.BAD, 2, "\0\ufffd\nx"),
        ("#!/usr/bin/awk -f\nBEGIN { print 6 * 7; exit 5 }", Outcome.BAD, 5, "42\n"),
        ("echo > /root/new && mount | grep -c ' on / type ext4 (rw'", Outcome.GOOD, 0, "1\n"),
    ],
)  # fmt: skip
def test_early(whole: DiskView, command: str, outcome: Outcome, code: int, output: str) -> None:
    """The exit code decides, and what the command prints comes back with it."""
    verdict = ask(whole, command)
    assert (verdict.outcome, verdict.exit_code, verdict.output) == (outcome, code, output)
    assert verdict.signature == ""
    assert verdict.reads
    assert "Linux version" in verdict.console or len(verdict.console) == 4000


def test_booted(whole: DiskView) -> None:
    """The system's own init runs, and the command after it has started everything."""
    verdict = ask(whole, "ps; wget -qO- http://127.0.0.1/; exit 3", early=False)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.BAD, 3)
    for service in ("syslogd", "crond", "httpd", "It works"):
        assert service in verdict.output
    assert "1 root     init\n" in verdict.output


def test_words_for_init(whole: DiskView) -> None:
    """Its own init is the one that its command line names, with the words that were for it."""
    setup = replace(SETUP, append="init=/bin/busybox single -- sh -c /sbin/init")
    verdict = ask(whole, "cat /proc/cmdline", early=True, setup=setup)
    assert verdict.output.rstrip().endswith("-- /dev/vdb chronus-init=/bin/busybox single sh -c /sbin/init")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("exit 126", "chmod"),
        ("no-such-command", "no such command.*|not found"),
        ("kill -9 $$", "exits with 137"),
        ("kill -SEGV $$", "exits with 139"),
        ("exit 130", "interrupted"),
        ("#!/no/such/interpreter\n", "not found"),
    ],
)
def test_probe_errors(whole: DiskView, command: str, what: str) -> None:
    """What says nothing of the disk is no verdict."""
    with pytest.raises(ProbeError, match=what):
        ask(whole, command)


def test_script_file(whole: DiskView, tmp_path: Path) -> None:
    """The name of a file stands for what is in it, also for its key."""
    script = tmp_path / "check.sh"
    script.write_text("grep -q root /etc/passwd || exit 1\necho found; exit 7\n")
    probe = GuestProbe(str(script), "tt", SETUP, True)
    verdict = probe.run(whole)
    assert (verdict.exit_code, verdict.output) == (7, "found\n")
    key = probe.key()
    script.write_text("exit 0\n")
    assert probe.key() != key != GuestProbe(str(script), "tt", SETUP, False).key()


def test_hang(whole: DiskView) -> None:
    """No answer in time is a hang; an idle guest's time passes quickly."""
    assert ask(whole, "sleep 100000").outcome is Outcome.HANG
    busy = ask(whole, "while :; do :; done", setup=replace(SETUP, timeout_s=7.0))
    assert (busy.outcome, busy.exit_code) == (Outcome.HANG, None)


def test_flood(whole: DiskView) -> None:
    """A guest that prints without end is a hang like another, and its console is kept in bounds."""
    verdict = ask(
        whole, "yes $(head -c 900 /dev/zero | tr '\\0' x) > /dev/console", setup=replace(SETUP, timeout_s=5.8)
    )
    assert verdict.outcome is Outcome.HANG
    assert "xxx" in verdict.console[-10:]
    assert len(verdict.console) == 4000


def test_dies(whole: DiskView) -> None:
    """A guest that ends before it answers has crashed, with what it said."""
    for command, signature in (
        ("echo c > /proc/sysrq-trigger", "Kernel panic - not syncing: sysrq triggered crash"),
        ("reboot -f; sleep 9", "the guest ended without an answer: reset"),
        ("poweroff -f; sleep 9", "the guest ended without an answer: halted with interrupts off"),
    ):
        verdict = ask(whole, command)
        assert (verdict.outcome, verdict.signature) == (Outcome.CRASH, signature)


BOOT = b"#!/bin/sh\nmount -t proc proc /proc\nmount -o remount,rw /\n"
NO_SHELL = "switch_root: can't execute '/bin/sh': "
RCS = "etc__init.d__rcS"


@pytest.mark.parametrize(
    ("removed", "contents", "early", "outcome", "signature"),
    [
        ("usr/bin/sh", {}, True, Outcome.CRASH, f"{NO_SHELL}No such file"),
        ("usr/bin/busybox", {}, False, Outcome.CRASH, f"{NO_SHELL}No such file"),
        ("", {"usr__bin__sh": b"no program"}, True, Outcome.CRASH, f"{NO_SHELL}Exec format error"),
        ("usr/bin/init", {}, True, Outcome.GOOD, ""),
        ("usr/bin/init", {}, False, Outcome.CRASH, "no init found: tried /sbin/init /etc/init /bin/init"),
        ("boot/vmlinuz*", {}, True, Outcome.CRASH, "cannot boot: no kernel found"),
        ("boot/initrd*", {}, True, Outcome.CRASH, "VFS: Cannot open root device"),
        ("etc/inittab", {}, False, Outcome.GOOD, ""),
        ("etc/init.d/rcS", {}, False, Outcome.GOOD, ""),
        ("", {RCS: BOOT + b"sleep 9999\n"}, False, Outcome.HANG, ""),
        ("", {RCS: BOOT + b"sleep 9999\n"}, True, Outcome.GOOD, ""),
        ("", {RCS: BOOT + b"echo c > /proc/sysrq-trigger\n"}, False, Outcome.CRASH, "Kernel panic"),
        ("", {RCS: BOOT + b"reboot -f\n"}, False, Outcome.CRASH, "the guest ended"),
        ("", {RCS: BOOT + b"sleep 5; touch /run/late\n"}, False, Outcome.GOOD, ""),
    ],
)  # fmt: skip
def test_damaged(
    damaged: Damage,
    debian_image: Path,
    removed: str,
    contents: dict[str, bytes],
    early: bool,
    outcome: Outcome,
    signature: str,
) -> None:
    """Each way in which a system can be broken is told from the others, by the same words each time."""
    names = [_with_version(debian_image, removed)] if removed else []
    late = any(b"late" in data for data in contents.values())
    verdict = ask(damaged(*names, **contents), "test -e /run/late" if late else "exit 0", early=early)
    assert verdict.outcome is outcome
    assert verdict.signature.startswith(signature)
    assert bool(verdict.signature) == bool(signature)
    assert verdict.reads


def _with_version(image: Path, path: str) -> str:
    """Return the name of a kernel's file, whose version is nobody's business here."""
    if not path.endswith("*"):
        return path
    folder, prefix = os.path.split(path[:-1])
    listed = subprocess.run(["debugfs", "-R", f"ls -p /{folder}", str(image)], capture_output=True, text=True)
    found = re.search(rf"/({prefix}[^/]*)/", listed.stdout)
    assert found is not None
    return f"{folder}/{found[1]}"


@pytest.mark.parametrize("where", [0.0, 0.3, 0.9])
def test_corrupt_kernel(debian_image: Path, damaged: Damage, where: float) -> None:
    """A kernel with a broken sector is a crash, never an error of ours."""
    path = _with_version(debian_image, "boot/vmlinuz*")
    dumped = subprocess.run(["debugfs", "-R", f"cat /{path}", str(debian_image)], capture_output=True)
    kernel = bytearray(dumped.stdout)
    at = int(len(kernel) * where)
    kernel[at : at + 512] = os.urandom(512)
    disk = damaged(**{path.replace("/", "__"): bytes(kernel)})
    verdict = ask(disk, "exit 0", setup=replace(SETUP, timeout_s=10.0))
    assert verdict.outcome in (Outcome.CRASH, Outcome.HANG)


def test_too_little_memory(whole: DiskView) -> None:
    """A guest that does not fit says so."""
    verdict = ask(whole, "exit 0", setup=replace(SETUP, mem_bytes=24 << 20))
    assert verdict.outcome is Outcome.CRASH
    assert "--mem" in verdict.signature


class Masked(DiskView):
    """A disk of which nothing is left but some blocks."""

    def __init__(self, disk: DiskView, kept: frozenset[int]) -> None:
        self._disk, self._kept = disk, kept
        self.sectors, self.size, self.where = disk.sectors, disk.size, disk.where

    def blocks(self, first: int, count: int) -> list[bytes]:
        found = self._disk.blocks(first, count)
        return [
            data if block in self._kept else b"\xa5" * len(data) for block, data in enumerate(found, first)
        ]


@pytest.mark.parametrize("early", [True, False])
def test_reads_are_all_that_counts(whole: DiskView, early: bool) -> None:
    """A disk that agrees in the blocks that were read gives the same verdict, whatever else is on it."""
    command = "cat /etc/passwd; od -x /dev/urandom | head -3; date; cat /proc/uptime; exit 3"
    first = ask(whole, command, early=early)
    assert first.reads is not None
    assert len(first.reads) < whole.size // 4096
    again = ask(Masked(whole, first.reads), command, early=early)
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)


def test_kept_machines_change_nothing(whole: DiskView) -> None:
    """A guest that goes on from where another one left its machine is like one in a new machine."""
    verdicts = []
    for fresh in (True, False, False, True):
        if fresh:
            warm.forget()
        verdicts.append(ask(whole, "dmesg; cat /proc/interrupts; od -x /dev/urandom | head; ls -la /root"))
    assert len({replace(verdict, seconds=0.0) for verdict in verdicts}) == 1


def test_nothing_stays(whole: DiskView) -> None:
    """What one guest writes, none of the next ones sees."""
    write = "dd if=/dev/urandom of=/root/mine bs=1M count=2; echo broken > /etc/passwd; sync; exit 0"
    assert ask(whole, write).outcome is Outcome.GOOD
    look = ask(whole, "test ! -e /root/mine && grep -q ^root: /etc/passwd")
    assert look.outcome is Outcome.GOOD


def test_recorded(debian_image: Path, tmp_path: Path) -> None:
    """The instants of a recording are told apart, also where the kernel was given by hand."""
    folder = debian_image.parent
    disk = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", str(debian_image), str(disk)], check=True)
    for name in ("vmlinuz*", "initrd*", "extlinux/extlinux.conf"):
        path = _with_version(debian_image, f"boot/{name}")
        subprocess.run(["debugfs", "-w", "-R", f"rm /{path}", str(disk)], check=True, capture_output=True)
    script = tmp_path / "script"
    script.write_text(
        "echo first > /etc/flag; sync; sleep 3\necho second > /etc/flag; sync; sleep 3\npoweroff -f\n"
    )
    trace = tmp_path / "hand.tt"
    command = [
        "record",
        str(disk),
        "--kernel",
        str(folder / "vmlinuz"),
        "--initrd",
        str(folder / "initrd.img"),
    ]
    assert tt_main([*command, "-o", str(trace), "--input", str(script), "--no-pace", "--mem", "128M"]) == 0
    with History.open(trace) as history:
        setup = setup_of(history, timeout_s=60)
        assert setup.mem_bytes == 128 << 20
        found = [ask(history.at(n), "cat /etc/flag", setup=setup).output for n in (0, history.count)]
        assert found[0].endswith("No such file or directory\n")
        assert found[1] == "second\n"
        # Somebody else's kernel, by the same way.
        given = replace(setup, kernel=folder / "vmlinuz", initrd=folder / "initrd.img")
        assert ask(history.at(history.count), "cat /etc/flag", setup=given).output == "second\n"


def test_old_initrd(damaged: Damage, debian_image: Path) -> None:
    """An initrd that keeps init's words from it leaves a shell with a prompt, which is told what to do."""
    path = _with_version(debian_image, "boot/initrd*")
    dumped = subprocess.run(["debugfs", "-R", f"cat /{path}", str(debian_image)], capture_output=True).stdout
    words = b'exec switch_root /root "$init" "$@"'
    assert dumped.count(words) == 1
    initrd = dumped.replace(words, b'exec switch_root /root "$init"     ')
    disk = damaged(**{path.replace("/", "__"): initrd})
    for early in (True, False):
        verdict = ask(disk, "echo heard; exit 7", early=early)
        assert (verdict.outcome, verdict.exit_code, verdict.output) == (Outcome.BAD, 7, "heard\n")
