"""What will never start, found out before the orchestrator begins: one node's trouble is that node's.

What may pass by itself (a port that somebody holds, a full disk) is no matter here: the node is started all
the same, fails, and is tried again with a back-off that has no end (`core.lifecycle`). See docs/adr/0030.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from distsec.model.cluster import NodeSpec
from distsec.supervisor.boot import start_failed, unforeseen
from distsec.supervisor.persistence import Note


class Machine(Protocol):
    """Of supervisor.machine.Machine what is needed here."""

    async def check_runtime(self, node: NodeSpec) -> None: ...


async def find_unfit(machine: Machine, nodes: Sequence[NodeSpec], managed: int, note: Note) -> dict[str, str]:
    """Of `nodes`, which are to be started, those that there is nothing to start with, and why.

    All are looked at at once: what one of them runs may take its time. What nobody foresaw is told, and that
    node started all the same: its user may have written what was looked at. Raises the first error where
    nothing is left to be run of all the `managed` nodes, so that `distsec run` tells whoever has no Erlang.
    """
    errors = await asyncio.gather(*(_why_unfit(machine, node, note) for node in nodes))
    found = {str(node.name): error for node, error in zip(nodes, errors, strict=True) if error is not None}
    if found and len(found) == managed:
        raise next(iter(found.values()))
    return {name: str(error) for name, error in found.items()}


async def _why_unfit(machine: Machine, node: NodeSpec, note: Note) -> Exception | None:
    try:
        await machine.check_runtime(node)
    except Exception as error:
        if unforeseen(error):
            what = f"{type(error).__name__}: {error}"
            note("error", "what a node runs on cannot be looked at", node=str(node.name), error=what)
            return None
        return error if start_failed(error).lasting else None
    return None
