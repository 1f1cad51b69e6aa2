"""One managed node at runtime: feeds `core.lifecycle` and performs the effects that it answers with.

What its agent says comes in by `supervisor.listening`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.beam.probe import ProbeResult
from distsec.beam.witness import Witnessed
from distsec.core import lifecycle
from distsec.core import node_status as life
from distsec.errors import DistsecError
from distsec.model.cluster import Certificate, NodeSpec, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor.acceptance import Acceptance
from distsec.supervisor.boot import start_failed, unforeseen, watch_boot
from distsec.supervisor.difference import restarts
from distsec.supervisor.external import Process
from distsec.supervisor.hub import Hub
from distsec.supervisor.listening import COMMAND_SECONDS, Listener
from distsec.supervisor.machine import Server
from distsec.supervisor.observed import Observed
from distsec.supervisor.persistence import carry_out
from distsec.supervisor.proving import Proving

LOOK_SECONDS = 1.0
"""On the way to what is due: a look that comes later than by this was kept from coming, as was all else."""

UNMENDED_EVERY = 60
"""Of the tries to make an agent socket anew so many are told of once."""


class ManagedNode:
    """Belongs to one event loop. `feed` is the way in for everything that happens to the node."""

    def __init__(self, hub: Hub, spec: NodeSpec) -> None:
        self.hub = hub
        self.name = str(spec.name)
        self.spec = spec
        self.status = life.NodeStatus(self._rules(spec))
        self.process: Process | None = None
        self.observed = Observed(spec, hub.bus, hub.metrics, hub.machine)
        self.certificate: Certificate | None = None
        self.acceptance = Acceptance(self)
        self.launched = spec  # what `process` was started with; its port is the one that it was given
        self.listener = Listener(self)
        self._proving = Proving(self)
        self._has_slot = False
        self._queue: deque[life.Event] = deque()
        self._feeding = False
        self._changed: set[asyncio.Future[None]] = set()
        self._server: Server | None = None
        self._unmended = 0
        self._resumed_at = 0.0

    # ---- what the supervisor calls

    @property
    def server(self) -> Server:
        assert self._server is not None, "open() comes first"
        return self._server

    @property
    def user(self) -> str | None:  # whom it runs as, or will; None: as ourselves
        return (self.launched if self.process is not None else self.spec).user

    async def open(self) -> None:
        """Listens for its agent. Raises DistsecError."""
        await self.hub.machine.users.settle(self.spec, self.hub.note)
        self.show_certificate()
        self.hub.metrics.set_node_state(self.name, self.status.state)
        ears = self.listener
        self._server = self.hub.machine.server(
            self.spec, self.acceptance.accept_peer, ears.on_message, ears.on_lost, ears.on_refused
        )
        await self._server.start()
        if self.status.rules.external:
            await self._ready_epmd()

    async def mend(self) -> None:
        """Once a second: its agent must find the socket when it comes back."""
        try:
            mended = await self.server.mend()
        except DistsecError as error:
            self._unmended += 1
            if self._unmended % UNMENDED_EVERY == 1:
                self.hub.note("error", "its agent socket is gone", node=self.name, error=str(error))
            return
        self._unmended = 0
        if mended:
            self.hub.note("warning", "its agent socket was gone, and is made anew", node=self.name)

    async def _ready_epmd(self) -> None:
        """Whoever starts the node finds an epmd; if not, it is no reason to let go of a node that may run."""
        try:
            await self.hub.machine.ready_epmd(self.spec)
        except DistsecError as error:
            self.hub.note("warning", str(error), node=self.name)

    async def close(self) -> None:
        """Lets go of it: whatever runs goes on."""
        self.listener.closed = True
        if self._server is not None:
            await self._server.close()
        if self.process is not None:
            await self.process.abandon()
            self.process = None

    async def adopt(self) -> bool:
        """Takes over a process of an earlier orchestrator, if there is one."""
        process = None if self.status.rules.external else await self.hub.machine.adopt(self.spec)
        if process is None:
            return False
        self.take(process)
        self.feed(life.Adopted(process.pid))
        if (elsewhere := self.hub.machine.foundlings.moved_from(self.spec)) is not None:
            what = "its agent looks for its orchestrator in another state directory; it is started anew"
            self.hub.note("warning", what, node=self.name, directory=elsewhere)
            self.feed(life.StopRequested())
            self.feed(life.StartRequested())
        return True

    def take(self, process: Process) -> None:
        """From now on that process is the node's."""
        self._take(process, self._as_configured())

    def rekeyed(self) -> None:
        """It has a new certificate and a new agent key; whoever proves itself with the old one is nobody."""
        self.show_certificate()
        self.server.rekey(self.hub.machine.agent_key(self.spec))

    def show_certificate(self) -> None:
        """What is in its directory is what `status` shows; a file that is spoiled there says nothing, and
        costs no other node anything.
        """
        try:
            self.certificate = self.hub.machine.certificate(self.spec)
        except DistsecError as error:
            self.hub.note("warning", "a node's certificate cannot be read", node=self.name, error=str(error))
            return
        found = self.certificate
        not_before, not_after = (found.not_before, found.not_after) if found else (None, None)
        self.hub.metrics.set_certificate(self.name, not_before, not_after)

    def reconfigure(self, spec: NodeSpec) -> None:
        """New rules at once; whatever the node was started with from its next start on, and that is nobody's
        to bring about where something else starts it (`difference`)."""
        if self.status.rules.external and restarts(self.spec, spec):
            self.hub.note("notice", "a change takes effect when the node is started anew", node=self.name)
        self.spec = spec
        self.status = replace(self.status, rules=self._rules(spec))

    def feed(self, event: life.Event) -> None:
        """Something has happened. Effects are performed, or begun, before this returns."""
        self._queue.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._queue:
                now = asyncio.get_running_loop().time()
                self.status, effects = lifecycle.step(
                    self.status,
                    self._queue.popleft(),
                    now,
                    random.random(),  # noqa: S311 - jitter
                )
                carry_out(effects, self._perform, self.hub.note, self.name)
        finally:
            self._feeding = False
            self._after_change()

    async def until(self, condition: Callable[[life.NodeStatus], bool]) -> life.NodeStatus:
        """Waits until the node's status fulfils `condition`; returns the one that did."""
        while not condition(self.status):
            future = asyncio.get_running_loop().create_future()
            self._changed.add(future)
            try:
                await future
            finally:
                self._changed.discard(future)
        return self.status

    async def until_connected(self) -> None:
        await self.until(lambda status: status.agent)

    @property
    def takes_policy(self) -> bool:
        """Also one that has not said hello yet: it may have read its file before the change, and link."""
        status = self.status
        starting = status.state is NodeState.STARTING and status.pid is not None
        return status.agent or status.state is NodeState.RUNNING or starting

    @property
    def active_digest(self) -> str | None:
        return self.observed.digest

    def tick(self) -> None:
        """Once a second: whatever is to be noticed without being told."""
        status = self.status
        if status.state is NodeState.STARTING or (
            status.state is NodeState.STOPPED and status.rules.external
        ):
            self._look_for_refusal()
        self.listener.tick(asyncio.get_running_loop().time())
        if self.status.unclear:
            self.feed(life.Tick())

    # ---- effects

    def _perform(self, effect: life.Effect) -> None:
        hub = self.hub
        match effect:
            case life.StartProcess():
                hub.spawn(self._start(), f"start {self.name}")
            case life.Probe(attempt):
                hub.spawn(self._proving.prove(attempt), f"proof of {self.name}")
            case life.AskAgentToStop():
                hub.spawn(self._ask_to_stop(), f"stop {self.name}")
            case life.SendTerm():
                self.signal(signal.SIGTERM)
                self.signal(signal.SIGCONT)  # a stopped process takes no TERM
            case life.SendKill():
                self.signal(signal.SIGKILL)
            case life.ForgetProcess():
                hub.machine.forget(self.spec)
            case life.ScheduleTick(at):
                self._tick_at(at)
            case life.Publish(type, severity, reason, detail):
                self._publish(type, severity, reason, detail)

    def _tick_at(self, at: float) -> None:
        loop = asyncio.get_running_loop()
        look = min(at, loop.time() + LOOK_SECONDS)
        loop.call_at(look, self._look, look, at)

    def _look(self, expected: float, at: float) -> None:
        """A Tick where one is due, and before it for how long this process was stopped: once a stop."""
        now = asyncio.get_running_loop().time()
        stopped = now - max(expected, self._resumed_at)
        if stopped > LOOK_SECONDS:
            self._resumed_at = now
            self.feed(life.Resumed(stopped + LOOK_SECONDS))  # since the look before this one, at the most
        if now < at:
            self._tick_at(at)
        else:
            self.feed(life.Tick())

    async def _start(self) -> None:
        await self.hub.starts.acquire()
        self._has_slot = True
        if self.status.state is not NodeState.STARTING:
            self._start_failed(life.StartFailed("a stop was requested first"))
            return
        if (why := self.hub.startable(self.name)) is not None:
            self._start_failed(life.StartFailed(why))
            return
        launched = self._as_configured()
        try:
            process = await self.hub.machine.start(self.spec, self.hub.desk.wanted.document)
            self.show_certificate()  # somebody may have given it another meanwhile
        except Exception as error:
            if unforeseen(error):
                self.hub.note("error", "start failed unexpectedly", node=self.name, error=repr(error))
            self._start_failed(start_failed(error))
        else:
            self._take(process, launched)
            self.feed(life.ProcessStarted(process.pid))
            self.hub.spawn(watch_boot(self.hub.machine, process.pid, self), f"boot of {self.name}")

    def _start_failed(self, event: life.StartFailed) -> None:
        self._give_back_slot()  # first: the event may lead to the next start, which takes one of its own
        self.feed(event)

    def _give_back_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self.hub.starts.release()

    def _take(self, process: Process, launched: NodeSpec) -> None:
        self.process, self.launched = process, launched
        self.hub.spawn(self._watch(process), f"watch {self.name}")

    async def _watch(self, process: Process) -> None:
        ended = await process.wait()
        self._look_for_refusal()
        if self.process is process:  # whatever the table makes of it: nobody is that process any more
            self.process = self.acceptance.beam = None
        code = -ended.signal if ended.signal is not None else ended.code
        self.feed(life.ProcessExited(process.pid, code))

    def _look_for_refusal(self) -> None:
        since = self.process.start_time if self.process is not None else None
        if (refused := self.hub.machine.take_refusal(self.spec, since)) is not None:
            self.feed(life.GuardRefused(*refused))

    def signal(self, number: signal.Signals) -> None:
        """To its process and those of its group, where there is one."""
        if self.process is None:
            return
        try:
            self.process.signal_group(number)
        except PermissionError:
            self.hub.note("error", "may not signal the node", node=self.name, signal=number.name)

    async def _ask_to_stop(self) -> None:
        try:
            await self.server.command(Command.STOP, {}, COMMAND_SECONDS)
        except AgentCommandFailed as error:
            if error.reason != "lost":  # it may stop before it has answered
                self.hub.note("warning", "the agent did not stop the node", node=self.name, why=error.reason)

    def _publish(self, type: EventType, severity: Severity, reason: str | None, detail: str | None) -> None:
        launch = self.observed.launch if type in (EventType.AGENT_CONNECTED, EventType.AGENT_LOST) else None
        text = escape(detail, 1024) if detail is not None else None
        self.hub.bus.publish(
            SecurityEvent(type, severity, self.name, time.time(), reason=reason, detail=text, launch=launch)
        )

    def _after_change(self) -> None:
        if self.status.state is not NodeState.STARTING or self.status.unanswered:
            self._give_back_slot()
        if self.status.pid is None:
            self.hub.desk.node_gone(self.name)
            if self.status.state is not NodeState.STARTING:
                self.observed.ended()
                self.hub.memory.gone(self.name)
        self.hub.metrics.set_node_state(self.name, self.status.state)
        self.hub.metrics.set_guard_missing(self.name, self.status.why is life.Why.CARRIER_NOT_IN_FORCE)
        self.hub.metrics.set_agent(self.name, self.status.agent)
        self.hub.changed()
        for future in tuple(self._changed):
            if not future.done():
                future.set_result(None)

    # ---- what is seen from outside

    async def served(self) -> ProbeResult:
        """See Proving.served."""
        return await self._proving.served()

    async def shown(self, pair: Pair) -> Witnessed:
        """See Proving.shown."""
        return await self._proving.shown(pair)

    # ---- its agent

    def take_hello(self, pid: int, started: int) -> bool:
        """See Acceptance.take_hello."""
        return self.acceptance.take_hello(pid, started)

    def applied(self, generation: int, digest: str) -> None:
        """It has acknowledged that policy."""
        self.observed.applied(generation, digest)
        self.listener.show_policy()

    def _as_configured(self) -> NodeSpec:
        """What a start of this moment is given, the port included."""
        return replace(self.spec, port=self.hub.machine.ports[self.name])

    def _rules(self, spec: NodeSpec) -> life.Rules:
        return life.Rules.of(
            spec,
            start_deadline_seconds=self.hub.spec.start_deadline_seconds,
            stop_deadline_seconds=self.hub.spec.stop_deadline_seconds,
        )
