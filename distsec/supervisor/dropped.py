"""Keys and certificates that somebody else has put into a node's directory: taken if they would do, else not.

A SPIFFE helper, cert-manager or an operator either replaces `key.pem` and `certificate.pem` there, or puts
both into `incoming/`. What would do is installed and served like any renewal; what would not is told of once
(CertificateRefused, with its reason), and the pair that was accepted before is in its place again, so that no
restart of the node meets the other. Files that may still be half written are waited for.

inotify tells of changes within a second; all places are looked at every minute anyway.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from distsec.beam.drops import DirectoryWatch
from distsec.errors import DistsecError
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor.credentials import INTERRUPTED, Place, Seen
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.renewal import INSTALLED, Renewal
from distsec.supervisor.serving import REJECTED

DROPPED = "dropped"
"""The reason of CertificateRenewed."""

POLL_SECONDS = 60.0
SOON_SECONDS = 0.2
"""After the first sign of a change: both files are usually written within it."""

LOST_SECONDS = 5.0
"""After the kernel has lost events, because somebody writes faster than is read: all nodes are looked at."""

MAX_TOLD, TOLD_SECONDS = 30, 60.0
"""Refusals of one node that are told within so many seconds; of the others only how many there were."""

QUIET_SECONDS = 2.0
"""Files that cannot be understood, or do not belong together, are judged when they have been left alone for
so long."""

INCOMPLETE_SECONDS = 60.0
"""And one of two files in `incoming/`, where nothing is lost by waiting."""


class Cluster(Hub, Protocol):
    """What is needed of the supervisor."""

    nodes: dict[str, ManagedNode]


@dataclass(slots=True)
class _Waiting:
    """Of one place: since when it looks as it does, in loop time, and what was told of it already."""

    stamp: tuple[object, ...] = ()
    since: float = 0.0
    told: tuple[object, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Taken:
    place: Place
    pair: Pair
    stamp: tuple[object, ...]
    serial: str | None


@dataclass(slots=True)
class _Told:
    at: list[float] = field(default_factory=list)
    untold: int = 0


class Drops:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster, renewal: Renewal) -> None:
        self._cluster = cluster
        self._renewal = renewal
        self._watch: DirectoryWatch | None = None
        self._waiting: dict[tuple[str, Place], _Waiting] = {}
        self._told: dict[str, _Told] = {}
        self._due: dict[str, float] = {}  # by node, in loop time
        self._woken = asyncio.Event()
        self._directories: dict[Path, str] = {}

    async def run(self) -> None:
        """For as long as the orchestrator runs."""
        if not self._cluster.spec.carrier.encrypted:
            return
        try:
            self._watch = DirectoryWatch(self._changed)
        except DistsecError as error:
            self._cluster.note("warning", f"{error}; dropped files are noticed within {POLL_SECONDS:g} s")
        try:
            await self._loop()
        finally:
            if self._watch is not None:
                self._watch.close()

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        poll = 0.0
        while True:
            now = loop.time()
            if now >= poll:
                poll = now + POLL_SECONDS
                await asyncio.to_thread(self._watch_all)
                self._due |= dict.fromkeys(self._cluster.nodes, now)
            for name in [name for name, at in self._due.items() if at <= now]:
                del self._due[name]
                node = self._cluster.nodes.get(name)
                if node is not None:
                    await self._guarded_look(node)
            self._woken.clear()
            until = min([poll, *self._due.values()])
            try:
                async with asyncio.timeout_at(until):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _changed(self, directory: Path | None) -> None:
        soon = SOON_SECONDS if directory is not None else LOST_SECONDS
        at = asyncio.get_running_loop().time() + soon
        names = self._cluster.nodes if directory is None else [self._directories.get(directory)]
        for name in names:
            if name is not None:
                self._due[name] = min(at, self._due.get(name, at))
        self._woken.set()

    def _watch_all(self) -> None:
        """Whatever is not watched yet: nodes that were added, directories that were made anew."""
        for node in tuple(self._cluster.nodes.values()):
            try:
                places = self._cluster.machine.credentials.places(node.spec)
            except DistsecError as error:
                self._cluster.note("warning", "cannot be watched", node=node.name, error=str(error))
                continue
            for directory in places.values():
                self._directories[directory] = node.name
                if self._watch is not None:
                    self._watch.watch(directory)  # again: the same watch, or that of a new directory

    # ---- one node

    async def _guarded_look(self, node: ManagedNode) -> None:
        try:
            async with self._renewal.holding([node.name]):
                found = await self._look(node)
            if isinstance(found, _Taken):
                await self._take(node, found)
            elif found:
                await self._renewal.serve([node.name], INSTALLED)
        except (DistsecError, OSError) as error:
            self._cluster.note("warning", "dropped files cannot be read", node=node.name, error=str(error))

    async def _take(self, node: ManagedNode, taken: _Taken) -> None:
        outcome = (await self._renewal.replace({node.name: taken.pair}, DROPPED))[node.name]
        if outcome.rejected:
            waiting = self._waiting.setdefault((node.name, taken.place), _Waiting())
            if waiting.told != (taken.stamp, REJECTED):
                waiting.told = (taken.stamp, REJECTED)
                self._refuse(node, REJECTED, f"was not taken by the node: {outcome.error}", taken.serial)
            return
        self._waiting.pop((node.name, taken.place), None)
        await asyncio.to_thread(self._cluster.machine.credentials.consume, node.spec, taken.place)

    async def _look(self, node: ManagedNode) -> _Taken | bool:
        """A pair that is to be taken; or whether another one than was known is installed."""
        cluster, overlay = self._cluster, self._cluster.desk.wanted.overlay
        if node.name in overlay.condemned:
            return False  # what is in it may have been put there by whoever is in the node
        credentials = cluster.machine.credentials
        for reason, what in credentials.found_spoiled(node.spec):
            self._refuse(node, reason, what)
        for place in Place:
            now = self._renewal.now()
            seen = await asyncio.to_thread(credentials.look, cluster.spec, overlay, node.spec, place, now)
            if seen.pair is not None:
                return _Taken(place, seen.pair, seen.stamp, seen.serial)
            if seen.reason is not None and self._has_settled(node, place, seen):
                await self._decide(node, place, seen)
        # Somebody may have installed a pair properly: another command of ours, while we look on.
        return await self._renewal.reread(node)

    def _has_settled(self, node: ManagedNode, place: Place, seen: Seen) -> bool:
        """Whether it is to be judged as it is now. Once for each state of the files."""
        now = asyncio.get_running_loop().time()
        waiting = self._waiting.setdefault((node.name, place), _Waiting(since=now))
        if waiting.stamp != seen.stamp:
            waiting.stamp, waiting.since = seen.stamp, now
        if waiting.told == (seen.stamp, seen.reason):
            return False
        patience = 0.0
        if seen.unsettled:
            alone = place is Place.INCOMING and seen.reason == "incomplete"
            patience = INCOMPLETE_SECONDS if alone else QUIET_SECONDS
        if now < waiting.since + patience:
            self._due[node.name] = min(waiting.since + patience, self._due.get(node.name, now + POLL_SECONDS))
            return False
        waiting.told = (seen.stamp, seen.reason)
        return True

    async def _decide(self, node: ManagedNode, place: Place, seen: Seen) -> None:
        restored = ""
        if place is Place.DIRECTORY:
            try:
                done = await asyncio.to_thread(self._cluster.machine.credentials.restore, node.spec)
            except DistsecError as error:
                restored = f"the one before it could not be put back: {error.what}"
            else:
                restored = (
                    "the one before it is in its place again" if done else "there is none to go back to"
                )
            if seen.reason == INTERRUPTED:
                return
        self._refuse(node, str(seen.reason), f"{seen.what}; {restored}".strip("; "), seen.serial)

    def _refuse(self, node: ManagedNode, reason: str, what: str, serial: str | None = None) -> None:
        told, now = self._told.setdefault(node.name, _Told()), asyncio.get_running_loop().time()
        told.at = [at for at in told.at if at > now - TOLD_SECONDS]
        if len(told.at) >= MAX_TOLD:
            told.untold += 1
            return
        told.at.append(now)
        if told.untold:
            what, told.untold = f"{what} ({told.untold} more since the last one)", 0
        self._cluster.bus.publish(
            SecurityEvent(
                EventType.CERTIFICATE_REFUSED,
                Severity.WARNING,
                node.name,
                time.time(),
                result="deny",
                reason=reason,
                serial=serial,
                detail=escape(f"the certificate {what}", 1024),
            )
        )
