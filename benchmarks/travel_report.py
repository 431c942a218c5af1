"""What `travel.py` measured, and its tables: the bars first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import side_by_side as bench

WANTED_TICKS = 2_000_000_000  # the bars are for a recording of this length
DENSE = 1000  # checkpoints, whose size on disk has a bar
NEAR = "last interval"
QUANTILES = ("p50", "p95", "max")
COLD, COUNTED = "cold: never there before", "cold, pages counted"


@dataclass
class Place:
    """What it took to go to `tick`: restoring a checkpoint, then running `ticks` from there.

    `blocks` of code were translated on the way.  `fetched` pages of RAM came back
    from checkpoints, which took `fetch_s` of `run_s`; counted only on request.
    """

    tick: int
    restore_s: float
    run_s: float
    cpu_s: float
    ticks: int
    blocks: int
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
    watches: dict[str, list[bench.Run]] = field(default_factory=dict)
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
    """Return the table of bars and measured values."""
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
    add("random seek, p95", "25 ms", f"{ms(part(seeks, 0.95))} ms", part(seeks, 0.95) <= 0.025)
    steps = found.steps["at random places"]
    add("reverse-stepi, p50", "5 ms", f"{ms(part(steps, 0.5))} ms", part(steps, 0.5) <= 0.005)
    add("reverse-stepi, p95", "50 ms", f"{ms(part(steps, 0.95))} ms", part(steps, 0.95) <= 0.05)
    row = found.steps["in a row"]
    add(f"{len(row):,} reverse-stepi in a row", "3 s", f"{sum(row):.2f} s", sum(row) <= 3 * len(row) / 1000)
    near = [run.wall_s for run in found.watches.get(NEAR, [])]
    add(
        "reverse watchpoint hit in the last interval, worst",
        "1 s",
        f"{part(near, 1):.2f} s",
        part(near, 1) <= 1,
    )
    far = [bench.spread(runs).median for name, runs in found.watches.items() if name != NEAR]
    add("reverse watchpoint over 1 G ticks, worst", "5 s", f"{part(far, 1):.2f} s", part(far, 1) <= 5)
    opened = bench.spread(found.runs["open at end"], "total_s")
    add("opening at the end", "1 s", f"{opened.median:.2f} s", opened.median <= 1)
    for what, name, bar in (("wall_s", "wall", 1.05), ("cpu_s", "CPU", 1.10)):
        cost = bench.ratio(found.runs["with checkpoints"], found.runs["no log"], what)
        add(f"recording / no log, {name}", f"{bar:.2f}", cost.show(3), cost.median <= bar)
    dense = next(reversed(found.space.values()))
    size = (dense["state_bytes"] + dense["page_bytes"]) * DENSE / max(1, dense["checkpoints"])
    times_ram = size / found.guest_ram
    add(f"{DENSE:,} checkpoints, times guest RAM", "3", f"{times_ram:.2f}", times_ram <= 3)
    return table


def details(found: Found) -> list[bench.Table]:
    """Return the tables of the single measurements."""
    seeks = bench.Table(
        "Seeks to random ticks, ms; of it CPU, restoring the checkpoint, running from there",
        ("seek", "number", *QUANTILES, "CPU p50", "p95", "restoring p50", "p95", "running p50", "p95"),
    )
    for name, places in found.seeks.items():
        seeks.add(
            name,
            str(len(places)),
            *three([p.all_s for p in places]),
            *three([p.cpu_s for p in places])[:2],
            *three([p.restore_s for p in places])[:2],
            *three([p.run_s for p in places])[:2],
        )
    seeking = [seeks, where_seeks_go(found.seeks[COUNTED])]
    steps = bench.Table("reverse-stepi, ms", ("where", "number", *QUANTILES, "all, s"))
    for name, times in (*found.steps.items(), ("the first at each place", found.first_steps)):
        steps.add(name, f"{len(times):,}", *three(times), f"{sum(times):.2f}")
    watches = bench.Table(
        "Reverse watchpoints", ("the last store was", "number", "wall s", "CPU s", "watched")
    )
    for name, runs in found.watches.items():
        shown = (
            [bench.spread(runs, what).show() for what in ("wall_s", "cpu_s")] if runs else ["", "none found"]
        )
        watches.add(name, str(len(runs)), *shown, found.watched.get(name, "8 bytes that changed, anywhere"))
    return [*seeking, steps, watches, *costs(found)]


def where_seeks_go(places: Sequence[Place]) -> bench.Table:
    """Return the table of the parts of a seek's time: of all seeks, and of the slowest twentieth."""
    slowest = sorted(places, key=lambda p: p.all_s)[-max(1, len(places) // 20) :]
    table = bench.Table("Where the time of these seeks goes, means", ("part", "all", "the slowest 5%"))
    parts: dict[str, Callable[[Place], float]] = {
        "restoring the small state, ms": lambda p: p.restore_s * 1000,
        "unpacking the pages that are used, ms": lambda p: p.fetch_s * 1000,
        "running and translating, ms": lambda p: (p.run_s - p.fetch_s) * 1000,
        "pages unpacked": lambda p: p.fetched,
        "blocks translated": lambda p: p.blocks,
        "M ticks run": lambda p: p.ticks / 1e6,
    }
    for name, value in parts.items():
        table.add(name, *(f"{sum(map(value, some)) / len(some):,.1f}" for some in (places, slowest)))
    return table


def costs(found: Found) -> list[bench.Table]:
    """Return the tables of opening, recording and space."""
    opening = bench.Table("Opening at the end", ("", "wall s", "CPU s"))
    inside, shell = found.runs["open at end"], found.runs["tt replay"]
    for name, what in (("Timeline(Trace.open(path))", "open"), (".seek(end)", "seek"), ("both", "total")):
        opening.add(name, *(bench.spread(inside, f"{what}_{kind}").show() for kind in ("s", "cpu_s")))
    opening.add(
        "tt replay --to-tick end --batch where, whole process",
        bench.spread(shell).show(),
        bench.spread(shell, "cpu_s").show(),
    )
    opening.add("Timeline(Trace.open(path)), file not in memory", bench.Spread.of(found.build_s).show(), "")
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

    def shown(times: Sequence[float]) -> str:
        if len(times) < 2:
            return f"{times[0]:.2f}" if times else "none"
        return bench.Spread.of(times).show()

    tables = []
    for name, one in found.qemu.items():
        table = bench.Table(
            f"QEMU, {name}: seconds at an instruction of its boot of {one['instructions']:,}"
            + (f"; it failed: {one['failed']}" if one["failed"] else ""),
            ("at", "seek", "reverse-stepi", "number", "reverse-continue to a watchpoint", "no answer to"),
        )
        for place in one["places"]:
            hung = Counter(place["hung"])
            table.add(
                f"{place['icount']:,}",
                shown(place["seek_s"]),
                shown(place["step_s"]),
                str(len(place["step_s"])),
                shown(place["watch_s"]),
                ", ".join(f"{what} ({times})" for what, times in hung.items())
                or ("" if place["seek_s"] else "not reached: time was up"),
            )
        tables.append(table)
    return tables


def report(as_json: bool, found: Found) -> None:
    """Print what was measured."""
    table = bars(found)
    facts: dict[str, Any] = {"bars": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
    bench.report(as_json, [table, *details(found), *beside(found)], facts | asdict(found))
