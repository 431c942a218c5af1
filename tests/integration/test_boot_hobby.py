"""The example kernel of examples/hobby-os: 32-bit, Multiboot, with every first step of a hobby kernel."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot, replays_exactly

from tt.log import Trace
from tt.replay import Replay, TraceSource, config_of
from tt.vmm import running
from tt.vmm.build import build_machine
from tt.vmm.config import MachineConfig
from tt.vmm.configure import configure_pc
from tt.vmm.disk_images import open_disks

SOURCES = Path(__file__).parents[2] / "examples" / "hobby-os"
BOOTED = """\
pci: slot 0 is 8086:1237, class 60000
pci: slot 1 is 1af4:1001, class 10000, a disk of 128 sectors at port 0xc040, irq 11
pci: slot 2 is 1af4:1005, class ff00
clock: 2023-11-14 22:13:20
disk: sector 0: Hello from sector 0 of the disk.
kernel: page fault at 0xd0000000, error 0x2: mapped a page there
memory: 0xd0000000 now holds 42
user: hello from ring 3
kernel: ring 3 program ends, its CS was 0x1b
"""


@pytest.fixture(scope="session")
def hobby(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with `hobby.elf` and `disk.img`."""
    for tool in ("make", "gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("hobby")
    for source in SOURCES.iterdir():
        if source.name == "Makefile" or source.suffix in (".c", ".h", ".S", ".ld"):
            shutil.copy(source, folder)
    done = subprocess.run(["make", "-C", folder, "hobby.elf", "disk.img"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def configured(hobby: Path, append: str = "", clock: str = "virtual") -> MachineConfig:
    disks = [hobby / "disk.img"]
    return configure_pc(
        hobby / "hobby.elf", mem_bytes=4 << 20, disks=disks, append=append, clock=clock, epoch=EPOCH
    )


def test_it_does_what_kernels_do(hobby: Path, tmp_path: Path) -> None:
    boot = Boot(configured(hobby, "run=sleep,halt"), tmp_path / "x.tt")
    first, _, rest = boot.console.partition("\n")
    assert first == 'hobby: magic 0x2badb002, 3072 KB above 1 MB, command line "run=sleep,halt"'
    assert rest.startswith(BOOTED)
    # A second of 100 Hz ticks, slept through with HLT: a second of guest time, few instructions.
    assert "timer: 101 ticks" in rest or "timer: 100 ticks" in rest
    assert 1_000_000_000 < boot.recording.guest_ns < 1_050_000_000
    assert boot.recording.end_tick < 1_000_000
    replays_exactly(tmp_path / "x.tt")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("halt", "halted with interrupts off"),
        ("crash", "halted with interrupts off"),
        ("triple", "triple fault"),
        ("reset", "reset"),
        ("cf9", "reset"),
    ],
)
def test_ends(hobby: Path, tmp_path: Path, command: str, reason: str) -> None:
    """How the machine ended is said, the tick is exact, and a replay ends in the same way."""
    config = configured(hobby, f"run={command}")
    boot = Boot(config, tmp_path / "x.tt")
    assert boot.recording.reason == reason
    crashed = "kernel: page fault at 0x4, error 0x2\nkernel: exception 14" in boot.console
    assert crashed == (command == "crash")
    assert Boot(config).recording.end_tick == boot.recording.end_tick
    with Trace.open(tmp_path / "x.tt") as trace:
        assert trace.end_tick == boot.recording.end_tick
        assert trace.summary["ended"] == reason
        last = list(trace.events())[-1]
        # A reset is asked for by an OUT: an event of that instruction, which is the last one.
        asked = trace.end_tick - 1 if reason == "reset" else trace.end_tick
        assert (last.tick, last.data.decode()) == (asked, reason)
    replays_exactly(tmp_path / "x.tt")


def test_a_spinning_guest_ends_at_the_tick_asked_for(hobby: Path, tmp_path: Path) -> None:
    boot = Boot(configured(hobby, "run=spin"), tmp_path / "x.tt", max_ticks=1_234_567)
    assert boot.recording.reason == "reached 1,234,567 ticks"
    assert boot.recording.end_tick == 1_234_567
    replays_exactly(tmp_path / "x.tt")


def test_typed_commands(hobby: Path, tmp_path: Path) -> None:
    script = ["", "sector 1", "sector 999", "fault", "user", "help", "halt"]
    boot = Boot(configured(hobby), tmp_path / "x.tt", script=script)
    assert boot.recording.reason == "halted with interrupts off"
    _, *answers = boot.console.split("> ")
    assert answers == [
        "\n",
        "sector 1\ndisk: sector 1: \n",
        "sector 999\ndisk: sector 999 cannot be read\n",
        "fault\nkernel: page fault at 0xd0001234, error 0x2: mapped a page there\n"
        "memory: 0xd0001234 now holds 42\n",
        "user\nuser: hello from ring 3\nkernel: ring 3 program ends, its CS was 0x1b\n",
        "help\ncommands: clock sleep sector fault crash user; halt triple reset cf9 spin end the machine\n",
        "halt\n",
    ]
    replays_exactly(tmp_path / "x.tt")


def test_the_host_clock_is_replayed(hobby: Path, tmp_path: Path) -> None:
    boot = Boot(configured(hobby, "run=sleep,clock,halt", clock="host"), tmp_path / "x.tt")
    assert boot.recording.reason == "halted with interrupts off"
    assert "clock: 2023" not in boot.console
    replays_exactly(tmp_path / "x.tt")


def test_stops_and_snapshots_anywhere(hobby: Path, tmp_path: Path) -> None:
    """Stopping, going back to a snapshot and dropping all translated code change nothing that comes after."""
    path = tmp_path / "x.tt"
    script = ["sleep", "sector", "fault", "user", "halt"]
    Boot(configured(hobby), path, script=script)
    choose = random.Random(5)
    with Trace.open(path) as trace:
        end = trace.end_tick
        stops = sorted(choose.sample(range(1, end), 200))
        replay = Replay(trace)
        straight = []
        for stop in stops:
            replay.run_to(stop)
            assert replay.tick == stop
            straight.append(replay.machine.digest())
        replay.finish()

        # Another machine makes the same way in loops: two stops forward, one back.
        plain = config_of(trace)
        machine = build_machine(plain, open_disks(plain))
        for i in range(0, len(stops) - 1, 2):
            machine.door.source = TraceSource(trace, machine.tick)
            running.run(machine, stops[i])
            assert machine.digest() == straight[i]
            snapshot = machine.snapshot()
            running.run(machine, stops[i + 1])
            assert machine.digest() == straight[i + 1]
            machine.restore(snapshot)
            machine.engine.forget_code()
            assert (machine.tick, machine.digest()) == (stops[i], straight[i])
            machine.door.source = TraceSource(trace, machine.tick)
            running.run(machine, stops[i + 1])
            assert machine.digest() == straight[i + 1]
