"""The shell's own commands: help, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tt import position
from tt.inspect import Answer
from tt.shell.command import COMMANDS, THEMES, Arguments, Command, command, find

if TYPE_CHECKING:
    from tt.shell.session import Session

_TOPICS = {
    "positions": (
        "A position is",
        *(f"  {line.strip()}" for line in (position.__doc__ or "").splitlines() if line.startswith("    ")),
        "    -                               where you were before the last motion",
    ),
}


@command(
    "help", "h", "?", "apropos",
    usage="[COMMAND|positions|expressions]", theme="shell", most=1, completes=("command",),
    examples=(("help", "all commands"), ("help watch", "one of them, with examples"),
              ("help positions", "what can stand after goto"),
              ("help expressions", "what can stand after print")),
)  # fmt: skip
def help_(session: Session, arguments: Arguments) -> Answer:
    """List the commands, or explain one."""
    words = arguments.words
    if not words:
        return _list()
    topic = words[0].lower()
    if topic in ("expressions", "expression"):
        from tt.travel import expressions

        lines = (expressions.__doc__ or "").strip().splitlines()
        return Answer({"topic": "expressions", "text": lines}, lines)
    if topic in _TOPICS:
        return Answer({"topic": topic, "text": list(_TOPICS[topic])}, list(_TOPICS[topic]))
    found = find(words[0])
    return Answer(facts(found), explain(found))


@command("quit", "q", "exit", "kill", "detach", theme="shell", examples=(("quit", "leave; so does Ctrl-D"),))
def quit_(session: Session, arguments: Arguments) -> Answer:
    """Leave; a live branch is sealed."""
    session.ended = True
    return Answer({})


def explain(command: Command) -> list[str]:
    """Return the help of a command."""
    lines = [
        command.usage
        if not command.form
        else command.usage.replace(command.name, f"{command.name}[/FORMAT]", 1)
    ]
    if command.aliases:
        lines.append(f"also: {', '.join(command.aliases)}")
    lines += ["", command.about]
    if command.more:
        lines += command.more.splitlines()
    width = max(len(line) for line, _what in command.examples)
    lines += ["", "examples:"]
    lines += [f"  {line:<{width}}   {what}" for line, what in command.examples]
    return lines


def facts(command: Command) -> dict[str, Any]:
    """Return the help of a command as plain data."""
    return {
        "command": command.name,
        "aliases": list(command.aliases),
        "usage": command.usage,
        "about": command.about,
        "more": command.more,
        "examples": [{"line": line, "what": what} for line, what in command.examples],
    }


def _list() -> Answer:
    width = max(len(each.usage) for each in COMMANDS.values())
    lines: list[str] = []
    for theme, title in THEMES.items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [
            f"  {_short(each):<4} {each.usage:<{width}}  {each.about.rstrip('.')}"
            for each in COMMANDS.values()
            if each.theme == theme
        ]
    lines += [
        "",
        "`help COMMAND` explains one, with examples; `help positions` and `help expressions` what they take.",
        "Unique beginnings of names do.  An empty line repeats the last motion.",
    ]
    return Answer({"commands": {name: each.about for name, each in COMMANDS.items()}}, lines)


def _short(command: Command) -> str:
    """Return the short form of a command that the list shows: its first alias, if that is short."""
    first = command.aliases[0] if command.aliases else ""
    return first if len(first) <= 4 else ""
