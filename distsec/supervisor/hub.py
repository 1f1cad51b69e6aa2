"""What a node needs of its supervisor, as an interface."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from distsec.model.cluster import Certificate, ClusterSpec
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics
from distsec.supervisor.link_memory import LinkMemory
from distsec.supervisor.machine import Machine
from distsec.supervisor.policy import PolicyDesk
from distsec.supervisor.rollback import RollbackWatch


class Renewals(Protocol):
    """See supervisor.renewal.Renewal."""

    def installed(self, name: str) -> str | None: ...
    def saw(self, node: Any, shown: Certificate | None) -> None: ...
    def document(self, name: str) -> dict[str, Any] | None: ...


class Hub(Protocol):
    """See supervisor.Supervisor."""

    spec: ClusterSpec
    machine: Machine
    bus: Bus
    metrics: Metrics
    starts: asyncio.Semaphore

    memory: LinkMemory
    rollbacks: RollbackWatch

    @property
    def renewal(self) -> Renewals: ...
    @property
    def desk(self) -> PolicyDesk: ...
    def changed(self) -> object: ...  # something about a node did
    def startable(self, name: str) -> str | None: ...  # why not, if it may not be started now
    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None: ...
    def note(self, level: str, text: str, **fields: Any) -> None: ...
