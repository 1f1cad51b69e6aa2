"""`[[security.distribution.rules]]`: by what certificates nodes and command-line tools are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distsec.core.wanted import Overlay, identity_of, wanted_policy
from distsec.errors import Problem
from distsec.model.cluster import ClusterSpec, IdentitySpec
from distsec.model.names import NodeName
from distsec.model.policy import PolicyRule

Parse = Callable[..., ClusterSpec]
Only = Callable[..., Problem]

POLLER = "dn:2.5.4.10:536572766963655261646172,2.5.4.3:706f6c6c65722e736572766963657261646172"
CLUSTER = """
[security.distribution]
allowed_nodes = ["a@h.example", "poller@h.example", "db@db1.example"]
[[nodes]]
name = "a@h.example"
"""


def with_rule(text: str, distribution: str = "") -> str:
    head, allowed, rest = CLUSTER.partition("[[nodes]]")
    return f"{head}{distribution}\n[[security.distribution.rules]]\n{text}\n{allowed}{rest}"


def warned(cluster: ClusterSpec, text: str) -> bool:
    return any(text in warning for warning in cluster.warnings)


# ---- nodes that have a certificate already


@pytest.mark.parametrize(
    ("key", "identity"),
    [
        ('subject = "CN=poller.serviceradar,O=ServiceRadar"', POLLER),
        ('identity = "dn:CN=poller.serviceradar,O=ServiceRadar"', POLLER),
        ('dns = "Poller.Example.net"', "dns:poller.example.net"),
        ('identity = "dns:poller.example.net"', "dns:poller.example.net"),
        ('identity = "spiffe://distsec/workload/poller"', "spiffe://distsec/workload/poller"),
    ],
)
def test_a_listed_node_is_bound_to_the_certificate_it_has(spec: Parse, key: str, identity: str) -> None:
    cluster = spec(with_rule(f'names = ["poller@h.example"]\n{key}'))
    assert cluster.identities == (IdentitySpec(NodeName.parse("poller@h.example"), identity),)
    assert not cluster.rules
    known = {peer.name: peer.identity for peer in wanted_policy(cluster, Overlay(), {}, 0).peers}
    assert known == {
        "a@h.example": "spiffe://distsec/node/h.example/a",
        "poller@h.example": identity,
        "db@db1.example": "spiffe://distsec/node/db1.example/db",
    }


def test_a_node_that_is_managed_here_may_be_bound_to_a_certificate_that_is_brought(spec: Parse) -> None:
    cluster = spec(with_rule('names = ["a@h.example"]\ndns = "a.example"'))
    known = {peer.name: peer.identity for peer in wanted_policy(cluster, Overlay(), {}, 0).peers}
    assert known["a@h.example"] == "dns:a.example"
    assert identity_of(cluster, NodeName.parse("a@h.example")) == "dns:a.example"
    assert (
        identity_of(cluster, NodeName.parse("poller@h.example")) == "spiffe://distsec/node/h.example/poller"
    )


def test_an_allow_with_another_identity_wins_over_the_rule(spec: Parse) -> None:
    cluster = spec(with_rule('names = ["poller@h.example"]\ndns = "poller.example.net"'))
    own = "spiffe://distsec/node/h.example/poller"
    known = {
        identity: [
            peer.identity
            for peer in wanted_policy(cluster, Overlay().allowing("poller@h.example", identity), {}, 0).peers
            if peer.name == "poller@h.example"
        ]
        for identity in (None, own)
    }
    assert known == {None: ["dns:poller.example.net"], own: [own]}


def test_what_no_ca_of_the_cluster_issues_yet_is_said(spec: Parse) -> None:
    assert warned(
        spec(with_rule('names = ["poller@h.example"]\ndns = "p.example"')), "rules[0].dns: is looked for"
    )


def test_a_rule_for_a_node_that_is_not_listed_admits_nobody_and_is_named(spec: Parse) -> None:
    cluster = spec(with_rule('names = ["x@h.example"]\ndns = "x.example"'))
    assert warned(cluster, "x@h.example is not in allowed_nodes")
    assert "x@h.example" not in {peer.name for peer in wanted_policy(cluster, Overlay(), {}, 0).peers}


@pytest.mark.parametrize(
    "text",
    [
        'names = ["poller@h.example", "db@db1.example"]\ndns = "shared.example"',
        'names = ["poller@h.example"]\nidentity = "spiffe://distsec/node/db1.example/db"',
    ],
)
def test_nodes_that_share_a_certificate_are_named(spec: Parse, text: str) -> None:
    assert warned(spec(with_rule(text)), "is known by the same certificate as")


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ('names = ["poller@h.example"]', "", "does not say by what certificate"),
        ('kind = "node"\nnames = ["poller@h.example"]', "", "does not say by what certificate"),
        ('names = ["poller@h.example"]\ndns = "a.example"\nsubject = "CN=a"', "subject", "stands beside dns"),
        ('names = ["poller@h.example"]\nsubject = "CN = a"', "subject", "is no subject"),
        ('names = ["poller@h.example"]\nsubject = "poller"', "subject", "is no subject"),
        ('names = ["poller@h.example"]\nsubject = ""', "subject", "is empty"),
        ('names = ["poller@h.example"]\nsubject = "CN=a\\\\00"', "subject", "nobody can see"),
        ('names = ["poller@h.example"]\ndns = "*.example"', "dns", "is no DNS name"),
        ('names = ["poller@h.example"]\ndns = "10.0.0.1"', "dns", "is no DNS name"),
        ('names = ["poller@h.example"]\nidentity = "dn:nonsense"', "identity", "is no subject"),
        ('names = ["poller@h.example"]\nidentity = "dns:"', "identity", "is no DNS name"),
        (
            'names = ["poller@h.example"]\nidentity = "spiffe://distsec/x*"',
            "identity",
            "is not the whole of one",
        ),
        ('names = ["poller@h.example"]\nidentity = "spiffe://other/x"', "identity", "is not of this cluster"),
        ('kind = "node"\nnames = ["cli-*@h.example"]\ndns = "a.example"', "names[0]", "has a *"),
        ('names = ["poller@h.example", "poller@h.example"]\ndns = "a.example"', "names[1]", "is in a rule"),
        (
            'names = ["poller@h.example"]\ndns = "a.example"\nmax_live = 2',
            "max_live",
            "is for rules of kind cli",
        ),
        (
            'names = ["poller@h.example"]\ndns = "a.example"\nnodes = ["a@h.example"]',
            "nodes",
            "must all link",
        ),
    ],
)
def test_a_node_rule_that_is_wrong_is_refused(only: Only, text: str, key: str, what: str) -> None:
    problem = only(with_rule(text))
    assert problem.key == "security.distribution.rules[0]" + (f".{key}" if key else "")
    assert what in problem.what
    assert problem.do


# ---- command-line tools


def test_a_cli_rule_says_who_how_many_and_with_whom(spec: Parse) -> None:
    cluster = spec(
        with_rule(
            'names = ["cli-*@h.example", "x-*@h.example"]\nsubject = "CN=operator"\n'
            'max_live = 3\nnodes = ["a@h.example"]'
        )
    )
    operator = "dn:2.5.4.3:6f70657261746f72"
    assert wanted_policy(cluster, Overlay(), {}, 0).rules == (
        PolicyRule("cli-*@h.example", operator, 3, ("a@h.example",)),
        PolicyRule("x-*@h.example", operator, 3, ("a@h.example",)),
    )
    assert not cluster.identities


def test_a_cli_rule_may_have_eight_live_names_where_it_says_nothing(spec: Parse) -> None:
    (rule,) = wanted_policy(spec(with_rule('names = ["cli-*@h.example"]')), Overlay(), {}, 0).rules
    assert rule == PolicyRule("cli-*@h.example", "spiffe://distsec/cli/*", 8, ())


def test_an_exact_name_of_a_tool_needs_the_kind_to_be_said(spec: Parse) -> None:
    cluster = spec(with_rule('names = ["cli@h.example"]\nkind = "cli"'))
    assert [rule.names for rule in cluster.rules] == [("cli@h.example",)]
    assert not cluster.identities


def test_a_listed_name_is_not_lent_to_a_tool_and_that_is_said(spec: Parse) -> None:
    text = with_rule('names = ["poller@h.example"]\nkind = "cli"')
    assert warned(spec(text), "a rule lends no listed name to a command-line tool")


def test_a_rule_for_a_node_that_there_is_not_is_named(spec: Parse) -> None:
    text = with_rule('names = ["cli-*@h.example"]\nnodes = ["typo@h.example"]')
    assert warned(spec(text), "rules[0].nodes[0]: typo@h.example is no node of this cluster")


@pytest.mark.parametrize("number", ["0", "-1", "10001", "true", '"8"', "1.5"])
def test_the_number_of_live_names_has_bounds(only: Only, number: str) -> None:
    problem = only(with_rule(f'names = ["cli-*@h.example"]\nmax_live = {number}'))
    assert problem.key == "security.distribution.rules[0].max_live"


# ---- foreign trust domains


def test_a_foreign_trust_domain_is_taken_where_it_is_written_out(spec: Parse, only: Only) -> None:
    text = 'names = ["poller@h.example"]\nidentity = "spiffe://other.example/poller"'
    assert "foreign_trust_domains" in only(with_rule(text)).do
    cluster = spec(with_rule(text, 'foreign_trust_domains = ["other.example"]'))
    assert cluster.foreign_trust_domains == ("other.example",)
    assert [entry.identity for entry in cluster.identities] == ["spiffe://other.example/poller"]


def test_who_was_let_in_by_a_foreign_identity_goes_with_its_trust_domain(spec: Parse) -> None:
    overlay = Overlay().allowing("x@h.example", "spiffe://other.example/x")
    trusting = spec(CLUSTER.replace("allowed", 'foreign_trust_domains = ["other.example"]\nallowed', 1))
    names = [
        {peer.name for peer in wanted_policy(cluster, overlay, {}, 0).peers}
        for cluster in (trusting, spec(CLUSTER))
    ]
    assert ["x@h.example" in each for each in names] == [True, False]


def test_the_cluster_itself_is_no_foreign_trust_domain(spec: Parse) -> None:
    text = CLUSTER.replace("allowed", 'foreign_trust_domains = ["distsec"]\nallowed', 1)
    assert warned(spec(text), "foreign_trust_domains[0]: distsec is this cluster's own")
