"""Performs what `core.cookie_rotation` decides: saves, writes cookies, tells nodes, has every link proven.

A rotation belongs to the operator: it is begun, continued and given up by commands only. Until it goes on,
all nodes work with what they have, and one that starts is given the cookies of the saved phase.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.core import cookie_rotation as core
from distsec.core.cookie_rotation import Effect, Happened
from distsec.errors import DistsecError, NotAcknowledged, Unavailable, UsageError
from distsec.model.cluster import Carrier, NodeState
from distsec.model.cookies import CookiePhase, CookieRotation
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.supervisor.elsewhere import of_no_host
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.pushing import cookie_arguments
from distsec.supervisor.records import Secrets

if TYPE_CHECKING:
    from distsec.supervisor.supervisor import Supervisor

COMMAND_SECONDS = 10.0
PROOF_SECONDS = 30.0
PROOF_OF_PAIR_SECONDS = 0.05
"""For the proofs of all links: each is a TLS handshake, with whoever may be slow."""

RETRY_SECONDS = 0.2
_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL, NodeState.BACKOFF})
_WHY = {
    "no_answer": "has not acknowledged",
    "cookies_unproven": "cannot take two cookies (its carrier or release of OTP)",
    "cookies_old": "has the cookies of a later step: was the state directory restored?",
    "unknown": "runs an agent that knows no rotation: restart it",
    "condemned": "is being re-keyed",
}


class CookieRotator:
    """Of one supervisor, in its event loop. One rotation at a time."""

    def __init__(self, cluster: Supervisor) -> None:
        self._cluster = cluster
        self._busy = False
        self._acknowledged: set[str] = set()
        self._waiting: set[str] = set()
        self._proven: dict[str, int] = {}  # links, by the node that dialled them

    def tell_of_start(self) -> None:
        """Says it where an earlier orchestrator has left a rotation: it does not go on by itself."""
        with contextlib.suppress(DistsecError):  # whoever needs the cookies says what is wrong with them
            phase = self._secrets.rotation().phase
            if phase is not CookiePhase.IDLE:
                text = f"the cookies are not rotated yet (phase {phase}): `distsec cookie rotate` goes on"
                self._cluster.note("warning", text)

    async def status(self) -> dict[str, Any]:
        """The document of `distsec cookie status --json`, without its schema. Raises StoreError."""
        rotation = await asyncio.to_thread(self._secrets.rotation)
        return {
            "phase": str(rotation.phase),
            "step": rotation.step,
            "made": rotation.in_use_since,
            "age_seconds": max(0, int(time.time()) - rotation.in_use_since),
            "under_way": self._busy,
            "acknowledged": sorted(self._acknowledged) if self._busy else [],
            "waiting": sorted(self._waiting) if self._busy else [],
        }

    async def rotate(self, elsewhere: bool = False) -> dict[str, Any]:
        """Begins, or goes on where it was left, until the old secret is forgotten everywhere.

        `elsewhere`: though listed nodes are run by somebody else, and will be refused. Raises UsageError and
        Unavailable with nothing changed, NotAcknowledged (it can be continued), StoreError.
        """
        return await self._alone(elsewhere, give_up=False)

    async def give_up(self) -> dict[str, Any]:
        """Back to the old secret, as long as nobody dials with the new one. Raises like `rotate`."""
        return await self._alone(True, give_up=True)

    # ---- the interpreter

    async def _alone(self, elsewhere: bool, *, give_up: bool) -> dict[str, Any]:
        if self._cluster.ending:
            raise Unavailable("the orchestrator is ending", do="try again when it runs again")
        if self._busy:
            raise Unavailable("the cookies are being rotated", do="see `distsec cookie status`")
        self._busy = True
        try:
            rotation = await asyncio.to_thread(self._secrets.rotation)
            self._refuse(rotation, elsewhere, give_up)
            event: core.Event = Happened.RESUMED
            if give_up:
                event = Happened.GIVEN_UP
            elif rotation.phase is CookiePhase.IDLE:
                event = core.Begun(int(time.time()))
            return await self._drive(rotation, event)
        finally:
            self._busy = False
            self._acknowledged, self._waiting, self._proven = set(), set(), {}

    def _refuse(self, rotation: CookieRotation, elsewhere: bool, give_up: bool) -> None:
        """Raises UsageError where a rotation could not come to a good end."""
        cluster = self._cluster
        if give_up and rotation.phase is not CookiePhase.ACCEPTING:
            raise UsageError(
                f"there is nothing to give up: the rotation is {rotation.phase}",
                do="`distsec cookie rotate` goes on with it"
                if rotation.phase is not CookiePhase.IDLE
                else "see `distsec cookie status`",
            )
        living = [node.name for node in self._living()]
        if cluster.spec.carrier is not Carrier.DISTSEC and living:
            raise UsageError(
                f"with carrier {cluster.spec.carrier} a node takes one cookie only, so that a rotation would"
                f" lock nodes out, and {len(living)} run",
                do='`distsec stop --all`, rotate, `distsec start --all`; or use carrier = "distsec"',
            )
        others = [] if elsewhere or rotation.phase is not CookiePhase.IDLE else self._elsewhere()
        if others:
            raise UsageError(
                f"{', '.join(others[:5])}: listed, and not run by this orchestrator, which cannot give them"
                " their new cookies",
                do="`distsec import` what their hosts export, deny them, or add --elsewhere and bring them"
                " theirs",
            )

    def _elsewhere(self) -> list[str]:
        """Who has its cookies of the secret here, and is run by somebody else."""
        cluster = self._cluster
        return of_no_host(cluster.spec, cluster.desk.wanted.overlay, cluster.nodes)

    async def _drive(self, rotation: CookieRotation, event: core.Event) -> dict[str, Any]:
        given_up = event is Happened.GIVEN_UP
        while True:
            before = rotation
            rotation, effects = core.step(rotation, event)
            event = Happened.ACKNOWLEDGED
            for effect in effects:
                match effect:
                    case Effect.MAKE_SECRET:
                        await asyncio.to_thread(self._secrets.make_next)
                    case Effect.SAVE:
                        await asyncio.to_thread(self._secrets.save, rotation)
                    case Effect.TELL:
                        await self._tell(rotation)
                    case Effect.VERIFY:
                        await self._verify()
                        event = Happened.VERIFIED
                    case Effect.REPLACE_SECRET:
                        await asyncio.to_thread(self._secrets.replace)
                    case Effect.DROP_SECRET:
                        await asyncio.to_thread(self._secrets.drop_next)
            if rotation.phase is CookiePhase.IDLE:
                return self._finished(before, rotation, given_up)

    def _finished(self, before: CookieRotation, rotation: CookieRotation, given_up: bool) -> dict[str, Any]:
        links = sum(self._proven.values())
        acknowledged = sorted(self._acknowledged)
        what = f"given up while {before.phase}" if given_up else f"{links} links proven"
        self._cluster.bus.publish(
            SecurityEvent(
                EventType.COOKIE_ROTATED,
                Severity.NOTICE,
                "",
                time.time(),
                reason="given_up" if given_up else None,
                detail=f"{what}, acknowledged by {len(acknowledged)} nodes",
            )
        )
        return {
            "phase": str(rotation.phase),
            "step": rotation.step,
            "made": rotation.in_use_since,
            "given_up": given_up,
            "acknowledged": acknowledged,
            "links": links,
            "elsewhere": [] if given_up else self._elsewhere(),
        }

    @property
    def _secrets(self) -> Secrets:
        return self._cluster.machine.records.cookies

    # ---- all nodes

    async def _tell(self, rotation: CookieRotation) -> None:
        """Returns when every node that lives has the cookies of this step; the others start with them."""
        await asyncio.to_thread(self._write)
        self._acknowledged, missing = set(), dict[str, str]()
        deadline = asyncio.get_running_loop().time() + self._cluster.spec.acknowledge_deadline_seconds
        while asked := [n for n in self._living() if n.name not in self._acknowledged | missing.keys()]:
            self._waiting = {node.name for node in asked}
            answers = await asyncio.gather(*(self._ask(node, rotation, deadline) for node in asked))
            for node, why in zip(asked, answers, strict=True):
                if why is None:
                    self._acknowledged.add(node.name)
                else:
                    missing[node.name] = why
        self._waiting = set()
        if missing:
            raise self._incomplete(rotation.phase, missing)

    def _write(self) -> None:
        cluster = self._cluster
        for node in tuple(cluster.nodes.values()):
            cluster.machine.records.write_cookies(cluster.spec, node.spec, cluster.desk.wanted.overlay)

    def _living(self) -> list[ManagedNode]:
        """Whoever may have read its file before it was written. One that something else starts may run before
        its agent is heard of.
        """
        records, ports = self._cluster.machine.records, self._cluster.machine.ports

        def lives(node: ManagedNode) -> bool:
            status = node.status
            if status.agent or status.pid is not None or status.state not in _AT_REST:
                return True
            port = node.spec.port or ports[node.name]
            return status.rules.external and records.listened_on(node.spec.address, port)

        return [node for node in self._cluster.nodes.values() if lives(node)]

    async def _ask(self, node: ManagedNode, rotation: CookieRotation, deadline: float) -> str | None:
        """Why it has not taken the cookies of this step; None: it has, or it has ended."""
        try:
            async with asyncio.timeout_at(deadline):
                while node in self._living():
                    if not node.status.agent:
                        await asyncio.sleep(RETRY_SECONDS)
                        continue
                    overlay = self._cluster.desk.wanted.overlay
                    cookies = self._cluster.machine.cookies(node.spec, overlay)
                    if cookies is None:
                        return "condemned"
                    arguments = cookie_arguments(cookies)
                    try:
                        reply = await node.server.command(Command.COOKIES, arguments, COMMAND_SECONDS)
                    except AgentCommandFailed as error:
                        if error.reason not in ("lost", "timeout", "busy"):
                            return error.reason
                        await asyncio.sleep(RETRY_SECONDS)
                        continue
                    return None if reply.fields["either"] == (cookies.other is not None) else "other"
        except TimeoutError:
            return "no_answer"
        return None

    # ---- every link

    async def _verify(self) -> None:
        """Every link that is up, by the node that dialled it: both ends must show the new cookie."""
        living = self._living()
        seconds = PROOF_SECONDS + PROOF_OF_PAIR_SECONDS * len(living) * (len(living) - 1) / 2
        deadline = asyncio.get_running_loop().time() + seconds
        self._waiting = {node.name for node in living}
        found = await asyncio.gather(*(self._prove(node, deadline) for node in living))
        self._waiting = set()
        missing = {node.name: why for node, why in zip(living, found, strict=True) if why is not None}
        if missing:
            raise self._incomplete(CookiePhase.USING, missing)

    async def _prove(self, node: ManagedNode, deadline: float) -> str | None:
        why = "no_answer"
        try:
            async with asyncio.timeout_at(deadline):
                while node in self._living():
                    if not node.status.agent:
                        await asyncio.sleep(RETRY_SECONDS)
                        continue
                    try:
                        reply = await node.server.command(Command.RENEW, {"peers": {}}, PROOF_SECONDS)
                    except AgentCommandFailed as error:
                        why = error.reason
                    else:
                        failed = [f"{each.peer} ({each.reason})" for each in reply.fields["failed"]]
                        failed += [
                            f"{e.peer} (old cookie)" for e in reply.fields["renewed"] if not e.cookie_current
                        ]
                        if not failed:
                            self._proven[node.name] = len(reply.fields["renewed"])
                            self._waiting.discard(node.name)
                            return None
                        why = f"link with {', '.join(failed[:3])} not proven"
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return why
        return None  # it ended, and its links with it

    def _incomplete(self, phase: CookiePhase, missing: Mapping[str, str]) -> DistsecError:
        if phase is CookiePhase.IDLE:
            return NotAcknowledged(
                f"the new cookies are given up, but {_who(missing.items())}",
                missing=tuple(missing),
                do="nobody has them, so a node may take them until it starts again or they are rotated",
            )
        return NotAcknowledged(
            f"the cookies are not rotated yet (phase {phase}): {_who(missing.items())}; nobody is locked out",
            missing=tuple(missing),
            do="see to these nodes (`distsec status`) and run `distsec cookie rotate` again: it goes on",
        )


def _who(missing: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {_WHY.get(why, escape(why, 200))}" for name, why in missing)
