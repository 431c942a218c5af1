"""GRUB's shell at work: variables, parameters, functions, loops.

Facts are from the GRUB manual, section "Shell-like scripting", and from GRUB's
own interpreter (grub-core/script/execute.c).  Loops, recursion and the size of
variables are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot.grubscript import MAX_DEPTH, Node, Parser, Word

_MAX_STEPS = 20_000  # commands run in all
_MAX_VALUE = 16 << 10  # characters in a variable, or in all words of a command
_MAX_ROUNDS = 200  # of one `while` or `until`: what it waits for may never happen here


class _Return(Exception):
    """Leave the running function, entry or submenu; the argument is its status."""


class _Break(Exception):
    """Leave the innermost loop, and as many more as the argument says."""


class _Continue(Exception):
    """Go on with the next round of a loop; the argument counts loops left before."""


@dataclass
class Budget:
    """What one configuration may still do, all files that it includes together."""

    steps: int = _MAX_STEPS
    depth: int = 0

    def spend(self, steps: int) -> None:
        """Count commands; raises `BadInput` when there were too many."""
        self.steps -= steps
        if self.steps < 0:
            raise BadInput(f"grub.cfg runs for more than {_MAX_STEPS} commands: it loops, give --kernel")


class Shell:
    """Runs statements; a subclass adds commands as methods named `_do_COMMAND`, and menu entries.

    `variables` are those it starts with, `exported` the names that a new
    context (a submenu, another configuration file) starts with, too.
    """

    def __init__(
        self,
        variables: dict[str, str],
        exported: set[str],
        functions: dict[str, list[Node]],
        budget: Budget,
    ) -> None:
        self._variables = variables
        self._exported = exported
        self._functions = functions
        self._budget = budget
        self._scope: list[str] | None = None  # parameters; None outside of functions and entries
        self._loops = 0  # running ones, of this scope

    def file(self, text: str) -> None:
        """Run a configuration's text; raises `BadInput` when it makes no sense."""
        self._block(Parser(text).file())

    def _scoped(self, nodes: list[Node], parameters: list[str]) -> bool:
        """Run a function's or an entry's body with its own `$1`, `$2`, ..."""
        with self._parameters(parameters):
            try:
                return self._block(nodes)
            except _Return as e:
                return bool(e.args[0])

    @contextmanager
    def _parameters(self, parameters: list[str]) -> Iterator[None]:
        outer = self._scope, self._loops
        self._scope, self._loops = list(parameters), 0
        try:
            yield
        finally:
            self._scope, self._loops = outer

    def _inherited(self) -> dict[str, str]:
        """Return the variables that a new context starts with."""
        return {name: value for name, value in self._variables.items() if name in self._exported}

    # Statements

    def _block(self, nodes: list[Node]) -> bool:
        self._budget.depth += 1
        status = True
        try:
            if self._budget.depth > MAX_DEPTH:
                return False
            for node in nodes:
                status = self._statement(node)
                self._variables["?"] = "0" if status else "1"
        finally:
            self._budget.depth -= 1
        return status

    def _statement(self, node: Node) -> bool:
        self._budget.spend(1)
        if node.kind == "command":
            return self._command(self._expand(node.words))
        if node.kind == "if":
            for condition, body in node.branches:
                if self._block(condition):
                    return self._block(body)
            return self._block(node.body)
        if node.kind in ("while", "until"):
            return self._while(node)
        words = self._expand(node.words)
        if node.kind == "for":
            return self._for(words, node.body)
        if node.kind == "function":
            if words:
                self._functions[words[0]] = node.body
            return True
        return self._add_entry(words, node)

    def _for(self, words: list[str], body: list[Node]) -> bool:
        if len(words) < 2 or words[1] != "in":
            return False
        self._budget.spend(len(words))
        status = True
        for value in words[2:]:
            self._assign(words[0], value)
            again, status = self._round(body)
            if not again:
                break
        return status

    def _while(self, node: Node) -> bool:
        ((condition, body),) = node.branches
        status = True
        for _ in range(_MAX_ROUNDS):
            if self._block(condition) is (node.kind == "until"):
                break
            again, status = self._round(body)
            if not again:
                break
        return status

    def _round(self, body: list[Node]) -> tuple[bool, bool]:
        """Run a loop's body once; tell whether to go on, and its status."""
        self._loops += 1
        try:
            return True, self._block(body)
        except (_Break, _Continue) as e:
            if e.args[0] > 1:
                raise type(e)(e.args[0] - 1) from None
            return isinstance(e, _Continue), True
        finally:
            self._loops -= 1

    def _add_entry(self, words: list[str], node: Node) -> bool:
        """Add a menu entry or a submenu."""
        raise NotImplementedError

    # Words

    def _expand(self, words: list[Word]) -> list[str]:
        """Put in variables; one outside quotes is split at spaces, and vanishes when empty."""
        out: list[str] = []
        size = 0
        for word in words:
            fields: list[str | None] = [None]
            for kind, text in word:
                pieces: list[str] = [text]
                if kind == "var":
                    pieces = [piece for value in self._values(text) for piece in value.split()]
                elif kind == "quoted":
                    pieces = self._values(text)
                    if text != "@":
                        pieces = [" ".join(pieces)] if pieces else []
                if pieces:
                    fields[-1] = (fields[-1] or "") + pieces[0]
                    fields += pieces[1:]
            found = [field for field in fields if field is not None]
            out += found
            size += sum(map(len, found))
            if size > _MAX_VALUE:
                raise BadInput(f"grub.cfg has a command longer than {_MAX_VALUE} characters: damaged?")
        return out

    def _values(self, name: str) -> list[str]:
        """Return what `$name` stands for: a value, several for `$@` and `$*`, or nothing."""
        parameters = self._scope or []
        if name == "#":
            return [str(len(parameters))]
        if name in ("@", "*"):
            return parameters
        if name.isdigit():
            number = int(name[:6])
            return parameters[number - 1 : number] if number else []
        value = self._variables.get(name, "")
        return [value] if value else []

    def _assign(self, name: str, value: str) -> None:
        if not name.isdigit() and name not in ("#", "*", "@"):
            self._variables[name] = value

    # Commands of the language itself

    def _command(self, words: list[str]) -> bool:
        if not words:
            return True
        name, *args = words
        if name == "!":
            return not self._command(args)
        handler = getattr(self, f"_do_{name}", None) if name.isidentifier() else None
        if handler is not None:
            return bool(handler(args))
        if name in self._functions:
            return self._scoped(self._functions[name], args)
        if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", name):
            self._assign(*name.split("=", 1))
            return True
        return self._other(name, args)

    def _other(self, name: str, args: list[str]) -> bool:
        """Run a command that no method is named for."""
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

    def _do_export(self, args: list[str]) -> bool:
        self._exported.update(args)
        return bool(args)

    def _do_false(self, args: list[str]) -> bool:
        return False

    def _do_return(self, args: list[str]) -> bool:
        if self._scope is None:
            return False  # GRUB: "not in function body"
        raise _Return(args[0].strip("0") == "" if args else self._variables.get("?", "0") == "0")

    def _do_break(self, args: list[str]) -> bool:
        return self._leave(_Break, args)

    def _do_continue(self, args: list[str]) -> bool:
        return self._leave(_Continue, args)

    def _leave(self, how: type[_Break | _Continue], args: list[str]) -> bool:
        loops = min(_count(args), self._loops)
        if loops:
            raise how(loops)
        return True

    def _do_shift(self, args: list[str]) -> bool:
        count = _count(args)
        if self._scope is None or count > len(self._scope):
            return False
        del self._scope[:count]
        return True

    def _do_setparams(self, args: list[str]) -> bool:
        if self._scope is None:
            return False
        self._scope[:] = args
        return True


def _count(args: list[str]) -> int:
    return int(args[0][:6]) if args and args[0].isascii() and args[0].isdigit() else 1
