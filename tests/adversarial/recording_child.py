"""Run by the tests in a process of its own: record a guest as the JSON argument says.

    {"guest": FILE, "out": FILE, "ticks": N or null, "air_s": how often to commit, "hog": bool}

A guest named *.elf is one of Denali's.  Prints "started" once the machine exists,
and at the end the reason; an error tt raises on purpose goes to stderr as one
line, and its code is the exit code, as `tt` has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tt.errors import TTError
from tt.recording import record
from tt.vmm import live
from tt.vmm.configure import configure_denali, configure_pc
from tt.vmm.engine import FOREVER


def main() -> int:
    """Do it."""
    task = json.loads(sys.argv[1])
    live.COMMIT_EVERY_S = task.get("air_s", live.COMMIT_EVERY_S)
    guest = Path(task["guest"])
    configure = configure_denali if guest.suffix == ".elf" else configure_pc
    try:
        config = configure(guest, epoch=1_700_000_000, clock=task.get("clock", "virtual"))
        result = record(
            config,
            Path(task["out"]),
            overwrite=True,
            max_ticks=task.get("ticks") or FOREVER,
            entropy=live.seeded_entropy(7),
            on_start=lambda machine: print("started", flush=True),
        )
    except TTError as e:
        print(f"tt: {e}", file=sys.stderr)
        return e.exit_code
    print(result.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
