"""The console of a Denali machine: bytes out at once, typed bytes kept until the guest takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tt.vmm.denali.registers import REFUSED, is_buffer
from tt.vmm.memory import Memory
from tt.vmm.state import misfit, pack, unpack

TRANSFER_LIMIT = 4096
"""Most bytes one console instruction moves."""

TYPED_LIMIT = 65536
"""Most typed bytes that wait for the guest; what is typed beyond is lost."""


@dataclass
class State:
    """What was typed: what the guest can read, and what it can after the next hand-over."""

    typed: bytearray = field(default_factory=bytearray)
    arrived: bytearray = field(default_factory=bytearray)


class Console:
    """A byte console; `on_output` gets what the guest prints, one instruction's bytes at a time."""

    def __init__(self, memory: Memory, on_output: Callable[[bytes], object]) -> None:
        self._memory = memory
        self._on_output = on_output
        self._typed = bytearray()  # what the guest can read
        self._arrived = bytearray()  # what it can read after the next hand-over

    def write(self, addr: int, size: int) -> int:
        """Print `size` bytes at guest-physical `addr`; return `size`, or REFUSED."""
        if size > TRANSFER_LIMIT or addr + size > self._memory.size:
            return REFUSED
        if size:
            self._on_output(self._memory.read(addr, size))
        return size

    def read(self, addr: int, size: int) -> int:
        """Move at most `size` typed bytes to guest-physical `addr`; return how many, or REFUSED."""
        if size > TRANSFER_LIMIT or not is_buffer(addr, size, self._memory.size):
            return REFUSED
        data = bytes(self._typed[:size])
        del self._typed[:size]
        self._memory.write(addr, data)
        return len(data)

    def typed(self, data: bytes) -> None:
        """Keep typed bytes for the next hand-over."""
        self._arrived += data[: TYPED_LIMIT - len(self._typed) - len(self._arrived)]

    @property
    def arrived(self) -> bool:
        """Whether something was typed since the last hand-over."""
        return bool(self._arrived)

    @property
    def empty(self) -> bool:
        """Whether the guest has read all that was typed."""
        return not self._typed and not self._arrived

    def hand_over(self) -> bool:
        """Make what has been typed readable; return whether there was anything."""
        arrived = bool(self._arrived)
        self._typed += self._arrived
        self._arrived.clear()
        return arrived

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(State(self._typed, self._arrived))

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        saved = unpack(State, state, "console")
        if len(saved.typed) + len(saved.arrived) > TYPED_LIMIT:
            raise misfit("console.arrived", f"more than {TYPED_LIMIT} bytes wait")
        self._typed, self._arrived = saved.typed, saved.arrived
