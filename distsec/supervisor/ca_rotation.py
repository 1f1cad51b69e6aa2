"""Performs what `core.rotation` decides: a new CA is made, trusted, used, and the old one proven refused.

A rotation belongs to the operator: every phase is entered by command. What an interruption has left of one is
brought about without anybody asking, as far as it leads to no other phase: after a start of the orchestrator,
and later for nodes that could not be reached, bundles and certificates are made what the saved phase wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from distsec.core import rotation as core
from distsec.core.rotation import (
    WANTED,
    Attain,
    Bring,
    Ca,
    Check,
    Command,
    Finish,
    Phase,
    Reached,
    Rotation,
    Save,
)
from distsec.errors import DistsecError, NotAcknowledged, Unavailable, UsageError
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.supervisor.ca_nodes import CaNodes
from distsec.supervisor.elsewhere import not_ready, run_elsewhere
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.renewal import Renewal
from distsec.supervisor.succession import Held, Succession

REASSERT_SECONDS = 5.0
"""After which nodes that have only the files of a phase are tried again, twice as long each time."""

REASSERT_CAP_SECONDS = 60.0

_EVENTS = {
    (Phase.PREPARED, False): (EventType.CA_ROTATION_PREPARED, "every node trusts both CAs"),
    (Phase.ACTIVATED, False): (EventType.CA_ROTATION_ACTIVATED, "every node serves a leaf of the new CA"),
    (Phase.IDLE, False): (EventType.CA_ROTATION_PRUNED, "every node refuses the old CA"),
    (Phase.IDLE, True): (EventType.CA_ROTATION_ROLLED_BACK, "the new CA is removed"),
}
NEXT = {
    Phase.PREPARED: "activate",
    Phase.ACTIVATED: "prune",
    Phase.CREATING: "prepare",
    Phase.PREPARING: "prepare",
    Phase.ACTIVATING: "activate",
    Phase.PRUNING: "prune",
    Phase.RETIRING: "prune",
}
"""What leads on from a phase."""


class Cluster(Hub, Protocol):
    """What is needed of the supervisor."""

    nodes: dict[str, ManagedNode]

    @property
    def ending(self) -> bool: ...


class CaRotation:
    """Belongs to one event loop. `changed` is called when the CA is another one."""

    def __init__(self, cluster: Cluster, renewal: Renewal, changed: Callable[[], object]) -> None:
        self._cluster = cluster
        self._renewal = renewal
        self._changed = changed
        self._lock = asyncio.Lock()
        self.still = asyncio.Lock()
        """No phase is begun while somebody holds it: a node that is being added is given the files of a phase
        before it is one of the nodes that the next phase asks for.
        """
        self._busy: Command | None = None
        self._behind: dict[str, str] = {}  # nodes that may not have what the saved phase wants → why
        self._nodes = CaNodes(cluster, renewal)
        self._state = Rotation()
        self._woken = asyncio.Event()
        self._unasked: asyncio.Task[None] | None = None  # what nobody waits for

    # ---- what the supervisor calls

    async def run(self) -> None:
        """For as long as the orchestrator runs."""
        if not self._cluster.spec.carrier.encrypted:
            return
        await asyncio.to_thread(self._files.tidy)
        self._state = await asyncio.to_thread(self._files.rotation)
        if self._state.phase is not Phase.IDLE:
            self._behind = dict.fromkeys(self._cluster.nodes, "the orchestrator was started anew")
            word = self._state.word
            self._cluster.note("notice", "the rotation of the CA goes on by command", phase=word)
        pause = REASSERT_SECONDS
        while True:
            if self._behind and self._busy is None:
                await self._give_way_to_commands()
            self._woken.clear()
            try:
                async with asyncio.timeout(pause if self._behind else None):
                    await self._woken.wait()
                pause = REASSERT_SECONDS
            except TimeoutError:
                pause = min(2 * pause, REASSERT_CAP_SECONDS)

    def document(self) -> dict[str, Any] | None:
        """What `distsec status` shows; None: no rotation is under way."""
        if self._state.phase is Phase.IDLE and not self._behind:
            return None
        return {
            "phase": self._state.word,
            "next": _following(self._state.phase),
            "under_way": None if self._busy is None else str(self._busy),
            "behind": sorted(self._behind),
        }

    async def status(self) -> dict[str, Any]:
        """The document of `certs rotate-ca status --json`, without its schema. Raises StoreError."""
        self._refuse_without_tls()
        state = await asyncio.to_thread(self._files.rotation)
        nodes = [await self._node_document(node) for node in tuple(self._cluster.nodes.values())]
        return {
            "phase": state.word,
            "step": str(state.phase),
            "since": await asyncio.to_thread(self._files.since),
            "next": _following(state.phase),
            "under_way": None if self._busy is None else str(self._busy),
            "waiting": sorted(self._nodes.waiting),
            "authorities": await asyncio.to_thread(self._files.authorities),
            "nodes": nodes,
            "elsewhere": self._elsewhere(),
        }

    async def command(self, command: Command, elsewhere: bool = False) -> dict[str, Any]:
        """Returns when its phase is reached. `elsewhere`: though listed nodes are run by somebody else.

        Raises UsageError and Unavailable with nothing changed; NotAcknowledged with who is missing (the same
        command goes on, `rollback` leads back); CaKeyUnavailable, StoreError.
        """
        self._refuse_without_tls()
        if self._cluster.ending:
            raise Unavailable("the orchestrator is ending", do="try again when it runs again")
        if self._busy is not None:
            raise Unavailable(
                f"`certs rotate-ca {self._busy}` is under way", do="see `distsec certs rotate-ca status`"
            )
        self._busy = command
        if self._unasked is not None:
            self._unasked.cancel()
        try:
            async with self._lock:
                return await self._drive(command, elsewhere)
        finally:
            self._busy = None
            self._woken.set()

    # ---- the interpreter

    async def _drive(self, command: Command, elsewhere: bool) -> dict[str, Any]:
        state = self._state = await asyncio.to_thread(self._files.rotation)
        if not elsewhere:
            await self._refuse_where_others_are_behind(command)
        try:
            state, effects = core.step(state, core.Asked(command, self._nodes.names()))
        except core.NotNow as error:
            raise UsageError(str(error), do="see `distsec certs rotate-ca status`") from None
        rolled_back = False
        while True:
            event: core.Event | None = None
            for effect in effects:
                match effect:
                    case Save(phase):
                        await self._save(phase)
                    case Bring(nodes):
                        event = await self._nodes.bring(state.phase, nodes)
                    case Attain(check):
                        event = await self._attain(check, state.phase)
                    case Reached(phase, rolled_back):
                        self._publish(phase, rolled_back)
                    case Finish():
                        return self._finished(command, state, effect, rolled_back)
            assert event is not None, "whatever is no end asks for something"
            state, effects = core.step(state, event)

    async def _save(self, phase: Phase) -> None:
        """Nobody issues by the phase before while this one is saved, or installs later what was issued so.

        Where the CA in `ca/` issues before and after there is nothing to wait for: whoever renews a node
        waits for its agent, and a silent one would keep every prepare and its rollback waiting. `still` comes
        last: whoever holds it waits for none of these.
        """
        before = self._state.phase
        issuers = {WANTED[before].leaf, WANTED[phase].leaf}
        async with self._renewal.holding(() if issuers == {Ca.OLD} else self._cluster.nodes), self.still:
            await asyncio.to_thread(self._files.save, phase, time.time())
        self._state = Rotation(phase)
        self._cluster.note("info", "rotation of the CA", phase=str(phase))
        if before is Phase.RETIRING:
            await asyncio.to_thread(self._files.discard)  # what ca/ holds by now
            self._changed()

    def _finished(self, command: Command, state: Rotation, end: Finish, rolled_back: bool) -> dict[str, Any]:
        self._behind = {**end.missing, **end.behind}
        if end.missing:
            told = "; ".join(f"{name}: {why}" for name, why in sorted(end.missing.items()))
            again = f"`distsec certs rotate-ca {command}` goes on"
            back = ", `rollback` leads back" if state.phase in core.BACK and command != "rollback" else ""
            raise NotAcknowledged(
                f"the rotation of the CA is {state.word}, and nobody is locked out: {escape(told, 2000)}",
                missing=tuple(sorted(end.missing)),
                do=f"see to that (a node that cannot answer: stop it), then {again}{back}",
            )
        return {
            "phase": state.word,
            "rolled_back": rolled_back,
            "nodes": sorted(state.nodes),
            "behind": {name: escape(why, 1024) for name, why in sorted(end.behind.items())},
            "next": _following(state.phase),
            "elsewhere": self._elsewhere(),
        }

    async def _attain(self, check: Check, phase: Phase) -> core.Event:
        """StoreError, CaKeyUnavailable: as they are, to whoever has given the command."""
        missing: Mapping[str, str] = {}
        match check:
            case Check.CREATED:
                await asyncio.to_thread(self._files.create, self._cluster.spec.name, time.time())
            case Check.LINKS:
                missing = await self._nodes.links(phase)
            case Check.REFUSED:
                missing = await self._nodes.refused()
            case Check.RETIRED:
                await asyncio.to_thread(self._files.retire)
            case Check.DISCARDED:
                await asyncio.to_thread(self._files.discard)
        if missing:
            return core.Failed(check, phase, missing)
        return core.Passed(check, phase, self._nodes.names())

    # ---- by itself

    async def _give_way_to_commands(self) -> None:
        """Reasserts until a command is given, which ends it: it may be waiting for a node that is silent."""
        self._unasked = asyncio.create_task(self._reassert())
        try:
            await self._unasked
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
        finally:
            self._unasked = None

    async def _reassert(self) -> None:
        """Nobody waits for this, and no phase is left by it."""
        async with self._lock:
            phase, left = self._state.phase, {name for name in self._behind if name in self._cluster.nodes}
            if Check.NODES not in core.CHECKS[phase] and phase is not Phase.IDLE:
                self._behind = {}
                return
            brought = await self._nodes.bring(phase, left)
            self._behind = dict(brought.missing)

    # ---- what is shown

    async def _node_document(self, node: ManagedNode) -> dict[str, Any]:
        roles = {Ca.OLD: "current", Ca.NEW: "next"}
        why = self._behind.get(node.name)
        held: Held | None = None
        try:
            held = await asyncio.to_thread(self._files.held, node.spec)
        except (DistsecError, ValueError) as error:
            why = str(error)
        return {
            "node": node.name,
            "running": self._nodes.lives(node),
            "serial": None if held is None else held.serial,
            "leaf": None if held is None or held.leaf is None else roles[Ca(held.leaf)],
            "trusts": [] if held is None else [roles[Ca(each)] for each in held.bundle],
            "why": None if why is None else escape(why, 1024),
        }

    def _publish(self, phase: Phase, rolled_back: bool) -> None:
        kind, what = _EVENTS[phase, rolled_back]
        self._cluster.bus.publish(
            SecurityEvent(kind, Severity.NOTICE, "", time.time(), result="allow", detail=what)
        )

    async def _refuse_where_others_are_behind(self, command: Command) -> None:
        """Raises UsageError where nodes of other hosts would be locked out by a step here."""
        others = self._elsewhere() if command in (Command.ACTIVATE, Command.PRUNE) else []
        if not others:
            return
        trusted = await asyncio.to_thread(self._files.trusted)
        coming = trusted[-1] if trusted else None
        behind = not_ready(self._cluster.spec, others, command, coming)
        if not behind:
            return
        lacking = "trust the new CA" if command is Command.ACTIVATE else "have certificates of the new CA"
        raise UsageError(
            f"{', '.join(behind[:5])}: listed, not run by this orchestrator, and not known to {lacking}",
            do="take the same step on their hosts and import what these export then; or bring them"
            " `distsec certs export --ca` and add --elsewhere; or deny them",
        )

    def _elsewhere(self) -> list[str]:
        """Listed names that some other orchestrator, or nobody we know, runs."""
        cluster = self._cluster
        return run_elsewhere(cluster.spec, cluster.desk.wanted.overlay, cluster.nodes)

    def _refuse_without_tls(self) -> None:
        if not self._cluster.spec.carrier.encrypted:
            raise UsageError(f"there are no certificates in {self._cluster.spec.mode} mode")

    @property
    def _files(self) -> Succession:
        return self._cluster.machine.succession


def _following(phase: Phase) -> str | None:
    """The command that leads on."""
    return "rollback" if phase in core.ROLLING_BACK else NEXT.get(phase)
