"""Where probes run: several processes that end with their parent, and a Dask cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tt.chronus.search.bisect import Options, bisect, default_log
from tt.chronus.search.pool import Processes, Where
from tt.chronus.search.verdict_log import read
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.history import History, Instant
from tt.chronus.store.live import create
from tt.chronus.store.view import DiskView
from tt.errors import BadInput, UsageError
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter

WRITES = 60
TURN = 41


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.tt"
    create(path, None, 64 * 4096)
    with DiskWriter(path) as writer:
        for number in range(1, WRITES + 1):
            writer.add(0, ChangeKind.DATA, number % 60 * 8, 8, b"%8d" % number * 512, number * 10**9)
        writer.seal("made")
    return path


@dataclass(frozen=True)
class Notes:
    """A probe that leaves a line in a file for every run, and may misbehave at some instants."""

    notes: Path
    sleep_s: float = 0.0
    dies_at: int = -1
    dies_once: bool = False
    refuses_at: int = -1
    unreadable_at: int = -1
    child: bool = False

    def key(self) -> str:
        return "notes"

    def describe(self) -> str:
        return "--notes"

    def run(self, disk: DiskView) -> ProbeVerdict:
        assert isinstance(disk, Instant)
        with self.notes.open("a") as f:
            f.write(f"{disk.number} {os.getpid()}\n")
        if disk.number == self.dies_at and not (self.dies_once and self._runs(disk.number) > 1):
            os._exit(9)
        if disk.number == self.refuses_at:
            raise ProbeError("cannot be run: chmod +x")
        if disk.number == self.unreadable_at:
            raise BadInput(f"{disk.where} has no file system")
        if self.child:
            from tt.chronus.probes.host import run_command

            run_command(f"echo $$ >> {self.notes}.children; sleep 100", {}, 100)
        time.sleep(self.sleep_s)
        return ProbeVerdict(Outcome.BAD if disk.number >= TURN else Outcome.GOOD)

    def _runs(self, number: int) -> int:
        return sum(line.split()[0] == str(number) for line in self.notes.read_text().splitlines())


def found_by(path: Path, probe: Notes, options: Options) -> tuple[int, ...]:
    with History.open(path) as history:
        return bisect(history, probe, 0, WRITES, options).turns[0].candidates


@pytest.mark.slow
def test_several_processes_find_what_one_finds(path: Path, tmp_path: Path) -> None:
    probe = Notes(tmp_path / "notes")
    assert found_by(path, probe, Options(jobs=3)) == (TURN,)
    workers = {line.split()[1] for line in probe.notes.read_text().splitlines()}
    assert 1 <= len(workers) <= 3
    assert str(os.getpid()) not in workers
    assert found_by(path, probe, Options(jobs=3, wrong=0.1, keep=False)) == (TURN,)
    assert found_by(path, probe, Options(jobs=2, repeat=3, keep=False)) == (TURN,)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_once(path: Path, tmp_path: Path) -> None:
    assert found_by(path, Notes(tmp_path / "a", dies_at=WRITES, dies_once=True), Options(jobs=2)) == (TURN,)
    with pytest.raises(ProbeError, match="died twice"):
        found_by(path, Notes(tmp_path / "b", dies_at=WRITES), Options(jobs=2, keep=False))


@pytest.mark.slow
def test_errors_of_a_probe_come_back(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="chmod"):
        found_by(path, Notes(tmp_path / "a", refuses_at=WRITES), Options(jobs=2))
    with pytest.raises(BadInput, match="does not exist"):
        list(Processes(Where(tmp_path / "nothing.tt"), 1).run(Notes(tmp_path / "b"), [1]))


def test_a_disk_that_a_probe_cannot_read_is_skipped_and_not_kept(path: Path, tmp_path: Path) -> None:
    assert found_by(path, Notes(tmp_path / "a", unreadable_at=TURN), Options()) == (TURN, TURN + 1)
    with History.open(path) as history:
        assert TURN not in [entry.instant for entry in read(default_log(history))]


SEARCH = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_pool import Notes, WRITES
from tt.chronus.search.bisect import Options, bisect
from tt.chronus.store.history import History
if __name__ == "__main__":
    jobs, child = int(sys.argv[4]), bool(int(sys.argv[5]))
    with History.open(sys.argv[1]) as history:
        probe = Notes(Path(sys.argv[2]), sleep_s=0.1, child=child)
        found = bisect(history, probe, 0, WRITES, Options(jobs=jobs))
    print(found.turns[0].candidates)
"""


def searching(path: Path, notes: Path, jobs: int, child: bool = False) -> subprocess.Popen[bytes]:
    script = notes.with_suffix(".py")
    script.write_text(SEARCH)
    here = str(Path(__file__).parent)
    command = [sys.executable, str(script), str(path), str(notes), here, str(jobs), str(int(child))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_search_that_is_killed_goes_on(path: Path, tmp_path: Path, jobs: int) -> None:
    """`kill -9` at every stage: what was probed is not probed again, and the answer is the same."""
    notes = tmp_path / "notes"
    for kills in range(1, 4):
        process = searching(path, notes, jobs)
        wait_for(lambda wanted=2 * kills: notes.exists() and len(notes.read_text().splitlines()) >= wanted)
        process.kill()
        process.wait()
    process = searching(path, notes, jobs)
    said, _ = process.communicate(timeout=60)
    assert said.decode().strip() == f"({TURN},)"
    lines = [line.split() for line in notes.read_text().splitlines()]
    runs = [instant for instant, _pid in lines]
    # Only what was under way when it was killed ran again.
    assert len(runs) - len(set(runs)) <= 3 * jobs
    wait_for(lambda: not any(alive(int(pid)) for _instant, pid in lines), 10)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_search(path: Path, tmp_path: Path, how: signal.Signals) -> None:
    notes = tmp_path / "notes"
    children = Path(f"{notes}.children")
    process = searching(path, notes, 2, child=True)
    wait_for(lambda: children.exists() and len(children.read_text().splitlines()) == 2)
    process.send_signal(how)
    process.wait(timeout=30)
    workers = [int(line.split()[1]) for line in notes.read_text().splitlines()]
    pids = [int(line) for line in children.read_text().splitlines()]
    wait_for(lambda: not any(map(alive, workers + pids)), 20)


# Dask


def test_a_scheduler_that_is_not_there(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match="no Dask scheduler answers at nonsense"):
        found_by(path, Notes(tmp_path / "notes"), Options(scheduler="nonsense://nowhere"))


@pytest.mark.slow
def test_a_dask_cluster_finds_what_one_process_finds(path: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    here = str(Path(__file__).parent)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        with distributed.Client(cluster) as client:
            client.run(sys.path.insert, 0, here)
        probe = Notes(tmp_path / "notes")
        options = Options(scheduler=cluster.scheduler_address, jobs=0)
        assert found_by(path, probe, options) == (TURN,)
        workers = {line.split()[1] for line in probe.notes.read_text().splitlines()}
        assert str(os.getpid()) not in workers
        assert found_by(path, probe, options) == (TURN,), "from the log"
        with pytest.raises(ProbeError, match="chmod"):
            found_by(
                path,
                Notes(tmp_path / "b", refuses_at=WRITES),
                Options(scheduler=cluster.scheduler_address, keep=False),
            )
