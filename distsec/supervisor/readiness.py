"""When systemd hears READY, and what `systemctl status` shows.

READY is said when every node that is started here was *decided* once: RUNNING, or failed (BACKOFF, FATAL),
or not to be started (denied, stopped). Not when all are well: one node that never comes up must not keep the
unit of all the others "activating" until systemd ends it. And never later than `start_deadline_seconds`
after the start, whatever hangs. What is not well stands in STATUS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from distsec.core.node_status import NodeStatus
from distsec.model.cluster import ClusterSpec, NodeState
from distsec.observe.sd_notify import Notifier, extend_line, status_line
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import PolicyDesk
from distsec.supervisor.views import is_violation

EXTEND_SECONDS = 20.0
"""How much longer the start may take, said again and again: a loop that hangs says it no more."""

EXTEND_EVERY_SECONDS = 5.0
NAMED = 3
"""Nodes that are not well and named; of the rest the number."""


class Cluster(Protocol):
    """What it needs of the supervisor."""

    spec: ClusterSpec
    nodes: dict[str, ManagedNode]

    @property
    def desk(self) -> PolicyDesk: ...


class Readiness:
    """`clock` is monotonic, in seconds; the bound of the start counts from now. Belongs to one event loop."""

    def __init__(self, cluster: Cluster, notifier: Notifier, clock: Callable[[], float]) -> None:
        self.ready = False
        self._cluster = cluster
        self._notifier = notifier
        self._clock = clock
        self._began = clock()
        self._extended_at = -float("inf")
        self._decided: set[str] = set()
        self._status = ""
        self._silent = False

    def tick(self) -> None:
        """Called by the supervising loop in each of its rounds, and by nobody else: so no WATCHDOG=1 without
        it.
        """
        self._notifier.pulse()
        if self._silent or not self._notifier.wanted:
            return
        lines = [*self._start_lines(), *self._status_lines()]
        if not lines or not self._notifier.send(*lines):
            return
        self.ready = self.ready or "READY=1" in lines
        for line in lines:
            if line.startswith("STATUS="):
                self._status = line

    def end(self) -> None:
        """From now on systemd hears of the end alone."""
        self._silent = True

    def _start_lines(self) -> list[str]:
        if self.ready:
            return []
        now = self._clock()
        self._decided.update(name for name, node in self._cluster.nodes.items() if is_decided(node.status))
        deadline = self._began + self._cluster.spec.start_deadline_seconds
        if now >= deadline or self._cluster.nodes.keys() <= self._decided:
            return ["READY=1"]
        if now - self._extended_at < EXTEND_EVERY_SECONDS:
            return []
        self._extended_at = now
        return [extend_line(EXTEND_SECONDS)]

    def _status_lines(self) -> list[str]:
        line = status_line(summary(self._cluster.nodes, self._cluster.desk.wanted.generation))
        return [line] if line != self._status else []


def is_decided(status: NodeStatus) -> bool:
    """Whether it is known what became of the start of a node; where something else starts it, at once."""
    return status.state not in (NodeState.STARTING, NodeState.STOPPING) or status.overdue


def summary(nodes: Mapping[str, ManagedNode], generation: int) -> str:
    """`2 of 3 nodes RUNNING (b@h FATAL carrier_not_in_force), 0 violations; policy generation 7`."""
    running = sum(node.status.state is NodeState.RUNNING for node in nodes.values())
    others = [
        " ".join(filter(None, (name, str(node.status.state), node.status.why and str(node.status.why))))
        for name, node in nodes.items()
        if node.status.state is not NodeState.RUNNING
    ]
    violations = sum(is_violation(node) for node in nodes.values())
    count = f"{running} of {len(nodes)}" if others else str(running)
    more = [f"{len(others) - NAMED} more"] if len(others) > NAMED else []
    named = f" ({', '.join(others[:NAMED] + more)})" if others else ""
    return (
        f"{count} {'node' if len(nodes) == 1 else 'nodes'} RUNNING{named}, "
        f"{violations} {'violation' if violations == 1 else 'violations'}; policy generation {generation}"
    )
