"""Describing the machine that a guest wants."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tt.errors import BadInput, UsageError
from tt.vmm.boot import loader
from tt.vmm.config import DEFAULT_MEM, DENALI_DISK, DENALI_MEM, DiskConfig, MachineConfig, NetConfig
from tt.vmm.disk import refuse_special
from tt.vmm.disk_images import describe_disk


def configure_pc(
    guest: Path | None,
    *,
    mem_bytes: int = DEFAULT_MEM,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    disks: Sequence[Path] = (),
    clock: str = "virtual",
    period_ns: int = 4,
    epoch: int | None = None,
    nets: Sequence[NetConfig] = (),
) -> MachineConfig:
    """Describe a pc that boots `guest` (a disk image or a kernel); see `plan_boot`."""
    plan = loader.plan_boot(guest, mem_bytes=mem_bytes, kernel=kernel, initrd=initrd, append=append)
    paths = list(disks)
    if guest is not None and not loader.is_kernel(guest):
        paths.insert(0, guest)
    parts = {"kernel": plan.kernel}
    if plan.initrd is not None:
        parts["initrd"] = plan.initrd
    return MachineConfig(
        machine="pc",
        mem_bytes=mem_bytes,
        period_ns=period_ns,
        epoch=int(time.time()) if epoch is None else epoch,
        clock=clock,
        boot_kind=plan.kind,
        cmdline=plan.cmdline,
        disks=tuple(describe_disk(path) for path in paths),
        description=tuple(plan.description),
        parts=parts,
        plan=plan,
        discard=True,
        firmware=True,
        nets=tuple(nets),
    )


def configure_denali(
    guest: Path,
    *,
    mem_bytes: int = DENALI_MEM,
    disks: Sequence[Path] = (),
    clock: str = "virtual",
    period_ns: int = 4,
    epoch: int | None = None,
    nets: Sequence[NetConfig] = (),
) -> MachineConfig:
    """Describe a Denali machine that runs the ELF file `guest`; without disks it gets a blank one of 4 MB."""
    from tt.vmm.denali.image import GuestImage

    try:
        data = guest.read_bytes()
    except OSError as e:
        raise BadInput(f"cannot read the guest {guest}: {e.strerror}") from None
    GuestImage.parse(data, str(guest))
    return MachineConfig(
        machine="denali",
        mem_bytes=mem_bytes,
        period_ns=period_ns,
        epoch=int(time.time()) if epoch is None else epoch,
        clock=clock,
        boot_kind="denali-elf",
        cmdline="",
        disks=tuple(describe_disk(path) for path in disks) or (DiskConfig("", DENALI_DISK, ""),),
        description=(f"Denali guest {guest.name}",),
        parts={"guest": data},
        nets=tuple(nets),
    )


def sniff_machine(guest: Path | None) -> str:
    """Return which machine a guest is for: `denali` if it is an ELF file marked so, else `pc`."""
    if guest is None:
        return "pc"
    from tt.vmm.denali.image import FILE_LIMIT, is_marked

    refuse_special(guest)
    try:
        with guest.open("rb") as f:
            if f.read(4) != b"\x7fELF":
                return "pc"
            f.seek(0)
            return "denali" if is_marked(f.read(FILE_LIMIT)) else "pc"
    except OSError as e:
        raise BadInput(f"cannot read the guest {guest}: {e.strerror or e}") from None


def configure(
    guest: Path | None,
    *,
    machine: str | None = None,
    mem_bytes: int | None = None,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    disks: Sequence[Path] = (),
    clock: str = "virtual",
    epoch: int | None = None,
    nets: Sequence[NetConfig] = (),
) -> MachineConfig:
    """Describe the machine for `guest`, of the kind `machine` or of the kind the guest is for.

    Raises `UsageError` for options that the machine does not know, `BadInput`
    for files that it cannot use.
    """
    if (machine or sniff_machine(guest)) == "denali":
        if guest is None:
            raise UsageError("nothing to boot: give a Denali guest")
        if kernel is not None or initrd is not None or append:
            raise UsageError("a Denali guest is one ELF file: it takes no kernel, initrd or command line")
        mem = DENALI_MEM if mem_bytes is None else mem_bytes
        return configure_denali(guest, mem_bytes=mem, disks=disks, clock=clock, epoch=epoch, nets=nets)
    return configure_pc(
        guest,
        mem_bytes=DEFAULT_MEM if mem_bytes is None else mem_bytes,
        kernel=kernel,
        initrd=initrd,
        append=append,
        disks=disks,
        clock=clock,
        epoch=epoch,
        nets=nets,
    )
