"""The verdict of a probe on a disk, and the interface of a probe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tt.chronus.store.view import DiskView
from tt.errors import TTError


class Outcome(Enum):
    """The result of a probe."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"  # the probe said that it cannot tell (exit code 125)
    HANG = "hang"  # no answer in time
    CRASH = "crash"  # the guest died: see the verdict's signature


@dataclass(frozen=True)
class ProbeVerdict:
    """One probe's answer.

    `signature` identifies a crash (a panic's line); `output` and `console` are the last part of
    what the probe and the guest printed; `reads` the blocks of 4 KB that the answer depended on, None
    where that is not known; `cached` says that another instant's answer was taken.
    """

    outcome: Outcome
    signature: str = ""
    exit_code: int | None = None
    output: str = ""
    console: str = ""
    seconds: float = 0.0
    reads: frozenset[int] | None = None
    cached: bool = False


class ProbeError(TTError):
    """A probe cannot be run, so there is no verdict on the disk (exit code 2)."""

    exit_code = 2


class Probe(Protocol):
    """A question to ask of a disk: plain data, so that it can be sent to another process."""

    def key(self) -> str:
        """Return a text that two probes share only if they ask the same in the same way."""
        ...

    def describe(self) -> str:
        """Return one line that describes the probe."""
        ...

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Ask it of `disk`, which stays as it is; raises `ProbeError`, `BadInput`."""
        ...
