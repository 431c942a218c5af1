"""What the Debian guest consists of besides Debian's own files: its init scripts and configuration."""

from __future__ import annotations

HOSTNAME = "debian"

# The modules the guest's disk, random numbers and network cards need; af_packet is for DHCP.
# virtio_pci finds the devices, so it comes before their drivers although none depends on it.
MODULES = ("virtio_pci", "virtio_blk", "virtio_rng", "virtio_net", "af_packet")

# The initrd's /init: what initramfs-tools would do, for one kind of machine.
INITRD_INIT = """\
#!/bin/busybox sh
# The first program: load the drivers of the disk, mount it, hand over to its init.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: module $module did not load"
done < /lib/modules/order

root=/dev/vda mode=ro init=/sbin/init type=ext4
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        init=*) init=${word#init=} ;;
        ro|rw) mode=$word ;;
    esac
done

tries=0
while :; do
    case $root in
        UUID=*|LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ -b "$device" ] && break
    tries=$((tries + 1))
    if [ $tries -gt 50 ]; then
        echo "init: no disk $root; here is a shell (kernel command line: root=)"
        exec sh
    fi
    sleep 0.1
done

if ! mount -t "$type" -o "$mode" "$device" /root; then
    echo "init: $device does not mount as $type; here is a shell"
    exec sh
fi
umount /proc /sys
mount -o move /dev /root/dev
exec switch_root /root "$init" "$@"
"""

INITRD_APPLETS = ("cat", "findfs", "insmod", "mount", "sh", "sleep", "switch_root", "umount", "[")

_INITTAB = """\
# busybox init: <tty>::<when>:<command>
::sysinit:/etc/init.d/rcS
# A root shell on the serial console ("-": a login shell); a new one when it ends.
ttyS0::respawn:-/bin/sh
::shutdown:/etc/init.d/rcK
::ctrlaltdel:/sbin/reboot
::restart:/sbin/init
"""

_RCS = """\
#!/bin/sh
# Start the system.
[ -c /dev/ttyS0 ] || mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,rw /
hostname -F /etc/hostname
ifconfig lo 127.0.0.1

for card in /sys/class/net/eth*; do
    [ -e "$card" ] || continue
    card=${card##*/}
    ifconfig "$card" up
    udhcpc -i "$card" -q -b -t 3 -T 1 -s /etc/udhcpc/script > /dev/null 2>&1
done

# From here on only emergencies go to the console; dmesg has everything.
dmesg -n 1

syslogd -O /var/log/messages
crond -l 8
httpd -c /etc/httpd.conf -h /var/www
echo "Debian's kernel $(uname -r) with busybox: syslogd, crond and httpd run."
"""

_UDHCPC = """\
#!/bin/sh
# What udhcpc calls: $1 says what happened, the rest is in variables.
case $1 in
    deconfig)
        ifconfig "$interface" 0.0.0.0
        ;;
    bound|renew)
        ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}"
        [ -n "$mtu" ] && ifconfig "$interface" mtu "$mtu"
        for gateway in $router; do
            route add default gw "$gateway" dev "$interface"
            break
        done
        : > /run/resolv.conf
        for server in $dns; do
            echo "nameserver $server" >> /run/resolv.conf
        done
        ;;
esac
"""

_RCK = """\
#!/bin/sh
# Stop the system.
killall -q httpd crond syslogd
sync
mount -o remount,ro /
"""

_PROFILE = """\
export PATH=/usr/bin HOME=/root USER=root TERM=${TERM:-linux}
export PS1='root@\\h:\\w# '
cd
"""

_MOTD = """\
poweroff, reboot and halt end the machine; the file system keeps what you write (sync makes sure).
httpd serves /var/www: wget -qO- http://127.0.0.1/
"""

_PAGE = """\
<!doctype html>
<title>A page from the past</title>
<h1>It works</h1>
<p>This page is served by busybox httpd in a recorded machine.</p>
"""

_EXTLINUX = """\
DEFAULT debian
LABEL debian
    LINUX /boot/vmlinuz-{kernel}
    INITRD /boot/initrd.img-{kernel}
    APPEND root=/dev/vda ro console=ttyS0
"""

DIRECTORIES = {
    **dict.fromkeys(
        [
            *(
                "boot",
                "boot/extlinux",
                "dev",
                "etc",
                "etc/init.d",
                "etc/udhcpc",
                "home",
                "mnt",
                "opt",
                "proc",
                "run",
                "srv",
            ),
            *("sys", "usr", "usr/bin", "usr/lib", "usr/share", "var", "var/lib", "var/log", "var/spool"),
            *("var/spool/cron", "var/spool/cron/crontabs", "var/www"),
        ],
        0o755,
    ),
    "root": 0o700,
    "tmp": 0o1777,
}

# Debian's merged /usr, with its sbin merged too: busybox is all there is.
SYMLINKS = {
    "bin": "usr/bin",
    "sbin": "usr/bin",
    "lib": "usr/lib",
    "usr/sbin": "bin",
    "etc/mtab": "/proc/self/mounts",
    "etc/resolv.conf": "/run/resolv.conf",
    "var/run": "/run",
}


def files(kernel: str, release: str) -> dict[str, tuple[int, str]]:
    """Return the guest's text files, path to (permission bits, text), for a kernel version."""
    name = f"Debian's kernel and busybox ({release})"
    return {
        "boot/extlinux/extlinux.conf": (0o644, _EXTLINUX.format(kernel=kernel)),
        "etc/fstab": (0o644, "/dev/vda / ext4 defaults 0 1\n"),
        "etc/group": (0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        "etc/hostname": (0o644, f"{HOSTNAME}\n"),
        "etc/hosts": (0o644, f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n"),
        "etc/httpd.conf": (0o644, "H:/var/www\nI:index.html\n"),
        "etc/init.d/rcK": (0o755, _RCK),
        "etc/init.d/rcS": (0o755, _RCS),
        "etc/inittab": (0o644, _INITTAB),
        "etc/motd": (0o644, _MOTD),
        "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nhosts: files\n"),
        "etc/os-release": (0o644, f'PRETTY_NAME="{name}"\nNAME="Debian"\nID=debian\n'),
        "etc/passwd": (
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        "etc/profile": (0o644, _PROFILE),
        # No password: it is for logins that somebody may add, the console has none.
        "etc/shadow": (0o640, "root::20089:0:99999:7:::\nnobody:*:20089:0:99999:7:::\n"),
        "etc/shells": (0o644, "/bin/sh\n"),
        "etc/udhcpc/script": (0o755, _UDHCPC),
        "var/spool/cron/crontabs/root": (0o600, "* * * * * uptime >> /var/log/uptime\n"),
        "var/www/index.html": (0o644, _PAGE),
    }
