"""A replay that is tampered with: `verify` finds the first bad tick, and what is bad there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from adversary_rig import debian_config

from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.vmm.engine import FOREVER
from tt.vmm.machine import Machine, Stop

Deed = Callable[[Machine], None]


def at(tick: int, deed: Deed) -> Callable[[Machine], None]:
    """Return a tampering that does `deed` whenever its machine comes by `tick`."""

    def tamper(machine: Machine) -> None:
        run = machine.run

        def tampered(until: int = FOREVER, *, pausing: bool = True) -> Stop:
            if machine.tick < tick <= until:
                stop = run(tick, pausing=pausing)
                if stop.reason != "tick":
                    return stop
                deed(machine)
            return run(until, pausing=pausing)

        machine.run = tampered  # type: ignore[method-assign]

    return tamper


def flip_ram(addr: int, bit: int) -> Deed:
    def deed(machine: Machine) -> None:
        (byte,) = machine.engine.read(addr, 1)
        machine.engine.write(addr, bytes([byte ^ 1 << bit]))

    return deed


def flip_register(name: str, bit: int) -> Deed:
    def deed(machine: Machine) -> None:
        machine.engine.set_register(name, machine.engine.registers()[name] ^ 1 << bit)

    return deed


def late_clock(machine: Machine) -> None:
    machine.clock.idle_ns += 4
    machine.engine.idle_ns = machine.clock.idle_ns


def write_disk(machine: Machine) -> None:
    machine.disks[0].write(24, b"\x55" * 512)


def found(path: Path, tick: int, deed: Deed) -> tuple[str, ...]:
    """Return what `verify` says beneath the first bad tick, which must be the right one."""
    with Trace.open(path) as trace:
        verdict = verify(trace, tamper=at(tick, deed))
    assert not verdict.good and "diverges" in verdict.message
    assert verdict.detail[0] == f"first bad tick: {tick:,}"
    return verdict.detail[1:]


@pytest.mark.parametrize("tick", [1, 4_999_999, 11_000_001])
def test_one_bit_of_ram(demo_trace: Path, tick: int) -> None:
    (line,) = found(demo_trace, tick, flip_ram(0xF12345, 6))
    assert line == "memory 0xf12345+1: 00 | 40 (expected | found)"


@pytest.mark.parametrize(("register", "bit"), [("rbx", 0), ("r12", 40), ("rsp", 3), ("rip", 2)])
def test_one_bit_of_a_register(demo_trace: Path, register: str, bit: int) -> None:
    lines = found(demo_trace, 9_876_543, flip_register(register, bit))
    assert len(lines) == 1 and lines[0].startswith(f"register {register}: ")


def test_a_clock_that_is_late(demo_trace: Path) -> None:
    lines = found(demo_trace, 2_000_000, late_clock)
    assert any(line.startswith("clock idle_ns: ") for line in lines), lines


def test_a_disk_that_was_written(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        tick = trace.end_tick - 5_000  # later than the guest's own last write there, which would heal it
    (line,) = found(demo_trace, tick, write_disk)
    assert line.startswith("disk 0 lba 24: ") and line.endswith(f"| {'55' * 16}... (expected | found)")


def test_no_tampering_no_complaint(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        verdict = verify(trace, tamper=lambda machine: None)
        assert verdict.good and (verdict.end_tick, verdict.events) == (trace.end_tick, trace.event_count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tick", "deed", "says"),
    [
        (345_678_901, flip_ram(0x0BADB000, 0), "memory 0xbadb000+1: "),
        (250_000_001, flip_register("r15", 17), "register r15: "),
    ],
)
def test_debian(debian: Path, tmp_path: Path, tick: int, deed: Deed, says: str) -> None:
    record(debian_config(debian), tmp_path / "x.tt", max_ticks=520_000_000)
    assert any(line.startswith(says) for line in found(tmp_path / "x.tt", tick, deed))
