"""`tt record --net pcap:FILE`: frames played from a file, and written to one."""

from __future__ import annotations

import struct
from pathlib import Path

from cli_rig import Inside
from denali_net_rig import ECHO, EPOCH, build, build_pingpong

from tt.log import Trace
from tt.net.capture import read_capture

FRAMES = [bytes([number]) * (14 + 50 * number) for number in range(1, 20)] + [
    bytes(14)
]  # the last one ends it


def test_frames_are_played_and_written(tmp_path: Path, inside: Inside) -> None:
    guest = build(tmp_path, ECHO)
    with (tmp_path / "in.pcap").open("wb") as f:
        f.write(struct.pack(">IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(FRAMES):
            f.write(struct.pack(">IIII", 77, number * 1_000_003, len(frame), len(frame)) + frame)
    words = ("record", guest, "--seed", 1, "--epoch", EPOCH)
    events = []
    for name in ("one", "two"):
        inside(*words, "-o", f"{name}.tt", "--net", "pcap:in.pcap,at=5ms", "--net", f"pcap:{name}.pcapng")
        with Trace.open(tmp_path / f"{name}.tt") as trace:
            frames = list(trace.frames())
            came = [(trace.ns_at_tick(f.tick), f.data) for f in frames if f.incoming]
            assert trace.summary["network"][0] == {"received": 20, "sent": 20, "dropped": 0, "lost": 20}
            events.append(list(trace.events()))
        assert [data for _, data in came] == FRAMES
        for number, (at, _) in enumerate(came):
            assert 0 <= at - (5_000_000 + number * 1_000_003) < 4
    assert events[0] == events[1]
    assert read_capture(tmp_path / "one.pcapng") == []  # nothing went to the second card
    assert "good: " in inside.out("verify", "one.tt")

    # What the guest sends, in guest time.
    inside(
        "record",
        build_pingpong(tmp_path),
        "-o",
        "three.tt",
        "--epoch",
        EPOCH,
        "--net",
        "pcap:out.pcapng",
        "--max-ticks",
        200_000,
    )
    with Trace.open(tmp_path / "three.tt") as trace:
        sent = [(EPOCH * 10**9 + trace.ns_at_tick(f.tick), f.data) for f in trace.frames()]
    assert read_capture(tmp_path / "out.pcapng") == sent and len(sent) > 1

    done = inside("record", guest, "-o", "x.tt", "--net", f"pcap:{guest}", code=3)
    assert done.stderr.decode() == f"tt: {guest} cannot be played: it is neither pcap nor pcapng\n"


def test_a_cable_that_is_not_plugged_in(tmp_path: Path, inside: Inside) -> None:
    guest = build(tmp_path, ECHO)
    inside("record", guest, "-o", "x.tt", "--net", "none", "--max-ticks", 100_000)
    with Trace.open(tmp_path / "x.tt") as trace:
        assert "card 0: link down" in [text for _, _, text in trace.console_lines()]
    assert "good: " in inside.out("verify", "x.tt")
