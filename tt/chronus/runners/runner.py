"""What runs a guest from a disk of the past: the faces of a runner and of a guest that it started.

A runner never writes to the disk that it is given: what the guest writes goes into an overlay that is
gone with the guest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tt.chronus.instant import DiskView

DEFAULT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Setup:
    """How to start a guest: plain data, so that it can be sent to another process.

    What is None comes from the disk as it was, and where the disk does not say from its recording.
    `append` is added to the kernel's command line; what stands behind ` -- ` there goes to init.
    `init` replaces the guest's own first program, as the kernel's `init=` does, and its words come
    after the program's name.  `script_disk` is a second disk, writable: the guest's /dev/vdb.
    `timeout_s` is how long the guest may take in all, of its own time where the runner decides
    on that (`Guest.seconds`).  `forward` lists TCP ports of the guest that a runner with a network
    makes reachable from this host.
    """

    mem_bytes: int | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    init: tuple[str, ...] = ()
    script_disk: bytes | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    forward: tuple[int, ...] = ()

    def key(self) -> str:
        """Return a text that two setups share only if they start a guest in the same way.

        The timeout is left out: it decides whether there is an answer, not which.
        """
        return repr(replace(self, timeout_s=0.0))


class Guest(Protocol):
    """A running guest.  Use it as a context manager: leaving it stops it.

    `console` is everything printed so far.  `ended` says in words why the guest is not running any
    more, None while it is.  `seconds` is how long it has run: guest time where the runner keeps that,
    else host time.  `ports` maps the guest's TCP ports of `Setup.forward` to ports of this host.
    `console_socket` is a unix socket that carries the console, made when it is first asked for, and
    `nbd_url` where its disk is served; None where the runner has none.
    """

    ports: dict[int, int]
    nbd_url: str | None

    @property
    def console(self) -> bytes: ...

    @property
    def ended(self) -> str | None: ...

    @property
    def seconds(self) -> float: ...

    @property
    def console_socket(self) -> Path | None: ...

    def read(self, timeout_s: float) -> bytes:
        """Return what the guest prints next, some of it; empty after `timeout_s` of `seconds`, or at the end.

        A guest of tt's own machine runs only while somebody reads.
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
    """Starts guests.  Plain data, so that it can be sent to another process."""

    @property
    def name(self) -> str:
        """What the runner is called: `tt`, `qemu`."""
        ...

    def key(self) -> str:
        """Return a text that two runners share only if a guest runs alike on both."""
        ...

    def start(self, disk: DiskView, setup: Setup) -> Guest:
        """Start a guest from `disk`, which stays as it is.

        Raises `BadInput` where there is nothing to boot or it is damaged, `ProbeError` where the
        runner cannot do what `setup` asks for.
        """
        ...
