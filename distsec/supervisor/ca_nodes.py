"""What each phase of a rotation of the CA asks of the nodes: that they have what it wants, that their links
are proven with it, and that they refuse what it gives up. `supervisor.ca_rotation` asks; nothing is decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command as Agent
from distsec.beam.messages import Served
from distsec.core import rotation as core
from distsec.core.rotation import Ca, Check, Phase
from distsec.errors import DistsecError, UsageError
from distsec.model.cluster import Carrier, Link, NodeState
from distsec.model.policy import Reason, Verdict
from distsec.model.text import escape
from distsec.pki.pairs import Pair
from distsec.supervisor import link_proof
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.renewal import Renewal
from distsec.supervisor.succession import Held, Succession
from distsec.supervisor.threads import to_its_end

CAUSE = "ca_rotation"
"""The reason of CertificateRenewed."""

ANSWER_DEADLINES = 3
"""Of acknowledge_deadline_seconds, which a node is given to say that it has read its files, and its links to
be proven: it reads keys, and each link is a handshake.
"""

RELOAD_SECONDS = 10.0
REFUSED_SECONDS = 5.0
RETRY_SECONDS = 0.1
_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL, NodeState.BACKOFF})


class Cluster(Hub, Protocol):
    """What is needed of the supervisor."""

    nodes: dict[str, ManagedNode]


class CaNodes:
    """Belongs to one event loop. `waiting`: who is being looked at."""

    def __init__(self, cluster: Cluster, renewal: Renewal) -> None:
        self._cluster = cluster
        self._renewal = renewal
        self.waiting: set[str] = set()

    def names(self) -> frozenset[str]:
        return frozenset(self._cluster.nodes)

    @property
    def _patience(self) -> float:
        return ANSWER_DEADLINES * self._cluster.spec.acknowledge_deadline_seconds

    @property
    def _files(self) -> Succession:
        return self._cluster.machine.succession

    async def bring(self, phase: Phase, names: Collection[str]) -> core.Brought:
        """Bundles first, then leaves, then whoever runs is told and asked what it has."""
        self.waiting = set(names)
        try:
            return await self._bring(phase, names)
        finally:
            self.waiting = set()

    async def _bring(self, phase: Phase, names: Collection[str]) -> core.Brought:
        missing: dict[str, str] = {}
        written: set[str] = set()
        nodes = [node for name in sorted(names) if (node := self._cluster.nodes.get(name)) is not None]
        held: dict[str, Held] = {}
        for node in nodes:
            try:
                held[node.name] = await self._write(node, core.WANTED[phase].leaf)
            except (DistsecError, OSError, ValueError) as error:
                missing[node.name] = str(error)
        if fresh := [name for name, each in held.items() if each.leaf != core.WANTED[phase].leaf]:
            outcomes = await self._renewal.reissue(fresh, CAUSE)
            missing |= {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
        for node in nodes:
            if node.name not in held:
                continue
            try:
                held[node.name] = await to_its_end(self._files.held, node.spec)
            except (DistsecError, ValueError) as error:
                missing[node.name] = str(error)
                continue
            if held[node.name].leaf == core.WANTED[phase].leaf:
                written.add(node.name)
            else:
                missing.setdefault(node.name, "its certificate is not of the CA that it is to be of")
        asked = [node for node in nodes if node.name in written]
        self.waiting = {node.name for node in asked}
        answers = await asyncio.gather(*(self._told(node, held[node.name], phase) for node in asked))
        for node, why in zip(asked, answers, strict=True):
            if why is None:
                missing.pop(node.name, None)  # what a renewal complained of has been mended meanwhile
            else:
                missing[node.name] = why
        confirmed = frozenset(names) & self.names() - missing.keys()
        return core.Brought(phase, self.names(), confirmed, missing, frozenset(written))

    async def _write(self, node: ManagedNode, leaf: Ca) -> Held:
        """Its bundle; what it has then, of which the leaf may still be of the other CA than `leaf`."""
        if node.name in self._cluster.desk.wanted.overlay.condemned:
            raise UsageError("it is being re-keyed; wait until `distsec status` says so")
        await to_its_end(self._files.write_bundle, node.spec)
        held = await to_its_end(self._files.held, node.spec)
        if held.leaf != leaf == Ca.NEW:
            await to_its_end(self._files.keep_witness, node.spec)
        return held

    async def _told(self, node: ManagedNode, held: Held, phase: Phase) -> str | None:
        """As `_asked`; nobody waits for it after that."""
        try:
            return await self._asked(node, held, phase)
        finally:
            self.waiting.discard(node.name)

    async def _asked(self, node: ManagedNode, held: Held, phase: Phase) -> str | None:
        """Why it, running, has not what its files say; None: it has, or it does not run."""
        trusted = await asyncio.to_thread(self._files.trusted)
        why = "its agent does not answer"
        try:
            async with asyncio.timeout(self._patience):
                while self.lives(node):
                    if node.status.agent:
                        try:
                            reply = await node.server.command(Agent.RELOAD, {}, RELOAD_SECONDS)
                        except AgentCommandFailed as error:
                            why = f"it has not read its files ({error.reason}: {escape(str(error), 300)})"
                            if error.reason not in {"lost", "timeout", "busy"}:
                                return why
                        else:
                            return await self._judge(node, reply.fields["served"], held, trusted, phase)
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return why
        return None

    async def _judge(
        self, node: ManagedNode, served: Served, held: Held, trusted: tuple[str, ...], phase: Phase
    ) -> str | None:
        if set(served.trusted) != set(trusted):
            return "it trusts other CAs than its files say"
        if served.serial != held.serial:
            return f"it has read serial {served.serial}, not {held.serial}"
        if Check.LINKS in core.CHECKS[phase]:
            seen = await node.served()
            shown = seen.certificate.serial if seen.certificate else None
            if shown != held.serial:
                return f"its port serves {shown or 'nothing that could be seen'}, not {held.serial}"
        return None

    def lives(self, node: ManagedNode) -> bool:
        """Whether it may have read its files before they were written. One that something else starts may run
        before its agent is heard of.
        """
        status, machine = node.status, self._cluster.machine
        if status.agent or status.pid is not None or status.state not in _AT_REST:
            return True
        port = node.spec.port or machine.ports[node.name]
        return status.rules.external and machine.records.listened_on(node.spec.address, port)

    async def links(self, phase: Phase) -> Mapping[str, str]:
        """Which nodes have links that were proven with a certificate of another CA than issues now."""
        issuer = await asyncio.to_thread(self._files.issuer)
        serials = await self._serials()
        if not self._unproven(issuer, serials, phase):
            return {}
        if self._cluster.spec.carrier is not Carrier.DISTSEC:
            if phase is not Phase.ACTIVATED:
                return {}  # they go on with what they have; it counts when the old CA is to go
            do = "; `distsec certs renew --all --recycle` makes them anew"
            return {name: why + do for name, why in self._unproven(issuer, serials, phase).items()}
        living = {name for name, node in self._cluster.nodes.items() if node.status.agent}
        await link_proof.prove(self._cluster, {n: s for n, s in serials.items() if n in living})
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            left = self._unproven(issuer, serials, phase)
            if not left or loop.time() >= until:
                return left
            await asyncio.sleep(RETRY_SECONDS)

    async def _serials(self) -> dict[str, str]:
        nodes = tuple(self._cluster.nodes.values())
        return {node.name: (await asyncio.to_thread(self._files.held, node.spec)).serial for node in nodes}

    def _unproven(self, issuer: str, serials: Mapping[str, str], phase: Phase) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for name, node in self._cluster.nodes.items():
            for link in node.observed.links.values():
                if link.verdict == Verdict.ALLOW and not self._is_proven(link, issuer, serials, phase):
                    found.setdefault(name, []).append(escape(link.peer, 100))
        return {
            name: f"links with {', '.join(sorted(peers)[:5])} are still of the other CA"
            for name, peers in found.items()
        }

    def _is_proven(self, link: Link, issuer: str, serials: Mapping[str, str], phase: Phase) -> bool:
        if link.issuer == issuer or link.serial == serials.get(link.peer):
            return True
        # Who is not managed here (a shell, say) has its own certificate until the old CA is to go.
        return link.peer not in serials and phase is not Phase.ACTIVATED

    async def refused(self) -> Mapping[str, str]:
        """Which nodes do not refuse a leaf of the old CA, for that reason alone."""
        living = [node for node in self._cluster.nodes.values() if self.lives(node)]
        specs = [node.spec for node in self._cluster.nodes.values()]
        now = self._renewal.now()
        found: dict[str, str] = {}
        for node in living:
            somebody = next((spec for spec in specs if spec is not node.spec), node.spec)
            pair = await asyncio.to_thread(self._files.witness, somebody, now)
            if (why := await self._refuses(node, pair)) is not None and self.lives(node):
                found[node.name] = why
        return found

    async def _refuses(self, node: ManagedNode, pair: Pair) -> str | None:
        seen = await node.shown(pair)
        if seen.refused is None or seen.local_address is None:
            return f"its port could not be asked ({seen.said})"
        if not seen.refused:
            return "it does not refuse a certificate of the old CA"
        loop = asyncio.get_running_loop()
        until = loop.time() + REFUSED_SECONDS
        reason: str | None = None
        while loop.time() < until and node.status.agent:
            if (reason := node.observed.echoes.refused_for(seen.local_address)) is not None:
                break
            await asyncio.sleep(RETRY_SECONDS)
        if reason == Reason.UNKNOWN_CA:
            return None
        told = f"as {reason}" if reason else "and has not told why"
        return f"it refused a certificate of the old CA {told} ({seen.said}), not as unknown_ca"
