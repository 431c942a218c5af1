"""Fetching packages, with an apt of our own making: no network, no Debian."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tt.errors import BadInput
from tt.guests import tools
from tt.guests.apt import Apt, Package, cache_directory, with_lists

DEB = b"the package\n"

# An apt-cache that knows `tool` from the lists in its Dir::State, or from the system's if SYSTEM=1.
APT_CACHE = f"""#!/bin/sh
for word; do
    case $word in -oDir::State=*) state=${{word#-oDir::State=}} ;; esac
done
if [ -z "$state" ] && [ -z "$SYSTEM" ] || [ -n "$state" ] && [ ! -e "$state/lists/Packages" ]; then
    echo "E: No packages found" >&2
    exit 100
fi
echo "Package: tool"
echo "Version: 1:2.0"
echo "Depends: other (= 2.0)"
echo "SHA256: {hashlib.sha256(DEB).hexdigest()}"
"""

APT_GET = r"""#!/bin/sh
echo "$*" >> "$LOG"
for word; do
    case $word in
        -oDir::State=*) state=${word#-oDir::State=} ;;
        update) [ -z "$OFFLINE" ] || { echo "E: no network" >&2; exit 100; }; touch "$state/lists/Packages" ;;
        download) printf "${CONTENT:-the package\n}" > tool_1%3a2.0_amd64.deb ;;
    esac
done
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the made-up apt first in PATH and return an empty cache directory."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_directory()


def fetch(apt: Apt) -> Path:
    return apt.fetch(apt.show("tool"))


def downloads(cache: Path) -> int:
    return (cache.parents[1] / "log").read_text().count(" download ")


def test_the_system_lists_serve_when_they_are_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", "1")
    path = with_lists(cache, fetch)
    assert path == cache / "tool_1%3a2.0_amd64.deb"
    assert path.read_bytes() == DEB
    assert not (cache / "apt").exists()


def test_private_lists_are_fetched_where_the_system_has_none(cache: Path) -> None:
    assert with_lists(cache, fetch).read_bytes() == DEB
    assert (cache / "apt" / "lists" / "Packages").exists()


def test_a_cached_package_is_not_fetched_again_unless_it_is_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEM", "1")
    path = with_lists(cache, fetch)
    with_lists(cache, fetch)
    assert downloads(cache) == 1
    path.write_bytes(b"damaged")
    assert with_lists(cache, fetch).read_bytes() == DEB
    assert downloads(cache) == 2


def test_no_network_and_no_lists_is_one_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE", "1")
    with pytest.raises(BadInput, match=r"^apt-get failed: E: no network; check apt's sources .*$"):
        with_lists(cache, fetch)


def test_a_download_that_is_not_what_the_lists_say_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTENT", "something else")
    with pytest.raises(BadInput, match="no good copy of tool 1:2.0"):
        with_lists(cache, fetch)
    assert not list(cache.glob("*.deb"))
    assert not list(cache.glob("download-*"))


def test_what_apt_says_of_a_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", "1")
    expected = Package("tool", "1:2.0", "other (= 2.0)", hashlib.sha256(DEB).hexdigest())
    assert Apt(cache).show("tool") == expected


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no-such-tool is not installed: install the package some-package"):
        tools.find("no-such-tool", "some-package")


def test_tools_in_sbin_are_found_without_it_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "mke2fs"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tools, "_SBIN", (str(tmp_path),))
    assert tools.find("mke2fs", "e2fsprogs") == str(tool)


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "tt"
