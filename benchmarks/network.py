"""TCP between a Debian guest and the host, through passt: tt recorded and not, QEMU with and without rr.

    python benchmarks/network.py [--rounds 5] [--size 32] [--requests 500]

The same guest, card (virtio-net), command line and passt for all.  The guest fetches `--size` MB of
random bytes from the host and sends them back (busybox nc), answers short messages on one connection
(nc running cat), and serves pages (busybox httpd).  The host takes the times, from a connection to its
end, so that neither booting nor the guest's idea of time counts.  CPU is that of the machine's
process, without passt's and the host program's.

QEMU counts one instruction a nanosecond (`-icount shift=0`), tt four nanoseconds (its default).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import side_by_side as bench

HOST_IP = "10.0.2.2"
MAC = "52:54:00:74:00:00"
PROMPT = b"root@debian:~# "
WHERE = b"\x1b[6n"  # with which busybox's shell asks the terminal where its cursor is
MB = 1 << 20
TIMEOUT_S = 180
BAR_QEMU, BAR_RECORDING, BAR_BYTES = 1.0, 1.10, 1.1
RATES = {
    "in": "to the guest, MB/s",
    "out": "from the guest, MB/s",
    "echo": "round trips/s",
    "http": "pages/s",
}


class Host:
    """The host's side of the conversation: listens at ports of its own, and keeps the times."""

    def __init__(self, size: int, requests: int) -> None:
        self.size, self.requests, self.pages = size, requests, _pages(requests)
        self.blob = random.Random(1).randbytes(size)
        self.listening = {name: _listen() for name in ("in", "out", "echo")}
        with _listen() as probe:  # freed again: for passt
            self.forwarded: int = probe.getsockname()[1]

    def script(self) -> list[bytes]:
        """Return what is typed into the guest, a line at each prompt."""
        port = {name: each.getsockname()[1] for name, each in self.listening.items()}
        return [
            f"nc {HOST_IP} {port['in']} > /tmp/blob\n".encode(),
            f"nc {HOST_IP} {port['out']} < /tmp/blob\n".encode(),
            f"nc {HOST_IP} {port['echo']} -e cat\n".encode(),
        ]

    def talk(self, pid: int) -> dict[str, float]:
        """Do all in its order with the machine in process `pid`; return wall and CPU seconds of each."""
        facts: dict[str, float] = {}
        for name, work in (("in", self._give), ("out", self._take)):
            with self._accepted(name, pid) as peer, _timed(facts, name, pid):
                work(peer)
        with self._accepted("echo", pid) as peer:
            with _timed(facts, "echo", pid):
                self._echo(peer)
            with _timed(facts, "http", pid):  # now, for the guest is done when `peer` is closed
                self._browse()
        return facts

    def close(self) -> None:
        """Close the ports."""
        for each in self.listening.values():
            each.close()

    def _give(self, peer: socket.socket) -> None:
        peer.sendall(self.blob)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(4096):
            pass

    def _take(self, peer: socket.socket) -> None:
        left = self.size
        got = bytearray()
        while left and (piece := peer.recv(MB)):
            got += piece
            left -= len(piece)
        if got != self.blob:
            raise SystemExit(f"the guest sent other bytes back than it got ({len(got):,} of {self.size:,})")

    def _echo(self, peer: socket.socket) -> None:
        for number in range(self.requests):
            message = number.to_bytes(64, "big")
            peer.sendall(message)
            if peer.recv(64, socket.MSG_WAITALL) != message:
                raise SystemExit("the guest answered something else")

    def _browse(self) -> None:
        for _ in range(self.pages):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.forwarded}/", timeout=TIMEOUT_S) as page:
                page.read()

    @contextlib.contextmanager
    def _accepted(self, name: str, pid: int) -> Iterator[socket.socket]:
        listening = self.listening[name]
        for _ in range(TIMEOUT_S):
            if select.select([listening], [], [], 1)[0]:
                break
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                raise SystemExit(f"the machine ended before it connected ({name}): has its guest a network?")
        else:
            raise SystemExit(f"the guest did not connect within {TIMEOUT_S} s ({name})")
        peer, _ = listening.accept()
        with peer:
            peer.settimeout(TIMEOUT_S)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield peer


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@contextlib.contextmanager
def _timed(facts: dict[str, float], name: str, pid: int) -> Iterator[None]:
    wall, cpu = time.perf_counter(), _cpu_s(pid)
    yield
    facts[name] = time.perf_counter() - wall
    facts[f"{name}_cpu"] = max(_cpu_s(pid) - cpu, 1 / os.sysconf("SC_CLK_TCK"))  # as fine as it is counted


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- tt


def record(
    image: str, out: str, forwarded: int, script: list[str], checkpoint_ticks: int | None
) -> dict[str, Any]:
    """Record a guest that is told `script`, or run it the same way with logging off; return some facts."""
    import sqlite3

    import tt.recording
    from tt.log import Trace
    from tt.net.spec import cards, connect, parse_net
    from tt.vmm.configure import configure_pc
    from tt.vmm.live import LiveSource, seeded_entropy

    specs = [parse_net(f"user,mac={MAC},forward={forwarded}-80")]
    network = connect(specs)
    source = LiveSource(pace=True, script=[line.encode() for line in script], network=network)
    try:
        result = tt.recording.record(
            configure_pc(Path(image), epoch=bench.EPOCH, nets=cards(specs, "pc")),
            Path(out) if out else None, source, overwrite=True, entropy=seeded_entropy(1),
            timeout_s=2 * TIMEOUT_S, checkpoint_ticks=checkpoint_ticks,
        )  # fmt: skip
    finally:
        network.close()
    cable = network.cables[0]
    facts = {
        "ticks": result.end_tick, "reason": result.reason, "frames": cable.received + cable.sent,
        "dropped": cable.dropped + cable.end.lost,
    }  # fmt: skip
    if out:
        with Trace.open(Path(out)) as trace:
            facts["traffic"] = sum(len(frame.data) for frame in trace.frames())
        db = sqlite3.connect(out)
        packs = db.execute("SELECT sum(raw_size), sum(length(packed)), count(*) FROM frame_packs").fetchone()
        chunks = db.execute("SELECT sum(raw_size), sum(length(packed)) FROM chunks").fetchone()
        db.close()
        facts |= {"raw": packs[0] + chunks[0], "packed": packs[1] + chunks[1]}
        facts["file"] = Path(out).stat().st_size
    return facts


def run_tt(image: Path, out: Path | None, host: Host, checkpoint_ticks: int | None = None) -> bench.Run:
    """Run tt in a process of its own."""
    what = {
        "image": str(image), "out": str(out or ""), "forwarded": host.forwarded,
        "script": [line.decode() for line in host.script()], "checkpoint_ticks": checkpoint_ticks,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(bench.ROOT)}
    command = [sys.executable, __file__, "--one", json.dumps(what)]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            facts = host.talk(process.pid)
            said, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"tt ended with code {process.returncode}")
    return bench.Run(time.perf_counter() - begin, facts["in_cpu"], facts | json.loads(said.splitlines()[-1]))


# ---- QEMU


def qemu_command(program: str, image: Path, cmdline: str, peer: int, log: Path | None) -> list[str]:
    """Return the command line of a QEMU whose card is connected to the socket `peer`; `log`: recording."""
    disk = f"file={image},format=raw,if=none,snapshot=on,id="
    command = [
        program,
        *("-machine", "pc,acpi=off", "-cpu", "qemu64", "-m", "256"),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image.with_name("vmlinuz")), "-initrd", str(image.with_name("initrd.img"))),
        *("-append", cmdline),
        *("-netdev", f"stream,id=net,server=off,addr.type=fd,addr.str={peer}"),
        *("-device", "virtio-blk-pci,disable-modern=on,drive=disk"),
        *("-device", f"virtio-net-pci,disable-modern=on,netdev=net,mac={MAC},romfile="),
    ]
    if log is None:
        return [*command, "-icount", "shift=0", "-drive", f"{disk}disk"]
    command += ["-drive", f"{disk}base", "-drive", "driver=blkreplay,if=none,image=base,id=disk"]
    command += ["-object", "filter-replay,id=replay,netdev=net"]
    return [*command, "-icount", f"shift=0,rr=record,rrfile={log}"]


def run_qemu(program: str, image: Path, cmdline: str, log: Path | None, host: Host) -> bench.Run:
    """Run QEMU with a passt of its own, typing the script at the prompts."""
    from tt.net.passt import Passt, parse_forward

    passt = Passt([parse_forward(f"{host.forwarded}:80")])
    peer = os.dup(passt.fileno())
    begin = time.perf_counter()
    errors = image.with_name("qemu.err")
    with errors.open("w") as said:
        process = subprocess.Popen(
            qemu_command(program, image, cmdline, peer, log),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, pass_fds=[peer],
        )  # fmt: skip
    typing = threading.Thread(target=_type, args=(process, host.script()), daemon=True)
    try:
        typing.start()
        facts: dict[str, Any] = dict(host.talk(process.pid))
    except (OSError, SystemExit) as e:
        sys.exit(f"{e}; QEMU said: {errors.read_text()[-500:]!r}")
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        typing.join()
        os.close(peer)
        passt.close()
    if log is not None:
        facts["file"] = log.stat().st_size
    return bench.Run(time.perf_counter() - begin, facts["in_cpu"], facts)


def _type(process: subprocess.Popen[bytes], script: list[bytes]) -> None:
    """Type a line at each prompt, and read on until the end."""
    assert process.stdin is not None and process.stdout is not None
    lines, printed = list(script), b""
    while data := os.read(process.stdout.fileno(), 1 << 16):
        printed += data
        if lines and printed.removesuffix(WHERE).endswith(PROMPT):
            printed = b""
            line = lines.pop(0)
            for at in range(0, len(line), 8):  # a QEMU that records loses what does not fit into its UART
                process.stdin.write(line[at : at + 8])
                process.stdin.flush()
                time.sleep(0.05)


# ---- the page


def main() -> None:
    """Run the benchmark."""
    parser = bench.arguments(__doc__ or "", rounds=5, ticks=False)
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the QEMU to compare with; '' for none")
    parser.add_argument("--size", type=float, default=32, help="MB each way (default 32)")
    parser.add_argument("--requests", type=int, default=500, help="round trips; a tenth as many pages")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(record(**json.loads(options.one))))
        return
    if shutil.which("passt") is None:
        sys.exit("passt is not installed (apt install passt)")
    program = shutil.which(options.qemu) if options.qemu else None
    from tt.vmm.configure import configure_pc

    guest = bench.debian_guest(options.guest)
    # With the entry's own `pci=conf1` QEMU would use MSI, which tt's machine does not have.
    cmdline = configure_pc(guest / "debian.img", epoch=bench.EPOCH).cmdline
    cmdline = cmdline.replace("pci=conf1", "pci=conf1,nomsi")
    with bench.scratch() as folder:
        for name in ("debian.img", "vmlinuz", "initrd.img"):
            (folder / name).symlink_to((guest / name).resolve())
        image = folder / "debian.img"

        def one(run: Callable[[Host], bench.Run]) -> bench.Run:
            host = Host(int(options.size * MB), options.requests)
            try:
                return run(host)
            finally:
                host.close()

        contenders: dict[str, Callable[[], bench.Run]] = {
            "tt, recorded": lambda: one(lambda host: run_tt(image, folder / "net.tt", host)),
            "tt, no checkpoints": lambda: one(lambda host: run_tt(image, folder / "net.tt", host, 0)),
            "tt, not recorded": lambda: one(lambda host: run_tt(image, None, host)),
        }
        if program is not None:
            qemu = program
            contenders["QEMU -icount"] = lambda: one(lambda h: run_qemu(qemu, image, cmdline, None, h))
            log = folder / "net.rr"
            contenders["QEMU -icount, rr=record"] = lambda: one(
                lambda host: run_qemu(qemu, image, cmdline, log, host)
            )
        runs = bench.take_turns(contenders, options.rounds)
    report(options.json, runs, int(options.size * MB), options.requests)


def report(as_json: bool, runs: dict[str, list[bench.Run]], size: int, requests: int) -> None:
    """Print what was measured."""
    amounts = {"in": size / MB, "out": size / MB, "echo": requests, "http": _pages(requests)}
    rates = bench.Table("Rates, by the host's clock", ("machine", *RATES.values()))
    cpu = bench.Table(
        "CPU seconds of the machine's process", ("machine", *(RATES[n].split(",")[0] for n in RATES))
    )
    for name, these in runs.items():
        speeds = [bench.Spread.of([amounts[what] / run.facts[what] for run in these]) for what in RATES]
        rates.add(name, *(each.show(1) for each in speeds))
        cpu.add(name, *(bench.spread(these, f"{what}_cpu").show() for what in RATES))
    recorded, plain = runs["tt, recorded"], runs["tt, not recorded"]
    facts: dict[str, Any] = {"runs": runs}
    names = [text.split(",")[0] for text in RATES.values()]
    ratios = bench.Table("Ratios of rates, round by round", ("ratio", *names, "bar"))
    for other in [name for name in runs if name.startswith("QEMU")]:
        pairs = [bench.ratio(runs[other], recorded, what) for what in RATES]
        ratios.add(f"tt, recorded / {other}", *(each.show() for each in pairs), f"at least {BAR_QEMU}")
        facts[f"tt, recorded / {other}"] = dict(zip(RATES, pairs, strict=True))
    costs = bench.Table("What recording costs: seconds, against those of tt, not recorded", ratios.columns)
    for name in ("tt, no checkpoints", "tt, recorded"):
        for clock, end in (("the host's clock", ""), ("CPU", "_cpu")):
            pairs = [bench.ratio(runs[name], plain, what + end) for what in RATES]
            costs.add(f"{name}: {clock}", *(each.show() for each in pairs), f"at most {BAR_RECORDING}")
            facts[f"{name} / not recorded: {clock}"] = dict(zip(RATES, pairs, strict=True))
    sizes = bench.Table("The trace", ("bytes", "per byte of traffic", "bar"))
    last = recorded[-1].facts
    sizes.add("frames and events, before compression", _per(last, "raw"), f"at most {BAR_BYTES}")
    sizes.add("frames and events, as stored", _per(last, "packed"), "")
    sizes.add("the file, without checkpoints", _per(runs["tt, no checkpoints"][-1].facts, "file"), "")
    sizes.add("the file", _per(last, "file"), "")
    bench.report(as_json, [rates, cpu, ratios, costs, sizes], facts)
    if not as_json:
        counts = [run.facts["dropped"] for run in recorded]
        print(
            f"{last['frames']:,} frames of {last['traffic']:,} bytes in all, "
            f"{last['traffic'] / last['frames']:,.0f} each; {max(counts):,} lost at most."
        )


def _per(facts: dict[str, Any], what: str) -> str:
    return f"{facts[what] / facts['traffic']:.3f}"


def _pages(requests: int) -> int:
    return max(1, requests // 10)


if __name__ == "__main__":
    main()
