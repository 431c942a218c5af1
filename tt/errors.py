"""The errors tt raises on purpose: each is one clear line and an exit code.

A message says what was wrong, where, and what to do.  Anything else that
escapes to the command line is a bug in tt.
"""

from __future__ import annotations


class TTError(Exception):
    """Base of every error a user is meant to read; `exit_code` is the process's."""

    exit_code = 3


class Divergence(TTError):
    """A replay did something else than the recording (exit code 1)."""

    exit_code = 1


class UsageError(TTError):
    """The command line or an argument makes no sense (exit code 2)."""

    exit_code = 2


class BadInput(TTError):
    """A file that was given is missing, damaged, or not what it should be (exit code 3)."""


class BadState(BadInput):
    """A saved state is none that this machine or device could have saved (exit code 3)."""


class EngineError(TTError):
    """The CPU emulator does not fit this build of tt, or failed (exit code 3)."""
