"""The options that say what a probe is, and the probe that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tt.errors import BadInput, UsageError

if TYPE_CHECKING:
    from tt.chronus.runners.runner import Setup
    from tt.chronus.search.verdicts import Probe
    from tt.chronus.store.history import History

_KINDS = ("files", "guest", "console", "beside")
_DEFAULT_TIMEOUT_S = 120.0
_BOOTS_ONLY = ("kernel", "initrd", "mem", "port")
_MOST_SCRIPT = 1 << 20


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """Add `--files`, `--guest`, `--console`, `--run`, and how they run."""
    probes = parser.add_argument_group("probes (give one)")
    probes.add_argument(
        "--files", metavar="COMMAND", help="a command of this host, in a folder with the files"
    )
    probes.add_argument("--guest", metavar="COMMAND", help="a command or script file, in the booted guest")
    probes.add_argument(
        "--console", metavar="SCRIPT", type=Path, help="a conversation on the guest's serial console"
    )
    probes.add_argument(
        "--run", dest="beside", metavar="COMMAND", help="a command of this host, beside the booted guest"
    )
    how = parser.add_argument_group("how a probe runs")
    how.add_argument("--path", metavar="PATH", action="append", help="--files: only these (default /)")
    how.add_argument("--early", action="store_true", help="--guest: before the system's own init")
    how.add_argument(
        "--runner", metavar="NAME", default="tt", help="what boots the guest: tt (default) or qemu"
    )
    how.add_argument("--after", metavar="REGEX", help="--run: when a line of the console matches")
    how.add_argument("--kernel", metavar="FILE", type=Path, help="boot this, not the disk's own kernel")
    how.add_argument("--initrd", metavar="FILE", type=Path, help="with this initrd")
    how.add_argument("--append", metavar="WORDS", default="", help="more words for the kernel")
    how.add_argument("--mem", metavar="SIZE", help="the guest's memory (as recorded, else 256M)")
    how.add_argument(
        "--port", metavar="N", type=int, action="append",
        help="make a TCP port of the guest reachable, at $CHRONUS_PORT_N (done for those that --run names)",
    )  # fmt: skip
    how.add_argument(
        "--timeout", metavar="S", type=float, default=_DEFAULT_TIMEOUT_S,
        help="seconds for one probe (120); a longer one counts as a hang",
    )  # fmt: skip


def make_probe(args: argparse.Namespace, history: History) -> Probe:
    """Return the probe that the options describe; raises `UsageError` and `BadInput`."""
    kinds = [kind for kind in _KINDS if getattr(args, kind) is not None]
    if len(kinds) != 1:
        raise UsageError("give one probe: --files, --guest, --console or --run")
    kind = kinds[0]
    if args.early and kind != "guest":
        raise UsageError("--early goes with --guest")
    if args.after and kind != "beside":
        raise UsageError("--after goes with --run")
    if args.path and kind != "files":
        raise UsageError("--path goes with --files")
    if not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout {args.timeout}: give seconds above 0")
    if kind == "files":
        from tt.chronus.probes.files import FilesProbe

        given = [name for name in _BOOTS_ONLY if getattr(args, name) is not None]
        if given or args.append or args.runner != "tt":
            raise UsageError(f"--{given[0] if given else 'append or --runner'}: --files boots nothing")
        return FilesProbe(args.files, tuple(args.path or ("/",)), args.timeout)
    return _booted(kind, args, _setup(args, history))


def _setup(args: argparse.Namespace, history: History) -> Setup:
    from tt.chronus.runners.named import runner
    from tt.chronus.runners.runner import setup_of

    runner(args.runner)  # raises for an unknown name
    ports = list(args.port or ())
    if args.beside is not None:
        from tt.chronus.probes.run import named_ports

        ports += named_ports(args.beside)
    return setup_of(
        history, kernel=args.kernel, initrd=args.initrd, append=args.append, mem=args.mem,
        timeout_s=args.timeout, ports=tuple(dict.fromkeys(ports)),
    )  # fmt: skip


def _booted(kind: str, args: argparse.Namespace, setup: Setup) -> Probe:
    if kind == "guest":
        from tt.chronus.probes.guest import GuestProbe

        return GuestProbe(args.guest, args.runner, setup, early=args.early)
    if kind == "console":
        from tt.chronus.probes.console import ConsoleProbe

        return ConsoleProbe(_script(args.console), str(args.console), args.runner, setup)
    from tt.chronus.probes.run import RunProbe

    return RunProbe(args.beside, args.runner, setup, args.after or "")


def _script(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return f.read(_MOST_SCRIPT + 1).decode()
    except OSError as e:
        raise BadInput(f"cannot read the script {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is no script: it is not text in UTF-8") from None
