"""The signature of a crash: the line of the console that says why the guest cannot go on."""

from __future__ import annotations

import re

_LONGEST = 160
_LINE = 4096  # of a line longer than this the end is not looked at

# After these lines a guest does not recover.  Sources: panic() and its callers in Linux (kernel/panic.c,
# init/main.c, init/do_mounts.c, kernel/exit.c), initramfs-tools (/init, scripts/functions), systemd's
# emergency.service, sysvinit's checkroot, GRUB, SeaBIOS, busybox, our own Debian guest's initrd.
_FATAL = re.compile(
    r"Kernel panic - not syncing: .*"
    r"|No (?:working )?init found.*"
    r"|no init found: .*"
    r"|Requested init \S+ failed.*"
    r"|Target filesystem doesn't have requested .*"
    r"|VFS: (?:Unable to mount root fs|Cannot open root device).*"
    r"|Gave up waiting for (?:root|suspend).*"
    r"|ALERT! .*"
    r"|.*requires a manual fsck.*"
    r"|You are in (?:emergency|rescue) mode.*"
    r"|Give root password for (?:maintenance|system maintenance).*"
    r"|Press Enter for maintenance.*"
    r"|Cannot open access to console, the root account is locked.*"
    r"|\(initramfs\).*"
    r"|init: .*here is a shell.*"
    r"|switch_root: (?:can't|failed|bad) .*|run-init: .*"
    r"|grub rescue>.*|error: no such (?:device|partition).*"
    r"|No bootable device.*|Operating system not found.*"
)
# These lines often come before a crash, but a guest may also keep running.
_GRAVE = re.compile(
    r"(?:BUG: |Oops: |kernel BUG at |general protection fault|double fault|Unable to handle kernel ).*"
    r"|Internal error: .*"
    r"|(?:.*: )?Out of memory: Killed process.*"
    r"|EXT4-fs error.*|EXT4-fs \(\S+\): (?:VFS: Can't|unable to|.*corrupt).*"
    r"|(?:blk_update_request: )?I/O error, dev .*"
    r"|systemd\[1\]: (?:Freezing execution|Failed to ).*"
    r"|\[ *(?:FAILED|DEPEND|TIME) *\] .*"
    r"|.*: error while loading shared libraries: .*"
)
_WITHOUT_CAUSE = "Attempted to kill init!"  # a line before this one names the cause
_STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
_COLOURS = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|.)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# What differs from run to run of one crash: addresses, process numbers, CPUs.
_VARIES = re.compile(r"\b(?:0x)?[0-9a-f]{9,16}\b|\b(?:pid|PID|process|CPU)[: #]+\d+")


class Watch:
    """Look at a console as it comes.

    `fatal` is the first line after which the guest does not recover, `grave` the first serious error.
    """

    def __init__(self) -> None:
        self.fatal = ""
        self.grave = ""
        self._line = b""

    def feed(self, data: bytes) -> bool:
        """Look at what was printed next; return whether the guest cannot go on."""
        *lines, self._line = (self._line + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._look(line)
        self._line = self._line[:_LINE]
        # These prompts are not followed by a newline, so they are recognized without one.
        if not self.fatal and self._line.endswith((b"(initramfs) ", b"grub rescue> ")):
            self._look(self._line)
        return bool(self.fatal)

    @property
    def worst(self) -> str:
        """The signature of what was printed, or nothing."""
        return self.fatal or self.grave

    def _look(self, raw: bytes) -> None:
        if self.fatal or not raw:
            return
        line = plain(raw[:_LINE].decode("utf-8", "replace"))
        if _FATAL.match(line):
            self.fatal = _steady(line)
            if self.grave and _WITHOUT_CAUSE in line:
                self.fatal = f"{self.grave}; {self.fatal}"
        elif not self.grave and _GRAVE.match(line):
            self.grave = _steady(line)


def signature(console: bytes) -> str:
    """Return the signature of the crash on this console, equal for equal crashes; empty without a crash."""
    watch = Watch()
    watch.feed(console + b"\n")
    return watch.fatal


def plain(line: str) -> str:
    """Return a line of a console without the kernel's time, colours and control characters."""
    return _STAMP.sub("", _CONTROL.sub("", _COLOURS.sub("", line))).strip()


def _steady(line: str) -> str:
    return re.sub(r"\s+", " ", _VARIES.sub("...", line)).strip()[:_LONGEST]
