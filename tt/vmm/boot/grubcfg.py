"""GRUB's grub.cfg: enough of its shell to know which kernel it would boot.

The language is that of the GRUB manual, section "Writing full configuration
files directly".  Commands that only concern screens, modules and terminals do
nothing and succeed; loops, recursion and the size of variables are bounded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot.grubscript import MAX_DEPTH, Node, Parser, Word
from tt.vmm.boot.target import Target

_MAX_STEPS = 20_000  # commands run in all
_MAX_VALUE = 16 << 10  # characters in a variable, or in all words of a command
_MAX_ENTRIES = 2_000


@dataclass
class _Entry:
    title: str
    id: str
    body: list[Node]
    submenu: bool
    variables: dict[str, str]
    ready: Target | None = None
    inside: list[_Entry] | None = None


class _Return(Exception):
    """Leave the running function or file."""


@dataclass
class GrubMenu:
    """What a configuration reaches outside itself for.

    `read(path)` returns a file's text or None, `exists(path)` tells whether
    there is one, `entries()` lists the Boot Loader Specification entries that
    `blscfg` would show.
    """

    read: Callable[[str], str | None]
    exists: Callable[[str], bool]
    entries: Callable[[], Iterable[Target]]

    def targets(self, text: str, prefix: str) -> list[Target]:
        """Run the configuration in `text` and return what it boots, the default first.

        Behind the default come the fallback and all others in menu order, for
        when the default is no Linux kernel.  `prefix` is the directory of the
        configuration, with its device.  Raises `BadInput` when the text makes no sense.
        """
        run = _Run(self, prefix)
        try:
            run.file(text)
        except RecursionError:
            raise BadInput("grub.cfg nests too deeply: damaged?") from None
        return run.in_order()


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


class _Run:
    def __init__(self, menu: GrubMenu, prefix: str) -> None:
        self._menu = menu
        self._variables = {"prefix": prefix, "root": "", "grub_platform": "pc", "grub_cpu": "i386"}
        self._variables |= {f"feature_{name}": "y" for name in _FEATURES}
        self._functions: dict[str, list[Node]] = {}
        self._entries: list[_Entry] = []
        self._target: Target | None = None
        self._steps = 0
        self._depth = 0

    def file(self, text: str) -> None:
        self._scoped(Parser(text).file())

    def in_order(self) -> list[Target]:
        """Return the targets: those of `default`, of `fallback`, then all."""
        order: list[_Entry] = []
        default = self._variables.get("default", "0")
        if default == "saved":
            default = self._saved_environment().get("saved_entry", "0")
        top = self._entries
        for choice in (default, self._variables.get("fallback", "")):
            found = self._choose(top, choice.strip())
            if found is not None:
                order.append(found)
        everything = [*order, *self._flatten(top)]
        targets = [self._run_entry(entry) for entry in {id(e): e for e in everything}.values()]
        return [target for target in targets if target is not None]

    def _choose(self, entries: list[_Entry], choice: str) -> _Entry | None:
        """Follow a default such as `1>2` or `submenu>title`: numbers, ids or titles."""
        first, arrow, rest = choice.partition(">")
        first = first.strip()
        found = None
        if first.isascii() and first.isdigit() and len(first) < 6 and int(first) < len(entries):
            found = entries[int(first)]
        found = next((e for e in entries if first and first in (e.id, e.title)), found)
        if found is None or not found.submenu:
            return found
        inside = self._inside(found)
        chosen = self._choose(inside, rest if arrow else "0")
        return chosen if chosen is not None else next(iter(inside), None)

    def _flatten(self, entries: list[_Entry], depth: int = 0) -> Iterator[_Entry]:
        for entry in entries:
            if not entry.submenu:
                yield entry
            elif depth < 5:
                yield from self._flatten(self._inside(entry), depth + 1)

    def _inside(self, submenu: _Entry) -> list[_Entry]:
        if submenu.inside is None:
            outer, self._entries = self._entries, []
            saved, self._variables = self._variables, dict(submenu.variables)
            self._scoped(submenu.body)
            submenu.inside, self._entries, self._variables = self._entries, outer, saved
        return submenu.inside

    def _run_entry(self, entry: _Entry) -> Target | None:
        if entry.ready is not None:
            return entry.ready
        saved, self._variables = self._variables, self._variables | entry.variables
        self._target = None
        self._scoped(entry.body)
        self._variables = saved
        target = self._target
        if target is None or not target.kernel:
            return None
        target.title = entry.title
        return target

    def _scoped(self, nodes: list[Node]) -> None:
        with contextlib.suppress(_Return):
            self._block(nodes)

    def _block(self, nodes: list[Node]) -> bool:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._depth -= 1
            return False
        status = True
        try:
            for node in nodes:
                status = self._statement(node)
        finally:
            self._depth -= 1
        return status

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise BadInput(f"grub.cfg runs for more than {_MAX_STEPS} commands: it loops, give --kernel")

    def _statement(self, node: Node) -> bool:
        self._count(1)
        if node.kind == "command":
            return self._command(self._expand(node.words))
        if node.kind == "if":
            for condition, body in node.branches:
                if self._block(condition):
                    return self._block(body)
            return self._block(node.body)
        words = self._expand(node.words)
        if node.kind == "for":
            if len(words) >= 2 and words[1] == "in":
                self._count(len(words))
                for value in words[2:]:
                    self._assign(words[0], value)
                    self._block(node.body)
        elif node.kind == "function":
            if words:
                self._functions[words[0]] = node.body
        elif node.kind in ("menuentry", "submenu"):
            self._add_entry(words, node)
        return True  # while and until: what they wait for cannot happen here

    def _add_entry(self, words: list[str], node: Node) -> None:
        title = identifier = ""
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
        title = arguments[0] if arguments else ""
        variables = {str(i): argument for i, argument in enumerate(arguments)}
        variables["chosen"] = title
        if node.kind == "submenu":
            variables = self._variables | variables
        if len(self._entries) < _MAX_ENTRIES:
            self._entries.append(_Entry(title, identifier, node.body, node.kind == "submenu", variables))

    def _expand(self, words: list[Word]) -> list[str]:
        """Put in variables; one outside quotes is split at spaces, and vanishes when empty."""
        out: list[str] = []
        size = 0
        for word in words:
            fields = [""]
            solid = False
            for kind, text in word:
                if kind == "var":
                    pieces = self._variables.get(text, "").split(" ")
                    fields[-1] += pieces[0]
                    fields += pieces[1:]
                    continue
                fields[-1] += self._variables.get(text, "") if kind == "quoted" else text
                solid = solid or kind != "text" or bool(text)
            out += [f for f in fields if f] or ([""] if solid else [])
            size += sum(map(len, fields))
            if size > _MAX_VALUE:
                raise BadInput(f"grub.cfg has a command longer than {_MAX_VALUE} characters: damaged?")
        return out

    def _assign(self, name: str, value: str) -> None:
        self._variables[name] = value

    def _command(self, words: list[str]) -> bool:
        if not words:
            return True
        name, *args = words
        if name == "!":
            return not self._command(args)
        if name in self._functions:
            saved = {k: v for k, v in self._variables.items() if k.isdigit()}
            self._variables |= {str(i + 1): a for i, a in enumerate(args)}
            try:
                return self._block(self._functions[name])
            except _Return:
                return True
            finally:
                self._variables |= saved
        handler = getattr(self, f"_do_{name}", None) if name.isidentifier() else None
        if handler is not None:
            return bool(handler(args))
        if name in ("[", "test"):
            return self._test(args[:-1] if name == "[" and args[-1:] == ["]"] else args)
        if name in _SEARCHES and args:
            self._assign(args[1] if len(args) > 1 else "root", f"{_SEARCHES[name]}={args[0]}")
        elif name in _LINUX and args:
            cmdline = " ".join(f'"{a}"' if " " in a and '"' not in a else a for a in args[1:])
            self._target = Target("", self._located(args[0]), cmdline, [])
        elif name in _INITRD and self._target is not None:
            self._target.initrds += [self._located(_without_newc(a)) for a in args if not a.startswith("--")]
        elif "=" in name and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", name):
            self._assign(*name.split("=", 1))
        return True

    def _do_set(self, args: list[str]) -> bool:
        for arg in args[:1]:
            key, _, value = arg.partition("=")
            self._assign(key, value)
        return True

    def _do_unset(self, args: list[str]) -> bool:
        for arg in args:
            self._variables.pop(arg, None)
        return True

    def _do_load_env(self, args: list[str]) -> bool:
        for key, value in self._saved_environment().items():
            self._assign(key, value)
        return True

    def _saved_environment(self) -> dict[str, str]:
        text = self._menu.read(self._located(self._variables.get("prefix", "") + "/grubenv"))
        return parse_grubenv(text) if text is not None else {}

    def _do_search(self, args: list[str]) -> bool:
        """Set a variable to what was searched for, as a device: the finder knows the volumes."""
        kind, variable, values = "FILE", "root", []
        rest = iter(args)
        for arg in rest:
            if arg.startswith("--set="):
                variable = arg[6:]
            elif arg in ("--fs-uuid", "-u"):
                kind = "UUID"
            elif arg in ("--label", "--fs-label", "-l"):
                kind = "LABEL"
            elif arg == "--hint":
                next(rest, None)
            elif not arg.startswith("-"):
                values.append(arg)
        if values:
            self._assign(variable, f"{kind}={values[-1]}")
        return bool(values)

    def _do_configfile(self, args: list[str]) -> bool:
        text = self._menu.read(self._located(args[0])) if args else None
        if text is None or self._depth >= MAX_DEPTH:
            return False
        self._scoped(Parser(text).file())
        return True

    def _do_source(self, args: list[str]) -> bool:
        return self._do_configfile(args)

    def _do_blscfg(self, args: list[str]) -> bool:
        for target in self._menu.entries():
            cmdline = re.sub(
                r"\$(?:\{(\w+)\}|(\w+))", lambda m: self._variables.get(m[1] or m[2], ""), target.cmdline
            )
            ready = Target(target.title, target.kernel, " ".join(cmdline.split()), target.initrds)
            self._entries.append(_Entry(target.title, target.title, [], False, {}, ready))
        return True

    def _do_false(self, args: list[str]) -> bool:
        return False

    def _do_return(self, args: list[str]) -> bool:
        raise _Return

    def _do_multiboot(self, args: list[str]) -> bool:
        if args:
            self._target = Target("", self._located(args[0]), " ".join(args[1:]), [])
        return True

    def _do_module(self, args: list[str]) -> bool:
        if args and self._target is not None:
            if self._target.initrds:
                self._target.kernel = ""  # a plan has room for one module: pass this entry over
            self._target.initrds.append(self._located(args[0]))
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


def _without_newc(path: str) -> str:
    """Drop the name under which GRUB would wrap a file into the initrd: `newc:NAME:PATH`."""
    return path.split(":", 2)[2] if path.startswith("newc:") and path.count(":") >= 2 else path
