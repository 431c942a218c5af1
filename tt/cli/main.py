"""`tt`: find the verb, run it, and turn errors into one line and an exit code.

Exit codes: 0 good, 1 the answer is no (a divergence, a failed check), 2 wrong
use, 3 bad input file, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from tt.cli.parser import VERBS, Parser
from tt.errors import TTError, UsageError

ABOUT = "Record whole virtual machines, and go anywhere in their past."
START = "New here?  Try `tt demo`.  `tt VERB --help` explains a verb, with examples."


@dataclass(frozen=True)
class Program:
    """A command with verbs: each verb is a module of `package` with `register` and a `run`."""

    name: str
    about: str
    start: str
    verbs: Mapping[str, str]
    package: str
    modules: Mapping[str, str] = field(default_factory=dict)
    """The modules of verbs whose names cannot be names of modules."""


TT = Program("tt", ABOUT, START, VERBS, "tt.cli")


def main(argv: Sequence[str] | None = None, program: Program = TT) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(program, arguments)
        sys.stdout.flush()
    except TTError as e:
        return _fail(program, str(e), e.exit_code)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output closed it.  Python flushes again when it exits: send that to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        return _fail(program, str(e), TTError.exit_code)
    return code


def _run(program: Program, arguments: list[str]) -> int:
    parser = Parser(prog=program.name, description=program.about, epilog=program.start)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(metavar="VERB", dest="verb", title="verbs")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    if wanted is not None and wanted not in program.verbs:
        raise UsageError(f"{wanted!r} is no verb of {program.name}: there are {', '.join(program.verbs)}")
    for name, about in program.verbs.items():
        if name == wanted:
            module = program.modules.get(name, name)
            import_module(f"{program.package}.{module}").register(subparsers)
        else:
            subparsers.add_parser(name, help=about, add_help=False)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as e:  # --help
        return int(e.code or 0)
    if options.version:
        print(f"{program.name} {version()}")
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


def _fail(program: Program, message: str, code: int) -> int:
    from tt.log.text import printable  # a name in a trace may hold anything

    print(f"{program.name}: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
