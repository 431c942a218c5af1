"""gdb's remote protocol over a recording: gdb drives a timeline, forwards and backwards."""

from tt.gdb.guest import Guest
from tt.gdb.server import DEFAULT_LISTEN, Server, parse_listen, serve

__all__ = ["DEFAULT_LISTEN", "Guest", "Server", "parse_listen", "serve"]
