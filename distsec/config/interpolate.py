"""`${VAR}` in string values, replaced from the environment before anything is validated. Pure.

Values only, never keys. `$${` stands for a literal `${`; any other `$` stands for itself. There are no
defaults and no nesting: a variable that is not set is a problem. What a variable holds is not read again for
more `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from distsec.config.lines import KeyPath

Complaint = Callable[[KeyPath, str, str], None]
"""Takes the path of a value, what is wrong with it, and what to do."""

_REFERENCE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<broken>\$\{)")


def interpolate(
    tree: object, environment: Mapping[str, str], complain: Complaint
) -> tuple[object, dict[KeyPath, tuple[str, ...]]]:
    """Returns the tree with variables replaced, and for each value that has any, the variables it came from.

    A value with a problem is replaced by None, which TOML does not have: it means "already complained about".
    """
    origins: dict[KeyPath, tuple[str, ...]] = {}

    def walk(value: object, path: KeyPath) -> object:
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return expand(value, path)
        return value

    def expand(value: str, path: KeyPath) -> str | None:
        names: list[str] = []
        sound = True

        def replace(found: re.Match[str]) -> str:
            nonlocal sound
            if found["escaped"]:
                return "${"
            if found["broken"]:
                complain(path, "${ begins no variable", "write ${NAME}, or $${ for a literal ${")
                sound = False
                return ""
            name = found["name"]
            names.append(name)
            problem = _unusable(name, environment)
            if problem:
                complain(path, *problem)
                sound = False
            return environment.get(name, "")

        expanded = _REFERENCE.sub(replace, value)
        if names:
            origins[path] = tuple(names)
        return expanded if sound else None

    return walk(tree, ()), origins


def _unusable(name: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    value = environment.get(name)
    if value is None:
        return f"the environment variable {name} is not set", f"set {name}, or write $${{ for a literal ${{"
    try:
        value.encode()
    except UnicodeEncodeError:  # os.environ keeps bytes that are not UTF-8 as surrogates
        return f"the environment variable {name} does not hold UTF-8", f"set {name} to UTF-8 text"
    return None
