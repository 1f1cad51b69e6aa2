"""The wanted policy: what the configuration says, with the overlay of `allow` and `deny` laid over it.

Pure: the same specification, overlay, ports and time give the same policy. Deny wins over allow and over the
configuration; a denied name stays among the peers, so that a refusal can say `denied` instead of
`not_allowed`. `beam.overlay` reads and writes the overlay; `beam.provision` and the supervisor ask for the
policy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from distsec.model.cluster import Carrier, ClusterSpec
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


@dataclass(frozen=True, slots=True)
class Overlay:
    """What `allow`, `deny` and `revoke` changed since the configuration was written. Immutable; each change
    counts.
    """

    generation: int = FIRST_GENERATION
    allow: tuple[Allowed, ...] = ()
    deny: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()  # serials, lower-case hex

    def allowing(self, name: str, identity: str | None = None, *, configured: bool = False) -> Overlay:
        """With `name` allowed (again), and no longer denied, in the next generation.

        What is `configured` (the configuration lists it) needs no entry here, unless its identity is another:
        taken out of the configuration later, it would still be allowed.
        """
        others = tuple(entry for entry in self.allow if entry.name != name)
        added = () if configured and identity is None else (Allowed(name, identity),)
        return self.advanced(allow=(*others, *added), deny=self.deny - {name})

    def denying(self, name: str) -> Overlay:
        """With `name` denied, and no longer allowed by the overlay, in the next generation."""
        others = tuple(entry for entry in self.allow if entry.name != name)
        return self.advanced(allow=others, deny=self.deny | {name})

    def revoking(self, serial: str) -> Overlay:
        """With the certificate of that serial (lower-case hex) refused everywhere, in the next generation."""
        return self.advanced(revoked=self.revoked | {serial})

    def advanced(
        self,
        *,
        allow: tuple[Allowed, ...] | None = None,
        deny: frozenset[str] | None = None,
        revoked: frozenset[str] | None = None,
    ) -> Overlay:
        """The next generation, for a change of the overlay or (without arguments) of the configuration."""
        return replace(
            self,
            generation=self.generation + 1,
            allow=self.allow if allow is None else allow,
            deny=self.deny if deny is None else deny,
            revoked=self.revoked if revoked is None else revoked,
        )


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
    identities = {entry.name: entry.identity for entry in overlay.allow}
    addresses = {str(node.name): _dialled(node.address) for node in spec.nodes}
    addresses |= {str(peer.name): peer.address for peer in spec.peers}

    def peer(name: str) -> PolicyPeer:
        reachable = name in addresses and name in ports
        return PolicyPeer(
            name=name,
            identity=identities.get(name) or NodeName.parse(name).identity(spec.name),
            phase=Phase.PREPARED if name in prepared else Phase.OPEN,
            address=addresses[name] if reachable else None,
            port=ports[name] if reachable else None,
        )

    return Policy(
        cluster=spec.name,
        generation=overlay.generation,
        issued_at=issued_at,
        peers=tuple(map(peer, listed_names(spec, overlay))),
        rules=tuple(
            PolicyRule(pattern, rule.identity or any_cli_identity(spec.name))
            for rule in spec.rules
            for pattern in rule.names
        ),
        denied=overlay.deny,
        revoked=overlay.revoked,
        connect=spec.connect,
        require_identity=spec.carrier is not Carrier.INET_TCP,
    )


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
