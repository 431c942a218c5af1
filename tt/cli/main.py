"""`tt`: find the verb, run it, and turn errors into one line and an exit code.

Exit codes: 0 good, 1 the answer is no (a divergence, a failed check), 2 wrong
use, 3 bad input file, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tt.cli.parser import VERBS, Parser
from tt.errors import TTError, UsageError

ABOUT = "Record whole virtual machines, and go anywhere in their past."
START = "New here?  Try `tt demo`.  `tt VERB --help` explains a verb, with examples."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except TTError as e:
        return _fail(str(e), e.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has had enough.  Python flushes again when it exits: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        return _fail(str(e), TTError.exit_code)
    return code


def _run(arguments: list[str]) -> int:
    parser = Parser(prog="tt", description=ABOUT, epilog=START)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(metavar="VERB", dest="verb", title="verbs")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    if wanted is not None and wanted not in VERBS:
        raise UsageError(f"{wanted!r} is no verb of tt: there are {', '.join(VERBS)}")
    for name, about in VERBS.items():
        if name == wanted:
            import_module(f"tt.cli.{name}").register(subparsers)
        else:
            subparsers.add_parser(name, help=about, add_help=False)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as e:  # --help
        return int(e.code or 0)
    if options.version:
        print(f"tt {version()}")
        return 0
    if options.verb is None:
        parser.print_help()
        return 2
    code: int = options.run(options)
    return code


def version() -> str:
    """Return the version of the installed package."""
    import tt

    return tt.__version__


def _fail(message: str, code: int) -> int:
    from tt.log.text import printable  # a name in a trace may hold anything

    print(f"tt: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
