"""`chronus bisect --run` with ports of the guest: on tt's machine through passt, and on QEMU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_rig import TT, Inside
from network_rig import alive, children, needs_passt, soon

from tt.chronus.probes.run import RunProbe
from tt.chronus.runners.qemu import BINARY
from tt.chronus.runners.runner import Setup, setup_of
from tt.chronus.search.verdicts import Outcome, ProbeError
from tt.chronus.store.history import History
from tt.cli.chronus.main import CHRONUS
from tt.recording import record
from tt.vmm.configure import configure_denali
from tt.vmm.denali.guest_build import WEB, elf_file

pytestmark = needs_passt

GET = f"""{sys.executable} -c '
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:" + sys.argv[1], timeout=60).read())
' """
UP = "web: .* port 80"


@pytest.fixture(scope="module")
def served(denali_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a Denali web server that has a disk."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    config = configure_denali(
        elf_file(denali_demo.parent, WEB), disks=[folder / "disk.img"], epoch=1_700_000_000
    )
    record(config, folder / "web.tt", max_ticks=1000)
    return folder / "web.tt"


def test_a_command_reaches_the_guest_and_the_guest_reaches_nobody(served: Path) -> None:
    with History.open(served) as history:
        setup, disk = setup_of(history, ports=[80]), history.at(0)
        probe = RunProbe(GET + "$CHRONUS_PORT_80/bytes/10", "tt", setup, after=UP)
        for _ in range(2):  # the second starts warm, with another passt
            verdict = probe.run(disk)
            assert verdict.outcome is Outcome.GOOD, verdict
            assert verdict.output == f"{bytes(7 * i for i in range(10))!r}\n"
        with ThreadPoolExecutor(2) as pool:  # side by side
            assert {v.outcome for v in pool.map(lambda _: probe.run(disk), range(2))} == {Outcome.GOOD}
        bad = RunProbe(GET + "$CHRONUS_PORT_80/none", "tt", setup, after=UP).run(disk)
        assert bad.outcome is Outcome.BAD and "404" in bad.output
        assert "10.0.2.15" not in RunProbe("true", "tt", setup_of(history)).run(disk).console
    assert children(os.getpid(), "passt") == []


def test_a_passt_that_dies_gives_no_verdict(served: Path) -> None:
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed")
    with History.open(served) as history:
        probe = RunProbe(
            f"pkill -9 -P {os.getpid()} passt; sleep 5", "tt", setup_of(history, ports=[80]), after=UP
        )
        with pytest.raises(
            ProbeError, match="the guest's network failed, so there is no verdict: passt is gone"
        ):
            probe.run(history.at(0))


@pytest.mark.slow
def test_a_guest_that_does_not_answer_in_time(served: Path) -> None:
    with History.open(served) as history:
        setup = setup_of(history, ports=[81], timeout_s=3)
        verdict = RunProbe("sleep 60", "tt", setup, after=UP).run(history.at(0))
        assert verdict.outcome is Outcome.HANG
    assert children(os.getpid(), "passt") == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_search_that_is_cut_off(demo_trace: Path, tt: TT, how: int) -> None:
    words = [
        "bisect",
        demo_trace,
        "--good",
        "start",
        "--port",
        80,
        "--after",
        "heartbeat",
        "--run",
        "sleep 60",
    ]
    command = [sys.executable, "-m", "tt.cli.chronus.main", *map(str, words)]
    search = subprocess.Popen(command, cwd=tt.folder, env=tt.env, stderr=subprocess.DEVNULL)
    assert soon(lambda: bool(children(search.pid, "passt")), 60)
    started = children(search.pid, "passt")
    search.send_signal(how)
    search.wait(60)
    assert soon(lambda: not any(map(alive, started)), 60)


@pytest.mark.slow
def test_the_write_that_broke_a_web_server(debian_image: Path, inside: Inside) -> None:
    """As docs/chronus.md says it, on both runners."""
    lines = [
        "echo 'A:*' >> /etc/httpd.conf; sync",
        "sed -i 's/^A:.*/D:*/' /etc/httpd.conf; sync",
        "poweroff",
    ]
    (inside.folder / "lines").write_text("".join(f"{line}\n" for line in lines))
    inside("record", debian_image, "-o", "web.tt", "--input", "lines")
    fetch = GET + "$CHRONUS_PORT_80/"
    chronus = Inside(inside.folder, CHRONUS)
    told = []
    for runner in ("tt", "qemu"):
        if runner == "tt" or shutil.which(BINARY) is not None:
            words = ("bisect", "web.tt", "--good", "start", "--run", fetch, "--runner", runner)
            told.append(chronus(*words).stdout.decode())
    for text in told:
        assert "--- a/etc/httpd.conf" in text and "  -A:*\n  +D:*\n" in text
    assert len({text[text.index("it breaks with") :] for text in told}) == 1


def test_python_says_which_ports() -> None:
    assert Setup(forward=(80,)).key() != Setup().key()
