"""Going anywhere in a recording: positions, checkpoints, breakpoints and watchpoints in both directions."""

from tt.travel.timeline import Timeline, Write

__all__ = ["Timeline", "Write"]
