"""`tt demo chronus`: a web server breaks, and the write that broke it is found."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import format_size, print_json
from tt.cli.paths import free_name

if TYPE_CHECKING:
    from tt.chronus.search.bisect import Bisection, Probed
    from tt.chronus.why.finding import Finding

_GUEST = "demo-debian-1"  # in the cache; a new number when the demo needs a changed guest
PROBE = "wget -qO- http://127.0.0.1/ | grep -q 'It works'"
GUILTY = "/etc/httpd.conf"

# The commands that the server runs; one of them breaks it.
LIFE = """\
busy() { for n in $(seq 1 60); do echo "request $n" >> /var/log/app.log; [ $((n%12)) = 0 ] && sync; done; }
note() { for i in $(seq 1 12); do echo "$1 $i" >> /srv/notes; sync; sleep 1; done; }
busy; sleep 2
echo 'nameserver 192.0.2.53' > /etc/resolv.conf; sync; sleep 2
mkdir -p /srv/data; for i in $(seq 1 40); do head -c 2500 /dev/urandom > /srv/data/$i; done; sync; sleep 2
echo '0 4 * * * sync' >> /var/spool/cron/crontabs/root; sync; sleep 2
note early
sed -i 's|H:/var/www|H:/var/wwww|' /etc/httpd.conf; echo 'Welcome.' >> /etc/motd; sync; sleep 2
note later
rm -rf /srv/data; echo 'server' > /etc/hostname; sync; sleep 2
busy; sleep 2
"""


def run(args: argparse.Namespace) -> int:
    """Run the demo, and report what happens; return 1 where the guilty file is not found."""
    import tempfile

    say: Callable[[str], None] = (lambda line: None) if args.json else _say
    with tempfile.TemporaryDirectory(prefix="tt-demo-") as folder:
        path = free_name("demo-chronus") if args.keep else Path(folder) / "demo.tt"
        begin = time.monotonic()
        found, finding, facts = play(path, say)
        seconds = time.monotonic() - begin
        right = GUILTY in finding.paths
        if args.json:
            print_json(facts | {"seconds": round(seconds, 3), "found": right})
        else:
            say(f"\nFound in {seconds:.0f} s, with {found.ran} boots of the machine as it was.")
            if args.keep:
                say(f"The recording is {path}, {format_size(path.stat().st_size)}.  Try next")
                say(f"  chronus log {path}")
                say(f"  chronus blame {path} {GUILTY} -p")
            else:
                say("Try next: tt demo chronus --keep, and look around in it with chronus log, diff, blame")
    return 0 if right else 1


def play(path: Path, say: Callable[[str], None]) -> tuple[Bisection, Finding, dict[str, Any]]:
    """Record a server at work into `path`, find what broke it, and say why."""
    from tt.chronus.probes.guest import GuestProbe
    from tt.chronus.report.terminal import render
    from tt.chronus.runners.runner import setup_of
    from tt.chronus.search.bisect import Options, bisect
    from tt.chronus.store.history import History
    from tt.chronus.why.finding import explain
    from tt.cli.keyboard import script_lines
    from tt.recording import record
    from tt.vmm.configure import configure
    from tt.vmm.live import LiveSource, seeded_entropy

    image = _guest(say)
    say("A Debian machine serves a web page and is used: logs, notes, cron, edits of its configuration.")
    begin = time.monotonic()
    recording = record(
        configure(image, epoch=1_763_900_000), path, LiveSource(script=script_lines(LIFE.encode())),
        entropy=seeded_entropy(1),
    )  # fmt: skip
    with History.open(path) as history:
        groups = history.bursts()
        say(
            f"Recorded {recording.guest_ns / 1e9:.0f} s of it in {time.monotonic() - begin:.0f} s: "
            f"{history.count} disk writes in {len(groups)} bursts.  At the end the page is gone.  "
            "When did it break?\n"
        )
        say(f'$ chronus bisect {path.name} --good b1 --bad end --guest "{PROBE}" --bursts')

        def show(probed: Probed) -> None:
            say(f"{probed.verdict.outcome.value:<6} {history.describe(probed.instant)}")

        probe = GuestProbe(PROBE, "tt", setup_of(history, timeout_s=60))
        found = bisect(
            history, probe, groups[0].after, history.count, Options(bursts=True, keep=False),
            on_probe=show, say=say,
        )  # fmt: skip
        finding = explain(history, found.turns[0], None, found)
        say("")
        for line in render(history, found, [finding], colours=sys.stdout.isatty()):
            say(line)
        facts = {
            "trace": str(path),
            "writes": history.count,
            "bursts": len(groups),
            "probes": found.ran,
            "turn": [found.turns[0].before, found.turns[0].after],
            "files": finding.paths,
        }
    return found, finding, facts


def _guest(say: Callable[[str], None]) -> Path:
    """Return the Debian guest's image, built the first time; raises `BadInput` where that cannot be."""
    from tt.guests import debian
    from tt.guests.apt import cache_directory

    folder = cache_directory() / _GUEST
    if not (folder / "debian.img").exists():
        say("First a Debian guest is built (once; it is kept):")
        debian.build(folder, lambda line: say(f"  {line}"))
    return folder / "debian.img"


def _say(line: str) -> None:
    print(line, flush=True)
