"""The script that a probed guest's first program runs, and what it leaves on its disk.

The kernel is told `init=/bin/sh -- /dev/vdb`: process 1 is the guest's own shell, and its script is a second
disk that we give it.  Nothing in the guest is changed, and it needs only a shell.
The script either runs the command at once (`early`), or leaves a process behind that does so when the
system is up, and becomes the system's own init.

The answer goes back over the same disk, not the console, where other programs print.  The shell has read its
script by then, so the answer is written over it, from the disk's beginning:

    chronus-wait CODE         `done` instead of `wait` as soon as all of it has reached the disk
    what was printed          the last 64 KB, as it is
    chronus-end-KEY           KEY belongs to the script
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from hashlib import blake2b

from tt.chronus.search.verdicts import ProbeError

MAX_COMMAND = 128 << 10
OUTPUT_SIZE = 64 << 10
DISK_SIZE = 256 << 10
EMERGENCY = "emergency"

# Plain POSIX shell, and few programs, each with a fallback: the guest may be a broken one.  All in
# braces, so that the shell has read to the end before it does anything.
_HEAD = """\
# chronus: what to ask of this guest
{{
chronus_key={key}
chronus_text={command}

# Write the answer ($1 is its code), make it durable, and end the machine.
chronus_answer() {{
    {{
        printf 'chronus-wait %s\\n' "$1"
        tail -c {output_size} /dev/chronus-output || cat /dev/chronus-output
        printf '\\n%s-end-%s\\n' chronus "$chronus_key"
    }} 1<> /dev/vdb
    chronus_sync
    printf 'chronus-done' 1<> /dev/vdb
    chronus_sync
    [ -e /proc/sysrq-trigger ] || mount -t proc proc /proc
    echo 1 > /proc/sys/kernel/sysrq
    echo b > /proc/sysrq-trigger
    reboot -f
    while :; do sleep 100; done
}}

chronus_sync() {{
    sync /dev/vdb && return
    sync && return
    echo s > /proc/sysrq-trigger
    sleep 3
}}

chronus_ask() {{
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
    cd /
    printf '%s\\n' "$chronus_text" > /dev/chronus-probe
    {interpreter} /dev/chronus-probe < /dev/null > /dev/chronus-output 2>&1
    chronus_answer $?
}}
"""

# What an init does first, and a command relies on.  A step that fails is ignored.
_EARLY = """
[ -c /dev/vdb ] || [ -b /dev/vdb ] || mount -t devtmpfs devtmpfs /dev
exec 2> /dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ -e /proc/self ] || mount -t proc proc /proc
[ -e /sys/kernel ] || mount -t sysfs sysfs /sys
mount -o remount,rw /
[ -d /dev/pts ] || mkdir /dev/pts /dev/shm
[ -e /dev/pts/ptmx ] || mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
grep -q ' /run tmpfs ' /proc/mounts || mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
hostname -F /etc/hostname
ip link set lo up || ifconfig lo 127.0.0.1 up
chronus_ask
}}
"""

# systemd reports when it is up.  Another init counts as up when no start-up script runs any more, and for
# two seconds in a row no process was started but our own `sleep`.
_BOOTED = """
chronus_busy() {{
    for chronus_file in /proc/[0-9]*/comm; do
        read -r chronus_name < "$chronus_file" || continue
        case $chronus_name in rc|rcS|rc.sysinit|startpar|openrc|openrc-run|boot|rc.local) return 0 ;; esac
    done 2> /dev/null
    return 1
}}

chronus_systemd() {{
    while :; do
        case $(systemctl is-system-running --wait) in
            running|degraded) return ;;
            maintenance) chronus_answer {emergency} ;;
        esac
        sleep 1
    done
}}

chronus_wait() {{
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    chronus_calm=0 chronus_last=0 chronus_round=0
    while [ $chronus_calm -lt 2 ]; do
        sleep 1
        chronus_round=$((chronus_round + 1))
        # An init that has not mounted it by now will not do so later.
        [ $chronus_round -eq 15 ] && [ ! -r /proc/stat ] && mount -t proc proc /proc
        if [ -d /run/systemd/system ]; then
            chronus_systemd
            break
        fi
        chronus_now=0
        [ -r /proc/stat ] && while read -r chronus_name chronus_value chronus_rest; do
            [ "$chronus_name" = processes ] && chronus_now=$chronus_value
        done < /proc/stat
        if [ $chronus_now -gt 0 ] && [ $((chronus_now - chronus_last)) -le 1 ] && ! chronus_busy; then
            chronus_calm=$((chronus_calm + 1))
        else
            chronus_calm=0
        fi
        chronus_last=$chronus_now
    done
    chronus_ask
}}

[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
( chronus_wait ) < /dev/null > /dev/null 2>&1 &
chronus_inits="/sbin/init /etc/init /bin/init"
case $1 in chronus-init=*) chronus_inits=${{1#chronus-init=}}; shift ;; esac
for chronus_init in $chronus_inits; do
    [ -x "$chronus_init" ] && exec "$chronus_init" "$@"
done
echo "no init found: tried $chronus_inits"
exit 1
}}
"""

_SHEBANG = re.compile(r"#! *(\S[^\n]*)")


@dataclass(frozen=True)
class Answer:
    """What a guest left on its disk: the command's exit code, or `EMERGENCY`, and what it printed."""

    code: int | str
    output: bytes


def script_disk(command: str, early: bool) -> bytes:
    """Return the disk with the script that asks `command`: shell text, or a script that begins with `#!`.

    Raises `ProbeError` for what cannot be given to a shell.
    """
    text = command.encode("utf-8", "surrogateescape")
    if len(text) > MAX_COMMAND or b"\0" in text:
        raise ProbeError(
            f"a command of {len(text):,} bytes cannot be given to a guest: give text of at most "
            f"{MAX_COMMAND >> 10} KB without zero bytes"
        )
    if not text.strip():
        raise ProbeError("the command for the guest is empty: give one, such as 'nginx -t'")
    shebang = _SHEBANG.match(command)
    # Named, because /dev may be mounted so that nothing in it can be executed.
    interpreter = "/bin/sh" if shebang is None else " ".join(map(shlex.quote, shebang[1].split(None, 1)))
    script = (_HEAD + (_EARLY if early else _BOOTED)).format(
        key=_key(text, early),
        command=shlex.quote(command),
        interpreter=interpreter,
        output_size=OUTPUT_SIZE,
        emergency=EMERGENCY,
    )
    data = script.encode("utf-8", "surrogateescape")
    if len(data) > DISK_SIZE:
        raise ProbeError("the command for the guest has too many quotes: give it as a shorter script")
    return data.ljust(DISK_SIZE, b"\n")


def read_answer(disk: bytes, command: str, early: bool) -> Answer | None:
    """Return the answer to `command` that is on the disk; None where there is none, or not yet all of it."""
    head, newline, rest = disk.partition(b"\n")
    words = head.split(b" ")
    key = _key(command.encode("utf-8", "surrogateescape"), early)
    end = rest.rfind(b"\nchronus-end-" + key.encode() + b"\n")
    if not newline or len(words) != 2 or words[0] != b"chronus-done" or end < 0:
        return None
    code = words[1].decode("ascii", "replace")
    if code == EMERGENCY:
        return Answer(EMERGENCY, rest[:end])
    return Answer(int(code), rest[:end]) if code.isascii() and code.isdigit() and len(code) < 4 else None


def _key(text: bytes, early: bool) -> str:
    return blake2b(text, digest_size=8, key=b"early" if early else b"booted").hexdigest()
