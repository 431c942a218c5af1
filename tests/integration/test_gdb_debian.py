"""gdb in the kernel of the Debian guest, with no vmlinux: its symbols come from the guest's own memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdb_rig import GdbServer, LiveGdb, needs_gdb

pytestmark = [needs_gdb, pytest.mark.slow]

TICKS = 2_000_000_000


@pytest.fixture(scope="module")
def recording(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tt.recording import record
    from tt.vmm.configure import configure

    path = tmp_path_factory.mktemp("gdb") / "debian.tt"
    record(configure(debian_image, epoch=1_700_000_000), path, max_ticks=TICKS)
    return path


@pytest.fixture(scope="module")
def server(recording: Path) -> Iterator[GdbServer]:
    with GdbServer(recording, "--to-tick", "95%", "--symbols-out", "kernel.sym") as running:
        yield running


def test_kernel_symbols(server: GdbServer) -> None:
    output = server.gdb(
        "break vfs_read",
        "reverse-continue",
        "info symbol $pc",
        "x/10i $pc",
        "info registers",
        "backtrace 2",
        "monitor backtrace",
        "print $tick",
        "reverse-finish",
        "info symbol $pc",
        "continue",
        "print $tick",
        "detach",
    )
    assert "vfs_read in section .text" in output
    assert re.search(r"^=> 0xffffffff[0-9a-f]{8} <vfs_read>:", output, re.MULTILINE)
    assert re.search(r"^cr3 ", output, re.MULTILINE)
    assert re.search(r"^#1  .* in \w*(read|vfs)\w* \(\)", output, re.MULTILINE), output
    assert "(orc)" in output  # tt's own unwinder
    first, second = re.findall(r"^\$\d+ = (\d+)", output, re.MULTILINE)
    assert first == second
    assert len(re.findall(r"^Breakpoint 1, .*vfs_read \(\)", output, re.MULTILINE)) == 2


def test_symbol_file_loaded_by_hand(server: GdbServer) -> None:
    output = server.gdb(
        "info symbol $pc",
        "info address schedule",
        "print (long) jiffies",
        before=["set remote exec-file-packet off", "file kernel.sym"],
    )
    assert re.search(
        r'Symbol "schedule" is at 0xffffffff[0-9a-f]{8} in a file compiled without debugging', output
    )


def test_watchpoint_in_the_kernel(server: GdbServer) -> None:
    output = server.gdb(
        "watch *(unsigned long *) &jiffies_64",
        "reverse-continue",
        "monitor when",
        "reverse-continue",
        "monitor when",
        "continue",
        "continue",
        "monitor when",
    )
    values = [(int(a), int(b)) for a, b in re.findall(r"Old value = (\d+)\nNew value = (\d+)", output)]
    assert len(values) == 4, output
    (a, b), (c, d), (e, f), (g, h) = values
    assert a == b + 1 and c == b and c == d + 1
    assert (e, f) == (d, c) and (g, h) == (c, a)


def test_ctrl_c(server: GdbServer) -> None:
    gdb = LiveGdb(server)
    try:
        gdb("break *0x12345")  # nothing is there: searches go all the way
        gdb("monitor seek start")
        gdb("maintenance flush register-cache")
        at = gdb.printed
        gdb.send("continue")
        gdb.wait_for("Continuing.", at)
        threading.Event().wait(0.5)  # in the middle of it
        gdb.interrupt()
        assert "SIGINT" in gdb.wait(at)
        forward = int(gdb("print $tick").split(" = ")[1].split()[0])
        assert 0 < forward < TICKS
        assert "tick 1,300,000,000 of" in gdb("monitor seek 1_300_000_000")
        gdb("maintenance flush register-cache")
        at = gdb.printed
        gdb.send("reverse-continue")
        gdb.wait_for("Continuing.", at)
        threading.Event().wait(0.3)
        gdb.interrupt()
        output = gdb.wait(at)
        assert ("SIGINT" in output and "still at tick 1,300,000,000" in output) or "No more reverse" in output
        gdb("delete")
    finally:
        gdb.close()


def test_ctrl_c_in_the_servers_terminal(recording: Path) -> None:
    """In the middle of a search: the server ends well, and gdb is told by the connection's end."""
    with GdbServer(recording, "--to-tick", "95%") as running:
        gdb = LiveGdb(running)
        try:
            gdb("break *0x12345")
            at = gdb.printed
            gdb.send("reverse-continue")
            gdb.wait_for("Continuing.", at)
            threading.Event().wait(0.3)
            running.stop()
            assert re.search("closed|reset|No more reverse", gdb.wait(at))
        finally:
            gdb.close()
