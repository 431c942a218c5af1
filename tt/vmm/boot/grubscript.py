"""The shell language of GRUB's configuration: words, statements, blocks.

See the GRUB manual, section "Shell-like scripting"; where it is silent, GRUB's
own lexer (grub-core/script/yylex.l) decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tt.errors import BadInput

MAX_DEPTH = 40
"""Blocks within blocks that are followed."""

Word = tuple[tuple[str, str], ...]
"""Parts of a word: `("text", s)`, `("text+", s)` for text that was quoted, `("var", name)`, or
`("quoted", name)` for a variable in double quotes."""


@dataclass
class Node:
    """A statement: `kind` is command, if, for, while, until, function, menuentry or submenu."""

    kind: str
    words: list[Word] = field(default_factory=list)
    branches: list[tuple[list[Node], list[Node]]] = field(default_factory=list)
    body: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Token:
    """A word, or one of `newline` (also for `;`), `{`, `}` and `bad`; and where it stands in the text."""

    what: Word | str
    start: int
    end: int


_NAME = r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?#@*]"
_VARIABLE = re.compile(rf"\$(?:\{{({_NAME})\}}|({_NAME}))")
_PLAIN = re.compile(r"[^\s;{}|&<>'\"\\$]+")


def _tokens(text: str) -> Iterator[_Token]:
    at = start = 0
    parts: list[tuple[str, str]] = []

    def flush() -> Iterator[_Token]:
        nonlocal parts
        if parts:
            yield _Token(tuple(parts), start, at)
        parts = []

    while at < len(text):
        c = text[at]
        if not parts:
            start = at
        if c in " \t\r":
            yield from flush()
            at += 1
        elif c in "\n;{}":
            yield from flush()
            at += 1
            yield _Token("newline" if c in "\n;" else c, at - 1, at)
        elif c in "|&<>":  # tokens of GRUB's lexer that its grammar has no use for
            yield from flush()
            at += 1
            yield _Token("bad", at - 1, at)
        elif c == "#" and not parts:
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif c == "\\":
            if text[at + 1 : at + 2] != "\n":
                parts.append(("text+", text[at + 1 : at + 2]))
            at += 2
        elif c == "'":
            end = text.find("'", at + 1)
            end = len(text) if end < 0 else end
            parts.append(("text+", text[at + 1 : end]))
            at = end + 1
        elif c == '"':
            at = _double_quoted(text, at + 1, parts)
        elif text.startswith('$"', at):  # a text that GRUB would translate
            at = _double_quoted(text, at + 2, parts)
        elif c == "$" and (match := _VARIABLE.match(text, at)):
            parts.append(("var", match[1] or match[2]))
            at = match.end()
        else:
            plain = _PLAIN.match(text, at)
            piece = plain[0] if plain else c
            parts.append(("text", piece))
            at += len(piece)
    yield from flush()
    yield _Token("newline", at, at)


def _double_quoted(text: str, at: int, parts: list[tuple[str, str]]) -> int:
    out = ""
    while at < len(text) and text[at] != '"':
        match = _VARIABLE.match(text, at)
        if match:
            parts += [("text+", out), ("quoted", match[1] or match[2])]
            out, at = "", match.end()
        elif text[at] == "\\" and text[at + 1 : at + 2] in ("$", '"', "\\", "\n"):
            out += text[at + 1].replace("\n", "")
            at += 2
        else:
            out += text[at]
            at += 1
    parts.append(("text+", out))
    return at + 1


class _SyntaxError(Exception):
    """A character that GRUB's grammar has no place for."""


class Parser:
    """Reads the text of a grub.cfg into nodes, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0

    def file(self) -> list[Node]:
        """Parse the whole text; raises `BadInput` when its blocks nest too deeply.

        A statement with an error in it is dropped, and reading goes on with the
        line behind the error, as GRUB does.
        """
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            try:
                nodes += self._statement((), 0)
            except _SyntaxError:
                self._skip_line()
        return nodes

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._tokens[self._at].start)
        end = len(self._text) if end < 0 else end
        while self._at < len(self._tokens) and self._tokens[self._at].start <= end:
            self._at += 1

    def _block(self, ends: tuple[str, ...], depth: int = 0) -> list[Node]:
        """Parse statements up to one of the words `ends`, which is left to be read."""
        if depth > MAX_DEPTH:
            raise BadInput("grub.cfg nests too deeply: damaged?")
        nodes: list[Node] = []
        while self._at < len(self._tokens) and self._keyword() not in ends:
            nodes += self._statement(ends, depth)
        return nodes

    def _statement(self, ends: tuple[str, ...], depth: int) -> list[Node]:
        """Parse one statement; none for a separator, or a closing word with nothing to close."""
        keyword = self._keyword()
        if keyword == "if":
            return [self._if(depth)]
        self._at += 1
        if keyword == "for":
            return [Node(keyword, self._simple(), body=self._between("do", "done", depth))]
        if keyword in ("while", "until"):
            condition = self._block(("do",), depth + 1)
            return [Node(keyword, branches=[(condition, self._between("do", "done", depth))])]
        if keyword in ("function", "menuentry", "submenu"):
            return [Node(keyword, self._simple(), body=self._between("{", "}", depth))]
        self._at -= 1
        words = self._simple(blocks=True)
        if words:
            return [Node("command", words)]
        self._at += 1
        return []

    def _simple(self, *, blocks: bool = False) -> list[Word]:
        """Read words up to a separator; with `blocks`, a block behind a first word is one more word."""
        words: list[Word] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.what == "{" and blocks and words:
                words.append((("text+", self._raw_block()),))
            elif token.what == "bad":
                raise _SyntaxError
            elif isinstance(token.what, str):
                break
            else:
                words.append(token.what)
                self._at += 1
        return words

    def _raw_block(self) -> str:
        """Return a block's text, as an argument of a command that has no use for blocks gets it."""
        first, depth = self._tokens[self._at], 0
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            depth += {"{": 1, "}": -1}.get(token.what, 0) if isinstance(token.what, str) else 0
            self._at += 1
            if not depth:
                break
        return self._text[first.start : self._tokens[self._at - 1].end]

    def _between(self, opening: str, closing: str, depth: int) -> list[Node]:
        while self._keyword() == "newline" and self._at < len(self._tokens):
            self._at += 1
        if self._keyword() == opening:
            self._at += 1
        body = self._block((closing,), depth + 1)
        self._at += 1
        return body

    def _if(self, depth: int) -> Node:
        node = Node("if")
        self._at += 1
        while True:
            condition = self._block(("then", "fi"), depth + 1)
            self._at += 1
            body = self._block(("elif", "else", "fi"), depth + 1)
            node.branches.append((condition, body))
            word = self._keyword() or "fi"
            self._at += 1
            if word == "else":
                node.body = self._block(("fi",), depth + 1)
                self._at += 1
            if word != "elif":
                return node

    def _keyword(self) -> str:
        """Return the next token as a bare word or separator; empty for any other word and at the end."""
        if self._at >= len(self._tokens):
            return ""
        what = self._tokens[self._at].what
        if isinstance(what, str):
            return what
        return what[0][1] if len(what) == 1 and what[0][0] == "text" else ""
