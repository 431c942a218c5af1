"""Which frames to show, or to stop at."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tt.errors import UsageError
from tt.frames.dissect import PROTOCOLS, Packet

GRAMMAR = 'in|out, card N, host ADDRESS, port N, a protocol ({}), "TEXT"'.format(", ".join(PROTOCOLS))


@dataclass(frozen=True)
class Filter:
    """What a frame has to be; None means anything.

    `host` is an IP address or that of a card, of either side; `port` of either side;
    `protocol` one of `PROTOCOLS`; `text` stands anywhere in the frame.
    """

    incoming: bool | None = None
    card: int | None = None
    host: str | None = None
    port: int | None = None
    protocol: str | None = None
    text: bytes | None = None

    def __call__(self, packet: Packet) -> bool:
        """Whether a packet is wanted."""
        return (
            self.incoming in (None, packet.frame.incoming)
            and self.card in (None, packet.frame.card)
            and (self.host is None or self.host in _hosts(packet))
            and (self.port is None or self.port in packet.ports)
            and (self.protocol is None or self.protocol in packet.protocols)
            and (self.text is None or self.text in packet.frame.data)
        )


def host(text: str) -> str:
    """Return an address as packets show it; raises `UsageError` for what is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        parts = text.lower().split(":")
        if len(parts) == 6 and all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
            return text.lower()
        raise UsageError(f"{text!r} is no address: give 10.0.2.15, or a card's, 52:54:00:74:00:00") from None


def port(text: str) -> int:
    """Return a port; raises `UsageError`."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise UsageError(f"{text!r} is no port: give 0 to 65535")
    return int(text)


def protocol(text: str) -> str:
    """Return the name of a protocol; raises `UsageError`."""
    name = text.lower()
    if name not in PROTOCOLS:
        raise UsageError(f"{text!r} is no protocol: give {', '.join(PROTOCOLS)}")
    return name


def parse(words: Sequence[str]) -> Filter:
    """Return what words say (see `GRAMMAR`), quoted text with its quotes; raises `UsageError`."""
    found = Filter()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("in", "out"):
            found = replace(found, incoming=word == "in")
        elif word in ("host", "port", "card"):
            if not rest:
                raise UsageError(f"{word!r} of what? Give {GRAMMAR}")
            value = rest.pop(0)
            if word == "host":
                found = replace(found, host=host(value))
            elif word == "port":
                found = replace(found, port=port(value))
            elif value.isdigit():
                found = replace(found, card=int(value))
            else:
                raise UsageError(f"{value!r} is no card: give a number, from 0")
        elif word[:1] in ('"', "'") and len(word) > 1 and word[-1] == word[0]:
            found = replace(found, text=word[1:-1].encode())
        elif word.lower() in PROTOCOLS:
            found = replace(found, protocol=word.lower())
        else:
            raise UsageError(f"cannot tell which frames {word!r} means: give {GRAMMAR}")
    return found


def _hosts(packet: Packet) -> tuple[str, ...]:
    data = packet.frame.data
    return packet.source, packet.destination, data[:6].hex(":"), data[6:12].hex(":")
