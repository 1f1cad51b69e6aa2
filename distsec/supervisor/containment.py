"""`deny --compromised`: ends, re-keys and restarts every node that the compromised one may have reached.

What is to be done stands in the overlay, saved in one step with the denial and the revocations, and this
brings it about, however often it is interrupted: it looks at what is, and does the next thing.

    CONDEMNED   KILL; told no secret from the moment that it is saved
    all ended   whom they reached meanwhile is condemned too; then a new key, certificate, agent key and
                cookies for each
    REKEYED     started again; clean as soon as its guard is proven with the new key
    HELD        the compromised node itself: stays stopped and denied until `allow`
    ELSEWHERE   not managed here: its certificates are revoked; clean when the operator says so, by
                `certs revoke NODE`, `allow` or `deny`: that it shows another certificate says nothing

None is re-keyed before all have ended, or what still runs in one could be linked with another that is clean
already; and nothing is written for a node that lives, for it could read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, Protocol

from distsec.core import node_status as life
from distsec.core.contacts import FORGOTTEN
from distsec.core.wanted import Taint, TaintStage, listed_names
from distsec.errors import CaKeyUnavailable, DistsecError, NotAcknowledged, NotFound
from distsec.model.cluster import NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import NodeName
from distsec.model.text import escape
from distsec.pki.crl import RevocationReason
from distsec.supervisor.certificates import held_certificates
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import who

LOOK_SECONDS = 2.0
"""How often is looked while something is tainted, and nothing has happened that would call for it."""

END_SECONDS = 15.0
"""What the command waits for nodes to end: KILL, and the end of all their processes."""

SETTLE_SECONDS = 1.0
"""From the end of the last condemned node, and everybody's word that it keeps them out, until it is judged
whom they reached: what agents have still to tell of links has come by then (they tell at once).
"""

_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL})
_TO_RUN = frozenset({NodeState.STARTING, NodeState.RUNNING, NodeState.BACKOFF})


class Cluster(Hub, Protocol):
    """What it needs of the supervisor."""

    nodes: dict[str, ManagedNode]


class Containment:
    """Belongs to one event loop. `run` is a task of its own, for as long as the orchestrator runs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._woken = asyncio.Event()
        self._waiters: set[asyncio.Event] = set()
        self._deciding = asyncio.Lock()  # until it is saved and told; never while nodes are ended and cleaned
        self._stuck: DistsecError | None = None  # why the last step was none
        self._unseen: set[str] = set()  # somebody has their port, and it is not known who
        self._added: dict[str, set[str]] = {}  # cause → whom its nodes reached while they were being ended

    def wake(self) -> None:
        """Something has changed about a node."""
        self._woken.set()
        for waiter in self._waiters:
            waiter.set()

    def startable(self, name: str) -> str | None:
        """Why `name` may not be started now; None: it may."""
        taint = self._cluster.desk.wanted.overlay.taint(name)
        if taint is None or taint.stage not in (TaintStage.CONDEMNED, TaintStage.HELD):
            return None
        if taint.stage is TaintStage.HELD:
            return f"{name} was denied as compromised, and is held until it is allowed again"
        return f"{name} is tainted by {taint.cause}, and has not been re-keyed yet"

    async def run(self) -> None:
        while True:
            self._woken.clear()
            tainted = bool(self._cluster.desk.wanted.overlay.tainted)
            if tainted:
                try:
                    await self._go_on()
                    self._stuck = None
                except DistsecError as error:  # nothing of it is started; it is tried again
                    self._stuck = error
                    self._cluster.note("error", "re-keying does not get on", error=str(error))
                    for waiter in self._waiters:
                        waiter.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if tainted else None):
                    await self._woken.wait()

    async def condemn(self, name: str, since: float) -> dict[str, Any]:
        """Denies `name`, compromised since `since` (Unix seconds; 0: always), and cleans whom it reached.

        Raises NameInvalid, NotFound, StoreError (nothing is changed), and NotAcknowledged with who is not
        clean yet: the denial and the revocations stand, and it goes on with them.
        """
        name = str(NodeName.parse(name))
        cluster, desk = self._cluster, self._cluster.desk
        async with self._deciding:
            if not (desk.knows(name) or name in cluster.nodes or cluster.memory.knows(name)):
                raise NotFound(f"{name} is on no list and was never linked", do="check the name")
            listed = set(listed_names(desk.spec, desk.wanted.overlay))
            presumed = cluster.memory.presumed(name)
            reached = cluster.memory.tainted(name, since, listed | set(cluster.nodes))
            ours = [each for each in reached if each in cluster.nodes]
            taints = [self._taint(each, int(reached[each]), name) for each in ours]
            elsewhere = sorted((listed & set(reached)) - set(cluster.nodes) - {name})
            taints += [
                Taint(each, TaintStage.ELSEWHERE, int(reached[each]), False, name) for each in elsewhere
            ]
            serials, unknown = await self._serials(set(reached) | {name})
            condemned = [taint.name for taint in taints if taint.stage is TaintStage.CONDEMNED]
            await self._note_compromised(serials)

            def end_them() -> None:
                for each in condemned:
                    self._end(cluster.nodes[each])

            outcome = await desk.refuse(
                lambda overlay: overlay.condemning(name, taints, serials),
                withdrawn=frozenset({name}),
                kept=end_them,
            )
        self.wake()
        late = dict(await self._until_clean(condemned))
        # Whom they reached while they ended was added before any of them was re-keyed.
        added = sorted(self._added.pop(name, set()) - set(condemned))
        late |= await self._until_clean(added)
        condemned += added
        others = set(reached) - listed - set(cluster.nodes) - {name}
        answer = {
            "name": name,
            "generation": desk.wanted.generation,
            "acknowledged": list(outcome.acknowledged),
            "missing": list(outcome.missing),
            "rekeyed": sorted(set(condemned) - set(late)),
            "held": name if name in condemned and name not in late else None,
            "tainted": sorted(late),
            "elsewhere": elsewhere,
            "others": sorted(escape(each) for each in others if not each.startswith(FORGOTTEN)),
            "presumed": sorted(escape(each) for each in presumed if not each.startswith(FORGOTTEN)),
            "revoked": sorted(serials),
            "unknown": sorted(unknown),
        }
        if late or outcome.missing:
            told = [f"{each} {why}" for each, why in late.items()]
            told += [who(outcome.missing)] if outcome.missing else []
            raise NotAcknowledged(
                f"{name} is denied and what it knew is revoked, for good, but {', '.join(told)}",
                missing=(*late, *outcome.missing),
                do="it is gone on with as soon as that changes; see `distsec status`",
            )
        return answer

    # ---- what is condemned

    def _taint(self, name: str, since: int, cause: str) -> Taint:
        node, before = self._cluster.nodes[name], self._cluster.desk.wanted.overlay.taint(name)
        to_run = node.status.state in _TO_RUN or node.status.then is life.Then.START
        again = before is not None and before.start
        if before is not None and before.cause == name:
            cause = name  # it was denied as compromised itself, and stays so
        if before is not None:
            since = min(since, before.since)
        start = (to_run or again) and name != cause and bool(node.spec.command)
        return Taint(name, TaintStage.CONDEMNED, since, start, cause)

    async def _serials(self, names: Set[str]) -> tuple[frozenset[str], Set[str]]:
        """Of the certificates that `names` have or have shown; never one that another node of ours has now,
        or the CA's own, since what a node is said to have shown may be a lie. And of whom of `names` it is
        not known what they have now, since their file is missing or garbage.
        """
        cluster = self._cluster
        nodes = tuple(cluster.nodes.values())
        held = await asyncio.to_thread(held_certificates, cluster.machine, nodes)
        authorities = await asyncio.to_thread(cluster.machine.records.authority_serials)
        current = {node.name: held.serial(node.name) for node in nodes}
        kept = {serial for each, serial in current.items() if each not in names} | authorities
        shown = {serial for each in names for serial in cluster.memory.serials(each)}
        shown |= {serial for each in names if (serial := current.get(each)) is not None}
        unknown = held.unknown.keys() & names
        for name in sorted(unknown):
            text = "a node's certificate cannot be read: what it has shown is revoked"
            cluster.note("warning", text, node=name, error=held.unknown[name])
        return frozenset(shown - kept), unknown

    async def _note_compromised(self, serials: Set[str]) -> None:
        """For the list that others read; what keeps it from being written keeps nobody from being ended."""
        records, reason = self._cluster.machine.records, RevocationReason.KEY_COMPROMISE
        try:
            await asyncio.to_thread(records.note_revoked, serials, reason, time.time())
        except DistsecError as error:
            self._cluster.note("warning", "why certificates are revoked cannot be kept", error=str(error))

    async def _until_clean(self, names: list[str]) -> Mapping[str, str]:
        """Waits for as long as that may take; returns who is not, and why."""
        spec = self._cluster.spec
        rounds = math.ceil(len(names) / max(1, spec.start_parallel))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS + rounds * spec.start_deadline_seconds):
                while any(self._waited_for(name) for name in names):
                    await self._next_change()
        return {name: why for name in names if (why := self._unclean(name)) is not None}

    async def _next_change(self) -> None:
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        try:
            await waiter.wait()
        finally:
            self._waiters.discard(waiter)

    def _waited_for(self, name: str) -> bool:
        taint, node = self._cluster.desk.wanted.overlay.taint(name), self._cluster.nodes.get(name)
        if taint is None or node is None or taint.stage is TaintStage.HELD:
            return False
        if taint.stage is TaintStage.CONDEMNED:
            keyless = isinstance(self._stuck, CaKeyUnavailable)  # that takes somebody to change it
            return self._lives(node) or not (keyless or name in self._unseen)
        failed = node.status.state is NodeState.FATAL or node.status.overdue
        return bool(node.spec.command) and taint.start and not failed

    def _unclean(self, name: str) -> str | None:
        taint, node = self._cluster.desk.wanted.overlay.taint(name), self._cluster.nodes.get(name)
        if taint is None or node is None or taint.stage is TaintStage.HELD:
            return None
        if taint.stage is TaintStage.CONDEMNED:
            lives = self._lives(node) or name in self._unseen
            why = f" ({self._stuck})" if self._stuck is not None else ""
            return "has not ended" if lives else f"has not been re-keyed{why}"
        if not node.spec.command:
            return "is re-keyed and wants to be started by whatever starts it"
        return f"is re-keyed and is {node.status.state}"

    # ---- one thing after the other

    async def _go_on(self) -> None:
        desk, nodes = self._cluster.desk, self._cluster.nodes
        overlay = desk.wanted.overlay
        ours = (taint.name for taint in overlay.tainted if taint.stage is not TaintStage.ELSEWHERE)
        gone = {name: None for name in ours if name not in nodes}
        condemned = [nodes[name] for name in sorted(overlay.condemned) if name in nodes]
        living = [node for node in condemned if self._lives(node)]
        for node in living:
            self._end(node)
        if gone:
            await desk.restage(gone, overlay)  # not managed any more; its certificate stays revoked
        if condemned and not living:
            await asyncio.sleep(SETTLE_SECONDS)
            if desk.busy or desk.wanted.overlay is not overlay:
                self.wake()  # something was decided meanwhile: there may be others to end first
                return
            if not await self._spread_meanwhile():
                await self._rekey(condemned)
        await self._look_for_clean()

    async def _spread_meanwhile(self) -> bool:
        """Condemns whom the condemned reached until their end; True if there is anybody. Code that waits for
        its node's end may dial further nodes in that moment, or have dialled them unseen before.
        """
        cluster, overlay = self._cluster, self._cluster.desk.wanted.overlay
        listed = set(listed_names(cluster.spec, overlay))
        new: dict[str, Taint] = {}
        for taint in overlay.tainted:
            if taint.stage is not TaintStage.CONDEMNED:
                continue
            reached = cluster.memory.tainted(taint.name, taint.since, listed | set(cluster.nodes))
            for name, since in reached.items():
                if overlay.taint(name) is not None or (name in overlay.deny and name not in cluster.nodes):
                    continue
                if name in cluster.nodes:
                    new.setdefault(name, self._taint(name, int(since), taint.cause))
                elif name in listed:
                    new.setdefault(name, Taint(name, TaintStage.ELSEWHERE, int(since), False, taint.cause))
        if not new:
            return False
        for taint in new.values():
            self._added.setdefault(taint.cause, set()).add(taint.name)
        serials, _ = await self._serials(new.keys())
        await cluster.desk.refuse(lambda overlay: overlay.tainting(new.values(), serials))
        self.wake()
        return True

    @staticmethod
    def _lives(node: ManagedNode) -> bool:
        """Whether anything of it runs, or is being started."""
        status = node.status
        return node.process is not None or status.pid is not None or status.state not in _AT_REST

    @staticmethod
    def _end(node: ManagedNode) -> None:
        status = node.status
        if status.state is NodeState.STOPPING and status.why is life.Why.COMPROMISED:
            return  # under way
        if status.state is NodeState.STOPPED and node.process is not None:
            node.signal(signal.SIGKILL)  # something else has started it, and its agent is not connected
            return
        node.feed(life.Condemned())

    async def _rekey(self, condemned: list[ManagedNode]) -> None:
        cluster, desk = self._cluster, self._cluster.desk
        records, seen = cluster.machine.records, desk.wanted.overlay
        changed: dict[str, Taint | None] = {}
        for node in condemned:
            self._unseen.discard(node.name)
            if not node.spec.command and await asyncio.to_thread(self._held_by_somebody, node):
                self._unseen.add(node.name)
                continue  # it may live where it cannot be seen: it would read what is written for it
            taint = seen.taint(node.name)
            assert taint is not None, "it is one of the condemned"
            await asyncio.to_thread(records.rekey, desk.spec, node.spec, seen, desk.wanted.document)
            self._rekeyed(node)
            changed[node.name] = self._after_rekeying(taint, node)
        if not changed:
            return
        await desk.restage(changed, seen)
        await asyncio.to_thread(desk.write_files)  # what was decided meanwhile, and the cookies
        cluster.memory.forget(set(changed))
        await cluster.memory.save()
        for node in condemned:
            after = changed.get(node.name)
            if after is not None and after.start and self.startable(node.name) is None:
                node.feed(life.StartRequested())
        self.wake()

    def _after_rekeying(self, taint: Taint, node: ManagedNode) -> Taint | None:
        if taint.cause != taint.name and node.spec.command and not taint.start:
            return None  # nothing of it runs, and its keys are new: it is clean
        boot, ticks = self._cluster.machine.moment()
        stage = TaintStage.HELD if taint.cause == taint.name else TaintStage.REKEYED
        return replace(taint, stage=stage, boot=boot, rekeyed_at=ticks)

    def _rekeyed(self, node: ManagedNode) -> None:
        before = node.certificate.serial if node.certificate is not None else None
        node.rekeyed()
        now = node.certificate.serial if node.certificate is not None else None
        text = f"re-keyed: {now} in place of {before}" if now else "re-keyed"
        self._cluster.bus.publish(
            SecurityEvent(
                EventType.CERTIFICATE_ROTATED,
                Severity.NOTICE,
                node.name,
                time.time(),
                reason="compromised",
                serial=now,
                detail=text,
            )
        )

    def _held_by_somebody(self, node: ManagedNode) -> bool:
        port = node.spec.port or self._cluster.machine.ports[node.name]
        return self._cluster.machine.records.listened_on(node.spec.address, port)

    async def _look_for_clean(self) -> None:
        cluster, overlay = self._cluster, self._cluster.desk.wanted.overlay
        changed: dict[str, Taint | None] = {}
        for taint in overlay.tainted:
            node = cluster.nodes.get(taint.name)
            if taint.stage is TaintStage.REKEYED and node is not None:
                if self._began_before(taint, node):
                    await self._condemn_again(taint, node)
                elif node.status.state is NodeState.RUNNING and node.status.proven:
                    changed[taint.name] = None
        if changed:
            await cluster.desk.restage(changed, overlay)
            self.wake()  # whoever waits for it

    async def _condemn_again(self, taint: Taint, node: ManagedNode) -> None:
        """It has read what was meant for the one after it."""
        serials, _ = await self._serials({node.name})
        again = replace(taint, stage=TaintStage.CONDEMNED)
        await self._cluster.desk.refuse(lambda overlay: overlay.tainting([again], serials))
        self.wake()

    def _began_before(self, taint: Taint, node: ManagedNode) -> bool:
        """A process that was there all the time, and reads its new key from the file at every hello."""
        process = node.process
        if process is None or node.spec.command:  # what is started here is started after it was re-keyed
            return False
        boot, _ = self._cluster.machine.moment()
        return boot == taint.boot and process.start_time < taint.rekeyed_at
