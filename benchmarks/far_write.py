"""Going back from the end of a recording of 9 G ticks to the last store to a word, anywhere in it.

Debian boots and works through a script at its console.  The words are found by
comparing RAM at two neighbouring checkpoints at a random place: one that changed
in between.  The worst case is measured too: a word that nothing stores to, in a page that is stored to in
nearly every interval, so that the whole recording must be run to find that there is no store.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import side_by_side as bench

from tt.log import Trace
from tt.log.checkpoints import set_bits
from tt.travel import Timeline

TICKS = 9_000_000_000
BAR_S = 10.0
PAGE = 4096
WORKLOAD = """\
i=0; while [ $i -lt 120 ]; do echo line $i >> /var/log.txt; md5sum /bin/busybox > /root/sum; i=$((i+1)); done
ls -lR /usr | tail -3; find / -xdev | wc -l; sync
dd if=/dev/zero of=/root/big bs=64k count=100; sync; gzip -1 /root/big; sync; rm /root/big.gz; sync
tar cf /root/a.tar /bin /lib /usr; gzip /root/a.tar; rm /root/a.tar.gz
i=0; while [ $i -lt 2000 ]; do echo line $i >> /var/log.txt; md5sum /bin/busybox > /root/sum; i=$((i+1)); done
poweroff -f
"""


@dataclass
class Way:
    """A search back from the end: seconds, and how many ticks before the end the store was, or None."""

    wall_s: float
    cpu_s: float
    back: int | None


def go_back(path: Path, addr: int) -> Way:
    """Go from the end to the last store to a word at guest-physical `addr`, in a fresh timeline."""
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        timeline.seek(timeline.end_tick)
        cpu, begin = time.thread_time(), time.perf_counter()
        write = timeline.last_write(addr, 8, physical=True)
        took = time.perf_counter() - begin, time.thread_time() - cpu
        return Way(*took, None if write is None else trace.end_tick - write.tick)


def words_anywhere(timeline: Timeline, chance: random.Random, count: int) -> Iterator[int]:
    """Yield words that changed, each between two checkpoints at a random place."""
    checkpoints = timeline.trace.checkpoints
    for _ in range(20 * count):
        at = chance.randrange(1, len(checkpoints))
        pages = set_bits(int.from_bytes(checkpoints[at].changed, "little"))
        number = chance.choice(pages)
        before, after = (page_at(timeline, checkpoints[k].tick, number) for k in (at - 1, at))
        words = [o for o in range(0, PAGE, 8) if before[o : o + 8] != after[o : o + 8]]
        if words:
            yield number * PAGE + chance.choice(words)
            count -= 1
            if not count:
                return


def cold_word(timeline: Timeline, chance: random.Random) -> int | None:
    """Return a word that stays the same, in one of the pages that change most often."""
    checkpoints = timeline.trace.checkpoints
    count: Counter[int] = Counter()
    for checkpoint in checkpoints:
        count.update(set_bits(int.from_bytes(checkpoint.changed, "little")))
    for number, _ in count.most_common(20):
        ticks = [chance.choice(checkpoints).tick for _ in range(12)]
        pages = [page_at(timeline, tick, number) for tick in ticks]
        same = [
            o
            for o in range(0, PAGE, 8)
            if len({p[o : o + 8] for p in pages}) == 1 and any(pages[0][o : o + 8])
        ]
        if same:
            return int(number * PAGE + chance.choice(same))
    return None


def page_at(timeline: Timeline, tick: int, number: int) -> bytes:
    timeline.seek(tick)
    return timeline.read_physical(number * PAGE, PAGE)


def main() -> None:
    """Run the benchmark."""
    parser = bench.arguments(__doc__ or "", rounds=20)
    parser.add_argument("--seed", type=int, default=3, help="where the words are (default 3)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    image = bench.debian_guest(options.guest) / "debian.img"
    with bench.scratch() as folder:
        path = folder / "long.tt"
        ticks = options.ticks or TICKS
        bench.run_process(
            bench.tt_run(
                "record", guest=image, out=path, ticks=ticks, epoch=bench.EPOCH, script=WORKLOAD, seed=1,
                # A quick look has few ticks, but still needs several checkpoints to compare.
                checkpoint_ticks=None if options.ticks is None else max(1, ticks // 10),
            )
        )  # fmt: skip
        with Trace.open(path) as trace:
            timeline = Timeline(trace)
            end, places = trace.end_tick, len(trace.checkpoints)
            words = list(words_anywhere(timeline, chance, options.rounds))
            cold = cold_word(timeline, chance)
        if not words:
            sys.exit("no word changed between two checkpoints: record more ticks")
        ways = [go_back(path, addr) for addr in words]
        worst = [go_back(path, cold)] if cold is not None else []
    table = bench.Table(
        f"Back from tick {end:,} to the last store to a word; {places:,} checkpoints",
        ("word", "number", "wall s", "CPU s", "G ticks back", "bar", "met"),
    )
    for name, some in (("changed at a random place", ways), ("cold, in a page that always changes", worst)):
        if some:
            backs = [way.back / 1e9 for way in some if way.back is not None]
            table.add(
                name,
                str(len(some)),
                *(
                    bench.Spread.of([getattr(way, what) for way in some]).show()
                    for what in ("wall_s", "cpu_s")
                ),
                bench.Spread.of(backs).show() if backs else "never stored to",
                f"{BAR_S:.0f} s",
                "yes" if max(way.wall_s for way in some) <= BAR_S else "no",
            )
    bench.report(options.json, [table], {"ticks": end, "checkpoints": places, "ways": ways, "worst": worst})


if __name__ == "__main__":
    main()
