"""Who may join: what is wrong or unsafe in the allowlist (the rules: `check_rules`). Pure."""

from __future__ import annotations

from distsec.config.check_rules import check_rules
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Security
from distsec.model.names import NodeName

_DISTRIBUTION: KeyPath = ("security", "distribution")
_ALLOWED: KeyPath = (*_DISTRIBUTION, "allowed_nodes")


def check_admission(document: Document, cluster: str, report: Report) -> None:
    """`cluster` is the trust domain, which the identities of rules must be in."""
    distribution = (document.security or Security()).distribution or Distribution()
    allowed = [(index, name) for index, name in enumerate(distribution.allowed_nodes or ()) if name]
    wrong = distribution.has("allowed_nodes") and distribution.allowed_nodes is None
    if not distribution.allowed_nodes and not wrong:
        report.warn(_ALLOWED, "is empty: no node is admitted by any other", "list the nodes that may link")
    _check_members(document, allowed, report)
    check_rules(document, distribution, cluster, report)


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
