"""Starting and stopping nodes because somebody asks for it, and waiting until they have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Protocol

from distsec.core import node_status as life
from distsec.errors import CommandFailed, DistsecError, NotFound, Unavailable, UsageError
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
        self.begun = asyncio.Event()
        """Set when every node was adopted or is to be started: who lives is not known before."""
        self.ending = False
        self._stops: frozenset[str] | None = None

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
        is not; it may be that it is tried again).
        """
        self.refuse_if_ending()
        nodes = [self._startable(name) for name in names]
        self.keep_stopped(without=names)
        for node in nodes:
            node.feed(life.StartRequested())
        await self._all_running(nodes)

    async def stop(self, names: list[str]) -> None:
        """Returns when each has ended. No later orchestrator starts them, if this one should end before it
        has (see stops). Raises NotFound.
        """
        nodes = [self.named(name) for name in names]
        self.keep_stopped(more=[node.name for node in nodes if node.spec.command])
        for node in nodes:
            node.feed(life.StopRequested())
        await self._settled(nodes, _AT_REST)

    async def restart(self, names: list[str]) -> None:
        """Stop, then start. Raises like `start`."""
        self.refuse_if_ending()
        nodes = [self._startable(name) for name in names]
        self.keep_stopped(without=names)
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
        self.keep_stopped(without=self.stops)  # all of them were, and the next one starts all
        return left

    @property
    def stops(self) -> frozenset[str]:
        """The nodes that an operator has stopped, as far as that still counts."""
        if self._stops is None:
            self._stops = self._cluster.machine.records.stops()
        return self._stops

    def keep_stopped(self, more: Iterable[str] = (), without: Iterable[str] = ()) -> None:
        """On record before anything is done. A disk that is full keeps nobody from stopping a node."""
        wanted = (self.stops | frozenset(more)) - frozenset(without)
        if wanted == self.stops:
            return
        try:
            self._cluster.machine.records.save_stops(wanted)
        except DistsecError as error:
            self._cluster.note("warning", "which nodes are stopped could not be saved", error=str(error))
        self._stops = wanted

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
        settled = await self._settled(awaited, {NodeState.RUNNING, *_AT_REST})
        for node, before in zip(awaited, settled, strict=True):
            status = node.status
            if status.state is NodeState.STARTING and before.waits:
                status = before  # it is tried again already, while others were waited for
            if status.state is not NodeState.RUNNING:
                why = status.why or "not proven yet"
                again = "it is tried again by itself; " if status.waits else ""
                raise CommandFailed(
                    f"{node.name} is {status.state} ({why}: {escape(status.detail, 1024)})",
                    do=f"{again}see `distsec events` and its log",
                )

    @staticmethod
    async def _settled(nodes: Iterable[ManagedNode], states: Iterable[NodeState]) -> list[life.NodeStatus]:
        """Waits until each is in one of `states`, is STARTING for longer than it may take, or waits for what
        keeps it from starting, which may be for ever. Returns what each was then.
        """
        wanted = frozenset(states)

        def settled(status: life.NodeStatus) -> bool:
            overdue = status.state is NodeState.STARTING and status.overdue
            return status.state in wanted or overdue or status.waits

        return await asyncio.gather(*(node.until(settled) for node in nodes))
