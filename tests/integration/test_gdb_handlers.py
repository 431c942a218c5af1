"""Steps go past the handlers of interrupts, both ways; on both machines, in 32 and in 64 bits."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from gdb_rig import ROOT, GdbServer, needs_gdb

from tt.events import Kind
from tt.gdb.handlers import Context, broke_in
from tt.gdb.motion import Motion
from tt.log import Trace
from tt.recording import record
from tt.symbols import for_timeline
from tt.travel import Timeline
from tt.travel.stops import Watchpoint
from tt.vmm.configure import configure


@pytest.fixture(scope="module")
def hobby_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of the 32-bit hobby kernel, with its timer running."""
    from tt.vmm.configure import configure_pc

    for tool in ("make", "gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("hobby") / "os"
    shutil.copytree(ROOT / "examples" / "hobby-os", folder, ignore=shutil.ignore_patterns("*.o", "*.tt"))
    subprocess.run(["make", "-s", "-C", folder, "hobby.elf", "disk.img"], check=True, capture_output=True)
    config = configure_pc(
        folder / "hobby.elf", mem_bytes=4 << 20, disks=[folder / "disk.img"], append="run=sleep,halt", epoch=1
    )
    record(config, folder / "hobby.tt", max_ticks=10_000_000)
    return folder / "hobby.tt"


def check(path: Path, most: int, first_tick: int = 0) -> int:
    """Step past the interrupts in a recording and back again; return how many there were."""
    count = 0
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        motion = Motion(timeline)
        events = list(trace.events(first_tick, kinds={Kind.IRQ, Kind.BATCH}))
        for event in random.Random(1).sample(events, min(most, len(events))):
            timeline.seek(event.tick)
            before = Context.of(timeline)
            timeline.step()
            if not broke_in(timeline, before):
                continue  # an idle Denali guest is woken without one
            count += 1
            timeline.seek(event.tick)
            assert not motion.step().notes
            after = timeline.tick
            assert after > event.tick + 2
            timeline.seek(after - 1)
            assert Context.of(timeline) == before, f"the instruction at tick {event.tick} was not the last"
            if event.tick:
                motion.reverse_step()
                assert timeline.tick == event.tick - 1
        motion.close()
    return count


def test_past_upcalls(demo_trace: Path) -> None:
    assert check(demo_trace, 200) > 10


def test_past_interrupts_of_32_bits(hobby_trace: Path) -> None:
    assert check(hobby_trace, 30) > 20


@pytest.mark.slow
def test_past_interrupts_of_debian(debian_image: Path, tmp_path: Path) -> None:
    record(configure(debian_image, epoch=1_700_000_000), tmp_path / "debian.tt", max_ticks=1_200_000_000)
    assert check(tmp_path / "debian.tt", 60) > 50


def test_past_faults(demo_trace: Path) -> None:
    """The demo sweeps through more pages than its TLB has entries, so loads and stores fault."""
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        motion = Motion(timeline)
        motion.insert(0, 0x100000, 1)
        register_page = 0x1000
        timeline.seek(20_000)
        faults = 0
        for _ in range(3000):
            before = Context.of(timeline)
            tick = timeline.tick
            motion.step()
            if timeline.tick > tick + 20:
                faults += 1
                frame = timeline.machine.engine.read(register_page + 0x140, 8)
                assert int.from_bytes(frame, "little") == before.rip
                after = timeline.tick
                timeline.seek(after - 1)
                motion.reverse_step()
                assert timeline.tick == tick - 1
                timeline.seek(after)
        assert faults
        motion.close()


def first_beat(timeline: Timeline) -> tuple[int, int, int]:
    """Return the address of the demo's `beats`, the tick of its first change, and that of the interrupt."""
    addr = for_timeline(timeline).find("beats")
    assert addr is not None
    timeline.seek(0)
    timeline.stops.add(Watchpoint(addr, 8))
    changed = timeline.proceed().tick
    timeline.stops.clear()
    interrupts = timeline.trace.events(0, changed, kinds={Kind.BATCH})
    return addr, changed, max(event.tick for event in interrupts)


def test_the_users_stops_in_a_handler_count(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        addr, changed, interrupted = first_beat(timeline)
        timeline.seek(interrupted)
        before = Context.of(timeline)
        motion = Motion(timeline)
        motion.step()
        after = timeline.tick
        assert after > changed
        motion.insert(2, addr, 8)
        timeline.seek(interrupted)
        assert motion.step().reason == b"watch"
        assert timeline.tick == changed
        timeline.seek(after - 1)
        assert Context.of(timeline) == before
        halt = motion.reverse_step()
        assert (halt.reason, timeline.tick) == (b"watch", changed - 1)
        motion.remove(2, addr, 8)
        timeline.seek(changed - 1)
        pc = timeline.registers()["rip"]
        motion.insert(0, pc, 1)
        timeline.seek(interrupted)
        assert motion.step().reason == b"swbreak"
        assert timeline.tick == changed - 1
        timeline.seek(after - 1)
        assert motion.reverse_step().reason == b"swbreak"
        assert timeline.tick == changed - 1
        motion.close()


def test_a_handler_that_does_not_return(demo_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step ends in the handler, and says so; backwards it goes into the handler's end."""
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        _addr, _changed, interrupted = first_beat(timeline)
        motion = Motion(timeline)
        timeline.seek(interrupted)
        motion.step()
        after = timeline.tick
        monkeypatch.setattr("tt.gdb.motion.LONGEST_TICKS", 3)
        timeline.seek(interrupted)
        assert "did not return" in motion.step().notes[0]
        assert timeline.tick == interrupted + 1
        timeline.seek(after - 1)
        motion.reverse_step()
        assert timeline.tick == after - 2
        motion.close()


@needs_gdb
def test_gdb_in_32_bits(hobby_trace: Path) -> None:
    with GdbServer(hobby_trace, "--to-tick", "50%") as server:
        output = server.gdb(
            "info registers",
            "x/4i $pc",
            "break kernel_main",
            "reverse-continue",
            "stepi",
            "stepi",
            "reverse-stepi",
            "reverse-stepi",
            "print $tick",
            "info symbol $pc",
            "print $xmm7.uint128",
        )
    assert "warning: " not in output.replace("warning: File transfers", "")
    for name in ("eax", "eip", "eflags", "gs", "cr0"):
        assert f"\n{name} " in output
    assert "Breakpoint 1, 0x" in output and "kernel_main in section .text" in output
