"""A new configuration, taken over while the nodes run: what can fail is tried before anything is changed.

In this order: read and check; complete the state directory; listen for the agents of added nodes; save the
new policy. Whatever fails so far leaves everything as it was. From there on the new configuration is in
force, and only now is anybody stopped; what fails then is told as applied in part, by what is not. Until then
no phase of a rotation of the CA begins either, where nodes are added: they were given the files of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from distsec.core import node_status as life
from distsec.errors import CommandFailed, ConfigError, DistsecError, Unavailable
from distsec.model.cluster import ClusterSpec, NodeSpec, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.observe.log import Logger, log_line
from distsec.supervisor.ca_rotation import CaRotation
from distsec.supervisor.difference import Difference, difference
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.operation import Operation


class AppliedInPart(CommandFailed):
    """The new configuration is in force, except for what this names."""


class Cluster(Hub, Protocol):
    """What a reload needs of the supervisor."""

    nodes: dict[str, ManagedNode]
    authority: CaRotation
    operation: Operation

    @property
    def ending(self) -> bool: ...
    async def ended(self, nodes: list[ManagedNode]) -> list[ManagedNode]: ...  # waits; returns who has not


def log_findings(logger: Logger, spec: ClusterSpec) -> None:
    """What is unsafe in a configuration, and what it says without effect: at the start and at each reload."""
    for warning in spec.warnings:
        log_line(logger, "warning", "configuration", detail=warning)
    for ignored in spec.not_enforced:
        log_line(logger, "warning", "not_enforced", key=ignored.key, detail=ignored.why)


class Reloader:
    """One reload at a time, and none before all have begun: whoever starts them has a list of those of
    before. `reread` and `complete` are as the Supervisor has them.
    """

    def __init__(
        self,
        cluster: Cluster,
        logger: Logger,
        reread: Callable[[], ClusterSpec],
        complete: Callable[[ClusterSpec], object],
    ) -> None:
        self._cluster = cluster
        self._logger = logger
        self._reread = reread
        self._complete = complete
        self._lock = asyncio.Lock()

    async def reload(self) -> dict[str, Any]:
        """Raises AppliedInPart, or another DistsecError: then nothing is changed. Both are events by then."""
        await self._cluster.operation.begun.wait()
        async with self._lock:
            undone: list[str] = []
            try:
                self._cluster.operation.refuse_if_ending()
                with contextlib.ExitStack() as joining:  # closed as soon as the added ones are nodes
                    new, change = await self._next(joining)
                    missing = await self._apply(new, change, undone, joining.close)
            except DistsecError as error:
                detail = f"the old configuration stays in force: {error}"
                self._publish(Severity.WARNING, "deny", "rejected", detail)
                raise
            log_findings(self._logger, new)
            groups = {
                "added": change.added,
                "removed": change.removed,
                "restarted": change.restarted,
                "not acknowledged by": missing,
            }
            done = ", ".join(f"{what} {' '.join(names)}" for what, names in groups.items() if names)
            if undone:
                failed = "; ".join(undone)
                detail = f"applied in part: {failed}" + (f" ({done})" if done else "")
                self._publish(Severity.WARNING, "allow", "applied_in_part", detail)
                raise AppliedInPart(
                    f"the new configuration is in force, but in part: {failed}",
                    do="see to it, and reload again",
                )
            self._publish(Severity.NOTICE, "allow", None, done or "nothing to restart")
        return {
            "added": list(change.added),
            "removed": list(change.removed),
            "restarted": list(change.restarted),
            "generation": self._cluster.desk.wanted.generation,
            "missing": missing,
        }

    async def _next(self, joining: contextlib.ExitStack) -> tuple[ClusterSpec, Difference]:
        """The configuration to go to; all that can be known to be wrong with it is found out here."""
        cluster, old = self._cluster, self._cluster.spec
        new = await asyncio.to_thread(self._reread)
        change = difference(old, new)
        if change.refused:
            raise ConfigError(new.config_file, change.refused)
        for name in change.added:
            if name in cluster.nodes:
                raise Unavailable(f"{name} was removed and has not ended yet", do="try again when it has")
        if change.added:
            await cluster.authority.still.acquire()
            joining.callback(cluster.authority.still.release)
        await asyncio.to_thread(self._complete, new)
        return new, change

    async def _apply(
        self, new: ClusterSpec, change: Difference, undone: list[str], joined: Callable[[], object]
    ) -> list[str]:
        """Fills `undone`, where it does not raise; returns who has not acknowledged the new policy. Calls
        `joined` when the added nodes are among the others.
        """
        cluster, old = self._cluster, self._cluster.spec
        added: list[ManagedNode] = []
        try:
            cluster.machine.use(new)
            for name in change.added:
                spec = _spec_of(new, name)
                if spec.command:
                    await cluster.machine.preflight(spec)
                added.append(ManagedNode(cluster, spec))
                await added[-1].open()
            missing = await self._commit(new, change, added, undone, joined)
        except BaseException:
            if cluster.spec is not new:
                cluster.machine.use(old)
                for node in added:
                    await node.close()
                    cluster.metrics.forget(node.name)
            raise
        self._start(change, added, undone)
        await self._part_with([cluster.nodes[name] for name in change.removed], undone)
        return missing

    async def _commit(
        self,
        new: ClusterSpec,
        change: Difference,
        added: list[ManagedNode],
        undone: list[str],
        joined: Callable[[], object],
    ) -> list[str]:
        """Raises only as long as `new` is not in force."""
        self._cluster.operation.refuse_if_ending()

        def take_over() -> None:
            if self._cluster.spec is not new:
                self._take_over(new, added)
                joined()

        # Of an earlier reload somebody may not have acknowledged who is new: once more is how to ask again.
        if not (change.policy_changed or change.newly_allowed or self._cluster.desk.wanted.prepared):
            self._cluster.desk.spec = new
            take_over()
            return []
        try:
            return list(await self._cluster.desk.reconfigure(new, change.newly_allowed, take_over))
        except Exception as error:
            if self._cluster.spec is not new:
                raise
            undone.append(f"the policy is not everywhere: {error}")
            return []

    def _take_over(self, new: ClusterSpec, added: list[ManagedNode]) -> None:
        """The point of no return. Nobody is stopped or started here, and nothing waits."""
        cluster = self._cluster
        more = max(1, new.start_parallel) - max(1, cluster.spec.start_parallel)
        for _ in range(more):
            cluster.starts.release()
        for _ in range(-more):
            cluster.spawn(_keep_one(cluster.starts), "fewer starts at a time")
        cluster.spec = new
        cluster.nodes |= {node.name: node for node in added}
        for spec in new.nodes:
            cluster.nodes[str(spec.name)].reconfigure(spec)

    def _start(self, change: Difference, added: list[ManagedNode], undone: list[str]) -> None:
        living = (NodeState.STARTING, NodeState.RUNNING, NodeState.BACKOFF)
        restarted = [self._cluster.nodes[name] for name in change.restarted]
        restarted = [node for node in restarted if node.status.state in living]
        started = [node for node in added if node.spec.command]
        if self._cluster.ending:
            names = " ".join(node.name for node in (*restarted, *started))
            if names:
                undone.append(f"the orchestrator is ending: not started: {names}")
            return
        for node in restarted:
            node.feed(life.StopRequested())
        for node in (*restarted, *started):
            node.feed(life.StartRequested())

    async def _part_with(self, gone: list[ManagedNode], undone: list[str]) -> None:
        """Stops them and lets go; who does not end in time is kept in sight until it does."""
        for node in gone:
            node.feed(life.StopRequested())
        late = await self._cluster.ended(gone)
        for node in gone:
            if node in late:
                undone.append(f"{node.name} has not ended")
                self._cluster.spawn(self._let_go_later(node), f"removal of {node.name}")
            else:
                await self._let_go(node)

    async def _let_go_later(self, node: ManagedNode) -> None:
        await node.until(lambda status: status.state in (NodeState.STOPPED, NodeState.FATAL))
        await self._let_go(node)

    async def _let_go(self, node: ManagedNode) -> None:
        await node.close()
        if self._cluster.nodes.get(node.name) is node:
            del self._cluster.nodes[node.name]
        self._cluster.metrics.forget(node.name)

    def _publish(self, severity: Severity, result: str, reason: str | None, detail: str) -> None:
        event = SecurityEvent(
            EventType.CONFIGURATION_RELOADED,
            severity,
            "",
            time.time(),
            result=result,
            reason=reason,
            detail=escape(detail, 1024),
        )
        self._cluster.bus.publish(event)


async def _keep_one(starts: asyncio.Semaphore) -> None:
    """One start fewer at a time, as soon as one that is under way is over."""
    await starts.acquire()


def _spec_of(spec: ClusterSpec, name: str) -> NodeSpec:
    found = spec.node(name)
    assert found is not None, "the difference names nodes of the new configuration"
    return found
