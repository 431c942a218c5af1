"""`tt pcap`: the frames of a recording as a capture file for Wireshark and tshark."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.frames import add_filters, chosen
from tt.cli.output import format_count
from tt.cli.parser import add_verb
from tt.errors import BadInput, UsageError
from tt.log import Frame, Trace
from tt.vmm.config import MachineConfig

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers

_NS = 1_000_000_000


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "pcap",
        """tt pcap server.tt
           tt pcap server.tt -o web.pcapng --port 80
           tt pcap server.tt -o - | tshark -r -""",
        "The times are the guest's: its clock at power-on, and guest time from there.  Each packet has its "
        "direction, and a comment with its tick, at which `tt replay TRACE --to-tick` stops.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="the file, or - for stdout (TRACE's name .pcapng, here)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    add_filters(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the capture file."""
    from tt.frames import pcapng

    with Trace.open(args.trace) as trace:
        machine = MachineConfig.without_parts(trace.meta)
        cards = [net.mac for net in machine.nets]

        def frames() -> Iterator[tuple[Frame, int]]:
            for packet in chosen(args, trace):
                yield packet.frame, machine.epoch * _NS + packet.frame.ns

        comment = f"recorded by tt: {Path(args.trace).name}"
        if args.output == "-":
            if os.isatty(sys.stdout.fileno()):
                raise UsageError("-o - writes binary data: send it to a file or a program")
            pcapng.write(sys.stdout.buffer, cards, frames(), comment)
            sys.stdout.buffer.flush()
            return 0
        path = Path(args.output) if args.output else Path(Path(args.trace).stem + ".pcapng")
        try:
            with path.open("wb" if args.force else "xb") as out:
                try:
                    count = pcapng.write(out, cards, frames(), comment)
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            raise UsageError(f"{path} exists already: --force overwrites it, -o takes another name") from None
        except OSError as e:
            raise BadInput(f"cannot write {path}: {e.strerror or e}") from None
        print(f"{path}: {format_count(count, 'frame')}")
    return 0
