"""The list of verbs, and how each becomes a parser."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
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
    "lan": "run several guests behind one switch and record each of them",
    "replay": "go to any moment of a recording",
    "gdb": "let gdb go forwards and backwards through a recording",
    "bisect": "find the tick from which a condition holds",
    "fork": "go another way from a moment of a recording",
    "timelines": "show the tree of a recording and its forks",
    "diff": "tell where two recordings, or two moments, differ",
    "verify": "replay a whole recording and compare it with the record",
    "index": "give a recording checkpoints, so that every place in it is near",
    "info": "tell what is in a trace",
    "events": "list the nondeterministic events in a trace",
    "frames": "list the Ethernet frames that the guest sent and got",
    "pcap": "write its frames as a capture file for Wireshark",
    "sql": "ask a trace anything in SQL",
    "console": "show what the guest printed",
    "guest": "build guests to record",
}


WIDTH = 100  # of help text


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and where -1_000 is a position and no option.

    Options may stand before, between and behind the other arguments, in any order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-[0-9][0-9_,]*")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the options first and then the rest; a parser that has verbs leaves that to theirs.

        argparse itself gives an argument that may be left out its default as soon as an
        option follows those before it, and then refuses the argument (cpython issue 59317).
        """
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(words if self._subparsers else self._options_first(words), namespace)

    def _options_first(self, words: list[str]) -> list[str]:
        options: list[str] = []
        rest: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                rest += words
                break
            if not self._is_option(word):
                rest.append(word)
                continue
            options.append(word)
            for _ in range(self._taken_by(word, words)):
                options.append(words.pop(0))
        return [*options, "--", *rest] if rest else options

    def _is_option(self, word: str) -> bool:
        if not word.startswith("-") or word == "-":
            return False
        known = bool(self._named(word.partition("=")[0]))
        return known or not (self._negative_number_matcher.fullmatch(word) or " " in word)

    def _named(self, name: str) -> list[argparse.Action]:
        """Return the options that `name` may mean: the one called so, or those that begin with it."""
        table = self._option_string_actions
        if name in table:
            return [table[name]]
        return [table[known] for known in table if name.startswith("--") and known.startswith(name)]

    def _taken_by(self, word: str, following: Sequence[str]) -> int:
        """Return how many of the words that follow the option `word` are its values."""
        found = self._named(word)
        if not found and not word.startswith("--"):  # -qo FILE, or -oFILE
            letters = [self._option_string_actions.get(f"-{letter}") for letter in word[1:]]
            flags = list(takewhile(lambda action: action is not None and action.nargs == 0, letters))
            found = [action for action in letters[len(flags) :] if action is not None]
            found = found if len(flags) == len(letters) - 1 else []  # else the value is in the same word
        if not found:
            return 0
        nargs = found[0].nargs
        if nargs is None or isinstance(nargs, int):
            return min(1 if nargs is None else nargs, len(following))
        most = 1 if nargs == argparse.OPTIONAL else len(following)
        return next((at for at in range(most) if self._is_option(following[at])), min(most, len(following)))

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
