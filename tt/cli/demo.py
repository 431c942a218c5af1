"""`tt demo`: record and replay a small guest, and report what happened."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.output import format_size, print_json
from tt.cli.parser import add_verb
from tt.cli.paths import free_name
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.recording import Recording

_KINDS = {
    "TIMER": "timer interrupts",
    "BATCH": "batches of events handed over",
    "DISK_WRITE": "disk writes",
    "CONSOLE": "pieces of console output",
    "WAKE": "waits of the idle machine",
}
_FIRST_LINES, _LAST_LINES = 4, 1
_LINE_WIDTH = 84


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "demo",
        """tt demo
           tt demo --keep
           tt demo chronus""",
        "The guest runs on the Denali machine, a small paravirtual one: it computes, sleeps, writes to its "
        "disk and prints for two seconds of its own time.  `tt demo chronus` breaks a Debian server "
        "instead, and finds the write that did it.",
    )
    parser.add_argument(
        "what", nargs="?", choices=["machine", "chronus"], default="machine", help="which demo"
    )
    parser.add_argument("--keep", action="store_true", help="keep the recording here, as demo.tt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Demo:
    """What a demo showed: a recording and its replay."""

    trace: Path
    size: int
    recording: Recording
    first_ticks: dict[str, int]
    lines: list[tuple[int, str]]
    replay_s: float
    checked: int
    recorded_digest: str
    replayed_digest: str


def run(args: argparse.Namespace) -> int:
    """Show recording and replaying; return 1 where they differ."""
    if args.what == "chronus":
        from tt.cli import demo_chronus

        return demo_chronus.run(args)
    with tempfile.TemporaryDirectory(prefix="tt-demo-") as folder:
        scratch = Path(folder)
        demo = play(free_name("demo") if args.keep else scratch / "demo.tt", scratch)
    if args.json:
        print_json(_facts(demo))
    else:
        for line in _tell(demo, args.keep):
            print(line)
    return 0 if demo.recorded_digest == demo.replayed_digest else 1


def play(trace_path: Path, scratch: Path) -> Demo:
    """Record the demo guest into `trace_path` and replay it; raises `Divergence` if they differ."""
    from tt.guests.denali import demo_guest
    from tt.log import Trace
    from tt.recording import record
    from tt.replay import Replay
    from tt.vmm.configure import configure_denali

    recording = record(configure_denali(demo_guest(scratch)), trace_path)
    with Trace.open(trace_path) as trace:
        first: dict[str, int] = {}
        for event in trace.events():
            first.setdefault(event.kind.name, event.tick)
        begin = time.monotonic()
        replay = Replay(trace)
        replay.finish()
        replay_s = time.monotonic() - begin
        recorded = [digest for _tick, digest in trace.digests()][-1]
        return Demo(
            trace_path,
            trace_path.stat().st_size,
            recording,
            first,
            [(tick, text) for tick, _unit, text in trace.console_lines()],
            replay_s,
            replay.checker.checked,
            hashlib.blake2b(recorded, digest_size=16).hexdigest(),
            replay.machine.digest().hex(),
        )


def _tell(demo: Demo, kept: bool) -> list[str]:
    recording = demo.recording
    counts = {kind.name: number for kind, number in recording.counts.items()}
    width = len(format_tick(recording.end_tick))
    bold, green, plain = ("\x1b[1m", "\x1b[32m", "\x1b[0m") if _colours() else ("", "", "")
    same = demo.recorded_digest == demo.replayed_digest
    lines = [
        f"{bold}Recorded{plain} {recording.guest_ns / 1e9:.1f} s of a guest's life "
        f"in {recording.host_s:.2f} s: {format_tick(recording.end_tick)} instructions (ticks).",
        "What happened to it is in the log, each event with its exact tick:",
        *(
            f"  {counts[name]:>{width},}  {what}, the first at tick {format_tick(demo.first_ticks[name])}"
            for name, what in _KINDS.items()
            if name in counts
        ),
        "",
        f"  {'tick':>{width}}  the guest printed",
        *(f"  {format_tick(tick):>{width}}  {_short(text)}" for tick, text in demo.lines[:_FIRST_LINES]),
        f"  {'...':>{width}}  ... {len(demo.lines) - _FIRST_LINES - _LAST_LINES} lines more, and at last",
        *(f"  {format_tick(tick):>{width}}  {_short(text)}" for tick, text in demo.lines[-_LAST_LINES:]),
        "",
        f"{bold}Replayed{plain} it from the log alone in {demo.replay_s:.2f} s, comparing all the way: "
        f"{demo.checked} of {sum(counts.values())} events agree.",
        f"  digest of CPU, memory, devices and disk, recorded  {demo.recorded_digest}",
        f"                                           replayed  {demo.replayed_digest}  "
        + (f"{green}equal{plain}" if same else "DIFFERENT: this is a bug in tt"),
        "",
        f"{bold}Try next{plain}"
        + (f" (the recording is {demo.trace}, {format_size(demo.size)})" if kept else ""),
    ]
    trace = demo.trace.name
    tries = {
        "tt demo --keep": "keep the recording: demo.tt",
        f"tt replay {trace} --to-tick 50%": "stand in the middle of it",
        f"tt events {trace} --limit 20": "the log, event by event",
        "tt guest build debian -o guests": "a Debian to record: tt record guests/debian.img",
    }
    if kept:
        del tries["tt demo --keep"]
    widest = max(map(len, tries))
    return lines + [f"  {command:<{widest}}  {what}" for command, what in tries.items()]


def _facts(demo: Demo) -> dict[str, object]:
    return {
        "trace": str(demo.trace) if demo.trace.exists() else None,
        "size": demo.size,
        "end_tick": demo.recording.end_tick,
        "guest_ns": demo.recording.guest_ns,
        "record_s": round(demo.recording.host_s, 3),
        "replay_s": round(demo.replay_s, 3),
        "kinds": {
            kind.name.lower().replace("_", "-"): n for kind, n in sorted(demo.recording.counts.items())
        },
        "checked": demo.checked,
        "recorded_digest": demo.recorded_digest,
        "replayed_digest": demo.replayed_digest,
        "console": [{"tick": tick, "text": text} for tick, text in demo.lines],
    }


def _short(text: str) -> str:
    return text if len(text) <= _LINE_WIDTH else text[: _LINE_WIDTH - 3] + "..."


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
