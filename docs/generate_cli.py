"""Write docs/cli.md: the help of every verb, as `tt VERB --help` and `chronus VERB --help` print it.

python docs/generate_cli.py          writes it
python docs/generate_cli.py --check  exits with 1 if it is out of date
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tt.cli.main import Program

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# The command line

This page is written by `docs/generate_cli.py` from the help texts. Do not edit it.

Exit codes: 0 good; 1 the answer is no (a divergence, damage, memory that is not there); 2 wrong use; 3 a
file that cannot be used; 130 interrupted.
"""


def page() -> str:
    """Return what docs/cli.md has to be."""
    from tt.cli.chronus.main import CHRONUS
    from tt.cli.main import TT

    parts = [HEAD]
    for program in (TT, CHRONUS):
        parts.append(f"## {program.name}\n\n```\n{_help(program)}```\n")
        parts += [f"## {program.name} {verb}\n\n```\n{_help(program, verb)}```\n" for verb in program.verbs]
    return "\n".join(parts)


def _help(program: Program, *verb: str) -> str:
    from tt.cli.main import main

    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([*verb, "--help"], program)
    return printed.getvalue()


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            sys.exit("docs/cli.md is out of date: run python docs/generate_cli.py")
    else:
        PAGE.write_text(page())
