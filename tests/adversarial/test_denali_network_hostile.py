"""Hostile guests and floods on the Denali machine's network cards: refused or dropped, and replayed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from denali_net_rig import Wires, build, build_pingpong, net_config, player, record_net

from tt.log import Trace
from tt.replay import verify

# Calls the network's virtual instructions with arguments that are mostly wrong, and lets the rings
# of the classic card 1 be whatever stands there.
FUZZ = r"""
#include "denali.h"

static u64 seed = SEED;
static u8 area[16][DENALI_PAGE] __attribute__((aligned(4096)));

static u64 dice(u64 sides)
{
    seed = seed * 6364136223846793005ul + 1442695040888963407ul;
    return (seed >> 33) % sides;
}

static u64 address(void)
{
    switch (dice(8)) {
    case 0: return denali.mem_bytes - dice(9000);
    case 1: return 0x1000 - dice(300) + dice(300);
    case 2: return ~0ul - dice(9000);
    case 3: return dice(1ul << 31) << dice(33);
    default: return (u64)area[dice(16)] + (dice(4) ? 0 : dice(4096));
    }
}

static u64 size(void)
{
    static const u64 some[] = {0, 1, 13, 14, 60, 1514, 1518, 1519, 4095, 4096, 4097, 1ul << 32, ~0ul};
    return dice(2) ? some[dice(13)] : dice(2000);
}

static void ring(void) /* an initialization block, and descriptors where it may say that they are */
{
    u32 *block = (u32 *)area[dice(4)], *entry = (u32 *)(area[4 + dice(12)] + 16 * dice(8));
    block[0] = (u32)dice(1ul << 32);
    block[5] = (u32)(dice(5) ? (u64)area[4 + dice(12)] : address());
    block[6] = (u32)(dice(5) ? (u64)area[4 + dice(12)] : address());
    entry[0] = (u32)address();
    entry[1] = (u32)(dice(5) ? 0x8300f000 | dice(4096) : dice(1ul << 32));
}

static u64 start(u64 card)
{
    u64 block = (u64)area[dice(4)];
    net_port_write(card, 0x14, 1);
    net_port_write(card, 0x10, block);
    net_port_write(card, 0x14, 2);
    net_port_write(card, 0x10, block >> 16);
    net_port_write(card, 0x14, 0);
    return net_port_write(card, 0x10, dice(3) ? 3 : 0x4b);
}

int main(void)
{
    static const u64 csr0[] = {1, 2, 3, 4, 8, 0x40, 0x42, 0x48, 0x4a, 0x7f00, 0x7940, 0xffff};
    u64 refused = 0;
    for (u64 i = 0; i < 100; i++)
        ring();
    for (u64 i = 0; i < COUNT; i++) {
        u64 card = dice(40) ? dice(3) : dice(2) ? ~0ul : 3 + dice(100), got;
        switch (dice(10)) {
        case 0: got = net_info(card, dice(9)); break;
        case 1: got = net_give(card, address()); break;
        case 2: got = net_receive(card, dice(3) ? address() : ~0ul); break;
        case 3: got = net_send(card, (void *)address(), size()); break;
        case 4: got = net_port_read(card, dice(20) ? 0x10 : dice(40)); break;
        case 5: got = net_port_write(card, 0x14, dice(4) ? 0 : dice(2) ? dice(4) : dice(70000)); break;
        case 6: got = net_port_write(card, 0x10, dice(20) ? csr0[dice(12)] : dice(1ul << 17)); break;
        case 7: got = denali_call(13 + dice(19), address(), address(), address()); break;
        case 8: got = dice(4) ? 0 : start(card); ring(); ring(); ring(); break;
        default: got = idle_with_timeout(dice(3000)); break;
        }
        refused += got == DENALI_REFUSED;
    }
    print("%lu refused\n", refused);
    return 0;
}
"""


def fuzz(folder: Path, seed: int, count: int) -> None:
    """Record and verify a guest that makes `count` calls, while frames come down on it."""
    chance = random.Random(seed)
    guest = build(folder, FUZZ.replace("SEED", f"{seed}").replace("COUNT", f"{count}"))
    later: list[tuple[int, int, bytes | bool]] = []
    for _ in range(count // 5):
        at, card = chance.randrange(count * 500), chance.randrange(4)
        what = chance.randbytes(chance.choice((0, 13, 14, 60, 1514, 4096, 4097, 65_000)))
        later.append((at, card, what if chance.random() < 0.97 else chance.random() < 0.9))
    printed = record_net(
        net_config(guest, "denali", "classic", "denali"), folder / "fuzz.tt", Wires(later=later)
    )
    assert printed.endswith(" refused\n"), printed
    refused = int(printed.split()[0])
    assert count / 10 < refused < count
    with Trace.open(folder / "fuzz.tt") as trace:
        verdict = verify(trace)
        assert verdict.good, verdict


def test_calls_that_make_no_sense(tmp_path: Path) -> None:
    fuzz(tmp_path, 1, 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
def test_many_calls_that_make_no_sense(tmp_path: Path, seed: int) -> None:
    fuzz(tmp_path, seed, 40_000)


@pytest.mark.parametrize("model", ["denali", "classic"])
def test_a_flood(tmp_path: Path, model: str) -> None:
    """Thousands of frames at one instant: what there is no room for is dropped, and the game goes on."""
    guest = build_pingpong(tmp_path)
    flood: list[tuple[int, int, bytes | bool]] = [
        (at, 0, bytes([number & 0xFF]) * 60) for at in (400_000, 800_000) for number in range(2_000)
    ]
    path = tmp_path / "flood.tt"
    printed = record_net(net_config(guest, model), path, Wires(player(), later=flood))
    assert "100 rounds" in printed
    dropped = int(printed.split()[-2])
    assert 3_000 < dropped < 4_000
    with Trace.open(path) as trace:
        assert verify(trace).good
