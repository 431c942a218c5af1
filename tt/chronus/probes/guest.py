"""`--guest`: a command inside the booted guest, with no agent in its image.

The kernel is told `init=/bin/sh -- /dev/vdb`: process 1 is the guest's own shell, and its script is a
second disk that we give it.  The script puts the command into /dev (a file system in memory) and either runs it at
once (`early`), or leaves a process behind that does so when the system is up, and becomes the real init.
Exit code and output come back on the second disk too, and not on the console, where others print.

    /dev/vdb   0        the script                 64 KB   "chronus CODE SIZE"
               128 KB   the last 384 KB of what the command printed
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tt.chronus.instant import DiskView
from tt.chronus.probes.exit_codes import outcome_of
from tt.chronus.probes.signatures import boot_failure, signature
from tt.chronus.runners.runner import Guest, Setup, runner
from tt.chronus.verdicts import Outcome, ProbeError, Verdict
from tt.errors import BadInput

SIZE = 512 << 10
ANSWER_AT = 64 << 10
OUTPUT_AT = 128 << 10
OUTPUT_SIZE = SIZE - OUTPUT_AT
_TAIL = 4000
_END = "CHRONUS_END_OF_TEXT"

_PROLOGUE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/.chronus
cat > /dev/.chronus/probe <<'{end}'
{command}
{end}
cat > /dev/.chronus/go <<'{end}'
cd /
sh /dev/.chronus/probe > /dev/.chronus/out 2>&1 < /dev/null
code=$?
tail -c {output_size} /dev/.chronus/out > /dev/.chronus/tail
dd if=/dev/.chronus/tail of=/dev/vdb bs=4096 seek={output_block} conv=notrunc 2> /dev/null
echo "chronus $code $(wc -c < /dev/.chronus/tail)" > /dev/.chronus/answer
dd if=/dev/.chronus/answer of=/dev/vdb bs=4096 seek={answer_block} conv=notrunc 2> /dev/null
sync
[ -e /proc/sysrq-trigger ] || mount -t proc proc /proc
echo 1 > /proc/sys/kernel/sysrq
echo b > /proc/sysrq-trigger
while :; do sleep 100; done
{end}
"""

_EARLY = """\
mount -t proc proc /proc 2> /dev/null
mount -t sysfs sysfs /sys 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2> /dev/null
mount -o remount,rw / 2> /dev/null
mount -t tmpfs -o mode=755 tmpfs /run 2> /dev/null
mount -t tmpfs -o mode=1777 tmpfs /tmp 2> /dev/null
hostname -F /etc/hostname 2> /dev/null
ip link set lo up 2> /dev/null || ifconfig lo 127.0.0.1 up 2> /dev/null
exec sh /dev/.chronus/go
"""

# Settled: for two seconds in a row no process was born but our own `sleep`.
_BOOTED = """\
cat > /dev/.chronus/wait <<'{end}'
calm=0 last=0 round=0
while [ $calm -lt 2 ] && [ $round -lt {rounds} ]; do
    sleep 1
    round=$((round + 1))
    now=0
    [ -r /proc/stat ] && while read -r name value rest; do
        [ "$name" = processes ] && now=$value
    done < /proc/stat
    if [ $now -gt 0 ] && [ $((now - last)) -le 1 ]; then calm=$((calm + 1)); else calm=0; fi
    last=$now
    if [ -d /run/systemd/system ] && [ $calm -gt 0 ]; then
        systemctl is-system-running --wait > /dev/null 2>&1
        break
    fi
done
exec sh /dev/.chronus/go
{end}
sh /dev/.chronus/wait < /dev/null > /dev/null 2>&1 &
for init in {inits}; do
    [ -x $init ] && exec $init
done
echo "init: no init on this disk; here is a shell"
"""
_INITS = "/sbin/init /etc/init /bin/init /lib/systemd/systemd"


@dataclass(frozen=True)
class GuestProbe:
    """Boot, run `command` (shell text; a name of a script file of the host stands for its text), and ask its exit code."""

    command: str
    runner: str
    setup: Setup
    early: bool = False

    def key(self) -> str:
        """Return what tells this probe from others."""
        return f"guest {self.runner} {self.early} {self.setup.key()} {self._text()!r}"

    def describe(self) -> str:
        """Return the probe in a line."""
        return f"--guest {self.command!r}{' --early' if self.early else ''} on {self.runner}"

    def run(self, disk: DiskView) -> Verdict:
        """Boot and ask; see `Probe.run`."""
        seen = bytearray()

        def heard(guest: Guest, data: bytes) -> None:
            seen.extend(data)
            if data.endswith(b"\n") and signature(bytes(seen[-2000:])):
                guest.stop("crashed")

        setup = replace(self.setup, init="/bin/sh", init_words=("/dev/vdb",))
        try:
            end = runner(self.runner).run(
                disk, setup, extra=script_disk(self._text(), self.early), heard=heard
            )
        except BadInput as e:
            return Verdict(Outcome.CRASH, boot_failure(str(e).replace(disk.where, "the disk")))
        console = end.console.decode("utf-8", "replace")[-_TAIL:]
        answer = read_answer(end.extra)
        if answer is not None:
            code, output = answer
            outcome = outcome_of(code, self.command, " in the guest")
            return Verdict(outcome, "", code, output[-_TAIL:], console, end.seconds, end.reads)
        found = signature(end.console)
        if found or not end.timed_out:
            what = found or f"ended without an answer: {end.why}"
            return Verdict(Outcome.CRASH, what, None, "", console, end.seconds, end.reads)
        return Verdict(Outcome.HANG, "", None, "", console, end.seconds, end.reads)

    def _text(self) -> str:
        path = Path(self.command)
        try:
            if "\n" not in self.command and len(self.command) < 4096 and path.is_file():
                return path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise ProbeError(f"cannot read the script {self.command}: {e}") from None
        return self.command


def script_disk(command: str, early: bool) -> bytes:
    """Return the second disk: the script, and room for the answer; raises `ProbeError` for what does not fit."""
    numbers = {
        "end": _END,
        "command": command,
        "output_size": OUTPUT_SIZE,
        "output_block": OUTPUT_AT // 4096,
        "answer_block": ANSWER_AT // 4096,
        "rounds": 90,
        "inits": _INITS,
    }
    text = _PROLOGUE.format(**numbers) + (_EARLY if early else _BOOTED.format(**numbers))
    data = text.encode("utf-8", "surrogateescape")
    if len(data) >= ANSWER_AT or "\0" in command or _END in command:
        raise ProbeError(
            f"a script of {len(command):,} characters cannot be given to the guest: at most 60,000, text"
        )
    return data.ljust(ANSWER_AT, b"\n") + bytes(SIZE - ANSWER_AT)


def read_answer(disk: bytes) -> tuple[int, str] | None:
    """Return the exit code and the output that the script left on its disk; None where it left none."""
    words = disk[ANSWER_AT : ANSWER_AT + 64].split(b"\n")[0].split()
    if len(words) != 3 or words[0] != b"chronus" or not (words[1].isdigit() and words[2].isdigit()):
        return None
    size = min(int(words[2]), OUTPUT_SIZE)
    return int(words[1]), disk[OUTPUT_AT : OUTPUT_AT + size].decode("utf-8", "replace")
