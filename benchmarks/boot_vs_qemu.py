"""Debian's kernel, booted to a shell: recorded and replayed by tt, and by QEMU's own record/replay.

The same kernel, initrd, disk image and command line for both, each a whole
process from exec to exit.  QEMU counts one instruction a nanosecond
(`-icount shift=0`), tt four nanoseconds an instruction (its default), so tt's
guest time runs faster and Linux takes more timer interrupts in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import side_by_side as bench

from tt.log import Trace
from tt.vmm.configure import configure_pc

PROMPT = b"root@debian:~#"


def qemu_command(program: str, guest: Path, image: Path, cmdline: str, mode: str, log: Path) -> list[str]:
    """Return the command line of a QEMU that records or replays a boot."""
    return [
        program,
        *("-machine", "pc,acpi=off", "-cpu", "qemu64", "-m", "256"),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-icount", f"shift=0,rr={mode},rrfile={log}"),
        *("-kernel", str(guest / "vmlinuz"), "-initrd", str(guest / "initrd.img"), "-append", cmdline),
        *("-drive", f"file={image},format=raw,if=none,snapshot=on,id=base"),
        *("-drive", "driver=blkreplay,if=none,image=base,id=disk"),
        *("-device", "virtio-blk-pci,disable-modern=on,drive=disk"),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = bench.arguments(__doc__ or "", rounds=4)
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the QEMU to compare with")
    options = parser.parse_args()
    program = shutil.which(options.qemu)
    if program is None and options.ticks is None:
        sys.exit(f"{options.qemu} is not installed (Debian: qemu-system-x86)")
    guest = bench.debian_guest(options.guest)
    image = guest / "debian.img"
    # With the entry's own `pci=conf1` QEMU would use MSI, which tt's machine does not have.
    cmdline = configure_pc(image, epoch=bench.EPOCH).cmdline.replace("pci=conf1", "pci=conf1,nomsi")
    with bench.scratch() as folder:
        trace, log = folder / "boot.tt", folder / "boot.rr"
        record = bench.tt_run("record", guest=image, out=trace, ticks=options.ticks, epoch=bench.EPOCH)
        contenders = {
            "tt record": lambda: bench.run_process(record),
            "tt replay": lambda: bench.run_process(bench.tt_run("replay", trace=trace)),
        }
        if program is not None and options.ticks is None:
            qemu = {m: qemu_command(program, guest, image, cmdline, m, log) for m in ("record", "replay")}
            contenders = {
                "tt record": contenders["tt record"],
                "QEMU record": lambda: bench.run_process(qemu["record"], until=PROMPT),
                "tt replay": contenders["tt replay"],
                "QEMU replay": lambda: bench.run_process(qemu["replay"], until=PROMPT),
            }
        for contender in contenders.values():  # warms up the page cache, and makes the recordings to replay
            contender()
        runs = bench.take_turns(contenders, options.rounds)
        with Trace.open(trace) as opened:
            ticks, log_size = opened.end_tick, opened.event_log_size
        qemu_log_size = log.stat().st_size if log.exists() else 0
    report(options.json, program, runs, ticks, log_size, qemu_log_size)


def report(
    as_json: bool,
    program: str | None,
    runs: dict[str, list[bench.Run]],
    ticks: int,
    log_size: int,
    qemu_log: int,
) -> None:
    """Print what was measured."""
    version = "no QEMU"
    if qemu_log:
        said = subprocess.run([str(program), "--version"], capture_output=True, text=True).stdout
        found = re.search(r"version (\S+)", said)
        version = f"QEMU {found[1] if found else '?'} TCG -icount shift=0"
    times = bench.Table(
        f"Debian boot to a shell, {ticks:,} ticks in tt; {version}", ("whole process", "wall s", "CPU s")
    )
    for name, these in runs.items():
        times.add(name, bench.spread(these).show(), bench.spread(these, "cpu_s").show())
    ratios = bench.Table("Ratios, round by round", ("ratio", "wall", "CPU", "bar"))
    facts: dict[str, object] = {"ticks": ticks, "qemu": version, "runs": runs, "event_log_bytes": log_size}
    for these, those, bar in (
        ("tt record", "QEMU record", "0.75 / 0.90"),
        ("tt replay", "QEMU replay", ""),
        ("tt replay", "tt record", "1.00"),
        ("QEMU replay", "QEMU record", ""),
    ):
        if these in runs and those in runs:
            pair = [bench.ratio(runs[these], runs[those], what) for what in ("wall_s", "cpu_s")]
            ratios.add(f"{these} / {those}", *(each.show() for each in pair), bar)
            facts[f"{these} / {those}"] = {"wall": pair[0], "cpu": pair[1]}
    logs = bench.Table("Event log", ("log", "bytes", "B per 1000 instructions", "bar"))
    logs.add("tt", f"{log_size:,}", f"{log_size * 1000 / ticks:.4f}", "0.1")
    if qemu_log:
        facts["qemu_log_bytes"] = qemu_log
        logs.add(version.split(" TCG")[0], f"{qemu_log:,}", "", "")
    bench.report(as_json, [times, ratios, logs], facts)


if __name__ == "__main__":
    main()
