"""The decision about a peer: one pure function, asked at every gate of every link.

`distsec_admission:decide/2` is its twin in each node, in Erlang; `tests/vectors/admission.json` holds both to
the same answers. The order is part of the contract: the reason that comes out is what the operator sees.

1. *No policy.* None, or one that lists nobody: nobody is admitted. This function has no way to fail open.
2. *The certificate*, where links carry one: exactly one identity, not expired, neither it nor its
   identity revoked. Before any name
   is looked at, since a name from a peer that proved nothing says nothing.
3. *The name*, once it is known: name@host of visible ASCII, and not on the deny list, which wins over every
   listing. A node that is denied itself is out of the mesh from its own side too: it has no link with a
   listed node, since one that has not heard of the denial yet may dial it.
4. *The lists.* Without a name (the TLS handshake comes before the first distribution frame) the identity
   alone must belong to somebody; with a name, it must be one that this identity may claim. An exact listing
   shadows every rule, so a CLI rule never lends a listed node's name to somebody else. What the certificate
   may be used for must fit: a node is dialled and dials, a command-line tool dials.

What a certificate is known by: a SPIFFE ID of this cluster is all that its holder is. The subject and the DNS
names beside it count for nothing: they are shared (every node of a host has its DNS name) and were not what
the issuer vouched for. Any other certificate (a foreign URI, or none) is known by everything it shows, and if
that lists it as two nodes it is neither: who got a certificate with another's subject beside its own identity
gains nothing by it, and loses what it had.

`Decision.rule` is the listed name or the pattern that the decision is about, and None for whoever is on no
list: a stranger never chooses it, so it may label metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

from distsec.model.identities import SPIFFE, is_certificate_name
from distsec.model.names import glob_matches, is_claimable
from distsec.model.policy import (
    Claim,
    Decision,
    Direction,
    Phase,
    Policy,
    PolicyPeer,
    PolicyRule,
    Reason,
    Verdict,
)

CLIENT, SERVER = "client", "server"


def decide(policy: Policy | None, claim: Claim, now: int) -> Decision:
    """Whether a peer with this `claim` is admitted under `policy`. `now` is Unix seconds. Never raises."""
    if policy is None or not (policy.peers or policy.rules):
        return _deny(Reason.NO_POLICY)
    shown = shown_by(policy, claim)
    if policy.require_identity and (wrong := _judge_certificate(policy, claim, shown, now)):
        return _deny(wrong)
    if claim.name is None:
        return _decide_by_identity(policy, claim, shown)
    if not is_claimable(claim.name):
        return _deny(Reason.UNSAFE_NAME)
    if claim.name in policy.denied:
        return _deny(Reason.DENIED, claim.name if _listed(policy, claim.name) else None)
    return _decide_by_name(policy, claim, shown, claim.name)


def shown_by(policy: Policy, claim: Claim) -> tuple[str, ...]:
    """What the certificate of `claim` may be on a list by."""
    uris = tuple(uri for uri in claim.identities if not is_certificate_name(uri))
    if any(uri.startswith(f"{SPIFFE}{policy.cluster}/") for uri in uris):
        return uris
    return (*uris, *filter(is_certificate_name, claim.names))


def identity_matches(expected: str, identity: str) -> bool:
    """Whether a rule's `expected` takes `identity`: equal or, for URIs, beginning with what is before a final
    `*`.
    """
    if expected.endswith("*"):
        return identity.startswith(expected[:-1]) and not is_certificate_name(identity)
    return identity == expected


def _judge_certificate(policy: Policy, claim: Claim, shown: Sequence[str], now: int) -> Reason | None:
    """What is wrong with the certificate itself, or None."""
    listed = {peer.identity for peer in policy.peers if peer.identity in shown}
    if len(claim.identities) > 1 or len(listed) > 1:
        return Reason.NO_IDENTITY
    if not (claim.identities or listed or any(_takes(rule, shown) for rule in policy.rules)):
        return Reason.NO_IDENTITY
    # A clock that was set back revives nothing: the policy proves that it is issued_at or later.
    if claim.not_after is not None and max(now, policy.issued_at) > claim.not_after:
        return Reason.EXPIRED
    if claim.serial is not None and claim.serial in policy.revoked:
        return Reason.REVOKED
    if not policy.revoked_identities.isdisjoint(shown):
        return Reason.REVOKED
    return None


def _decide_by_identity(policy: Policy, claim: Claim, shown: Sequence[str]) -> Decision:
    """Before the name is known: could any name be claimed with this identity?"""
    if not policy.require_identity:
        return _allow(None)  # nothing is known yet; the gate after the first frame decides
    peers = [peer for peer in policy.peers if peer.identity in shown]
    if not peers:
        taking = [rule for rule in policy.rules if _takes(rule, shown)]
        return _decide_by_rules(policy, taking, claim, otherwise=Reason.NOT_ALLOWED)
    itself_denied = claim.node in policy.denied
    kept = [peer for peer in peers if peer.name not in policy.denied and not itself_denied]
    if not kept:
        return _deny(Reason.DENIED, peers[0].name)
    if not _usable(policy, claim, CLIENT, SERVER):
        return _deny(Reason.KEY_USAGE, kept[0].name)
    opened = next((peer for peer in kept if peer.phase is Phase.OPEN), None)
    return _allow(opened.name) if opened else _deny(Reason.NOT_OPEN, kept[0].name)


def _decide_by_name(policy: Policy, claim: Claim, shown: Sequence[str], name: str) -> Decision:
    """After the first frame: may this identity claim this name?"""
    if listed := _listed(policy, name):
        if claim.node in policy.denied:
            return _deny(Reason.DENIED, name)
        return _decide_by_listing(policy, listed, claim, shown)
    fitting = [rule for rule in policy.rules if glob_matches(rule.pattern, name)]
    if fitting:
        taking = [rule for rule in fitting if not policy.require_identity or _takes(rule, shown)]
        return _decide_by_rules(policy, taking, claim, otherwise=Reason.NAME_NOT_IN_CERTIFICATE)
    if policy.require_identity and any(peer.identity in shown for peer in policy.peers):
        return _deny(Reason.NAME_NOT_IN_CERTIFICATE)
    return _deny(Reason.NOT_ALLOWED)


def _decide_by_listing(policy: Policy, peer: PolicyPeer, claim: Claim, shown: Sequence[str]) -> Decision:
    if policy.require_identity and peer.identity not in shown:
        return _deny(Reason.NAME_NOT_IN_CERTIFICATE, peer.name)
    if not _usable(policy, claim, CLIENT, SERVER):
        return _deny(Reason.KEY_USAGE, peer.name)
    if peer.phase is not Phase.OPEN:
        return _deny(Reason.NOT_OPEN, peer.name)
    return _allow(peer.name)


def _decide_by_rules(
    policy: Policy, taking: Sequence[PolicyRule], claim: Claim, *, otherwise: Reason
) -> Decision:
    """The first of these rules that is for this node speaks; without any the answer is `otherwise`."""
    if not taking:
        return _deny(otherwise)
    rule = next((rule for rule in taking if not rule.nodes or claim.node in rule.nodes), None)
    if rule is None:
        return _deny(Reason.NOT_ALLOWED, taking[0].pattern)
    if claim.direction is Direction.OUT:
        return _deny(Reason.NOT_INBOUND, rule.pattern)
    if not _usable(policy, claim, CLIENT):
        return _deny(Reason.KEY_USAGE, rule.pattern)
    # None passes: the first frame, which tells, is still to come, and the gate behind it asks again.
    if claim.hidden is False:
        return _deny(Reason.NOT_HIDDEN, rule.pattern)
    if claim.live is not None and claim.live >= rule.max_live:
        return _deny(Reason.TOO_MANY_NAMES, rule.pattern)
    return _allow(rule.pattern)


def _listed(policy: Policy, name: str) -> PolicyPeer | None:
    return next((peer for peer in policy.peers if peer.name == name), None)


def _takes(rule: PolicyRule, shown: Sequence[str]) -> bool:
    return any(identity_matches(rule.identity, identity) for identity in shown)


def _usable(policy: Policy, claim: Claim, *roles: str) -> bool:
    """Whether the certificate may be used in these roles, as far as this gate knows."""
    return not policy.require_identity or claim.usages is None or set(roles) <= set(claim.usages)


def _allow(rule: str | None) -> Decision:
    return Decision(Verdict.ALLOW, None, rule)


def _deny(reason: Reason, rule: str | None = None) -> Decision:
    return Decision(Verdict.DENY, reason, rule)
