#!/usr/bin/env python3
"""NBD throughput of tt's server, over a raw file and over a live time-travel disk, beside nbdkit and qemu-nbd.

    python benchmarks/nbd.py [--rounds N] [--size MB] [--json]

Each contender serves a file of random bytes of its own on a unix socket.  The clients are qemu-img bench
(4 KB 64 deep, 64 KB 16 deep), nbdcopy, and qemu-img convert, reading and writing, with one run of each contender
a round; a ratio is nbdkit's time divided by the contender's, so that 1 is as quick and 0.5 half as quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from side_by_side import ROOT, Run, ratio, spread, take_turns

READ_BAR, WRITE_BAR = 0.8, 0.5
RAW, LIVE, NBDKIT, QEMU = "tt, raw file", "chronus serve", "nbdkit", "qemu-nbd"
_RAW_SERVER = """
import signal, sys
from pathlib import Path
from tt.chronus.nbd import RawFileExport, serving
sys.setswitchinterval(0.0005)
with serving([RawFileExport(Path(sys.argv[1]))], sys.argv[2]):
    signal.pause()
"""


def main() -> int:
    """Measure and print; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, metavar="MB")
    parser.add_argument("--count", type=int, default=60_000, help="requests of 4 KB of a run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for tool in ("nbdkit", "qemu-nbd", "qemu-img", "nbdcopy"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: apt-get install nbdkit qemu-utils libnbd-bin")
    with tempfile.TemporaryDirectory(prefix="nbd-") as name, ExitStack() as stack:
        folder = Path(name)
        source = folder / "source.img"
        with source.open("wb") as file:
            for _ in range(args.size):
                file.write(os.urandom(1 << 20))
        urls = {who: stack.enter_context(_served(who, folder, source)) for who in (RAW, LIVE, NBDKIT, QEMU)}
        results = []
        for what, command, is_write in _works(folder, source, args.count):
            runs = take_turns({who: _timed(command, url) for who, url in urls.items()}, args.rounds)
            bar = WRITE_BAR if is_write else READ_BAR
            for who in urls:
                found = ratio(runs[NBDKIT], runs[who])
                good = found.median >= bar if who in (RAW, LIVE) else None
                results.append(
                    {
                        "work": what,
                        "server": who,
                        "seconds": spread(runs[who]).median,
                        "ratio": found.median,
                        "low": found.low,
                        "high": found.high,
                        "bar": bar,
                        "good": good,
                    }
                )
                if not args.json:
                    mark = {True: f"  >= {bar}", False: f"  MISSED {bar}", None: ""}[good]
                    print(
                        f"{what:32} {who:14} {spread(runs[who]).show(3)} s  x {found.show()}{mark}", flush=True
                    )
    if args.json:
        print(json.dumps({"results": results}))
    return 0 if all(result["good"] is not False for result in results) else 1


def _works(
    folder: Path, source: Path, count: int
) -> Iterator[tuple[str, Callable[[str], list[str]], bool]]:
    """Yield (name, command for a URL, whether it writes)."""
    out = folder / "out.img"
    out.touch()
    os.truncate(out, source.stat().st_size)
    for is_write in (False, True):
        flags = ["-w", "--pattern=85"] if is_write else []
        verb = "write" if is_write else "read"
        for size, depth, requests in (("4k", 64, count), ("64k", 16, count // 4)):
            bench = ["qemu-img", "bench", "-f", "raw", "-c", str(requests), "-d", str(depth), "-s", size, *flags]
            step = ["-S", str(37 * 4096)]  # neighbouring requests may be joined by a server: these may not
            yield f"bench {verb} {size} x{depth}", lambda url, c=bench: [*c, url], is_write  # type: ignore[misc]
            if size == "4k":
                yield f"bench {verb} {size} x{depth} far", lambda url, c=bench: [*c, *step, url], is_write  # type: ignore[misc]
    yield "nbdcopy read", lambda url: ["nbdcopy", url, "null:"], False
    yield "nbdcopy write", lambda url: ["nbdcopy", "--flush", str(source), url], True
    convert = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]
    yield "qemu-img convert read", lambda url: [*convert, url, str(out)], False
    yield "qemu-img convert write", lambda url: [*convert, str(source), url], True


def _timed(command: Callable[[str], list[str]], url: str) -> Callable[[], Run]:
    def run() -> Run:
        begin = time.perf_counter()
        done = subprocess.run(command(url), capture_output=True, timeout=300)
        if done.returncode:
            sys.exit(f"{' '.join(command(url))}: {done.stderr.decode(errors='replace')}")
        return Run(time.perf_counter() - begin, 0.0)

    return run


@contextmanager
def _served(who: str, folder: Path, source: Path) -> Iterator[str]:
    """Serve a copy of `source`; yield its URL."""
    short = "".join(letter for letter in who if letter.isalpha())
    image, path = folder / f"{short}.img", folder / f"{short}.sock"
    shutil.copyfile(source, image)
    command = {
        RAW: [sys.executable, "-c", _RAW_SERVER, str(image), f"unix:{path}"],
        LIVE: [sys.executable, "-m", "tt.cli.chronus.main", "serve", str(folder / "disk.tt")]
        + ["--base", str(image), "--listen", f"unix:{path}"],
        NBDKIT: ["nbdkit", "-f", "-U", str(path), "file", str(image)],
        QEMU: ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "--cache=writeback", "-k", str(path), str(image)],
    }[who]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{who} does not serve")
            time.sleep(0.05)
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait(300)


if __name__ == "__main__":
    sys.exit(main())
