"""What two recordings of the same run have in common."""

from __future__ import annotations

from pathlib import Path

from tt.log import Trace


def story(path: Path) -> tuple[object, ...]:
    """Return everything in a sealed trace that must not depend on the host: digests third, events fourth."""
    with Trace.open(path) as trace:
        assert trace.sealed
        return (
            trace.end_tick,
            trace.reason,
            list(trace.digests()),
            list(trace.events()),
            [(write.tick, write.disk, write.lba, write.data()) for write in trace.disk_writes()],
            trace.summary.get("network"),
        )
