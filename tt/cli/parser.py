"""The list of verbs, and how each becomes a parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any, NoReturn

from tt.errors import UsageError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# In the order in which help shows them.  A verb lives in tt/cli/<verb>.py, which
# is imported only when the verb is used.
VERBS = {
    "demo": "record and replay a small guest that comes with tt",
    "record": "run a guest and write down everything that happens to it",
    "replay": "go to any moment of a recording",
    "gdb": "let gdb go forwards and backwards through a recording",
    "bisect": "find the tick from which something is so",
    "fork": "go another way from a moment of a recording",
    "timelines": "show the tree of a recording and its forks",
    "diff": "tell where two recordings, or two moments, differ",
    "verify": "replay a whole recording and compare it with the record",
    "index": "give a recording checkpoints, so that every place in it is near",
    "info": "tell what is in a trace",
    "events": "list the nondeterministic events in a trace",
    "sql": "ask a trace anything in SQL",
    "console": "show what the guest printed",
    "guest": "build guests to record",
}


WIDTH = 100  # of help text


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and where -1_000 is a position and no option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-[0-9][0-9_,]*")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_verb(
    subparsers: Subparsers, name: str, examples: str, more: str = "", *, verbs: Mapping[str, str] = VERBS
) -> argparse.ArgumentParser:
    """Add the parser of a verb: its line in `verbs`, `more` text, and `examples`, one command a line."""
    about = verbs[name]
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return subparsers.add_parser(
        name,
        help=about,
        description=fill(f"{about[0].upper()}{about[1:]}. {more}", WIDTH),
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
