"""Denali guests that send and receive frames: recorded, then replayed with no network."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from cli_rig import Inside
from denali_net_rig import (
    ECHO,
    KIT,
    PEER,
    ROUNDS,
    Answer,
    Wires,
    build,
    build_pingpong,
    net_config,
    player,
    record_net,
    shower,
)
from parents_rig import replays

from tt.events import Kind
from tt.log import Trace
from tt.replay import config_of
from tt.vmm.denali.registers import Call as Denali
from tt.vmm.machine import Machine
from tt.vmm.messages import EthernetReceive, EthernetSend
from tt.vmm.router import Call

LOW, HIGH = bytes.fromhex("020000000001"), PEER
both = pytest.mark.parametrize("model", ["denali", "classic"])


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the guest that sends all frames back."""
    return build(tmp_path_factory.mktemp("echo"), ECHO)


@pytest.fixture(scope="module")
def pingpong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the guest of `pingpong.c`."""
    return build_pingpong(tmp_path_factory.mktemp("pingpong"))


# ---- two ends that play


@both
@pytest.mark.parametrize("peer", [LOW, HIGH], ids=["returns", "serves"])
def test_a_game_of_pingpong_is_recorded_and_replayed(
    pingpong: Path, tmp_path: Path, model: str, peer: bytes
) -> None:
    path = tmp_path / "game.tt"
    wires = Wires(player(peer))
    printed = record_net(net_config(pingpong, model), path, wires)
    result = re.search(r"(\d+) rounds in (\d+) us, (\d+) sent again; .* (\d+) dropped", printed)
    assert result is not None, printed
    rounds, us, again, dropped = map(int, result.groups())
    assert (rounds, again, dropped) == (ROUNDS, 0, 0)
    # 20 us on the way and a few to answer: it never waits for a quantum's end (1,000 us).
    assert 20 * ROUNDS < us < 30 * ROUNDS
    with Trace.open(path) as trace:
        frames = list(trace.frames())
        assert [frame.data for frame in frames if not frame.incoming] == [data for _, data in wires.sent]
        assert sum(frame.incoming for frame in frames) >= ROUNDS
    replays(path)


def test_a_lossy_cable_only_costs_time(pingpong: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    whole = player(HIGH)

    def lossy(card: int, frame: bytes) -> list[bytes]:
        replies = whole(card, frame) if chance.random() > 0.1 else []
        return replies * chance.choice((1, 1, 1, 2))

    printed = record_net(net_config(pingpong, "denali"), tmp_path / "lossy.tt", Wires(lossy))
    assert re.search(rf"{ROUNDS} rounds in \d+ us, [1-9]\d* sent again", printed), printed
    replays(tmp_path / "lossy.tt")


# ---- all sizes, several cards, links


@both
def test_frames_of_all_sizes_come_back_turned_round(echo: Path, tmp_path: Path, model: str) -> None:
    later = shower(7, 150, [4096 if model == "denali" else 1518] * 2)
    wires = Wires(later=later)
    printed = record_net(net_config(echo, model, model), tmp_path / "echo.tt", wires)
    assert printed.startswith("2 cards, batches 0\n")
    assert "not sent" not in printed
    for card in (0, 1):
        came = [frame for _, number, frame in later if number == card and isinstance(frame, bytes)]
        assert [frame for number, frame in wires.sent if number == card] == [frame[::-1] for frame in came]
    replays(tmp_path / "echo.tt")


@both
def test_frames_at_once_are_one_batch(echo: Path, tmp_path: Path, model: str) -> None:
    burst: list[tuple[int, int, bytes | bool]] = [(5_000_000, 0, bytes([i]) * 60) for i in range(1, 33)]
    wires = Wires(later=[*burst, (5_000_000, 0, bytes(14))])
    printed = record_net(net_config(echo, model), tmp_path / "burst.tt", wires)
    # The replies of a classic card are events of their own, but the guest has ended by then.
    assert printed.endswith("over at 5000 us, 33 frames in 1 batches\n"), printed
    assert [frame for _, frame in wires.sent] == [bytes([i]) * 60 for i in range(1, 33)] + [bytes(14)]


def test_a_pulled_cable(echo: Path, tmp_path: Path) -> None:
    wires = Wires(
        later=[
            (2_000_000, 1, False),
            (3_000_000, 1, bytes(60)),  # lost
            (4_000_000, 0, bytes(61)),
            (5_000_000, 1, True),
            (6_000_000, 1, bytes(62)),
            (7_000_000, 0, bytes(14)),
        ]
    )
    printed = record_net(net_config(echo, "denali", "classic"), tmp_path / "link.tt", wires)
    assert re.findall(r"card 1: link (\w+)", printed)[:4] == ["down", "down", "up", "up"]
    assert [len(frame) for _, frame in wires.sent] == [61, 62, 14]
    with Trace.open(tmp_path / "link.tt") as trace:
        assert [(e.unit, e.value) for e in trace.events() if e.kind is Kind.LINK] == [(1, 0), (1, 1)]
    replays(tmp_path / "link.tt")


def test_a_machine_without_cards(echo: Path, tmp_path: Path) -> None:
    source_said = record_net(net_config(echo), tmp_path / "none.tt", Wires(), max_ticks=100_000)
    assert source_said == "0 cards, batches 0\n"
    with Trace.open(tmp_path / "none.tt") as trace:
        assert "idle for ever" in trace.reason


def test_the_model_is_an_option_of_the_card(inside: Inside, echo: Path) -> None:
    inside("record", echo, "--net", "none,model=classic", "--net", "none", "-o", "x.tt")
    said = inside.out("console", "x.tt")
    assert said == "2 cards, batches 0\ncard 0: link down\ncard 1: link down\n"
    with Trace.open(inside.folder / "x.tt") as trace:
        assert [net.model for net in config_of(trace).nets] == ["classic", "denali"]
    done = inside("record", echo, "--net", "none,model=virtio", "-o", "y.tt", code=2)
    assert b"a denali machine has no card 'virtio': give denali, classic" in done.stderr


def test_two_recordings_are_equal(pingpong: Path, tmp_path: Path) -> None:
    events, digests = [], []
    for name in ("a.tt", "b.tt"):
        record_net(net_config(pingpong, "classic"), tmp_path / name, Wires(player(LOW)))
        with Trace.open(tmp_path / name) as trace:
            events.append(list(trace.events()))
            digests.append(list(trace.digests()))
    assert events[0] == events[1]
    assert digests[0] == digests[1]
    assert digests[0]


def test_the_manuals_guest_sends_everything_back(tmp_path: Path) -> None:
    manual = (KIT.parents[1] / "docs" / "denali-machine.md").read_text()
    blocks = re.findall(r"^```c\n(.*?)^```$", manual, re.MULTILINE | re.DOTALL)
    (source,) = (block for block in blocks if "network_start" in block)
    later = shower(1, 20, [4096, 1518])
    wires = Wires(later=later)
    record_net(net_config(build(tmp_path, source), "denali", "classic"), None, wires)
    assert sorted(wires.sent) == sorted((card, frame) for _, card, frame in later)


# ---- what a frame costs


@both
def test_one_instruction_a_frame_or_ten_and_twelve(pingpong: Path, tmp_path: Path, model: str) -> None:
    """What Denali's paper says of its card and of a PCnet, with the kit's driver for both."""
    calls: Counter[int] = Counter()
    batches = 0

    def on_start(machine: Machine) -> None:
        inner = machine.engine.virtual_instruction

        def call(number: int, rdi: int, rsi: int, rdx: int) -> int | None:
            calls[number] += 1
            result: int | None = inner(number, rdi, rsi, rdx)
            return result

        machine.engine.virtual_instruction = call

    path = tmp_path / "counted.tt"
    record_net(net_config(pingpong, model), path, Wires(player(HIGH)), on_start=on_start)
    with Trace.open(path) as trace:
        frames = Counter(frame.incoming for frame in trace.frames())
        batches = sum(event.kind is Kind.BATCH and bool(event.value & 8) for event in trace.events())
    assert frames[True] > ROUNDS and frames[False] > ROUNDS
    if model == "denali":
        assert calls[Denali.NET_SEND] == frames[False]
        assert calls[Denali.NET_RECEIVE] == frames[True]
        assert calls[Denali.NET_GIVE] == 64  # beforehand
    else:
        start = 1 + 2 * 5  # reset; CSR1, CSR2, INIT, a look at IDON, STRT
        accesses = calls[Denali.NET_PORT_READ] + calls[Denali.NET_PORT_WRITE]
        # The event of a frame that was sent may come together with that of the answer.
        assert frames[True] <= batches <= frames[True] + frames[False]
        assert accesses == start + 10 * batches + 2 * frames[False]


# ---- parents


def every_third_lost(call: Call) -> None:
    """Lose every third frame, hold others back for a while, and pass the rest on."""
    seen = every_third_lost.__dict__["seen"] = every_third_lost.__dict__.get("seen", 0) + 1
    if seen % 3 == 0:
        call.answer()
    elif seen % 3 == 1:
        call.after(300_000, call.pass_on)
    else:
        call.pass_on()


def changed(call: Call) -> None:
    """Make what comes a frame of 0xff, and double what goes out."""
    match call.message:
        case EthernetReceive(frame):
            call.pass_on(EthernetReceive(b"\xff" * len(frame)))
        case EthernetSend(frame):
            call.ask(EthernetSend(frame))
            call.pass_on()
        case _:
            call.pass_on()


@both
@pytest.mark.parametrize("parent", [every_third_lost, changed])
def test_parents_of_a_card_are_recorded(echo: Path, tmp_path: Path, model: str, parent: Answer) -> None:
    def on_start(machine: Machine) -> None:
        machine.router.interpose("ethernet0", parent)
        machine.door.after(12_000_000, lambda: machine.router.restore("ethernet0"))

    later = [(1_000_000 + 400_000 * i, 0, bytes([i]) * (50 + i)) for i in range(1, 20)]
    wires = Wires(later=[*later, (15_000_000, 0, bytes(14))])
    path = tmp_path / "parents.tt"
    printed = record_net(net_config(echo, model), path, wires, on_start=on_start)
    assert "over at 15000 us" in printed
    out = [frame for _, frame in wires.sent]
    if parent is changed:
        assert out[:-1] == [b"\xff" * (50 + i) for i in range(1, 20) for _ in range(2)]
    else:
        assert 1 <= len(out) < 19
    replays(path)
