"""All nodes together: start, adopt, reload, the end; and what operators ask for
(`control.service.Orchestrator`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from distsec.core import node_status as life
from distsec.core.wanted import Overlay, identity_of
from distsec.errors import DistsecError, NotAcknowledged, Unavailable, UsageError
from distsec.model.cluster import ClusterSpec, Link
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.identities import readable
from distsec.model.names import MAX_NAME_BYTES
from distsec.model.policy import Verdict
from distsec.model.shells import Operator, is_shell
from distsec.model.text import escape
from distsec.observe.bus import Bus
from distsec.observe.log import Logger, log_line
from distsec.observe.metrics import Metrics
from distsec.pki.crl import RevocationReason
from distsec.supervisor import views
from distsec.supervisor.adoption import Adoption
from distsec.supervisor.ca_rotation import CaRotation
from distsec.supervisor.clock import ClockWatch
from distsec.supervisor.containment import Containment
from distsec.supervisor.cookie_rotation import CookieRotator
from distsec.supervisor.dropped import Drops
from distsec.supervisor.fitness import find_unfit
from distsec.supervisor.link_memory import LinkMemory
from distsec.supervisor.machine import Machine
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.operation import Operation
from distsec.supervisor.persistence import persistently
from distsec.supervisor.policy import PolicyDesk
from distsec.supervisor.pushing import Wanted
from distsec.supervisor.reload import Reloader
from distsec.supervisor.renewal import Renewal
from distsec.supervisor.revocation import Revocation
from distsec.supervisor.rollback import RollbackWatch
from distsec.supervisor.shells import Place, Shells

TICK_SECONDS = 1.0
ROTATE_EVERY_TICKS = 5


class Supervisor:
    """Belongs to one event loop; used within `async with supervisor.running()`.

    `reread()` loads the configuration anew, `complete(spec)` provisions what a new one needs; both raise
    DistsecError; `place` is where shells are made; `beat` is called in each round of the loop that supervises
    the nodes, and from nowhere else. Every method that does says which DistsecError it raises.
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
        place: Place,
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        self.spec = spec
        self._beat = beat
        self.machine = machine
        self.bus = bus
        self.metrics = metrics
        self.starts = asyncio.Semaphore(max(1, spec.start_parallel))
        self.nodes: dict[str, ManagedNode] = {}
        self.memory = LinkMemory(
            machine.records, self._is_listed, self.spawn, self.note, passing=self._is_shell_link
        )
        self.rollbacks = RollbackWatch(self)
        self._containment = Containment(self)
        self._revocation = Revocation(self)
        self.cookies = CookieRotator(self)
        self._clock = ClockWatch(bus)
        self.renewal = Renewal(self, self._clock)
        self.authority = CaRotation(self, self.renewal, self._revocation.lists.changed)
        self.operation = Operation(self)
        self._adoption = Adoption(self)
        self._logger = logger
        self._reloader = Reloader(self, logger, reread, complete)
        self.shells = Shells(self, place)
        self._desk: PolicyDesk | None = None
        self._group: asyncio.TaskGroup | None = None
        self._released = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._user = pwd.getpwuid(os.geteuid()).pw_name

    # ---- life

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adopts what runs, starts the rest, and lets go of all at the end: nodes go on (see `stop_all`).

        Raises DistsecError, with nothing started: see `find_unfit`, and what else all nodes need.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._begin()
                self.operation.begun.set()
                # Of the loop that the watchdog asks for no error is passed over that lasts.
                self._keep(self._housekeeping, "housekeeping", only_shortages=True)
                self._keep(self._containment.run, "containment")
                self._keep(self.renewal.run, "renewal")
                self._keep(Drops(self, self.renewal).run, "dropped files")
                self._keep(self._revocation.lists.run, "revocation lists")
                self._keep(self.authority.run, "rotation of the CA")
                yield
            finally:
                await self._let_go()

    @property
    def ending(self) -> bool:
        return self.operation.ending

    def begin_end(self) -> None:
        """From now on nothing that operators ask for is begun any more (Unavailable), except stops."""
        self.operation.ending = True

    async def stop_all(self) -> list[str]:
        """See Operation.stop_all."""
        return await self.operation.stop_all()

    async def ended(self, nodes: list[ManagedNode]) -> list[ManagedNode]:
        """See Operation.ended."""
        return await self.operation.ended(nodes)

    async def _begin(self) -> None:
        for spec in self.spec.nodes:
            self.nodes[str(spec.name)] = ManagedNode(self, spec)
        self._desk = PolicyDesk(
            self.spec, self.machine, lambda: self.nodes, self.spawn, self._new_policy, self._clock.believed
        )
        self._new_policy(self._desk.wanted)
        self.memory.load(self.nodes)
        self.rollbacks.tell_of_start()
        self.cookies.tell_of_start()
        self.bus.subscribe(self.shells.event, "shells")
        for node in self.nodes.values():
            await node.open()
        self.shells.restore()
        to_start = [node for node in self.nodes.values() if not await node.adopt()]
        to_start = [node for node in to_start if node.spec.command and self.startable(node.name) is None]
        stopped = [node for node in self.nodes.values() if node.name in self.operation.stops]
        to_start = [node for node in to_start if node not in stopped]
        occupied = [node for node in to_start if await self._adoption.is_occupied(node)]
        to_start = [node for node in to_start if node not in occupied]
        unfit = await find_unfit(self.machine, [node.spec for node in to_start], len(self.nodes), self.note)
        await asyncio.to_thread(self._desk.write_files)
        if self._desk.stays is not None:
            self.note("warning", "the policy stays the one of before", error=self._desk.stays)
            self._new_policy(self._desk.wanted)
        for node in to_start:
            why = unfit.get(node.name)
            node.feed(life.StartRequested() if why is None else life.FoundUnfit(why))
        for node in stopped:  # also one whose stop was interrupted
            node.feed(life.StopRequested())
        for node in occupied:
            self.spawn(self._adoption.at_start(node), f"adoption of {node.name}")

    async def _let_go(self) -> None:
        self._released = True
        self.shells.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.memory.save()
        for node in self.nodes.values():
            await node.close()

    async def _housekeeping(self) -> None:
        ticks = 0
        while True:
            self._beat()
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            self._clock.tick()
            for node in tuple(self.nodes.values()):
                node.tick()
                await node.mend()
            self.memory.tick()
            self.shells.tick(asyncio.get_running_loop().time())
            self.metrics.set_tainted(views.tainted_names(self.desk.wanted.overlay))
            with contextlib.suppress(DistsecError):  # tried again in a second
                await self.desk.settle()
            if ticks % ROTATE_EVERY_TICKS == 0:
                for node in tuple(self.nodes.values()):
                    await self._rotate(node)
                    self._beat()

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

    def changed(self) -> None:
        """Something about a node has changed."""
        self._containment.wake()

    def startable(self, name: str) -> str | None:
        """Why `name` may not be started now; None: it may."""
        return self._containment.startable(name)

    def _is_shell_link(self, link: Link) -> bool:
        return not self._is_listed(link.peer) and is_shell(self.spec.name, link.peer, link.identity)

    def _is_listed(self, name: str) -> bool:
        return name in self.nodes or name in self.desk.wanted.labels

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs `work` beside everything else; what it raises is logged and ends nothing but itself.

        Before and after `running` nothing is begun any more: a back-off that ends then starts no node.
        """
        if self._group is None or self._released:
            work.close()
            return
        task = self._group.create_task(self._guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # where the end came before it began

    def _keep(self, run: Callable[[], Awaitable[None]], name: str, *, only_shortages: bool = False) -> None:
        self.spawn(persistently(run, name, self.note, only_shortages=only_shortages), name)

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
        nodes, rolled_back = self.nodes.values(), self.desk.undecided.text
        authority, unserved = self.renewal.authority(), self.metrics.unserved
        document = views.status_document(
            self.spec, self.desk.wanted, nodes, self._user, now, rolled_back, authority, unserved
        )
        return {**document, "ca_rotation": self.authority.document()}

    def environment(self, name: str) -> dict[str, Any]:
        """For a node that something else starts. Raises NotFound."""
        return self.machine.outside(self.operation.named(name).spec)

    async def start(self, names: list[str]) -> None:
        """See Operation.start."""
        await self.operation.start(names)

    async def stop(self, names: list[str]) -> None:
        """See Operation.stop."""
        await self.operation.stop(names)

    async def restart(self, names: list[str]) -> None:
        """See Operation.restart."""
        await self.operation.restart(names)

    async def adopt(self, name: str, pid: int | None, seconds: float | None) -> dict[str, Any]:
        """See Adoption.adopt. Raises NotFound too."""
        self.operation.refuse_if_ending()
        taken = await self._adoption.adopt(name, self.operation.named(name), pid, seconds)
        return {"node": name, "pid": taken.pid, "command": taken.command}

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """See PolicyDesk.allow. UsageError where `identity` would lock out a node that is managed here."""
        self.operation.refuse_if_ending()
        managed = self.spec.node(name)
        own = None if managed is None else identity_of(self.spec, managed.name)
        if own is not None and identity not in {None, own}:
            raise UsageError(
                f"{name} is managed here and has the identity {readable(own)}",
                do="leave --identity out",
            )
        return await self._told(Verdict.ALLOW, name, identity, self.desk.allow(name, identity))

    async def deny(self, name: str, compromised: bool = False, since: float = 0.0) -> dict[str, Any]:
        """See PolicyDesk.deny, and for a compromised node Containment.condemn."""
        self.operation.refuse_if_ending()
        change = self._containment.condemn(name, since) if compromised else self.desk.deny(name)
        return await self._told(Verdict.DENY, name, None, change, "compromised" if compromised else None)

    async def revoke(
        self, what: str, reason: RevocationReason = RevocationReason.UNSPECIFIED
    ) -> dict[str, Any]:
        """See Revocation.revoke."""
        self.operation.refuse_if_ending()
        change = self._revocation.revoke(what, reason)
        return await self._told(Verdict.DENY, what, None, change, "revoked")

    async def serve(self, names: list[str]) -> dict[str, Any]:
        """See Renewal.serve: of what `certs import` and `certs renew --offline` have installed."""
        self.operation.refuse_if_ending()
        outcomes = (await self.renewal.serve(names, "installed")).values()
        return {"done": all(each.done for each in outcomes), "nodes": [each.document() for each in outcomes]}

    async def told_of_issue(self, serial: str) -> dict[str, Any]:
        """See Revocation.told_of_issue."""
        return await self._revocation.told_of_issue(serial)

    async def certificates(self) -> dict[str, Any]:
        """See Revocation.certificates."""
        return {**await self._revocation.certificates(), "ca_rotation": self.authority.document()}

    async def _told(
        self,
        verdict: Verdict,
        name: str,
        identity: str | None,
        change: Awaitable[dict[str, Any]],
        reason: str | None = None,
    ) -> dict[str, Any]:
        """Does it, and has it on record who was to be let in or kept out, and how that ended."""
        ended, seen = "not done", self.desk.undecided.notes
        try:
            answer = await change
            ended = f"policy generation {answer['generation']}"
            await self.rollbacks.decided(seen)
        except NotAcknowledged as error:
            ended = str(error)
            if verdict is Verdict.DENY:  # it is kept, whoever has not said so yet
                await self.rollbacks.decided(seen)
            raise
        finally:
            self.bus.publish(
                SecurityEvent(
                    EventType.POLICY_CHANGED,
                    Severity.NOTICE,
                    "",
                    time.time(),
                    peer=name[:MAX_NAME_BYTES],
                    result=str(verdict),
                    reason=reason,
                    identity=None if identity is None else escape(readable(identity), 512),
                    detail=ended,
                )
            )
        return answer

    async def shell(self, name: str, operator: Operator) -> dict[str, Any]:
        """See Shells.open."""
        self.operation.refuse_if_ending()
        return await self.shells.open(name, operator)

    async def tool(self, name: str, operator: Operator, program: str) -> dict[str, Any]:
        """See Shells.open_tool."""
        self.operation.refuse_if_ending()
        return await self.shells.open_tool(name, operator, program)

    @property
    def overlay(self) -> Overlay:
        return self.desk.wanted.overlay

    async def reload(self) -> dict[str, Any]:
        """Re-reads the configuration and applies the difference; denials come first.

        Raises DistsecError, having changed nothing, where the new one cannot be taken; AppliedInPart where
        something fails afterwards. Either way it is an event already.
        """
        return await self._reloader.reload()

    def _new_policy(self, wanted: Wanted) -> None:
        self._revocation.lists.changed()
        self.metrics.set_listed((*wanted.labels, *self.shells.labels()), self.shells.tool_labels())
        for node in self.nodes.values():
            self.metrics.set_policy(node.name, wanted.generation, node.observed.generation)
