"""Random travel through a Debian that sends and receives: every place is the same however it was reached."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from adversary_rig import EPOCH
from cycles_rig import Reference, Walker, reference
from denali_net_rig import Wires

from tt.events import FRAMES, Kind
from tt.log import BackgroundWriter, Trace
from tt.recording import record
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_pc
from tt.vmm.live import LiveSource, seeded_entropy

CYCLES, PARTS = 200, 2
GATEWAY = bytes.fromhex("52550a000202")
MODELS = ("virtio",)
PINGS = 60
SCRIPT = (
    b"ifconfig eth0 10.0.2.15\n",
    b"(sleep 0.3; ifconfig eth0 mtu 9000) & ping -i 0.01 -c %d -s 3000 10.0.2.2 | tail -3\n" % PINGS,
)


def gateway(card: int, frame: bytes) -> list[bytes]:
    """Answer ARP and pings as 10.0.2.2."""
    guest, kind = frame[6:12], frame[12:14]
    if kind == b"\x08\x06" and frame[38:42] == bytes([10, 0, 2, 2]):
        return [guest + GATEWAY + frame[12:20] + b"\0\2" + GATEWAY + frame[38:42] + frame[22:32] + bytes(18)]
    if kind == b"\x08\x00" and frame[23] == 1:  # ICMP, each fragment on its own
        addresses = frame[30:34] + frame[26:30]
        told = bytearray(guest + GATEWAY + frame[12:26] + addresses + frame[34:])
        if not frame[20] & 0x1F and not frame[21]:
            told[34] = 0  # echo reply; the checksum grows by what the type lost
            total = int.from_bytes(told[36:38], "big") + 0x0800
            told[36:38] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
        return [bytes(told)]
    return []


def noise() -> list[tuple[int, int, bytes | bool]]:
    """Return frames of any length, and a cable pulled now and then, from about when the driver is there."""
    chance = random.Random(3)
    made: list[tuple[int, int, bytes | bool]] = []
    for at in range(6_000_000_000, 9_600_000_000, 5_000_000):
        size = chance.choice((14, 60, 61, 1514, chance.randrange(14, 9000)))
        made.append((at + chance.randrange(5_000_000), 0, b"\xff" * 6 + chance.randbytes(size - 6)))
    for at in range(6_600_000_000, 9_600_000_000, 400_000_000):
        made += [(at, 0, False), (at + 3_000_000, 0, True)]
    return made


@pytest.fixture(scope="module")
def ground(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reference, Trace]]:
    path = tmp_path_factory.mktemp("cycles") / "debian.tt"
    nets = [NetConfig(model, default_mac(card)) for card, model in enumerate(MODELS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BackgroundWriter, "behind", False)  # the same checkpoints each time
        record(
            configure_pc(debian_image, epoch=EPOCH, mem_bytes=160 << 20, nets=nets),
            path,
            LiveSource(script=SCRIPT, network=Wires(gateway, noise())),
            entropy=seeded_entropy(1),
            checkpoint_ticks=20_000_000,
        )
    with Trace.open(path) as trace:
        printed = "\n".join(text for _tick, _unit, text in trace.console_lines())
        assert f"{PINGS} packets transmitted" in printed and " 0 packets received" not in printed, printed
        events = list(trace.events(kinds=FRAMES | {Kind.LINK}))
        assert sum(event.kind is Kind.FRAME_OUT for event in events) > 2 * PINGS
        assert {event.value for event in events if event.kind is Kind.LINK} == {0, 1}
        known = reference(trace, 200, 400)
        first = next(event.tick for event in events if event.kind is Kind.FRAME_OUT)
        known.ticks = [tick for tick in known.ticks if tick >= first]
        assert len(known.ticks) > 200
        yield known, trace


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_cycles_with_traffic_under_way(ground: tuple[Reference, Trace], part: int, tmp_path: Path) -> None:
    known, trace = ground
    openings = [(trace, {}), (trace, {"spacing_ticks": 5_000_000, "memory_budget": 64 << 20})]
    Walker(known, openings, 3_000 + part, tmp_path, span=15_000_000, forks=1).walk(CYCLES // PARTS)
    assert known.confirm() > 0
