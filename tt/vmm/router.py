"""Device events as messages, each with a default handler or an interposer.

This is µDenali's interposition interface (Whitaker et al., NSDI'04, section 3:
virtual devices talk in typed messages that a parent may intercept).  A device
sends `diskRead`, `diskWrite`, `consoleWrite`...; whoever interposes on that
device sees each message first, and may pass it on, change it or answer it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tt.errors import UsageError
from tt.vmm.disk import SECTOR


class Message(NamedTuple):
    """One event of a device: `operation` is one of the names below.

    ============== ======================= =====================
    operation      fields                  answer
    ============== ======================= =====================
    diskRead       lba, sectors            the sectors
    diskWrite      lba, data               b""
    diskFlush                              b""
    consoleWrite   data                    b""
    ============== ======================= =====================
    """

    device: str
    operation: str
    lba: int = 0
    sectors: int = 0
    data: bytes = b""


Handler = Callable[[Message], bytes]
Interposer = Callable[[Message, Handler], bytes]


class Router:
    """Where devices send their messages; a message costs a dict look-up and a call."""

    def __init__(self) -> None:
        self._default: dict[str, Handler] = {}
        self._active: dict[str, Handler] = {}

    def register(self, device: str, handler: Handler) -> None:
        """Make `handler` the default handler of the messages of `device`."""
        self._default[device] = self._active[device] = handler

    def interpose(self, device: str, interposer: Interposer) -> None:
        """Show each message of `device` to `interposer` first, with the handler below it.

        Interposers stack: the last one in sees a message first.  Raises
        `UsageError` when the machine has no such device.
        """
        below = self._known(device, self._active)
        self._active[device] = lambda message: interposer(message, below)

    def restore(self, device: str) -> None:
        """Take every interposer off `device`; raises `UsageError` when there is no such device."""
        self._active[device] = self._known(device, self._default)

    def send(self, message: Message) -> bytes:
        """Deliver `message` and return the answer; whatever the handler raises comes through."""
        return self._active[message.device](message)

    def _known(self, device: str, handlers: dict[str, Handler]) -> Handler:
        try:
            return handlers[device]
        except KeyError:
            known = ", ".join(self._default) or "none"
            raise UsageError(f"no device {device!r} sends messages (those that do: {known})") from None


class RoutedDisk:
    """A `Disk` for a device to hold, whose every access is a message to the router."""

    def __init__(self, router: Router, device: str, sectors: int) -> None:
        self.sectors = sectors
        self._send = router.send
        self._device = device

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors from `lba`; raises `IndexError` past the end."""
        data = self._send(Message(self._device, "diskRead", lba, count))
        if len(data) != count * SECTOR:
            raise IndexError(f"{self._device} answered {len(data)} bytes for {count} sectors at {lba}")
        return data

    def write(self, lba: int, data: bytes) -> None:
        """Store whole sectors at `lba`; raises `IndexError` past the end."""
        self._send(Message(self._device, "diskWrite", lba, len(data) // SECTOR, data))

    def flush(self) -> None:
        """Make every write so far durable."""
        self._send(Message(self._device, "diskFlush"))
