"""A node's start up to its agent's hello: why it failed, and what its emulators are given.

The guard in the node answers the second for whatever lets it run; this looks from outside for the rest.
Called by `supervisor.node` for processes that it started itself: what an adopted node runs beside its own VM
is the application's affair.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from distsec.beam.flags import ForbiddenFlag
from distsec.beam.scrutiny import LOOK_SECONDS
from distsec.beam.shortage import shortage
from distsec.core import node_status as life
from distsec.errors import DistsecError, EpmdUnavailable, GuardNotInForce, PortInUse, StoreError
from distsec.model.cluster import NodeSpec, NodeState

_PASSING = StoreError | PortInUse | EpmdUnavailable
"""What keeps a node from starting and may pass by itself."""


class BootWatch(Protocol):
    """See beam.scrutiny.BootWatch. `look` blocks."""

    def look(self) -> ForbiddenFlag | None: ...
    def end(self) -> None: ...


class Machine(Protocol):
    """Of supervisor.machine.Machine what is needed here."""

    def boot_watch(self, node: NodeSpec, pid: int) -> BootWatch: ...


class Booting(Protocol):
    """The node: its configuration, what it is in, and the way in for what happens to it."""

    spec: NodeSpec
    status: life.NodeStatus

    def feed(self, event: life.Event) -> None: ...


async def watch_boot(machine: Machine, pid: int, node: Booting) -> None:
    """Looks while the process `pid` is STARTING without an agent; feeds what it finds, and returns."""
    watch = machine.boot_watch(node.spec, pid)
    while node.status.pid == pid and node.status.state is NodeState.STARTING:
        if not node.status.agent and (found := await asyncio.to_thread(watch.look)) is not None:
            node.feed(life.ForbiddenFlagFound(pid, str(found)))  # first, so that the exit has its reason
            watch.end()
            return
        await asyncio.sleep(LOOK_SECONDS)


def start_failed(error: Exception) -> life.StartFailed:
    """Lasting is what would fail again in a moment: then no restart is tried."""
    if isinstance(error, GuardNotInForce):
        return life.StartFailed(str(error), why=life.Why.CARRIER_NOT_IN_FORCE)
    if (short := shortage(error)) is not None:
        return life.StartFailed(short, lasting=False)
    if unforeseen(error):
        return life.StartFailed(f"unexpected {type(error).__name__}", lasting=False)
    return life.StartFailed(str(error), lasting=not isinstance(error, _PASSING))


def unforeseen(error: Exception) -> bool:
    """Whether that is a bug of ours."""
    return not isinstance(error, DistsecError) and shortage(error) is None
