"""Record whole virtual machines, and go anywhere in their past.

The public names, loaded when they are first used::

    import tt

    config = tt.configure("debian.img")                  # look into the guest, describe its machine
    tt.record(config, "debian.tt", max_ticks=2 * 10**9)  # run it, write down what happens to it

    with tt.open("debian.tt") as trace:                  # Trace: events, disk writes, console, SQL
        replay = tt.Replay(trace)                        # the same machine, fed from the trace
        replay.run_to(trace.resolve("50%"))              # exact to the instruction
        replay.machine.engine.registers()
        tt.verify(trace).good                            # everything, compared with the record

        timeline = tt.Timeline(trace)                    # forwards and backwards, by checkpoints
        timeline.seek("90%")
        timeline.reverse_step()
        timeline.last_write(0xFFFFFFFF82A1AA40)          # who wrote this?
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tt.errors import BadInput, Divergence, EngineError, TTError, UsageError
    from tt.log import Trace
    from tt.recording import Recording, record
    from tt.replay import Replay, Verdict, verify
    from tt.travel import Timeline
    from tt.vmm.config import MachineConfig
    from tt.vmm.configure import configure
    from tt.vmm.live import LiveSource
    from tt.vmm.machine import Machine

    open = Trace.open
    __version__: str

_HOMES = {
    **dict.fromkeys(("BadInput", "Divergence", "EngineError", "TTError", "UsageError"), "tt.errors"),
    "Trace": "tt.log",
    **dict.fromkeys(("Recording", "record"), "tt.recording"),
    **dict.fromkeys(("Replay", "Verdict", "verify"), "tt.replay"),
    "MachineConfig": "tt.vmm.config",
    "configure": "tt.vmm.configure",
    "LiveSource": "tt.vmm.live",
    "Machine": "tt.vmm.machine",
    "Timeline": "tt.travel",
}

__all__ = [
    "BadInput",
    "Divergence",
    "EngineError",
    "LiveSource",
    "Machine",
    "MachineConfig",
    "Recording",
    "Replay",
    "TTError",
    "Timeline",
    "Trace",
    "UsageError",
    "Verdict",
    "configure",
    "open",
    "record",
    "verify",
]


def _refuse_if_not_built() -> None:
    """Say in one line what is missing, where this is a checkout in which nothing was built."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib takes a while to load
    names = os.listdir(os.path.join(here, "vmm", "engine"))  # noqa: PTH118, PTH208
    if any(name.startswith("_engine.") and name.endswith((".so", ".pyd")) for name in names):
        return
    checkout = os.path.dirname(here)  # noqa: PTH120
    message = f"tt's engine is not built here: run `pip install -e .` in {checkout}"
    if os.path.basename(sys.argv[0]) in ("tt", "chronus") or "-m" in sys.orig_argv[1:2]:  # noqa: PTH119
        raise SystemExit(f"tt: {message}")
    raise ImportError(message)


_refuse_if_not_built()


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "open":
        value = import_module("tt.log").Trace.open
    elif name == "__version__":
        from importlib import metadata

        try:
            value = metadata.version("tt-vmm")
        except metadata.PackageNotFoundError:
            value = "(not installed)"
    else:
        raise AttributeError(f"module 'tt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
