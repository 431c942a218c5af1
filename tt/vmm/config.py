"""What a machine is made of, as plain data: enough to build the same machine again anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tt.errors import BadInput, UsageError
from tt.vmm.boot.plan import BootPlan

MIB = 1 << 20
DEFAULT_MEM = 256 * MIB
DENALI_MEM = 16 * MIB
DENALI_DISK = 4 * MIB
NET_MODELS: dict[str, tuple[str, ...]] = {"pc": ("virtio", "e1000"), "denali": ("denali", "classic")}
"""The models of network card that each machine knows, the usual one first."""
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
class NetConfig:
    """A network card: its `model` (one of `NET_MODELS`) and its address, as in 52:54:00:74:74:00.

    What it is connected to is not part of the machine: a replay needs no network.
    """

    model: str
    mac: str

    @property
    def address(self) -> bytes:
        """The six bytes of the card's address."""
        return bytes.fromhex(self.mac.replace(":", ""))


def default_mac(card: int, machine: int = 0) -> str:
    """Return the address that card `card` of a machine has where none is given; the same in each run."""
    return f"52:54:00:74:{machine & 0xFF:02x}:{card & 0xFF:02x}"


def check_mac(text: str) -> str:
    """Return an address in lower case; raises `UsageError` for anything that no card can have."""
    if not re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", text):
        raise UsageError(f"{text!r} is not the address of a network card: give six bytes, 52:54:00:12:34:56")
    if int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise UsageError(f"no card can have the address {text}: it is for groups, or zero")
    return text.lower()


@dataclass(frozen=True)
class MachineConfig:
    """A machine at power-on.

    `parts` are the bytes it boots from: `kernel`, `initrd` for a pc, `guest`
    for Denali; they are stored beside the rest, not in it.  `plan` is what they
    come to, where that is known already.  `epoch` is the wall
    clock at power-on in seconds since 1970, `clock` is `virtual` or `host`.
    `discard` says that a pc's disks take discards; those of older traces did not.
    `firmware` says that a pc's devices are as firmware leaves them (`tt.vmm.pc.firmware`);
    those of older traces are as they come out of reset.
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
    firmware: bool = False
    nets: tuple[NetConfig, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return everything but the parts as JSON-able data."""
        plain = asdict(replace(self, parts={}, plan=None))
        del plain["parts"], plain["plan"]
        return plain

    @classmethod
    def without_parts(cls, meta: Mapping[str, Any]) -> MachineConfig:
        """Return the machine of a trace with this `meta`, without what it booted from; raises `BadInput`."""
        return cls.from_plain(meta.get("config"), {})

    @classmethod
    def from_plain(cls, plain: Any, parts: dict[str, bytes]) -> MachineConfig:
        """Rebuild a configuration; raises `BadInput` when it is not one."""
        try:
            fields = dict(plain)
            fields["disks"] = tuple(DiskConfig(**disk) for disk in fields["disks"])
            fields["nets"] = tuple(NetConfig(**net) for net in fields.get("nets", ()))
            fields["description"] = tuple(str(line) for line in fields["description"])
            config = cls(**fields, parts=parts)
        except (TypeError, KeyError, AttributeError) as e:
            raise BadInput(f"the trace's description of its machine is damaged ({e})") from None
        texts = [config.machine, config.clock, config.boot_kind, config.cmdline]
        texts += [text for disk in config.disks for text in (disk.path, disk.digest)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise BadInput(
                "the trace's description of its machine is damaged (a text is missing, or holds a zero byte)"
            )
        if not isinstance(config.discard, bool) or not isinstance(config.firmware, bool):
            raise BadInput(
                "the trace's description of its machine is damaged (`discard` is neither true nor false)"
            )
        models = NET_MODELS.get(config.machine, ())
        for net in config.nets:
            if net.model not in models:
                raise BadInput(
                    f"the trace's machine has a network card of the unknown model {str(net.model)[:20]!r}: "
                    "it is damaged, or from a newer tt"
                )
            try:
                check_mac(net.mac)
            except (UsageError, TypeError):
                raise BadInput(
                    "the trace's description of its machine is damaged (a network card has no address)"
                ) from None
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
