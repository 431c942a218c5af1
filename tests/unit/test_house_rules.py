"""The rules of the house that a machine can hold: imports, chance, words."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tt"
FILES = sorted(path for path in PACKAGE.rglob("*.py*") if path.suffix in (".py", ".pyi"))
MODULES = [path for path in FILES if path.suffix == ".py"]

# Which rooms a room may import from, beside itself: docs/design.md, "Rooms and the direction of imports".
BASE = {"errors", "events", "position", "bisection"}
RECORDING = BASE | {"log", "vmm", "recording", "checker", "differences", "replay"}
TRAVELLING = RECORDING | {"frames", "inspect", "travel", "symbols", "chronus"}
MAY_IMPORT = {
    "errors": set(),
    "bisection": set(),
    "events": {"errors"},
    "position": {"errors"},
    "log": BASE,
    "vmm": BASE,
    "net": BASE | {"vmm", "frames"},
    "frames": BASE | {"log"},
    "guests": BASE | {"vmm"},
    "recording": BASE | {"log", "vmm"},
    "checker": BASE | {"log", "vmm", "recording"},
    "differences": BASE | {"vmm"},
    "replay": RECORDING,
    "symbols": RECORDING,
    "inspect": RECORDING | {"symbols"},
    "fleet": RECORDING | {"net"},
    "travel": RECORDING | {"net", "frames"},
    "chronus": TRAVELLING | {"net"},
    "shell": TRAVELLING | {"guests", "gdb"},
    "gdb": TRAVELLING,
    "cli": TRAVELLING | {"net", "fleet", "guests", "shell", "gdb", ""},
    "": TRAVELLING | {"net", "fleet", "guests"},  # tt/__init__.py, the public face
}

# The rooms inside chronus, each of which may import from those before it.
CHRONUS = ("store", "files", "nbd", "search", "runners", "probes", "why", "report")


def room(module: str) -> str:
    """Return the room of a dotted module name under `tt`."""
    return (module.split(".") + [""])[1]


def dotted(path: Path) -> str:
    """Return a file's module name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of all that a file imports, inside functions too, for typing only too."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_file_is_in_a_room_that_is_known() -> None:
    """Whoever adds a room says in docs/design.md and in `MAY_IMPORT` what it may import."""
    assert {room(dotted(path)) for path in FILES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("here", MAY_IMPORT)
def test_imports_go_one_way(here: str) -> None:
    wrong = []
    for path in FILES:
        if room(dotted(path)) == here:
            for line, name in imported(path):
                if name.split(".")[0] == "tt" and room(name) not in MAY_IMPORT[here] | {here}:
                    wrong.append(f"{where(path, line)}: {here or 'tt'} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("here", CHRONUS)
def test_the_rooms_of_chronus_have_an_order(here: str) -> None:
    folder = PACKAGE / "chronus" / here
    before = CHRONUS[: CHRONUS.index(here) + 1]
    for path in sorted(folder.rglob("*.py")):
        for line, name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["tt", "chronus"]:
                assert parts[2] in before, f"{where(path, line)}: chronus/{here} imports {name}"


def test_chronus_has_no_import_circles() -> None:
    """Also none through imports inside functions, or for typing only."""
    modules = {dotted(path): path for path in MODULES if room(dotted(path)) == "chronus"}
    graph = {}
    for name, path in modules.items():
        there = {each for _line, each in imported(path)}
        graph[name] = {each for found in there for each in (found, found.rpartition(".")[0])} & {*modules}
    for name, others in graph.items():
        # A name from a package is not the package: `from tt.chronus.store import spool`.
        others -= {each for each in others if any(other.startswith(f"{each}.") for other in others)} | {name}
    TopologicalSorter(graph).prepare()


def test_every_module_of_chronus_is_in_a_room() -> None:
    inside = {path.name for path in (PACKAGE / "chronus").iterdir() if path.name != "__pycache__"}
    assert inside == {"__init__.py", *CHRONUS}


def loaded_by(path: Path) -> set[str]:
    """Return the modules of tt that a file loads when it runs: inside functions too, for typing only not.

    What stands under `if TYPE_CHECKING` is left out: a module may name the type of what
    it is given (a `Trace`, a `Timeline`, a `Session`); neither loading nor running depends on that.
    """
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and names_of(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                walk(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in BY_NAME else str(node.module))
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree(path))
    return found & BY_NAME.keys() - {dotted(path)}


BY_NAME = {dotted(path): path for path in MODULES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules of which each leads to each: those left when ends are taken away."""
    left = {name: set(to) for name, to in graph.items()}
    while True:
        ends = {name for name, to in left.items() if not to & left.keys()}
        ends |= left.keys() - set().union(*left.values())
        if not ends:
            break
        left = {name: to - ends for name, to in left.items() if name not in ends}
    return [sorted(left)] if left else []


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {name: loaded_by(path) for name, path in BY_NAME.items()}
    assert graph["tt.cli.replay"] >= {"tt.shell.batch"}  # inside functions, too
    assert circles(graph) == []


def test_a_circle_would_be_found() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(chain) == []
    assert circles(chain | {"c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_only_the_engine_knows_unicorn() -> None:
    for path in FILES:
        if (PACKAGE / "vmm" / "engine") not in path.parents:
            for line, name in imported(path):
                assert name.split(".")[0] != "unicorn", where(path, line)
                assert not name.startswith("tt.vmm.engine._"), where(path, line)


def test_a_trace_can_be_read_without_unicorn() -> None:
    """Not only by the look of it: the log room really loads nothing of the machine."""
    import subprocess

    code = "import sys, tt.log, tt.log.check, tt.log.query; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "tt.log.reader" in loaded
    assert not [
        name for name in loaded if name.startswith(("unicorn", "tt.vmm", "tt.recording", "tt.replay"))
    ]


# ---- nondeterminism

# Calls that give another answer each time.
CHANCE = {
    "time": {"*"},
    "random": {"*"},
    "secrets": {"*"},
    "uuid": {"uuid1", "uuid4", "getnode"},
    "os": {
        "urandom",
        "getrandom",
        "getpid",
        "times",
        "getloadavg",
        "environ",
        "getenv",
        "listdir",
        "scandir",
    },
    "datetime": {"now", "utcnow", "today"},
    "threading": {"*"},
    "socket": {"*"},
    "select": {"*"},
}
# The door's live side may look at the host.
LIVE = {"tt.vmm.live", "tt.vmm.nondeterminism"}
ALLOWED = {
    ("tt.vmm.configure", "time.time"),  # the default of a parameter that goes into the trace
    ("tt.vmm.build", "time.time_ns"),  # defaults of parameters, asked through the door
    ("tt.vmm.build", "os.urandom"),
    ("tt.vmm.pc.machine", "os.urandom"),  # the default of a parameter, asked through the door
    ("tt.vmm.denali.guest_build", "os.environ"),  # finds the compiler; runs before there is a machine
    ("tt.vmm.boot.grubcfg", "id"),  # tells entries apart; their order is the file's
    ("tt.vmm.boot.images", "os.environ"),  # finds the cache; likewise
}


def names_of(node: ast.expr) -> str | None:
    """Return `a.b.c` of an attribute chain."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def test_chance_enters_by_the_door_only() -> None:
    found = set()
    for path in MODULES:
        module = dotted(path)
        if room(module) != "vmm" or module in LIVE:
            continue
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module in CHANCE:
                for alias in node.names:
                    bad = CHANCE[node.module] & {alias.name, "*"}
                    assert not bad, f"{where(path, node.lineno)}: imports {alias.name} from {node.module}"
            if isinstance(node, ast.Attribute):
                name = names_of(node)
                head, _, last = (name or "").rpartition(".")
                called = CHANCE.get(head.split(".")[-1], set())
                if name and called & {last, "*"} and (module, name) not in ALLOWED:
                    found.add(f"{where(path, node.lineno)}: {name}")
            name = names_of(node.func) if isinstance(node, ast.Call) else None
            if name in ("hash", "id") and (module, name) not in ALLOWED:
                found.add(f"{where(path, node.lineno)}: {name}() differs from process to process")
    assert not found, "\n".join(sorted(found))


def test_no_set_is_walked_in_the_machine() -> None:
    """The order of a set depends on PYTHONHASHSEED or on addresses; `sorted` makes it harmless."""
    bad = []
    for path in MODULES:
        if room(dotted(path)) != "vmm":
            continue
        for node in nodes(path):
            loops = [node.iter] if isinstance(node, (ast.For, ast.comprehension)) else []
            if isinstance(node, ast.Call) and names_of(node.func) in (
                "list",
                "tuple",
                "next",
                "iter",
                "enumerate",
            ):
                loops += node.args
            bad += [where(path, loop.lineno) for loop in loops if is_set(loop)]
    assert not bad, bad


def is_set(node: ast.expr) -> bool:
    """Whether an expression is plainly a set, or keys put together like sets."""
    if isinstance(node, (ast.Set, ast.SetComp)):
        return True
    if isinstance(node, ast.Call) and names_of(node.func) in ("set", "frozenset"):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)):
        return is_keys(node.left) or is_keys(node.right) or is_set(node.left) or is_set(node.right)
    return False


def is_keys(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys"


def test_no_pickles() -> None:
    for path in MODULES:
        for line, name in imported(path):
            assert name.split(".")[0] not in ("pickle", "marshal", "shelve", "dill"), where(path, line)


# ---- words


def undocumented(path: Path) -> Iterator[str]:
    """Yield the public classes and functions of a module that say nothing of themselves.

    A method needs no words of its own where a base class or a `Protocol` that
    the class implements explains it, which the tree cannot show: so methods
    count only where the class itself stands on nothing, and then only those
    longer than a few lines.
    """
    module = tree(path)
    if module.body and not ast.get_docstring(module):
        yield f"{where(path, 1)}: the module"
    for node in module.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{where(path, node.lineno)}: {node.name}"
        if isinstance(node, ast.ClassDef) and not node.bases:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    length = (method.end_lineno or 0) - method.lineno
                    if length > 8 and not ast.get_docstring(method):
                        yield f"{where(path, method.lineno)}: {node.name}.{method.name}"


def test_everything_public_is_documented() -> None:
    missing = [line for path in MODULES for line in undocumented(path)]
    assert not missing, "\n".join(missing)


def test_prints_come_from_the_command_line_only() -> None:
    """Every verb is a library call first: only the CLI prints."""
    for path in MODULES:
        if room(dotted(path)) in ("cli", "shell"):
            continue
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "input", "eval", "exec", "breakpoint"), where(
                    path, node.lineno
                )
