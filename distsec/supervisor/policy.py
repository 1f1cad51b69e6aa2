"""The wanted policy and its way to the nodes: performs what `core.rollout` decides.

Only here are policy files written and policies pushed. One change at a time; a node that misses one gets the
wanted policy again as soon as a heartbeat shows that it has another (`ManagedNode`), and from its file when
it starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command, Reply
from distsec.beam.protocol import Argument
from distsec.core import rollout
from distsec.core.rollout import Content
from distsec.core.wanted import Overlay, listed_names, wanted_policy
from distsec.errors import DistsecError, NotAcknowledged, NotFound, UsageError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.names import NodeName, glob_matches
from distsec.model.text import escape
from distsec.supervisor.machine import Machine, Server

PUSH_SECONDS = 10.0
"""For a push outside of a rollout. The node waits up to 4 s for the links that it ends."""

_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]{1,255}){1,8}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every node is to have in force. `digest`: SHA-256 of the document, as agents report it."""

    overlay: Overlay
    prepared: frozenset[str]
    document: bytes
    digest: str
    labels: tuple[str, ...]  # the names and patterns on it: what metrics may call a peer

    @property
    def generation(self) -> int:
        return self.overlay.generation


class Target(Protocol):
    """What the desk needs of a node."""

    name: str
    spec: NodeSpec

    @property
    def server(self) -> Server: ...
    @property
    def takes_policy(self) -> bool: ...  # it runs, or its agent is connected
    @property
    def active_digest(self) -> str | None: ...
    async def until_connected(self) -> None: ...
    def applied(self, generation: int, digest: str) -> None: ...  # it has put that in force


class PolicyDesk:
    """Keeps the wanted policy. `targets` answers with the managed nodes of the moment."""

    def __init__(
        self,
        spec: ClusterSpec,
        machine: Machine,
        targets: Callable[[], Mapping[str, Target]],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        on_change: Callable[[Wanted], object] = lambda wanted: None,
    ) -> None:
        self.spec = spec
        self.busy = False
        self._machine = machine
        self._targets = targets
        self._spawn = spawn
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._events: asyncio.Queue[rollout.Event] | None = None
        # A generation of its own for each orchestrator: what an earlier one pushed last is not known, only
        # that it is not above what was saved (core.rollout, 2).
        self.wanted = self._make(machine.load_overlay().advanced())
        self._saved = False
        self._disk = threading.Lock()  # held by threads only, never by the event loop

    def _save_first(self) -> None:
        """Saves that generation before anybody is told of it; not before, so that an orchestrator that cannot
        start (a port in use, no `erl`) leaves the disk as it was. Blocks; for a thread.
        """
        with self._disk:
            if not self._saved:
                self._machine.save_overlay(self.wanted.overlay)
                self._saved = True

    def _save(self, overlay: Overlay) -> None:
        """Blocks; for a thread. A first save that is still under way comes before it, and none after it."""
        with self._disk:
            self._machine.save_overlay(overlay)
            self._saved = True

    def write_files(self) -> None:
        """Brings the file of every node up to date, whether it runs or not. Raises StoreError. Blocks; for a
        thread.
        """
        self._save_first()
        for target in tuple(self._targets().values()):
            self._machine.write_policy(target.spec, self.wanted.overlay, self.wanted.document)

    async def push(self, target: Target, seconds: float = PUSH_SECONDS) -> Reply:
        """Sends the wanted policy to one node. Raises AgentCommandFailed."""
        return await self._send(target, self.wanted, seconds)

    def node_gone(self, name: str) -> None:
        """Its process has ended: nobody waits for its answer any longer."""
        if self._events is not None:
            self._events.put_nowait(rollout.NodeGone(name))

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """Two-phase. Raises NameInvalid, UsageError, NotAcknowledged (rolled back), StoreError."""
        name = str(NodeName.parse(name))
        if identity is not None and not _IDENTITY.fullmatch(identity):
            raise UsageError(
                f"{escape(identity, 80)} is no identity", do=f"write spiffe://{self.spec.name}/path"
            )
        async with self._lock:
            base = self.wanted
            configured = name in map(str, self.spec.allowed_nodes)
            opened = base.overlay.allowing(name, identity, configured=configured)

            def make(content: Content, generation: int) -> Wanted:
                overlay = base.overlay if content is Content.WITHOUT else opened
                prepared = base.prepared | {name} if content is Content.PREPARED else base.prepared - {name}
                return self._make(replace(overlay, generation=generation), prepared)

            try:
                outcome = await self._drive(rollout.begin_allow, make)
            except DistsecError:
                if self.wanted is base:
                    raise  # nothing was saved, and nobody told
                # Saved is WITHOUT, or OPEN that nobody was told of: what is above both says WITHOUT.
                self._adopt(make(Content.WITHOUT, base.generation + rollout.ROLLBACK_OFFSET))
                raise
        if not outcome.done:
            raise NotAcknowledged(
                f"{name} is not allowed: {_who(outcome.missing)}; rolled back",
                missing=tuple(outcome.missing),
                do="see to these nodes (`distsec status`) and repeat it",
            )
        return self._answer(name, outcome)

    async def deny(self, name: str) -> dict[str, Any]:
        """Persisted first. Raises NameInvalid, NotFound, StoreError (nothing is changed), NotAcknowledged."""
        name = str(NodeName.parse(name))
        async with self._lock:
            base = self.wanted
            denied = base.overlay.denying(name)
            if not self._known(name) and name not in base.overlay.deny:
                raise NotFound(
                    f"{name} is on no list and fits no rule, so nobody admits it", do="check the name"
                )

            def make(content: Content, generation: int) -> Wanted:
                return self._make(replace(denied, generation=generation), base.prepared - {name})

            outcome = await self._drive(rollout.begin_deny, make)
        if not outcome.done:
            raise NotAcknowledged(
                f"{name} is denied, for good, but {_who(outcome.missing)}",
                missing=tuple(outcome.missing),
                do="these nodes take the denial up when they answer; stop them if that cannot wait",
            )
        return self._answer(name, outcome)

    async def reconfigure(
        self, spec: ClusterSpec, newly_allowed: frozenset[str], saved: Callable[[], object]
    ) -> Mapping[str, str]:
        """A reload: denials at once; who is newly allowed is admitted when all know of it. Returns who is
        missing.

        Calls `saved` once, as soon as the new policy is kept and before anybody is told of it; an error
        before that leaves everything as it was. Those that are missing keep the newcomers closed until they
        answer (`settle`). Nothing is rolled back then: the file is what the operator wants. Raises
        StoreError.
        """
        async with self._lock:
            old, self.spec = self.spec, spec
            overlay, prepared = self.wanted.overlay, self.wanted.prepared | newly_allowed
            kept = False

            def make(content: Content, generation: int) -> Wanted:
                return self._make(replace(overlay, generation=generation), prepared)

            def keep() -> None:
                nonlocal kept
                kept = True
                saved()

            try:
                outcome = await self._drive(rollout.begin_deny, make, keep)
            finally:
                if not kept:
                    self.spec = old
            return outcome.missing if outcome.missing else await self._open()

    async def settle(self) -> None:
        """Opens what a reload has prepared as soon as everybody has it in force. Called now and then."""
        if not self.wanted.prepared or self._lock.locked():
            return
        waiting = [node for node in self._targets().values() if node.takes_policy]
        if all(node.active_digest == self.wanted.digest for node in waiting):
            async with self._lock:
                await self._open()

    async def _open(self) -> Mapping[str, str]:
        if not self.wanted.prepared:
            return {}
        overlay = self.wanted.overlay

        def make(content: Content, generation: int) -> Wanted:
            return self._make(replace(overlay, generation=generation))

        return (await self._drive(rollout.begin_deny, make)).missing

    # ---- the interpreter of rollouts

    async def _drive(
        self,
        begin: Callable[..., rollout.Result],
        make: Callable[[Content, int], Wanted],
        saved: Callable[[], object] = lambda: None,
    ) -> rollout.Finish:
        """Performs a rollout to its end; calls `saved` after each save. A file that cannot be written stops
        no denial: it is raised afterwards.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[rollout.Event] = asyncio.Queue()
        targets = [name for name, target in self._targets().items() if target.takes_policy]
        deadline = self.spec.acknowledge_deadline_seconds
        state, effects = begin(self.wanted.generation, targets, loop.time(), deadline)
        failure: DistsecError | None = None
        self.busy, self._events = True, events
        try:
            while True:
                for effect in effects:
                    match effect:
                        case rollout.Save(generation, content):
                            await asyncio.to_thread(self._save, make(content, generation).overlay)
                            saved()
                        case rollout.WriteFiles(generation, content):
                            self._adopt(make(content, generation))
                            try:
                                await asyncio.to_thread(self.write_files)
                            except DistsecError as error:
                                failure = error
                        case rollout.Push(_, _, names):
                            for name in names:
                                task = self._ask(name, self.wanted, events, deadline)
                                self._spawn(task, f"push to {name}")
                        case rollout.Finish():
                            if failure is not None:
                                raise failure
                            return effect
                event: rollout.Event = rollout.Tick()
                try:
                    async with asyncio.timeout_at(state.due):
                        event = await events.get()
                except TimeoutError:
                    pass
                state, effects = rollout.step(state, event, loop.time())
        finally:
            self.busy, self._events = False, None

    async def _ask(
        self, name: str, wanted: Wanted, events: asyncio.Queue[rollout.Event], deadline: float
    ) -> None:
        """Pushes to one node until it answers; silence is the rollout's to judge."""
        target = self._targets().get(name)
        if target is None:
            events.put_nowait(rollout.NodeGone(name))
            return
        try:
            async with asyncio.timeout(deadline):
                while True:
                    await target.until_connected()
                    try:
                        await self._send(target, wanted, deadline)
                    except AgentCommandFailed as error:
                        if error.reason == "lost":
                            await asyncio.sleep(0.05)
                            continue
                        if error.reason != "timeout":
                            events.put_nowait(rollout.Refused(name, wanted.generation, error.reason))
                        return
                    events.put_nowait(rollout.Acknowledged(name, wanted.generation))
                    return
        except TimeoutError:
            return

    async def _send(self, target: Target, wanted: Wanted, seconds: float) -> Reply:
        if not self._saved:
            await asyncio.to_thread(self._save_first)
        cookies = self._machine.cookies(target.spec, wanted.overlay)
        arguments: dict[str, Argument] = {"document": wanted.document, "cookies": cookies}
        reply = await target.server.command(Command.POLICY, arguments, seconds)
        target.applied(reply.fields["generation"], reply.fields["digest"])
        return reply

    def _make(self, overlay: Overlay, prepared: frozenset[str] = frozenset()) -> Wanted:
        policy = wanted_policy(
            self.spec, overlay, self._machine.ports, issued_at=int(time.time()), prepared=prepared
        )
        document = self._machine.document(policy)
        labels = (*listed_names(self.spec, overlay), *(rule.pattern for rule in policy.rules))
        return Wanted(overlay, prepared, document, hashlib.sha256(document).hexdigest(), labels)

    def _adopt(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._on_change(wanted)

    def _known(self, name: str) -> bool:
        listed = listed_names(self.spec, self.wanted.overlay)
        patterns = [pattern for rule in self.spec.rules for pattern in rule.names]
        return name in listed or any(glob_matches(pattern, name) for pattern in patterns)

    def _answer(self, name: str, outcome: rollout.Finish) -> dict[str, Any]:
        return {
            "name": name,
            "generation": self.wanted.generation,
            "acknowledged": list(outcome.acknowledged),
            "missing": list(outcome.missing),
        }


def _who(missing: Mapping[str, str]) -> str:
    said = {rollout.NO_ANSWER: "has not acknowledged"}
    return ", ".join(f"{name} {said.get(why, f'refused it ({why})')}" for name, why in missing.items())
