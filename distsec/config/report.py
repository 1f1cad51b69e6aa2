"""Gathers what is wrong, what is unsafe and what is not enforced, each with its key and line.

Pure. Values are shown only where they cannot be secret: never of the keys in `_SECRET`, and where a value
came from a variable the variable is named instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distsec.config.fields import PROBLEM
from distsec.config.lines import KeyPath, line_of
from distsec.config.suggest import suggest
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import NotEnforced
from distsec.model.text import escape

MAX_PROBLEMS = 1000
"""More is no longer read by anybody; how many there are besides is said."""

_SECRET = frozenset({"cookie", "environment", "command"})
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Report:
    """Takes what the checks find, as paths and sentences."""

    def __init__(self, lines: Mapping[KeyPath, int]) -> None:
        self._lines = lines
        self._tree: object = None
        self._origins: Mapping[KeyPath, tuple[str, ...]] = {}
        self._sources: dict[KeyPath, KeyPath] = {}
        self._problems: dict[Problem, None] = {}  # a set that keeps its order
        self._more = 0
        self._warnings: dict[Problem, None] = {}
        self._not_enforced: list[tuple[int, NotEnforced]] = []

    def know(self, tree: object, origins: Mapping[KeyPath, tuple[str, ...]]) -> None:
        """Tells which values are there, so that those from variables are not shown."""
        self._tree, self._origins = tree, origins

    def came_from(self, path: KeyPath, source: KeyPath) -> None:
        """What is found at `path` was said at `source`, which is where it has to be put right."""
        self._sources[path] = source

    def error(self, path: KeyPath, what: str, do: str = "") -> None:
        if len(self._problems) >= MAX_PROBLEMS:
            self._more += 1
            return
        self._problems.setdefault(self._problem(path, what, do))

    def warn(self, path: KeyPath, what: str, do: str = "") -> None:
        self._warnings.setdefault(self._problem(path, what, do))

    def not_enforced(self, path: KeyPath, why: str) -> None:
        self._not_enforced.append((line_of(self._lines, path), NotEnforced(dotted(path), why)))

    def from_pydantic(self, error: Mapping[str, Any]) -> None:
        """One of `ValidationError.errors()`, in words of our own: pydantic's may quote the value."""
        if len(self._problems) >= MAX_PROBLEMS:  # do not look for what was meant a hundred thousand times
            self._more += 1
            return
        path: KeyPath = tuple(error["loc"])
        context = error.get("ctx", {})
        match error["type"]:
            case kind if kind == PROBLEM:
                self.error(path, context["what"], context["do"])
            case "extra_forbidden":
                self.error(path, "is no key of this configuration", suggest(path))
            case "model_type" | "dict_type":
                self.error(path, "must be a table", f"write it under a header, such as [{dotted(path)}]")
            case "list_type":
                self.error(path, "must be a list", "put it in square brackets")
            case "too_long":
                self.error(path, f"has more than {context['max_length']} entries", "shorten it")
            case kind:
                self.error(path, f"is not valid here ({kind})")

    def origin(self, path: KeyPath) -> tuple[str, ...]:
        """The variables that the value at `path` came from."""
        return self._origins.get(path, ())

    @property
    def failed(self) -> bool:
        return bool(self._problems)

    def failure(self, where: str) -> ConfigError:
        """All problems, in file order; those of no line (the environment's) first."""
        problems = sorted(self._problems, key=lambda problem: problem.line)
        if self._more:
            problems.append(Problem("", 0, f"and {self._more} more problems"))
        return ConfigError(where, problems)

    def warnings(self) -> tuple[str, ...]:
        return tuple(str(warning) for warning in sorted(self._warnings, key=lambda problem: problem.line))

    def unbuilt(self) -> tuple[NotEnforced, ...]:
        return tuple(entry for _, entry in sorted(self._not_enforced, key=lambda item: item[0]))

    def _problem(self, path: KeyPath, what: str, do: str) -> Problem:
        path = self._sources.get(path, path)
        return Problem(
            dotted(path), line_of(self._lines, path), self._hidden(path, what), self._hidden(path, do)
        )

    def _hidden(self, path: KeyPath, sentence: str) -> str:
        """The sentence without the value at `path`, if that is secret or came from a variable."""
        names = self.origin(path)
        value = _value_at(self._tree, path)
        if isinstance(value, str) and value and (names or not _SECRET.isdisjoint(path)):
            shown = "the value of " + "".join(f"${{{name}}}" for name in names) if names else "the value"
            sentence = sentence.replace(ascii(value[:80]), shown)
        return sentence


def dotted(path: KeyPath) -> str:
    """`nodes[1].port`; keys that TOML would want quoted are quoted, and escaped."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            shown = key if _BARE_KEY.fullmatch(key) else f'"{escape(key, 80)}"'
            text += f".{shown}" if text else shown
    return text[:400]


def _value_at(tree: Any, path: KeyPath) -> Any:
    for key in path:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
