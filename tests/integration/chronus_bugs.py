"""A server's life with real configuration bugs in it, and the probes that tell good from bad.

The bugs are of ConfErr's kinds (Keller, Upadhyaya, Candea, DSN'08): typos, structure, semantics; and of
those that administrators meet beside: permissions, a library gone, a full disk, an upgrade cut in the
middle.  Each is made by the guest's own tools, in a burst of its own, among writes that have nothing to do
with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tt.log import Trace

SCRIPT_BYTES = 64 << 10


@dataclass(frozen=True)
class Bug:
    """One bug: what breaks it, what mends it (if anything), how to see it, and the file to blame.

    `probe` is a command for `--guest --early` or, with `how` "files", for `--files`; it exits with 0 where
    all is well.  With `how` "console" it is a script for `--console`, on a guest that boots into `LOGIN`.
    `judged_at_the_end` is false where a later bug keeps the probe from running.
    """

    name: str
    kind: str
    breaks: str
    probe: str
    guilty: str
    mends: str = ""
    how: str = "guest"
    judged_at_the_end: bool = True


BUGS = (
    Bug(
        "sshd typo",
        "typo",
        "sed -i 's/^#PermitRootLogin.*/PermitRotLogin no/' /etc/ssh/sshd_config",
        "mkdir -p /run/sshd; /usr/sbin/sshd -t || exit 1",
        "/etc/ssh/sshd_config",
        "sed -i 's/^PermitRotLogin.*/#PermitRootLogin no/' /etc/ssh/sshd_config",
    ),
    Bug(
        "lighttpd structure",
        "structure",
        "sed -i '/^index-file.names/s/)$//' /etc/lighttpd/lighttpd.conf",
        "mkdir -p /run/lighttpd; lighttpd -tt -f /etc/lighttpd/lighttpd.conf || exit 1",
        "/etc/lighttpd/lighttpd.conf",
    ),
    Bug(
        "dnsmasq semantics",
        "semantics",
        # A configuration that is as good as the other to `dnsmasq --test`, but the answers are others.
        "echo no-hosts >> /etc/dnsmasq.conf",
        "dnsmasq --test || exit 125; ip link set lo up; dnsmasq --user=root --pid-file=/dev/null || exit 1; "
        "busybox nslookup server 127.0.0.1 | grep -q 127.0.1.1 || exit 1",
        "/etc/dnsmasq.conf",
        judged_at_the_end=False,  # its library is removed
    ),
    Bug(
        "cron permissions",
        "permissions",
        "chmod 666 /etc/cron.d/backup",
        'grep -q \'"path": "/etc/cron.d/backup", .*"mode": "0644"\' "$CHRONUS_FILES"',
        "/etc/cron.d/backup",
        how="files",
    ),
    Bug(
        "sudoers structure",
        "structure",
        "echo '%ops ALL=(ALL:ALL NOPASSWD: /usr/bin/systemctl' >> /etc/sudoers.d/ops",
        "visudo -c || exit 1",
        "/etc/sudoers.d/ops",
    ),
    Bug(
        "PAM typo",
        "typo",
        "sed -i '0,/pam_unix.so/s//pam_unx.so/' /etc/pam.d/common-account",
        "bad whenever /Module is unknown|Login incorrect|Authentication failure/\n"
        "login ada Tr0ub4dor\nrun id -un",
        "/etc/pam.d/common-account",
        how="console",
    ),
    Bug(
        "resolver typo",
        "typo",
        "sed -i 's/^hosts:.*/hosts: fles dns/' /etc/nsswitch.conf",
        "timeout 5 getent hosts server || exit 1",
        "/etc/nsswitch.conf",
    ),
    Bug(
        "fstab semantics",
        "semantics",
        "echo '/dev/vdz1 /srv ext4 defaults 0 2' >> /etc/fstab",
        "mkdir -p /srv; mount -a || exit 1",
        "/etc/fstab",
    ),
    Bug(
        "boot script",
        "semantics",
        # It parses, and it exits with 0: only nothing runs after it.
        "sed -i 's#^DAEMON=/usr/sbin/cron#DAEMON=/usr/sbin/corn#' /etc/init.d/cron",
        "sh -n /etc/init.d/cron || exit 125; /etc/init.d/cron start; sleep 1; pgrep -x cron || exit 1",
        "/etc/init.d/cron",
    ),
    Bug(
        "host key permissions",
        "permissions",
        "chmod 644 /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_ecdsa_key",
        'grep \'"path": "/etc/ssh/ssh_host_ed25519_key"\' "$CHRONUS_FILES" | grep -q \'"mode": "0600"\'',
        "/etc/ssh/ssh_host_ed25519_key",
        how="files",
    ),
    Bug(
        "locale typo",
        "typo",
        "sed -i 's/^LANG=.*/LANG=en_US.UTF8X/' /etc/default/locale",
        ". /etc/default/locale; export LANG; ! perl -e 'exit 0' 2>&1 | grep -q 'Setting locale failed'",
        "/etc/default/locale",
    ),
    Bug(
        "disk full",
        "semantics",
        "dd if=/dev/zero of=/var/log/debug.log bs=1M 2> /dev/null; true",
        "dd if=/dev/zero of=/var/tmp/room bs=1M count=4 2> /dev/null || exit 1",
        "/var/log/debug.log",
        "rm /var/log/debug.log",
    ),
    Bug(
        "library removed",
        "structure",
        "rm /usr/lib/x86_64-linux-gnu/libnettle.so.8",
        "lighttpd -v || exit 1",
        "/usr/lib/x86_64-linux-gnu/libnettle.so.8",
    ),
    Bug(
        "passwd structure",
        "structure",
        "sed -i 's#^ada:x:\\([0-9]*\\):#ada:x:\\1#' /etc/passwd",
        "pwck -r -q; getent passwd ada > /dev/null || exit 1",
        "/etc/passwd",
    ),
    Bug(
        "firewall typo",
        "typo",
        "sed -i 's/type filter hook input/type fliter hook input/' /etc/nftables.conf",
        "nft -c -f /etc/nftables.conf || exit 1",
        "/etc/nftables.conf",
    ),
)

LOGIN = "init=/sbin/agetty -- --noclear ttyS0 vt100"
"""What the guest's first program is for a login on its console."""

_LIBRARY = "/usr/lib/x86_64-linux-gnu/libc.so.6"

_NOISE = """\
noise() {
    n=0
    while [ $n -lt $2 ]; do
        n=$((n + 1))
        echo "$1 $n: request served in $((n * 37 % 900)) ms" >> /var/log/app.log
        echo "session $1 $n" > /var/lib/app/session-$((n % 17))
        [ $((n % 9)) = 0 ] && sync
        [ $((n % 23)) = 0 ] && cp /var/log/app.log /var/log/app.log.1 && : > /var/log/app.log
    done
    sync
    sleep 2
}
step() { echo "STEP $1"; }
done_with() { sync; sleep 2; echo "DONE $1"; }
"""

_START = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export DEBIAN_FRONTEND=noninteractive
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -o remount,rw /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /var/lib/app
"""

# What libc is replaced by in an upgrade is gone for some seconds: nothing dynamic starts.
_HALF_AN_UPGRADE = f"""\
step upgrade
busybox mv {_LIBRARY} {_LIBRARY}.old
busybox sync
busybox sleep 3
busybox mv {_LIBRARY}.old {_LIBRARY}
busybox sync
busybox sleep 3
done_with upgrade
step package
dpkg -i /root/nftables.deb > /dev/null 2>&1
done_with package
"""


# A kernel that is taken away before the new one is there: for a while there is nothing to boot.
_A_KERNEL_LATE = """\
step kernel
for kernel in /boot/vmlinuz-*; do mv $kernel /root/kernel-to-come; done
noise kernel 12
noise kernel-on 12
mv /root/kernel-to-come $kernel
done_with kernel
"""


def life() -> str:
    """Return the shell script of the server's whole life, as its first program's."""
    parts = [_START, _NOISE, "noise boot 30\ndone_with start\n"]
    for number, bug in enumerate(BUGS):
        name = bug.name.replace(" ", "-")
        parts.append(
            f"noise before-{number} {20 + number * 7 % 25}\nstep {name}\n{bug.breaks}\ndone_with {name}\n"
        )
        parts.append(f"noise after-{number} {12 + number * 5 % 20}\n")
        if bug.mends:
            parts.append(f"step mend-{name}\n{bug.mends}\ndone_with mend-{name}\n")
        if number == 5:
            parts.append(_HALF_AN_UPGRADE)
        if number == 9:
            parts.append(_A_KERNEL_LATE)
    again = BUGS[0]
    parts.append(f"noise again 25\nstep {again.name.replace(' ', '-')}-again\n{again.breaks}\n")
    parts.append("done_with again\nnoise last 30\ndone_with end\n")
    parts.append("umount /tmp\nmount -o remount,ro /\necho b > /proc/sysrq-trigger\n")
    return "".join(parts)


def script_image(path: Path) -> Path:
    """Write the disk from which the server's first program reads its life."""
    data = life().encode()
    assert len(data) < SCRIPT_BYTES
    path.write_bytes(data.ljust(SCRIPT_BYTES, b"\n"))
    return path


def milestones(trace: Trace) -> dict[str, int]:
    """Return the ticks at which the server began something ("STEP x") or was done with it ("DONE x")."""
    return {text.strip(): tick for tick, text in _lines(trace)}


def _lines(trace: Trace) -> Iterator[tuple[int, str]]:
    for tick, _unit, text in trace.console_lines():
        if text.startswith(("STEP ", "DONE ")):
            yield tick, text
