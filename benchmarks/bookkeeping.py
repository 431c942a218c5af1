"""What counting ticks costs: the share of a Debian boot spent in the bookkeeping of translated blocks.

Each translated block begins with instructions that add its length to the tick
and compare it with the next stop.  `Engine.double_bookkeeping` has them executed twice; the time by which
that prolongs the boot is what a normal boot spends on them.  Only the run is timed, from power-on to the
shell.
"""

from __future__ import annotations

import side_by_side as bench


def main() -> None:
    """Run the benchmark."""
    options = bench.arguments(__doc__ or "", rounds=5).parse_args()
    image = bench.debian_guest(options.guest) / "debian.img"
    commands = {
        name: bench.tt_run("boot", guest=image, double=double, ticks=options.ticks, epoch=bench.EPOCH)
        for name, double in (("once", False), ("twice", True))
    }
    contenders = {
        name: lambda command=command: bench.run_process(command) for name, command in commands.items()
    }
    runs = bench.take_turns(contenders, options.rounds)
    table = bench.Table(
        "Debian boot with the tick bookkeeping executed once and twice", ("bookkeeping", "wall s", "CPU s")
    )
    for name, these in runs.items():
        table.add(name, bench.spread(these, "wall").show(3), bench.spread(these, "cpu").show(3))
    share = bench.Table("Share of a normal boot", ("", "wall", "CPU", "bar"))
    shares = {}
    for what in ("wall", "cpu"):
        more = bench.ratio(runs["twice"], runs["once"], what)
        shares[what] = bench.Spread(*(100 * (value - 1) for value in (more.median, more.low, more.high)))
    share.add("bookkeeping, %", *(shares[what].show(1) for what in ("wall", "cpu")), "10")
    bench.report(options.json, [table, share], {"runs": runs, "share_percent": shares})


if __name__ == "__main__":
    main()
