"""What `travel.py` measured, and its tables: the bars first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import side_by_side as bench

WANTED_TICKS = 2_000_000_000  # the bars are for a recording of this length
DENSE = 1000  # checkpoints, of which the size is bound
COLD, COUNTED = "cold: never there before", "cold, pages counted"


@dataclass
class Place:
    """What it took to go to `tick`: restoring a checkpoint, then running `ticks` from there.

    `fetched` pages of RAM came back on the way, which took `fetch_s` of `run_s`; counted where asked for.
    """

    tick: int
    restore_s: float
    run_s: float
    ticks: int
    fetched: int = 0
    fetch_s: float = 0.0

    @property
    def all_s(self) -> float:
        return self.restore_s + self.run_s


@dataclass
class Found:
    """Everything that was measured."""

    ticks: int = 0
    guest_ram: int = 0
    runs: dict[str, list[bench.Run]] = field(default_factory=dict)
    seeks: dict[str, list[Place]] = field(default_factory=dict)
    build_s: list[float] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)
    first_steps: list[float] = field(default_factory=list)
    watches: dict[str, list[float]] = field(default_factory=dict)
    watched: dict[str, str] = field(default_factory=dict)
    space: dict[str, dict[str, int]] = field(default_factory=dict)
    qemu: dict[str, Any] = field(default_factory=dict)


def part(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of `values` do not exceed; not a number if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


def three(values: Sequence[float]) -> tuple[str, str, str]:
    """Return median, 95th percentile and maximum in ms."""
    return ms(part(values, 0.5)), ms(part(values, 0.95)), ms(part(values, 1))


def bars(found: Found) -> bench.Table:
    """Return what was asked for, beside what was measured."""
    table = bench.Table(
        f"A Debian recording of {found.ticks:,} ticks"
        + ("" if found.ticks >= WANTED_TICKS else f": too short, the bars are for {WANTED_TICKS:,}"),
        ("what", "bar", "measured", "met"),
    )

    def add(what: str, bar: str, measured: str, held: bool) -> None:
        if measured.startswith("nan"):
            table.add(what, bar, "nothing found to measure", "")
        else:
            table.add(what, bar, measured, "yes" if held else "no")

    seeks = [place.all_s for place in found.seeks[COLD]]
    add("random seek, p95", "100 ms", f"{ms(part(seeks, 0.95))} ms", part(seeks, 0.95) <= 0.1)
    steps = found.steps["at random places"]
    add("reverse-stepi, p50", "5 ms", f"{ms(part(steps, 0.5))} ms", part(steps, 0.5) <= 0.005)
    add("reverse-stepi, p95", "50 ms", f"{ms(part(steps, 0.95))} ms", part(steps, 0.95) <= 0.05)
    row = found.steps["in a row"]
    add(f"{len(row):,} reverse-stepi in a row", "3 s", f"{sum(row):.2f} s", sum(row) <= 3 * len(row) / 1000)
    near = found.watches.get("last interval", [])
    add(
        "reverse watchpoint hit in the last interval, worst",
        "1 s",
        f"{part(near, 1):.2f} s",
        part(near, 1) <= 1,
    )
    far = [bench.Spread.of(times).median for name, times in found.watches.items() if name != "last interval"]
    add("reverse watchpoint over 1 G ticks, worst", "5 s", f"{part(far, 1):.2f} s", part(far, 1) <= 5)
    opened = bench.spread(found.runs["open at end"], "total_s")
    add("opening at the end", "1 s", f"{opened.median:.2f} s", opened.median <= 1)
    cost = bench.ratio(found.runs["with checkpoints"], found.runs["without"])
    add("recording with checkpoints / without, wall", "1.05", cost.show(3), cost.median <= 1.05)
    dense = next(reversed(found.space.values()))
    size = (dense["state_bytes"] + dense["page_bytes"]) * DENSE / max(1, dense["checkpoints"])
    times_ram = size / found.guest_ram
    add(f"{DENSE:,} checkpoints, times guest RAM", "3", f"{times_ram:.2f}", times_ram <= 3)
    return table


def details(found: Found) -> list[bench.Table]:
    """Return what is behind the bars."""
    seeks = bench.Table(
        "Seeks to random ticks, ms: p50, p95, max; of it restoring the checkpoint, running from there",
        (
            "seek",
            "number",
            "p50",
            "p95",
            "max",
            "restoring p50",
            "p95",
            "running p50",
            "p95",
            "M ticks run p50",
        ),
    )
    for name, places in found.seeks.items():
        restore, run = [p.restore_s for p in places], [p.run_s for p in places]
        seeks.add(
            name,
            str(len(places)),
            *three([p.all_s for p in places]),
            *three(restore)[:2],
            *three(run)[:2],
            f"{part([p.ticks for p in places], 0.5) / 1e6:.1f}",
        )
    counted = found.seeks[COUNTED]
    fetched = bench.Table(
        "Where the time of these seeks goes",
        ("part", "ms a seek", "share", "number a seek"),
    )
    whole = sum(p.all_s for p in counted)
    for name, seconds, number in (
        ("restoring the small state", sum(p.restore_s for p in counted), ""),
        (
            "unpacking pages that are used",
            sum(p.fetch_s for p in counted),
            f"{sum(p.fetched for p in counted) / len(counted):,.0f} pages",
        ),
        (
            "running, and translating code",
            sum(p.run_s - p.fetch_s for p in counted),
            f"{sum(p.ticks for p in counted) / len(counted) / 1e6:.1f} M ticks",
        ),
    ):
        fetched.add(name, ms(seconds / len(counted)), f"{seconds / whole:.0%}", number)
    steps = bench.Table("reverse-stepi, ms", ("where", "number", "p50", "p95", "max", "all, s"))
    for name, times in (*found.steps.items(), ("the first at each place", found.first_steps)):
        steps.add(name, f"{len(times):,}", *three(times), f"{sum(times):.2f}")
    watches = bench.Table(
        "Reverse watchpoints, s", ("the last store was", "number", "median (range)", "watched")
    )
    for name, times in found.watches.items():
        shown = bench.Spread.of(times).show(3) if times else "none found"
        watches.add(name, str(len(times)), shown, found.watched.get(name, "8 bytes that changed, anywhere"))
    return [seeks, fetched, steps, watches, *costs(found)]


def costs(found: Found) -> list[bench.Table]:
    """Return the tables of opening, recording and space."""
    opening = bench.Table("Opening at the end, s", ("", "wall"))
    opening.add(
        "Timeline(Trace.open(path)).seek(end)", bench.spread(found.runs["open at end"], "total_s").show(3)
    )
    opening.add("of it opening", bench.spread(found.runs["open at end"], "open_s").show(3))
    opening.add(
        "tt replay --to-tick end --batch where, the process", bench.spread(found.runs["tt replay"]).show(3)
    )
    opening.add("Timeline(Trace.open(path)), file not in memory", bench.Spread.of(found.build_s).show(3))
    recording = bench.Table("Recording, whole process", ("", "wall s", "CPU s"))
    for name in ("with checkpoints", "without", "no log"):
        runs = found.runs[name]
        recording.add(name, bench.spread(runs).show(), bench.spread(runs, "cpu_s").show())
    for these, those in (
        ("with checkpoints", "without"),
        ("with checkpoints", "no log"),
        ("without", "no log"),
    ):
        pair = [bench.ratio(found.runs[these], found.runs[those], what) for what in ("wall_s", "cpu_s")]
        recording.add(f"{these} / {those}", *(each.show(3) for each in pair))
    space = bench.Table(
        f"Checkpoints on disk, guest RAM {found.guest_ram >> 20} MB",
        ("recording", "checkpoints", "pages", "pages, MB", "states and tables, MB", "KB each", "trace, MB"),
    )
    for name, one in found.space.items():
        size = one["state_bytes"] + one["page_bytes"]
        space.add(
            name,
            f"{one['checkpoints']:,}",
            f"{one['pages']:,}",
            f"{one['page_bytes'] / 1e6:.1f}",
            f"{one['state_bytes'] / 1e6:.1f}",
            f"{size / 1000 / max(1, one['checkpoints']):.0f}",
            f"{one['file_bytes'] / 1e6:.1f}",
        )
    return [opening, recording, space]


def beside(found: Found) -> list[bench.Table]:
    """Return the tables of QEMU's reverse debugging, and its hangs."""
    tables = []
    for name, one in found.qemu.items():
        table = bench.Table(
            f"QEMU's reverse debugging of its own boot, {one['instructions']:,} instructions; {name}; "
            f"no answer: {', '.join(one['hangs']) or 'never'}",
            (
                "instruction",
                "seek from the start, s",
                "reverse-stepi, s",
                "number",
                "reverse-continue to a watchpoint, s",
            ),
        )
        for place in one["places"]:
            shown = [
                bench.Spread.of(place[what]).show(3) if place[what] else "none"
                for what in ("seek_s", "step_s", "watch_s")
            ]
            table.add(f"{place['icount']:,}", shown[0], shown[1], str(len(place["step_s"])), shown[2])
        tables.append(table)
    return tables


def report(as_json: bool, found: Found) -> None:
    """Print what was measured."""
    table = bars(found)
    facts: dict[str, Any] = {"bars": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
    bench.report(as_json, [table, *details(found), *beside(found)], facts | asdict(found))
