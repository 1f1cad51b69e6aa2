"""Applications' tools (`distsec exec`): which nodes one may link with, and that those know it while it runs.

A tool's process is watched as a shell's is (`supervisor.shells`). What is other: it makes up its own names,
it may link again and again, and with several nodes. So its nodes know it by its certificate, for
LEASE_SECONDS at a time: they are told again while it runs, and of its end until they have heard. Where that
is lost (the orchestrator is killed in that moment and stays away) the lease runs out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.beam.protocol import Argument
from distsec.beam.shell_directory import ShellRecord
from distsec.core.wanted import Overlay
from distsec.errors import CommandFailed
from distsec.model.cluster import ClusterSpec, NodeState
from distsec.model.shells import SESSION_SECONDS, tool_identity, tool_pattern
from distsec.supervisor.listening import COMMAND_SECONDS
from distsec.supervisor.node import ManagedNode

MAX_TO_FORGET = 256
"""Tools that a node has still to be told the end of; beyond these it forgets them when their lease ends."""

LEASE_SECONDS = 600
"""For so long a node that hears no more of a tool lets it make new links."""

LEASED_AGAIN_SECONDS = LEASE_SECONDS / 3

TOLD_AGAIN_SECONDS = 5.0
"""Between two attempts to tell a node of an end."""

TOLD_AT_ONCE = 16
"""Ends that an agent is told in one attempt: it has few commands waiting, and others are among them."""

_DENIED = "denied"


class Cluster(Protocol):
    """What tools need of the supervisor."""

    spec: ClusterSpec
    nodes: dict[str, ManagedNode]

    @property
    def overlay(self) -> Overlay: ...
    def spawn(self, work: Any, name: str) -> None: ...


class Tools:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._to_forget: dict[str, dict[str, float]] = {}  # node → identity → until when (Unix seconds)
        self._over: set[str] = set()  # identities of tools that run and are admitted no more
        self._leased_at = self._told_at = 0.0  # of the loop's clock

    def begin(self, record: ShellRecord, node: ManagedNode, program: str) -> ShellRecord:
        """What was begun as a shell at `node`, as a run of the tool `program`. It may link with the managed
        nodes that `node` is linked with too: whoever runs code there may.
        """
        host = node.spec.name.host
        return replace(
            record,
            name=tool_pattern(host),
            identity=tool_identity(self._cluster.spec.name, host, record.token),
            program=program,
            others=tuple(peer for peer in node.observed.links if self._reachable(peer)),
        )

    def _reachable(self, name: str) -> bool:
        node = self._cluster.nodes.get(name)
        return node is not None and node.status.state is NodeState.RUNNING and node.status.agent

    async def announce(self, record: ShellRecord) -> None:
        """From here on its node admits it, and of the others those that can be told. Raises CommandFailed."""
        reason, *_ = await asyncio.gather(*(self._tell(name, record) for name in _nodes(record)))
        if reason == _DENIED:
            self._over.discard(record.identity)
            raise CommandFailed(
                "a node that the tool could link with was denied meanwhile",
                do="see `distsec status`; try again",
            )
        if reason is not None:
            old = reason == "unknown"
            raise CommandFailed(
                f"{record.node} cannot be told of a tool: {reason}",
                do="restart it: its agent is older than this orchestrator" if old else "try again",
            )

    async def _tell(self, name: str, record: ShellRecord) -> str | None:
        """None, or why it was not told."""
        node = self._cluster.nodes.get(name)
        if node is None:
            return "lost"
        if self._is_over(record):  # asked last: nothing is awaited between this and the command
            return _DENIED
        left = max(1, min(LEASE_SECONDS, record.opened_at + SESSION_SECONDS - int(time.time())))
        fields: dict[str, Argument] = {"identity": record.identity, "pattern": record.name, "seconds": left}
        try:
            await node.server.command(Command.ADMIT_TOOL, fields, COMMAND_SECONDS)
        except AgentCommandFailed as error:
            return error.reason
        return None

    def connected(self, name: str, running: Iterable[ShellRecord]) -> None:
        """The agent of that node is back: one that has started anew knows of no tool that is `running`, and
        one that was away still knows those that have ended.
        """
        for record in running:
            if name in _nodes(record):
                self._tell_again(name, record)
                if record.program is not None and self._is_over(record):
                    # What the orchestrator before this one has told it of the denial is not known.
                    self._forget(name, record.identity, time.time() + LEASE_SECONDS)
        self._tell_of_ends(name)

    def tick(self, now: float, running: Iterable[ShellRecord]) -> None:
        """Once a second: leases that are to go on, and ends that a node has not heard of yet."""
        if now - self._told_at >= TOLD_AGAIN_SECONDS:
            self._told_at = now
            for name in tuple(self._to_forget):
                self._tell_of_ends(name)
        if now - self._leased_at >= LEASED_AGAIN_SECONDS:
            self._leased_at = now
            for record in running:
                for name in _nodes(record):
                    self._tell_again(name, record)

    def _tell_again(self, name: str, record: ShellRecord) -> None:
        if record.program is not None and not self._is_over(record) and self._is_there(name):
            self._cluster.spawn(self._retell(name, record), f"{record.program} at {name}")

    async def _retell(self, name: str, record: ShellRecord) -> None:
        await self._tell(name, record)

    def _tell_of_ends(self, name: str) -> None:
        if self._is_there(name):
            waiting = self._to_forget.pop(name, {})
            now, later = (
                dict(islice(waiting.items(), TOLD_AT_ONCE)),
                dict(islice(waiting.items(), TOLD_AT_ONCE, None)),
            )
            if later:
                self._to_forget[name] = later
            for identity, until in now.items():
                self._cluster.spawn(self._end(name, identity, until), f"end of a tool at {name}")

    def _is_there(self, name: str) -> bool:
        node = self._cluster.nodes.get(name)
        return node is not None and node.status.agent

    def _is_over(self, record: ShellRecord) -> bool:
        """A denial that an orchestrator before this one was told of is in the overlay alone."""
        overlay = self._cluster.overlay
        denied = any(name in overlay.deny or name in overlay.condemned for name in _nodes(record))
        return denied or record.identity in self._over

    def denied(self, name: str, running: Iterable[ShellRecord]) -> None:
        """A tool of a node that is denied is out too: that node could use it to reach the others."""
        for record in running:
            if record.program is not None and name in _nodes(record):
                self._over.add(record.identity)
                self._cluster.spawn(self._end_all(record), f"end of {record.program}")

    async def finished(self, record: ShellRecord) -> None:
        """Its nodes admit it no more, now or when their agents are back. Never raises."""
        await self._end_all(record)
        self._over.discard(record.identity)

    async def _end_all(self, record: ShellRecord) -> None:
        until = time.time() + LEASE_SECONDS
        await asyncio.gather(*(self._end(name, record.identity, until) for name in _nodes(record)))

    async def _end(self, name: str, identity: str, until: float) -> None:
        if self._is_there(name):
            try:
                await self._cluster.nodes[name].server.command(
                    Command.END_TOOL, {"identity": identity}, COMMAND_SECONDS
                )
                return
            except AgentCommandFailed as error:
                if error.reason == "unknown":
                    return  # an agent that has never heard of tools admits none
        self._forget(name, identity, until)

    def ended_meanwhile(self, record: ShellRecord) -> None:
        """It ended while no orchestrator was there: its nodes are told when their agents connect."""
        for name in _nodes(record):
            self._forget(name, record.identity, time.time() + LEASE_SECONDS)

    def _forget(self, name: str, identity: str, until: float) -> None:
        """That node is told of the end of `identity`, until it has heard or its lease has ended."""
        waiting = self._to_forget.get(name, {})
        if name in self._cluster.nodes and len(waiting) < MAX_TO_FORGET and time.time() < until:
            self._to_forget[name] = {**waiting, identity: until}


def described(record: ShellRecord, detail: str | None) -> str | None:
    """The detail of an event about it: of a tool also which one it is."""
    if record.program is None:
        return detail
    return f"{record.program}: {detail}" if detail else record.program


def _nodes(record: ShellRecord) -> tuple[str, ...]:
    return (record.node, *record.others)
