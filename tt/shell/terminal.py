"""The shell at a terminal: prompt, history, completion, the bar at the bottom, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from tt.errors import Divergence, TTError
from tt.inspect import Answer
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.batch import fit
from tt.shell.command import split
from tt.shell.completion import complete

if TYPE_CHECKING:
    from tt.shell.session import Session

_PROGRESS_AFTER_S = 0.5
_PROGRESS_EVERY_S = 0.1
_IMPATIENT = 3  # presses of Ctrl-C until a command is stopped wherever it is
_STYLE = Style.from_dict(
    {
        "prompt": "ansigreen bold",
        "prompt.live": "ansired bold",
        "bottom-toolbar": "noreverse fg:ansiwhite bg:ansiblack",
        "bar.symbol": "ansicyan",
        "bar.live": "ansired bold",
    }
)


def converse(session: Session) -> int:
    """Do what is typed at the terminal until the user leaves; return 0."""
    terminal = _Terminal(session)
    terminal.run()
    if session.live is not None:
        path = session.live.close()
        session.live = None
        print(f"the live branch is sealed: {printable(str(path))}")
    return 0


def history_path() -> Path:
    """Return the file in which lines are kept (XDG Base Directory Specification)."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "tt" / "history"


class _Terminal:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._progress = _ProgressLine(session)
        self._bar: tuple[Any, FormattedText] | None = None
        session.on_progress = self._progress
        session.say = self._say
        self._prompts: PromptSession[str] = PromptSession(
            history=_history(),
            completer=_Completer(session),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            enable_history_search=True,
            bottom_toolbar=self._toolbar,
            style=_STYLE if self._colours else None,
            color_depth=None if self._colours else ColorDepth.DEPTH_1_BIT,
        )

    def run(self) -> None:
        session = self._session
        name = printable(str(session.trace.path))
        print(f"{name}: {session.trace.event_count:,} events; `help` lists commands, Ctrl-D leaves")
        self._do("")  # shows the current place
        while not session.ended:
            try:
                line = self._prompts.prompt(self._prompt())
            except KeyboardInterrupt:
                continue  # Ctrl-C at the prompt drops the line
            except EOFError:
                return
            parts = [part for part in split(line) if part.strip()] or [""]
            for part in parts:
                if not self._do(part) or session.ended:
                    break

    def _do(self, line: str) -> bool:
        """Do a command and show its answer; false where it failed."""
        session = self._session
        fit(session)
        try:
            with self._progress, _interruptible(session):
                answer = session.arrive() if not line and session.again is None else session.run(line)
        except Divergence as e:
            self._complain(f"{e}; `tt verify` tells more")
            return False
        except TTError as e:
            self._complain(str(e))
            return False
        except OSError as e:
            self._complain(str(e))
            return False
        self._show(answer)
        return True

    def _show(self, answer: Answer) -> None:
        lines = answer.lines
        if self._colours:
            from tt.shell.paint import painted

            lines = painted(answer)
        if lines:
            print("\n".join(lines), flush=True)

    def _say(self, line: str) -> None:
        self._progress.clear()
        print(printable(line), flush=True)

    def _complain(self, message: str) -> None:
        red, plain = ("\x1b[31m", "\x1b[0m") if self._colours else ("", "")
        print(f"{red}{printable(message)}{plain}", flush=True)

    def _prompt(self) -> FormattedText:
        look = "class:prompt.live" if self._session.live is not None else "class:prompt"
        return FormattedText([(look, self._session.prompt())])

    def _toolbar(self) -> FormattedText:
        """Return the bar; made once for each place, though it is drawn with every key."""
        session = self._session
        key = (session.tick, id(session.timeline), session.live, len(session.timeline.stops))
        if self._bar is None or self._bar[0] != key:
            self._bar = key, self._draw_bar()
        return self._bar[1]

    def _draw_bar(self) -> FormattedText:
        session = self._session
        status = session.status()
        name = printable(session.trace.path.name)
        if session.live is not None:
            where = [
                ("class:bar.live", f" LIVE {printable(session.live.name)} "),
                ("", format_tick(status.tick)),
            ]
        else:
            end = format_tick(session.end_tick)
            where = [
                ("", f" {name}  {format_tick(status.tick)} of {end}  {int(status.percent * 10) / 10:.1f}%")
            ]
        stops = len(session.timeline.stops)
        told = f"  {stops} stop{'' if stops == 1 else 's'} set" if stops else ""
        return FormattedText(
            [
                *where,
                ("", f"  {status.guest_ns / 1e9:.6f} s  "),
                ("class:bar.symbol", status.symbol),
                ("", told),
            ]
        )


class _Completer(Completer):
    """Hands the words of `complete` to prompt-toolkit."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        begin, words = complete(self._session, text)
        for word in words:
            yield Completion(word, start_position=begin - len(text))


class _ProgressLine:
    """A line that tells how far a long command is, and is gone when it is done."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next_s = float("inf")
        self._shown = False

    def __enter__(self) -> None:
        self._next_s = time.monotonic() + _PROGRESS_AFTER_S

    def __exit__(self, *error: object) -> None:
        self._next_s = float("inf")
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", flush=True)
            self._shown = False

    def __call__(self, tick: int) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + _PROGRESS_EVERY_S
        self._shown = True
        end = max(self._session.timeline.end_tick, 1)
        share = "" if self._session.live is not None else f" {min(1.0, tick / end):4.0%}"
        print(f"\r\x1b[K  at {format_tick(tick)}{share}   Ctrl-C stops", end="", flush=True)


@contextmanager
def _interruptible(session: Session) -> Iterator[None]:
    """Let Ctrl-C ask the command to stop: raised in the middle of a device it would leave half a state."""
    presses = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if not session.interrupt() and presses >= _IMPATIENT:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        with _unseen():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _unseen() -> Iterator[None]:
    """Do not echo what is typed ahead into what the command shows; the next prompt shows it."""
    try:
        settings = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, OSError):
        yield
        return
    quiet = [*settings]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)


def _history() -> History:
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError:
        return InMemoryHistory()  # a home that cannot be written is no reason to stay out
    return FileHistory(str(path))
