"""The shell: commands over a timeline, each a function that gives an answer; a terminal, and a batch."""

from tt.shell import commands  # noqa: F401  which adds them
from tt.shell.command import COMMANDS, Command
from tt.shell.session import Interrupted, Session

__all__ = ["COMMANDS", "Command", "Interrupted", "Session"]
