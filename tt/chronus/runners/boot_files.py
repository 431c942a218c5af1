"""What a guest boots: the kernel, the initrd and the command line of the disk as it was, or given ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log import Trace
from tt.vmm.boot import bootconfig, kinds, loader
from tt.vmm.config import MachineConfig

# Words of a command line that are meant for the first program, not for the kernel.  The kernel hands
# it every word that it does not know, and a shell in that place would take one for its script.
_FOR_INIT = frozenset(
    (
        *("single", "s", "S", "1", "2", "3", "4", "5", "6", "emergency", "rescue", "recovery"),
        *("auto", "fastboot", "forcefsck", "splash", "nosplash", "rhgb", "text"),
    )
)
_BOOTED = "boots "  # how a recording's description begins if it was booted from its disk


@dataclass(frozen=True)
class BootFiles:
    """Contents of a kernel and of an initrd, and the command line that came with them.

    `kind` names the kernel as `BootPlan.kind` does, None for one that tt cannot boot; for
    Multiboot, `initrd` is a packed list of modules.
    """

    kernel: bytes
    initrd: bytes | None
    cmdline: str
    where: str
    kind: str | None = None


def boot_files(disk: DiskView, setup: Setup) -> BootFiles:
    """Find what `disk` boots: the files of `setup`, those its recording was started with, or its own.

    Raises `CannotBoot` where there is nothing, or it cannot be read, and `ProbeError` for given files.
    """
    initrd = None if setup.initrd is None else _given(setup.initrd, bootconfig.MAX_INITRD)
    if setup.kernel is not None:
        kernel = _given(setup.kernel, bootconfig.MAX_KERNEL)
        kind = kinds.kernel_kind(kernel)
        root = "" if kind in kinds.MULTIBOOT else f"root=/dev/{bootconfig.root_volume(disk.image())} rw"
        return BootFiles(kernel, kinds.companion(kind, initrd), root, str(setup.kernel), kind)
    by_hand = None if setup.recording is None else _recorded(setup.recording)
    if by_hand is not None:
        return _with_initrd(by_hand, initrd)
    try:
        entry = bootconfig.find_boot_entry(disk.image())
    except BadInput as e:
        raise CannotBoot(str(e).replace(f" in {disk.where}", "")) from None
    files = BootFiles(entry.kernel, entry.initrd, entry.cmdline, entry.description, entry.kind)
    return _with_initrd(files, initrd)


def _with_initrd(files: BootFiles, initrd: bytes | None) -> BootFiles:
    return files if initrd is None else replace(files, initrd=kinds.companion(files.kind, initrd))


def command_line(cmdline: str, setup: Setup) -> tuple[str, str]:
    """Return a command line in two parts: that of the disk, and what is added to it.

    With `Setup.init`, its words are followed by `chronus-init=PATH` where the disk names an init of its own,
    and by the words meant for that init.
    """
    own, own_init = loader.split_init(cmdline)
    added, added_init = loader.split_init(setup.append)
    if setup.init:
        words = [*own, *added]
        named = [f"chronus-{word}" for word in words if word.startswith("init=")]
        words_for_init = [word for word in words if word in _FOR_INIT]
        own, added = ([word for word in part if not _is_for_init(word)] for part in (own, added))
        added.append(f"init={setup.init[0]}")
        added_init = [*setup.init[1:], *named[-1:], *words_for_init, *own_init, *added_init]
        own_init = []
    return loader.join_init(own, own_init), loader.join_init(added, added_init)


def _is_for_init(word: str) -> bool:
    return word in _FOR_INIT or word.startswith("init=")


def _given(path: Path, limit: int) -> bytes:
    try:
        stat = path.stat()
        return _read(path, limit, stat.st_mtime_ns, stat.st_size)
    except BadInput as e:
        raise ProbeError(str(e)) from None
    except OSError as e:
        raise ProbeError(f"cannot read {path}: {e.strerror or e}") from None


@lru_cache(maxsize=4)
def _read(path: Path, limit: int, changed_ns: int, size: int) -> bytes:
    return loader.read_file(path, limit)


@lru_cache(maxsize=2)
def recorded_machine(path: Path) -> MachineConfig:
    """Return the machine that a trace is a recording of, with the files that it was given."""
    from tt.replay import config_of

    with Trace.open(path) as trace:
        return config_of(trace)


def _recorded(path: Path) -> BootFiles | None:
    """Return what a recorded pc booted if its kernel was given as a file; None if it came from the disk."""
    config = recorded_machine(path)
    kernel = config.parts.get("kernel")
    if kernel is None or any(line.startswith(_BOOTED) for line in config.description):
        return None
    initrd = config.parts.get("initrd")
    return BootFiles(kernel, initrd, config.cmdline, "the recording's kernel", config.boot_kind)
