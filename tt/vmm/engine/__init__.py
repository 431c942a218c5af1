"""The CPU: one x86-64 processor with exact instruction counts.

The only room that touches libunicorn; everything else talks to `Engine`.
"""

import unicorn  # noqa: F401  its library must be in the process before the extension binds to it

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
