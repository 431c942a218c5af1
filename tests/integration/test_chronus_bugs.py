"""Real configuration bugs on a Debian server with real packages, each found by its probe."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from chronus_bugs import BUGS, LOGIN, Bug, life, milestones, script_image

from tt.chronus.probes.console import ConsoleProbe
from tt.chronus.probes.files import FilesProbe
from tt.chronus.probes.guest import GuestProbe
from tt.chronus.runners.runner import setup_of
from tt.chronus.search.bisect import Bisection, Options, bisect
from tt.chronus.search.verdicts import Outcome, Probe
from tt.chronus.store.history import History
from tt.chronus.why.finding import explain
from tt.guests.apt import cache_directory
from tt.recording import record
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource, seeded_entropy

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[1] / "tools"
EPOCH = 1_750_000_000
NEIGHBOURS = 2  # bugs before and after, whose writes are searched too: thousands


@pytest.fixture(scope="session")
def server_life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of the server's life, made once and kept in the cache."""
    if os.geteuid():
        pytest.skip("debootstrap needs root")
    for tool in ("debootstrap", "mke2fs"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is not installed")
    recipe = hashlib.sha256((TOOLS / "server_image.py").read_bytes() + life().encode()).hexdigest()[:12]
    folder = cache_directory() / f"test-server-{recipe}"
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        if not (folder / "life.tt").exists():
            from server_image import build

            build(folder)
            live(folder / "server.img", script_image(folder / "life.img"), folder / "partial.tt")
            (folder / "partial.tt").replace(folder / "life.tt")
    return folder / "life.tt"


def live(image: Path, script: Path, out: Path) -> None:
    """Record the server's life."""
    config = configure(image, disks=[script], append="init=/bin/sh -- /dev/vdb", epoch=EPOCH)
    result = record(
        config, out, LiveSource(forever=True), overwrite=True, entropy=seeded_entropy(2), timeout_s=500
    )
    assert result.reason == "reset", result.reason


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / "lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def probe_of(bug: Bug, history: History) -> Probe:
    """Return the probe by which a bug is seen."""
    if bug.how == "files":
        return FilesProbe(bug.probe, ("/etc",))
    setup = setup_of(history, timeout_s=60)
    if bug.how == "console":
        return ConsoleProbe(bug.probe, bug.name, "tt", replace(setup, append=LOGIN))
    return GuestProbe(bug.probe, "tt", setup, early=True)


def span_of(bug: Bug, history: History) -> tuple[int, int, int, int]:
    """Return the instants between which to search, and those between which it broke."""
    at = {text: history.instant_at_tick(tick) for text, tick in milestones(history.trace).items()}
    names = [each.name.replace(" ", "-") for each in BUGS]
    name, number = bug.name.replace(" ", "-"), BUGS.index(bug)
    good = at["DONE start"] if number < NEIGHBOURS else at[f"DONE {names[number - NEIGHBOURS]}"]
    bad = at["DONE end"] if number + NEIGHBOURS >= len(BUGS) else at[f"DONE {names[number + NEIGHBOURS]}"]
    if bug.mends:
        bad = at[f"STEP mend-{name}"]
    return good, bad, at[f"STEP {name}"], at[f"DONE {name}"]


def found_by(bug: Bug, history: History) -> tuple[Bisection, list[str]]:
    """Search, and return what was found and which files are named."""
    good, bad, _step, _done = span_of(bug, history)
    options = Options(keep=False, bursts=bug.how != "files")
    found = bisect(history, probe_of(bug, history), good, bad, options)
    return found, explain(history, found.turns[0], None, found, author=False).paths


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_bug_is_found(server_life: Path, bug: Bug) -> None:
    with History.open(server_life) as history:
        _good, _bad, step, done = span_of(bug, history)
        found, paths = found_by(bug, history)
        turn = found.turns[0]
        assert step < turn.after <= done
        assert bug.guilty in paths
        assert found.ran <= 21


def test_what_broke_twice_is_found_twice(server_life: Path) -> None:
    bug = BUGS[0]
    with History.open(server_life) as history:
        good, _bad, step, done = span_of(bug, history)
        ticks = milestones(history.trace)
        again = history.instant_at_tick(ticks["STEP sshd-typo-again"])
        probe = FilesProbe("! grep -q PermitRot etc/ssh/sshd_config", ("/etc/ssh",))
        turns = bisect(history, probe, good, history.count, Options(every=True, keep=False)).turns
        assert [turn.becomes_bad for turn in turns] == [True, False, True]
        assert step < turns[0].after <= done
        assert turns[2].after > again


@pytest.mark.parametrize("span", ["upgrade", "kernel"])
def test_while_nothing_boots_nothing_is_judged(server_life: Path, span: str) -> None:
    with History.open(server_life) as history:
        ticks = milestones(history.trace)
        at = {text: history.instant_at_tick(tick) for text, tick in ticks.items()}
        ends = [burst.after for burst in history.bursts(at[f"STEP {span}"], at[f"DONE {span}"])]
        probe = GuestProbe("true", "tt", setup_of(history, timeout_s=60), early=True)
        outcomes = [probe.run(history.at(instant)).outcome for instant in ends[:3]]
        assert Outcome.CRASH in outcomes and Outcome.BAD not in outcomes
        assert probe.run(history.at(at[f"DONE {span}"])).outcome is Outcome.GOOD
