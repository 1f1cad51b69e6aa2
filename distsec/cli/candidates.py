"""What may stand where the cursor is: node names of the configuration, and files. For `shell_complete=`.

Quick and silent: one file is read and nobody is asked, so that an orchestrator that hangs holds up no TAB;
where there is no configuration, or none that this user may read, nothing is offered.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsec.errors import DistsecError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

_PLAIN = re.compile(r"[\w.%:+-]+@[\w.:%-]+", re.ASCII)
"""Node names that a shell takes as they are; others are not offered."""


def managed_nodes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Nodes that are started or guarded here, but for those that the line has already."""
    return _offered(_names(_document(ctx), listed=False), ctx, incomplete)


def listed_nodes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Whoever the configuration names, here or elsewhere, but for those that the line has already."""
    return _offered(_names(_document(ctx), listed=True), ctx, incomplete)


def any_file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Left to the shell, which knows its files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _offered(names: Iterator[str], ctx: click.Context, incomplete: str) -> list[str]:
    there = {word for value in ctx.params.values() if isinstance(value, tuple) for word in value}
    fitting = (name for name in names if name.startswith(incomplete) and name not in there)
    return [name for name in dict.fromkeys(fitting) if _PLAIN.fullmatch(name)]


def _document(ctx: click.Context) -> dict[str, Any]:
    from distsec.cli.options import known_config
    from distsec.config.source import read_source

    named = ctx.params.get("config")
    try:
        path = known_config(named and str(Path(named).expanduser()))
        return {} if path is None else tomllib.loads(read_source(path))
    except (DistsecError, ValueError, RuntimeError):  # RuntimeError: ~nobody, or nested too deeply
        return {}


def _names(document: dict[str, Any], *, listed: bool) -> Iterator[str]:
    """Of a document that nobody has checked yet."""
    tables = [document.get("nodes"), document.get("peers") if listed else None]
    for table in tables:
        for each in table if isinstance(table, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str):
                yield each["name"]
    if listed:
        within: Any = document
        for key in ("security", "distribution", "allowed_nodes"):
            within = within.get(key) if isinstance(within, dict) else None
        yield from (name for name in within or () if isinstance(name, str))
