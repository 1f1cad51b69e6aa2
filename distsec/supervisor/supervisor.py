"""All nodes together: start, adopt, reload, the end; and what operators ask for
(`control.service.Orchestrator`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from distsec.core import node_status as life
from distsec.errors import CommandFailed, ConfigError, DistsecError, NotFound, Unavailable, UsageError
from distsec.model.cluster import ClusterSpec, NodeSpec, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.observe.bus import Bus
from distsec.observe.log import Logger, log_line
from distsec.observe.metrics import Metrics
from distsec.supervisor import views
from distsec.supervisor.difference import Difference, difference
from distsec.supervisor.machine import Machine
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import PolicyDesk, Wanted

TICK_SECONDS = 1.0
ROTATE_EVERY_TICKS = 5
END_SLACK_SECONDS = 15.0
"""How long after their stop deadline nodes that even KILL does not end are waited for."""

_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL})


class Supervisor:
    """Belongs to one event loop; used within `async with supervisor.running()`.

    `reread()` loads the configuration anew, `complete(spec)` provisions what a new one needs; both raise
    DistsecError. Every method that does says which DistsecError it raises.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        machine: Machine,
        bus: Bus,
        metrics: Metrics,
        logger: Logger,
        *,
        reread: Callable[[], ClusterSpec],
        complete: Callable[[ClusterSpec], object],
    ) -> None:
        self.spec = spec
        self.machine = machine
        self.bus = bus
        self.metrics = metrics
        self.starts = asyncio.Semaphore(max(1, spec.start_parallel))
        self.nodes: dict[str, ManagedNode] = {}
        self._logger = logger
        self._reread = reread
        self._complete = complete
        self._reloading = asyncio.Lock()
        self._desk: PolicyDesk | None = None
        self._group: asyncio.TaskGroup | None = None
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._user = pwd.getpwuid(os.geteuid()).pw_name

    # ---- life

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adopts what runs, starts the rest, and lets go of all at the end: nodes go on (see `stop_all`).

        Raises DistsecError, with nothing started, where a node could not be started at all.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._begin()
                self.spawn(self._housekeeping(), "housekeeping")
                yield
            finally:
                await self._let_go()

    async def stop_all(self) -> None:
        """Stops every node in order (agent, TERM, KILL), all at once; returns when they have ended."""
        for node in self.nodes.values():
            node.feed(life.StopRequested())
        patience = self.spec.stop_deadline_seconds + END_SLACK_SECONDS
        try:
            async with asyncio.timeout(patience):
                await self._settled(self.nodes.values(), _AT_REST)
        except TimeoutError:
            left = [node.name for node in self.nodes.values() if node.status.state not in _AT_REST]
            self.note("error", "nodes did not end", nodes=", ".join(left))

    async def _begin(self) -> None:
        for spec in self.spec.nodes:
            self.nodes[str(spec.name)] = ManagedNode(self, spec)
        self._desk = PolicyDesk(
            self.spec, self.machine, lambda: self.nodes, self.spawn, on_change=self._new_policy
        )
        self._new_policy(self._desk.wanted)
        for node in self.nodes.values():
            await node.open()
        to_start = [node for node in self.nodes.values() if not await node.adopt()]
        to_start = [node for node in to_start if node.spec.command]
        for node in to_start:
            await self.machine.preflight(node.spec)
        self._desk.write_files()
        for node in to_start:
            node.feed(life.StartRequested())

    async def _let_go(self) -> None:
        self._ending = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self.nodes.values():
            await node.close()

    async def _housekeeping(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            for node in tuple(self.nodes.values()):
                node.tick()
            with contextlib.suppress(DistsecError):  # tried again in a second
                await self.desk.settle()
            if ticks % ROTATE_EVERY_TICKS == 0:
                for node in tuple(self.nodes.values()):
                    await self._rotate(node)

    async def _rotate(self, node: ManagedNode) -> None:
        try:
            await asyncio.to_thread(self.machine.rotate, node.spec)
        except (DistsecError, OSError) as error:
            self.note("warning", "a node's output cannot be rotated", node=node.name, error=str(error))

    # ---- what nodes use

    @property
    def desk(self) -> PolicyDesk:
        if self._desk is None:
            raise Unavailable("the orchestrator is still starting", do="try again in a moment")
        return self._desk

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs `work` beside everything else; what it raises is logged and ends nothing but itself.

        Before and after `running` nothing is begun any more: a back-off that ends then starts no node.
        """
        if self._group is None or self._ending:
            work.close()
            return
        task = self._group.create_task(self._guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # where the end came before it began

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception as error:
            self.note("error", "a task failed", task=name, error=f"{type(error).__name__}: {error}")

    def note(self, level: str, text: str, **fields: Any) -> None:
        """A line of the log that is no event."""
        log_line(self._logger, level, text, **fields)

    def is_managed(self, pid: int) -> bool:
        """Whether that process belongs to a managed node."""
        return any(node.process is not None and node.process.contains(pid) for node in self.nodes.values())

    # ---- what operators ask for

    def status(self) -> dict[str, Any]:
        """The document of `distsec status --json`."""
        now = asyncio.get_running_loop().time()
        wanted = self.desk.wanted.generation
        return views.status_document(self.spec, wanted, self.nodes.values(), self._user, now)

    def environment(self, name: str) -> dict[str, Any]:
        """For a node that something else starts. Raises NotFound."""
        return self.machine.outside(self._named(name).spec)

    async def start(self, names: list[str]) -> None:
        """Returns when each is RUNNING. Raises NotFound, UsageError, CommandFailed (why one is not)."""
        nodes = [self._startable(name) for name in names]
        for node in nodes:
            node.feed(life.StartRequested())
        await self._all_running(nodes)

    async def stop(self, names: list[str]) -> None:
        """Returns when each has ended. Raises NotFound."""
        nodes = [self._named(name) for name in names]
        for node in nodes:
            node.feed(life.StopRequested())
        await self._settled(nodes, _AT_REST)

    async def restart(self, names: list[str]) -> None:
        """Stop, then start. Raises like `start`."""
        nodes = [self._startable(name) for name in names]
        for node in nodes:
            self._restart(node)
        await self._all_running(nodes)

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """See PolicyDesk.allow."""
        return await self.desk.allow(name, identity)

    async def deny(self, name: str, compromised: bool) -> dict[str, Any]:
        """See PolicyDesk.deny. Re-keying (`compromised`) is refused: it is not built yet."""
        if compromised:
            raise UsageError("deny --compromised is not built yet: nothing would be re-keyed")
        return await self.desk.deny(name)

    async def reload(self) -> dict[str, Any]:
        """Re-reads the configuration and applies the difference; denials come first.

        Raises DistsecError, having changed nothing, where the new one cannot be taken.
        """
        async with self._reloading:
            try:
                new, change = await self._next()
            except DistsecError as error:
                self._reloaded(Severity.WARNING, "deny", "rejected", f"the old one stays in force: {error}")
                raise
            missing = await self._apply(new, change)
            text = ", ".join(
                f"{what} {' '.join(names)}"
                for what, names in [
                    ("added", change.added),
                    ("removed", change.removed),
                    ("restarted", change.restarted),
                    ("not acknowledged by", missing),
                ]
                if names
            )
            self._reloaded(Severity.NOTICE, "allow", None, text or "nothing to restart")
        return {
            "added": list(change.added),
            "removed": list(change.removed),
            "restarted": list(change.restarted),
            "generation": self.desk.wanted.generation,
            "missing": missing,
        }

    async def _next(self) -> tuple[ClusterSpec, Difference]:
        """The configuration to go to; all that can be wrong with it is found out here."""
        old = self.spec
        new = await asyncio.to_thread(self._reread)
        change = difference(old, new)
        if change.refused:
            raise ConfigError(new.config_file, change.refused)
        await asyncio.to_thread(self._complete, new)
        try:
            self.machine.use(new)
            for name in change.added:
                node = _spec_of(new, name)
                if node.command:
                    await self.machine.preflight(node)
        except BaseException:
            self.machine.use(old)
            raise
        return new, change

    async def _apply(self, new: ClusterSpec, change: Difference) -> list[str]:
        self.spec = new
        gone = [self.nodes[name] for name in change.removed]
        for node in gone:
            node.feed(life.StopRequested())
        for spec in new.nodes:
            if (known := self.nodes.get(str(spec.name))) is not None:
                known.reconfigure(spec)
        added = {name: ManagedNode(self, _spec_of(new, name)) for name in change.added}
        for node in added.values():
            await node.open()
        self.nodes |= added
        missing: list[str] = []
        if change.policy_changed or change.newly_allowed:
            missing = list(await self.desk.reconfigure(new, change.newly_allowed))
        else:
            self.desk.spec = new
        for name in change.restarted:
            if self.nodes[name].status.state in (NodeState.STARTING, NodeState.RUNNING, NodeState.BACKOFF):
                self._restart(self.nodes[name])
        for node in added.values():
            if node.spec.command:
                node.feed(life.StartRequested())
        await self._settled(gone, _AT_REST)
        for node in gone:
            await node.close()
            del self.nodes[node.name]
            self.metrics.forget(node.name)
        return missing

    def _reloaded(self, severity: Severity, result: str, reason: str | None, detail: str) -> None:
        event = SecurityEvent(
            EventType.CONFIGURATION_RELOADED,
            severity,
            "",
            time.time(),
            result=result,
            reason=reason,
            detail=escape(detail, 1024),
        )
        self.bus.publish(event)

    def _new_policy(self, wanted: Wanted) -> None:
        self.metrics.set_listed(wanted.labels)
        for node in self.nodes.values():
            self.metrics.set_policy(node.name, wanted.generation, node.observed.generation)

    def _named(self, name: str) -> ManagedNode:
        node = self.nodes.get(name)
        if node is None:
            raise NotFound(f"{escape(name)}: no such managed node")
        return node

    def _startable(self, name: str) -> ManagedNode:
        node = self._named(name)
        if not node.spec.command and node.status.state is not NodeState.FATAL:
            raise UsageError(
                f"{name} has no command: something else starts it",
                do=f"start it there, with what `distsec env {name}` prints",
            )
        return node

    @staticmethod
    def _restart(node: ManagedNode) -> None:
        node.feed(life.StopRequested())
        node.feed(life.StartRequested())

    async def _all_running(self, nodes: list[ManagedNode]) -> None:
        await self._settled([node for node in nodes if node.spec.command], {NodeState.RUNNING, *_AT_REST})
        for node in nodes:
            status = node.status
            if node.spec.command and status.state is not NodeState.RUNNING:
                raise CommandFailed(
                    f"{node.name} is {status.state} ({status.why}: {escape(status.detail, 1024)})",
                    do="see `distsec events` and its log",
                )

    @staticmethod
    async def _settled(nodes: Iterable[ManagedNode], states: Iterable[NodeState]) -> None:
        wanted = frozenset(states)
        await asyncio.gather(*(node.until(lambda status: status.state in wanted) for node in nodes))


def _spec_of(spec: ClusterSpec, name: str) -> NodeSpec:
    found = spec.node(name)
    assert found is not None, "the difference names nodes of the new configuration"
    return found
