#!/usr/bin/env python3
"""Make the golden traces of the current format version; the tests replay all that were ever made.

    python traces/make.py [FOLDER]

writes `denali-demo-v<version>.tt` (the whole demo on a small blank disk, ended
by the guest), `denali-cut-v<version>.tt` (the same, cut off: not sealed),
`denali-parents-v<version>.tt` (the demo's disk and console have parents) and
`denali-frames-v<version>.tt` (a card of each model; one is unplugged for a while) into
FOLDER, by default this one.  The two of a pc, which ran `examples/hobby-os` without a
disk (`run=sleep,halt`), were recorded by hand, one of them before a pc's devices were
as firmware leaves them.  A trace that exists is never replaced: traces of
old versions are what shows that they still open.  See docs/trace-format.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tt.guests import denali
from tt.log import Trace, TraceWriter
from tt.log.schema import VERSION
from tt.recording import record
from tt.replay import verify
from tt.vmm.config import DiskConfig
from tt.vmm.configure import configure_denali
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine
from tt.vmm.messages import ConsoleInput, DiskRead, DiskSize, DiskWrite
from tt.vmm.router import Call

DISK_BYTES = 5 * 4096
EPOCH = 1_700_000_000
TYPED = b"golden\n"


def main(folder: Path) -> None:
    """Make what is missing."""
    whole, cut = (folder / f"denali-{name}-v{VERSION}.tt" for name in ("demo", "cut"))
    with tempfile.TemporaryDirectory() as scratch:
        config = configure_denali(denali.build(Path(scratch)), epoch=EPOCH)
    config = replace(config, disks=(DiskConfig("", DISK_BYTES, ""),))
    if not whole.exists():
        source = LiveSource()
        source.type(TYPED)
        record(config, whole, source, checkpoint_ticks=6_000_000)
    if not cut.exists():
        with Trace.open(whole) as trace, TraceWriter(cut, trace.meta) as writer:
            cut_off(trace, writer)
    parents = folder / f"denali-parents-v{VERSION}.tt"
    if not parents.exists():
        source = LiveSource()
        source.type(TYPED)
        record(config, parents, source, checkpoint_ticks=9_000_000, on_start=with_parents)
    frames = folder / f"denali-frames-v{VERSION}.tt"
    if not frames.exists():
        with_frames(frames)
    for path in (whole, cut, parents, frames):
        with Trace.open(path) as trace:
            assert verify(trace).good, path
            print(f"{path}: {path.stat().st_size:,} bytes, {trace.end_tick:,} ticks")


def with_frames(path: Path) -> None:
    """Record a guest that passes frames to and fro with a network that is a few lines of Python."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))
    from denali_net_rig import Wires, build_pingpong, net_config, player, record_net

    with tempfile.TemporaryDirectory() as scratch:
        config = net_config(build_pingpong(Path(scratch)), "denali", "classic")
    unplugged = [(500_000, 1, False), (900_000, 1, True)]
    record_net(config, path, Wires(player(), unplugged))


def with_parents(machine: Machine) -> None:
    """Put parents before the disk (late, and with a copy of each write) and the console (in capitals)."""

    def disk(call: Call) -> None:
        if isinstance(call.message, DiskSize):
            call.pass_on()
            return
        if isinstance(call.message, DiskWrite):
            call.ask(DiskWrite(4 * 8, call.message.data))
        if isinstance(call.message, DiskRead) and call.message.lba == 0:
            call.ask(call.message, lambda data: call.after(70_000, lambda: call.answer(data or b"")))
        else:
            call.after(100_000, call.pass_on)

    def console(call: Call) -> None:
        message = call.message
        if isinstance(message, ConsoleInput):
            call.pass_on(ConsoleInput(message.data.swapcase()))
        else:
            call.pass_on()

    machine.router.interpose("disk0", disk)
    machine.router.interpose("console0", console)


def cut_off(trace: Trace, writer: TraceWriter) -> None:
    """Copy the first half of a trace, and leave it unsealed."""
    tick = trace.end_tick // 2
    for name in trace.files:
        writer.add_file(name, trace.file(name))
    writes = {write.event: write.data() for write in trace.disk_writes()}
    for number, event in trace.numbered_events():
        if event.tick < tick:
            writer.add(event._replace(data=writes.get(number, event.data)))
    writer.commit(tick)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
