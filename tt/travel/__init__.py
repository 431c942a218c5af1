"""Going anywhere in a recording: positions, checkpoints, breakpoints and watchpoints in both directions."""

from tt.travel.timeline import Timeline
from tt.travel.writes import Write

__all__ = ["Timeline", "Write"]
