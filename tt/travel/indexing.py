"""Adding checkpoints to a trace that was recorded without them, or with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tt.errors import UsageError
from tt.log import Trace
from tt.log.index import CheckpointIndex
from tt.recording import CHECKPOINT_RAM
from tt.replay import Replay
from tt.vmm.spacing import Spacing


def add_checkpoints(
    path: Path,
    bases: dict[int, Path] | None = None,
    every_ticks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Replay the trace at `path`, keeping a checkpoint in it each `every_ticks`; return how many.

    Without `every_ticks` they stand where the host has run long enough, as a recorder's do.
    They replace those that it has.  The replay is compared with the record all the way.
    Raises `UsageError` for a trace that is not sealed, `Divergence` and `BadInput` as
    replaying does; the trace is then unchanged.
    """
    if every_ticks is not None and every_ticks <= 0:
        raise UsageError(f"a checkpoint each {every_ticks} ticks cannot be: give a positive number")
    with Trace.open(path) as trace:
        if not trace.sealed:
            raise UsageError(f"{path} was cut off, or is being recorded: index a finished one")
        replay = Replay(trace, bases)
        engine = replay.machine.engine
        most_bytes = CHECKPOINT_RAM * engine.size
        with CheckpointIndex(path, most_bytes) as index:
            engine.take_changes()  # power-on is not stored
            spacing = Spacing(replay.machine, every_ticks)
            while spacing.next < trace.end_tick:
                replay.run_to(spacing.next)
                if progress is not None:
                    progress(spacing.next, trace.end_tick)
                if not spacing.due():
                    continue
                pages, contents = engine.take_changes()
                state = replay.machine.save()
                index.add(replay.tick, state, engine.ram_digest(), pages, contents, spacing.cost)
                spacing.kept()
            replay.finish()
            trace.close()
            return index.install()
