"""Write the command reference in docs/shell.md, from the help of every command of the shell.

python docs/generate_shell.py          writes it
python docs/generate_shell.py --check  exits with 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PAGE = Path(__file__).with_name("shell.md")
MARK = "<!-- From here on written by docs/generate_shell.py from the commands' own help. -->\n"


def reference() -> str:
    """Return what the reference has to be."""
    from tt.shell import COMMANDS
    from tt.shell.command import THEMES
    from tt.shell.commands.housekeeping import explain

    parts = []
    for theme, title in THEMES.items():
        parts.append(f"## {title}\n")
        for command in COMMANDS.values():
            if command.theme == theme:
                text = "\n".join(line.rstrip() for line in explain(command))
                parts.append(f"### {command.name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def page() -> str:
    """Return what docs/shell.md has to be: its own beginning, and the reference."""
    head, mark, _rest = PAGE.read_text().partition(MARK)
    if not mark:
        sys.exit(f"{PAGE} has lost the line {MARK.strip()!r}")
    return f"{head}{MARK}\n{reference()}"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            sys.exit("docs/shell.md is out of date: run python docs/generate_shell.py")
    else:
        PAGE.write_text(page())
