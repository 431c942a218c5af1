"""`tt sql`: any question, in SQL."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tt.cli.output import print_facts, print_json, print_table
from tt.cli.parser import add_verb
from tt.log import Trace

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "sql",
        """tt sql boot.tt .tables
           tt sql boot.tt "select kind, count(*) from events group by kind"
           tt sql boot.tt "select tick, text from console where text like '%login%'"
           tt sql boot.tt "select disk, sum(sectors) * 512 as bytes from disk_writes group by disk" --json""",
        "A query can only read.  `.tables` lists what there is to ask.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("query", metavar="QUERY", help="one SELECT, or .tables")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="give up after so long (60)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the answer, or the tables one can ask about."""
    with Trace.open(args.trace) as trace:
        if args.query.strip() == ".tables":
            tables = trace.sql_tables()
            if args.json:
                print_json(tables)
            else:
                print_facts((name, ", ".join(columns)) for name, columns in tables.items())
            return 0
        columns, rows = trace.sql(args.query, timeout_s=args.timeout)
        if args.json:
            for row in rows:
                print_json(dict(zip(columns, row, strict=True)))
        else:
            print_table(columns, rows)
    return 0
