"""What `distsec status --json` and `distsec env` show. Pure; remote text is escaped here once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from distsec.core.node_status import NodeStatus, Why
from distsec.core.renewal import State
from distsec.core.wanted import Overlay, TaintStage
from distsec.model.cluster import PROVEN_RELEASES, Certificate, ClusterSpec, Link, NodeState
from distsec.model.policy import Verdict
from distsec.model.text import escape
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.pushing import Wanted

SCHEMA = 1


def status_document(
    spec: ClusterSpec,
    wanted: Wanted,
    nodes: Iterable[ManagedNode],
    user: str,
    now: float,
    rolled_back: str | None = None,
    authority: dict[str, Any] | None = None,
    unserved: str | None = None,
) -> dict[str, Any]:
    """The answer to `status`. `wanted`: the policy that all are to have; `user`: ours, for those without one;
    `now`: loop time; `rolled_back`: why `wanted` may lack what was decided; `authority`: the CA's
    certificate; `unserved`: why there are no metrics.
    """
    nodes = list(nodes)
    refusals: Counter[tuple[str, str, str]] = Counter()
    for node in nodes:
        for (direction, reason), count in node.observed.refusals().items():
            refusals[node.name, str(direction), str(reason)] += count
    return {
        "schema": SCHEMA,
        "cluster": spec.name,
        "mode": str(spec.mode),
        "carrier": str(spec.carrier),
        "healthy": rolled_back is None and unserved is None and all(is_well(node, wanted) for node in nodes),
        "violation": any(is_violation(node) for node in nodes),
        "policy_generation": wanted.generation,
        "policy_rolled_back": rolled_back,
        "metrics_problem": unserved,
        "authority": authority,
        "hosts": [
            {
                "host": host.name,
                "serial": host.serial,
                "issued_at": host.issued_at,
                "nodes": [str(node.name) for node in host.nodes],
            }
            for host in spec.hosts
        ],
        "tainted_elsewhere": [
            taint.name for taint in wanted.overlay.tainted if taint.stage is TaintStage.ELSEWHERE
        ],
        "nodes": [node_document(node, wanted.overlay, user, now) for node in nodes],
        "refusals": [
            {"node": node, "direction": direction, "reason": reason, "count": count}
            for (node, direction, reason), count in sorted(refusals.items())
        ],
    }


def is_well(node: ManagedNode, wanted: Wanted) -> bool:
    """RUNNING, proven, its agent connected, with the policy `wanted`, a certificate that is neither revoked
    nor expired, and no link that should not be.

    Or STOPPED because it was told to, or because its restart policy lets it end. Never tainted, except for a
    node that was denied as compromised and is held.
    """
    status, taint = node.status, wanted.overlay.taint(node.name)
    if taint is not None and taint.stage is not TaintStage.HELD:
        return False
    if status.state is NodeState.STOPPED:
        return status.why in (Why.OPERATOR, Why.EXITED, Why.COMPROMISED) or taint is not None
    return not (is_revoked(node, wanted.overlay) or is_expired(node)) and (
        status.state is NodeState.RUNNING
        and status.proven
        and status.agent
        and node.active_digest == wanted.digest
        and not is_violation(node)
    )


def is_violation(node: ManagedNode) -> bool:
    """An unlisted link is up, or the guard is (or was, when it was stopped for that) not in force."""
    status = node.status
    return any(link.verdict == Verdict.DENY for link in node.observed.links.values()) or (
        status.state in (NodeState.STOPPING, NodeState.FATAL) and status.why is Why.CARRIER_NOT_IN_FORCE
    )


def tainted_names(overlay: Overlay) -> set[str]:
    """Which nodes may still run what a compromised one left behind: neither re-keyed and back, nor held."""
    return {taint.name for taint in overlay.tainted if taint.stage is not TaintStage.HELD}


def is_revoked(node: ManagedNode, overlay: Overlay) -> bool:
    """Whether its own certificate is: then nobody links with it."""
    certificate = node.certificate
    return certificate is not None and (
        certificate.serial in overlay.revoked or certificate.identity in overlay.revoked_identities
    )


def is_expired(node: ManagedNode) -> bool:
    """Whether its certificate has ended, and was not renewed."""
    renewal = node.hub.renewal.document(node.name)
    return renewal is not None and renewal["state"] == State.EXPIRED


def node_document(node: ManagedNode, overlay: Overlay, user: str, now: float) -> dict[str, Any]:
    """One entry of `nodes`."""
    taint = overlay.taint(node.name)
    status, snapshot = node.status, node.observed.snapshot
    otp = escape(snapshot.otp, 20) if snapshot is not None and status.pid is not None else None
    revoked = is_revoked(node, overlay) if node.certificate is not None else None
    return {
        "name": node.name,
        "state": str(status.state),
        "reason": _reason(status),
        "detail": escape(status.detail, 1024) or None,
        "guard": "proven" if status.proven else "unproven",
        "pid": status.pid,
        "user": node.user or user,
        "otp": otp,
        "support": _support(otp),
        "uptime_seconds": int(now - status.started) if status.started is not None else None,
        "agent": "connected" if status.agent else "lost",
        "policy_generation": node.observed.generation if status.pid is not None else None,
        "tainted": taint is not None,
        "taint": None if taint is None else {"stage": str(taint.stage), "cause": taint.cause},
        "certificate": {**_certificate(node.certificate), "revoked": revoked},
        "renewal": node.hub.renewal.document(node.name),
        "links": [_link(link) for _, link in sorted(node.observed.links.items())],
    }


def _reason(status: NodeStatus) -> str | None:
    return str(status.why) if status.why is not None else None


def _support(otp: str | None) -> str | None:
    if otp is None:
        return None
    return "proven" if otp.isdigit() and int(otp) in PROVEN_RELEASES else "unproven"


def _certificate(certificate: Certificate | None) -> dict[str, Any]:
    keys = ("identity", "serial", "issuer", "not_after")
    return {key: _shown(getattr(certificate, key, None)) for key in keys}


def _link(link: Link) -> dict[str, Any]:
    return {key: _shown(value) for key, value in asdict(link).items()}


def _shown(value: object) -> object:
    return escape(value, 1024) if isinstance(value, str) else value
