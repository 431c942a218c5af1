"""What a machine is made of, as plain data: enough to build the same machine again anywhere."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tt.errors import BadInput, UsageError
from tt.vmm.boot import images, loader
from tt.vmm.boot.plan import BootPlan
from tt.vmm.disk import BaseImage, OverlayDisk, refuse_special
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Source

MIB = 1 << 20
DEFAULT_MEM = 256 * MIB
DENALI_MEM = 16 * MIB
DENALI_DISK = 4 * MIB
_HASH_PIECE = MIB


@dataclass(frozen=True)
class DiskConfig:
    """A base image: where it was (`path`), how big, and the `image_digest` of its contents.

    An empty `path` is a blank disk of `size` bytes.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class MachineConfig:
    """A machine at power-on.

    `parts` are the bytes it boots from: `kernel`, `initrd` for a pc, `guest`
    for Denali; they are stored beside the rest, not in it.  `plan` is what they
    come to, where that is known already.  `epoch` is the wall
    clock at power-on in seconds since 1970, `clock` is `virtual` or `host`.
    `discard` says that a pc's disks take discards; those of older traces did not.
    """

    machine: str
    mem_bytes: int
    period_ns: int
    epoch: int
    clock: str
    boot_kind: str
    cmdline: str
    disks: tuple[DiskConfig, ...]
    description: tuple[str, ...] = ()
    parts: dict[str, bytes] = field(default_factory=dict, repr=False)
    plan: BootPlan | None = field(default=None, repr=False, compare=False)
    discard: bool = False

    def plain(self) -> dict[str, Any]:
        """Return everything but the parts as JSON-able data."""
        plain = asdict(replace(self, parts={}, plan=None))
        del plain["parts"], plain["plan"]
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any], parts: dict[str, bytes]) -> MachineConfig:
        """Rebuild a configuration; raises `BadInput` when it is not one."""
        try:
            fields = dict(plain)
            fields["disks"] = tuple(DiskConfig(**disk) for disk in fields["disks"])
            fields["description"] = tuple(str(line) for line in fields["description"])
            config = cls(**fields, parts=parts)
        except (TypeError, KeyError, AttributeError) as e:
            raise BadInput(f"the trace's description of its machine is damaged ({e})") from None
        texts = [config.machine, config.clock, config.boot_kind, config.cmdline]
        texts += [text for disk in config.disks for text in (disk.path, disk.digest)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise BadInput("the trace's description of its machine is damaged (a text that is none)")
        if not isinstance(config.discard, bool):
            raise BadInput("the trace's description of its machine is damaged (a word that is none)")
        numbers = [config.mem_bytes, config.period_ns, config.epoch, *(disk.size for disk in config.disks)]
        if not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in numbers) or not config.period_ns:
            raise BadInput("the trace's description of its machine has impossible numbers in it")
        return config


def parse_size(text: str) -> int:
    """Return bytes from `256M`, `1G`, `65536K` or plain bytes; raises `UsageError`."""
    units = {"K": 1 << 10, "M": MIB, "G": 1 << 30}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    if not number.isdigit() or len(number) > 18:
        raise UsageError(f"{text!r} is not a size: give 256M, 1G, or bytes")
    return int(number) * units.get(unit, 1)


def image_digest(path: Path) -> str:
    """Return a digest of a file's contents in hex: the BLAKE2b-256 of those of its 1 MB pieces.

    Holes of a sparse file are not read: a piece of zeros has a known digest.
    """
    zero_piece = hashlib.blake2b(bytes(_HASH_PIECE), digest_size=32).digest()
    whole = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            data_at = 0
            for start in range(0, size, _HASH_PIECE):
                length = min(_HASH_PIECE, size - start)
                if data_at < start:
                    data_at = _next_data(f.fileno(), start, size)
                if data_at >= start + length and length == _HASH_PIECE:
                    whole.update(zero_piece)
                    continue
                f.seek(start)
                whole.update(hashlib.blake2b(f.read(length), digest_size=32).digest())
    except OSError as e:
        raise BadInput(f"cannot read disk image {path}: {e.strerror}") from None
    return whole.hexdigest()


def _next_data(descriptor: int, start: int, size: int) -> int:
    """Return where data that is no hole begins, from `start` on; `size` if nowhere."""
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as e:
        return size if e.errno == errno.ENXIO else start


def describe_disk(path: Path) -> DiskConfig:
    """Look at a disk image (raw, or qcow2 converted to raw) and describe it."""
    raw = images.raw_image(path)
    return DiskConfig(str(raw.absolute()), raw.stat().st_size, image_digest(raw))


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
    )


def configure_denali(
    guest: Path,
    *,
    mem_bytes: int = DENALI_MEM,
    disks: Sequence[Path] = (),
    clock: str = "virtual",
    period_ns: int = 4,
    epoch: int | None = None,
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
        return configure_denali(guest, mem_bytes=mem, disks=disks, clock=clock, epoch=epoch)
    return configure_pc(
        guest,
        mem_bytes=DEFAULT_MEM if mem_bytes is None else mem_bytes,
        kernel=kernel,
        initrd=initrd,
        append=append,
        disks=disks,
        clock=clock,
        epoch=epoch,
    )


def open_disks(
    config: MachineConfig, found: dict[int, Path] | None = None, *, check: bool = True
) -> list[OverlayDisk]:
    """Open the base images, writable in memory only.

    `found` says where an image is now, by disk number.  With `check`, an image
    that is not what it was is refused.  Raises `BadInput`.
    """
    disks = []
    for number, disk in enumerate(config.disks):
        if not disk.path:
            disks.append(OverlayDisk(BlankImage(disk.size)))
            continue
        path = (found or {}).get(number, Path(disk.path))
        if not path.exists():
            raise BadInput(
                f"disk {number}'s base image {path} is missing: put it back, or say where it is "
                f"with --base {number}=FILE"
            )
        refuse_special(path)
        if check:
            size = path.stat().st_size
            if size != disk.size:
                raise BadInput(
                    f"disk {number}'s base image {path} has changed: it has {size} bytes, "
                    f"and had {disk.size} when it was recorded"
                )
            if image_digest(path) != disk.digest:
                raise BadInput(
                    f"disk {number}'s base image {path} has changed since it was recorded (same size, other "
                    f"contents): restore the original, or say where it is with --base {number}=FILE"
                )
        disks.append(OverlayDisk(BaseImage(path)))
    return disks


class BlankImage:
    """A base image of zeros."""

    def __init__(self, size: int) -> None:
        self.sectors = size // 512

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors of zeros."""
        return bytes(count * 512)


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
        )
    elif config.machine == "disk":
        raise BadInput("this is the history of a disk, with no machine to run: look into it with chronus")
    else:
        raise BadInput(f"unknown machine {config.machine!r}: the trace is damaged, or from a newer tt")
    return machine
