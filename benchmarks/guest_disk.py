"""A guest's disk workload on the time-travel disk, against the same machine on a raw file.

The guest runs `disk_mix.c`: 8 MB written and read in large pieces, then 3,000 random 4 KB reads and
writes with an fsync each 32.  On one side every write is recorded (and everything else that tt records); on
the other the disk is a plain file, flushed with fdatasync, and nothing is recorded.  The time is taken
between two lines that the program prints, so that booting does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import side_by_side as bench

BAR = 1.1
SECTOR = 512


class RawFile:
    """A disk that is a file, written in place."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self.sectors = os.fstat(self._fd).st_size // SECTOR

    def read(self, lba: int, count: int) -> bytes:
        """Return sectors."""
        return os.pread(self._fd, count * SECTOR, lba * SECTOR)

    def write(self, lba: int, data: bytes) -> None:
        """Store sectors."""
        os.pwrite(self._fd, data, lba * SECTOR)

    def flush(self) -> None:
        """Make it durable."""
        os.fdatasync(self._fd)


def prepared(guest: Path, folder: Path) -> Path:
    """Return a copy of a Debian image with the workload's program in it."""
    image = folder / "debian.img"
    subprocess.run(["cp", "--sparse=always", guest, image], check=True)
    program = folder / "mix"
    source = Path(__file__).with_name("disk_mix.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    commands = f"write {program} /root/mix\nsif /root/mix mode 0100755\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", image], input=commands, text=True, check=True, capture_output=True
    )
    return image


def run(image: Path, out: Path | None, raw: Path | None, checkpoint_ticks: int | None) -> dict[str, Any]:
    """Boot the guest, run the workload, and return how long it took and what it wrote."""
    import tt.recording
    from tt.events import Event, Kind
    from tt.vmm.configure import configure_pc
    from tt.vmm.live import LiveSource, seeded_entropy

    marks: dict[str, tuple[float, float]] = {}
    written = [0, 0]
    printed = b""

    def see(event: Event) -> None:
        nonlocal printed
        if event.kind is Kind.CONSOLE:
            printed = (printed + event.data)[-200:]
            for mark in ("BEGIN", "END"):
                if f"MIX {mark}\r".encode() in printed and mark not in marks:
                    marks[mark] = (time.perf_counter(), time.process_time())
        elif event.kind is Kind.DISK_WRITE and "BEGIN" in marks and "END" not in marks:
            written[0] += 1
            written[1] += len(event.data)

    if raw is not None:
        tt.recording.open_disks = lambda *_args, **_options: [RawFile(raw)]  # type: ignore[attr-defined]
    tt.recording.record(
        configure_pc(image, epoch=bench.EPOCH), out, LiveSource(script=[b"/root/mix\n"]), overwrite=True,
        entropy=seeded_entropy(1), on_event=see, checkpoint_ticks=checkpoint_ticks,
    )  # fmt: skip
    begin, end = marks["BEGIN"], marks["END"]
    return {
        "wall": end[0] - begin[0],
        "cpu": end[1] - begin[1],
        "writes": written[0],
        "bytes": written[1],
        "size": out.stat().st_size if out else 0,
    }


def main() -> int:
    """Run the benchmark."""
    parser = bench.arguments(__doc__ or "", rounds=5, ticks=False)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        facts = json.loads(options.one)
        paths = {name: Path(facts[name]) if facts[name] else None for name in ("image", "out", "raw")}
        assert paths["image"] is not None
        print(json.dumps(run(paths["image"], paths["out"], paths["raw"], facts["checkpoints"])))
        return 0
    with bench.scratch() as folder:
        image = prepared(bench.debian_guest(options.guest) / "debian.img", folder)

        def one(out: Path | None, raw: bool, checkpoints: int | None) -> bench.Run:
            copy = folder / "raw.img"
            if raw:
                shutil.copyfile(image, copy)
            what = {
                "image": str(image),
                "out": str(out or ""),
                "raw": str(copy) if raw else "",
                "checkpoints": checkpoints,
            }
            return bench.run_process([sys.executable, __file__, "--one", json.dumps(what)])

        contenders = {
            "raw file": lambda: one(None, True, None),
            "in memory, not recorded": lambda: one(None, False, None),
            "time-travel disk, no checkpoints": lambda: one(folder / "x.tt", False, 0),
            "time-travel disk": lambda: one(folder / "y.tt", False, None),
        }
        runs = bench.take_turns(contenders, options.rounds)
    table = bench.Table(
        f"The workload, seconds (bar {BAR})", ("disk", "wall", "CPU", "wall / raw file", "CPU / raw file")
    )
    plain = runs["raw file"]
    facts = {"runs": runs}
    for name, each in runs.items():
        ratios = [
            bench.Spread.of([b.facts[w] / a.facts[w] for a, b in zip(plain, each, strict=True)])
            for w in ("wall", "cpu")
        ]
        table.add(
            name, *(bench.spread(each, w).show() for w in ("wall", "cpu")), *(r.show(3) for r in ratios)
        )
        facts[name] = ratios[0]
    last = runs["time-travel disk, no checkpoints"][0].facts
    bench.report(options.json, [table], facts)
    if not options.json:
        print(
            f"{last['writes']:,} writes of {last['bytes']:,} bytes; the whole trace: {last['size']:,} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
