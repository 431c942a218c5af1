"""Where probes run: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tt.chronus.search.verdicts import Outcome, Probe, ProbeError, ProbeVerdict
from tt.chronus.store.history import History
from tt.errors import BadInput, UsageError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LONGEST_SIGNATURE = 300
_ANSWER_S = 10
_CLEAN_UP_S = 3.0


@dataclass(frozen=True)
class Where:
    """What another process needs to open the disk of a history."""

    path: Path
    base: Path | None = None
    disk: int = 0


@dataclass(frozen=True)
class Look:
    """The result of probing an instant.

    `seen` is a digest of all that the probe saw, if it can tell.  Without `keep` the answer may have another
    cause than the disk, and must not be kept.
    """

    instant: int
    verdict: ProbeVerdict
    seen: bytes | None = None
    keep: bool = True


class Pool(Protocol):
    """Runs probes, `jobs` at a time."""

    jobs: int

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Look]:
        """Yield the looks at instants (the same one may be there twice) as they come.

        Raises `ProbeError`, and `UsageError` or `BadInput` where a history cannot be opened.
        """
        ...

    def close(self) -> None:
        """End the processes, and abandon what they are doing."""
        ...


class Here:
    """Runs one probe after the other, in this process."""

    jobs = 1

    def __init__(self, history: History) -> None:
        self._history = history

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Look]:
        """Yield the looks in order."""
        for instant in instants:
            yield look(probe, self._history, instant)

    def close(self) -> None:
        """Do nothing."""


class Processes:
    """Runs `jobs` probes at a time, each in a process of this host; they end with this one."""

    def __init__(self, where: Where, jobs: int) -> None:
        self.jobs = jobs
        self._where = where
        self._executor: ProcessPoolExecutor | None = None

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Look]:
        """Yield the looks as they come; a probe whose process died is tried once more."""
        waiting = list(instants)
        for again in (False, True):
            executor = self._start()
            futures: dict[Future[Look], int] = {}
            try:
                for instant in waiting:
                    futures[executor.submit(look_from, self._where, probe, instant)] = instant
                for future in as_completed(futures):
                    found = future.result()
                    waiting.remove(futures[future])
                    yield found
                return
            except BrokenProcessPool:
                self.close()
                if again:
                    raise ProbeError(
                        "a process that ran a probe died twice: is there enough memory for --jobs?"
                    ) from None
            finally:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the processes, and what they started."""
        executor, self._executor = self._executor, None
        if executor is not None:
            processes = list((executor._processes or {}).values())
            for process in processes:
                process.terminate()
            executor.shutdown(wait=False, cancel_futures=True)
            end = time.monotonic() + 2 * _CLEAN_UP_S
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
                process.kill()

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(
                self.jobs, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
            )
        return self._executor


class Dask:
    """Runs probes on a Dask cluster (package `distributed`), whose workers see the same files here.

    Raises `UsageError` where there is none.
    """

    def __init__(self, where: Where, address: str, jobs: int | None = None) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError(
                "--scheduler needs the package distributed: pip install 'tt-vmm[dask]'"
            ) from None
        client: Any = distributed.Client
        try:
            self._client = client(address, timeout=_ANSWER_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as e:
            raise UsageError(
                f"no Dask scheduler answers at {address}: {str(e) or type(e).__name__}"
            ) from None
        workers = len(self._client.nthreads())  # each runs one probe at a time, whatever its threads
        if not workers:
            self._client.close()
            raise UsageError(f"the Dask scheduler at {address} has no workers: start dask worker {address}")
        self.jobs = workers if jobs is None else jobs
        self._where = where

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Look]:
        """Yield the looks as they come."""
        import distributed

        completed: Any = distributed.as_completed
        futures = [self._client.submit(look_from, self._where, probe, at, pure=False) for at in instants]
        try:
            for future in completed(futures, loop=self._client.loop):
                try:
                    yield future.result()
                except ModuleNotFoundError as e:
                    raise ProbeError(f"a worker of the cluster has no tt that runs this probe: {e}") from None
                except (distributed.KilledWorker, distributed.CancelledError) as e:
                    raise ProbeError(f"the cluster gave up a probe: {str(e)[:200]}") from None
        finally:
            self._client.cancel([future for future in futures if not future.done()])

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


@contextmanager
def pool_for(history: History, base: Path | None, jobs: int, scheduler: str) -> Iterator[Pool]:
    """Give a pool for probes of a history: on the cluster of `scheduler`, in `jobs` processes, or here.

    `jobs` 0 is as many as the cluster has workers, or this host processors.
    """
    where = Where(history.trace.path.absolute(), base.absolute() if base else None, history.disk)
    pool: Pool
    if scheduler:
        pool = Dask(where, scheduler, jobs or None)
    else:
        jobs = jobs or len(os.sched_getaffinity(0))
        pool = Here(history) if jobs == 1 else Processes(where, jobs)
    try:
        yield pool
    finally:
        pool.close()


def look(probe: Probe, history: History, instant: int) -> Look:
    """Run a probe.

    A disk on which it cannot work (with no file system, say) counts as a crash, with the error as its
    signature.
    """
    disk = history.at(instant)
    begin = time.monotonic()
    try:
        verdict = probe.run(disk)
    except BadInput as e:
        what = str(e).replace(disk.where, "the disk")[:_LONGEST_SIGNATURE]
        return Look(instant, ProbeVerdict(Outcome.CRASH, what, seconds=time.monotonic() - begin), keep=False)
    return Look(instant, replace(verdict, cached=False), fingerprint(probe, history, instant))


def fingerprint(probe: Probe, history: History, instant: int) -> bytes | None:
    """Return a digest of all that a probe sees, where it can tell that without running; else None."""
    ask: Callable[..., bytes | None] | None = getattr(probe, "fingerprint", None)
    if ask is None:
        return None
    try:
        return ask(history.at(instant))
    except BadInput:
        return None


# ---- in a worker

_opened: dict[Where, History] = {}
_one_at_a_time = threading.Lock()  # neither histories nor probes may be used by several threads at once


def look_from(where: Where, probe: Probe, instant: int) -> Look:
    """Run a probe in a worker, which keeps the history open."""
    try:
        return _look_from(where, probe, instant)
    except SystemExit as e:  # raised by `_end`; the executor would take it for an answer
        _leave(int(e.code or 0))


def _look_from(where: Where, probe: Probe, instant: int) -> Look:
    with _one_at_a_time:
        history = _opened.get(where)
        if history is not None and history.count < instant:  # it has grown since it was opened
            _opened.pop(where).close()
            history = None
        if history is None:
            if not _opened:
                atexit.register(_close)
            history = History.open(where.path, base=where.base, disk=where.disk, check_base=False)
            _opened[where] = history
        return look(probe, history, instant)


def _begin(parent: int) -> None:
    """Make this worker end, with all that it started, when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this worker
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _end(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the clean-up must not be interrupted
    signal.signal(signal.SIGALRM, lambda _number, _frame: _leave(128 + number))  # should `SystemExit` be lost
    signal.setitimer(signal.ITIMER_REAL, _CLEAN_UP_S)
    sys.exit(128 + number)


def _leave(code: int) -> NoReturn:
    """End this worker now, with the commands that it runs and could not end itself."""
    own = os.getpgid(0)
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, listed.read_text().split()):
                with contextlib.suppress(OSError):
                    group = os.getpgid(pid)
                    if group == own:
                        os.kill(pid, signal.SIGKILL)
                    else:
                        os.killpg(group, signal.SIGKILL)
    os._exit(code)


def _close() -> None:
    for history in _opened.values():
        with contextlib.suppress(Exception):
            history.close()
    _opened.clear()
