"""One managed node at runtime: feeds `core.lifecycle` and performs the effects that it answers with.

What its agent says comes in by `supervisor.listening`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command, Snapshot
from distsec.beam.probe import ProbeResult
from distsec.beam.witness import Witnessed
from distsec.core import lifecycle
from distsec.core import node_status as life
from distsec.errors import DistsecError
from distsec.model.cluster import Certificate, NodeSpec, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor.boot import start_failed, watch_boot
from distsec.supervisor.difference import restarts
from distsec.supervisor.hub import Hub
from distsec.supervisor.listening import COMMAND_SECONDS, Listener
from distsec.supervisor.machine import Process, Server
from distsec.supervisor.observed import Observed
from distsec.supervisor.proof import Judgement, Verdict, judge, judge_probe


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
        self._beam: tuple[int, int] | None = None  # pid and start time of the VM that said hello
        self._launched = spec  # what `process` was started with; its port is the one that it was given
        self._listener = Listener(self)
        self._has_slot = False
        self._queue: deque[life.Event] = deque()
        self._feeding = False
        self._changed: set[asyncio.Future[None]] = set()
        self._server: Server | None = None

    # ---- what the supervisor calls

    @property
    def server(self) -> Server:
        assert self._server is not None, "open() comes first"
        return self._server

    async def open(self) -> None:
        """Listens for its agent. Raises DistsecError."""
        self.show_certificate()
        self.hub.metrics.set_node_state(self.name, self.status.state)
        ears = self._listener
        self._server = self.hub.machine.server(
            self.spec, self.accept_peer, ears.on_message, ears.on_lost, ears.on_refused
        )
        await self._server.start()
        if self.status.rules.external:
            await self._ready_epmd()

    async def _ready_epmd(self) -> None:
        """Whoever starts the node finds an epmd; if not, it is no reason to let go of a node that may run."""
        try:
            await self.hub.machine.ready_epmd(self.spec)
        except DistsecError as error:
            self.hub.note("warning", str(error), node=self.name)

    async def close(self) -> None:
        """Lets go of it: whatever runs goes on."""
        self._listener.closed = True
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
        self._take(process, self._as_configured())
        self.feed(life.Adopted(process.pid))
        return True

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
        not_after = self.certificate.not_after if self.certificate else None
        self.hub.metrics.set_certificate(self.name, not_after)

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
                for effect in effects:
                    self._perform(effect)
        finally:
            self._feeding = False
            self._after_change()

    async def until(self, condition: Callable[[life.NodeStatus], bool]) -> None:
        """Waits until the node's status fulfils `condition`."""
        while not condition(self.status):
            future = asyncio.get_running_loop().create_future()
            self._changed.add(future)
            try:
                await future
            finally:
                self._changed.discard(future)

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
        self._listener.tick(asyncio.get_running_loop().time())
        if self.status.unclear:
            self.feed(life.Tick())

    # ---- effects

    def _perform(self, effect: life.Effect) -> None:
        hub = self.hub
        match effect:
            case life.StartProcess():
                hub.spawn(self._start(), f"start {self.name}")
            case life.Probe(attempt):
                hub.spawn(self._prove(attempt), f"proof of {self.name}")
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
                asyncio.get_running_loop().call_at(at, self.feed, life.Tick())
            case life.Publish(type, severity, reason, detail):
                self._publish(type, severity, reason, detail)

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
        except DistsecError as error:
            self._start_failed(start_failed(error))
        except Exception as error:
            self.hub.note("error", "start failed unexpectedly", node=self.name, error=repr(error))
            self._start_failed(life.StartFailed(f"unexpected {type(error).__name__}", lasting=False))
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
        self.process, self._launched = process, launched
        self.hub.spawn(self._watch(process), f"watch {self.name}")

    async def _watch(self, process: Process) -> None:
        ended = await process.wait()
        self._look_for_refusal()
        if self.process is process:  # whatever the table makes of it: nobody is that process any more
            self.process = self._beam = None
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
        self.hub.metrics.set_agent(self.name, self.status.agent)
        self.hub.changed()
        for future in tuple(self._changed):
            if not future.done():
                future.set_result(None)

    # ---- the proof

    async def _prove(self, attempt: int) -> None:
        try:
            verdict = await self._judge()
        except (DistsecError, OSError) as error:
            verdict = Verdict(Judgement.UNCLEAR, str(error))
        except Exception as error:
            self.hub.note("error", "proof failed unexpectedly", node=self.name, error=repr(error))
            verdict = Verdict(Judgement.UNCLEAR, f"unexpected {type(error).__name__}")
        match verdict.judgement:
            case Judgement.PROVEN:
                self.feed(life.GuardProven(attempt))
            case Judgement.UNCLEAR:
                self.feed(life.GuardUnclear(attempt, verdict.what, verdict.unanswered))
            case Judgement.DISPROVEN:
                self.feed(life.GuardDisproven(attempt, verdict.what))

    async def _judge(self) -> Verdict:
        """A fresh snapshot, the sockets as the kernel has them, and the port as a stranger finds it."""
        process, beam = self.process, self.server.pid
        if process is None or beam is None:
            return Verdict(Judgement.UNCLEAR, "no hello from its agent")
        reply = await self.server.command(Command.STATUS, {}, COMMAND_SECONDS)
        snapshot: Snapshot = reply.fields["snapshot"]
        self._listener.show(snapshot)
        wanted = self.hub.desk.wanted
        if snapshot.policy_digest != wanted.digest and not self.hub.desk.busy:
            pushed = await self.hub.desk.push(self)
            snapshot = replace(snapshot, policy_digest=pushed.fields["digest"])
            wanted = self.hub.desk.wanted
        listeners = await asyncio.to_thread(process.listeners)
        expected = self.hub.machine.expected(self._launched, wanted.digest)
        verdict = judge(expected, snapshot, listeners, beam)
        if verdict.judgement is not Judgement.PROVEN:
            return verdict
        seen = await self.hub.machine.probe(self._launched, self._knocked)
        self.hub.renewal.saw(self, seen.certificate)
        return judge_probe(self.hub.spec.carrier, seen)

    async def served(self) -> ProbeResult:
        """What its port shows to whoever connects, as we do."""
        return await self.hub.machine.served(self._launched, self._knocked)

    async def shown(self, pair: Pair) -> Witnessed:
        """What becomes of whoever shows it the certificate of `pair`, which it is to refuse."""
        loop = asyncio.get_running_loop()
        return await self.hub.machine.show_certificate(
            self._launched, pair, lambda address: self.observed.showed_a_witness(address, loop.time())
        )

    def _knocked(self, address: str) -> None:
        self.observed.knocked(address, asyncio.get_running_loop().time())

    # ---- its agent

    def accept_peer(self, pid: int, uid: int) -> bool:
        """Whether that process may be this node's agent: below what was started, and later the very same.

        An external VM is watched itself, so that what is below it is of the node, but never its agent.
        """
        process = self.process
        if self.status.rules.external:
            if process is None:
                return uid == os.geteuid()
            return pid == process.pid and process.contains(pid)
        if process is None or not process.contains(pid):
            return False
        if self._beam is not None and self.hub.machine.start_time(self._beam[0]) == self._beam[1]:
            return pid == self._beam[0]
        return True

    def take_hello(self, pid: int, started: int) -> bool:
        """Its agent says hello from that VM. False: it is gone already."""
        self._beam = (pid, started)
        if self.status.rules.external and self.process is None:
            try:
                self._take(self.hub.machine.watch(pid), self._as_configured())
            except DistsecError:
                self._beam = None
                return False
        return True

    def applied(self, generation: int, digest: str) -> None:
        """It has acknowledged that policy."""
        self.observed.applied(generation, digest)
        self._listener.show_policy()

    def _as_configured(self) -> NodeSpec:
        """What a start of this moment is given, the port included."""
        return replace(self.spec, port=self.hub.machine.ports[self.name])

    def _rules(self, spec: NodeSpec) -> life.Rules:
        return life.Rules.of(
            spec,
            start_deadline_seconds=self.hub.spec.start_deadline_seconds,
            stop_deadline_seconds=self.hub.spec.stop_deadline_seconds,
        )
