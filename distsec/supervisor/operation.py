"""Starting and stopping nodes because somebody asks for it, and waiting until they have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Protocol

from distsec.core import node_status as life
from distsec.errors import CommandFailed, NotFound, Unavailable, UsageError
from distsec.model.cluster import NodeState
from distsec.model.text import escape
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode

END_SLACK_SECONDS = 15.0
"""How long after their stop deadline nodes that even KILL does not end are waited for."""

_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL})


class Cluster(Hub, Protocol):
    """What it needs of the supervisor."""

    nodes: dict[str, ManagedNode]


class Operation:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ending = False

    def refuse_if_ending(self) -> None:
        """Raises Unavailable from the end's beginning on."""
        if self.ending:
            raise Unavailable("the orchestrator is ending", do="try again when it runs again")

    def named(self, name: str) -> ManagedNode:
        """Raises NotFound."""
        node = self._cluster.nodes.get(name)
        if node is None:
            raise NotFound(f"{escape(name)}: no such managed node")
        return node

    async def start(self, names: list[str]) -> None:
        """Returns when each is RUNNING. Raises NotFound, UsageError, Unavailable, CommandFailed (why one
        is not).
        """
        self.refuse_if_ending()
        nodes = [self._startable(name) for name in names]
        for node in nodes:
            node.feed(life.StartRequested())
        await self._all_running(nodes)

    async def stop(self, names: list[str]) -> None:
        """Returns when each has ended. Raises NotFound."""
        nodes = [self.named(name) for name in names]
        for node in nodes:
            node.feed(life.StopRequested())
        await self._settled(nodes, _AT_REST)

    async def restart(self, names: list[str]) -> None:
        """Stop, then start. Raises like `start`."""
        self.refuse_if_ending()
        nodes = [self._startable(name) for name in names]
        for node in nodes:
            node.feed(life.StopRequested())
            node.feed(life.StartRequested())
        await self._all_running(nodes)

    async def stop_all(self) -> list[str]:
        """Stops every node in order (agent, TERM, KILL), all at once; returns who has not ended in time."""
        self.ending = True
        nodes = list(self._cluster.nodes.values())
        for node in nodes:
            node.feed(life.StopRequested())
        left = [node.name for node in await self.ended(nodes)]
        if left:
            self._cluster.note("error", "nodes did not end", nodes=", ".join(left))
        return left

    async def ended(self, nodes: list[ManagedNode]) -> list[ManagedNode]:
        """Waits until they have ended, as long as a stop may take; returns those that have not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._cluster.spec.stop_deadline_seconds + END_SLACK_SECONDS):
                await self._settled(nodes, _AT_REST)
        return [node for node in nodes if node.status.state not in _AT_REST]

    def _startable(self, name: str) -> ManagedNode:
        node = self.named(name)
        if (why := self._cluster.startable(name)) is not None:
            raise UsageError(why, do=f"when it is to come back: `distsec allow {name}`, then start it")
        if not node.spec.command and node.status.state is not NodeState.FATAL:
            raise UsageError(
                f"{name} has no command: something else starts it",
                do=f"start it there, with what `distsec env {name}` prints",
            )
        return node

    async def _all_running(self, nodes: list[ManagedNode]) -> None:
        awaited = [node for node in nodes if node.spec.command]
        await self._settled(awaited, {NodeState.RUNNING, *_AT_REST})
        for node in awaited:
            status = node.status
            if status.state is not NodeState.RUNNING:
                why = status.why or "not proven yet"
                raise CommandFailed(
                    f"{node.name} is {status.state} ({why}: {escape(status.detail, 1024)})",
                    do="see `distsec events` and its log",
                )

    @staticmethod
    async def _settled(nodes: Iterable[ManagedNode], states: Iterable[NodeState]) -> None:
        """Waits until each is in one of `states`, or is STARTING for longer than it may take."""
        wanted = frozenset(states)

        def settled(status: life.NodeStatus) -> bool:
            return status.state in wanted or (status.state is NodeState.STARTING and status.overdue)

        await asyncio.gather(*(node.until(settled) for node in nodes))
