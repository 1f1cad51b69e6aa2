"""Certificates that are renewed before they end, by themselves or by command, and served before it is said.

A renewal has five steps, for any number of nodes at a time: a new key and certificate are issued and
installed (`pki.pairs`); the node reads them (agent command `reload`); its listener is asked over TLS which
serial it serves; its links are proven anew (`link_proof`); it is told and counted. Whatever fails leaves a
node that goes on with what it had, and says why.

`core.renewal` decides when; `dropped` feeds pairs that somebody else has brought into the same steps.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from distsec.core import renewal
from distsec.core.renewal import Clock, Life, Watch
from distsec.errors import CaKeyUnavailable, DistsecError, Unavailable, UsageError
from distsec.model.cluster import Carrier, Certificate
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor import link_proof
from distsec.supervisor.clock import ClockWatch
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.serving import Cluster, Issue, Outcome, Serving

TICK_SECONDS = 1.0
REREAD_TICKS = 60
"""How often every certificate is read again, whatever tells of changes; docs: the 60 s poll."""

DUE, COMMAND, INSTALLED = "due", "command", "installed"
"""Reasons of CertificateRenewed; others are `dropped` and those of `replace`."""

LINKS_TICKS = 5
"""How often links are compared with what their peers serve; one that differs twice is proven anew."""

TOGETHER = 8
"""Nodes that are renewed by themselves at a time."""


class Renewal:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster, clock: ClockWatch) -> None:
        self._cluster = cluster
        self._clocks = clock
        self._serving = Serving(cluster)
        self._watches: dict[str, Watch] = {}
        self._states: dict[str, renewal.State] = {}
        self._ca: Life | None = None
        self._ca_watch = Watch()
        self._catching: set[str] = set()  # nodes that are being told of what is installed for them
        self._stale: frozenset[str] = frozenset()
        self._proving: set[str] = set()  # nodes whose links are being proven again
        self._busy = False  # with renewals that nobody has asked for

    # ---- what the supervisor and its other parts call

    async def run(self) -> None:
        """For as long as the orchestrator runs."""
        if not self._cluster.spec.carrier.encrypted:
            return
        ticks = 0
        while True:
            if ticks % REREAD_TICKS == 0:
                await self._read_all()
            await self._tick()
            if ticks % LINKS_TICKS == 0:
                self._look_at_links()
            ticks += 1
            await asyncio.sleep(TICK_SECONDS)

    async def renew(self, names: Collection[str], recycle: bool = False) -> dict[str, Any]:
        """By command: {"nodes": [one each], "done": …}. Returns when each serves its new certificate and its
        links are proven with it, or it is known why not. Raises UsageError, Unavailable.
        """
        if self._cluster.ending:
            raise Unavailable("the orchestrator is ending", do="try again when it runs again")
        if not self._cluster.spec.carrier.encrypted:
            raise UsageError(f"there are no certificates in {self._cluster.spec.mode} mode")
        condemned = self._cluster.desk.wanted.overlay.condemned
        if held := sorted(condemned.intersection(names)):
            raise UsageError(
                f"{', '.join(held)}: is being re-keyed", do="wait until `distsec status` says so"
            )
        nodes = [self._cluster.nodes[name] for name in names if name in self._cluster.nodes]
        outcomes = await self._renew(nodes, self._issue, COMMAND, recycle=recycle)
        failures = [outcome.failure for outcome in outcomes]
        if failures and all(isinstance(each, CaKeyUnavailable) for each in failures):
            assert failures[0] is not None
            raise failures[0]
        return {
            "done": all(outcome.done for outcome in outcomes),
            "nodes": [outcome.document() for outcome in outcomes],
        }

    async def replace(
        self, pairs: Mapping[str, Pair], cause: str, *, recycle: bool = False
    ) -> dict[str, Outcome]:
        """Installs these pairs, which the caller has checked, and has them served and the links proven.
        `cause` is the enumerated reason of the event.
        """
        nodes = [self._cluster.nodes[name] for name in pairs]

        def install(node: ManagedNode) -> Pair | None:
            return self._cluster.machine.credentials.install(node.spec, pairs[node.name])

        outcomes = await self._renew(nodes, install, cause, recycle=recycle)
        return {outcome.name: outcome for outcome in outcomes}

    async def reissue(self, names: Collection[str], cause: str) -> dict[str, Outcome]:
        """New pairs of the CA that issues now, served and the links proven. `cause` as for `replace`."""
        nodes = [self._cluster.nodes[name] for name in names]
        outcomes = await self._renew(nodes, self._issue, cause)
        return {outcome.name: outcome for outcome in outcomes}

    async def serve(self, names: Collection[str], cause: str) -> dict[str, Outcome]:
        """Has these nodes serve what is installed for them already (by another process, or by an
        orchestrator that was killed then).
        """
        nodes = [self._cluster.nodes[name] for name in names]
        outcomes = await self._renew(nodes, lambda node: None, cause)
        return {outcome.name: outcome for outcome in outcomes}

    def installed(self, name: str) -> str | None:
        """The serial that the node is to show, as far as it is known."""
        life = self._serving.lives.get(name)
        return None if life is None else life.serial

    def saw(self, node: ManagedNode, shown: Certificate | None) -> None:
        """Its port has shown that certificate. What it should show may have been installed while it, or we,
        were not there to tell.
        """
        life = self._serving.lives.get(node.name)
        if shown is None or life is None or shown.serial == life.serial:
            return
        self._cluster.spawn(self._catch_up(node.name), f"certificate of {node.name}")

    def now(self) -> float:
        """The time that certificates are judged by: Unix seconds."""
        return self._clock().now

    def holding(self, names: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """Nobody else changes the pairs of these nodes meanwhile."""
        return self._serving.holding(names)

    async def reread(self, node: ManagedNode) -> bool:
        """Looks at what is installed for it. True: it is another certificate than was known."""
        return await self._serving.reread(node)

    def document(self, name: str) -> dict[str, Any] | None:
        """What `status` shows of a node's renewal."""
        life, watch = self._serving.lives.get(name), self._watches.get(name, Watch())
        if life is None:
            return None
        due = renewal.due_at(life, self._rules(), _chance(life.serial))
        why = escape(watch.why, 1024) or None
        return {"state": str(self._states.get(name, renewal.State.CURRENT)), "due": int(due), "why": why}

    def authority(self) -> dict[str, Any] | None:
        """What `status` shows of the CA."""
        ca = self._ca
        return None if ca is None else {"serial": ca.serial, "not_after": int(ca.not_after)}

    # ---- by itself

    async def _read_all(self) -> None:
        cluster = self._cluster
        for node in tuple(cluster.nodes.values()):
            if self._serving.is_held(node.name):
                continue  # whoever is at it tells of what it installs
            async with self.holding([node.name]):
                another = await self.reread(node)
            if another:
                cluster.spawn(self._catch_up(node.name), f"certificate of {node.name}")
        for name in self._serving.lives.keys() - cluster.nodes.keys():
            self._serving.forget(name)
            self._watches.pop(name, None)
            self._states.pop(name, None)
        try:
            self._ca = await asyncio.to_thread(cluster.machine.credentials.authority)
        except DistsecError as error:
            cluster.note("warning", "the CA's certificate cannot be read", error=str(error))
        else:
            cluster.metrics.set_authority(int(self._ca.not_after))

    async def _tick(self) -> None:
        clock = self._clock()
        due: list[ManagedNode] = []
        for name, life in tuple(self._serving.lives.items()):
            node = self._cluster.nodes.get(name)
            if node is None:
                continue
            watch, chance = self._watches.get(name, Watch()), _chance(life.serial)
            found = renewal.look(watch, life, self._rules(), clock, chance)
            self._watches[name], self._states[name] = found.watch, found.state
            if found.warning is not None:
                self._warn(name, life, found.warning, found.watch.why)
            if found.renew and not self._held(node, life):
                due.append(node)
            elif found.state is renewal.State.CURRENT and found.watch.failures:
                self._serve_again(node, found.watch, clock)
        self._look_at_ca()
        if due and not self._busy and not self._cluster.ending:
            self._busy = True
            due.sort(key=lambda node: self._serving.lives[node.name].not_after)
            self._cluster.spawn(self._renew_due(due[:TOGETHER]), "renewals")

    async def _renew_due(self, nodes: list[ManagedNode]) -> None:
        try:
            recycle = self._cluster.spec.recycle_links
            await self._renew(nodes, self._issue, DUE, recycle=recycle)
        finally:
            self._busy = False

    def _serve_again(self, node: ManagedNode, watch: Watch, clock: Clock) -> None:
        """It has another certificate than it serves, as far as is known: the last try has failed."""
        self._states[node.name] = renewal.State.FAILING
        waiting = watch.retry_at is not None and clock.steady < watch.retry_at
        if node.status.agent and not waiting and node.name not in self._catching:
            self._cluster.spawn(self._catch_up(node.name), f"certificate of {node.name}")

    def _held(self, node: ManagedNode, life: Life) -> bool:
        """Whether a renewal would undo a revocation, or be told to somebody who is to know nothing."""
        overlay = self._cluster.desk.wanted.overlay
        return life.serial in overlay.revoked or node.name in overlay.condemned

    def _look_at_ca(self) -> None:
        if self._ca is None:
            return
        found = renewal.look_at_ca(self._ca_watch, self._ca, self._clock().now)
        self._ca_watch = found.watch
        if found.warning is not None:
            self._warn("", self._ca, found.warning, "")

    def _look_at_links(self) -> None:
        """A handshake that was under way while one end was given another certificate has proven the one
        before it: that holds until it ends, and is no reason to wait for that.
        """
        cluster = self._cluster
        if cluster.spec.carrier is not Carrier.DISTSEC or cluster.ending:
            return
        stale = frozenset(
            link.peer
            for node in cluster.nodes.values()
            for link in node.observed.links.values()
            if (life := self._serving.lives.get(link.peer)) is not None
            and link.serial not in {None, life.serial}
            and link.peer in cluster.nodes
            and cluster.nodes[link.peer].status.agent
        )
        again, self._stale = stale & self._stale - self._proving, stale
        if again:
            cluster.spawn(self._prove_again(again), "links")

    async def _prove_again(self, names: frozenset[str]) -> None:
        """One at a time of each: a node may say for ever that its link has an old proof, and not answer."""
        self._proving |= names
        try:
            async with self._serving.holding(names):
                lives = {name: self._serving.lives.get(name) for name in sorted(names)}
                serials = {name: life.serial for name, life in lives.items() if life is not None}
                await link_proof.prove(self._cluster, serials)
        finally:
            self._proving -= names

    async def _catch_up(self, name: str) -> None:
        if name in self._catching or name not in self._cluster.nodes:
            return
        self._catching.add(name)
        try:
            if self._cluster.nodes[name].status.agent:
                await self.serve([name], INSTALLED)
        finally:
            self._catching.discard(name)

    # ---- the steps

    def _issue(self, node: ManagedNode) -> Pair | None:
        cluster, clock = self._cluster, self._clock()
        return cluster.machine.credentials.renew(cluster.spec, node.spec, clock.wall, clock.behind)

    async def _renew(
        self, nodes: list[ManagedNode], issue: Issue, cause: str, *, recycle: bool = False
    ) -> list[Outcome]:
        async with self.holding(node.name for node in nodes):
            outcomes = await asyncio.gather(*(self._serving.swap(node, issue) for node in nodes))
            served = {o.name: o.serial for o in outcomes if o.error is None and o.running and o.serial}
            if served:
                links = await link_proof.prove(self._cluster, served)
                if recycle:
                    links = await link_proof.recycle(self._cluster, served)
                for outcome in outcomes:
                    outcome.links = links.get(outcome.name, outcome.links)
        for outcome in outcomes:
            self._told_of(outcome, cause)
        return outcomes

    def _told_of(self, outcome: Outcome, cause: str) -> None:
        cluster, name = self._cluster, outcome.name
        life = self._serving.lives.get(name)
        if outcome.error is not None:
            if life is not None:
                watch, chance = self._watches.get(name, Watch()), _chance(life.serial + name)
                watch = (
                    watch if watch.serial == life.serial else Watch(life.serial, renewed_at=watch.renewed_at)
                )
                self._watches[name] = renewal.failed(watch, life, outcome.error, self._clock(), chance)
                self._states[name] = renewal.State.FAILING
            cluster.note(
                "warning", "a certificate was not renewed", node=name, error=outcome.error, cause=cause
            )
            return
        assert outcome.serial is not None
        issued_now = cause in (DUE, COMMAND)
        self._watches[name] = renewal.renewed(outcome.serial, self._clock(), issued_now=issued_now)
        self._states[name] = renewal.State.CURRENT
        for peer, why in outcome.links.failed.items():
            cluster.note("warning", "a link was not proven anew", node=name, peer=peer, error=why)
        served = (
            f"{len(outcome.links.proven)} links proven" if outcome.running else "served from its next start"
        )
        instead = f"in place of {outcome.before}, " if outcome.before not in {None, outcome.serial} else ""
        self._publish(
            EventType.CERTIFICATE_RENEWED, Severity.INFO, name, cause, outcome.serial, f"{instead}{served}"
        )

    def _warn(self, name: str, life: Life, warning: renewal.Warning, why: str) -> None:
        left = warning.left
        what = "the certificate" if name else "the CA's own certificate"
        when = f"ends in {_duration(left)}" if left > 0 else "has expired"
        self._publish(
            EventType.CERTIFICATE_EXPIRING,
            warning.severity,
            name,
            "expired" if left <= 0 else "expiring",
            life.serial,
            f"{what} {when}{f' and is not renewed: {why}' if why else ''}",
        )

    def _publish(
        self, kind: EventType, severity: Severity, name: str, reason: str, serial: str, detail: str
    ) -> None:
        self._cluster.bus.publish(
            SecurityEvent(
                kind, severity, name, time.time(), reason=reason, serial=serial, detail=escape(detail, 1024)
            )
        )

    def _rules(self) -> renewal.Rules:
        spec = self._cluster.spec
        return renewal.Rules(spec.renew_before_seconds, spec.renew_jitter_seconds)

    def _clock(self) -> Clock:
        return Clock.of(self._clocks.read(), self._clocks.believed())


def _chance(text: str) -> float:
    """In [0, 1), the same for the same text: where in the jitter a certificate is, over restarts too."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2.0**48


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
