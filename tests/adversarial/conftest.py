"""Fixtures of the adversarial tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from adversary_rig import BUSY, KIT, debian_image, demo_config

from tt.recording import record
from tt.vmm.denali.guest_build import build_guest, build_kit


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Denali demo guest, built once."""
    return build_kit(KIT, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Denali guest that never ends and always does something."""
    folder = tmp_path_factory.mktemp("busy")
    (folder / "busy.c").write_text(BUSY)
    build_guest([folder / "busy.c"], folder / "busy.elf", kit=KIT)
    return folder / "busy.elf"


@pytest.fixture(scope="session")
def debian() -> Path:
    """Return the Debian guest's image."""
    return debian_image()


@pytest.fixture(scope="session")
def demo_trace(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound recording of the Denali demo on a small disk."""
    path = tmp_path_factory.mktemp("demo") / "demo.tt"
    record(demo_config(demo, disk_bytes=8 * 4096), path)
    return path
