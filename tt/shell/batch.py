"""Commands without a terminal: those of `--batch`, and lines from a pipe."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tt.errors import TTError
from tt.inspect import Answer, where
from tt.log.text import printable
from tt.shell.command import Call, parse, split
from tt.shell.session import Interrupted

if TYPE_CHECKING:
    from tt.shell.session import Session


def fit(session: Session) -> None:
    """Let answers be as wide as the screen is, and use what characters it has."""
    session.screen.width = max(40, shutil.get_terminal_size((100, 24)).columns)
    session.screen.blocks = "utf" in (sys.stdout.encoding or "").lower()


def parse_batch(text: str) -> list[Call]:
    """Return the commands in `text`, which `;` and line ends separate; raises `UsageError`."""
    return [parse(part) for part in split(text) if part.strip()]


def run_batch(session: Session, calls: Iterable[Call], as_json: bool) -> int:
    """Do the commands and print their answers; return 1 when one found nothing, else 0.

    The first error ends it, and comes out.  As JSON, all answers are one object.
    """
    answers: list[tuple[Call, Answer]] = []
    for call in calls:
        answer = session.execute(call)
        answers.append((call, answer))
        if not as_json:
            show(answer)
        if session.ended:
            break
    if as_json:
        found = [{"command": call.command.name, **answer.data} for call, answer in answers]
        print(_json(where(session.moment).data | {"answers": found}))
    return 0 if all(answer.good for _call, answer in answers) else 1


def run_lines(session: Session, lines: Iterable[str], as_json: bool) -> int:
    """Do the commands in `lines` as they come, an answer (or one JSON object) after each.

    An error is told and ends nothing; the exit code is the first one's.
    """
    code = 0
    for number, line in enumerate(lines, 1):
        for part in split(line):
            if not part.strip():
                continue
            try:
                call = parse(part)
                answer = session.execute(call)
            except Interrupted:
                raise  # Ctrl-C is meant for all that is still to come
            except TTError as e:
                code = code or e.exit_code
                if as_json:
                    print(_json({"line": number, "error": str(e), "exit_code": e.exit_code}), flush=True)
                else:
                    sys.stdout.flush()
                    print(f"tt: line {number}: {printable(str(e))}", file=sys.stderr, flush=True)
                continue
            code = code or (0 if answer.good else 1)
            if as_json:
                print(_json({"command": call.command.name, "tick": session.tick, **answer.data}), flush=True)
            else:
                show(answer)
            if session.ended:
                return code
    return code


def show(answer: Answer) -> None:
    """Print an answer's lines, if it has any."""
    if answer.lines:
        print("\n".join(answer.lines), flush=True)


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} is not JSON")
