"""gdb 13 itself, forwards and backwards through recordings of Denali guests."""

from __future__ import annotations

import random
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import TT
from gdb_rig import ROOT, GdbServer, LiveGdb, needs_gdb

from tt.gdb import Server, parse_listen
from tt.gdb.packets import frame
from tt.log import Trace
from tt.travel import Timeline
from tt.travel.stops import Breakpoint

pytestmark = needs_gdb

SUMS = """#include "denali.h"
#pragma GCC optimize ("O0")

static u64 total;

static u64 square(u64 x)
{
    u64 result = x * x;
    return result;
}

static u64 add(u64 x)
{
    u64 part = square(x);
    total += part;
    return total;
}

int main(void)
{
    for (u64 i = 1; i <= 5; i++)
        add(i);
    print("total %lu\\n", total);
    return 0;
}
"""


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of a guest with functions that gdb can step through, its source beside it."""
    from tt.recording import record
    from tt.vmm.configure import configure
    from tt.vmm.denali.guest_build import KIT, build_guest

    folder = tmp_path_factory.mktemp("sums")
    for name in KIT:
        shutil.copy(ROOT / "guests" / "denali" / name, folder / name)
    (folder / "sums.c").write_text(SUMS)
    build_guest([folder / "sums.c"], folder / "sums.elf", kit=folder)
    record(configure(folder / "sums.elf", epoch=1_700_000_000), folder / "sums.tt")
    return folder / "sums.tt"


@pytest.fixture(scope="module")
def server(sums: Path) -> Iterator[GdbServer]:
    """Serve it for all tests that begin anew at the start: each disconnects and the next connects again."""
    with GdbServer(sums) as running:
        yield running


@pytest.fixture(scope="module")
def demo(demo_trace: Path) -> Iterator[GdbServer]:
    with GdbServer(demo_trace) as running:
        yield running


def steps(output: str) -> list[int]:
    """Return the source lines that gdb stopped at."""
    return [int(line) for line in re.findall(r"^(?:0x[0-9a-f]+\t)?(\d+)\t", output, re.MULTILINE)]


RESTART = "monitor seek start", "maintenance flush register-cache"


def line_of(text: str) -> int:
    return SUMS.splitlines().index(text) + 1


RESULT = line_of("    u64 result = x * x;")
RETURN = line_of("    return result;")
PART = line_of("    u64 part = square(x);")
TOTAL = line_of("    total += part;")


# ---- connecting


def test_connecting_needs_no_file(server: GdbServer) -> None:
    output = server.gdb(*RESTART, "info symbol $pc", "break square", "continue", "backtrace")
    assert "warning: while parsing" not in output and "Remote 'g' packet" not in output
    assert "_start in section .text" in output
    assert re.search(r"#0  square \(x=1\).*\n#1  .* in add \(x=1\).*\n#2  .* in main \(\)", output)


def test_registers_and_instructions(server: GdbServer) -> None:
    output = server.gdb(*RESTART, "info registers", "x/10i $pc", "print $tick", "info all-registers st0 xmm0")
    for name in ("rax", "r15", "rip", "eflags", "fs_base", "cr3", "efer"):
        assert re.search(rf"^{name} ", output, re.MULTILINE), output
    assert len(re.findall(r"^(?:=>|  ) 0x[0-9a-f]+ <", output, re.MULTILINE)) == 10
    assert "$1 = 0" in output
    assert re.search(r"^xmm0 .*uint128 = 0", output, re.MULTILINE)


def test_detaching_and_connecting_again(server: GdbServer) -> None:
    first = server.gdb(*RESTART, "stepi", "stepi", "print $tick", "detach")
    assert "detached" in first and "$1 = 2" in first
    second = server.gdb("print $tick", "stepi", "print $tick", "disconnect")
    assert "$1 = 2" in second and "$2 = 3" in second
    third = server.gdb("print $tick", "kill")
    assert "$1 = 3" in third
    assert "$1 = 3" in server.gdb("print $tick")


def test_a_second_gdb_is_turned_away(server: GdbServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as first:
        first.sendall(b"$qC#b4")
        assert first.recv(1) == b"+"
        with socket.create_connection(("127.0.0.1", server.port)) as second:
            second.settimeout(30)
            assert second.recv(10) == b""
    server.wait_for("turned away")
    assert "0x" in server.gdb("print $pc")


def test_a_client_that_goes_in_the_middle_does_no_harm(server: GdbServer) -> None:
    for junk in (b"", b"$", b"$vCont;c", b"\x03\x03", b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 100):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(junk)
    server.wait_for("it does not speak gdb's protocol")
    assert "0x" in server.gdb("print $pc")


# ---- by source lines


def test_reverse_step_goes_into_functions(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART, f"break sums.c:{TOTAL}", "continue", "reverse-step", "reverse-step", "reverse-step"
    )
    assert steps(output)[-4:] == [TOTAL, RETURN + 1, RETURN, RESULT]
    assert "square (x=1)" in output


def test_reverse_next_goes_over_functions(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART,
        f"break sums.c:{TOTAL}",
        "ignore 1 2",
        "continue",
        "print part",
        "reverse-next",
        "print x",
        "next",
        "print part",
    )
    assert steps(output)[-3:] == [TOTAL, PART, TOTAL]
    assert "$1 = 9" in output and "$2 = 3" in output and "$3 = 9" in output


def test_reverse_finish_goes_to_the_call(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART,
        f"break sums.c:{RETURN}",
        "continue",
        "reverse-finish",
        "backtrace 1",
        "reverse-stepi",
        "step",
    )
    assert re.search(rf"^#0  .*add \(x=1\) at \./sums\.c:{PART}$", output, re.MULTILINE)
    assert steps(output)[-1] == RESULT


def test_finish_and_values(server: GdbServer) -> None:
    output = server.gdb(*RESTART, "break square if x == 4", "continue", "finish")
    assert "Value returned is $1 = 16" in output


def test_reverse_continue_to_a_watchpoint_one_write_after_another(server: GdbServer) -> None:
    output = server.gdb(
        "monitor seek end", "maintenance flush register-cache", "watch total", *["reverse-continue"] * 6
    )
    seen = [
        (int(old), int(new))
        for old, new in re.findall(
            r"Hardware watchpoint 1: total\n\nOld value = (\d+)\nNew value = (\d+)", output
        )
    ]
    assert seen == [(55, 30), (30, 14), (14, 5), (5, 1), (1, 0)]
    assert "No more reverse-execution history" in output
    assert "replay" not in output


def test_watchpoint_forward_and_back_at_the_same_write(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART,
        "watch total if total == 14",
        "continue",
        "print $tick",
        "reverse-continue",
        "delete",
        "watch total",
        "continue",
        "reverse-continue",
        "print $tick",
        "stepi",
        "print $tick",
    )
    forward, back, after = (int(tick) for tick in re.findall(r"^\$\d+ = (\d+)", output, re.MULTILINE))
    assert (back, after) == (forward - 1, forward) or back < forward


def test_read_and_access_watchpoints(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART, "rwatch total", "continue", "reverse-continue", "delete", "awatch total", "continue"
    )
    assert "Hardware read watchpoint 2: total" in output or "Hardware read watchpoint 1: total" in output
    assert "Value = 0" in output
    assert "Hardware access (read/write) watchpoint" in output


def test_hardware_breakpoint(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART, "hbreak add", "continue", "print x", "continue", "reverse-continue", "print x"
    )
    assert output.count("Breakpoint 1, add (x=1)") == 2
    assert "Breakpoint 1, add (x=2)" in output


def test_the_two_ends(server: GdbServer) -> None:
    output = server.gdb(
        "reverse-continue", "print $tick", "reverse-stepi", "continue", "print $tick", "stepi", "next"
    )
    assert output.count("No more reverse-execution history") >= 4
    with Trace.open(server.folder / "sums.tt") as trace:
        assert "$1 = 0" in output and f"$2 = {trace.end_tick}" in output


# ---- tt's own


def test_monitor(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART, "monitor help", "monitor when", "monitor last-write &total", "monitor frobnicate"
    )
    assert "monitor seek POS" in output
    assert "tick 0 of" in output
    assert "nothing wrote to 8 bytes at" in output and "<total>" in output
    assert "'frobnicate' is no command of tt" in output


def test_history_is_not_changed(server: GdbServer) -> None:
    output = server.gdb(
        *RESTART,
        "monitor digest",
        "set variable total = 5",
        "print $rax = 1",
        "print square(3)",
        "stepi",
        "reverse-stepi",
        "monitor digest",
    )
    assert "history is not changed" in output
    digests = re.findall(r"^ state ([0-9a-f]{32})", output, re.MULTILINE)
    assert len(digests) == 2 and digests[0] == digests[1]


def test_run_goes_anywhere(server: GdbServer) -> None:
    output = server.gdb(
        "disconnect",
        f"target extended-remote :{server.port}",
        "starti 50%",
        "print $tick",
        "stepi",
        "print $tick",
        "tbreak add",
        "run start",
        "kill",
    )
    with Trace.open(server.folder / "sums.tt") as trace:
        middle = trace.end_tick // 2
        assert f"$1 = {middle}\n" in output and f"$2 = {middle + 1}\n" in output, output
    assert "Temporary breakpoint 1, add (x=1)" in output


def test_script_and_symbols(sums: Path, tmp_path: Path) -> None:
    symbols, script = tmp_path / "guest.sym", tmp_path / "tt.gdb"
    with GdbServer(sums, "--symbols-out", str(symbols), "--script-out", str(script)) as running:
        assert f"gdb -x {script}" in running.said
        assert symbols.read_bytes()[:4] == b"\x7fELF"
        source = f"source {script}"
        output = running.gdb(
            "when",
            "seek 10",
            "print $tick",
            "bookmark ten",
            "seek end",
            "lastwrite total",
            "seek @ten",
            before=["disconnect", source],
        )
        assert "tick 0 of" in output and "$1 = 10" in output
        assert re.search(r"tick [\d,]+: the instruction at 0x[0-9a-f]+ <add\+", output), output


def test_a_unix_socket(sums: Path, tmp_path: Path) -> None:
    with GdbServer(sums, "--listen", f"unix:{tmp_path / 'socket'}", "--once") as running:
        assert "$1 = 2" in running.gdb("stepi 2", "print $tick")
        running.wait_for("has left")
        assert running.process.wait(30) == 0


def test_serving_from_python(sums: Path) -> None:
    said: list[str] = []
    with Trace.open(sums) as trace:
        timeline = Timeline(trace)
        timeline.stops.add(Breakpoint(0x100000))
        server = Server(timeline, parse_listen("127.0.0.1:0"))
        serving = threading.Thread(target=server.serve, args=(said.append,), kwargs={"once": True})
        serving.start()
        with socket.create_connection(("127.0.0.1", server.address.port)) as client:
            client.sendall(frame(b"Z0,1000,1") + frame(b"vCont;s:1") + frame(b"D"))
            answer = b""
            while b"$OK" not in answer[20:]:
                answer += client.recv(1000)
        serving.join(30)
        server.close()
        assert timeline.tick == 1
        assert [point.describe() for point in timeline.stops] == ["0x100000"]
        assert timeline.progress is None
    assert "connected" in said[0] and "has left, at tick 1" in said[1]


def test_wrong_use(tt: TT, sums: Path) -> None:
    assert b"--allow-remote" in tt("gdb", sums, "--listen", "0.0.0.0:0", code=2).stderr
    assert b"--listen" in tt("gdb", sums, "--listen", "x", code=2).stderr
    tt("gdb", sums, "--to-tick", "nowhere", code=2)
    tt("gdb", "missing.tt", code=3)


# ---- the demo guest


def test_demo_watchpoint_backwards(demo: GdbServer) -> None:
    output = demo.gdb(
        "monitor seek end",
        "maintenance flush register-cache",
        "watch beats",
        *["reverse-continue"] * 3,
        "backtrace 4",
    )
    seen = re.findall(r"Old value = (\d+)\nNew value = (\d+)", output)
    assert seen == [("20", "19"), ("19", "18"), ("18", "17")]
    assert re.search(r"#0  .* beat \(\)(?s:.*) kit_events", output), output


def test_demo_reverse_steps(demo: GdbServer) -> None:
    output = demo.gdb(
        "monitor seek 50%",
        "maintenance flush register-cache",
        "break crc32",
        "reverse-continue",
        "reverse-finish",
        "delete",
        "print $tick",
        "reverse-next",
        "reverse-step",
        "next",
        "print $tick",
    )
    assert "Breakpoint 1, crc32" in output
    ticks = re.findall(r"^\$\d+ = (\d+)", output, re.MULTILINE)
    assert len(ticks) == 2 and 0 < int(ticks[1]) <= 11_047_294


def test_steps_go_past_interrupts(demo: GdbServer, demo_trace: Path) -> None:
    """The demo's quanta end every 250,000 ticks, in the middle of whatever it does."""
    from tt.events import Kind

    with Trace.open(demo_trace) as trace:
        tick = next(event.tick for event in trace.events(kinds={Kind.BATCH}) if event.tick % 250_000 == 0)
    output = demo.gdb(
        f"monitor seek {tick}",
        "maintenance flush register-cache",
        "info symbol $pc",
        "stepi",
        "info symbol $pc",
        "reverse-stepi",
        "reverse-stepi",
        "info symbol $pc",
        "print $tick",
        "monitor handlers show",
        f"monitor seek {tick}",
        "maintenance flush register-cache",
        "stepi",
        "info symbol $pc",
    )
    symbols = re.findall(r"^(\w+)(?: \+ \d+)? in section", output, re.MULTILINE)
    assert symbols[0] == symbols[1] == symbols[2], output
    assert symbols[3] == "event_upcall"
    assert f"= {tick - 1}" in output


def test_ctrl_c_backwards_returns_and_forwards_stays(demo_trace: Path) -> None:
    with GdbServer(demo_trace) as running:
        gdb = LiveGdb(running)
        try:
            # A condition in gdb that never holds: each hit goes to gdb and back, which takes for ever.
            gdb("break crc32 if $tick == 1")
            for command, begin in (("continue", "start"), ("reverse-continue", "end")):
                gdb(f"monitor seek {begin}")
                gdb("maintenance flush register-cache")
                at = gdb.printed
                gdb.send(command)
                gdb.wait_for("Continuing.", at)
                gdb.interrupt()
                output = gdb.wait(at)
                assert "SIGINT" in output, output
            assert "tick " in gdb("monitor when")
        finally:
            gdb.close()


def test_two_hundred_random_commands(demo: GdbServer, demo_trace: Path) -> None:
    """Whatever gdb does on the way: a tick's digest is that of a timeline that went there straight."""
    chance = random.Random(13)
    moves = [
        *(
            "stepi",
            "reverse-stepi",
            "next",
            "reverse-next",
            "step",
            "reverse-step",
            "stepi 7",
            "reverse-stepi 5",
        ),
        *("finish", "reverse-finish", "continue", "reverse-continue"),
    ]
    looks = ["info registers", "backtrace 3", "x/8i $pc", "x/16x $rsp", "print beats", "set var beats = 3"]
    stops = [
        *("break crc32", "tbreak beat", "watch beats", "delete", "hbreak disk_round", "awatch misses"),
        "break print",
    ]
    commands = ["monitor seek 9_100_000", "maintenance flush register-cache"]
    for _ in range(200):
        commands.append(chance.choice([*moves, *moves, *looks, *stops]))
        if chance.random() < 0.1:
            commands += ["monitor when", "monitor digest"]
    commands += ["monitor when", "monitor digest"]
    output = demo.gdb(*commands, timeout_s=300)
    seen = re.findall(r"^tick ([\d,]+) of .*\n(?:.*\n)?^ state ([0-9a-f]{32})", output, re.MULTILINE)
    assert len(seen) > 10
    with Trace.open(demo_trace) as trace:
        straight = Timeline(trace)
        for text, digest in seen:
            straight.seek(int(text.replace(",", "")))
            assert straight.digest().hex() == digest, text
