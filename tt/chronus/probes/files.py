"""`--files`: a command on the host looks at the files as they were; nothing is booted."""

from __future__ import annotations

import atexit
import time
from dataclasses import dataclass

from tt.chronus.files.checkout import Checkout
from tt.chronus.probes.exit_codes import outcome_of
from tt.chronus.probes.host import named_files, run_command
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.view import DiskView

_checkouts: dict[tuple[str, ...], Checkout] = {}  # kept by this process, for its next probe


@dataclass(frozen=True)
class FilesProbe:
    """Run `command` by the host's shell in a folder with the files below `paths`.

    Its environment has CHRONUS_ROOT (the folder), CHRONUS_FILES (JSON lines: path, kind, mode, uid, gid,
    size, mtime, link of each file) and CHRONUS_INSTANT.
    """

    command: str
    paths: tuple[str, ...] = ("/",)
    timeout_s: float = 60.0

    def key(self) -> str:
        """Return a text that identifies this probe."""
        return f"files {self.paths!r} {self.command!r} {named_files(self.command)}"

    def describe(self) -> str:
        """Return one line that describes the probe."""
        return f"--files {self.command!r}"

    def fingerprint(self, disk: DiskView) -> bytes | None:
        """Return a digest of the files that the command will see."""
        checkout = self._checkout()
        checkout.move(disk)
        return checkout.fingerprint()

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Run the command; see `Probe.run`."""
        checkout = self._checkout()
        checkout.move(disk)
        environment = {
            "CHRONUS_ROOT": str(checkout.root),
            "CHRONUS_FILES": str(checkout.manifest),
            "CHRONUS_INSTANT": disk.where,
        }
        begin = time.monotonic()
        code, output = run_command(self.command, environment, self.timeout_s, checkout.root)
        outcome = Outcome.HANG if code is None else outcome_of(code, self.command)
        return ProbeVerdict(outcome, exit_code=code, output=output, seconds=time.monotonic() - begin)

    def _checkout(self) -> Checkout:
        found = _checkouts.get(self.paths)
        if found is None:
            if not _checkouts:
                atexit.register(_remove)
            found = _checkouts[self.paths] = Checkout(self.paths)
        return found


def _remove() -> None:
    for checkout in _checkouts.values():
        checkout.close()
    _checkouts.clear()
