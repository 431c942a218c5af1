"""Going anywhere in a Debian recording: seeks, reverse steps, reverse watchpoints, and what checkpoints cost.

The guest boots, works through a script at its console and powers off, its
random bytes from a seed.  Every number has a bar; the first table says which
are met.  QEMU's reverse debugging is measured too (`qemu_reverse.py`), on a boot of the same kernel, initrd
and disk, unless `--no-qemu` is given.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qemu_reverse
import side_by_side as bench
import travel_report
from travel_report import COLD, COUNTED, DENSE, NEAR, Found, Place

from tt.log import Trace
from tt.log.checkpoints import set_bits
from tt.travel import Timeline
from tt.travel.search import reverse_proceed
from tt.travel.stops import Watchpoint
from tt.vmm.configure import configure_pc

WORKLOAD = """\
uname -a
i=0; while [ $i -lt 40 ]; do echo line $i >> /var/log.txt; md5sum /bin/busybox > /root/sum; i=$((i+1)); done
ls -lR /usr | tail -3
find / -xdev | wc -l
sync
dd if=/dev/zero of=/root/big bs=64k count=100; sync; rm /root/big; sync
poweroff -f
"""
PROMPT = b"root@debian:~#"
SPAN_TICKS = 1_000_000_000  # how far a reverse watchpoint looks
NEVER = 1 << 60
PAGE = 4096
FINE_TICKS = 2_000  # a page stored to in every stretch of this length is a busy one


# ---- seeks


def go(timeline: Timeline, tick: int) -> Place:
    """Seek to `tick`, timing the way to the checkpoint and the way from there."""
    nearest = timeline.nearest(tick)
    made = timeline.machine.engine.statistics["blocks_made"]
    cpu, begin = time.thread_time(), time.perf_counter()
    if tick < timeline.tick or nearest > timeline.tick:
        timeline.seek(nearest)
    middle, start = time.perf_counter(), timeline.tick
    timeline.seek(tick)
    end, cpu = time.perf_counter(), time.thread_time() - cpu
    made = timeline.machine.engine.statistics["blocks_made"] - made
    return Place(tick, middle - begin, end - middle, cpu, tick - start, made)


def count_fetches(timeline: Timeline, ticks: Sequence[int]) -> list[Place]:
    """Seek to each of `ticks`, counting the pages of RAM that come back from checkpoints."""
    engine = timeline.machine.engine
    fetch = engine.fetch_page
    count, took = 0, 0.0

    def counted(number: int) -> bytes | memoryview:
        nonlocal count, took
        begin = time.perf_counter()
        page = fetch(number)
        took += time.perf_counter() - begin
        count += 1
        return page

    engine.fetch_page = counted
    places = []
    for tick in ticks:
        count, took = 0, 0.0
        place = go(timeline, tick)
        place.fetched, place.fetch_s = count, took
        places.append(place)
    engine.fetch_page = fetch
    return places


def measure_seeks(found: Found, path: Path, chance: random.Random, count: int) -> None:
    """Seek to random ticks: first of all in a timeline, in a fresh timeline, and to the same ticks again."""
    ticks = [chance.randrange(found.ticks + 1) for _ in range(count)]
    first = []
    for tick in ticks[: max(1, count // 20)]:
        forget(path)
        begin = time.perf_counter()
        with Trace.open(path) as trace:
            timeline = Timeline(trace)
            found.build_s.append(time.perf_counter() - begin)
            first.append(go(timeline, tick))
    found.seeks["first, file not in memory"] = first
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        found.seeks[COLD] = [go(timeline, tick) for tick in ticks]
        found.seeks["warm: there before"] = [go(timeline, t) for t in chance.sample(ticks, count)]
    with Trace.open(path) as trace:
        others = [chance.randrange(found.ticks + 1) for _ in range(count)]
        found.seeks[COUNTED] = count_fetches(Timeline(trace), others)


def forget(path: Path) -> None:
    """Have the kernel drop what it keeps of a file in memory."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- reverse steps


def measure_steps(found: Found, path: Path, chance: random.Random, places: int, each: int, row: int) -> None:
    """Step back `each` times at random places, and `row` times at one."""

    def back(timeline: Timeline, count: int) -> list[float]:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            timeline.reverse_step()
            times.append(time.perf_counter() - begin)
        return times

    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        times: list[float] = []
        for _ in range(places):
            timeline.seek(chance.randrange(min(row, found.ticks), found.ticks + 1))
            some = back(timeline, each)
            found.first_steps.append(some[0])
            times += some
        found.steps["at random places"] = times
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        timeline.seek(found.ticks * 3 // 5)
        found.steps["in a row"] = back(timeline, row)


# ---- reverse watchpoints


def measure_watches(found: Found, path: Path, chance: random.Random, places: int, rounds: int) -> None:
    """Go back to the last store to some bytes: once a recent one, and once one over `SPAN_TICKS` ago."""
    span = min(SPAN_TICKS, found.ticks * 2 // 5)
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        near = [watch_last_interval(timeline, chance) for _ in range(places)]
        found.watches[NEAR] = [s for s in near if s is not None]
        quiet = quiet_word(timeline, span, chance)
        busy = busy_words(timeline, span, chance)
    if quiet is not None:
        name = "old, in a page at rest"
        for _ in range(rounds):
            times, tick = watch_far(path, quiet, 0)
            found.watches.setdefault(name, []).append(times)
        found.watched[name] = f"{quiet:#x} physical, stored to {found.ticks - tick:,} ticks before"
    for number, addr in enumerate(busy):
        name = f"old, in a busy page ({number + 1})"
        for _ in range(rounds):
            times, tick = watch_far(path, addr, found.ticks - span)
            found.watches.setdefault(name, []).append(times)
        found.watched[name] = f"{addr:#x} physical, not stored to for {found.ticks - tick:,} ticks"


def watch_last_interval(timeline: Timeline, chance: random.Random) -> bench.Run | None:
    """Go somewhere, and time the way back to a store since the checkpoint before it; None: found none."""
    checkpoints = timeline.trace.checkpoints
    if not checkpoints:
        return None
    for _ in range(20):
        at = chance.randrange(len(checkpoints))
        begin, end = (checkpoints[at - 1].tick if at else 0), checkpoints[at].tick
        here = chance.randrange(begin + (end - begin) // 2, end) if end - begin > 2 else end
        numbers = set_bits(int.from_bytes(checkpoints[at].changed, "little"))
        numbers = chance.sample(numbers, min(20, len(numbers)))
        timeline.seek(here)
        after = {number: page_at(timeline, number) for number in numbers}
        timeline.seek(begin)
        changed = [
            number * PAGE + offset
            for number in numbers
            for offset in range(0, PAGE, 8)
            if page_at(timeline, number)[offset : offset + 8] != after[number][offset : offset + 8]
        ]
        if not changed:
            continue
        timeline.seek(here)
        timeline.stops.add(Watchpoint(chance.choice(changed), 8, physical=True))
        cpu, started = time.thread_time(), time.perf_counter()
        arrival = timeline.reverse_proceed()
        took = bench.Run(time.perf_counter() - started, time.thread_time() - cpu)
        timeline.stops.clear()
        if arrival.reason != "watch" or arrival.tick <= begin:
            sys.exit(f"a word that changed after tick {begin:,} was found written at {arrival}")
        return took
    return None


def watch_far(path: Path, addr: int, until: int) -> tuple[bench.Run, int]:
    """Time the way back from the end to the last store to a word, or to tick `until`, in a fresh timeline."""
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        timeline.seek(timeline.end_tick)
        timeline.stops.add(Watchpoint(addr, 8, physical=True))
        cpu, begin = time.thread_time(), time.perf_counter()
        arrival = reverse_proceed(timeline, until=until)
        return bench.Run(time.perf_counter() - begin, time.thread_time() - cpu), arrival.tick


def quiet_word(timeline: Timeline, span: int, chance: random.Random) -> int | None:
    """Return the address of a word once stored to, in a page that did not change in the last `span`."""
    old, new = changes(timeline, 0, timeline.end_tick - span), changes(timeline, timeline.end_tick - span)
    for number in chance.sample(sorted(old.keys() - new.keys()), len(old.keys() - new.keys())):
        timeline.seek(timeline.end_tick)
        page = page_at(timeline, number)
        for offset in range(0, PAGE, 8):
            if any(page[offset : offset + 8]):
                return int(number * PAGE + offset)
    return None


def busy_words(timeline: Timeline, span: int, chance: random.Random, most: int = 3) -> list[int]:
    """Return words that nothing stored to in the last `span`, in the pages that are stored to most often.

    Which pages these are is found by running short stretches at random places.
    """
    begin = timeline.end_tick - span
    count = changes(timeline, begin)
    often = [number for number, times in count.items() if times >= max(count.values()) * 0.9][:500]
    hits: Counter[int] = Counter()
    for _ in range(40):
        timeline.seek(chance.randrange(begin, timeline.end_tick))
        timeline.keep_here()
        timeline.step(FINE_TICKS)
        timeline.keep_here()
        hits.update(n for n in often if timeline.unchanged(timeline.tick, [n], -1) == timeline.tick)
    words = []
    for number, _times in hits.most_common(4 * most):
        addr = cold_word(timeline, number, begin, chance)
        if addr is not None:
            words.append(addr)
        if len(words) == most:
            break
    return words


def cold_word(timeline: Timeline, number: int, begin: int, chance: random.Random) -> int | None:
    """Return a word of a page that is the same throughout and not stored to after tick `begin`."""
    end = timeline.end_tick
    timeline.seek(end)
    page = page_at(timeline, number)
    same = [offset for offset in range(0, PAGE, 8) if any(page[offset : offset + 8])]
    for step in range(12):
        timeline.seek(begin + (end - begin) * step // 12)
        page_then = page_at(timeline, number)
        same = [o for o in same if page_then[o : o + 8] == page[o : o + 8]]
    for offset in chance.sample(same, min(4, len(same))):
        timeline.seek(end)
        timeline.stops.add(Watchpoint(number * PAGE + offset, 8, physical=True))
        arrival = reverse_proceed(timeline, until=begin)
        timeline.stops.clear()
        if arrival.reason != "watch":
            return number * PAGE + offset
    return None


def changes(timeline: Timeline, begin: int, end: int = NEVER) -> Counter[int]:
    """Return how many of the trace's checkpoints after `begin` up to `end` changed each page."""
    count: Counter[int] = Counter()
    for checkpoint in timeline.trace.checkpoints:
        if begin < checkpoint.tick <= end:
            count.update(set_bits(int.from_bytes(checkpoint.changed, "little")))
    return count


def page_at(timeline: Timeline, number: int) -> bytes:
    """Return a page of RAM at the timeline's tick."""
    return timeline.machine.engine.read(number * PAGE, PAGE)


# ---- opening, recording, space


def measure_opening(found: Found, path: Path, rounds: int) -> None:
    """Open at the end: within a process, and as a whole `tt replay`."""
    shell = [sys.executable, "-c", "from tt.cli.main import main; raise SystemExit(main())"]
    shell += ["replay", str(path), "--to-tick", "end", "--batch", "where"]
    found.runs |= bench.take_turns(
        {
            "open at end": lambda: bench.run_process(bench.tt_run("open", trace=path)),
            "tt replay": lambda: bench.run_process(shell),
        },
        rounds,
    )


def record_command(
    options: argparse.Namespace, out: Path | None, checkpoint_ticks: int | None = None, **settings: int
) -> list[str]:
    """Return the command that records the workload, with constants of `tt.recording` replaced."""
    return bench.tt_run(
        "record",
        guest=options.image,
        out=out,
        ticks=options.ticks,
        epoch=bench.EPOCH,
        script=WORKLOAD,
        seed=1,
        settings=settings,
        checkpoint_ticks=checkpoint_ticks,
    )


def measure_recording(found: Found, options: argparse.Namespace, folder: Path, path: Path) -> None:
    """Record with and without checkpoints, and with no log at all, in turns; the first stays at `path`."""
    bare = folder / "bare.tt"
    contenders = {
        "with checkpoints": lambda: bench.run_process(record_command(options, path)),
        "without": lambda: bench.run_process(record_command(options, bare, 0)),
        "no log": lambda: bench.run_process(record_command(options, None)),
    }
    for contender in contenders.values():
        contender()
    found.runs |= bench.take_turns(contenders, options.rounds)
    found.space["as recorded"] = space_of(path)
    found.space["without checkpoints"] = space_of(bare)
    bare.unlink()


def measure_dense(found: Found, options: argparse.Namespace, folder: Path) -> None:
    """Record with `DENSE` checkpoints, however much they cost."""
    dense = folder / "dense.tt"
    every = max(1, found.ticks // DENSE)
    settings = {"TICKS_PER_PAGE": 0, "CHECKPOINT_RAM": DENSE}
    bench.run_process(record_command(options, dense, every, **settings))
    found.space[f"one every {every:,} ticks"] = space_of(dense)
    dense.unlink()


def space_of(path: Path) -> dict[str, int]:
    """Return how many checkpoints a trace has, and the bytes of their rows, pages, and of the file."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        count, rows = db.execute(
            "SELECT count(*), sum(length(state) + length(changed) + length(refs) + length(digest)) "
            "FROM checkpoints"
        ).fetchone()
        pages, packed = db.execute("SELECT sum(count), sum(length(packed)) FROM page_packs").fetchone()
    finally:
        db.close()
    return {
        "checkpoints": count,
        "state_bytes": rows or 0,
        "pages": pages or 0,
        "page_bytes": packed or 0,
        "file_bytes": path.stat().st_size,
    }


def main() -> None:
    """Run the benchmark."""
    parser = bench.arguments(__doc__ or "", rounds=5)
    parser.add_argument(
        "--pairs", dest="rounds", type=int, default=argparse.SUPPRESS, help="the same as --rounds"
    )
    parser.add_argument("--image", type=Path, help="the guest: a disk image (default: debian.img in --guest)")
    parser.add_argument("--seed", type=int, default=3, help="where the random places are (default 3)")
    parser.add_argument("--no-qemu", action="store_true", help="leave QEMU out")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the QEMU to compare with")
    parser.add_argument(
        "--qemu-seconds", type=float, default=240, help="about how long it may take, each way"
    )
    options = parser.parse_args()
    if options.image is None:
        options.image = bench.debian_guest(options.guest) / "debian.img"
    quick = options.ticks is not None
    chance = random.Random(options.seed)
    found = Found()
    with bench.scratch() as folder:
        path = folder / "debian.tt"
        say("recording")
        measure_recording(found, options, folder, path)
        with Trace.open(path) as trace:
            found.ticks = trace.end_tick
            found.guest_ram = Timeline(trace).machine.engine.size
        measure_dense(found, options, folder)
        say("opening")
        measure_opening(found, path, options.rounds)
        say("seeks")
        measure_seeks(found, path, chance, 20 if quick else 200)
        say("reverse steps")
        measure_steps(found, path, chance, *((2, 10, 20) if quick else (10, 100, 1000)))
        say("reverse watchpoints")
        measure_watches(found, path, chance, 2 if quick else 20, 1 if quick else 3)
    if not (options.no_qemu or quick):
        say("QEMU")
        found.qemu = measure_qemu(options)
    travel_report.report(options.json, found)


def measure_qemu(options: argparse.Namespace) -> dict[str, Any]:
    """Drive QEMU backwards, where it is installed."""
    program = shutil.which(options.qemu)
    guest = options.image.parent
    if program is None or not (guest / "vmlinuz").exists():
        return {}
    cmdline = configure_pc(options.image, epoch=bench.EPOCH).cmdline.replace("pci=conf1", "pci=conf1,nomsi")
    with bench.scratch() as folder:
        return qemu_reverse.measure(
            program, guest, options.image, cmdline, folder, PROMPT, options.qemu_seconds
        )


def say(what: str) -> None:
    """Show on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
