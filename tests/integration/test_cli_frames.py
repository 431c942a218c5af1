"""`tt frames`, `tt pcap`, the shell's `net` and SQL, on a recording that comes with tt and on made ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import TT, Inside

from tt.events import Event, Kind
from tt.log import Trace, TraceWriter

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "frames"))
import frames_rig as made  # noqa: E402

WEB = [
    (made.tcp(9, flags=made.SYN), False),
    (made.tcp(70, flags=made.SYN | made.ACK, ack=10, incoming=True), True),
    (made.tcp(10, b"GET /a HTTP/1.0\r\n\r\n", ack=71), False),
    (made.tcp(71, b"HTTP/1.0 200 OK\r\n\r\nhello", ack=29, incoming=True), True),
    (made.udp(b"?", 5000, 6000), False),
]


@pytest.fixture
def game(tt: TT) -> str:
    """Return the name of a recording of 203 frames in the command's folder."""
    shutil.copy(ROOT / "traces" / "denali-frames-v5.tt", tt.folder / "game.tt")
    return "game.tt"


@pytest.fixture
def web(tt: TT, game: str) -> str:
    """Return the name of a trace with the frames of `WEB`, which no machine ever ran."""
    with Trace.open(tt.folder / game) as trace:
        meta = trace.meta
    with TraceWriter(tt.folder / "web.tt", meta) as writer:
        writer.add(Event(10, Kind.WAKE, 0, 5_000))
        for number, (data, incoming) in enumerate(WEB):
            kind = Kind.FRAME_IN if incoming else Kind.FRAME_OUT
            writer.add(Event(100 * (number + 1), kind, 0, 0, data), 1_700_000_000_000_000_000 + number)
        writer.seal(1000, "made")
    return "web.tt"


def test_frames_are_listed(inside: Inside, game: str, web: str) -> None:
    lines = inside.out("frames", game).splitlines()
    assert len(lines) == 203
    assert lines[0].split()[0] == "1" and " > " in lines[0] and "type 0x88b5" in lines[0]
    told = inside.out("frames", web).splitlines()
    assert [line.split()[3] for line in told] == [">", "<", ">", "<", ">"]
    assert told[2].endswith("seq 1:20, ack 1, win 65535, length 19: HTTP: GET /a HTTP/1.0")
    assert told[0].split()[:3] == ["1", "100", "0.000005"]  # 100 ticks of 4 ns, and 5 us of idling


def test_filters_choose(inside: Inside, web: str) -> None:
    for options, numbers in (
        (["--proto", "http"], [3, 4]), (["--in"], [2, 4]), (["--port", "6000"], [5]), (["--card", "1"], []),
        (["--host", "10.0.2.2", "--out", "--proto", "tcp"], [1, 3]),
        (["--from", "200", "--to", "+200"], [2, 3, 4]),
        (["--limit", "2"], [1, 2]),
    ):  # fmt: skip
        found = [json.loads(line) for line in inside.out("frames", *options, web, "--json").splitlines()]
        assert [each["frame"] for each in found] == numbers, options
    (first,) = [json.loads(line) for line in inside.out("frames", web, "--limit", "1", "--json").splitlines()]
    assert bytes.fromhex(first["data"]) == WEB[0][0]
    assert (first["host_ns"], first["ns"]) == (1_700_000_000_000_000_000, 5_400)
    assert "0x0030" in inside.out("frames", web, "--hex", "--limit", "1")


def test_wrong_use(inside: Inside, tt: TT, web: str, demo_trace: Path) -> None:
    for args, told in (
        (["frames", web, "--port", "x"], "no port"), (["frames", web, "--proto", "smtp"], "no protocol"),
        (["frames", str(demo_trace)], "no network card"),
        (["pcap", str(demo_trace), "-o", "x.pcapng"], "no network card"),
        (["frames", web, "--limit", "-1"], "give 0 or more"),
    ):  # fmt: skip
        assert told.encode() in inside(*args, code=2).stderr
    assert not (tt.folder / "x.pcapng").exists()
    inside("pcap", web, "-o", "y.pcapng")
    assert b"exists already" in inside("pcap", web, "-o", "y.pcapng", code=2).stderr
    inside("pcap", web, "-o", "y.pcapng", "--force")


def test_frames_in_sql_and_events(inside: Inside, web: str) -> None:
    rows = inside.out("sql", web, "select direction, count(*), sum(size) from frames group by 1 order by 1")
    sizes = [sum(len(data) for data, way in WEB if way is wanted) for wanted in (True, False)]
    assert [line.split() for line in rows.splitlines()[1:]] == [
        ["in", "2", str(sizes[0])],
        ["out", "3", str(sizes[1])],
    ]
    assert "UDP, length 1" in inside.out("events", web, "--kind", "frame-out")


def test_tshark_reads_the_capture(tt: TT, inside: Inside, web: str) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed")
    assert inside.out("pcap", web).splitlines() == ["web.pcapng: 5 frames"]
    fields = [
        "frame.time_epoch",
        "frame.comment",
        "frame.packet_flags_direction",
        "frame.protocols",
        "_ws.malformed",
    ]
    command = [tshark, "-r", str(tt.folder / "web.pcapng"), "-T", "fields"]
    command += [word for field in fields for word in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == [
        f"tick {100 * n}, frame {n}, {'in' if way else 'out'}" for n, (_data, way) in enumerate(WEB, 1)
    ]
    assert [int(row[2], 0) for row in rows] == [2, 1, 2, 1, 2]
    assert rows[2][3] == "eth:ethertype:ip:tcp:http" and not any(row[4] for row in rows)
    assert rows[0][0] == "1000000000.000005400"


def test_the_shell_knows_the_network(inside: Inside, game: str) -> None:
    shown = inside.out(
        "replay", game, "--to-tick", "50%", "--batch", "net; net frames 4; net streams"
    ).splitlines()
    assert shown[0].startswith("ethernet0  denali  52:54:00:74:00:00  link up")
    assert shown[1].startswith("ethernet1  classic  52:54:00:74:00:01  link ")
    assert sum("---  here, at" in line for line in shown) == 1
    assert shown[-1] == "no TCP connection was recorded"
    done = inside("replay", game, "--batch", "net follow 1", code=2)
    assert b"there is no connection 1" in done.stderr


def test_frames_are_caught_both_ways(inside: Inside, game: str) -> None:
    batch = "catch net in card 0; continue; continue; reverse-continue"
    there = json.loads(inside.out("replay", game, "--to-tick", "0", "--json", "--batch", batch))
    first, second, back = (answer["tick"] for answer in there["answers"][1:])
    assert first == back < second
    with Trace.open(ROOT / "traces" / "denali-frames-v5.tt") as trace:
        ticks = sorted({frame.tick for frame in trace.frames() if frame.incoming})
    assert (first, second) == (ticks[0], ticks[1])
