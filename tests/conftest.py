"""Guests and traces that many tests share, each made once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import ROOT, TT, Inside

# Started under nohup, or in the background of a script: the tests of signals, and what they start, are to
# have them as anybody else has.
for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session")
def denali_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo guest of the Denali machine, an ELF file."""
    from tt.vmm.denali.guest_build import build_kit

    return build_kit(ROOT / "guests" / "denali", tmp_path_factory.mktemp("denali"))


@pytest.fixture(scope="session")
def demo_trace(denali_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of the demo guest."""
    from tt.recording import record
    from tt.vmm.configure import configure

    path = tmp_path_factory.mktemp("traces") / "demo.tt"
    record(configure(denali_demo, epoch=1_700_000_000), path)
    return path


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """Return the Debian guest's image, built once, kept in the cache; skip where there are no packages."""
    from tt.errors import BadInput
    from tt.guests import apt, debian

    for tool in ("apt-get", "dpkg-deb", "mke2fs", "debugfs"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is not installed")
    folder = apt.cache_directory() / f"test-guest-{debian.recipe()}"
    image = folder / "debian.img"
    with _alone(folder):
        if not image.exists():
            try:
                debian.build(folder)
            except BadInput as e:
                pytest.skip(f"no Debian guest: {e}")
    return image


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep the other workers of a parallel run out of `folder`."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def tt(tmp_path: Path) -> TT:
    """Return the `tt` command."""
    return TT(tmp_path)


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    """Return the `tt` command without a process of its own, in the same folder as `tt`."""
    return Inside(tmp_path)


@pytest.fixture
def chronus(tmp_path: Path) -> Inside:
    """Return the `chronus` command without a process of its own, in the same folder as `tt`."""
    from tt.cli.chronus.main import CHRONUS

    return Inside(tmp_path, CHRONUS)
