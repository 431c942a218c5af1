"""`tt record` with a person at the terminal."""

from __future__ import annotations

import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from cli_rig import TT, Terminal

from tt.events import Kind
from tt.log import Trace

PROMPT = b"root@debian:~# "


def at_terminal(tt: TT, *words: object) -> Terminal:
    return Terminal([*tt.command, *map(str, words)], tt.folder, tt.env)


def spinner(folder: Path) -> Path:
    """Make a Multiboot kernel that turns interrupts off and goes round and round."""
    at = 0x100000
    header = struct.pack(
        "<8I", 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)) % (1 << 32), at, at, 0, 0, at + 32
    )
    kernel = folder / "spin.bin"
    kernel.write_bytes(header + bytes.fromhex("fa ebfe"))
    return kernel


def check(tt: TT, name: str, reason: str) -> Trace:
    """Check that a recording is sealed for `reason` and replays."""
    assert " good: " in tt.out("verify", name)
    trace = Trace.open(tt.folder / name)
    assert trace.sealed
    assert trace.reason == reason
    return trace


def test_typed_keys_reach_the_guest(tt: TT, denali_demo: Path) -> None:
    with at_terminal(tt, "record", denali_demo) as terminal:
        terminal.wait_for(b"Ctrl-A c sends Ctrl-C to the guest")
        terminal.wait_for(b"heartbeat  1")
        assert terminal.look() != terminal.settings
        terminal.type(b"hello\r")
        terminal.wait_for(b"echo: hello\r\n")
        terminal.type(b"\x01h")
        terminal.wait_for(b"send Ctrl-A to the guest")
        terminal.type(b"a\x01cb\x01ac\r")
        terminal.type(b"quit\r")
        terminal.wait()
        assert terminal.look() == terminal.settings
        assert b"recorded demo.tt" in terminal.seen
    with check(tt, "demo.tt", "terminated with status 0") as trace:
        typed = b"".join(event.data for event in trace.events(kinds={Kind.INPUT}))
        assert typed == b"hello\ra\x03b\x01c\rquit\r"


@pytest.mark.parametrize("end", [b"\x03", b"\x01x", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_way_to_end(tt: TT, denali_demo: Path, end: bytes | signal.Signals) -> None:
    reasons: dict[object, str] = {
        signal.SIGTERM: "stopped by SIGTERM",
        signal.SIGHUP: "the terminal was closed",
    }
    with at_terminal(tt, "record", denali_demo, "-o", "x.tt") as terminal:
        terminal.wait_for(b"heartbeat  3")
        if isinstance(end, bytes):
            terminal.type(end)
        else:
            terminal.signal(end)
        assert terminal.wait() < 1
        assert terminal.look() == terminal.settings
    check(tt, "x.tt", reasons.get(end, "stopped by the user")).close()


@pytest.mark.parametrize(
    "how",
    ["key", pytest.param("signal", marks=pytest.mark.slow), pytest.param("headless", marks=pytest.mark.slow)],
)
def test_a_guest_that_spins_with_interrupts_off(tt: TT, how: str) -> None:
    kernel = spinner(tt.folder)
    if how == "headless":
        command = [*tt.command, "record", str(kernel)]
        process = subprocess.Popen(command, cwd=tt.folder, env=tt.env, stdin=subprocess.DEVNULL)
        _until_running(tt.folder / "spin.tt")
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - begin < 1
    else:
        with at_terminal(tt, "record", kernel) as terminal:
            _until_running(tt.folder / "spin.tt")
            if how == "key":
                terminal.type(b"\x03")
            else:
                terminal.signal(signal.SIGINT)
            assert terminal.wait() < 1
            assert terminal.look() == terminal.settings
    with check(tt, "spin.tt", "stopped by the user") as trace:
        assert trace.end_tick > 1_000_000


def _until_running(trace: Path) -> None:
    deadline = time.monotonic() + 20
    while not trace.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)


def test_an_error_is_one_line_and_leaves_the_terminal_alone(tt: TT, denali_demo: Path) -> None:
    with at_terminal(tt, "record", denali_demo, "--mem", "1M") as terminal:
        terminal.process.wait(30)
        with pytest.raises(AssertionError):
            terminal.wait()
        assert terminal.process.returncode == 3
        assert terminal.seen.startswith(b"tt: ")
        assert b"Traceback" not in terminal.seen
        assert terminal.look() == terminal.settings
    assert not (tt.folder / "demo.tt").exists()


@pytest.mark.slow
def test_a_debian_at_the_terminal(tt: TT, debian_image: Path) -> None:
    with at_terminal(tt, "record", debian_image) as terminal:
        terminal.wait_for(PROMPT, 120)
        terminal.type(b"sleep 1000\r")
        terminal.wait_for(b"sleep 1000\r\n")
        time.sleep(1)
        terminal.type(b"\x01c")
        terminal.wait_for(b"^C\r\n")
        terminal.type(b"echo $((6 * 7)) > /root/x; cat /root/x\r")
        terminal.wait_for(b"\r\n42\r\n")
        terminal.type(b"\x03")
        assert terminal.wait() < 1.5
        assert terminal.look() == terminal.settings
    check(tt, "debian.tt", "stopped by the user").close()
