"""The wanted policy: what the configuration says, with the overlay of `allow` and `deny` laid over it.

Pure: the same specification, overlay, ports and time give the same policy. Deny wins over allow and over the
configuration; a denied name stays among the peers, so that a refusal can say `denied` instead of
`not_allowed`. `beam.overlay` reads and writes the overlay; `beam.provision` and the supervisor ask for the
policy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from enum import StrEnum

from distsec.model.cluster import ClusterSpec
from distsec.model.identities import trust_domain
from distsec.model.names import NodeName
from distsec.model.policy import Phase, Policy, PolicyPeer, PolicyRule

FIRST_GENERATION = 1
"""Of a cluster in which nothing was allowed or denied yet. An agent without a policy counts as generation 0.
"""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One `distsec allow`: `identity` None stands for the one that the cluster's own CA gives to `name`."""

    name: str
    identity: str | None = None


class TaintStage(StrEnum):
    """How far the cleaning of a tainted node has got (`supervisor.containment`)."""

    CONDEMNED = "condemned"  # to be ended, then re-keyed; until then it is told no secret
    REKEYED = "rekeyed"  # to run again: clean as soon as it is proven with its new key
    HELD = "held"  # the compromised node itself: re-keyed, and not started before it is allowed
    ELSEWHERE = "elsewhere"  # not managed here: its certificates are revoked, until the operator says more


@dataclass(frozen=True, slots=True)
class Taint:
    """A node that may run, or have given away, what it should not.

    `since`: the earliest time from which that may be so (Unix seconds). `start`: whether it is to run again.
    `cause`: the node that was denied. `boot` and `rekeyed_at` (clock ticks since then): what began before
    that is not clean.
    """

    name: str
    stage: TaintStage
    since: int
    start: bool
    cause: str
    boot: str = ""
    rekeyed_at: int = 0


@dataclass(frozen=True, slots=True)
class Overlay:
    """What `allow`, `deny` and `revoke` changed since the configuration was written. Immutable; each change
    counts.

    `issued_at`: of the policy that was issued last; none is ever issued for a time before it. `epochs`: how
    often a node was re-keyed, by name, sorted; the cookies of its links are derived from it.
    """

    generation: int = FIRST_GENERATION
    allow: tuple[Allowed, ...] = ()
    deny: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()  # serials, lower-case hex
    revoked_identities: frozenset[str] = frozenset()  # as model.identities writes them
    issued_at: int = 0
    epochs: tuple[tuple[str, int], ...] = ()
    tainted: tuple[Taint, ...] = ()

    def allowing(
        self, name: str, identity: str | None = None, *, configured: bool = False, known_by: str | None = None
    ) -> Overlay:
        """With `name` allowed (again), and no longer denied or held, in the next generation; nor is the
        identity that it is `known_by` revoked any more. Certificates stay revoked.

        What is `configured` (the configuration lists it) needs no entry here, unless its identity is another:
        taken out of the configuration later, it would still be allowed.
        """
        others = tuple(entry for entry in self.allow if entry.name != name)
        added = () if configured and identity is None else (Allowed(name, identity),)
        return replace(
            self.advanced(),
            allow=(*others, *added),
            deny=self.deny - {name},
            revoked_identities=self.revoked_identities - {known_by},
            tainted=self._vouched(name),
        )

    def denying(self, name: str) -> Overlay:
        """With `name` denied, and no longer allowed by the overlay, in the next generation."""
        others = tuple(entry for entry in self.allow if entry.name != name)
        tainted = tuple(t for t in self.tainted if t.name != name or t.stage is not TaintStage.ELSEWHERE)
        return replace(self.advanced(), allow=others, deny=self.deny | {name}, tainted=tainted)

    def revoking(self, *serials: str, identities: Iterable[str] = ()) -> Overlay:
        """With the certificates of these serials (lower-case hex) refused everywhere, and every one of these
        identities, in the next generation.
        """
        return replace(
            self.advanced(),
            revoked=self.revoked.union(serials),
            revoked_identities=self.revoked_identities.union(identities),
        )

    def condemning(self, name: str, taints: Iterable[Taint], serials: Iterable[str]) -> Overlay:
        """With `name` denied as compromised, and `taints` its doing, in the next generation."""
        denied = self.denying(name).tainting(taints, serials, {name})
        return replace(denied, generation=self.generation + 1)

    def tainting(
        self, taints: Iterable[Taint], serials: Iterable[str], others: Set[str] = frozenset()
    ) -> Overlay:
        """In the next generation: `serials` are revoked, and what each of `taints` and `others` knew of
        cookies is worth nothing any more.
        """
        taints = tuple(taints)
        anew = others | {taint.name for taint in taints}
        epochs = dict(self.epochs) | {each: self.epoch(each) + 1 for each in anew}
        kept = tuple(taint for taint in self.tainted if taint.name not in anew)
        return replace(
            self.revoking(*serials), epochs=tuple(sorted(epochs.items())), tainted=(*kept, *taints)
        )

    def restaged(self, changed: Mapping[str, Taint | None], seen: Overlay) -> Overlay:
        """With other records of taint, None for what is clean, in the same generation: no node is told.

        Only for those of which nothing else was decided since `seen`: what was condemned anew in the meantime
        is to be re-keyed anew.
        """

        def after(taint: Taint) -> Taint | None:
            same = seen.taint(taint.name) == taint and seen.epoch(taint.name) == self.epoch(taint.name)
            return changed.get(taint.name, taint) if same else taint

        return replace(self, tainted=tuple(t for t in map(after, self.tainted) if t is not None))

    def recovering(self, newer: Recovered) -> Overlay:
        """Above a policy that is newer than this overlay, with all that it refused (see
        `supervisor.rollback`).
        """
        epochs = dict(self.epochs)
        for name, epoch in newer.epochs:
            epochs[name] = max(epoch, epochs.get(name, 0))
        return replace(
            self,
            generation=max(self.generation, newer.generation) + 1,
            allow=tuple(entry for entry in self.allow if entry.name not in newer.denied),
            deny=self.deny | newer.denied,
            revoked=self.revoked | newer.revoked,
            revoked_identities=self.revoked_identities | newer.revoked_identities,
            issued_at=max(self.issued_at, newer.issued_at),
            epochs=tuple(sorted(epochs.items())),
        )

    def advanced(self) -> Overlay:
        """The next generation."""
        return replace(self, generation=self.generation + 1)

    def _vouched(self, name: str) -> tuple[Taint, ...]:
        """Of a node that waited for the operator's word alone there is nothing tainted left."""
        waits = (TaintStage.HELD, TaintStage.ELSEWHERE)
        return tuple(t for t in self.tainted if t.name != name or t.stage not in waits)

    def epoch(self, name: str) -> int:
        """How often that node was re-keyed."""
        return next((epoch for each, epoch in self.epochs if each == name), 0)

    def taint(self, name: str) -> Taint | None:
        return next((taint for taint in self.tainted if taint.name == name), None)

    @property
    def condemned(self) -> frozenset[str]:
        """Whose processes are not to be trusted, and still may live: they are told no secret."""
        return frozenset(t.name for t in self.tainted if t.stage is TaintStage.CONDEMNED)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a signed policy says that no overlay may forget."""

    generation: int
    issued_at: int = 0
    denied: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    epochs: tuple[tuple[str, int], ...] = ()
    revoked_identities: frozenset[str] = frozenset()


def listed_names(spec: ClusterSpec, overlay: Overlay) -> tuple[str, ...]:
    """Every exactly listed name, the configuration's first, then the overlay's, denied ones included."""
    configured = [str(name) for name in spec.allowed_nodes]
    return tuple(dict.fromkeys([*configured, *(entry.name for entry in overlay.allow)]))


def wanted_policy(
    spec: ClusterSpec,
    overlay: Overlay,
    ports: Mapping[str, int],
    issued_at: int,
    prepared: Set[str] = frozenset(),
) -> Policy:
    """The policy that every node of `spec` is to have.

    `ports` is name → distribution port (provision.distribution_ports); a name without one is never dialled.
    `issued_at` is Unix seconds. The names in `prepared` are in the first phase of an allow: known, not yet
    admitted.
    """
    identities = known_identities(spec, overlay)
    addresses = {str(node.name): _dialled(node.address) for node in spec.nodes}
    addresses |= {str(peer.name): peer.address for peer in spec.peers}

    def peer(name: str) -> PolicyPeer:
        reachable = name in addresses and name in ports
        return PolicyPeer(
            name=name,
            identity=identities[name],
            phase=Phase.PREPARED if name in prepared else Phase.OPEN,
            address=addresses[name] if reachable else None,
            port=ports[name] if reachable else None,
        )

    return Policy(
        cluster=spec.name,
        generation=overlay.generation,
        issued_at=issued_at,
        peers=tuple(peer(name) for name in identities if is_trusted(spec, identities[name])),
        rules=tuple(
            PolicyRule(pattern, rule.identity or any_cli_identity(spec.name), rule.max_live, rule.nodes)
            for rule in spec.rules
            for pattern in rule.names
        ),
        denied=overlay.deny,
        revoked=overlay.revoked,
        revoked_identities=overlay.revoked_identities,
        epochs=overlay.epochs,
        connect=spec.connect,
        require_identity=spec.carrier.encrypted,
    )


def known_identities(spec: ClusterSpec, overlay: Overlay) -> dict[str, str]:
    """By what identity each listed name is known: the one of its `allow`, of its rule, or of its own."""
    ruled = {str(entry.name): entry.identity for entry in spec.identities}
    allowed = {entry.name: entry.identity for entry in overlay.allow if entry.identity}
    return {
        name: allowed.get(name) or ruled.get(name) or NodeName.parse(name).identity(spec.name)
        for name in listed_names(spec, overlay)
    }


def identity_of(spec: ClusterSpec, name: NodeName) -> str:
    """By what identity a node that is managed here is known: the one that a rule binds it to, or its own."""
    ruled = next((entry.identity for entry in spec.identities if entry.name == name), None)
    return ruled or name.identity(spec.name)


def is_trusted(spec: ClusterSpec, identity: str) -> bool:
    """Whether the configuration trusts the trust domain of `identity`, if it has one, to name nodes.

    It may have been taken out of the configuration after an `allow`: whoever came in by that is out again.
    """
    return trust_domain(identity) in {None, spec.name, *spec.foreign_trust_domains}


def any_cli_identity(cluster: str) -> str:
    """What a CLI rule without an identity of its own accepts: every identity of kind cli."""
    return f"spiffe://{cluster}/cli/*"


def _dialled(address: str) -> str:
    """Where its neighbours dial a node that listens on `address`: on loopback if it listens everywhere."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not parsed.is_unspecified:
        return address
    return "127.0.0.1" if parsed.version == 4 else "::1"
