"""The shell language of GRUB's configuration: words, statements, blocks.

See the GRUB manual, section "Shell-like scripting".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tt.errors import BadInput

MAX_DEPTH = 40
"""Blocks within blocks that are followed."""

Word = tuple[tuple[str, str], ...]
"""Parts of a word: `("text", s)`, `("var", name)`, or `("quoted", name)` for a variable in double quotes."""


@dataclass
class Node:
    """A statement: `kind` is command, if, for, while, function or entry."""

    kind: str
    words: list[Word] = field(default_factory=list)
    branches: list[tuple[list[Node], list[Node]]] = field(default_factory=list)
    body: list[Node] = field(default_factory=list)


_VARIABLE = re.compile(r"\$(?:\{([A-Za-z0-9_?#@*]+)\}|([A-Za-z_][A-Za-z0-9_]*|[0-9?#@*]))")
_PLAIN = re.compile(r"[^\s;{}'\"\\$#|&<>]+|[#{}|&<>]")


def _tokens(text: str) -> Iterator[Word | str]:
    """Split into words and the separators `newline` (also for `;`), `{` and `}`."""
    at = 0
    parts: list[tuple[str, str]] = []
    started = False

    def flush() -> Iterator[Word | str]:
        nonlocal parts, started
        if started:
            only = parts[0][1] if len(parts) == 1 and parts[0][0] == "text" else ""
            yield only if only in ("{", "}") else tuple(parts)
        parts, started = [], False

    while at < len(text):
        c = text[at]
        if c in " \t\r":
            yield from flush()
            at += 1
        elif c in "\n;":
            yield from flush()
            yield "newline"
            at += 1
        elif c == "#" and not started:
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif c == "\\":
            if text[at + 1 : at + 2] != "\n":
                parts.append(("text+", text[at + 1 : at + 2]))
                started = True
            at += 2
        elif c == "'":
            end = text.find("'", at + 1)
            end = len(text) if end < 0 else end
            parts.append(("text+", text[at + 1 : end]))
            started = True
            at = end + 1
        elif c == '"':
            at = _double_quoted(text, at + 1, parts)
            started = True
        elif c == "$" and (match := _VARIABLE.match(text, at)):
            parts.append(("var", match[1] or match[2]))
            started = True
            at = match.end()
        else:
            plain = _PLAIN.match(text, at)
            piece = plain[0] if plain else c
            parts.append(("text", piece))
            started = True
            at += len(piece)
    yield from flush()
    yield "newline"


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


class Parser:
    """Reads the text of a grub.cfg into nodes, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def file(self) -> list[Node]:
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            nodes += self._block(())
            self._at += 1  # a closing word with nothing to close
        return nodes

    def _block(self, ends: tuple[str, ...], depth: int = 0) -> list[Node]:
        """Parse statements up to one of the words `ends`, which is left to be read."""
        if depth > MAX_DEPTH:
            raise BadInput("grub.cfg nests too deeply: damaged?")
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token == "newline":
                self._at += 1
                continue
            keyword = _keyword(token)
            if keyword in ends or (not ends and keyword == "}"):
                return nodes
            if keyword == "if":
                nodes.append(self._if(depth))
            elif keyword in ("for", "while", "until"):
                self._at += 1
                head = self._simple()
                nodes.append(Node(keyword, head, body=self._between("do", "done", depth)))
            elif keyword in ("function", "menuentry", "submenu"):
                self._at += 1
                head = self._simple()
                body = self._between("{", "}", depth)
                nodes.append(Node(keyword, head, body=body))
            else:
                words = self._simple()
                if words:
                    nodes.append(Node("command", words))
                else:
                    self._at += 1  # a stray brace
        return nodes

    def _simple(self) -> list[Word]:
        words: list[Word] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if isinstance(token, str):
                break
            words.append(token)
            self._at += 1
        return words

    def _between(self, opening: str, closing: str, depth: int) -> list[Node]:
        self._skip_newlines()
        if self._at < len(self._tokens) and _keyword(self._tokens[self._at]) == opening:
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
            word = _keyword(self._tokens[self._at]) if self._at < len(self._tokens) else "fi"
            self._at += 1
            if word == "else":
                node.body = self._block(("fi",), depth + 1)
                self._at += 1
            if word != "elif":
                return node

    def _skip_newlines(self) -> None:
        while self._at < len(self._tokens) and self._tokens[self._at] == "newline":
            self._at += 1


def _keyword(token: Word | str) -> str:
    if isinstance(token, str):
        return token
    return token[0][1] if len(token) == 1 and token[0][0] == "text" else ""
