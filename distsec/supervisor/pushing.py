"""Performs what `core.rollout` decides: saves, writes files, and sends policies to the nodes' agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command, Reply
from distsec.beam.protocol import Argument
from distsec.core import rollout
from distsec.core.rollout import Content
from distsec.core.wanted import Overlay
from distsec.errors import DistsecError
from distsec.model.cluster import NodeSpec
from distsec.model.cookies import CookieSet
from distsec.supervisor.machine import Machine, Server

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


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


class Desk(Protocol):
    """What the driver needs of the desk. Those that block are for threads."""

    wanted: Wanted
    saved: bool

    def save(self, overlay: Overlay) -> None: ...  # blocks
    def save_first(self) -> None: ...  # blocks; the overlay that nobody was told of yet
    def write_files(self) -> None: ...  # blocks
    def adopt(self, wanted: Wanted) -> None: ...


def cookie_arguments(cookies: CookieSet) -> dict[str, Argument]:
    """Of the agent's command `cookies`."""
    current, other = cookies.current, cookies.other
    arguments: dict[str, Argument] = {
        "step": cookies.step,
        "default": current.default,
        "peers": current.peers,
    }
    if other is not None:
        arguments |= {"other_default": other.default, "other_peers": other.peers}
    return arguments


def nothing() -> None:
    """For whoever need not hear of it."""


class Driver:
    """One rollout at a time; `busy` while there is one. `targets` answers with the nodes of the moment."""

    def __init__(
        self, desk: Desk, machine: Machine, targets: Callable[[], Mapping[str, Target]], spawn: Spawn
    ) -> None:
        self.busy = False
        self._desk = desk
        self._machine = machine
        self._targets = targets
        self._spawn = spawn
        self._events: asyncio.Queue[rollout.Event] | None = None

    def node_gone(self, name: str) -> None:
        """Its process has ended: nobody waits for its answer any longer."""
        if self._events is not None:
            self._events.put_nowait(rollout.NodeGone(name))

    async def drive(
        self,
        begin: Callable[..., rollout.Result],
        make: Callable[[Content, int], Wanted],
        condemned: frozenset[str],
        deadline: float,
        saved: Callable[[], object] = nothing,
        above: int = 0,
    ) -> rollout.Finish:
        """Performs a rollout to its end; calls `saved` after each save. A file that cannot be written stops
        no denial: it is raised afterwards. The `condemned` are not asked: they are being ended.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[rollout.Event] = asyncio.Queue()
        asked = (name for name, target in self._targets().items() if target.takes_policy)
        targets = [name for name in asked if name not in condemned]
        state, effects = begin(max(self._desk.wanted.generation, above), targets, loop.time(), deadline)
        failure: DistsecError | None = None
        self.busy, self._events = True, events
        try:
            while True:
                for effect in effects:
                    match effect:
                        case rollout.Save(generation, content):
                            await asyncio.to_thread(self._desk.save, make(content, generation).overlay)
                            saved()
                        case rollout.WriteFiles(generation, content):
                            self._desk.adopt(make(content, generation))
                            try:
                                await asyncio.to_thread(self._desk.write_files)
                            except DistsecError as error:
                                failure = error
                        case rollout.Push(_, _, names):
                            for name in names:
                                task = self._ask(name, self._desk.wanted, events, deadline)
                                self._spawn(task, f"push to {name}")
                            state, _ = rollout.step(state, rollout.Asked(), loop.time())
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
                        await self.send(target, wanted, deadline)
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

    async def send(self, target: Target, wanted: Wanted, seconds: float) -> Reply:
        """Sends `wanted` to one node. Raises AgentCommandFailed, StoreError."""
        if not self._desk.saved:
            await asyncio.to_thread(self._desk.save_first)
        cookies = self._machine.cookies(target.spec, wanted.overlay)
        if cookies is not None and cookies.other is not None:
            # In a rotation a name has two. First, so that there is no moment with a new name and one alone.
            with contextlib.suppress(AgentCommandFailed):  # of a lost one the next command says so
                await target.server.command(Command.COOKIES, cookie_arguments(cookies), seconds)
        told = {} if cookies is None else cookies.current.peers
        arguments: dict[str, Argument] = {"document": wanted.document, "cookies": told}
        reply = await target.server.command(Command.POLICY, arguments, seconds)
        target.applied(reply.fields["generation"], reply.fields["digest"])
        return reply
