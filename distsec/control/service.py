"""The use cases of the control socket: what comes in is checked here, once, whatever adapter brought it.

No HTTP, no sockets: an adapter calls a method with plain values and gets a JSON object, or a DistsecError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from distsec.control.wire import SCHEMA
from distsec.errors import NotFound, UsageError
from distsec.model.cluster import ClusterSpec, NodeState
from distsec.model.names import NodeName
from distsec.observe.bus import Bus, Follower, Published
from distsec.observe.metrics import Metrics

MAX_NAMES = 1000
MAX_IDENTITY = 2048
"""Bytes of a SPIFFE ID (SPIFFE-ID, section 2.3)."""

ACTIONS = ("start", "stop", "restart")

_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL})

_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+")


class Orchestrator(Protocol):
    """What the control service needs of the supervisor. Each method does one thing at a time: the supervisor
    serialises those that change the policy. `bus` and `metrics` are the ones that everything is published
    to."""

    @property
    def spec(self) -> ClusterSpec: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def metrics(self) -> Metrics: ...

    def status(self) -> dict[str, Any]:
        """The document of `distsec status --json`."""
        ...

    async def start(self, names: list[str]) -> object:
        """Returns when each is RUNNING. Raises CommandFailed with the reason of the first that is not."""
        ...

    async def stop(self, names: list[str]) -> object:
        """Returns when each is STOPPED."""
        ...

    async def restart(self, names: list[str]) -> object:
        """stop, then start."""
        ...

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """{"generation", "acknowledged": [names]}. Raises NotAcknowledged, after rolling back, or
        NotFound."""
        ...

    async def deny(self, name: str, compromised: bool) -> dict[str, Any]:
        """Like `allow`; a denial is kept though it is not acknowledged by all."""
        ...

    async def reload(self) -> dict[str, Any]:
        """Re-reads the configuration. Raises ConfigError, having changed nothing."""
        ...

    def environment(self, name: str) -> dict[str, Any]:
        """{"env": {…}, "files": {…}} for a node that something else starts. Raises NotFound."""
        ...


class Service:
    """All that an operator can ask of a running orchestrator."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    def status(self) -> dict[str, Any]:
        """The document of `distsec status --json`."""
        return {"schema": SCHEMA, **self._orchestrator.status()}

    async def nodes(self, action: str, names: object, everything: object = False) -> dict[str, Any]:
        """`action` (one of ACTIONS) on the named nodes, or on all that it can be done to; answers when it
        is done, with their names."""
        if action not in ACTIONS:
            raise UsageError(f"{action[:40]!a} is none of {', '.join(ACTIONS)}")
        chosen = self._everything(action) if everything is True else self._known(names)
        operation = {
            "start": self._orchestrator.start,
            "stop": self._orchestrator.stop,
            "restart": self._orchestrator.restart,
        }[action]
        await operation(chosen)
        return {"schema": SCHEMA, "action": action, "nodes": chosen}

    async def allow(self, name: object, identity: object = None) -> dict[str, Any]:
        """Lets `name` in; `identity` None is the one that a node of that name has in this cluster."""
        checked = str(_name(name))
        if identity is not None and (
            not isinstance(identity, str) or len(identity) > MAX_IDENTITY or not _IDENTITY.fullmatch(identity)
        ):
            raise UsageError("the identity is no SPIFFE ID", do="write it as spiffe://CLUSTER/node/HOST/NAME")
        return {"schema": SCHEMA, **await self._orchestrator.allow(checked, identity)}

    async def deny(self, name: object, compromised: object = False) -> dict[str, Any]:
        """Keeps `name` out and ends its links. `compromised` is refused: re-keying is not built yet."""
        checked = str(_name(name))
        if compromised is not False:
            raise UsageError(
                "deny --compromised is not built yet: nothing would be re-keyed",
                do=f"use `distsec deny {checked}`, and re-key by hand every node that was linked with it",
            )
        return {"schema": SCHEMA, **await self._orchestrator.deny(checked, False)}

    async def reload(self) -> dict[str, Any]:
        """What SIGHUP does."""
        return {"schema": SCHEMA, **await self._orchestrator.reload()}

    def environment(self, name: str) -> dict[str, Any]:
        """The document of `distsec env NODE --json`."""
        return {"schema": SCHEMA, **self._orchestrator.environment(self._known([name])[0])}

    def events(self, *, since: float = 0.0, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The recent events, oldest first; see Bus.recent."""
        return [
            event_document(published)
            for published in self._orchestrator.bus.recent(since=since, after=after, limit=limit)
        ]

    def follow(self) -> Follower:
        """The events from now on."""
        return self._orchestrator.bus.follow()

    def _everything(self, action: str) -> list[str]:
        """Who `--all` means: for a stop those that run, else those that have a command."""
        if action == "stop":
            nodes = self._orchestrator.status()["nodes"]
            return [node["name"] for node in nodes if node["state"] not in _AT_REST]
        return [str(node.name) for node in self._orchestrator.spec.nodes if node.command]

    def _all(self) -> list[str]:
        return [str(node.name) for node in self._orchestrator.spec.nodes]

    def _known(self, names: object) -> list[str]:
        """Names of managed nodes, each once. Raises UsageError, NameInvalid, or NotFound with the known
        names."""
        if not isinstance(names, Sequence) or isinstance(names, str | bytes) or not names:
            raise UsageError("no node is named", do="name one or more, or use --all")
        if len(names) > MAX_NAMES:
            raise UsageError(f"more than {MAX_NAMES} nodes are named", do="use --all")
        chosen = [str(name) for name in dict.fromkeys(map(_name, names))]
        managed = self._all()
        unknown = [name for name in chosen if name not in managed]
        if unknown:
            raise NotFound(
                f"{', '.join(unknown[:5])}: no such managed node",
                do=f"the managed nodes are: {', '.join(managed[:20]) or 'none'}",
            )
        return chosen


def event_document(published: Published) -> dict[str, Any]:
    """One event as a line of `distsec events --json`."""
    return {"id": published.id, **published.event.as_dict()}


def _name(value: object) -> NodeName:
    if not isinstance(value, str):
        raise UsageError("a node name is missing", do="name a node as name@host")
    return NodeName.parse(value)
