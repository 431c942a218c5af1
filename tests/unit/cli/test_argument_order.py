"""Options before, between and behind the other arguments mean the same, in every verb of both commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

import pytest

from tt.cli.chronus.main import CHRONUS
from tt.cli.main import TT, Program
from tt.cli.parser import Parser


def verbs(program: Program) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the parser of each verb, and of each verb of a verb."""
    for name in program.verbs:
        top = Parser(prog=program.name).add_subparsers(dest="verb")
        import_module(f"{program.package}.{program.modules.get(name, name)}").register(top)
        yield from leaves(f"{program.name} {name}", top.choices[name])


def leaves(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in nested:
        for verb, below in action.choices.items():
            yield from leaves(f"{name} {verb}", below)
    if not nested:
        yield name, parser


PARSERS = dict([*verbs(TT), *verbs(CHRONUS)])


def value(action: argparse.Action, number: int) -> str:
    if action.choices:
        return str(next(iter(action.choices)))
    word = f"word{number}"
    try:
        return word if action.type is None else (action.type(word), word)[1]  # type: ignore[operator]
    except (argparse.ArgumentTypeError, ValueError):
        return "7"  # it wants a number


def words(action: argparse.Action) -> list[str]:
    """Return an option as it may be given."""
    name = action.option_strings[-1]
    if action.nargs == 0:
        return [name]
    return [name, *(value(action, i) for i in range(action.nargs if isinstance(action.nargs, int) else 1))]


def positions(parser: argparse.ArgumentParser) -> list[str]:
    """Return all that may stand there besides options, with two words where several may."""
    found = []
    for number, action in enumerate(parser._get_positional_actions()):
        found += [value(action, 10 * number + i) for i in range(2 if action.nargs in ("+", "*") else 1)]
    return found


def required(parser: argparse.ArgumentParser, besides: argparse.Action) -> list[str]:
    """Return the options that must be given, but for `besides` and what it stands instead of."""
    found = [a for a in parser._get_optional_actions() if a.required and a is not besides]
    for group in parser._mutually_exclusive_groups:
        if group.required and besides not in group._group_actions:
            found.append(group._group_actions[0])
    return [word for action in found for word in words(action)]


@pytest.mark.parametrize("name", PARSERS)
def test_the_order_of_arguments_does_not_matter(name: str) -> None:
    parser, rest = PARSERS[name], positions(PARSERS[name])
    options = [a for a in parser._get_optional_actions() if not isinstance(a, argparse._HelpAction)]
    for action in options:
        given = words(action)
        is_greedy = action.nargs in ("+", "*", "?")  # takes what comes after it
        others = required(parser, action)
        last = [*others, *rest, *given]
        expected = parser.parse_args(last)
        assert getattr(expected, action.dest) != action.default or action.choices, given
        for at in range(len(rest) + 1):
            if not is_greedy or at == len(rest):
                mixed = [*rest[:at], *given, *rest[at:], *others]
                assert parser.parse_args(mixed) == expected, mixed


def test_there_are_verbs_with_arguments_that_may_be_left_out() -> None:
    """So that the test above is not empty."""
    optional = [n for n, p in PARSERS.items() if any(a.nargs == "?" for a in p._get_positional_actions())]
    assert {"chronus ls", "chronus find"} <= set(optional)
    assert len(PARSERS) > 25


def test_what_looks_like_an_option_behind_two_dashes_is_a_name() -> None:
    ls = PARSERS["chronus ls"]
    assert ls.parse_args(["x.tt", "--", "--weird"]).path == "--weird"
    assert ls.parse_args(["--at", "w3", "--", "x.tt", "-d"]).path == "-d"
    assert ls.parse_args(["--at", "-5", "x.tt"]).at == "-5"
    assert ls.parse_args(["x.tt", "--at=-2h", "/etc"]).path == "/etc"
