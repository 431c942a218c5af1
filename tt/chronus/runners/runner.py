"""What runs a guest from a disk of the past: the interfaces of a runner and of a guest that it started.

A runner never writes to the disk that it is given: what the guest writes goes into an overlay that is
discarded with the guest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tt.chronus.store.history import History, config_of
from tt.chronus.store.view import DiskView
from tt.errors import BadInput, UsageError
from tt.vmm.config import DEFAULT_MEM, DENALI_MEM, parse_size

DEFAULT_TIMEOUT_S = 120.0
EPOCH = 1_767_225_600  # 2026-01-01: the guest's clock where it is not known when the disk was written


class CannotBoot(BadInput):
    """There is nothing on this disk that could be booted, or it is damaged.

    `reads` are the blocks that were looked at, None where that is not known.
    """

    reads: frozenset[int] | None = None


@dataclass(frozen=True)
class Setup:
    """How to start a guest: plain data, so that it can be sent to another process.

    A field that is None comes from the disk.  `recording` is the trace that the disk's history is
    in, if it is a machine's: where that machine was given its kernel by hand, the guest gets it too.
    `append` is added to the kernel's command line; what stands behind ` -- ` there goes to init.
    `init` replaces the guest's own first program: its path, and the words that it gets.
    `script_disk` is a second disk, writable: the guest's /dev/vdb.  `epoch` is the wall clock at
    power-on, in seconds since 1970.  `timeout_s` is how long the guest may take in all, in `Guest.seconds`.
    `forward` lists TCP ports of the guest that are to be reachable from this host's loopback.
    """

    mem_bytes: int = DEFAULT_MEM
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    init: tuple[str, ...] = ()
    script_disk: bytes | None = None
    epoch: int = EPOCH
    timeout_s: float = DEFAULT_TIMEOUT_S
    forward: tuple[int, ...] = ()
    recording: Path | None = None

    def key(self) -> str:
        """Return a text that two setups share only if they start a guest in the same way.

        The timeout is left out: it decides whether there is an answer, not which.
        """
        return repr(replace(self, timeout_s=0.0, recording=None))


def setup_of(
    history: History,
    *,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    mem: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    ports: Sequence[int] = (),
) -> Setup:
    """Return the setup for guests from a history's disk: memory as recorded, the clock at its end.

    The clock is the same for every instant: a guest must not find files from its future, and equal
    disks must give equal answers.  Raises `UsageError` for numbers that make no sense.
    """
    if not 0 < timeout_s < float("inf"):
        raise UsageError(f"--timeout {timeout_s}: give seconds above 0")
    wrong = [port for port in ports if not 0 < port < 65536]
    if wrong:
        raise UsageError(f"--port {wrong[0]}: TCP ports are 1 to 65535")
    config = config_of(history.trace)
    last = history.write(history.count) if history.count > history.first else None
    epoch, mem_bytes = EPOCH, DEFAULT_MEM
    if history.has_machine:
        mem_bytes = config.mem_bytes or (DENALI_MEM if config.machine == "denali" else DEFAULT_MEM)
        epoch = config.epoch + (last.guest_ns or 0) // 1_000_000_000 + 1 if last else config.epoch
    elif last is not None and last.host_ns is not None:
        epoch = last.host_ns // 1_000_000_000 + 1
    return Setup(
        mem_bytes=mem_bytes if mem is None else parse_size(mem),
        kernel=None if kernel is None else kernel.absolute(),
        initrd=None if initrd is None else initrd.absolute(),
        append=append,
        epoch=epoch,
        timeout_s=timeout_s,
        forward=tuple(ports),
        recording=history.trace.path.absolute() if history.has_machine else None,
    )


class Guest(Protocol):
    """A running guest.  Use it as a context manager: leaving it stops it.

    `console` is everything printed so far.  `ended` says in words why the guest is not running any
    more, None while it is.  `seconds` is how long it has run: guest time where the runner keeps that,
    else host time.  `ports` maps the guest's TCP ports of `Setup.forward` to ports of this host.
    `console_socket` is a unix socket that carries the console, made when it is first asked for, and
    `nbd_url` where its disk is served; None where the runner has none.  `reads` are the blocks of
    4 KB of the disk that were read so far, None where that is not known.
    """

    @property
    def ports(self) -> Mapping[int, int]: ...

    @property
    def nbd_url(self) -> str | None: ...

    @property
    def console(self) -> bytes: ...

    @property
    def ended(self) -> str | None: ...

    @property
    def seconds(self) -> float: ...

    @property
    def console_socket(self) -> Path | None: ...

    @property
    def reads(self) -> frozenset[int] | None: ...

    def read(self, timeout_s: float) -> bytes:
        """Return what the guest prints next, some of it; empty after `timeout_s` of `seconds`, or at the end.

        A guest of tt's own machine runs only during this call.
        """
        ...

    def write(self, data: bytes) -> None:
        """Type `data` into the console."""
        ...

    def script_disk(self) -> bytes:
        """Return the second disk as it is now; what the guest has not flushed may be missing."""
        ...

    def stop(self) -> None:
        """End the guest, and let go of everything; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


class Runner(Protocol):
    """Starts guests."""

    @property
    def name(self) -> str:
        """What the runner is called: `tt`, `qemu`."""
        ...

    def key(self) -> str:
        """Return a text that two runners share only if a guest runs alike on both."""
        ...

    def start(self, disk: DiskView, setup: Setup) -> Guest:
        """Start a guest from `disk`, which stays as it is.

        Raises `CannotBoot` where there is nothing on it to boot, or that is damaged; `ProbeError` where
        the runner cannot do what `setup` asks for.
        """
        ...
