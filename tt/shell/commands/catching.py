"""What `catch` understands: the events that a recording can be stopped at, in words."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.shell.command import shorten
from tt.shell.syscalls import NUMBERS

if TYPE_CHECKING:
    from tt.frames.filters import Filter
    from tt.travel.stops import Catchpoint

KINDS = ("interrupt", "device", "disk", "console", "input", "net", "syscall", "exception", "power")
"""What can be caught, as it is typed."""

_VECTORS = "DE DB NMI BP OF BR UD NM DF CSO TS NP SS GP PF - MF AC MC XM VE CP"
EXCEPTIONS = {name: number for number, name in enumerate(_VECTORS.split()) if name != "-"}
"""The CPU's exceptions by their short names (Intel SDM volume 3, table 6-1)."""

_RANGE = re.compile(r"(\S+?)(?:-|\.\.)(\S+)")


def catchpoint(text: str) -> Catchpoint:
    """Return the catchpoint that `interrupt 0x30`, `disk 2048-4095`, ... names; raises `UsageError`."""
    from tt.travel.stops import Catchpoint

    what, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    meant = [kind for kind in KINDS if what and kind.startswith(what.lower())]
    if what.lower() in ("irq", "disk-write", "fault", "timer", "entropy", "clock"):
        meant = [{"irq": "interrupt", "disk-write": "disk", "fault": "exception"}.get(what.lower(), "device")]
        rest = what.lower() if meant == ["device"] else rest
    if not meant:
        raise UsageError(f"{shorten(what)} cannot be caught: there are {', '.join(KINDS)}")
    kind = meant[0]
    shown = f"{kind} {rest}".strip()
    match kind:
        case "interrupt":
            if rest.startswith("line "):
                return Catchpoint(what=kind, line=_number(rest[5:], 15, "a line"), text=shown)
            return Catchpoint(what=kind, number_wanted=_optional(rest, 255, "a vector"), text=shown)
        case "device":
            return Catchpoint(what=kind, device=rest or None, text=shown)
        case "input":
            return Catchpoint(what="device", device="input", text=shown)
        case "disk":
            lba, last = _blocks(rest)
            return Catchpoint(what="disk-write", lba=lba, last_lba=last, text=f"disk write {rest}".strip())
        case "net":
            return Catchpoint(what=kind, frames=_frames(rest), text=shown)
        case "console":
            return Catchpoint(what=kind, pattern=_unquoted(rest) or None, text=shown)
        case "syscall":
            wanted = NUMBERS.get(rest.lower()) if rest else None
            if wanted is None:
                wanted = _optional(rest, (1 << 32) - 1, "a system call")
            return Catchpoint(what=kind, number_wanted=wanted, text=shown)
        case "exception":
            wanted = EXCEPTIONS.get(rest.upper().removeprefix("#")) if rest else None
            if wanted is None:
                wanted = _optional(rest, 255, "an exception")
            return Catchpoint(what=kind, number_wanted=wanted, text=shown)
    return Catchpoint(what="power", text="power")


def _frames(text: str) -> Filter:
    from tt.frames.filters import parse

    return parse(re.findall(r'"[^"]*"|\'[^\']*\'|\S+', text))


def _blocks(text: str) -> tuple[int | None, int | None]:
    if not text:
        return None, None
    most = (1 << 62) - 1
    match = _RANGE.fullmatch(text)
    if match is None:
        lba = _number(text, most, "a sector")
        return lba, lba
    first, last = _number(match[1], most, "a sector"), _number(match[2], most, "a sector")
    if last < first:
        raise UsageError(f"{shorten(text)}: the last sector comes before the first")
    return first, last


def _optional(text: str, most: int, what: str) -> int | None:
    return _number(text, most, what) if text else None


def _number(text: str, most: int, what: str) -> int:
    try:
        value = int(text.strip(), 0) if len(text) < 40 else -1
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise UsageError(f"{shorten(text)} is not {what}: give its name or a number up to {most:,}")
    return value


def _unquoted(text: str) -> str:
    """Return a regular expression without quotes around it; its backslashes stay."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    try:
        words = shlex.split(text) if "'" in text or '"' in text else []
    except ValueError:
        words = []
    return words[0] if len(words) == 1 and "\\" not in text else text
