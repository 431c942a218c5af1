"""A guest that nothing interrupts is stopped all the same."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from adversary_rig import EPOCH, demo_config, elf_kernel

from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.vmm.configure import configure_pc
from tt.vmm.live import LiveSource
from tt.vmm.machine import SLICE_TICKS, Machine

SPINS = {
    "cli; jmp .": b"\xfa\xeb\xfe",
    "cli; nops and a jump": b"\xfa" + b"\x90" * 500 + b"\xe9" + (-505).to_bytes(4, "little", signed=True),
    "cli; rep movsb for ever": b"\xfa\xb9\xff\xff\x1f\0\xbe\0\0\x20\0\xbf\0\0\x20\0\xf3\xa4\xeb\xed",
    "cli; in al, 0x40 for ever": b"\xfa\xe4\x40\xeb\xfc",
    "cli; out to the console": b"\xfa\xba\xf8\x03\0\0\xb0\x41\xee\xeb\xfd",
    "cli; invlpg and a load": b"\xfa\xbe\0\0\x20\0\x0f\x01\x3e\x8b\x06\xeb\xf9",
}


@pytest.mark.parametrize("spin", SPINS, ids=lambda name: name.split(";")[-1].strip())
def test_stopped_from_another_thread(tmp_path: Path, spin: str) -> None:
    """`stop` ends the recording within the slice that runs, or the next; what was recorded replays."""
    (tmp_path / "kernel").write_bytes(elf_kernel(SPINS[spin]))
    config = configure_pc(tmp_path / "kernel", mem_bytes=16 << 20, epoch=EPOCH)
    source = LiveSource()
    machines: list[Machine] = []
    ticks: list[int] = []
    running = threading.Event()

    def stop() -> None:
        running.wait()
        while machines[0].tick < 100_000:
            pass
        source.stop()
        ticks.append(machines[0].tick)

    def started(machine: Machine) -> None:
        machines.append(machine)
        running.set()

    thread = threading.Thread(target=stop)
    thread.start()
    result = record(config, tmp_path / "x.tt", source, on_start=started, max_ticks=200 * SLICE_TICKS)
    thread.join()
    assert result.reason == "stopped by the user"
    assert result.end_tick <= ticks[0] + 2 * SLICE_TICKS
    with Trace.open(tmp_path / "x.tt") as trace:
        assert trace.sealed and trace.end_tick == result.end_tick
        assert verify(trace).good


def test_stopped_while_a_guest_sleeps(busy: Path) -> None:
    """A paced guest that idles is woken for the end."""
    source = LiveSource(pace=True)
    threading.Timer(0.2, source.stop).start()
    assert record(demo_config(busy), None, source).reason == "stopped by the user"


def test_stopped_before_it_starts(busy: Path) -> None:
    source = LiveSource()
    source.stop("never mind")
    result = record(demo_config(busy), None, source)
    assert (result.reason, result.end_tick) == ("never mind", 0)
