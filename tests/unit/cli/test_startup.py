"""What the commands load before they do anything, and what they say where nothing was built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import ROOT, unmeasured

from tt.log import TraceWriter

# Each takes a good part of the time that a command may take to start.
HEAVY = {
    *("asyncio", "capstone", "dask", "distributed", "elftools", "ext4", "prompt_toolkit", "pyfatfs"),
    *("pygments", "sqlite_utils", "unicorn", "tt.vmm.boot.images", "tt.vmm.boot.bootconfig", "tt.guests"),
}
NOT_FOR_HELP = HEAVY | {
    "sqlite3",
    "zstandard",
    "json",
    "subprocess",
    "tt.log",
    "tt.vmm",
    "tt.travel",
    "tt.shell",
}


def loaded(*argv: str, program: str = "tt.cli.main") -> set[str]:
    """Run a command in a process of its own; return the modules that are loaded when it is done."""
    code = (
        "import sys\n"
        f"from {program} import main\n"
        f"code = main({list(argv)!r})\n"
        "print('\\n', *sorted(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unmeasured()
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("program", ["tt.cli.main", "tt.cli.chronus.main"])
def test_help_loads_nothing_but_the_parser(program: str) -> None:
    found = loaded("--help", program=program)
    assert "tt.cli.parser" in found
    assert not found & NOT_FOR_HELP


def test_a_batch_of_one_line_loads_what_it_uses(demo_trace: Path) -> None:
    found = loaded("replay", str(demo_trace), "--batch", "where")
    assert "tt.vmm.denali.machine" in found
    assert not found & HEAVY


def test_info_loads_no_machine(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    TraceWriter(path, {"machine": "pc"}).seal(10, "power off")
    found = loaded("info", str(path))
    assert "tt.log.reader" in found
    assert not {name for name in found if name.startswith(("tt.vmm", "tt.travel"))} | found & HEAVY


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in which nothing was built."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tt", folder / "tt", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def test_a_checkout_that_was_not_built_says_so(unbuilt: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import tt"], cwd=unbuilt, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"ImportError: tt's engine is not built here: run `pip install -e .` in {unbuilt}"


@pytest.mark.parametrize("command", [["-m", "tt.cli.main", "--help"], ["tt", "info", "x.tt"], ["chronus"]])
def test_the_commands_say_so_in_one_line(unbuilt: Path, command: list[str], tmp_path: Path) -> None:
    if command[0] != "-m":  # the script that pip makes
        script = tmp_path / command[0]
        module = "tt.cli.main" if command[0] == "tt" else "tt.cli.chronus.main"
        script.write_text(f"import sys\nfrom {module} import main\nsys.exit(main())\n")
        command = [str(script), *command[1:]]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=unbuilt,
        env={"PYTHONPATH": str(unbuilt)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"tt: tt's engine is not built here: run `pip install -e .` in {unbuilt}\n"
