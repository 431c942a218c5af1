"""A whole Debian, untouched, on the network: from its own initrd, by systemd-networkd, and by ssh."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boot_rig import QUICK
from network_rig import Conversation, free_port, needs_passt
from test_boot_debootstrap import image as debootstrapped  # noqa: F401

from tt.log import Trace
from tt.replay import verify

pytestmark = [pytest.mark.slow, needs_passt]

PROMPT = "root@debian:~# "
NETWORK = r"printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' > /etc/systemd/network/lan.network"
ONLINE = "/lib/systemd/systemd-networkd-wait-online --timeout=60"


def test_from_the_initrd_to_an_ssh_session(debootstrapped: Path, tmp_path: Path) -> None:  # noqa: F811
    for tool in ("ssh", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    key, port = tmp_path / "key", free_port()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
    ssh = ["ssh", "-i", str(key), "-p", str(port), *(f"-o{each}" for each in options), "root@127.0.0.1"]

    def run(command: str) -> bytes:
        return subprocess.run([*ssh, command], check=True, capture_output=True, timeout=200).stdout

    def say(guest: Conversation) -> None:
        # initramfs-tools' own way to an address, as for a root file system on the network.
        guest.wait_for(r"\(initramfs\) ")
        guest.ask(". /scripts/functions; configure_networking; cat /run/net-*.conf", "IPV4ADDR='10.0.2.15'\n")
        guest.type("exit")
        guest.wait_for("debian login: ")
        guest.ask("root", PROMPT)
        public = key.with_suffix(".pub").read_text().strip()
        guest.ask(f"mkdir -m 700 .ssh; echo '{public}' > .ssh/authorized_keys; echo K''EY", "KEY\n")
        guest.ask(f"{NETWORK}; systemctl start systemd-networkd; {ONLINE}; echo ON''LINE $?", "ONLINE 0\n")
        assert run("cat /etc/debian_version").startswith(b"12.")
        assert re.fullmatch(rb"10\.0\.2\.2 \d+ 10\.0\.2\.15 22\n", run("echo $SSH_CONNECTION"))
        told = run("head -c 3000000 /dev/urandom > x; sha256sum < x").split()[0].decode()
        assert hashlib.sha256(run("cat x")).hexdigest() == told
        subprocess.run([*ssh, "poweroff"], capture_output=True, timeout=200)
        guest.wait_for("System halted")

    talked = Conversation(
        debootstrapped,
        tmp_path / "ssh.tt",
        say,
        forwards=[f"{port}:22"],
        append=f"ip=dhcp break=premount {QUICK}",
        timeout_s=500,
    )
    assert talked.recording.reason in ("halted with interrupts off", "all was said")
    with Trace.open(tmp_path / "ssh.tt") as trace:
        assert trace.verify_structure() == []
        verdict = verify(trace)
        assert verdict.good, verdict
        assert any(frame.data[54:].startswith(b"SSH-2.0-OpenSSH") for frame in trace.frames())
