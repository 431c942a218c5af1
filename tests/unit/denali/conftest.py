"""Fixtures for the Denali machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from denali_rig import KIT

from tt.vmm.denali.guest_build import build_kit


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo guest, built once."""
    return build_kit(KIT, tmp_path_factory.mktemp("demo"))
