"""What the orchestrator knows: whether what is wanted is in force. Pure; of its status document."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from distsec.core.node_status import Why
from distsec.core.wanted import TaintStage
from distsec.model.cluster import NodeState
from distsec.model.policy import Verdict
from distsec.posture.facts import Facts
from distsec.posture.finding import Code, Finding, Severity

MAX_LINKS: Final = 10
"""Of one node that are not allowed: one that lies could bury what the others say."""

_AT_REST: Final = frozenset({None, Why.OPERATOR, Why.EXITED, Why.COMPROMISED})


def judge(facts: Facts) -> Iterator[Finding]:
    if facts.spec is None:
        return
    if facts.status is None:
        yield Finding.of(
            Severity.INFO,
            Code.ORCHESTRATOR_ABSENT,
            what=f"what is in force could not be compared with what is wanted: {facts.status_problem}",
            where="the control socket",
            fix="distsec run, then check again",
        )
        return
    status = facts.status
    for node in _objects(status.get("nodes")):
        name = str(node.get("name"))
        yield from _guard(name, node)
        yield from _links(name, node)
        yield from _node(name, node, status.get("policy_generation"))
    if status.get("policy_rolled_back"):
        yield Finding.of(
            Severity.HIGH,
            Code.POLICY_ROLLED_BACK,
            what=f"the policy went back: {status['policy_rolled_back']}",
            where="the orchestrator",
            fix="repeat the last `distsec allow` and `distsec deny`",
        )
    if status.get("metrics_problem"):
        yield Finding.of(
            Severity.MEDIUM,
            Code.METRICS_NOT_SERVED,
            what=f"nobody can ask for metrics, and who answers there is not us: {status['metrics_problem']}",
            where="[metrics] listen",
            fix="end what holds the port, or choose another one",
        )
    for name in status.get("tainted_elsewhere") or ():
        yield _tainted(
            str(name), "it is not managed here", f"re-key it there, or: distsec deny {shlex.quote(str(name))}"
        )


def _guard(name: str, node: Mapping[str, Any]) -> Iterator[Finding]:
    if (
        node.get("state") in {NodeState.FATAL, NodeState.STOPPING}
        and node.get("reason") == Why.CARRIER_NOT_IN_FORCE
    ):
        yield Finding.of(
            Severity.CRITICAL,
            Code.GUARD_NOT_IN_FORCE,
            what=f"the guard of {name} is not in force: {node.get('detail') or 'no detail'}",
            where=name,
            fix="correct what it names; then: distsec start " + name,
        )


def _links(name: str, node: Mapping[str, Any]) -> Iterator[Finding]:
    refused = [link for link in _objects(node.get("links")) if link.get("verdict") != Verdict.ALLOW]
    for link in refused[:MAX_LINKS]:
        yield Finding.of(
            Severity.CRITICAL,
            Code.LINK_NOT_ALLOWED,
            what=f"{name} is linked with {link.get('peer')}, which is not allowed ({link.get('reason')})",
            where=name,
            fix=f"distsec deny {shlex.quote(str(link.get('peer')))} --compromised",
        )


def _node(name: str, node: Mapping[str, Any], wanted: object) -> Iterator[Finding]:
    taint = node.get("taint") or {}
    if node.get("tainted") and taint.get("stage") != TaintStage.HELD:
        yield _tainted(name, f"by {taint.get('cause')}", "wait until it is re-keyed: distsec status")
    state, reason = node.get("state"), node.get("reason")
    if state != NodeState.RUNNING:
        rests = state == NodeState.STOPPED and reason in _AT_REST
        detail = f": {node['detail']}" if node.get("detail") else ""
        if not rests and reason != Why.CARRIER_NOT_IN_FORCE:
            yield Finding.of(
                Severity.MEDIUM,
                Code.NODE_DOWN,
                what=f"{name} is {state} and should be RUNNING ({reason or 'no reason told'}{detail})",
                where=name,
                fix=f"see its log; then: distsec start {name}",
            )
        return
    if node.get("agent") != "connected":
        yield Finding.of(
            Severity.MEDIUM,
            Code.AGENT_LOST,
            what=f"the agent of {name} is lost: the policy that it has stays in force",
            where=name,
            fix=f"distsec restart {name}",
        )
    active = node.get("policy_generation")
    if isinstance(wanted, int) and active != wanted:
        yield Finding.of(
            Severity.MEDIUM,
            Code.POLICY_NOT_ACTIVE,
            what=f"generation {active} of the policy is in force in {name}, and {wanted} is wanted",
            where=name,
            fix="distsec status; it is sent again when its agent is connected",
        )


def _tainted(name: str, why: str, fix: str) -> Finding:
    return Finding.of(
        Severity.HIGH,
        Code.NODE_TAINTED,
        what=f"{name} may hold what a compromised node left behind ({why})",
        where=name,
        fix=fix,
    )


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
