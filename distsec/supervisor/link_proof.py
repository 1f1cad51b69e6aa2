"""Links that were made with a certificate before: proven anew with the one that is served now, or remade.

A link is renewed by the end that has dialled it (agent command `renew`: a second TLS handshake, after which
the first one's end no longer counts). Stock OTP has nothing like it: there a link keeps its certificate until
it is ended and made again (`recycle`), which its applications notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command, LinkProof
from distsec.model.cluster import Carrier, Link
from distsec.model.policy import Direction, Verdict
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode

RENEW_SECONDS = 20.0
DISCONNECT_SECONDS = 10.0
RELINK_SECONDS = 30.0
_POLL_SECONDS = 0.05


class Cluster(Hub, Protocol):
    """What is needed of the supervisor."""

    nodes: dict[str, ManagedNode]


@dataclass(slots=True)
class Links:
    """Of one node: peers whose link is proven with the certificates of now, and why one is not."""

    proven: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Not ours to prove, and no failure: by peer, why."""


async def prove(cluster: Cluster, serials: Mapping[str, str]) -> dict[str, Links]:
    """Has every link of the named nodes renewed, by whichever end has dialled it. `serials`: by node, what
    it serves now.
    """
    nodes = [cluster.nodes[name] for name in serials]
    before = {node.name: _links(cluster, node) for node in nodes}
    if cluster.spec.carrier is not Carrier.DISTSEC:
        why = f"{cluster.spec.carrier} proves no link anew: it keeps its certificate until it is recycled"
        return {name: Links(left=dict.fromkeys(links, why)) for name, links in before.items()}
    asked = {node.name: _asked(node, serials) for node in cluster.nodes.values()}
    told = await asyncio.gather(
        *(_renew(cluster.nodes[name], peers) for name, peers in asked.items() if peers is not None)
    )
    answers = dict(told)
    return {node.name: _judged(cluster, node.name, before[node.name], serials, answers) for node in nodes}


async def recycle(cluster: Cluster, names: Iterable[str]) -> dict[str, Links]:
    """Ends each link of the named nodes and waits until it is there again, one at a time."""
    done: dict[str, Links] = {}
    pairs: set[frozenset[str]] = set()
    for name in names:
        node = cluster.nodes[name]
        found = done[name] = Links()
        for peer, link in _links(cluster, node).items():
            if frozenset((name, peer)) not in pairs:
                pairs.add(frozenset((name, peer)))
                await _remake(cluster, node, link, found)
            else:
                found.proven.append(peer)  # by the other end, a moment ago
    return done


@dataclass(frozen=True, slots=True)
class _Answer:
    renewed: Mapping[str, LinkProof] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


def _asked(node: ManagedNode, serials: Mapping[str, str]) -> dict[str, int] | None:
    """Which of its links `node` is asked to renew (none named: all); None: it is not asked."""
    if not node.status.agent:
        return None
    if node.name in serials:
        return {} if node.observed.links else None
    links = node.observed.links.values()
    return {each.peer: 1 for each in links if each.peer in serials and each.direction != Direction.IN} or None


async def _renew(node: ManagedNode, peers: Mapping[str, int]) -> tuple[str, _Answer]:
    try:
        reply = await node.server.command(Command.RENEW, {"peers": peers}, RENEW_SECONDS)
    except AgentCommandFailed as error:
        return node.name, _Answer(why=f"{node.name} did not renew it ({error.reason})")
    renewed = {each.peer: each for each in reply.fields["renewed"]}
    return node.name, _Answer(renewed, {each.peer: each.reason for each in reply.fields["failed"]})


def _judged(
    cluster: Cluster,
    name: str,
    links: Mapping[str, Link],
    serials: Mapping[str, str],
    answers: Mapping[str, _Answer],
) -> Links:
    found = Links()
    for peer, link in links.items():
        if link.direction != Direction.IN:
            dialler, other = name, peer
        elif peer in cluster.nodes:
            dialler, other = peer, name
        else:
            found.left[peer] = "its other end, which dialled, is not managed here and renews it in time"
            continue
        answer = answers.get(dialler, _Answer(why=f"{dialler} was not there to renew it"))
        proof = answer.renewed.get(other)
        if proof is None:
            # It may have ended meanwhile, or have been dialled anew from the other side.
            if other in cluster.nodes[dialler].observed.links:
                found.failed[peer] = answer.failed.get(other) or answer.why or "it was not renewed"
        elif other in serials and proof.serial != serials[other]:
            found.failed[peer] = f"{other} proved itself with serial {proof.serial}"
        else:
            found.proven.append(peer)
    return found


async def _remake(cluster: Cluster, node: ManagedNode, link: Link, found: Links) -> None:
    try:
        await node.server.command(Command.DISCONNECT, {"peer": link.peer}, DISCONNECT_SECONDS)
    except AgentCommandFailed as error:
        found.failed[link.peer] = f"the link did not end ({error.reason})"
        return
    if cluster.spec.connect != "mesh" or link.peer not in cluster.nodes:
        found.left[link.peer] = "it is ended; who uses it makes it again"
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + RELINK_SECONDS
    while loop.time() < until:
        again = node.observed.links.get(link.peer)
        if again is not None and again is not link:
            found.proven.append(link.peer)
            return
        await asyncio.sleep(_POLL_SECONDS)
    found.failed[link.peer] = f"the link did not come back within {RELINK_SECONDS:g} s"


def _links(cluster: Cluster, node: ManagedNode) -> dict[str, Link]:
    """Those that count: an operator's shell ends with its own certificate."""
    return {
        link.peer: link
        for link in node.observed.links.values()
        if link.verdict == Verdict.ALLOW and (link.peer in cluster.nodes or link.peer in _listed(cluster))
    }


def _listed(cluster: Cluster) -> frozenset[str]:
    return frozenset(cluster.desk.wanted.labels)
