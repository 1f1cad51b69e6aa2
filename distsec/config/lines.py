"""Where each key of a TOML text stands, so that a problem can name its line. Pure.

`tomllib` parses the text and keeps no positions; this scanner walks over the same text, which `tomllib` has
already found to be valid, and therefore only has to find the keys. Where it loses its way it keeps what it
has: a problem then names the line of an enclosing table, or none, and is reported all the same.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
"""Keys and array indices from the root: `("nodes", 1, "port")` is the port of the second `[[nodes]]`."""

_DEEPEST = 32
"""Dotted keys in a row: a key of thousands would fill the memory with its paths; no known one has five."""

_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    # At most two quotes may stand before the closing three (TOML 1.0, "String").
    ('"""', re.compile(r'"""(?:\\.|[^\\])*?""""{0,2}', re.DOTALL)),
    ("'''", re.compile(r"'''.*?''''{0,2}", re.DOTALL)),
    ('"', re.compile(r'"(?:\\.|[^"\\\n])*"')),
    ("'", re.compile(r"'[^'\n]*'")),
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The 1-based line on which each key, table and array element of a valid TOML `text` first appears."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Lost):
        scanner.document()
    return scanner.lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the nearest table around it; 0 where there is none."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 0


class _Lost(Exception):
    """The text is not what a TOML parser would have let through."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._position = 0
        self._line, self._counted = 1, 0
        self._tables: dict[KeyPath, int] = {}  # how many elements each array of tables has so far

    def document(self) -> None:
        table: KeyPath = ()
        while self._skip(_GAP):
            if self._accept("[["):
                table = self._header(element=True)
                self._expect("]]")
            elif self._accept("["):
                table = self._header(element=False)
                self._expect("]")
            else:
                self._key_value(table)

    def _header(self, element: bool) -> KeyPath:
        """The path of a `[table]` or `[[table]]`; an array on the way means its last element."""
        path: KeyPath = ()
        keys = self._keys()
        for depth, key in enumerate(keys, 1):
            path = self._note((*path, key))
            if element and depth == len(keys):
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = self._note((*path, self._tables[path] - 1))
        return path

    def _key_value(self, table: KeyPath) -> None:
        path = table
        for key in self._keys():
            path = self._note((*path, key))
        self._expect("=")
        self._skip(_BLANK)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_BLANK)
            if self._next() in {'"', "'"}:
                keys.append(_unquoted(self._string()))
            else:
                keys.append(self._match(_BARE_KEY))
            self._skip(_BLANK)
            if not self._accept("."):
                return keys
            if len(keys) == _DEEPEST:
                raise _Lost

    def _value(self, path: KeyPath) -> None:
        match self._next():
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._string()
            case _:
                self._match(_BARE_VALUE)

    def _array(self, path: KeyPath) -> None:
        self._expect("[")
        index = 0
        while self._skip(_GAP) and self._next() != "]":
            self._value(self._note((*path, index)))
            self._skip(_GAP)
            self._accept(",")
            index += 1
        self._expect("]")

    def _inline_table(self, path: KeyPath) -> None:
        self._expect("{")
        while self._skip(_GAP) and self._next() != "}":
            self._key_value(path)
            self._skip(_GAP)
            self._accept(",")
        self._expect("}")

    def _string(self) -> str:
        for opening, expression in _STRINGS:
            if self._text.startswith(opening, self._position):
                return self._match(expression)
        raise _Lost

    # ---- the text

    def _note(self, path: KeyPath) -> KeyPath:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        self.lines.setdefault(path, self._line)
        return path

    def _next(self) -> str:
        return self._text[self._position : self._position + 1]

    def _skip(self, expression: re.Pattern[str]) -> bool:
        """Passes over what fits; False at the end of the text."""
        found = expression.match(self._text, self._position)
        self._position = found.end() if found else self._position
        return self._position < len(self._text)

    def _match(self, expression: re.Pattern[str]) -> str:
        found = expression.match(self._text, self._position)
        if not found or not found.group():
            raise _Lost
        self._position = found.end()
        return found.group()

    def _accept(self, text: str) -> bool:
        if not self._text.startswith(text, self._position):
            return False
        self._position += len(text)
        return True

    def _expect(self, text: str) -> None:
        self._skip(_BLANK)
        if not self._accept(text):
            raise _Lost


def _unquoted(key: str) -> str:
    if "\\" not in key or key.startswith("'"):
        return key[1:-1]
    return next(iter(tomllib.loads(f"{key} = 0")))
