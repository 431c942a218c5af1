"""Building the machine that a configuration describes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from tt.errors import BadInput
from tt.vmm.boot import loader
from tt.vmm.config import MachineConfig
from tt.vmm.disk import OverlayDisk
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Source


def build_machine(
    config: MachineConfig,
    disks: Sequence[OverlayDisk],
    source: Source | None = None,
    *,
    entropy: Callable[[int], bytes] = os.urandom,
    host_clock: Callable[[], int] = time.time_ns,
) -> Machine:
    """Build the machine that `config` describes, at power-on; raises `BadInput` where it cannot run here."""
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if config.mem_bytes > host_bytes:
        # The engine's tables alone would take more than a hundredth of that.
        raise BadInput(
            f"the guest has {config.mem_bytes >> 20:,} MB of memory, this host only {host_bytes >> 20:,} MB: "
            "record it with less (--mem), or use a larger host"
        )
    clock = host_clock if config.clock == "host" else None
    machine: Machine
    if config.machine == "denali":
        from tt.vmm.denali.image import GuestImage
        from tt.vmm.denali.machine import DenaliMachine

        machine = DenaliMachine(
            GuestImage.parse(config.parts["guest"], "the trace's guest"),
            config.mem_bytes,
            disks,
            source,
            epoch=config.epoch,
            period_ns=config.period_ns,
            host_clock=clock,
            nets=config.nets,
        )
    elif config.machine == "pc":
        from tt.vmm.pc.machine import PcMachine

        plan = config.plan or loader.plan_boot_from_parts(
            config.boot_kind,
            config.parts["kernel"],
            config.parts.get("initrd"),
            config.cmdline,
            config.mem_bytes,
        )
        machine = PcMachine(
            plan,
            config.mem_bytes,
            disks,
            source,
            epoch=config.epoch,
            period_ns=config.period_ns,
            host_clock=clock,
            entropy=entropy,
            discard=config.discard,
            firmware=config.firmware,
            nets=config.nets,
        )
    elif config.machine == "disk":
        raise BadInput("this is the history of a disk, with no machine to run: look into it with chronus")
    else:
        raise BadInput(f"unknown machine {config.machine!r}: the trace is damaged, or from a newer tt")
    return machine
