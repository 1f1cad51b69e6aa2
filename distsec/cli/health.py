"""What is wrong with a cluster, read from its status document; and the exit code that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distsec.core.node_status import Why
from distsec.core.renewal import State
from distsec.core.wanted import TaintStage
from distsec.model.cluster import NodeState
from distsec.model.policy import Reason, Verdict

ALL_WELL, DEGRADED, VIOLATION, NO_ANSWER = 0, 1, 2, 3

AT_REST = frozenset({Why.OPERATOR, Why.EXITED, Why.COMPROMISED})
"""Why a node may well be STOPPED: it was told to, or its restart policy lets it end."""


MAX_LINKS_NAMED = 10
"""Of a node's links that are not allowed: one that lies could bury what the others say."""


@dataclass(frozen=True, slots=True)
class Health:
    """One sentence for each thing that is wrong. Refusals are none: they are what the guard is for."""

    violations: tuple[str, ...]
    degraded: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return VIOLATION if self.violations else DEGRADED if self.degraded else ALL_WELL


def assess(status: Mapping[str, Any]) -> Health:
    """Judges a document of `status --json`. What the document itself calls unhealthy is never well."""
    nodes = [node for node in status.get("nodes", []) if isinstance(node, Mapping)]
    violations = [text for node in nodes for text in _violations(node)]
    if not violations and status.get("violation") is True:
        violations.append("the orchestrator reports a violation")
    degraded = [text for node in nodes for text in _degraded(node, status.get("policy_generation"))]
    if status.get("policy_rolled_back"):
        degraded.append(f"the policy went back: {status['policy_rolled_back']}")
    if status.get("metrics_problem"):
        degraded.append(f"no metrics: {status['metrics_problem']}")
    degraded += [
        f"{name} is tainted and not managed here: re-key it there, or deny it"
        for name in status.get("tainted_elsewhere", [])
    ]
    if not violations and not degraded and status.get("healthy") is False:
        degraded.append("the orchestrator calls the cluster unhealthy")
    return Health(tuple(violations), tuple(degraded))


def _violations(node: Mapping[str, Any]) -> Iterator[str]:
    name = node.get("name")
    if _guard_not_in_force(node):
        yield f"{name}: its guard is not in force ({_why(node)})"
    refused = [link for link in node.get("links", []) if link.get("verdict") != Verdict.ALLOW]
    for link in refused[:MAX_LINKS_NAMED]:
        reason = link.get("reason") or Reason.UNLISTED_LINK
        yield f"{name}: a link with {link.get('peer')} is up and not allowed ({reason})"
    if len(refused) > MAX_LINKS_NAMED:
        yield f"{name}: {len(refused) - MAX_LINKS_NAMED} more links are up and not allowed"


def _degraded(node: Mapping[str, Any], wanted_generation: object) -> Iterator[str]:
    name, state = node.get("name"), node.get("state")
    yield from _tainted(node)
    if state == NodeState.STOPPED:
        if node.get("reason") is not None and node.get("reason") not in AT_REST:
            yield f"{name} is STOPPED and should be RUNNING ({_why(node)})"
        return
    if state != NodeState.RUNNING:
        if not _guard_not_in_force(node):
            yield f"{name} is {state} ({_why(node)})" if node.get("reason") else f"{name} is {state}"
        return
    if node.get("agent") != "connected":
        yield f"{name}: its agent is lost; the policy it has stays in force"
    elif node.get("guard") == "unproven":
        yield f"{name}: its guard is being proven again"
    active = node.get("policy_generation")
    if isinstance(wanted_generation, int) and active != wanted_generation:
        yield f"{name}: policy generation {active} is in force, {wanted_generation} is wanted"
    if (node.get("certificate") or {}).get("revoked"):
        yield f"{name}: its certificate is revoked, so nobody links with it"
    renewal = node.get("renewal") or {}
    if renewal.get("state") == State.EXPIRED:
        why = f", and is not renewed: {renewal['why']}" if renewal.get("why") else ""
        yield f"{name}: its certificate has expired, so nobody links with it{why}"


def _tainted(node: Mapping[str, Any]) -> Iterator[str]:
    taint = node.get("taint") or {}
    if not node.get("tainted") or taint.get("stage") == TaintStage.HELD:
        return  # a node that is held was denied, and is stopped
    what = "not re-keyed yet"
    if taint.get("stage") == TaintStage.REKEYED:
        what = "re-keyed, and not proven with its new key yet"
    yield f"{node.get('name')} is tainted (by {taint.get('cause')}): {what}"


def _guard_not_in_force(node: Mapping[str, Any]) -> bool:
    ended = node.get("state") in {NodeState.FATAL, NodeState.STOPPING}
    return ended and node.get("reason") == Why.CARRIER_NOT_IN_FORCE


def _why(node: Mapping[str, Any]) -> str:
    reason, detail = node.get("reason") or "no reason told", node.get("detail")
    return f"{reason}: {detail}" if detail else str(reason)
