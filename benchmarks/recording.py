"""Recording against the same run with logging off, and replay against recording.

Both are whole processes, from exec to exit; the only difference is that `record(config, None)` writes no
trace.  The Denali demo is short, so the fixed cost of a trace is shown beside it: opening, sealing and
syncing the trace of a guest that runs for a single tick.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import side_by_side as bench


def measure(guest: Path, folder: Path, rounds: int, ticks: int | None) -> dict[str, list[bench.Run]]:
    """Run a guest with logging off, recorded, and replayed, in turns."""
    trace = folder / "x.tt"
    off, on = (
        bench.tt_run("record", guest=guest, out=out, ticks=ticks, epoch=bench.EPOCH) for out in (None, trace)
    )
    contenders = {
        "logging off": lambda: bench.run_process(off),
        "recording": lambda: bench.run_process(on),
        "replay": lambda: bench.run_process(bench.tt_run("replay", trace=trace)),
    }
    for contender in contenders.values():
        contender()
    return bench.take_turns(contenders, rounds)


def alternating(options: argparse.Namespace) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Return wall and CPU seconds with logging off and on, and their ratios, from one process."""
    with bench.scratch() as folder:
        image = bench.debian_guest(options.guest) / "debian.img"
        run = bench.run_process(
            bench.tt_run(
                "alternate",
                guest=image,
                out=folder / "x.tt",
                rounds=options.rounds,
                ticks=options.ticks,
                epoch=bench.EPOCH,
            )
        )
    found = {}
    for what in ("wall", "cpu"):
        off, on = ([one[what] for one in run.facts[name]] for name in ("off", "on"))
        found[what] = (off, on, [b / a for a, b in zip(off, on, strict=True)])
    return found


def main() -> None:
    """Run the benchmark."""
    options = bench.arguments(__doc__ or "", rounds=5).parse_args()
    with bench.scratch() as folder:
        demo = bench.denali_demo(folder / "demo")
        runs = {
            "Debian boot": measure(
                bench.debian_guest(options.guest) / "debian.img", folder, options.rounds, options.ticks
            ),
            "Denali demo": measure(demo, folder, options.rounds, options.ticks),
            "Denali, 1 tick": measure(demo, folder, options.rounds, 1),
        }
    names = ("logging off", "recording", "replay")
    wall = bench.Table("Whole process, wall seconds", ("guest", "ticks", *names))
    cpu = bench.Table("Whole process, CPU seconds", ("guest", "ticks", *names))
    ratios = bench.Table(
        "Ratios, round by round (bars for the boot: 1.05, CPU 1.10, and 1.00)",
        ("guest", "recording / off, wall", "CPU", "replay / recording, wall", "CPU"),
    )
    facts: dict[str, object] = {"runs": runs}
    for guest, each in runs.items():
        ticks = f"{each['recording'][0].facts['ticks']:,}"
        wall.add(guest, ticks, *(bench.spread(each[name]).show() for name in names))
        cpu.add(guest, ticks, *(bench.spread(each[name], "cpu_s").show() for name in names))
        four = [
            bench.ratio(each[a], each[b], what)
            for a, b in (("recording", "logging off"), ("replay", "recording"))
            for what in ("wall_s", "cpu_s")
        ]
        ratios.add(guest, *(one.show(3) for one in four))
        kinds = (
            "recording / off, wall",
            "recording / off, CPU",
            "replay / recording, wall",
            "replay / recording, CPU",
        )
        facts[guest] = dict(zip(kinds, four, strict=True))
    inside = bench.Table(
        "Debian boot in one process, start-up left out: recording / off, round by round (bar 1.05)",
        ("", "off, s", "recording, s", "ratio"),
    )
    for what, times in alternating(options).items():
        inside.add(what, *(bench.Spread.of(values).show(3) for values in times))
        facts[f"recording / off in one process, {what}"] = bench.Spread.of(times[2])
    bench.report(options.json, [wall, cpu, ratios, inside], facts)


if __name__ == "__main__":
    main()
