"""Properties of the decision that hold for every policy; single cases are in tests/vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distsec.core.admission import decide, identity_matches
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

names = st.sampled_from(["a@h", "b@h", "cli-1@h", "cli-2@h", "x@other"])
identities = st.sampled_from(
    ["spiffe://d/node/h/a", "spiffe://d/node/h/b", "spiffe://d/cli/x", "spiffe://d/ops/y"]
)
policies = st.builds(
    Policy,
    cluster=st.just("d"),
    generation=st.just(1),
    issued_at=st.integers(0, 20),
    peers=st.lists(
        st.builds(PolicyPeer, name=names, identity=identities, phase=st.sampled_from(Phase)), max_size=4
    ).map(tuple),
    rules=st.lists(
        st.builds(
            PolicyRule,
            pattern=st.sampled_from(["cli-*@h", "*@h", "*@other"]),
            identity=st.sampled_from(["spiffe://d/cli/*", "spiffe://d/ops/y"]),
        ),
        max_size=2,
    ).map(tuple),
    denied=st.frozensets(names, max_size=2),
    revoked=st.frozensets(st.sampled_from(["01", "02"]), max_size=1),
    require_identity=st.booleans(),
)
claims = st.builds(
    Claim,
    direction=st.sampled_from(Direction),
    identities=st.lists(identities, max_size=2).map(tuple) | identities.map(lambda identity: (identity,)),
    serial=st.none() | st.sampled_from(["01", "02", "03"]),
    not_after=st.none() | st.integers(0, 100),
    name=st.none() | names,
    hidden=st.none() | st.booleans(),
)
times = st.integers(0, 100)


@given(policies, claims, times)
def test_a_denial_has_a_reason_and_an_admission_has_none(policy: Policy, claim: Claim, now: int) -> None:
    decision = decide(policy, claim, now)
    assert (decision.reason is None) == (decision.verdict is Verdict.ALLOW)


@given(claims, times)
def test_nobody_is_admitted_without_a_policy(claim: Claim, now: int) -> None:
    assert decide(None, claim, now) == Decision(Verdict.DENY, Reason.NO_POLICY)


@given(policies, claims, times)
def test_nobody_is_admitted_by_a_policy_that_lists_nobody(policy: Policy, claim: Claim, now: int) -> None:
    empty = replace(policy, peers=(), rules=())
    assert decide(empty, claim, now) == Decision(Verdict.DENY, Reason.NO_POLICY)


@given(policies, claims, times)
def test_the_rule_of_a_decision_is_text_of_the_policy_and_never_of_the_peer(
    policy: Policy, claim: Claim, now: int
) -> None:
    rule = decide(policy, claim, now).rule
    assert rule in {None, *(peer.name for peer in policy.peers), *(each.pattern for each in policy.rules)}


@given(policies, claims, times, names)
def test_an_admitted_name_belongs_to_the_one_identity_that_was_shown(
    policy: Policy, claim: Claim, now: int, name: str
) -> None:
    policy, claim = replace(policy, require_identity=True), replace(claim, name=name)
    if decide(policy, claim, now).verdict is Verdict.ALLOW:
        [identity] = claim.identities
        listed = [peer for peer in policy.peers if peer.name == claim.name]
        if listed:
            assert listed[0].identity == identity
        else:
            assert claim.direction is Direction.IN
            assert any(identity_matches(rule.identity, identity) for rule in policy.rules)


@given(policies, claims, times)
def test_who_is_admitted_by_name_was_let_through_the_tls_handshake(
    policy: Policy, claim: Claim, now: int
) -> None:
    """The first gate must not be stricter than the last: it would cut links that the policy wants."""
    policy = replace(policy, peers=tuple({peer.name: peer for peer in policy.peers}.values()))
    by_a_rule = all(peer.name != claim.name for peer in policy.peers)
    if by_a_rule and any(peer.identity in claim.identities for peer in policy.peers):
        return  # an identity that is listed is judged by its listing, even if a rule takes it too
    if decide(policy, claim, now).verdict is Verdict.ALLOW:
        assert decide(policy, replace(claim, name=None, hidden=None), now).verdict is Verdict.ALLOW


@given(policies, claims, times, names)
def test_denying_one_more_admits_nobody_new(policy: Policy, claim: Claim, now: int, name: str) -> None:
    stricter = replace(policy, denied=policy.denied | {name})
    if decide(policy, claim, now).verdict is Verdict.DENY:
        assert decide(stricter, claim, now).verdict is Verdict.DENY


@given(policies, claims, times, st.integers(0, 200))
def test_a_certificate_does_not_come_back_to_life(policy: Policy, claim: Claim, now: int, later: int) -> None:
    if decide(policy, claim, now).reason is Reason.EXPIRED:
        assert decide(policy, claim, now + later).reason is Reason.EXPIRED


@given(policies, claims, times)
def test_time_before_the_policy_was_issued_is_the_time_it_was_issued(
    policy: Policy, claim: Claim, now: int
) -> None:
    assert decide(policy, claim, now) == decide(policy, claim, max(now, policy.issued_at))


@given(policies, claims, times)
@example(
    Policy("d", 1, 0, (PolicyPeer("a@h", "spiffe://d/node/h/a"),), denied=frozenset({"a@h"})),
    Claim(Direction.IN, ("spiffe://d/node/h/a",), name="a@h"),
    0,
)
def test_a_denied_name_is_never_admitted(policy: Policy, claim: Claim, now: int) -> None:
    if claim.name in policy.denied:
        assert decide(policy, claim, now).verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("expected", "identity", "matches"),
    [
        ("spiffe://d/cli/x", "spiffe://d/cli/x", True),
        ("spiffe://d/cli/x", "spiffe://d/cli/xy", False),
        ("spiffe://d/cli/*", "spiffe://d/cli/x", True),
        ("spiffe://d/cli/*", "spiffe://d/cli", False),
        ("spiffe://d/cli/*", "spiffe://d.evil/cli/x", False),
        ("spiffe://d/*/x", "spiffe://d/cli/x", False),  # only a final star stands for anything
        ("", "", True),
        ("", "spiffe://d/cli/x", False),
    ],
)
def test_a_rule_takes_one_identity_or_a_prefix(expected: str, identity: str, matches: bool) -> None:
    assert identity_matches(expected, identity) is matches
