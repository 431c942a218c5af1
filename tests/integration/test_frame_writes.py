"""`last-write` of a byte that came by a frame says which frame, for every card."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from boot_rig import EPOCH
from cli_rig import Inside
from denali_net_rig import Wires, build, net_config, record_net
from multiboot_rig import build as build_kernel

from tt.log import Frame, Trace
from tt.travel import Timeline
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_pc

# Takes all that comes and leaves it as it is.
KEEPER = r"""
#include "denali.h"

static u64 frames;

static void handler(void)
{
    u64 size;
    for (u64 card = 0; card < net_cards(); card++)
        while (network_receive(card, &size) != NULL)
            frames++;
}

static bool are_there(void *unused)
{
    (void)unused;
    return frames == 40;
}

int main(void)
{
    network_start(handler);
    wait_until(are_there, NULL, DENALI_FOREVER);
    return 0;
}
"""


def check(inside: Inside, path: Path, wanted: int) -> None:
    """Ask for bytes of every incoming frame that is in memory at the end; at least `wanted` are."""
    chance = random.Random(1)
    with Trace.open(path) as trace:
        frames = [frame for frame in trace.frames() if frame.incoming]
        timeline = Timeline(trace)
        timeline.seek(trace.end_tick)
        memory = timeline.machine.engine.read(0, timeline.machine.engine.size)
    asked: list[tuple[Frame, int]] = []
    lines = []
    for frame in frames:
        at = memory.find(frame.data)
        if at >= 0:
            offset = chance.randrange(len(frame.data) - 2)
            asked.append((frame, offset))
            lines.append(f"seek end; last-write/p {at + offset:#x} 1")
    assert len(asked) >= wanted
    out = inside.out("replay", path, "--batch", "; ".join(lines), "--json")
    told = [answer for answer in json.loads(out)["answers"] if "writer" in answer]
    assert [answer["frame"] for answer in told] == [frame.number for frame, _offset in asked]
    plain = inside.out("replay", path, "--batch", lines[-1])
    frame, offset = asked[-1]
    assert f"  it came by frame {frame.number}, as its byte {offset}: " in plain


@pytest.mark.parametrize("model", ["denali", "classic"])
def test_denali(tmp_path: Path, inside: Inside, model: str) -> None:
    """Frames that differ in a few bytes, many at one tick, some long after."""
    chance = random.Random(model)
    later: list[tuple[int, int, bytes | bool]] = []
    for number in range(40):
        at = 5_000_000 if number < 20 else 5_000_000 + number * 100_000
        later.append((at, 0, b"\2" * 12 + b"\x88\xb5" + bytes(chance.choices(b"ab", k=86))))
    record_net(net_config(build(tmp_path, KEEPER), model), tmp_path / "x.tt", Wires(later=later))
    check(inside, tmp_path / "x.tt", 30)
    out = inside.out("replay", tmp_path / "x.tt", "--to-tick", "end", "--batch", "net")
    assert f"ethernet0  {model}  {default_mac(0)}  link up  40 received, 0 sent, 0 dropped" in out


def test_pc(tmp_path: Path, inside: Inside) -> None:
    kernel = build_kernel(tmp_path, source="network_kernel.c")
    nets = [NetConfig(model, default_mac(card)) for card, model in enumerate(("virtio", "e1000"))]
    wires = Wires(lambda card, frame: [frame[6:12] + frame[:6] + frame[12:] + bytes([card]) * 9])
    record_net(configure_pc(kernel, mem_bytes=16 << 20, epoch=EPOCH, nets=nets), tmp_path / "x.tt", wires)
    check(inside, tmp_path / "x.tt", 1)  # the second lies where the first did
