"""Frames a second of host time between two Denali guests behind a switch.

    python benchmarks/switch.py [--rounds 5] [--frames 4000]

The guests of `pingpong.c` send one frame to and fro, so that each is the answer to the last: with
cables of 100 us there is one frame in each window of guest time, the worst case.  Recorded into two
traces, and run the same way with nothing written; the two take turns, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from tt.fleet.lan import Guest, open_lan
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_denali
from tt.vmm.denali.guest_build import NETWORK, PINGPONG, build_guest

KIT = Path(__file__).parents[1] / "guests" / "denali"
MODELS = ("denali", "classic")


def run(guest: Path, model: str, folder: Path | None) -> tuple[int, float, float]:
    """Run two guests; return how many frames they got, and the seconds of guest and host."""
    guests = []
    for number in range(2):
        config = configure_denali(guest, epoch=0, nets=[NetConfig(model, default_mac(0, number))])
        trace = None if folder is None else folder / f"{number}.tt"
        guests.append(Guest(f"{number}", config, trace))
    lan = open_lan(guests, seed=0, overwrite=True)
    began = time.perf_counter()
    try:
        results = lan.run()
    finally:
        lan.close()
    taken = time.perf_counter() - began
    assert all(result.reason == "terminated with status 0" for result in results), results
    frames = sum(result.network[0]["received"] for result in results)
    return frames, results[0].guest_ns / 1e9, taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=4000, help="of each run, about")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (KIT / PINGPONG).read_text().replace("ROUNDS 1000", f"ROUNDS {max(1, options.frames // 2)}")
        (folder / PINGPONG).write_text(text)
        build_guest([folder / PINGPONG, KIT / NETWORK], folder / "guest.elf", kit=KIT)
        for model in MODELS:
            rates: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(options.rounds):
                for recorded, each in rates.items():
                    frames, guest_s, host_s = run(folder / "guest.elf", model, folder if recorded else None)
                    each.append(frames / host_s)
            size = sum((folder / f"{number}.tt").stat().st_size for number in range(2))
            rows.append(
                {
                    "model": model,
                    "frames": frames,
                    "guest_s": guest_s,
                    "recorded_frames_a_second": statistics.median(rates[True]),
                    "frames_a_second": statistics.median(rates[False]),
                    "trace_bytes": size,
                }
            )
    if options.json:
        print(json.dumps({"runs": rows}))
        return
    print("| cards   | frames | guest s | frames a second, recorded | not recorded | bytes of both traces |")
    print("|---------|-------:|--------:|--------------------------:|-------------:|---------------------:|")
    for row in rows:
        print(
            f"| {row['model']:<7} | {row['frames']:>6,} | {row['guest_s']:>7.3f} | "
            f"{row['recorded_frames_a_second']:>25,.0f} | {row['frames_a_second']:>12,.0f} | "
            f"{row['trace_bytes']:>20,} |"
        )


if __name__ == "__main__":
    main()
