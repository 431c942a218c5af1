"""A disk whose boot sector talks on the serial port: what a PC's firmware boots, with no kernel at all."""

from __future__ import annotations

from pathlib import Path

_BEGIN = bytes.fromhex(
    "31c0 8ed8 8ec0 fc"  # ds, es = 0; cld
    "b80102 bb007e b90200 b600 cd13"  # int 13h: sector 2 of the boot drive to 0x7e00
    "fa be007e baf803"  # cli, or the firmware takes keys from the port; si = 0x7e00, dx = COM1
    "ac 84c0 7403 ee ebf8"  # print until a zero
)
_ECHO = bytes.fromhex(
    "bafd03 ec a801 74fb"  # wait for a key
    "baf803 ec ee 3c71 75ef"  # print it; anything but q: again
    "b0fe e664 f4 ebfd"  # reset by the keyboard controller
)
_FLOOD = bytes.fromhex("b041 ee ebfd")  # print A for ever


def talking_disk(path: Path, message: bytes, flood: bool = False) -> Path:
    """Write a disk that prints `message` (its second sector), then echoes keys (q resets) or floods."""
    code = _BEGIN + (_FLOOD if flood else _ECHO)
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + message.ljust(1 << 20, b"\0"))
    return path
