"""The decision about a peer: one pure function, asked at every gate of every link.

`distsec_policy:decide/2` is its twin in each node, in Erlang; `tests/vectors/admission.json` holds both to
the same answers. The order is part of the contract: the reason that comes out is what the operator sees.

1. *No policy.* None, or one that lists nobody: nobody is admitted. This function has no way to fail open.
2. *The certificate*, where links carry one: exactly one identity, not expired, not revoked. Before any name
   is looked at, since a name from a peer that proved nothing says nothing.
3. *The deny list.* Deny wins over every listing.
4. *The lists.* Without a name (the TLS handshake comes before the first distribution frame) the identity
   alone must belong to somebody; with a name, it must be one that this identity may claim. An exact listing
   shadows every rule, so a CLI rule never lends a listed node's name to somebody else.

`Decision.rule` is the listed name or the pattern that the decision is about, and None for whoever is on no
list: a stranger never chooses it, so it may label metrics.
"""

from __future__ import annotations

from collections.abc import Iterable

from distsec.model.names import glob_matches
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


def decide(policy: Policy | None, claim: Claim, now: int) -> Decision:
    """Whether a peer with this `claim` is admitted under `policy`. `now` is Unix seconds. Never raises."""
    if policy is None or not (policy.peers or policy.rules):
        return _deny(Reason.NO_POLICY)
    if policy.require_identity and (refusal := _judge_certificate(policy, claim, now)):
        return refusal
    if claim.name is None:
        return _decide_by_identity(policy, claim)
    if claim.name in policy.denied:
        return _deny(Reason.DENIED, claim.name if _listed(policy, claim.name) else None)
    return _decide_by_name(policy, claim, claim.name)


def identity_matches(expected: str, identity: str) -> bool:
    """Whether a rule's `expected` takes `identity`: equal, or beginning with what is before a final `*`."""
    if expected.endswith("*"):
        return identity.startswith(expected[:-1])
    return identity == expected


def _judge_certificate(policy: Policy, claim: Claim, now: int) -> Decision | None:
    """What is wrong with the certificate itself, or None."""
    if len(claim.identities) != 1:
        return _deny(Reason.NO_IDENTITY)
    # A clock that was set back revives nothing: the policy proves that it is issued_at or later.
    if claim.not_after is not None and max(now, policy.issued_at) > claim.not_after:
        return _deny(Reason.EXPIRED)
    if claim.serial is not None and claim.serial in policy.revoked:
        return _deny(Reason.REVOKED)
    return None


def _decide_by_identity(policy: Policy, claim: Claim) -> Decision:
    """Before the name is known: could any name be claimed with this identity?"""
    if not policy.require_identity:
        return _allow(None)  # nothing is known yet; the gate after the first frame decides
    peers = [peer for peer in policy.peers if _may_claim(policy, peer, claim)]
    if not peers:
        return _decide_by_rules(policy, policy.rules, claim, otherwise=Reason.NOT_ALLOWED)
    kept = [peer for peer in peers if peer.name not in policy.denied]
    if not kept:
        return _deny(Reason.DENIED, peers[0].name)
    opened = next((peer for peer in kept if peer.phase is Phase.OPEN), None)
    return _allow(opened.name) if opened else _deny(Reason.NOT_OPEN, kept[0].name)


def _decide_by_name(policy: Policy, claim: Claim, name: str) -> Decision:
    """After the first frame: may this identity claim this name?"""
    if listed := _listed(policy, name):
        return _decide_by_listing(policy, listed, claim)
    fitting = [rule for rule in policy.rules if glob_matches(rule.pattern, name)]
    if fitting:
        return _decide_by_rules(policy, fitting, claim, otherwise=Reason.NAME_NOT_IN_CERTIFICATE)
    if policy.require_identity and any(_may_claim(policy, peer, claim) for peer in policy.peers):
        return _deny(Reason.NAME_NOT_IN_CERTIFICATE)
    return _deny(Reason.NOT_ALLOWED)


def _decide_by_listing(policy: Policy, peer: PolicyPeer, claim: Claim) -> Decision:
    if not _may_claim(policy, peer, claim):
        return _deny(Reason.NAME_NOT_IN_CERTIFICATE, peer.name)
    if peer.phase is not Phase.OPEN:
        return _deny(Reason.NOT_OPEN, peer.name)
    return _allow(peer.name)


def _decide_by_rules(
    policy: Policy, rules: Iterable[PolicyRule], claim: Claim, *, otherwise: Reason
) -> Decision:
    """The first of `rules` that takes this identity speaks; where none does, the answer is `otherwise`."""
    rule = next((rule for rule in rules if _rule_takes(policy, rule, claim)), None)
    if rule is None:
        return _deny(otherwise)
    if claim.direction is Direction.OUT:
        return _deny(Reason.NOT_INBOUND, rule.pattern)
    # None passes: the first frame, which tells, is still to come, and the gate behind it asks again.
    if claim.hidden is False:
        return _deny(Reason.NOT_HIDDEN, rule.pattern)
    return _allow(rule.pattern)


def _listed(policy: Policy, name: str) -> PolicyPeer | None:
    return next((peer for peer in policy.peers if peer.name == name), None)


def _may_claim(policy: Policy, peer: PolicyPeer, claim: Claim) -> bool:
    return not policy.require_identity or claim.identities == (peer.identity,)


def _rule_takes(policy: Policy, rule: PolicyRule, claim: Claim) -> bool:
    return not policy.require_identity or identity_matches(rule.identity, claim.identities[0])


def _allow(rule: str | None) -> Decision:
    return Decision(Verdict.ALLOW, None, rule)


def _deny(reason: Reason, rule: str | None = None) -> Decision:
    return Decision(Verdict.DENY, reason, rule)
