"""Run the host's tools, with errors that a person can act on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tt.errors import BadInput

# Ordinary users often have no sbin in PATH, where Debian keeps mke2fs and debugfs.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class Output(NamedTuple):
    """What a tool printed."""

    stdout: str
    stderr: str


class ToolFailed(BadInput):
    """A tool of the host ran and failed; the message ends with the line it gave as its reason."""


def find(tool: str, package: str) -> str:
    """Return the path of `tool`; raises `BadInput` naming the Debian `package` that has it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
    found = shutil.which(tool, path=path)
    if found is None:
        raise BadInput(f"{tool} is not installed: install the package {package} (apt install {package})")
    return found


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Output:
    """Run `command` in the C locale and return what it printed; raises `ToolFailed` if it fails."""
    full_env = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=full_env, input=stdin, capture_output=True, text=True, errors="replace"
        )
    except OSError as e:
        raise ToolFailed(f"cannot run {command[0]}: {e}") from None
    if done.returncode:
        raise ToolFailed(f"{Path(command[0]).name} failed: {_reason(done.stderr or done.stdout)}")
    return Output(done.stdout, done.stderr)


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E: ")]
    return (errors or lines or ["it gave no reason"])[-1]
