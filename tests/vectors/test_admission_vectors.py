"""Both implementations of the decision give the answers of admission.json, and agree about the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam.erlang_text import Symbol, Term
from distsec.beam.render import policy_document
from distsec.core.admission import decide
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
from tests.releases import Otp
from tests.vectors.asked import ask_script

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "admission.json").read_text())
Question = tuple[Policy | None, Claim, int]


def policy_of(entry: dict[str, Any]) -> Policy:
    return Policy(
        cluster=entry["cluster"],
        generation=entry["generation"],
        issued_at=entry["issued_at"],
        peers=tuple(PolicyPeer(**{**peer, "phase": Phase(peer["phase"])}) for peer in entry["peers"]),
        rules=tuple(PolicyRule(**{**rule, "nodes": tuple(rule.get("nodes", ()))}) for rule in entry["rules"]),
        denied=frozenset(entry["denied"]),
        revoked=frozenset(entry["revoked"]),
        revoked_identities=frozenset(entry.get("revoked_identities", ())),
        connect=entry["connect"],
        require_identity=entry["require_identity"],
    )


def question_of(case: dict[str, Any]) -> Question:
    claim: dict[str, Any] = {**case["claim"], "direction": Direction(case["claim"]["direction"])}
    for key in ("identities", "names", "usages"):
        if claim.get(key) is not None:
            claim[key] = tuple(claim[key])
    return (POLICIES[case["policy"]] if case["policy"] else None, Claim(**claim), case["now"])


def expected_of(case: dict[str, Any]) -> Decision:
    expect = case["expect"]
    return Decision(
        Verdict(expect["verdict"]), Reason(expect["reason"]) if expect["reason"] else None, expect["rule"]
    )


POLICIES = {name: policy_of(entry) for name, entry in VECTORS["policies"].items()}
CASES = VECTORS["cases"]


# ---- Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"].replace(" ", "_"))
def test_python_gives_the_answer_of_the_vector(case: dict[str, Any]) -> None:
    assert decide(*question_of(case)) == expected_of(case)


def test_vectors_are_many_distinct_and_name_every_reason_of_the_decision() -> None:
    assert len(CASES) >= 60
    assert len({case["case"] for case in CASES}) == len(CASES)
    assert {case["policy"] for case in CASES} == {None, *POLICIES}
    assert {case["expect"]["reason"] for case in CASES} == {
        *("no_policy", "no_identity", "expired", "revoked", "denied", "not_allowed", "not_open"),
        *("name_not_in_certificate", "not_hidden", "not_inbound", "key_usage", "too_many_names"),
        *("unsafe_name", None),
    }


# ---- Erlang ------------------------------------------------------------------------------------------------


@pytest.mark.otp
def test_erlang_gives_the_answers_of_the_vectors(otp: Otp, agent_ebin: Path, tmp_path: Path) -> None:
    answers = ask_erlang(otp, agent_ebin, tmp_path, [question_of(case) for case in CASES])
    wrong = [
        f"{case['case']}: {answer}"
        for case, answer in zip(CASES, answers, strict=True)
        if answer != expected_of(case)
    ]
    assert not wrong, "\n".join(wrong)


NODE_HEADS = ["a", "b", "cli-1", "cli-root", "", "x" * 40, "cli-\n", "ä"]
HOSTS = ["127.0.0.1", "h", "", "h@h"]
NAMES = [f"{head}@{host}" for head in NODE_HEADS for host in HOSTS] + ["a", "@", ""]
URIS = ["spiffe://d/node/h/a", "spiffe://d/node/h/b", "spiffe://d/cli/x", "spiffe://d/cli/", "", "ü"]
FOREIGN = ["spiffe://d", "spiffe://de/node/h/a", "spiffe://e/x", "https://d/"]
CERTIFICATE_NAMES = ["dns:h.example", "dns:g.example", "dn:2.5.4.3:61", "dn:2.5.4.3:62", "dns:*", "dn:"]
IDENTITIES = [*URIS, *FOREIGN, *CERTIFICATE_NAMES]
PATTERNS = [
    "cli-*@127.0.0.1",
    "*@h",
    "a*@h",
    "*-*@127.0.0.1",
    "*1*@127.0.0.1",
    "**@h",
    "a@h",
    "cli-*",
    "*@*",
    "*",
]
RULE_IDENTITIES = [*IDENTITIES, "spiffe://d/cli/*", "spiffe://*", "*", "**"]
SERIALS = ["01", "0a1b", "ff"]

names = st.sampled_from(NAMES) | st.text("ab-*@1.h", max_size=6)
peers = st.builds(
    PolicyPeer,
    name=names,
    identity=st.sampled_from(IDENTITIES),
    phase=st.sampled_from(Phase),
    address=st.just("127.0.0.1"),
    port=st.integers(1, 65_535),
)
rules = st.builds(
    PolicyRule,
    pattern=st.sampled_from(PATTERNS) | st.text("ab-*@1.h", max_size=6),
    identity=st.sampled_from(RULE_IDENTITIES),
    max_live=st.integers(1, 4),
    nodes=st.sampled_from([(), (), (), ("a@h",), ("a@h", "b@h")]),
)
policies = st.builds(
    Policy,
    cluster=st.just("d"),
    generation=st.integers(0, 2**64),
    issued_at=st.integers(0, 20),
    peers=st.lists(peers, max_size=4).map(tuple),
    rules=st.lists(rules, max_size=3).map(tuple),
    denied=st.frozensets(names, max_size=3),
    revoked=st.frozensets(st.sampled_from(SERIALS), max_size=1),
    revoked_identities=st.just(frozenset()) | st.frozensets(st.sampled_from(IDENTITIES), max_size=2),
    connect=st.sampled_from(["mesh", "none"]),
    require_identity=st.sampled_from([True, True, True, False]),
)
claims = st.builds(
    Claim,
    direction=st.sampled_from(Direction),
    identities=st.one_of(
        st.sampled_from(IDENTITIES).map(lambda identity: (identity,)),
        st.lists(st.sampled_from(IDENTITIES), max_size=2).map(tuple),
    ),
    serial=st.none() | st.sampled_from(SERIALS),
    not_after=st.none() | st.integers(0, 100),
    name=st.none() | names,
    hidden=st.sampled_from([None, True, False]),
    names=st.lists(st.sampled_from([*CERTIFICATE_NAMES, *URIS]), max_size=3).map(tuple),
    usages=st.sampled_from([None, (), ("client",), ("server",), ("client", "server")]),
    live=st.none() | st.integers(0, 5),
    node=st.sampled_from([None, "a@h", "c@h"]),
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A question. Its claim often takes name and identity from the policy: strangers alone prove little."""
    policy = draw(st.none() | policies | policies | policies)
    claim = draw(claims)
    if policy and policy.peers and draw(st.booleans()):
        peer = draw(st.sampled_from(policy.peers))
        if peer.identity.startswith(("dns:", "dn:")):
            claim = replace(claim, identities=claim.identities[1:], names=(peer.identity, *claim.names))
        else:
            claim = replace(claim, identities=(peer.identity,))
        claim = replace(claim, name=draw(st.sampled_from([None, peer.name])))
    return policy, claim, draw(st.integers(0, 30))


@pytest.mark.otp
def test_python_and_erlang_agree_about_any_policy_and_claim(
    otp: Otp, agent_ebin: Path, tmp_path: Path
) -> None:
    batch: list[Question] = []

    @settings(max_examples=800, deadline=None, database=None)
    @given(questions())
    def collect(question: Question) -> None:
        batch.append(question)

    collect()
    answers = ask_erlang(otp, agent_ebin, tmp_path, batch)
    for question, answer in zip(batch, answers, strict=True):
        assert decide(*question) == answer, question


def ask_erlang(otp: Otp, ebin: Path, directory: Path, questions: Sequence[Question]) -> list[Decision]:
    """What `distsec_policy:decide/2` says, in one run of erl; policies go as signed documents."""
    key = Ed25519PrivateKey.generate()
    documents: dict[Policy, int] = {}
    cases: list[Term] = []
    for policy, claim, now in questions:
        index = None if policy is None else documents.setdefault(policy, len(documents))
        cases.append((index, erlang_claim(claim, now)))
    given: Term = (
        key.public_key().public_bytes_raw(),
        [policy_document(policy, key.sign) for policy in documents],
        cases,
    )
    return [
        decision_of(each) for each in ask_script(otp, ebin, directory, "admission_runner.erlscript", given)
    ]


def erlang_claim(claim: Claim, now: int) -> Term:
    return {
        Symbol("direction"): Symbol(claim.direction.value),
        Symbol("identities"): [identity.encode() for identity in claim.identities],
        Symbol("serial"): claim.serial.encode() if claim.serial is not None else None,
        Symbol("not_after"): claim.not_after,
        Symbol("name"): claim.name.encode() if claim.name is not None else None,
        Symbol("hidden"): claim.hidden,
        Symbol("names"): [name.encode() for name in claim.names],
        Symbol("usages"): None if claim.usages is None else [Symbol(usage) for usage in claim.usages],
        Symbol("live"): claim.live,
        Symbol("node"): None if claim.node is None else claim.node.encode(),
        Symbol("now"): now,
    }


def decision_of(answer: Any) -> Decision:
    verdict, reason, rule = answer
    return Decision(
        Verdict(verdict), None if reason is None else Reason(reason), None if rule is None else rule.decode()
    )
