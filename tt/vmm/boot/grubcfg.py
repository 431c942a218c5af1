"""GRUB's grub.cfg: enough of it to know which kernel it would boot, and with which words.

Commands that only concern screens, modules and terminals do nothing and
succeed.  Facts are from the GRUB manual and from GRUB's own menu and loaders
(grub-core/normal/menu.c, grub-core/loader/multiboot.c, grub-core/lib/cmdline.c).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot.grubscript import MAX_DEPTH, Node
from tt.vmm.boot.grubshell import Budget, Shell
from tt.vmm.boot.target import ModuleFile, Protocol, Target

_MAX_ENTRIES = 2_000


@dataclass
class _Entry:
    """One line of a menu: `owner` holds the variables that its body runs with, `words` are its parameters."""

    owner: _Run
    words: list[str]
    id: str
    body: list[Node]
    submenu: bool
    ready: Target | None = None
    inside: _Run | None = None

    @property
    def title(self) -> str:
        return self.words[0] if self.words else ""


class _OtherMenu(Exception):
    """Another configuration file takes over: its run."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run


def _any_device(device: str) -> bool:
    return True


def _nothing_known(device: str, what: str) -> str | None:
    return None


@dataclass
class GrubMenu:
    """What a configuration needs from outside itself.

    `read(path)` returns a file's text or None, `exists(path)` tells whether
    there is one, `entries()` lists the Boot Loader Specification entries that
    `blscfg` would show, `device(name)` tells whether there is such a device
    (`UUID=...`, `LABEL=...`, `FILE=...`), and `probe(device, what)` returns its
    `uuid`, `label` or `fs`, or None.
    """

    read: Callable[[str], str | None]
    exists: Callable[[str], bool]
    entries: Callable[[], Iterable[Target]]
    device: Callable[[str], bool] = _any_device
    probe: Callable[[str, str], str | None] = _nothing_known

    def targets(self, text: str, prefix: str) -> list[Target]:
        """Run the configuration in `text` and return what it boots, the default first.

        Behind the default come the fallback and all others in menu order, for
        when the default is not a Linux kernel.  `prefix` is the directory of the
        configuration, with its device.  Raises `BadInput` when the text makes no sense.
        """
        variables = {"prefix": prefix, "root": "", "grub_platform": "pc", "grub_cpu": "i386"}
        variables |= {f"feature_{name}": "y" for name in _FEATURES}
        run = _Run(self, variables, {*variables, "chosen"}, {}, Budget())
        try:
            try:
                run.file(text)
            except _OtherMenu as other:
                run = other.run
            return run.in_order()
        except RecursionError:
            raise BadInput("grub.cfg nests too deeply: damaged?") from None


def parse_grubenv(text: str) -> dict[str, str]:
    """Read an environment block (GRUB manual, "The GRUB environment block")."""
    pairs: dict[str, str] = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            pairs[name] = re.sub(r"\\(.)", r"\1", value)
    return pairs


_FEATURES = (
    "200_final", "all_video_module", "chainloader_bpb", "default_font_path", "menuentry_id",
    "menuentry_options", "nativedisk_cmd", "ntldr_bpb", "platform_search_hint", "timeout_style",
)  # fmt: skip
_WITH_VALUE = ("--class", "--users", "--hotkey", "--source")
_SEARCHES = {"search.fs_uuid": "UUID", "search.fs_label": "LABEL", "search.file": "FILE"}
_LINUX = ("linux", "linux16", "linuxefi", "linux32", "linux64", "kernel")
_INITRD = ("initrd", "initrd16", "initrdefi", "initrd32", "initrd64")
_UNPACKERS = {"gzio", "xzio", "lzopio"}  # with one of these loaded, files are unpacked as they are read
_PROBES = {"-u": "uuid", "--fs-uuid": "uuid", "-l": "label", "--label": "label", "-f": "fs", "--fs": "fs"}


class _Run(Shell):
    """A configuration file, or a submenu: the menu that it makes, and its variables."""

    def __init__(
        self,
        menu: GrubMenu,
        variables: dict[str, str],
        exported: set[str],
        functions: dict[str, list[Node]],
        budget: Budget,
        files: tuple[str, ...] = (),
    ) -> None:
        super().__init__(variables, exported, functions, budget)
        self._menu = menu
        self._files = files  # configurations that led here
        self._entries: list[_Entry] = []
        self._target: Target | None = None
        self._unpacks = False

    def _nested(self, file: str | None = None) -> _Run:
        """Return a run in a new context, which only exported variables reach."""
        files = self._files if file is None else (*self._files, file)
        run = _Run(self._menu, self._inherited(), set(self._exported), self._functions, self._budget, files)
        run._unpacks = self._unpacks
        return run

    def in_order(self) -> list[Target]:
        """Return the targets: those of `default`, of `fallback`, then all."""
        default = self._variables.get("default", "0")
        if default == "saved":
            default = self._saved_environment().get("saved_entry", "0")
        order = [self._choose(default.strip())]
        fallback = self._variables.get("fallback", "").strip()
        chosen = self._choose(fallback)
        order += [chosen] if chosen is not None else [self._choose(word) for word in fallback.split()]
        targets: list[Target] = []
        try:
            everything = [*(entry for entry in order if entry is not None), *self._flatten()]
            for entry in {id(entry): entry for entry in everything}.values():
                target = entry.owner._run_entry(entry)
                if target is not None:
                    targets.append(target)
        except BadInput:
            if not targets:
                raise
        return targets

    def _choose(self, choice: str) -> _Entry | None:
        """Follow a default such as `1>2` or `submenu>title`: numbers, titles or ids."""
        first, rest = _first_step(choice)
        number = int(first) if re.fullmatch("[0-9]{1,6}", first) else len(self._entries)
        found = next((e for e in self._entries if first and first in (e.title, e.id)), None)
        if number < len(self._entries):
            found = self._entries[number]
        if found is None or not found.submenu:
            return found
        inside = self._inside(found, rest)
        chosen = inside._choose(inside._variables.get("default", "0"))
        return chosen if chosen is not None else next(inside._flatten(), None)

    def _flatten(self, depth: int = 0) -> Iterator[_Entry]:
        for entry in self._entries:
            if not entry.submenu:
                yield entry
            elif depth < 5:
                yield from self._inside(entry)._flatten(depth + 1)

    def _inside(self, submenu: _Entry, default: str = "") -> _Run:
        if submenu.inside is None:
            run = self._nested()
            run._variables |= {"chosen": self._chosen(submenu)} | ({"default": default} if default else {})
            run._scoped(submenu.body, submenu.words)
            submenu.inside = run
        return submenu.inside

    def _chosen(self, entry: _Entry) -> str:
        way = [self._variables["chosen"]] if self._variables.get("chosen") else []
        return ">".join([*way, (entry.id or entry.title).replace(">", ">>")])

    def _run_entry(self, entry: _Entry) -> Target | None:
        if entry.ready is not None:
            return entry.ready
        saved = dict(self._variables)
        self._variables["chosen"] = self._chosen(entry)
        self._variables["default"] = _first_step(saved.get("default", ""))[1]
        self._target = None
        try:
            self._scoped(entry.body, entry.words)
        except _OtherMenu as other:
            return next(iter(other.run.in_order()), None)
        finally:
            self._variables = saved
        target: Target | None = self._target
        if target is not None:
            target.title = entry.title
        return target

    def _add_entry(self, words: list[str], node: Node) -> bool:
        identifier = ""
        arguments: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--id" or word in _WITH_VALUE:
                value = next(rest, "")
                identifier = value if word == "--id" else identifier
            elif word.startswith("--id="):
                identifier = word[5:]
            elif not word.startswith("--"):
                arguments.append(word)
        if len(self._entries) < _MAX_ENTRIES and arguments:
            submenu = node.kind == "submenu"
            self._entries.append(_Entry(self, arguments, identifier, node.body, submenu))
        return bool(arguments)

    # Commands

    def _other(self, name: str, args: list[str]) -> bool:
        if name in ("[", "test"):
            return self._test(args[:-1] if name == "[" and args[-1:] == ["]"] else args)
        if name == ".":
            return self._do_source(args)
        if name in _SEARCHES and args:
            return self._found(args[1] if len(args) > 1 else "root", f"{_SEARCHES[name]}={args[0]}")
        if name in _LINUX:
            return self._kernel("linux", args)
        if name in _INITRD:
            if self._target is None or self._target.protocol != "linux":
                return False  # GRUB: "you need to load the kernel first"
            self._target.initrds += [self._located(_without_newc(a)) for a in args if not a.startswith("--")]
        return True

    def _do_insmod(self, args: list[str]) -> bool:
        self._unpacks = self._unpacks or not _UNPACKERS.isdisjoint(args)
        return True

    def _do_load_env(self, args: list[str]) -> bool:
        path, names = "", []
        rest = iter(args)
        for arg in rest:
            if arg in ("-f", "--file"):
                path = next(rest, "")
            elif arg.startswith("--file="):
                path = arg[len("--file=") :]
            elif not arg.startswith("-"):
                names.append(arg)
        for key, value in self._saved_environment(path).items():
            if not names or key in names:
                self._assign(key, value)
        return True

    def _saved_environment(self, path: str = "") -> dict[str, str]:
        path = path or self._variables.get("prefix", "") + "/grubenv"
        text = self._menu.read(self._located(path))
        return parse_grubenv(text) if text is not None else {}

    def _do_search(self, args: list[str]) -> bool:
        """Set a variable to what was searched for, as a device: the finder knows the volumes."""
        kind, variable, values = "", "", []
        rest = iter(args)
        for arg in rest:
            if arg.startswith("--set="):
                variable = arg[6:]
            elif arg in ("--set", "-s"):
                variable = "root"
            elif arg in ("--fs-uuid", "-u"):
                kind = "UUID"
            elif arg in ("--label", "--fs-label", "-l"):
                kind = "LABEL"
            elif arg in ("--file", "-f"):
                kind = "FILE"
            elif arg == "--hint" or (arg.startswith("--hint-") and "=" not in arg):
                next(rest, None)
            elif not arg.startswith("-"):
                values.append(arg)
        return bool(values and kind) and self._found(variable, f"{kind}={values[-1]}")

    def _found(self, variable: str, device: str) -> bool:
        """Set `variable` to a device that was searched for; False, and no change, when there is none."""
        if not self._menu.device(device):
            return False
        if variable:
            self._assign(variable, device)
        return True

    def _do_probe(self, args: list[str]) -> bool:
        what, variable, device = "", "", ""
        rest = iter(args)
        for arg in rest:
            if arg in ("--set", "-s"):
                variable = next(rest, "")
            elif arg.startswith("--set="):
                variable = arg[6:]
            elif arg in _PROBES:
                what = _PROBES[arg]
            elif not arg.startswith("-"):
                device = arg.strip("()")
        value = self._menu.probe(device, what) if what else None
        if value is None:
            return False
        if variable:
            self._assign(variable, value)
        return True

    def _do_configfile(self, args: list[str]) -> bool:
        """Run another file in a new context; a menu that it makes takes over for good."""
        path = self._located(args[0]) if args else ""
        text = self._menu.read(path) if path and path not in self._files else None
        if text is None or self._budget.depth >= MAX_DEPTH:
            return False
        run = self._nested(path)
        run.file(text)
        if run._entries:
            raise _OtherMenu(run)
        return True

    def _do_source(self, args: list[str]) -> bool:
        text = self._menu.read(self._located(args[0])) if args else None
        if text is None or self._budget.depth >= MAX_DEPTH:
            return False
        self.file(text)
        return True

    def _do_blscfg(self, args: list[str]) -> bool:
        for target in self._menu.entries():
            cmdline = re.sub(
                r"\$(?:\{(\w+)\}|(\w+))", lambda m: self._variables.get(m[1] or m[2], ""), target.cmdline
            )
            ready = Target(target.title, target.kernel, " ".join(cmdline.split()), target.initrds)
            self._entries.append(_Entry(self, [target.title], target.id, [], False, ready))
        return True

    def _do_multiboot(self, args: list[str]) -> bool:
        while args and args[0].startswith("--quirk-"):
            args = args[1:]
        return self._kernel("multiboot", args)

    def _do_multiboot2(self, args: list[str]) -> bool:
        return self._kernel("multiboot2", args)

    def _kernel(self, protocol: Protocol, args: list[str]) -> bool:
        """Load a kernel; what an earlier command loaded is gone (grub_loader_unset)."""
        self._target = (
            Target("", self._located(args[0]), loader_words(args[1:]), [], protocol) if args else None
        )
        return bool(args)

    def _do_module(self, args: list[str]) -> bool:
        return self._module("multiboot", args)

    def _do_module2(self, args: list[str]) -> bool:
        return self._module("multiboot2", args)

    def _module(self, protocol: Protocol, args: list[str]) -> bool:
        plain = args[:1] == ["--nounzip"]
        args = args[plain:]
        if not args or self._target is None or self._target.protocol != protocol:
            return False  # GRUB: "you need to load the kernel first"
        unpack = self._unpacks and not plain
        self._target.modules.append(ModuleFile(self._located(args[0]), loader_words(args[1:]), unpack))
        return True

    def _located(self, path: str) -> str:
        """Give a path the device that `root` names, unless it brings one."""
        if path.startswith("(") or not self._variables.get("root"):
            return path
        return f"({self._variables['root']}){path}"

    def _test(self, args: list[str]) -> bool:
        for joiner, combine in (("-o", any), ("-a", all)):
            if joiner in args[1:-1]:
                at = args.index(joiner, 1)
                return combine((self._test(args[:at]), self._test(args[at + 1 :])))
        if args[:1] == ["!"]:
            return not self._test(args[1:])
        if len(args) == 1:
            return bool(args[0])
        if len(args) == 2:
            if args[0] == "-z":
                return not args[1]
            if args[0] in ("-e", "-f", "-s", "-d"):
                return self._menu.exists(self._located(args[1]))
            return args[0] == "-n" and bool(args[1])
        if len(args) == 3:
            left, operator, right = args
            if operator in ("=", "=="):
                return left == right
            if operator == "!=":
                return left != right
            if left.lstrip("-").isdigit() and right.lstrip("-").isdigit() and len(left + right) < 40:
                return _compare(int(left), operator, int(right))
        return False


def _compare(left: int, operator: str, right: int) -> bool:
    return {
        "-eq": left == right, "-ne": left != right, "-lt": left < right,
        "-le": left <= right, "-gt": left > right, "-ge": left >= right,
    }.get(operator, False)  # fmt: skip


def _first_step(choice: str) -> tuple[str, str]:
    """Split `default` at its first single `>`; `>>` is a `>` in a title (normal/menu.c, menuentry_eq)."""
    match = re.match(r"((?:[^>]|>>)*)(?:>(.*))?", choice, re.DOTALL)
    assert match is not None
    return match[1].replace(">>", ">").strip(), match[2] or ""


def loader_words(words: list[str]) -> str:
    """Join words into a command line as GRUB does for every kernel and module.

    A word with a space in it is put into double quotes; quotes and backslashes
    get a backslash.
    """
    escaped = [re.sub(r"""([\\'"])""", r"\\\1", word) for word in words]
    return " ".join(f'"{word}"' if " " in word else word for word in escaped)


def _without_newc(path: str) -> str:
    """Drop the name under which GRUB would wrap a file into the initrd: `newc:NAME:PATH`."""
    return path.split(":", 2)[2] if path.startswith("newc:") and path.count(":") >= 2 else path
