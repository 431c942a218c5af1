"""What a crash is known by: the line of the console that says why the guest died."""

from __future__ import annotations

import re

_FATAL = re.compile(
    rb"(Kernel panic - not syncing: [^\r\n]*"
    rb"|No working init found[^\r\n]*"
    rb"|VFS: Unable to mount root fs[^\r\n]*"
    rb"|Oops: [^\r\n]*|BUG: [^\r\n]*|kernel BUG at [^\r\n]*|general protection fault[^\r\n]*"
    rb"|You are in (?:emergency|rescue) mode[^\r\n]*"
    rb"|Give root password for maintenance[^\r\n]*"
    rb"|Gave up waiting for root[^\r\n]*|ALERT! +[^\r\n]*"
    rb"|init: [^\r\n]*here is a shell[^\r\n]*)[\r\n]"
)
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|\[[0-9. ]+\] ?")
_LONGEST = 160


def signature(console: bytes) -> str:
    """Return the first line that says the guest is beyond help, without numbers that vary; else nothing."""
    match = _FATAL.search(console)
    if match is None:
        return ""
    text = match[1].decode("utf-8", "replace")
    return _NUMBERS.sub("", text).strip()[:_LONGEST]


def boot_failure(error: str) -> str:
    """Return the signature of a disk on which nothing can be booted."""
    return f"cannot boot: {error}"[:_LONGEST]
