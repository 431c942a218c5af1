"""Running a machine as its owner: an idle guest's time passes, as the source of its inputs says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tt.vmm.engine import FOREVER
from tt.vmm.machine import NETWORK_SLICE_TICKS, Machine, Stop

if TYPE_CHECKING:
    from tt.vmm.live import LiveSource, Network


def attach(source: LiveSource, machine: Machine) -> None:
    """Tell a live source of its machine: its time, whether it listens, and its network cards."""
    source.now_ns = machine.clock.now
    source.ticks_until = machine.clock.ticks_until
    source.wants_input = lambda: machine.wants_input
    if source.network is not None:
        plug_in(source.network, machine)


def plug_in(network: Network, machine: Machine) -> None:
    """Tell a network of a machine's cards, and have the machine look for frames often."""
    network.room = machine.frame_room
    machine.slice_ticks = NETWORK_SLICE_TICKS


def run(machine: Machine, until: int = FOREVER, *, pausing: bool = True) -> Stop:
    """Run as `Machine.run` does, and through the guest's idling.

    The reason `idle` means then that nothing will ever wake the guest, or that the
    source lets no more time pass.
    """
    while True:
        stop = machine.run(until, pausing=pausing)
        if stop.reason != "idle":
            return stop
        passed = machine.door.source.idle(stop.tick, stop.wakes_in_ns)
        if passed is None:
            return Stop("pause", stop.tick) if pausing and machine.door.wants_pause() else stop
        sleeps = machine.halted and stop.wakes_in_ns != 0  # not one that polls: its next tick comes by itself
        if not passed and sleeps and machine.door.source.next_input(stop.tick) == stop.tick:
            passed = 1  # inputs are taken before anything of a tick, or when time has passed
        machine.let_pass(passed)
