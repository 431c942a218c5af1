"""What a frame costs a Denali guest: one instruction, or the 10 and 12 accesses of a classic card.

    python benchmarks/denali_network.py [--rounds 7] [--frames 2000]

The comparison of Denali's paper (Whitaker et al., OSDI'02, section 5.3.3), with the kit's driver
for both.  Frames have 100 bytes and come from, and go to, a network inside this program, one at a
time or 32 at once.  Instructions are counted, the same in each run; times are medians of runs that
take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tt.events import Event, Kind
from tt.recording import record
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_denali
from tt.vmm.denali.guest_build import NETWORK, build_guest
from tt.vmm.denali.registers import Call
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine

KIT = Path(__file__).parents[1] / "guests" / "denali"
GAP_NS = 100_000
GUEST = r"""
#include "denali.h"

static u8 frame[100];
static volatile u64 received;

static void handler(void)
{
    u64 size;
    while (network_receive(0, &size))
        received++;
}

static bool all_there(void *unused)
{
    (void)unused;
    return received >= FRAMES;
}

int main(void)
{
    network_start(handler);
    if (!SENDING)
        return !wait_until(all_there, NULL, DENALI_FOREVER);
    for (u64 sent = 0; sent < FRAMES;) {
        for (u64 i = 0; i < AT_ONCE; i++, sent++)
            network_send(0, frame, sizeof frame);
        sleep_until(denali.time_ns + GAP_NS);
    }
    return 0;
}
"""
SCENARIOS = {
    "receive, one at a time": (False, 1),
    "receive, 32 at once": (False, 32),
    "send, one at a time": (True, 1),
    "send, 32 at once": (True, 32),
}


class Rain:
    """A network from which `frames` frames come, `at_once` at a time, and which loses what is sent."""

    def __init__(self, frames: int, at_once: int) -> None:
        self.room: Callable[[int], int | None] = lambda card: None
        self._left, self._at_once = frames, at_once
        self._next_ns = GAP_NS
        self._due: deque[bytes] = deque()

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        pass

    def poll(self, now_ns: int) -> bool:
        while self._left > 0 and self._next_ns <= now_ns:
            self._due.extend([bytes(100)] * self._at_once)
            self._left -= self._at_once
            self._next_ns += GAP_NS
        return bool(self._due)

    def take(self, tick: int) -> list[Event]:
        frames = [Event(tick, Kind.FRAME_IN, 0, 0, frame) for frame in self._due]
        self._due.clear()
        return frames

    def due_ns(self, now_ns: int) -> int | None:
        return max(now_ns + 1, self._next_ns) if self._left > 0 else None

    def descriptors(self) -> list[int]:
        return []

    def counters(self) -> list[dict[str, int]]:
        return []


def run(guest: Path, model: str, rain: Rain, counts: Counter[str] | None = None) -> tuple[int, float]:
    """Run a guest; return its ticks and the host's seconds, and count calls and events into `counts`."""

    def watch(machine: Machine) -> None:
        inner = machine.engine.virtual_instruction

        def call(number: int, *arguments: int) -> int | None:
            assert counts is not None
            counts["network" if Call.NET_GIVE <= number <= Call.NET_PORT_WRITE else "other"] += 1
            return inner(number, *arguments)

        def see(event: Event) -> None:
            assert counts is not None
            counts["batches"] += event.kind is Kind.BATCH

        machine.engine.virtual_instruction = call
        machine.door.subscribe(see)

    config = configure_denali(guest, epoch=0, nets=[NetConfig(model, default_mac(0))])
    source = LiveSource(network=rain)
    began = time.perf_counter()
    result = record(config, None, source, on_start=watch if counts is not None else lambda machine: None)
    assert result.reason == "terminated with status 0", result.reason
    return result.end_tick, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=2000, help="of each run, rounded to a multiple of 32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    frames = max(1, options.frames // 32) * 32
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (sending, at_once) in SCENARIOS.items():
            guests = {}
            for count in (0, frames):  # one without frames, to take away what starting costs
                source, guests[count] = Path(folder) / "guest.c", Path(folder) / f"{count}.elf"
                text = GUEST.replace("FRAMES", str(count)).replace("AT_ONCE", str(at_once))
                source.write_text(text.replace("SENDING", str(int(sending))).replace("GAP_NS", str(GAP_NS)))
                build_guest([source, KIT / NETWORK], guests[count], kit=KIT)
            times: dict[str, list[float]] = {"denali": [], "classic": []}
            found[name] = {}
            for model in times:
                whole, start = Counter[str](), Counter[str]()
                ticks, _ = run(guests[frames], model, Rain(0 if sending else frames, at_once), whole)
                ticks_start, _ = run(guests[0], model, Rain(0, 1), start)
                found[name][model] = {
                    "network": (whole["network"] - start["network"]) / frames,
                    "other": (whole["other"] - start["other"]) / frames,
                    "batches": (whole["batches"] - start["batches"]) / frames,
                    "ticks": (ticks - ticks_start) / frames,
                }
            for _ in range(options.rounds):
                for model, each in times.items():
                    _, whole_s = run(guests[frames], model, Rain(0 if sending else frames, at_once))
                    _, start_s = run(guests[0], model, Rain(0, 1))
                    each.append((whole_s - start_s) / frames * 1e6)
            for model, each in times.items():
                found[name][model]["us"] = statistics.median(each)
    if options.json:
        print(json.dumps(found))
        return
    columns = "network instructions | other exits | batches | instructions | host us"
    print(f"| {'a frame':<22} | model   | {columns} |")
    print(f"|{'-' * 24}|---------|---------------------:|------------:|--------:|-------------:|--------:|")
    for name, models in found.items():
        for model, row in models.items():
            print(
                f"| {name:<22} | {model:<7} | {row['network']:>20.2f} | {row['other']:>11.2f} | "
                f"{row['batches']:>7.2f} | {row['ticks']:>12.0f} | {row['us']:>7.1f} |"
            )


if __name__ == "__main__":
    main()
