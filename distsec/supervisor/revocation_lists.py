"""Keeps the signed lists of what is revoked (`pki.crl`) as they should be, for as long as this runs.

No node reads them: a revocation is in force by the policy before a list is made, and one that cannot be made,
since the CA's key is not to be had, keeps nobody from anything. It is said then, once, and tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Protocol

from distsec.errors import DistsecError
from distsec.model.text import escape
from distsec.pki.crl import ListState
from distsec.supervisor.hub import Hub

EVERY_SECONDS = 3600.0


class Cluster(Hub, Protocol):
    """What it needs of the supervisor."""


class RevocationLists:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._changed = asyncio.Event()
        self._one = asyncio.Lock()
        self._told: frozenset[str] = frozenset()

    def changed(self) -> None:
        """Something else may be revoked now."""
        self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.refresh()
            try:
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> tuple[ListState, ...]:
        """Makes what is due; how the lists stand now. Nothing that goes wrong is raised."""
        cluster = self._cluster
        async with self._one:
            self._changed.clear()
            serials = cluster.desk.wanted.overlay.revoked
            try:
                found = await asyncio.to_thread(cluster.machine.records.refresh_lists, serials, time.time())
            except DistsecError as error:
                found = (ListState("ca", behind=str(error)),)
        behind = frozenset(each.behind for each in found if each.behind)
        for why in sorted(behind - self._told):
            cluster.note("warning", "the list of revoked certificates (CRL) is behind", error=why)
        self._told = behind
        return found


def documents(states: Iterable[ListState]) -> list[dict[str, Any]]:
    """For the answers of the control socket."""
    return [
        {
            "file": f"{each.directory}/crl.pem",
            "number": each.number,
            "next_update": each.next_update,
            "entries": each.entries,
            "behind": escape(each.behind, 1024) if each.behind else None,
        }
        for each in states
        if each.number is not None or each.behind
    ]
