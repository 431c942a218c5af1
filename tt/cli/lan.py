"""`tt lan`: run several guests behind one switch and record each of them."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tt.cli.output import format_ns, frame_counts, print_json
from tt.cli.parser import add_verb
from tt.cli.record import check_times, facts, read_script, say, whole
from tt.errors import BadInput, UsageError
from tt.log.text import printable
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.events import Event
    from tt.fleet.lan import Guest
    from tt.net.link import Conditions

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "lan",
        """tt lan debian.img debian.img -o pair --input debian-1=a.txt --input debian-2=b.txt
           tt lan web=debian.img client=debian.img -o shop --input web=web.txt --input client=client.txt
           tt lan pingpong.elf pingpong.elf -o game --seed 1 --epoch 1700000000
           tt lan a.img b.img -o far --cable latency=20ms,rate=10mbit --cable b:latency=20ms,loss=1%""",
        "Each GUEST is what `tt record` takes, with a name before it or not.  Each has one network card at a "
        "switch, a clock and a core of its own, and a trace of its own, FOLDER/NAME.tt, that replays alone.  "
        "Guest time passes alike for all: with --seed and --epoch the same run comes out each time.  The "
        "lines of a guest's --input are typed one by one, each when it waits at a prompt.  All end when each "
        "has ended or waits at a prompt with no line left, when nothing can wake any of them, or at a limit.",
    )
    parser.add_argument("guests", metavar="[NAME=]GUEST", nargs="+", help="what to run, twice or more")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("lan"), help="of the traces (lan)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite traces that exist")
    machines = parser.add_argument_group("the machines and their cables")
    machines.add_argument("--mem", metavar="SIZE", help="memory of each (256M; Denali: 16M)")
    machines.add_argument("--append", metavar="S", default="", help="add to the kernels' command lines")
    machines.add_argument("--model", metavar="NAME", default="", help="of the network cards (virtio; denali)")
    machines.add_argument(
        "--epoch", metavar="SECONDS", type=whole, help="wall clock at power-on, since 1970 (now)"
    )
    machines.add_argument("--seed", metavar="N", type=whole, help="the guests' random bytes follow from N")
    machines.add_argument(
        "--cable",
        metavar="[NAME:]OPTIONS",
        action="append",
        default=[],
        help="what the cable to the switch does, each way, of all guests or of one: latency=1ms (100us, "
        "never 0), rate=100mbit, loss=1%%, duplicate=1%%, reorder=1%%, corrupt=1%%, seed=N, joined by commas",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="type the lines of FILE into this guest",
    )
    running.add_argument("--max-time", metavar="T", help="end at this guest time, such as 30s")
    running.add_argument("--timeout", metavar="S", type=float, help="end after so many seconds of the host's")
    running.add_argument(
        "--json", action="store_true", help="print one JSON object; the consoles go to stderr"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record, and print the results."""
    images = _named(args.guests)
    scripts = _scripts(args.input, images)
    check_times(args)

    from tt.cli import keyboard
    from tt.fleet.lan import FOREVER_NS, open_lan
    from tt.net.spec import parse_time
    from tt.vmm.live import LiveSource

    max_ns = FOREVER_NS if args.max_time is None else parse_time("--max-time", args.max_time)
    guests = _guests(args, images, scripts)
    _make_folder(args.output)
    for guest in guests:
        if guest.output is not None and guest.output.exists() and not args.force:
            raise UsageError(f"{guest.output} exists already: --force overwrites it, -o takes another folder")
    consoles = Consoles(sys.stderr if args.json else sys.stdout, max(map(len, images)))
    lan = open_lan(guests, seed=args.seed, overwrite=args.force, on_event=consoles.see)

    class Everybody(LiveSource):
        def stop(self, reason: str = "stopped by the user") -> None:
            lan.stop(reason)

    try:
        with keyboard.Listener(Everybody()):
            results = lan.run(max_ns=max_ns, timeout_s=args.timeout)
    finally:
        lan.close()
    consoles.finish()
    if args.json:
        told = [{"name": guest.name} | facts(result) for guest, result in zip(guests, results, strict=True)]
        print_json(
            {
                "machines": told,
                "rounds": lan.rounds,
                "switch": {
                    "flooded": lan.switch.flooded,
                    "dropped": lan.switch.lost,
                    "lost": lan.switch.lost_in_cables,
                },
            }
        )
        return 0
    for guest, result in zip(guests, results, strict=True):
        say(f"{guest.name}: recorded {result.path}; it ended: {result.reason}")
        say(f"{guest.name}: {format_tick(result.end_tick)} ticks, {format_ns(result.guest_ns)} of guest time")
        for counts in frame_counts(result.network):
            say(f"{guest.name}: frames: {counts}")
    say(
        f"the switch gave {lan.switch.flooded:,} frames to all ports, dropped {lan.switch.lost:,}; "
        f"cables lost {lan.switch.lost_in_cables:,}"
    )
    say(f"try: tt verify {results[0].path}   tt console {results[-1].path} --ticks")
    return 0


class Consoles:
    """Prints whole lines, each with the name of its machine before it."""

    def __init__(self, out: TextIO, width: int) -> None:
        self._out = out
        self._width = width
        self._rest: dict[str, bytes] = {}

    def see(self, name: str, event: Event) -> None:
        """Print the lines that a console event of the machine `name` ends."""
        from tt.events import Kind

        if event.kind is not Kind.CONSOLE:
            return
        *lines, self._rest[name] = (self._rest.get(name, b"") + event.data).split(b"\n")
        for line in lines:
            self._print(name, line)

    def finish(self) -> None:
        """Print what has no end yet."""
        for name, rest in self._rest.items():
            if rest:
                self._print(name, rest)

    def _print(self, name: str, line: bytes) -> None:
        # Without what would move the cursor, or make the terminal answer.
        text = _ESCAPES.sub("", line.rstrip(b"\r").decode(errors="replace"))
        print(f"{name:<{self._width}} | {printable(text.expandtabs())}", file=self._out, flush=True)


def _named(guests: list[str]) -> dict[str, Path]:
    """Return the guests by their names; those without one are called as their files, numbered if need be."""
    if len(guests) < 2:
        raise UsageError("one guest is no network: give two or more (tt record runs one)")
    found = []
    for text in guests:
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            if not name or not path or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
                raise UsageError(f"{text}: give NAME=GUEST, the name of letters, digits, -, _ and dots")
            found.append((name, path, True))
        else:
            found.append((Path(text).stem, text, False))
    counts = Counter(name for name, _path, _given in found)
    images: dict[str, Path] = {}
    numbers: Counter[str] = Counter()
    for name, path, given in found:
        if counts[name] > 1 and not given:
            numbers[name] += 1
            name = f"{name}-{numbers[name]}"
        if name in images:
            raise UsageError(f"two guests are called {name!r}")
        images[name] = Path(path)
    return images


def _scripts(inputs: list[str], images: dict[str, Path]) -> dict[str, bytes]:
    scripts = {}
    for text in inputs:
        name, _, path = text.partition("=")
        if name not in images or not path or name in scripts:
            raise UsageError(f"--input {text}: give NAME=FILE, once for each of {', '.join(images)}")
        scripts[name] = read_script(Path(path)) or b""
    return scripts


def _cables(texts: list[str], images: dict[str, Path]) -> dict[str, Conditions]:
    from dataclasses import replace

    from tt.fleet.lan import LATENCY_NS
    from tt.net.link import Conditions
    from tt.net.spec import parse_cable

    usual = Conditions(latency_ns=LATENCY_NS)
    own: dict[str, Conditions] = {}
    for text in texts:
        name, colon, options = text.partition(":")
        if colon and name not in images:
            raise UsageError(f"--cable {text}: no guest is called {name!r} (there are {', '.join(images)})")
        found = parse_cable(options if colon else text)
        if "latency=" not in text:
            found = replace(found, latency_ns=LATENCY_NS)
        elif not found.latency_ns:
            raise UsageError(f"--cable {text}: the latency is to be above 0, for guests to run apart")
        if colon:
            own[name] = found
        else:
            usual = found
    return {name: own.get(name, usual) for name in images}


def _guests(args: argparse.Namespace, images: dict[str, Path], scripts: dict[str, bytes]) -> list[Guest]:
    import time

    from tt.cli.keyboard import script_lines
    from tt.fleet.lan import Guest
    from tt.net.spec import NetSpec, cards
    from tt.vmm.config import parse_size
    from tt.vmm.configure import configure, sniff_machine

    cables = _cables(args.cable, images)
    epoch = int(time.time()) if args.epoch is None else args.epoch  # the same for all
    guests = []
    for number, (name, image) in enumerate(images.items()):
        config = configure(
            image,
            mem_bytes=None if args.mem is None else parse_size(args.mem),
            append=args.append,
            epoch=epoch,
            nets=cards([NetSpec("switch", model=args.model)], sniff_machine(image), number),
        )
        script = script_lines(scripts.get(name, b""))
        guests.append(Guest(name, config, args.output / f"{name}.tt", script, [cables[name]]))
    return guests


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"cannot make the folder {folder}: {e.strerror or e}") from None
