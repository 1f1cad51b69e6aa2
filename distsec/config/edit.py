"""Changes to the text of a `distsec.toml` that keep its comments and layout. Pure: text in, text out.

`distsec init` calls it. The caller loads the result (`load.parse`) before it writes it anywhere.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence

import tomlkit
from tomlkit.exceptions import TOMLKitError

from distsec.errors import ConfigError, Problem
from distsec.model.cluster import Mode
from distsec.model.names import NodeName


def with_nodes(
    text: str, nodes: Sequence[NodeName], allowed: Sequence[NodeName], command: Sequence[str], where: str
) -> str:
    """`text` with a `[[nodes]]` table for each of `nodes`, and each of `allowed` added to `allowed_nodes`.

    Raises ConfigError, naming the file `where`, if the text is laid out in a way that cannot be added to.
    """
    try:
        edited = _with_nodes(tomlkit.parse(text), nodes, allowed, command)
        tomllib.loads(edited)
    except (TOMLKitError, TypeError, AttributeError, ValueError) as error:
        names = ", ".join(map(str, dict.fromkeys([*nodes, *allowed])))
        problem = Problem("", 0, "cannot be added to without upsetting it", f"add {names} to it by hand")
        raise ConfigError(where, [problem]) from error
    return edited


def with_mode(text: str, mode: Mode) -> str:
    """`text`, which has a `[security]` table, with another mode."""
    document = tomlkit.parse(text)
    security = document["security"]
    assert isinstance(security, tomlkit.items.Table)
    security["mode"] = str(mode)
    return tomlkit.dumps(document)


def _with_nodes(
    document: tomlkit.TOMLDocument,
    nodes: Sequence[NodeName],
    allowed: Sequence[NodeName],
    command: Sequence[str],
) -> str:
    security = document.setdefault("security", tomlkit.table(is_super_table=True))
    distribution = security.setdefault("distribution", tomlkit.table())
    listed = distribution.setdefault("allowed_nodes", tomlkit.array())
    for name in allowed:
        listed.append(str(name))
    inline = document.get("nodes")
    if isinstance(inline, tomlkit.items.Array):
        for name in nodes:
            table = tomlkit.inline_table()
            table.update({"name": str(name), "command": list(command)})
            inline.append(table)
        return tomlkit.dumps(document)
    # At the end of the text rather than behind the last [[nodes]], where comments on what follows would be
    # torn off.
    return _ended(tomlkit.dumps(document)) + "".join(_table(name, command) for name in nodes)


def _table(name: NodeName, command: Sequence[str]) -> str:
    words = ", ".join(map(json.dumps, command))
    return f"\n[[nodes]]\nname = {json.dumps(str(name))}\ncommand = [{words}]\n"


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
