"""One piece of work in a process of its own, for the other benchmarks to time from outside.

    one_run.py record '{"guest": "debian.img", "out": "x.tt"}'    no "out": logging off
    one_run.py alternate '{"guest": "debian.img", "out": "x.tt", "rounds": 5}'
    one_run.py replay '{"trace": "x.tt"}'
    one_run.py open   '{"trace": "x.tt"}'                         a timeline at the end of it
    one_run.py boot   '{"guest": "debian.img", "double": true}'   timed inside, from power-on

The last line printed is the result, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def record_guest(
    guest: str,
    out: str | None = None,
    ticks: int | None = None,
    epoch: int = 0,
    script: str = "",
    seed: int | None = None,
    settings: dict[str, int] | None = None,
    checkpoint_ticks: int | None = None,
) -> dict[str, Any]:
    """Record a guest headless until it waits for input, or run it the same way with logging off.

    The lines of `script` are typed at its prompts.  `settings` replaces constants of `tt.recording`
    and of `tt.vmm.spacing`.
    """
    import tt.recording
    import tt.vmm.spacing
    from tt.cli.keyboard import script_lines
    from tt.vmm.engine import FOREVER
    from tt.vmm.live import LiveSource, seeded_entropy

    for name, value in (settings or {}).items():
        module = tt.recording if hasattr(tt.recording, name) else tt.vmm.spacing
        getattr(module, name)  # fails for a name that no longer exists: setting it would change nothing
        setattr(module, name, value)
    result = tt.recording.record(
        _config(guest, epoch),
        Path(out) if out else None,
        LiveSource(script=script_lines(script.encode())),
        overwrite=True,
        max_ticks=ticks or FOREVER,
        checkpoint_ticks=checkpoint_ticks,
        entropy=os.urandom if seed is None else seeded_entropy(seed),
    )
    return {"ticks": result.end_tick, "run_s": result.host_s, "reason": result.reason}


def alternate(
    guest: str, out: str, rounds: int, ticks: int | None = None, epoch: int = 0
) -> dict[str, list[dict[str, float]]]:
    """Run a guest with logging off and recorded in turns, in this one process, start-up left out."""
    from tt.recording import record
    from tt.vmm.engine import FOREVER

    config = _config(guest, epoch)
    times: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for number in range(rounds + 1):  # the first, which warms up, does not count
        for name, path in (("off", None), ("on", Path(out))):
            wall, cpu = time.perf_counter(), time.process_time()
            record(config, path, overwrite=True, max_ticks=ticks or FOREVER, entropy=bytes)
            if number:
                times[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    return times


def replay_trace(trace: str) -> dict[str, Any]:
    """Replay a trace to its end, checking everything."""
    from tt.log import Trace
    from tt.replay import Replay

    with Trace.open(trace) as opened:
        replay = Replay(opened)
        replay.finish()
        return {"ticks": replay.tick, "events": replay.checker.checked, "digests": replay.digests_checked}


def open_trace(trace: str) -> dict[str, Any]:
    """Open a trace and go to its end, timed inside: imports are left out."""
    from tt.log import Trace
    from tt.travel import Timeline

    marks = [(time.perf_counter(), time.process_time())]
    with Trace.open(trace) as opened:
        timeline = Timeline(opened)
        marks.append((time.perf_counter(), time.process_time()))
        timeline.seek(timeline.end_tick)
        marks.append((time.perf_counter(), time.process_time()))
    facts = {}
    for name, start, end in (("open", 0, 1), ("seek", 1, 2), ("total", 0, 2)):
        facts[f"{name}_s"], facts[f"{name}_cpu_s"] = (
            b - a for a, b in zip(marks[start], marks[end], strict=True)
        )
    return facts


def boot(guest: str, double: bool = False, ticks: int | None = None, epoch: int = 0) -> dict[str, Any]:
    """Boot with logging off, timing only the run itself; `double` executes the tick bookkeeping twice."""
    from tt.recording import record
    from tt.vmm.engine import FOREVER

    def start(machine: Any) -> None:
        started.append(machine)
        if double:
            machine.engine.double_bookkeeping()
        started.append((time.perf_counter(), time.process_time()))

    started: list[Any] = []
    result = record(_config(guest, epoch), None, max_ticks=ticks or FOREVER, entropy=bytes, on_start=start)
    machine, (wall, cpu) = started
    return {
        "ticks": result.end_tick,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "statistics": machine.engine.statistics,
    }


def _config(guest: str, epoch: int) -> Any:
    from tt.vmm.configure import configure_denali, configure_pc

    return (configure_denali if guest.endswith(".elf") else configure_pc)(Path(guest), epoch=epoch)


WORK = {
    "record": record_guest,
    "alternate": alternate,
    "replay": replay_trace,
    "open": open_trace,
    "boot": boot,
}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](**json.loads(sys.argv[2]))))
