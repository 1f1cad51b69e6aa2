"""One node's way to another certificate: installed, read, and seen on the wire before it is called done.

Whatever fails leaves the node with what it serves, and the reason why. `renewal` says when; here is how.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.core.renewal import Life
from distsec.errors import CommandFailed, DistsecError
from distsec.model.cluster import NodeState
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor.hub import Hub
from distsec.supervisor.link_proof import Links
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.threads import to_its_end

RELOAD_SECONDS = 10.0
SERVED_SECONDS = 15.0
"""Within which a node that has read its new certificate must be seen to serve it."""

REJECTED = "certificate_rejected"
"""The agent's word for a certificate, key or bundle that it does not take (docs/port-protocol.md)."""

_POLL_SECONDS = 0.05
_GONE = frozenset({NodeState.STOPPED, NodeState.FATAL, NodeState.BACKOFF})

Issue = Callable[[ManagedNode], Pair | None]
"""Installs a new pair for the node; returns the one before it. Blocks; raises DistsecError."""


class Cluster(Hub, Protocol):
    """What is needed of the supervisor."""

    nodes: dict[str, ManagedNode]

    @property
    def ending(self) -> bool: ...


@dataclass(slots=True)
class Outcome:
    """Of one node. `error` None: what it has is served, or will be when it starts (`running` False)."""

    name: str
    serial: str | None = None
    not_after: int | None = None
    before: str | None = None
    running: bool = False
    links: Links = field(default_factory=Links)
    error: str | None = None
    failure: DistsecError | OSError | None = None  # what `error` says

    @property
    def rejected(self) -> bool:
        """Whether the node would not have the new one, so that the old one is installed again."""
        return isinstance(self.failure, AgentCommandFailed) and self.failure.reason == REJECTED

    @property
    def done(self) -> bool:
        return self.error is None and not self.links.failed

    def document(self) -> dict[str, Any]:
        """One entry of the answer to `certs renew`."""
        failed = [f"link with {peer}: {why}" for peer, why in sorted(self.links.failed.items())]
        return {
            "node": self.name,
            "done": self.done,
            "served": self.running and self.error is None,
            "serial": self.serial,
            "not_after": self.not_after,
            "running": self.running,
            "links_proven": sorted(self.links.proven),
            "links_left": dict(sorted(self.links.left.items())),
            "why": escape("; ".join(filter(None, [self.error, *failed])), 2048) or None,
        }


class Serving:
    """Belongs to one event loop. `lives`: by node, the certificate that is installed for it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.lives: dict[str, Life] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._told: dict[str, str] = {}  # by node: why it could not be read

    @asynccontextmanager
    async def holding(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Nobody else changes the pairs of these nodes meanwhile."""
        async with AsyncExitStack() as stack:
            for name in sorted(names):  # in one order, so that two who want several never wait for each other
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            yield

    def is_held(self, name: str) -> bool:
        return name in self._locks and self._locks[name].locked()

    async def reread(self, node: ManagedNode) -> bool:
        """Looks at what is installed for it. True: it is another certificate than was known."""
        try:
            life = await asyncio.to_thread(self._cluster.machine.credentials.life, node.spec)
        except DistsecError as error:
            if self._told.get(node.name) != str(error):
                self._cluster.note(
                    "warning", "a certificate cannot be read", node=node.name, error=str(error)
                )
            self._told[node.name] = str(error)
            return False
        self._told.pop(node.name, None)
        known = self.lives.get(node.name)
        self.lives[node.name] = life
        return known is not None and known.serial != life.serial

    def forget(self, name: str) -> None:
        """The node is no longer managed."""
        for kept in (self.lives, self._locks, self._told):
            kept.pop(name, None)

    async def swap(self, node: ManagedNode, issue: Issue) -> Outcome:
        """Up to the proof that the new certificate is served."""
        outcome = Outcome(node.name, before=node.certificate.serial if node.certificate else None)
        credentials = self._cluster.machine.credentials
        before: Pair | None = None
        try:
            before = await to_its_end(issue, node)
            await self.reread(node)
            outcome.serial, outcome.not_after = self._installed(node)
            outcome.running = node.status.state not in _GONE
            if outcome.running:
                await self._served(node, outcome.serial)
        except AgentCommandFailed as error:
            if error.reason == REJECTED and before is not None:
                await to_its_end(credentials.install, node.spec, before)
                await self.reread(node)
            outcome.failure, outcome.error = error, _refusal(error)
        except (DistsecError, OSError) as error:
            outcome.failure, outcome.error = error, str(error)
        node.show_certificate()
        return outcome

    def _installed(self, node: ManagedNode) -> tuple[str, int]:
        life = self.lives[node.name]
        return life.serial, int(life.not_after)

    async def _served(self, node: ManagedNode, serial: str) -> None:
        """Has the node read it, and sees that its port shows it. Raises DistsecError, OSError."""
        if not node.status.agent:
            raise CommandFailed("its agent is not connected; it is told as soon as it is")
        # A command that is nobody but the orchestrator's user cannot hand over what it has installed.
        await asyncio.to_thread(node.hub.machine.users.entrust, node.spec)
        reply = await node.server.command(Command.RELOAD, {}, RELOAD_SECONDS)
        said = reply.fields["served"].serial
        if said != serial:
            raise CommandFailed(f"its agent has read serial {said}, not {serial}")
        loop = asyncio.get_running_loop()
        until = loop.time() + SERVED_SECONDS
        while True:
            seen = await node.served()
            shown = seen.certificate.serial if seen.certificate else None
            if shown == serial:
                return
            if loop.time() >= until:
                what = (
                    f"serial {shown}"
                    if shown
                    else f"nothing that could be seen ({seen.error or 'no answer'})"
                )
                raise CommandFailed(f"its port serves {what}, and should serve {serial}")
            await asyncio.sleep(_POLL_SECONDS)


def _refusal(error: AgentCommandFailed) -> str:
    return f"its agent did not take the certificate ({error.reason}): {escape(str(error), 400)}"
