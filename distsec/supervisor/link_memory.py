"""Keeps the record of links (`core.contacts`) up to date and on disk. Belongs to one event loop.

A link is written down as soon as it is told of, its end within SAVE_EVERY_TICKS: what a crash loses is at
most the end of a link, which makes it count for longer. A link that comes and goes while the orchestrator is
being killed, in the milliseconds until the write, is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Protocol

from distsec.beam.contacts import contacts_document
from distsec.core.contacts import ContactBook, PeerSeen
from distsec.core.taint import spread
from distsec.errors import DistsecError
from distsec.model.cluster import Link
from distsec.supervisor.records import Records

SAVE_EVERY_TICKS = 30
SETTLE_TICKS = 60
"""After the start; until then agents that live have said hello. Links that nobody tells of have ended."""


class Note(Protocol):
    """See supervisor.Supervisor.note."""

    def __call__(self, level: str, text: str, **fields: Any) -> None: ...


class LinkMemory:
    """`listed(name)` says whether the policy lists that name exactly; `spawn` runs a task beside the rest.

    `passing(link)`: a link that is not remembered, since its peer links with no other node (a shell's).
    """

    def __init__(
        self,
        records: Records,
        listed: Callable[[str], bool],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        note: Note,
        passing: Callable[[Link], bool] = lambda link: False,
    ) -> None:
        self._records = records
        self._passing = passing
        self._listed = listed
        self._spawn = spawn
        self._note = note
        self._book = ContactBook()
        self._saving = asyncio.Lock()
        self._ticks = 0

    def load(self, nodes: Iterable[str]) -> None:
        """Reads it. Where it cannot be understood everybody may have been linked with everybody."""
        try:
            self._book = self._records.load_contacts()
        except DistsecError as error:
            self._note("error", "the record of links is lost: all are taken for linked", error=str(error))
            self._book.unknown_until(nodes, time.time())

    # ---- what agents say

    def up(self, node: str, link: Link) -> None:
        if self._passing(link):
            return
        self._book.up(node, self._peer(link), time.time())
        self._save_soon()

    def down(self, node: str, link: Link) -> None:
        if self._passing(link):
            return
        self._book.down(node, self._peer(link), time.time())
        self._save_soon()

    def all_up(self, node: str, links: Iterable[Link]) -> None:
        kept = (link for link in links if not self._passing(link))
        self._book.all_up(node, map(self._peer, kept), time.time())
        self._save_soon()

    def gone(self, node: str) -> None:
        self._book.gone(node, time.time())

    def tick(self) -> None:
        """Once a second."""
        self._ticks += 1
        if self._ticks == SETTLE_TICKS:
            self._book.settle(time.time())
        if self._book.changed and self._ticks % SAVE_EVERY_TICKS == 0 and not self._saving.locked():
            self._spawn(self.save(), "record of links")

    # ---- what it is kept for

    def tainted(self, name: str, since: float, nodes: Collection[str]) -> Mapping[str, float]:
        """Who may be tainted, and since when, if `name` is since `since` (core.taint). `nodes`: every name
        that can be.
        """
        sources = self._book.keys(name) | self.presumed(name)
        return spread(self._book.contacts(), sources, since, frozenset(nodes) | sources)

    def serials(self, name: str) -> frozenset[str]:
        """Of the certificates that it has shown lately, under whatever it is kept."""
        return frozenset(serial for key in self._book.keys(name) for serial in self._book.serials(key))

    def shown_as(self, identity: str) -> frozenset[str]:
        """The serials that came with `identity` lately, of peers that are on no list."""
        return frozenset(self._book.serials(identity))

    def knows(self, name: str) -> bool:
        """Whether anything of that name was ever linked."""
        return self._book.knows(name)

    def presumed(self, name: str) -> frozenset[str]:
        """What an unlisted `name` may have been kept under, where that is not remembered: each of these is
        taken for it. Of a listed name every link is remembered.
        """
        if self._listed(name) or self._book.knows(name):
            return frozenset()
        return self._book.may_have_been()

    def forget(self, names: Collection[str]) -> None:
        """They have new keys, and nothing that ran before."""
        self._book.forget(names)

    async def save(self) -> None:
        """Writes it if it differs; one write at a time. Failures are told, and tried again."""
        async with self._saving:
            book = self._book
            if not book.changed:
                return
            book.changed = book.urgent = False
            try:
                await asyncio.to_thread(self._records.save_contacts, contacts_document(book))
            except DistsecError as error:
                book.changed = True
                self._note("error", "the record of links cannot be written", error=str(error))

    def _save_soon(self) -> None:
        if self._book.urgent and not self._saving.locked():
            self._spawn(self.save(), "record of links")

    def _peer(self, link: Link) -> PeerSeen:
        listed = self._listed(link.peer)
        return PeerSeen(link.peer, listed, link.identity, link.serial, link.not_after, link.since)
