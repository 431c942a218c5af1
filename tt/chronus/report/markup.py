"""Text from guests and users as HTML: never taken as markup, and with control characters made visible."""

from __future__ import annotations

import re
from html import escape

from tt.log.text import printable

# Escape sequences for terminals (ECMA-48, section 5.4, and OSC strings as xterm ends them).
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]|\r(?=\n)")


def text(raw: object) -> str:
    """Return a piece of text for HTML: escaped, on one line, with control characters spelled out."""
    return escape(printable(str(raw)))


def lines(raw: str) -> str:
    """Return text of several lines for a <pre>, without the escape sequences for cursor and colours."""
    plain = _CONTROL.sub("", raw)
    return "\n".join(text(line.expandtabs(8)) for line in plain.split("\n"))


def tag(name: str, contents: str = "", **attributes: object) -> str:
    """Return an element with `contents`, which is HTML; attributes are escaped, `class_` means class."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{contents}</{name}>"
