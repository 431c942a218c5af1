"""`tt frames`: the Ethernet frames of a recording, as tcpdump would list them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tt.cli.output import print_json
from tt.cli.parser import add_verb
from tt.errors import UsageError
from tt.log import Trace
from tt.position import format_tick
from tt.vmm.config import MachineConfig

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.frames.dissect import Packet
    from tt.frames.filters import Filter

_A_LINE = 16  # bytes of a hex dump


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "frames",
        """tt frames server.tt --limit 20
           tt frames server.tt --host 10.0.2.2 --port 80 --from 50%
           tt frames server.tt --proto dns --json""",
        "Each line has the frame's number, tick and guest time, whether the guest got it (<) or sent it (>), "
        "and what is in it; sequence numbers of TCP count from the connection's beginning.",
    )
    parser.add_argument("trace", metavar="TRACE")
    add_filters(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--hex", action="store_true", help="show the bytes too")
    how.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.set_defaults(run=run)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose frames; `chosen` reads them."""
    which = parser.add_argument_group("which frames")
    which.add_argument("--host", metavar="ADDRESS", help="from or to this IP address, or this card's")
    which.add_argument("--port", metavar="N", help="from or to this TCP or UDP port")
    which.add_argument("--proto", metavar="NAME", help="arp, ip, ip6, icmp, icmp6, tcp, udp, dns, dhcp, http")
    way = which.add_mutually_exclusive_group()
    way.add_argument("--in", dest="incoming", action="store_true", help="those that the guest got")
    way.add_argument("--out", dest="outgoing", action="store_true", help="those that the guest sent")
    which.add_argument("--card", type=int, metavar="N", help="of this card (from 0)")
    which.add_argument("--from", dest="first", default="start", metavar="POS", help="begin at this position")
    which.add_argument("--to", dest="last", default="end", metavar="POS", help="end with this position")


def chosen(args: argparse.Namespace, trace: Trace) -> Iterator[Packet]:
    """Yield the packets that the options choose; raises `UsageError` for a machine without cards."""
    from tt.frames.dissect import Dissector

    if not MachineConfig.without_parts(trace.meta).nets:
        raise UsageError(f"{trace.path}: this machine has no network card (tt record --net gives it one)")
    first = trace.resolve(args.first)
    last = trace.resolve(args.last, current=first)
    wanted = _filter(args)
    dissect = Dissector()
    for frame in trace.frames(last_tick=last):  # from the start: where connections began
        packet = dissect(frame)
        if frame.tick >= first and wanted(packet):
            yield packet


def run(args: argparse.Namespace) -> int:
    """Print the frames asked for."""
    if args.limit is not None and args.limit < 0:
        raise UsageError(f"--limit {args.limit}: give 0 or more")
    with Trace.open(args.trace) as trace:
        wide = len(format_tick(trace.end_tick))
        for packet in islice(chosen(args, trace), args.limit):
            if args.json:
                print_json(_plain(packet))
                continue
            frame = packet.frame
            arrow = "<" if frame.incoming else ">"
            card = f" ethernet{frame.card}" if frame.card else ""
            number = f"{frame.number:,}"
            print(
                f"{number:>7}  {format_tick(frame.tick):>{wide}}  {frame.ns / 1e9:13.6f}{card}  "
                f"{arrow} {packet.summary}"
            )
            if args.hex:
                print(*_hex(frame.data), sep="\n")
    return 0


def _filter(args: argparse.Namespace) -> Filter:
    from tt.frames import filters

    return filters.Filter(
        incoming=True if args.incoming else False if args.outgoing else None,
        card=args.card,
        host=None if args.host is None else filters.host(args.host),
        port=None if args.port is None else filters.port(args.port),
        protocol=None if args.proto is None else filters.protocol(args.proto),
    )


def _plain(packet: Packet) -> dict[str, Any]:
    frame = packet.frame
    return {
        "frame": frame.number,
        "event": frame.event,
        "tick": frame.tick,
        "ns": frame.ns,
        "host_ns": frame.host_ns,
        "card": frame.card,
        "direction": "in" if frame.incoming else "out",
        "protocols": list(packet.protocols),
        "source": packet.source,
        "source_port": packet.source_port,
        "destination": packet.destination,
        "destination_port": packet.destination_port,
        "summary": packet.summary,
        "data": frame.data,
    }


def _hex(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), _A_LINE):
        piece = data[at : at + _A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"         {at:#06x}  {piece.hex(' ', 2):<39}  {text}"
