"""What is wrong or unsafe in `[[security.distribution.rules]]`. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from distsec.config.fields import RuleKind
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.rules import identity_of, kind_of
from distsec.config.schema import Distribution, Document, Rule
from distsec.errors import NameInvalid
from distsec.model.identities import MAX_SPIFFE_BYTES, is_certificate_name, trust_domain
from distsec.model.names import NodeName

_RULES: KeyPath = ("security", "distribution", "rules")
_IDENTITY = re.compile(r"spiffe://(?P<domain>[^/*]+)/[A-Za-z0-9._/-]*\*?")
_WHOLE_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+")
_ONE_OF = ("identity", "dns", "subject")


@dataclass(slots=True)
class _Cluster:
    """What rules are held against; `owners` grows with each node whose identity a rule names."""

    name: str
    trusted: Collection[str]
    managed: Collection[NodeName]
    listed: Collection[NodeName]
    owners: dict[str, NodeName] = field(default_factory=dict)
    bound: set[NodeName] = field(default_factory=set)


def check_rules(document: Document, distribution: Distribution, cluster: str, report: Report) -> None:
    """`cluster` is the trust domain, which SPIFFE IDs in rules must be in unless another is listed."""
    foreign = [domain for domain in distribution.foreign_trust_domains or () if domain]
    if cluster in foreign:
        report.warn(
            ("security", "distribution", "foreign_trust_domains", foreign.index(cluster)),
            f"{cluster} is this cluster's own",
            "take it out",
        )
    managed = {node.name for node in document.nodes or () if node and node.name}
    listed = {name for name in distribution.allowed_nodes or () if name}
    against = _Cluster(cluster, {cluster, *foreign}, managed, listed)
    against.owners |= {name.identity(cluster): name for name in sorted(listed | managed)}
    for index, rule in enumerate(distribution.rules or ()):
        if rule:
            _check_rule((*_RULES, index), rule, against, report)


def _check_rule(path: KeyPath, rule: Rule, cluster: _Cluster, report: Report) -> None:
    if not rule.has("names"):
        report.error(path, "has no names", 'add names = ["rabbitmqcli-*@host"]')
    elif rule.names == []:
        report.error((*path, "names"), "is empty: the rule would match nobody", "list at least one name")
    identity = _checked_identity(path, rule, cluster, report)
    if not rule.kind and (not rule.names or None in rule.names):
        return  # what kind it was to be cannot be told; its names were complained about
    if kind_of(rule) is RuleKind.CLI:
        _check_cli_rule(path, rule, identity, cluster, report)
    else:
        _check_node_rule(path, rule, identity, cluster, report)


# ---- whose certificate -------------------------------------------------------------------------------------


def _checked_identity(path: KeyPath, rule: Rule, cluster: _Cluster, report: Report) -> str | None:
    """The identity that the rule is about; None if it names none, or a wrong one."""
    given = [key for key in _ONE_OF if rule.has(key)]
    if len(given) > 1:
        report.error((*path, given[1]), f"stands beside {given[0]}", "name the certificate in one way")
    if len(given) != 1 or getattr(rule, given[0]) is None:
        return None
    where = (*path, given[0])
    try:
        identity = identity_of(rule)
    except NameInvalid as error:
        report.error(where, error.what, error.do)
        return None
    assert identity is not None
    if is_certificate_name(identity):
        report.warn(
            where,
            "is looked for in certificates of the CA that the nodes trust, and of nobody else",
            "have such a certificate issued below that one (`distsec certs export --ca`)",
        )
        return identity
    return identity if _check_spiffe(where, identity, cluster, report) else None


def _check_spiffe(path: KeyPath, identity: str, cluster: _Cluster, report: Report) -> bool:
    shown = ascii(identity[:80])
    found = _IDENTITY.fullmatch(identity)
    if not found or len(identity) > MAX_SPIFFE_BYTES:
        report.error(
            path,
            f"{shown} is no SPIFFE ID, nor the beginning of one with a * at its end",
            f'such as "spiffe://{cluster.name}/cli/*"; a subject goes under subject, a DNS name under dns',
        )
        return False
    if trust_domain(identity) not in cluster.trusted:
        report.error(
            path,
            f"{shown} is not of this cluster",
            f"begin it with spiffe://{cluster.name}/, or list {found['domain'][:80]} in"
            " foreign_trust_domains if you trust it",
        )
        return False
    return True


# ---- by kind -----------------------------------------------------------------------------------------------


def _check_cli_rule(
    path: KeyPath, rule: Rule, identity: str | None, cluster: _Cluster, report: Report
) -> None:
    for index, pattern in enumerate(rule.names or ()):
        if pattern is None:
            continue
        head, _, host = pattern.partition("@")
        if not head.strip("*"):
            report.warn(
                (*path, "names", index),
                f"{pattern} matches every name on that host",
                f'write the part that the names share, such as "rabbitmqcli-*@{host}"',
            )
        if "*" not in pattern and NodeName.parse(pattern) in cluster.listed:
            report.warn(
                (*path, "names", index),
                f"{pattern} is in allowed_nodes, and a rule lends no listed name to a command-line tool",
                "take it out here or there",
            )
    for index, node in enumerate(rule.nodes or ()):
        if node and node not in cluster.listed and node not in cluster.managed:
            report.warn((*path, "nodes", index), f"{node} is no node of this cluster", "check the name")
    prefix, nodes = (identity or "").rstrip("*"), f"spiffe://{cluster.name}/node/"
    if identity and identity.endswith("*") and (nodes.startswith(prefix) or prefix.startswith(nodes)):
        report.warn(
            (*path, "identity"),
            "lets nodes of the cluster in as command-line tools too",
            f'use "spiffe://{cluster.name}/cli/*"',
        )


def _check_node_rule(
    path: KeyPath, rule: Rule, identity: str | None, cluster: _Cluster, report: Report
) -> None:
    if not any(rule.has(key) for key in _ONE_OF):
        report.error(
            path,
            "does not say by what certificate these nodes are known",
            'add identity, dns or subject, or kind = "cli" if they are command-line tools',
        )
    elif identity and not is_certificate_name(identity) and not _WHOLE_IDENTITY.fullmatch(identity):
        report.error((*path, "identity"), f"{identity[:80]!a} is not the whole of one", "write it out")
        identity = None
    for key, why in (
        ("max_live", "a node has one name"),
        ("nodes", "nodes that see each other must all link, or Erlang cuts links that are good"),
    ):
        if rule.has(key):
            report.error((*path, key), f"is for rules of kind cli: {why}", "take it out")
    for index, name in enumerate(rule.names or ()):
        if name is not None:
            _check_bound((*path, "names", index), name, identity, cluster, report)


def _check_bound(path: KeyPath, text: str, identity: str | None, cluster: _Cluster, report: Report) -> None:
    if "*" in text:
        report.error(path, f"{text} has a *, and a node is listed by its whole name", 'or kind = "cli"')
        return
    name = NodeName.parse(text)
    if name in cluster.bound:
        report.error(path, f"{name} is in a rule of this kind already", "join the two")
    cluster.bound.add(name)
    if name not in cluster.listed:
        report.warn(
            path, f"{name} is not in allowed_nodes", "add it there, or run `distsec allow`, to admit it"
        )
    owner = cluster.owners.setdefault(identity, name) if identity else name
    if owner != name:
        report.warn(
            path, f"{name} is known by the same certificate as {owner}", "whoever has it may come as both"
        )
