"""gdb out of the shell: it drives the same timeline until it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tt.inspect import Answer

if TYPE_CHECKING:
    from tt.shell.session import Session


def serve(session: Session, port: int) -> Answer:
    """Serve one gdb at a port of this machine (0: a free one); one stays where gdb was.  Ctrl-C ends it."""
    from tt.gdb import serve as serve_gdb

    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        session.say(line)

    interrupted = False
    with session.waiting():
        try:
            serve_gdb(session.timeline, f"127.0.0.1:{port}", say=say, once=True)
        except KeyboardInterrupt:
            interrupted = True
    return session.arrive(["gdb is no longer served"] if interrupted else [], {"said": told})
