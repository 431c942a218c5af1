"""Capture files: read whatever wrote them, written as tshark reads them, refused where they are damaged."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tt.errors import BadInput, TTError
from tt.net.capture import Player, Writer, read_capture
from tt.net.network import Cable, Network
from tt.net.spec import connect, parse_net

FRAMES = [(1_700_000_000_123_456_789, bytes(range(60))), (1_700_000_001_000_000_001, bytes(14))]


def pcap(frames: list[tuple[int, bytes]], order: str = "<", ns: bool = True, link: int = 1) -> bytes:
    unit = 1 if ns else 1000
    out = struct.pack(f"{order}IHHiIII", 0xA1B23C4D if ns else 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    for at, data in frames:
        seconds, rest = divmod(at, 1_000_000_000)
        out += struct.pack(f"{order}IIII", seconds, rest // unit, len(data), len(data)) + data
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, 12 + len(body)) + body + struct.pack(f"{order}I", 12 + len(body))


def pcapng(frames: list[tuple[int, bytes]], order: str = "<", resolution: int | None = 9) -> bytes:
    out = block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = b"" if resolution is None else struct.pack(f"{order}HHB3xHH", 9, 1, resolution, 0, 0)
    out += block(order, 1, struct.pack(f"{order}HHI", 1, 0, 0) + options)
    out += block(order, 0x0BAD, b"another tool's")
    for at, data in frames:
        if resolution is None:
            units = at // 1000
        elif resolution & 128:
            units = (at << (resolution & 127)) // 1_000_000_000
        else:
            units = at * 10**resolution // 1_000_000_000
        head = struct.pack(f"{order}IIIII", 0, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
        out += block(order, 6, head + data)
    return out


def read(folder: Path, data: bytes) -> list[tuple[int, bytes]]:
    (folder / "x.pcap").write_bytes(data)
    return read_capture(folder / "x.pcap")


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_of_file_is_read(tmp_path: Path, order: str) -> None:
    rounded = [(at // 1000 * 1000, data) for at, data in FRAMES]
    assert read(tmp_path, pcap(FRAMES, order)) == FRAMES
    assert read(tmp_path, pcap(FRAMES, order, ns=False)) == rounded
    assert read(tmp_path, pcapng(FRAMES, order)) == FRAMES
    assert read(tmp_path, pcapng(FRAMES, order, None)) == rounded  # microseconds, unless it says so
    binary = read(tmp_path, pcapng(FRAMES, order, 0x80 | 30))
    assert all(0 <= at - got < 2 for (at, _), (got, _) in zip(FRAMES, binary, strict=True))
    assert read(tmp_path, pcapng([], order) + pcapng(FRAMES, "<")) == FRAMES  # two sections
    assert read(tmp_path, pcap([], order)) == []


def test_packets_without_a_time_come_with_the_one_before(tmp_path: Path) -> None:
    simple = block("<", 3, struct.pack("<I", 20) + bytes(20))
    assert read(tmp_path, pcapng(FRAMES) + simple)[2] == (FRAMES[1][0], bytes(20))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is neither pcap nor pcapng"),
        (b"GIF89a", "it is neither pcap nor pcapng"),
        (pcap(FRAMES)[:20], "it ends in the middle of a block"),
        (pcap(FRAMES)[:30], "it ends in the middle of a block"),
        (pcap(FRAMES)[:-1], "it ends in the middle of a frame"),
        (pcap(FRAMES, link=113), "its frames are of the kind 113 (LINKTYPE)"),
        (pcap([(0, bytes(13))]), "frame 1 has 13 bytes, which no Ethernet frame has"),
        (pcap([(0, bytes(70_000))]), "frame 1 has 70,000 bytes"),
        (pcap([])[:24] + struct.pack("<IIII", 0, 0, 20, 60) + bytes(20), "a frame of 60 bytes was cut to 20"),
        (pcapng(FRAMES)[:-1], "it ends in the middle of a block"),
        (pcapng([])[:10], "it ends in the middle of a block"),
        (pcapng([]) + struct.pack("<III", 6, 0, 0), "it ends in the middle of a block"),
        (pcapng([])[:28] + block("<", 6, bytes(32)), "a frame of it is of interface 0, which was not"),
        (pcapng([])[:8] + bytes(4) + pcapng([])[12:], "a section of it has no byte order"),
    ],
)
def test_damage_is_told_in_a_line(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(BadInput) as error:
        read(tmp_path, data)
    assert str(error.value).startswith(f"{tmp_path}/x.pcap cannot be played: {why}")


def test_no_prefix_and_no_wrong_byte_makes_it_stumble(tmp_path: Path) -> None:
    for whole in (pcap(FRAMES), pcapng(FRAMES, ">")):
        for at in range(len(whole)):
            for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
                try:
                    found = read(tmp_path, data)
                except BadInput:
                    continue
                assert len(found) <= 2


def test_frames_are_played_relative_to_the_first_once_somebody_listens() -> None:
    network = Network([Cable(Player("pcap:x", FRAMES))], lambda card: None)
    assert not network.poll(5_000) and network.due_ns(5_000) is None
    network.room = lambda card: 8
    assert network.poll(7_000) and [e.data for e in network.take(1)] == [FRAMES[0][1]]
    due = 7_000 + FRAMES[1][0] - FRAMES[0][0]
    assert network.due_ns(7_000) == due
    assert not network.poll(due - 1)
    assert network.poll(due) and [e.data for e in network.take(2)] == [FRAMES[1][1]]
    assert not network.poll(due + 1) and network.due_ns(due) is None
    network.send(0, bytes(14), due)
    assert network.counters() == [{"received": 2, "sent": 1, "dropped": 0, "lost": 1}]


def test_a_capture_begins_at_a_time_that_was_said(tmp_path: Path) -> None:
    (tmp_path / "x.pcap").write_bytes(pcap(FRAMES))
    network = connect([parse_net(f"pcap:{tmp_path}/x.pcap,at=2ms")])
    assert network.due_ns(0) == 2_000_000
    assert not network.poll(1_999_999) and not network.poll(2_000_000)
    assert network.counters()[0]["dropped"] == 1  # nobody listened


def test_what_the_guest_sends_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    network = connect([parse_net(f"pcap:{path}")], epoch=1_700_000_000)
    for number, (_at, data) in enumerate(FRAMES):
        network.send(0, data, number * 1_500_000_001)
    network.close()
    assert read_capture(path) == [
        (1_700_000_000_000_000_000, FRAMES[0][1]),
        (1_700_000_001_500_000_001, FRAMES[1][1]),
    ]
    done = subprocess.run(["/bin/sh", "-c", "command -v tshark"], capture_output=True)
    if done.returncode == 0:
        told = subprocess.run(
            ["tshark", "-r", path, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == ["1700000000.000000000", "60", "1700000001.500000001", "14"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TTError, match=r"cannot write .*nowhere/x: No such file"):
        connect([parse_net(f"pcap:{tmp_path}/nowhere/x")])
    with pytest.raises(BadInput, match="Is a directory"):
        connect([parse_net(f"pcap:{tmp_path}")])
    said: list[str] = []
    writer = Writer(tmp_path / "full", say=said.append)
    writer._file.close()
    writer._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    writer.send(bytes(60), 0)
    writer.send(bytes(60), 1)
    assert writer.lost == 2 and said == [
        f"pcap:{tmp_path}/full cannot be written any more: No space left on device"
    ]
    writer.close()
