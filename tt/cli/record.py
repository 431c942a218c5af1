"""`tt record`: run a guest and write down everything that happens to it."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import format_count, format_ns, format_size, kind_name, print_json
from tt.cli.parser import add_verb
from tt.cli.paths import free_name
from tt.errors import BadInput, UsageError
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.net.spec import NetSpec
    from tt.recording import Recording

_LAST_EPOCH = 253_402_300_799  # the end of the year 9999, as far as the CMOS clock counts


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "record",
        """tt record debian.img
           tt record debian.img -o boot.tt --input commands.txt
           echo 'uname -a; poweroff' | tt record debian.img --seed 1 --epoch 1700000000
           tt record --kernel bzImage --initrd initrd.img --append 'quiet' --max-ticks 2_000_000_000
           tt record guests/demo.elf --timeout 10
           tt record debian.img --net user --forward 8080:80     (then: curl http://127.0.0.1:8080/)""",
        "GUEST is a disk image, a kernel (bzImage, ELF, Multiboot 1 and 2) or a guest of the Denali "
        "machine.  On a terminal its console is yours: Ctrl-C or Ctrl-A x ends the recording, Ctrl-A c "
        "sends Ctrl-C to the guest, Ctrl-A h tells more.  Otherwise the console goes to stdout, and the "
        "lines of --input or of stdin are typed one by one, each when the guest waits at a prompt; at a "
        "prompt with no line left the recording ends, unless --timeout or --max-ticks says when.  The image"
        " is never written to.",
    )
    parser.add_argument("guest", metavar="GUEST", nargs="?", type=Path, help="what to run")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="the trace (GUEST's name .tt, here, numbered if taken)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the trace if it exists")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--machine", choices=["pc", "denali"], help="which (told from the guest)")
    machine.add_argument("--mem", metavar="SIZE", help="memory (256M; Denali: 16M)")
    machine.add_argument("--kernel", metavar="FILE", type=Path, help="boot this kernel, not the guest's own")
    machine.add_argument("--initrd", metavar="FILE", type=Path, help="with this initrd")
    machine.add_argument("--append", metavar="S", default="", help="add to the kernel's command line")
    machine.add_argument(
        "--disk",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="one more disk (may be repeated)",
    )
    machine.add_argument(
        "--clock",
        choices=["virtual", "host"],
        default="virtual",
        help="guest time follows the guest's instructions (default), or the host's clock",
    )
    machine.add_argument(
        "--epoch", metavar="SECONDS", type=whole, help="wall clock at power-on, since 1970 (now)"
    )
    machine.add_argument("--seed", metavar="N", type=whole, help="the guest's random bytes follow from N")
    machine.add_argument(
        "--net",
        metavar="END",
        action="append",
        default=[],
        help="a network card, connected to `none`, `user` (the host, through passt), stream:unix:PATH or "
        "stream:HOST:PORT (QEMU's format; `,listen` waits there), or pcap:FILE (played if it is there, else "
        "written); options follow after commas, see docs/network.md (may be repeated)",
    )
    machine.add_argument(
        "--forward",
        metavar="HOST:GUEST",
        action="append",
        default=[],
        help="with --net user: connections to this port of the host's loopback reach that port of the guest",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--pace",
        action=argparse.BooleanOptionalAction,
        help="an idle guest waits in real time (default on a terminal and with --clock host), "
        "or its next event comes at once",
    )
    running.add_argument(
        "--input", metavar="FILE", type=Path, help="type the lines of FILE; no keyboard then"
    )
    running.add_argument("--max-ticks", metavar="N", type=whole, help="end after so many instructions")
    running.add_argument("--timeout", metavar="S", type=float, help="end after so many seconds")
    running.add_argument("--embed", action="store_true", help="put the disk images into the trace")
    running.add_argument(
        "--json", action="store_true", help="print one JSON object; the console goes to stderr"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record, and print the result."""
    output = _output(args)
    limits = _limits(args)
    script = read_script(args.input)
    nets = _nets(args)

    from tt.cli import keyboard
    from tt.events import Event, Kind
    from tt.recording import record
    from tt.vmm.config import parse_size
    from tt.vmm.configure import configure, sniff_machine
    from tt.vmm.live import LiveSource, seeded_entropy

    if nets:
        from tt.net.spec import cards, connect
    config = configure(
        args.guest,
        machine=args.machine,
        mem_bytes=None if args.mem is None else parse_size(args.mem),
        kernel=args.kernel,
        initrd=args.initrd,
        append=args.append,
        disks=args.disk,
        clock=args.clock,
        epoch=args.epoch,
        nets=cards(nets, args.machine or sniff_machine(args.guest)) if nets else (),
    )
    stdin = _descriptor(sys.stdin)
    interactive = script is None and not args.json and stdin is not None and os.isatty(stdin) and os.isatty(1)
    piped = script is None and not interactive and stdin is not None and not os.isatty(stdin)
    source = LiveSource(
        pace=(interactive or args.clock == "host" or any(net.has_host for net in nets))
        if args.pace is None
        else args.pace,
        script=keyboard.script_lines(script or b""),
        forever=interactive or bool(limits),
        feeding=piped,
        prompts=config.machine == "pc",
    )
    console = keyboard.ConsoleOutput(2 if args.json else 1, source, raw=interactive)
    source.looked_up = console.flush

    def show(event: Event) -> None:
        if event.kind is Kind.CONSOLE:
            console.show(event.data)

    with ExitStack() as stack:
        if nets:
            network = connect(nets, say, config.epoch)
            stack.callback(network.close)
            source.network = network
            for card, net in enumerate(nets):
                for forward in net.forwards:
                    where = f"{forward.protocol} port {forward.host_port} of {forward.address}"
                    say(f"network card {card}: {where} is the guest's {forward.guest_port}")
        if interactive:
            for line in config.description:
                say(line)
            say(
                f"recording into {output}.  Ctrl-C or Ctrl-A x ends it, "
                "Ctrl-A c sends Ctrl-C to the guest, Ctrl-A h: help"
            )
            stack.enter_context(keyboard.raw_terminal(0))
        stack.enter_context(
            keyboard.Listener(
                source,
                keys=stdin if interactive else None,
                lines=stdin if piped else None,
                say=_say_raw,
            )
        )
        recording = record(
            config,
            output,
            source,
            overwrite=args.force,
            embed=args.embed,
            on_event=show,
            entropy=os.urandom if args.seed is None else seeded_entropy(args.seed),
            networks=list(map(str, nets)),
            **limits,
        )
        console.flush()
    if args.json:
        print_json(facts(recording))
        return 0
    if not console.at_line_start:
        print(file=sys.stderr)
    told, *rest = summary(recording)
    for line in (told, *(network.told() if nets else ()), *rest):
        say(line)
    return 0


def facts(recording: Recording) -> dict[str, Any]:
    """Return the result of a recording as plain data."""
    path = recording.path
    return {
        "trace": None if path is None else str(path),
        "size": None if path is None else path.stat().st_size,
        "reason": recording.reason,
        "end_tick": recording.end_tick,
        "guest_ns": recording.guest_ns,
        "host_s": round(recording.host_s, 3),
        "events": sum(recording.counts.values()),
        "kinds": {kind_name(kind): number for kind, number in sorted(recording.counts.items())},
        "digests": recording.digests,
    } | ({"network": recording.network} if recording.network else {})


def summary(recording: Recording) -> list[str]:
    """Return the result of a recording in a few lines to read."""
    told = facts(recording)
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in told["kinds"].items())
    trace, ticks = told["trace"], told["end_tick"]
    mips = ticks / 1e6 / max(recording.host_s, 1e-3)
    speed = f" ({mips:,.0f} million ticks a second)" if mips >= 1 else ""
    return [
        f"recorded {trace}, {format_size(told['size'])}; it ended: {recording.reason}",
        f"{format_tick(ticks)} ticks, {format_ns(recording.guest_ns)} of guest time, "
        f"in {recording.host_s:.1f} s{speed}",
        f"{format_count(told['events'], 'event')}{': ' if kinds else ''}{kinds}",
        f"try: tt verify {trace}   tt console {trace} --ticks   tt replay {trace} --to-tick 50%",
    ]


def _output(args: argparse.Namespace) -> Path:
    """Return where the trace goes: never onto an existing file, unless --force."""
    if args.guest is None and args.kernel is None:
        raise UsageError("nothing to run: give a guest, or --kernel (see tt record --help)")
    if args.output is not None:
        output: Path = args.output
        if output.exists() and not args.force:
            raise UsageError(f"{output} exists already: --force overwrites it, -o takes another name")
        if output.is_dir():
            raise UsageError(f"{output} is a folder: give the name of a file")
        return output
    stem = (args.guest or args.kernel).stem
    return Path(f"{stem}.tt") if args.force else free_name(stem)


def _nets(args: argparse.Namespace) -> list[NetSpec]:
    if not args.net and not args.forward:
        return []
    from tt.net.spec import add_forwards, parse_net

    return add_forwards([parse_net(text) for text in args.net], args.forward)


def check_times(args: argparse.Namespace) -> None:
    """Refuse an `epoch` that no clock shows, and a `timeout` that never comes, with `UsageError`."""
    if args.timeout is not None and not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout {args.timeout}: give seconds above 0")
    if args.epoch is not None and args.epoch > _LAST_EPOCH:
        raise UsageError(f"--epoch {args.epoch}: give seconds since 1970, before the year 10000")


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if args.max_ticks is not None:
        limits["max_ticks"] = args.max_ticks
    check_times(args)
    if args.timeout is not None:
        limits["timeout_s"] = args.timeout
    return limits


def read_script(path: Path | None) -> bytes | None:
    """Return the text of a script; raises `BadInput`."""
    try:
        return None if path is None else path.read_bytes()
    except OSError as e:
        raise BadInput(f"cannot read --input {path}: {e.strerror or e}") from None


def whole(text: str) -> int:
    """Return a whole number that may be written 2_000_000 or 2,000,000."""
    digits = text.replace(",", "").replace("_", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(digits)


def _descriptor(stream: Any) -> int | None:
    """Return the descriptor of a standard stream; None where it is closed."""
    try:
        return None if stream is None else int(stream.fileno())
    except (OSError, ValueError):
        return None


def _say_raw(text: str) -> None:
    print(f"\n{text}".replace("\n", "\r\n"), end="", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line about the recording."""
    print(f"tt: {line}", file=sys.stderr, flush=True)
