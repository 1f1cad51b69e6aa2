"""Notices that policies went back: a node's, whose files were put back, or the orchestrator's own overlay.

Neither is ever made up for in silence. A node that is behind what it had acknowledged is an event (it is sent
the wanted policy anyway). A node that is *ahead* of what is wanted means that the overlay was put back: its
signed policy is asked for, and the overlay goes on above that, with all that it refused (core.rollback).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.core.rollback import Found, lifted
from distsec.core.wanted import Overlay
from distsec.errors import DistsecError, StoreError
from distsec.model.cluster import ClusterSpec
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.observe.bus import Bus
from distsec.supervisor.machine import Machine
from distsec.supervisor.policy import PolicyDesk
from distsec.supervisor.pushing import Target

ASK_SECONDS = 5.0
ASK_AGAIN_SECONDS = 30.0
"""A node whose claim was not proven is asked again at most this often."""


class Cluster(Protocol):
    """What it needs of the supervisor."""

    spec: ClusterSpec
    machine: Machine
    bus: Bus

    @property
    def desk(self) -> PolicyDesk: ...
    def note(self, level: str, text: str, **fields: Any) -> None: ...


class RollbackWatch:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._asked: dict[str, float] = {}
        self._one = asyncio.Lock()

    def tell_of_start(self) -> None:
        """What the desk has found on the disk."""
        for note in self._cluster.desk.notes:
            self._tell("", Severity.CRITICAL, "overlay_rolled_back", note)

    async def decided(self, seen: tuple[str, ...]) -> None:
        """The operator has decided, and could see those of the desk's notes."""
        if not seen:
            return
        undecided = self._cluster.desk.undecided
        undecided.settle(seen)
        try:
            await asyncio.to_thread(undecided.save)
        except DistsecError as error:
            text = "that the policy went back is shown again after the next start"
            self._cluster.note("warning", text, error=str(error))

    def restarted(self, name: str, before: int | None, now: int | None) -> None:
        """A node says hello with generation `now`, and had acknowledged `before`."""
        if before and (now or 0) < before:
            text = f"generation {now or 0} is in force in it, and it had acknowledged {before}"
            self._tell(name, Severity.CRITICAL, "node_rolled_back", text)

    def is_ahead(self, name: str, generation: int, digest: str | None) -> bool:
        """Whether a node that has that in force is to be asked for its policy (`learn_from`), now.

        Another policy of the same generation is as much out of the ordinary as one of a higher: an overlay
        that was put back goes through the same numbers again.
        """
        desk, now = self._cluster.desk, asyncio.get_running_loop().time()
        wanted = desk.wanted
        if generation < wanted.generation or digest == wanted.digest or desk.busy:
            return False
        if now < self._asked.get(name, 0.0):
            return False
        self._asked[name] = now + ASK_AGAIN_SECONDS
        return True

    async def learn_from(self, node: Target, claimed: int) -> None:
        """Takes over what the node's policy refuses, if our key has signed it and it is the newer one.

        `claimed`: the generation that it says it has in force.
        """
        async with self._one:
            if claimed >= self._cluster.desk.wanted.generation:  # else another one has been learned from
                await self._learn_from(node)

    async def _learn_from(self, node: Target) -> None:
        cluster, desk = self._cluster, self._cluster.desk
        try:
            reply = await node.server.command(Command.DOCUMENT, {}, ASK_SECONDS)
            document: bytes = reply.fields["document"]
            signed = await asyncio.to_thread(cluster.machine.records.read_document, cluster.spec, document)
            if signed.generation < desk.wanted.generation:
                raise StoreError(f"it shows generation {signed.generation}")
        except (AgentCommandFailed, StoreError) as error:
            text = f"it claims a newer policy than there is, and does not prove it: {error}"
            self._tell(node.name, Severity.CRITICAL, "generation_unproven", text)
            return
        found = [Found(node.name, signed)]

        def below(overlay: Overlay) -> Overlay:
            return replace(overlay, generation=min(overlay.generation, signed.generation - 1))

        def changed(overlay: Overlay) -> Overlay:
            return lifted(below(overlay), found)[0]

        _, notes = lifted(below(desk.wanted.overlay), found)
        desk.undecided.add(notes)  # saved with what goes on above it
        for note in notes:
            self._tell(node.name, Severity.CRITICAL, "overlay_rolled_back", note)
        try:
            await desk.refuse(changed, above=signed.generation)
        except DistsecError as error:
            self._tell(node.name, Severity.CRITICAL, "overlay_rolled_back", f"not mended: {error}")

    def _tell(self, node: str, severity: Severity, reason: str, text: str) -> None:
        event = SecurityEvent(
            EventType.POLICY_ROLLED_BACK,
            severity,
            node,
            time.time(),
            reason=reason,
            detail=escape(text, 1024),
        )
        self._cluster.bus.publish(event)
