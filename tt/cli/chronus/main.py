"""`chronus`: find the verb and run it; exit codes as `tt.cli.main` says."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tt.cli import main as tt_main
from tt.cli.chronus.verbs import VERBS

CHRONUS = tt_main.Program(
    "chronus",
    "A disk that can be read as it was at any moment, and a search for the write that broke it.",
    "`chronus VERB --help` explains a verb, with examples; docs/chronus.md walks through a search.",
    VERBS,
    "tt.cli.chronus",
    {"import": "import_images"},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    return tt_main.main(argv, CHRONUS)


if __name__ == "__main__":
    sys.exit(main())
