"""What a probe's exit code means: as for `git bisect run`, but one that cannot be run gives no verdict."""

from __future__ import annotations

import signal

from tt.chronus.search.verdicts import Outcome, ProbeError

RULE = "0 is good, 1 to 124 bad, 125 a skip"
_NOT_RUNNABLE = {
    126: "make it executable, with chmod +x",
    127: "no such command is found there, give its path",
}


def outcome_of(code: int, command: str, where: str = "") -> Outcome:
    """Return the outcome for an exit code (below 0: killed by that signal).

    Raises `ProbeError` for a command that cannot be run or was killed, `KeyboardInterrupt` for Ctrl-C.
    """
    if code in _NOT_RUNNABLE:
        raise ProbeError(f"{command!r} cannot be run{where} (exit code {code}): {_NOT_RUNNABLE[code]}")
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    if code < 0 or code >= 128:
        how = f"was killed by signal {-code}" if code < 0 else f"exits with {code}"
        raise ProbeError(f"{command!r} {how}{where}, which is no verdict on the disk: {RULE}")
    if code == 125:
        return Outcome.SKIP
    return Outcome.BAD if code else Outcome.GOOD
