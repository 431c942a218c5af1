"""Fetch Debian packages with apt as an ordinary user: nothing is installed and no system state changes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tt.errors import BadInput
from tt.guests import tools

ARCHITECTURE = "amd64"

T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """One version of a Debian package, as apt's lists describe it."""

    name: str
    version: str
    depends: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name of its file in the cache (`:` of an epoch written `%3a`, as apt does)."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{ARCHITECTURE}.deb"


class Apt:
    """apt with the machine's own sources, keeping what it fetches under `cache`.

    With `private` it keeps its lists under `cache` too, for machines where
    those of the system are missing or too old; only root may renew those.
    """

    def __init__(self, cache: Path, private: bool = False) -> None:
        self.cache = cache
        self._apt_get = tools.find("apt-get", "apt")
        self._apt_cache = tools.find("apt-cache", "apt")
        # One retry: apt's own three, for each of the lists tried here, make an offline user wait a minute.
        self._options = [f"-oAPT::Architecture={ARCHITECTURE}", "-oAcquire::Retries=1"]
        if private:
            status = cache / "apt" / "status"
            (cache / "apt" / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            status.touch()
            self._options += [
                f"-oDir::State={cache / 'apt'}",
                f"-oDir::State::status={status}",
                f"-oDir::Cache={cache / 'apt'}",
                # Hooks of the system's configuration are for its own lists, and want root.
                "-oAPT::Update::Post-Invoke=",
                "-oAPT::Update::Post-Invoke-Success=",
            ]

    def update(self) -> None:
        """Fetch the lists of packages (only a private apt may)."""
        tools.run([self._apt_get, *self._options, "-qq", "--error-on=any", "update"])

    def show(self, name: str) -> Package:
        """Return the version of `name` that apt would install; raises `ToolFailed` if it knows none."""
        command = [self._apt_cache, *self._options, "show", "--no-all-versions", f"{name}:{ARCHITECTURE}"]
        text = tools.run(command).stdout
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", text.split("\n\n")[0], re.MULTILINE))
        if not {"Package", "Version", "SHA256"} <= fields.keys():
            raise tools.ToolFailed(f"apt-cache does not know the package {name}")
        return Package(fields["Package"], fields["Version"], fields.get("Depends", ""), fields["SHA256"])

    def cached(self, package: Package) -> bool:
        """Tell whether the cache has the package, undamaged."""
        return _sha256(self.cache / package.file_name) == package.sha256

    def fetch(self, package: Package) -> Path:
        """Return the package's file, from the cache if it is there.

        Either way the file has the SHA-256 that apt's signed lists say.
        """
        path = self.cache / package.file_name
        if self.cached(package):
            return path
        # Into a directory of its own, then renamed: a broken download never has the final name.
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="download-") as directory:
            wanted = f"{package.name}:{ARCHITECTURE}={package.version}"
            tools.run([self._apt_get, *self._options, "-qq", "download", wanted], cwd=Path(directory))
            got = next(Path(directory).glob("*.deb"), None)
            if got is None or _sha256(got) != package.sha256:
                raise tools.ToolFailed(f"apt-get brought no good copy of {package.name} {package.version}")
            got.replace(path)
        return path


def cache_directory() -> Path:
    """Return tt's cache directory, made if it is missing: `$XDG_CACHE_HOME/tt`, else `~/.cache/tt`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a path that is not absolute is to be ignored.
    try:
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
        cache = root / "tt"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as e:
        raise BadInput(
            f"cannot make the cache directory: {e}; set XDG_CACHE_HOME to one you can write"
        ) from None
    return cache


def with_lists(cache: Path, action: Callable[[Apt], T]) -> T:
    """Return `action(apt)` with the first set of package lists with which it succeeds.

    First the system's lists, then private ones kept from an earlier run, then
    private ones fetched anew.  Raises `BadInput` where none does.
    """
    attempts: list[Callable[[], Apt]] = [
        lambda: Apt(cache),
        lambda: Apt(cache, private=True),
        lambda: _updated(Apt(cache, private=True)),
    ]
    for attempt in attempts:
        try:
            return action(attempt())
        except tools.ToolFailed as e:
            failure = e
    raise BadInput(f"{failure}; check apt's sources (they need Debian's main section) and the network")


def _updated(apt: Apt) -> Apt:
    apt.update()
    return apt


def unpack(packages: Sequence[Path], directory: Path) -> None:
    """Unpack package files into `directory`, without installing anything."""
    dpkg_deb = tools.find("dpkg-deb", "dpkg")
    for package in packages:
        tools.run([dpkg_deb, "-x", str(package), str(directory)])


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return ""
