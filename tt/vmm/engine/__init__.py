"""The CPU: one x86-64 processor with exact instruction counts.

The only room that touches libunicorn; everything else talks to `Engine`.
"""

from tt.vmm.engine import library  # noqa: F401  libunicorn must be in the process before the extension
from tt.vmm.engine._engine import (
    BREAK,
    CATCH,
    DOUBLE_FAULT,
    FOREVER,
    HALT,
    SHUTDOWN,
    STOP,
    WATCH,
    Engine,
)

__all__ = ["BREAK", "CATCH", "DOUBLE_FAULT", "FOREVER", "HALT", "SHUTDOWN", "STOP", "WATCH", "Engine"]
