"""Forks of a machine with network cards: what they are connected to, and that all of it replays."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import Inside

from tt.errors import TTError, UsageError
from tt.events import FRAMES, Event, Kind
from tt.log import Trace
from tt.net.spec import connect, parse_net
from tt.recording import record
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.branches.fork import Fork
from tt.vmm.config import MachineConfig, NetConfig, default_mac
from tt.vmm.configure import configure_pc
from tt.vmm.live import LiveSource
from tt.vmm.pc.machine import PcMachine

CARDS = 2
END = 4_000_000
BY_NETWORK = frozenset({Kind.FRAME_IN, Kind.LINK})
COUNTING = bytes.fromhex("48ffc1 ebfb")  # inc rcx; jmp back


class Peer:
    """A network that gives what it is told, each at its guest time."""

    def __init__(self, coming: list[tuple[int, Event]]) -> None:
        self.coming = list(coming)
        self.room: Callable[[int], int | None] = lambda card: None
        self.closed = False
        self._due: list[Event] = []

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        raise AssertionError("this guest sends nothing")

    def poll(self, now_ns: int) -> bool:
        while self.coming and self.coming[0][0] <= now_ns:
            self._due.append(self.coming.pop(0)[1])
        return bool(self._due)

    def take(self, tick: int) -> list[Event]:
        due, self._due = self._due, []
        return [event._replace(tick=tick) for event in due]

    def due_ns(self, now_ns: int) -> int | None:
        return self.coming[0][0] if self.coming else None

    def descriptors(self) -> list[int]:
        return []

    def counters(self) -> list[dict[str, int]]:
        return []

    def close(self) -> None:
        self.closed = True


def frame(number: int, size: int = 60) -> bytes:
    return bytes.fromhex("525400747400 525400747401 0800") + bytes([number]) * (size - 14)


def elf(code: bytes) -> bytes:
    """Return a kernel that runs `code` in 64-bit mode."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 1 << 20, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    head += struct.pack("<IIQQQQQQ", 1, 7, 4096, 1 << 20, 1 << 20, len(code), len(code), 4096)
    return head.ljust(4096, b"\0") + code


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording with a frame each 1.6 ms, and a cable that is out from 5 to 8 ms on."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "guest.elf").write_bytes(elf(COUNTING))
    coming = [
        (ns, Event(0, Kind.FRAME_IN, n % 2, 0, frame(n)))
        for n, ns in enumerate(range(1, 16 * 10**6, 1_600_000))
    ]
    coming += [(5_000_000, Event(0, Kind.LINK, 1, 0)), (8_000_000, Event(0, Kind.LINK, 1, 1))]
    coming.sort(key=lambda each: each[0])
    nets = tuple(NetConfig("virtio", default_mac(card)) for card in range(CARDS))
    config: MachineConfig = configure_pc(
        folder / "guest.elf", mem_bytes=16 << 20, epoch=1_700_000_000, nets=nets
    )
    path = folder / "net.tt"
    record(config, path, LiveSource(network=Peer(coming)), max_ticks=END, networks=["a peer", "a peer"])
    return path


@pytest.fixture
def timeline(parent: Path) -> Iterator[Timeline]:
    with Trace.open(parent) as trace:
        yield Timeline(trace)


def came(path: Path, first_tick: int = 0) -> list[Event]:
    """Return what came by the network in a trace that is sound."""
    with Trace.open(path) as trace:
        assert trace.verify_structure() == []
        verdict = verify(trace)
        assert verdict.good, verdict
        return list(trace.events(first_tick, kinds=BY_NETWORK))


def test_cut_off_unless_told_otherwise(parent: Path, timeline: Timeline, tmp_path: Path) -> None:
    timeline.seek(END // 2)
    with timeline.fork(tmp_path / "x.tt") as fork:
        fork.run(END // 2)
        assert fork.cables.told == ("off", "off") and "cut off" in fork.cables.line
    past = [event for event in came(parent) if event.tick < END // 2]
    assert past and came(fork.path) == past
    with Trace.open(fork.path) as child, Trace.open(parent) as trace:
        assert child.meta["networks"] == ["off", "off"]
        times = [each.host_ns for each in trace.frames(last_tick=END // 2 - 1)]
        assert [each.host_ns for each in child.frames()] == times and all(times)


def test_host_times_of_frames_at_the_fork_itself(parent: Path, timeline: Timeline, tmp_path: Path) -> None:
    """The last stretch before a fork is replayed, and its frames are those of then all the same."""
    with Trace.open(parent) as trace:
        third = list(trace.frames())[2]
    for tick in (third.tick, third.tick + 1):
        timeline.seek(tick)
        with timeline.fork(tmp_path / f"{tick}.tt") as fork:
            fork.run(1)
        with Trace.open(fork.path) as child, Trace.open(parent) as trace:
            expected = [each.host_ns for each in trace.frames(last_tick=tick - 1)]
            assert [each.host_ns for each in child.frames()] == expected


def test_kept_inputs_are_frames_too(parent: Path, timeline: Timeline, tmp_path: Path) -> None:
    for number, tick in enumerate(
        (0, 1, END // 2, next(e.tick for e in came(parent) if e.kind is Kind.LINK))
    ):
        timeline.seek(tick)
        with timeline.fork(tmp_path / f"{number}.tt", keep_inputs=True) as fork:
            fork.run(until=END)
        with Trace.open(fork.path) as child, Trace.open(parent) as trace:
            assert list(child.events()) == list(trace.events())
            assert dict(child.digests())[END] == dict(trace.digests())[END]
    timeline.seek(END // 2)
    with timeline.fork(tmp_path / "off.tt", keep_inputs=True, network=["off"]) as fork:
        fork.run(until=END)
    assert came(fork.path, END // 2) == []


def test_unplugged_with_the_first_step(timeline: Timeline, tmp_path: Path) -> None:
    timeline.seek(1_000_000)
    with timeline.fork(tmp_path / "x.tt", network=["off", "none"]) as fork:
        assert fork.cables.told == ("off", "none")
    assert came(fork.path, 1_000_000) == [Event(1_000_000, Kind.LINK, 1, 0)]


def test_by_hand(timeline: Timeline, tmp_path: Path) -> None:
    timeline.seek(1_000_000)
    with timeline.fork(tmp_path / "x.tt") as fork:
        fork.receive_frame(1, frame(77))
        fork.plug(0, False)
        fork.run(1000)
        fork.plug(0, True)
        fork.type("x")
        for card in (-1, CARDS):
            with pytest.raises(UsageError, match="no network card"):
                fork.plug(card, True)
        for size in (0, 13, 65_551):
            with pytest.raises(UsageError, match="no frame"):
                fork.receive_frame(0, bytes(size))
    assert came(fork.path, 1_000_000) == [
        Event(1_000_000, Kind.FRAME_IN, 1, 0, frame(77)),
        Event(1_000_000, Kind.LINK, 0, 0),
        Event(1_001_000, Kind.LINK, 0, 1),
    ]
    with pytest.raises(UsageError, match="is closed"):
        fork.plug(0, True)


def test_a_live_network(timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there at a stream socket, goes, and is not there at the replay."""
    monkeypatch.setattr(PcMachine, "frame_room", lambda machine, card: 8)  # this guest has no driver
    timeline.seek(1_000_000)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        said: list[str] = []
        fork = Fork(
            timeline, tmp_path / "x.tt", network=["off", f"stream:unix:{tmp_path}/sock"], say=said.append
        )
        with fork:
            assert fork.cables.is_live
            peer, _ = listening.accept()
            with peer:
                for number in range(3):
                    peer.sendall(struct.pack(">I", 60) + frame(number))
                fork.run(END)
            fork.run(END)
    assert [event.data for event in came(fork.path, 1_000_000)] == [*map(frame, range(3)), b""]
    assert said and "unplugged" in said[0]


def test_a_network_of_ones_own_is_closed_with_the_fork(timeline: Timeline, tmp_path: Path) -> None:
    peer = Peer([(0, Event(0, Kind.FRAME_IN, 0, 0, frame(9)))])
    timeline.seek(END // 2)
    with timeline.fork(tmp_path / "x.tt", network=peer) as fork:
        fork.run(1000)
        assert not peer.closed
    assert peer.closed and len(came(fork.path, END // 2)) == 1
    with pytest.raises(TTError):
        timeline.fork(tmp_path / "x.tt", network=(again := Peer([])))
    assert again.closed


def test_a_cable_that_was_out_comes_in(parent: Path, timeline: Timeline, tmp_path: Path) -> None:
    out = next(event.tick for event in came(parent) if event.kind is Kind.LINK)
    timeline.seek(out + 10)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        with timeline.fork(tmp_path / "x.tt", network=["off", f"stream:unix:{tmp_path}/sock"]) as fork:
            fork.run(END)
    assert [event[1:4] for event in came(fork.path, out + 10)] == [(Kind.LINK, 1, 1)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--net", "off", "--net", "off", "--net", "off"], "2 network cards, and a fork gets no new ones"),
        (["--net", "user", "--keep-inputs"], "do not go together"),
        (["--net", "pcap:x"], "tt pcap"),
        (["--net", "user,mac=52:54:00:00:00:01"], "the recorded one"),
        (["--net", "elsewhere"], "is no network"),
        (["--net", "off", "--forward", "8080:80"], "add --net user"),
        (["--net", "stream:unix:/nowhere/x"], "cannot connect"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_networks_leave_nothing(
    inside: Inside, parent: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    done = inside(
        "fork", parent, "--at", "50%", "-o", tmp_path / "x.tt", *words, code=3 if "cannot" in says else 2
    )
    assert says in done.stderr.decode() and not (tmp_path / "x.tt").exists()


def test_no_card_no_word_of_a_network(inside: Inside, demo_trace: Path, tmp_path: Path) -> None:
    said = inside.out("fork", demo_trace, "--at", "50%", "--ticks", "10", "-o", tmp_path / "x.tt")
    assert "network" not in said
    done = inside("fork", demo_trace, "--at", "50%", "--net", "none", "-o", tmp_path / "y.tt", code=2)
    assert b"has no network card" in done.stderr


def test_as_typed(inside: Inside, parent: Path, tmp_path: Path) -> None:
    said = inside.out("fork", parent, "--at", "50%", "--ticks", "100", "-o", tmp_path / "x.tt")
    assert "its network is cut off: nothing arrives (--net user connects it" in said
    out = inside.out(
        "fork", parent, "--at", "50%", "--ticks", "9", "--net", "none", "-o", tmp_path / "y.tt", "--json"
    )
    assert json.loads(out)["networks"] == ["none", "off"]
    told = inside.out("info", tmp_path / "y.tt")
    assert "virtio, 52:54:00:74:00:00, connected to none" in told
    assert "[net: none; off]" in inside.out("timelines", tmp_path / "y.tt")
    batch = "fork b net=none; plug; receive ffffffffffff5254007474010806; continue 100; timelines; unplug 7"
    done = inside("replay", parent, "--to-tick", "50%", "--batch", batch, code=2)
    text = done.stdout.decode() + done.stderr.decode()
    assert "its network" in text and "there is no network card 7" in text
    (made,) = parent.parent.glob("net-b.tt")
    assert [event.kind for event in came(made, END // 2)] == [Kind.LINK, Kind.LINK, Kind.FRAME_IN]
    assert FRAMES & {event.kind for event in came(made)}


def test_a_recording_says_what_became_of_its_frames() -> None:
    network = connect([parse_net("none")])
    network.send(0, frame(1), 0)
    assert network.told() == ["network card 0 (nothing): 0 frames in, 1 out; 1 were not taken"]
    assert str(parse_net("stream:127.0.0.1:9,listen,loss=1%,latency=3ms,rate=5mbit,seed=4")) == (
        "stream:127.0.0.1:9,listen,latency=3000000ns,rate=5000000bit,loss=0.01,seed=4"
    )
