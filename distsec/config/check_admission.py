"""Who may join: what is wrong or unsafe in the allowlist and in the CLI rules. Pure."""

from __future__ import annotations

import re

from distsec.config.addresses import IPV4_ONLY, is_ipv6
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Rule, Security
from distsec.model.names import NodeName

_DISTRIBUTION: KeyPath = ("security", "distribution")
_ALLOWED: KeyPath = (*_DISTRIBUTION, "allowed_nodes")
_IDENTITY = re.compile(r"spiffe://(?P<domain>[^/*]+)/[A-Za-z0-9._/-]*\*?")
_MAX_IDENTITY = 2048
"""Bytes of a SPIFFE ID (SPIFFE-ID, section 2.3)."""


def check_admission(document: Document, cluster: str, report: Report) -> None:
    """`cluster` is the trust domain, which the identities of rules must be in."""
    distribution = (document.security or Security()).distribution or Distribution()
    allowed = [(index, name) for index, name in enumerate(distribution.allowed_nodes or ()) if name]
    wrong = distribution.has("allowed_nodes") and distribution.allowed_nodes is None
    if not distribution.allowed_nodes and not wrong:
        report.warn(_ALLOWED, "is empty: no node is admitted by any other", "list the nodes that may link")
    _check_members(document, allowed, report)
    for index, rule in enumerate(distribution.rules or ()):
        if rule:
            _check_rule((*_DISTRIBUTION, "rules", index), rule, cluster, report)


def _check_members(document: Document, allowed: list[tuple[int, NodeName]], report: Report) -> None:
    first: dict[NodeName, int] = {}
    for index, name in allowed:
        if name in first:
            report.warn((*_ALLOWED, index), f"{name} is listed twice", "remove one")
        first.setdefault(name, index)
    reachable: set[NodeName] = set()
    for key, tables in (("nodes", document.nodes), ("peers", document.peers)):
        for index, table in enumerate(tables or ()):
            if table is None or table.name is None:
                continue
            reachable.add(table.name)
            if first and table.name not in first:
                report.warn(
                    (key, index, "name"),
                    f"{table.name} is not in allowed_nodes and may link with nobody",
                    "add it to [security.distribution] allowed_nodes, or run `distsec allow`",
                )
    stranded = [str(name) for name in first if name not in reachable]
    if stranded:
        more = f" and {len(stranded) - 3} more" if len(stranded) > 3 else ""
        report.warn(
            _ALLOWED,
            f"admitted but never dialled, for want of an address and port: {', '.join(stranded[:3])}{more}",
            "add a [[nodes]] or [[peers]] table for each, unless they dial",
        )


def _check_rule(path: KeyPath, rule: Rule, cluster: str, report: Report) -> None:
    if not rule.has("names"):
        report.error(path, "has no names", 'add names = ["rabbitmqcli-*@host"]')
    elif rule.names == []:
        report.error((*path, "names"), "is empty: the rule would match nobody", "list at least one name")
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
        if is_ipv6(host):
            report.error((*path, "names", index), *IPV4_ONLY)
    if rule.identity is not None:
        _check_identity((*path, "identity"), rule.identity, cluster, report)


def _check_identity(path: KeyPath, identity: str, cluster: str, report: Report) -> None:
    shown = ascii(identity[:80])
    found = _IDENTITY.fullmatch(identity)
    if not found or len(identity) > _MAX_IDENTITY:
        report.error(
            path,
            f"{shown} is no SPIFFE ID, nor the beginning of one with a * at its end",
            f'such as "spiffe://{cluster}/cli/*"',
        )
        return
    if found["domain"] != cluster:
        report.error(path, f"{shown} is not of this cluster", f"begin it with spiffe://{cluster}/")
        return
    prefix, node = identity.rstrip("*"), f"spiffe://{cluster}/node/"
    if identity.endswith("*") and (node.startswith(prefix) or prefix.startswith(node)):
        report.warn(
            path, "lets nodes of the cluster in as command-line tools too", f'use "spiffe://{cluster}/cli/*"'
        )
