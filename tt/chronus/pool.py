"""Where probes run: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tt.chronus.history import History
from tt.chronus.verdicts import Probe, ProbeError, Verdict
from tt.errors import TTError, UsageError

Result = tuple[int, Verdict, bytes | None]


@dataclass(frozen=True)
class Where:
    """The disk of a history, as another process opens it."""

    path: Path
    base: Path | None = None
    disk: int = 0


class Pool(Protocol):
    """Runs probes."""

    jobs: int

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Result]:
        """Yield (instant, verdict, fingerprint) of each, as they come; raises what the probe raises."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


class Here:
    """Runs one probe after the other, in this process."""

    jobs = 1

    def __init__(self, history: History) -> None:
        self._history = history

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Result]:
        """Yield the results in order."""
        for instant in instants:
            yield instant, probe.run(self._history.at(instant)), fingerprint(probe, self._history, instant)

    def close(self) -> None:
        """Do nothing."""


class Processes:
    """Runs `jobs` probes at a time, each in a process."""

    def __init__(self, where: Where, jobs: int) -> None:
        self.jobs = jobs
        self._where = where
        self._executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Result]:
        """Yield the results as they come."""
        futures = [self._executor.submit(run_one, self._where, probe, instant) for instant in instants]
        yield from _results(futures)

    def close(self) -> None:
        """End the processes; what they were doing is given up."""
        for process in list((self._executor._processes or {}).values()):
            process.terminate()
        self._executor.shutdown(wait=False, cancel_futures=True)


class Dask:
    """Runs probes on a Dask cluster (`distributed`), whose workers see the same files."""

    def __init__(self, where: Where, address: str, jobs: int | None = None) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError(
                "--scheduler needs the package distributed: pip install 'tt-vmm[dask]'"
            ) from None
        try:
            client: Any = distributed.Client
            self._client = client(address, timeout=10)
        except (OSError, ValueError, TimeoutError) as e:
            raise UsageError(
                f"no Dask scheduler answers at {address}: {str(e) or type(e).__name__}"
            ) from None
        workers = sum(self._client.nthreads().values())
        if not workers:
            raise UsageError(f"the Dask scheduler at {address} has no workers")
        self.jobs = jobs or workers
        self._where = where

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Result]:
        """Yield the results as they come."""
        import distributed

        completed: Any = distributed.as_completed
        futures = [self._client.submit(run_one, self._where, probe, at, pure=False) for at in instants]
        for future in completed(futures):
            yield future.result()

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


_opened: dict[Where, History] = {}  # of a worker


def run_one(where: Where, probe: Probe, instant: int) -> Result:
    """Run a probe in a worker, which keeps the history open."""
    history = _opened.get(where)
    if history is None:
        if not _opened:
            atexit.register(_close)
        history = _opened[where] = History.open(
            where.path, base=where.base, disk=where.disk, check_base=False
        )
    return instant, probe.run(history.at(instant)), fingerprint(probe, history, instant)


def fingerprint(probe: Probe, history: History, instant: int) -> bytes | None:
    """Return a digest of all that a probe sees, where it can tell that without running; else None."""
    ask = getattr(probe, "fingerprint", None)
    return None if ask is None else ask(history.at(instant))


def _results(futures: Sequence[Future[Result]]) -> Iterator[Result]:
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ProbeError("a process that ran probes died: is there enough memory for --jobs?") from None
    except TTError:
        for future in futures:
            future.cancel()
        raise


def _close() -> None:
    for history in _opened.values():
        with contextlib.suppress(Exception):
            history.close()
