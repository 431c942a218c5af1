#!/usr/bin/env python3
"""NBD throughput of tt, over a raw file and over a live time-travel disk, beside nbdkit and qemu-nbd.

    python benchmarks/nbd.py [--rounds N] [--size MB] [--only TEXT] [--json]

Each contender serves a file of random bytes of its own on a unix socket, started anew for each kind of
work.  The clients are qemu-img bench (4 KB 64 deep, 64 KB 16 deep; "far": requests that are far from each
other), nbdcopy, and qemu-img convert, reading and writing, with a flush at the end.  A ratio is nbdkit's time
divided by the contender's: 1 is as fast, 0.5 half as fast.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from side_by_side import ROOT, Run, Table, arguments, ratio, report, scratch, spread, take_turns

READ_BAR, WRITE_BAR = 0.8, 0.9
RAW, LIVE, NBDKIT, QEMU = "tt, raw file", "chronus serve", "nbdkit", "qemu-nbd"
CONTENDERS = (RAW, LIVE, NBDKIT, QEMU)
_FAR = 37  # blocks from one request to the next
_RAW_SERVER = """
import signal, sys
from pathlib import Path
from tt.chronus.nbd import RawFileExport, serving
sys.setswitchinterval(0.0005)
with serving([RawFileExport(Path(sys.argv[1]))], sys.argv[2]):
    signal.pause()
"""


def main() -> int:
    """Measure and print."""
    parser = arguments(__doc__ or "", 5)
    parser.add_argument("--size", type=int, default=256, metavar="MB", help="of the disk (default 256)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the work with this in its name")
    args = parser.parse_args()
    for tool in ("nbdkit", "qemu-nbd", "qemu-img", "nbdcopy"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: apt-get install nbdkit qemu-utils libnbd-bin")
    size = 4 if args.ticks else args.size
    table = Table(
        f"NBD: seconds for {size} MB, and how quick that is beside nbdkit",
        ("work", "server", "seconds", "ratio", "bar"),
    )
    everything = []
    with scratch() as folder:
        source = folder / "source.img"
        with source.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1 << 20))
        for what, command, is_write in _works(folder, source):
            if args.only not in what:
                continue
            with ExitStack() as stack:
                urls = {who: stack.enter_context(_served(who, folder, source)) for who in CONTENDERS}
                runs = take_turns(
                    {who: partial(_time, command, url) for who, url in urls.items()}, args.rounds
                )
            bar = WRITE_BAR if is_write else READ_BAR
            everything.append({"work": what, "bar": bar, "servers": runs})
            for who in CONTENDERS:
                found = ratio(runs[NBDKIT], runs[who])
                verdict = f">= {bar}" if found.median >= bar else f"below {bar}"
                verdict = verdict if who in (RAW, LIVE) else ""
                table.add(what, who, spread(runs[who]).show(3), found.show(), verdict)
    report(args.json, [table], {"runs": everything})
    return 0


def _works(folder: Path, source: Path) -> Iterator[tuple[str, Callable[[str], list[str]], bool]]:
    """Yield (name, command for a URL, whether it writes)."""
    out = folder / "out.img"
    out.touch()
    os.truncate(out, source.stat().st_size)
    bench = ["qemu-img", "bench", "-f", "raw"]
    for verb, pattern in (("read", []), ("write", ["-w", "--pattern=85"])):
        for size, depth, far in ((4096, 64, False), (4096, 64, True), (65536, 16, False)):
            requests = ["-c", str(source.stat().st_size // size), "-d", str(depth), "-s", str(size)]
            requests += ["-S", str(_FAR * size)] if far else []
            name = f"bench {verb} {size >> 10}k x{depth}{' far' if far else ''}"
            yield name, _with([*bench, *requests, *pattern]), verb == "write"
    yield "nbdcopy read", lambda url: ["nbdcopy", url, "null:"], False
    yield "nbdcopy write", lambda url: ["nbdcopy", "--flush", str(source), url], True
    convert = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]
    yield "qemu-img convert read", lambda url: [*convert, url, str(out)], False
    yield "qemu-img convert write", _with([*convert, str(source)]), True


def _with(words: list[str]) -> Callable[[str], list[str]]:
    return lambda url: [*words, url]


def _time(command: Callable[[str], list[str]], url: str) -> Run:
    begin = time.perf_counter()
    done = subprocess.run(command(url), capture_output=True, timeout=300)
    if done.returncode:
        sys.exit(f"{' '.join(command(url))}: {done.stderr.decode(errors='replace')}")
    return Run(time.perf_counter() - begin, 0.0)


@contextmanager
def _served(who: str, folder: Path, source: Path) -> Iterator[str]:
    """Serve a copy of `source`; yield its URL."""
    if who == LIVE:
        (folder / "disk.tt").unlink(missing_ok=True)
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
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
