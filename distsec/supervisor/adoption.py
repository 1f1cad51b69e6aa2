"""Taking over VMs that something else started with what `distsec env` prints (`distsec adopt`).

A VM is the node's if its agent proves that it has the node's agent key, and it is RUNNING only once its guard
is proven, like any other: nothing is taken for granted that is not for a VM of our own. Without the agent
nothing can be taken over, and no agent can be brought into a VM that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from distsec.beam import proc
from distsec.core import node_status as life
from distsec.errors import CommandFailed, UsageError
from distsec.model.cluster import NodeState
from distsec.model.text import escape
from distsec.supervisor.acceptance import Window
from distsec.supervisor.external import Process
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.operation import Cluster as Base
from distsec.supervisor.operation import Operation

AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL, NodeState.BACKOFF})
KNOCK_SECONDS = 8.0
"""An agent tries again every 2 s at the latest (docs/port-protocol.md)."""

SETTLE_SECONDS = 10.0
"""Beyond its start deadline: what a stop takes where the guard was not in force."""


class Cluster(Base, Protocol):
    """What it needs of the supervisor."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Adopted:
    """`command`: whether the next start is ours, by its command."""

    pid: int
    command: bool


class Adoption:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def adopt(self, name: str, node: ManagedNode, pid: int | None, seconds: float | None) -> Adopted:
        """Returns when the node is RUNNING, its guard proven. `pid`: the VM, or what started it; `seconds`:
        how long its hello is waited for, by default `start_deadline_seconds`.

        Raises UsageError (it may not run now, or runs already as another process), CommandFailed (what is
        missing).
        """
        if (why := self._cluster.startable(name)) is not None:
            raise UsageError(why, do=f"when it is to come back: `distsec allow {name}`")
        if pid is not None and self._cluster.machine.start_time(pid) is None:
            raise CommandFailed(f"there is no process {pid}", do="see `ps`, or leave --pid out")
        self._refuse_another(node, pid)
        limit = seconds if seconds is not None else self._cluster.spec.start_deadline_seconds
        with self._open(node, pid):
            await self._until(node, _is_heard_of, limit)
            if node.status.pid is None:
                raise await self._missing(node, pid, limit)
        self._refuse_another(node, pid)  # where something else starts it, any of its VMs may say hello
        # From here on its own start deadline ends the waiting.
        await self._until(node, _is_settled, self._cluster.spec.start_deadline_seconds + SETTLE_SECONDS)
        status = node.status
        if not _is_proven(status) or status.pid is None:
            why = str(status.why) if status.why is not None else "not proven yet"
            raise CommandFailed(
                f"{name} said hello and was not taken over: {status.state} ({why}:"
                f" {escape(status.detail, 800)})",
                do=f"start it anew with what `distsec env {name}` prints",
            )
        self._cluster.operation.keep_stopped(without=[name])
        return Adopted(status.pid, bool(node.spec.command))

    async def is_occupied(self, node: ManagedNode) -> bool:
        """Whether a VM with the node's flags, that is not on record, has its port."""
        machine = self._cluster.machine
        port = machine.ports[node.name]
        return await asyncio.to_thread(machine.foundlings.occupant, node.spec, port) is not None

    async def at_start(self, node: ManagedNode) -> None:
        """Gives a VM that holds the node's port already, with its flags, the time to say hello; then the node
        is started as ever, which says what is in the way.
        """
        with self._open(node, None):
            await self._until(node, _is_heard_of, KNOCK_SECONDS)
        if node.status.state is NodeState.STOPPED and node.status.why is life.Why.NOT_STARTED:
            node.feed(life.StartRequested())

    @contextlib.contextmanager
    def _open(self, node: ManagedNode, pid: int | None) -> Iterator[None]:
        acceptance = node.acceptance
        acceptance.refused = None
        if node.status.rules.external:
            if node.status.state is NodeState.FATAL or node.status.why is life.Why.CARRIER_NOT_IN_FORCE:
                node.feed(life.StartRequested())  # forgives
            yield
            return
        if node.status.state in AT_REST and node.status.why is not life.Why.NOT_STARTED:
            node.feed(life.StopRequested())  # no restart of its own comes in between
        if node.status.pid is None:
            self._cluster.machine.take_refusal(node.spec, None)  # of one before
            acceptance.window = Window(pid)
        try:
            yield
        finally:
            acceptance.window = None

    @staticmethod
    def _refuse_another(node: ManagedNode, pid: int | None) -> None:
        status = node.status
        if status.state is NodeState.STOPPING and status.why is life.Why.CARRIER_NOT_IN_FORCE:
            raise CommandFailed(
                f"the guard of {node.name} is not in force, and it is being stopped:"
                f" {escape(status.detail, 800)}",
                do=f"start it anew with what `distsec env {node.name}` prints",
            )
        if status.state is NodeState.STOPPING:
            raise UsageError(f"{node.name} is being stopped", do="try again when it has ended")
        if status.pid is None and status.state is NodeState.STARTING:
            raise UsageError(
                f"{node.name} is being started here", do=f"`distsec stop {node.name}` first, then adopt"
            )
        process = node.process
        if pid is not None and process is not None and not _is_meant(process, pid):
            raise UsageError(
                f"{node.name} runs already, as process {process.pid}",
                do=f"end one of the two: `distsec stop {node.name}`, or process {pid}",
            )

    @staticmethod
    async def _until(node: ManagedNode, condition: life.Condition, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await node.until(condition)

    async def _missing(self, node: ManagedNode, pid: int | None, seconds: float) -> CommandFailed:
        """Why nobody has said hello, as far as can be seen from outside."""
        name, machine = node.name, self._cluster.machine
        with_env = f"start it with what `distsec env {name}` prints"
        halted = None
        if node.status.why is life.Why.CARRIER_NOT_IN_FORCE:
            halted = node.status.detail
        elif (refused := machine.take_refusal(node.spec, None)) is not None:
            halted = ": ".join(filter(None, refused))
        if halted is not None:
            return CommandFailed(f"{name} has halted itself: {escape(halted, 800)}", do=with_env)
        if node.acceptance.refused is not None:
            why = escape(node.acceptance.refused, 800)
            return CommandFailed(f"the agent of {name} came and was refused: {why}", do="put that right")
        if pid is not None:
            flagged = await asyncio.to_thread(machine.foundlings.below, node.spec, pid)
        else:
            flagged = await asyncio.to_thread(machine.foundlings.occupant, node.spec, machine.ports[name])
        if flagged is not None:
            return CommandFailed(
                f"process {flagged} was started with the environment of {name}, and said no hello in"
                f" {seconds:g} s",
                do="see what it prints; can it reach its agent.sock, in this state directory?",
            )
        if pid is not None:
            return CommandFailed(
                f"process {pid} is no VM with the environment of {name}: it has no agent, and none can be"
                " brought into a VM that runs",
                do=f"end it, and {with_env}",
            )
        return CommandFailed(f"no process said hello as {name} in {seconds:g} s", do=with_env)


def _is_meant(process: Process, pid: int) -> bool:
    """Whether `pid` is that process, below it, or what it is below."""
    return process.contains(pid) or proc.descends_from(process.pid, pid)


def _is_heard_of(status: life.NodeStatus) -> bool:
    """It has said hello, or has said why it did not."""
    return status.pid is not None or status.why is life.Why.CARRIER_NOT_IN_FORCE


def _is_proven(status: life.NodeStatus) -> bool:
    return status.state is NodeState.RUNNING and status.proven and status.agent


def _is_settled(status: life.NodeStatus) -> bool:
    return _is_proven(status) or status.state in AT_REST or status.overdue
