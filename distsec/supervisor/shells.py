"""Operators' shells, and the tools of applications (`distsec exec`): prepared, announced to their node,
watched to their end, and all of it on record.

A shell is the process that asked for it: it turns into an Erlang VM of its own. So the orchestrator watches
that process, and however it ends (it may be killed) its key goes and its node forgets it. Where the
orchestrator is not there, the node forgets it by itself, and the key is removed when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.beam.protocol import Argument
from distsec.beam.shell_directory import ShellRecord
from distsec.core.wanted import Overlay
from distsec.errors import CommandFailed, DistsecError, NotFound, Unavailable
from distsec.model.cluster import ClusterSpec, NodeSpec, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import glob_matches
from distsec.model.policy import Verdict
from distsec.model.shells import (
    ATTACH_SECONDS,
    NAMES,
    Operator,
    shell_identity,
    shell_name,
    shell_pattern,
    shell_patterns,
    tool_patterns,
)
from distsec.model.text import escape
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics
from distsec.supervisor.listening import COMMAND_SECONDS
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.tools import Tools, described

MAX_SHELLS_OF_A_NODE = 32
"""distsec_shells.erl takes twice as many, so that one that is about to be forgotten keeps nobody out."""

_UNSEEN = "it was not seen to link with the node"

LATE_EVENT_SECONDS = 3.0
"""The node tells of a link when it knows all of it; a short shell may have ended before that."""


class Place(Protocol):
    """What shells need of the machine: files, processes and the CA. All raise DistsecError."""

    def begin_shell(self, record: ShellRecord, node: NodeSpec, overlay: Overlay) -> Mapping[str, Any]: ...
    def start_time(self, pid: int) -> int | None: ...
    def shell_records(self) -> list[ShellRecord]: ...
    def remove_shell(self, record: ShellRecord) -> None: ...


class Cluster(Protocol):
    """What shells need of the supervisor."""

    spec: ClusterSpec
    bus: Bus
    metrics: Metrics
    nodes: dict[str, ManagedNode]

    @property
    def overlay(self) -> Overlay: ...
    def spawn(self, work: Any, name: str) -> None: ...
    def note(self, level: str, text: str, **fields: Any) -> None: ...


@dataclass(slots=True)
class _Open:
    """A shell whose process is watched, by the pidfd `handle`. `since`: Unix seconds, None: not attached."""

    record: ShellRecord
    handle: int
    since: float | None = None
    peer: str | None = None  # of a tool the name that it came under first
    address: str | None = None
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    prepared: asyncio.Event = field(default_factory=asyncio.Event)  # or given up: nothing is made any more


class Shells:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster, place: Place) -> None:
        self._cluster = cluster
        self._place = place
        self._open: dict[str, _Open] = {}  # by token
        self._tools = Tools(cluster)
        self._next = secrets.randbelow(NAMES)  # where an orchestrator before this one stopped is not known

    # ---- life

    def restore(self) -> None:
        """Watches the shells that an earlier orchestrator has left, and removes what is left of others. Never
        raises.
        """
        try:
            left = self._place.shell_records()
        except DistsecError as error:
            self._cluster.note("warning", "shells cannot be looked for", error=str(error))
            return
        for record in left:
            handle = _open_process(record.operator.pid) if record.lives else None
            if handle is not None and record.lives:  # asked again: the pid may have changed hands meanwhile
                # When it attached, and whether, the orchestrator before this one knew.
                restored = _Open(record, handle, since=record.opened_at)
                restored.attached.set()
                restored.prepared.set()
                self._watch(restored)
                self._count(record.node)
                continue
            if handle is not None:
                os.close(handle)
            self._place.remove_shell(record)
            if record.program is not None:
                self._tools.ended_meanwhile(record)
            said = "it ended while the orchestrator was away"
            self._publish(EventType.SHELL_DETACHED, record, detail=said)

    def close(self) -> None:
        """Stops watching; the shells go on."""
        for each in self._open.values():
            self._unwatch(each)
        self._open.clear()

    # ---- what operators ask for

    async def open(self, name: str, operator: Operator) -> dict[str, Any]:
        """Prepares a shell at `name` for the process of `operator`; the answer says what that process is to
        become.

        Raises NotFound, CommandFailed (the node does not run, is denied, …), Unavailable, StoreError,
        RuntimeMissing.
        """
        return await self._prepare(self._usable(name), operator, None)

    async def open_tool(self, name: str, operator: Operator, program: str) -> dict[str, Any]:
        """The same for a tool of an application, `program`: it makes up its own names, and may link with the
        managed nodes that `name` is linked with too, since whoever runs code there may.
        """
        return await self._prepare(self._usable(name), operator, program)

    async def _prepare(self, node: ManagedNode, operator: Operator, program: str | None) -> dict[str, Any]:
        handle = _open_process(operator.pid)
        start_time = self._place.start_time(operator.pid)
        if handle is None or start_time is None:
            raise Unavailable("the process that asked for the shell has ended")
        begun = self._begin(node, operator, start_time)
        record = begun if program is None else self._tools.begin(begun, node, program)
        each = _Open(record, handle)
        try:
            self._watch(each)  # first: from here on its end is noticed
            answer = await asyncio.to_thread(
                self._place.begin_shell, record, node.spec, self._cluster.overlay
            )
            await self._announce(node, record)
        except BaseException:
            self._forget(record)
            await asyncio.to_thread(self._place.remove_shell, record)
            raise
        finally:
            each.prepared.set()
        return {"node": node.name, "shell": record.name, **answer}

    def _usable(self, name: str) -> ManagedNode:
        node = self._cluster.nodes.get(name)
        if node is None:
            raise self._not_managed(name)
        overlay = self._cluster.overlay
        if name in overlay.deny or name in overlay.condemned:
            raise CommandFailed(
                f"{name} is denied, so nobody links with it", do=f"allow it first: `distsec allow {name}`"
            )
        if node.status.state is not NodeState.RUNNING:
            why = f" ({node.status.why})" if node.status.why else ""
            raise CommandFailed(
                f"{name} is {node.status.state}{why}, and a shell needs it RUNNING",
                do="see `distsec status`, and `distsec start` it",
            )
        if not node.status.agent:
            raise CommandFailed(
                f"the agent of {name} is not connected, so it cannot be told of a shell",
                do="try again in a moment; see `distsec status`",
            )
        at_it = sum(each.record.node == name for each in self._open.values())
        if at_it >= MAX_SHELLS_OF_A_NODE or len(self._open) >= NAMES:
            raise CommandFailed(f"{at_it} shells are open at {name} already", do="leave one of them")
        return node

    def _not_managed(self, name: str) -> NotFound:
        shown = escape(name)
        managed = ", ".join(list(self._cluster.nodes)[:20]) or "none"
        if name in {str(peer.name) for peer in self._cluster.spec.peers}:
            return NotFound(
                f"{shown} runs on another host and is not managed here",
                do="use `distsec shell` on its own host",
            )
        return NotFound(f"{shown}: no such managed node", do=f"the managed nodes are: {managed}")

    def _begin(self, node: ManagedNode, operator: Operator, start_time: int) -> ShellRecord:
        taken = {each.record.name for each in self._open.values()}
        host = node.spec.name.host
        while True:
            self._next = (self._next + 1) % NAMES
            name = shell_name(self._next, host)
            if str(name) not in taken:
                break
        token = secrets.token_hex(8)
        return ShellRecord.begin(
            token=token,
            node=node.name,
            name=str(name),
            identity=shell_identity(self._cluster.spec.name, name, token),
            operator=operator,
            start_time=start_time,
            opened_at=int(time.time()),
        )

    async def _announce(self, node: ManagedNode, record: ShellRecord) -> None:
        """From here on the node admits it."""
        if record.program is not None:
            await self._tools.announce(record)
            return
        fields: dict[str, Argument] = {
            "name": record.name,
            "identity": record.identity,
            "seconds": ATTACH_SECONDS,
        }
        try:
            await node.server.command(Command.ADMIT_SHELL, fields, COMMAND_SECONDS)
        except AgentCommandFailed as error:
            old = error.reason == "unknown"
            raise CommandFailed(
                f"{node.name} cannot be told of a shell: {error.reason}",
                do="restart it: its agent is older than this orchestrator" if old else "try again",
            ) from None

    # ---- what becomes of them

    def event(self, event: SecurityEvent) -> None:
        """A subscriber of the bus: links that come up; what tools' nodes have to be told."""
        if event.type is EventType.AGENT_CONNECTED:
            self._tools.connected(event.node, self._running())
        if event.type is EventType.POLICY_CHANGED and event.result == Verdict.DENY and event.peer is not None:
            self._tools.denied(event.peer, [each.record for each in self._open.values() if each.handle >= 0])
        if event.type is not EventType.LINK_UP or event.peer is None:
            return
        for each in self._open.values():
            if each.record.node == event.node and self._is_of(each.record, event):
                self._attach(each, event)

    def tick(self, now: float) -> None:
        """Once a second; `now` is of the loop's clock."""
        self._tools.tick(now, self._running())

    def _running(self) -> list[ShellRecord]:
        """Of those whose process has ended, only the last report may still be awaited."""
        return [each.record for each in self._open.values() if each.prepared.is_set() and each.handle >= 0]

    def _is_of(self, record: ShellRecord, event: SecurityEvent) -> bool:
        """Whether that link is the shell's, or the tool's: by its certificate, or what there is without."""
        if record.program is None:
            return record.name == event.peer
        if self._cluster.spec.carrier.encrypted:
            return record.identity == event.identity
        return event.peer is not None and glob_matches(record.name, event.peer)

    def _attach(self, each: _Open, event: SecurityEvent) -> None:
        if each.attached.is_set():
            return
        each.since, each.peer, each.address = time.time(), event.peer, event.address
        each.attached.set()
        self._count(each.record.node)
        self._publish(EventType.SHELL_ATTACHED, each.record, peer=each.peer, address=each.address)

    def _watch(self, each: _Open) -> None:
        self._open[each.record.token] = each
        loop = asyncio.get_running_loop()
        loop.add_reader(each.handle, self._ended, each)

    def _unwatch(self, each: _Open) -> None:
        if each.handle >= 0:
            asyncio.get_running_loop().remove_reader(each.handle)
            os.close(each.handle)
            each.handle = -1

    def _forget(self, record: ShellRecord) -> None:
        each = self._open.pop(record.token, None)
        if each is not None:
            self._unwatch(each)
        self._count(record.node)

    def _ended(self, each: _Open) -> None:
        """Its process is gone."""
        self._unwatch(each)
        self._cluster.spawn(self._finish(each), f"end of {each.record.name}")

    async def _finish(self, each: _Open) -> None:
        record, ended_at = each.record, time.time()
        await each.prepared.wait()  # it may have ended while its files were made
        if record.token not in self._open:
            return  # it came to nothing, and is cleared away
        await asyncio.to_thread(self._place.remove_shell, record)
        node = self._cluster.nodes.get(record.node)
        if record.program is not None:
            await self._tools.finished(record)
        elif node is not None and node.status.agent:
            with contextlib.suppress(AgentCommandFailed):  # then it forgets it by itself
                await node.server.command(Command.END_SHELL, {"name": record.name}, COMMAND_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_EVENT_SECONDS):
                await each.attached.wait()
        lasted = None if each.since is None else max(0, round(ended_at - each.since))
        self._forget(record)
        detail = None if each.attached.is_set() else _UNSEEN
        self._publish(
            EventType.SHELL_DETACHED,
            record,
            peer=each.peer,
            address=each.address,
            seconds=lasted,
            detail=detail,
        )

    def _publish(
        self,
        type: EventType,
        record: ShellRecord,
        *,
        peer: str | None = None,
        address: str | None = None,
        seconds: int | None = None,
        detail: str | None = None,
    ) -> None:
        self._cluster.bus.publish(
            SecurityEvent(
                type,
                Severity.NOTICE,
                record.node,
                time.time(),
                peer=peer or record.name,
                address=address,
                identity=record.identity if self._cluster.spec.carrier.encrypted else None,
                rule=_label(record),
                detail=described(record, detail),
                operator=str(record.operator),
                seconds=seconds,
            )
        )

    def _count(self, node: str) -> None:
        attached = sum(each.record.node == node and each.attached.is_set() for each in self._open.values())
        self._cluster.metrics.set_shells(node, attached)

    def labels(self) -> tuple[str, ...]:
        """What metrics may call a shell."""
        return shell_patterns(node.name for node in self._cluster.spec.nodes)

    def tool_labels(self) -> tuple[str, ...]:
        """What metrics may call a tool."""
        return tool_patterns(node.name for node in self._cluster.spec.nodes)


def _label(record: ShellRecord) -> str:
    return record.name if record.program is not None else shell_pattern(record.name.partition("@")[2])


def _open_process(pid: int) -> int | None:
    """A pidfd, which tells the end of that process and of no other; None: it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
