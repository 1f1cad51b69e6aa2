"""What is in force against what is wanted, from the orchestrator's status document."""

from __future__ import annotations

from typing import Any

import pytest

from distsec.posture.finding import Code, Severity
from tests.posture.planted import A, B, Planted, told


def status(**changes: Any) -> dict[str, Any]:
    """A cluster that is well, but for `changes` to its first node, or (with a capital) to the whole."""
    node = {
        "state": "RUNNING",
        "reason": None,
        "agent": "connected",
        "policy_generation": 2,
        "tainted": False,
        "taint": None,
        "links": [{"peer": B, "verdict": "allow"}],
    }
    document: dict[str, Any] = {"schema": 1, "policy_generation": 2, "tainted_elsewhere": []}
    document |= {key.lower(): value for key, value in changes.items() if key[0].isupper()}
    first = node | {key: value for key, value in changes.items() if not key[0].isupper()}
    return document | {"nodes": [{"name": A, **first}, {"name": B, **node}]}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, set()),
        ({"state": "FATAL", "reason": "carrier_not_in_force", "detail": "x"}, {Code.GUARD_NOT_IN_FORCE}),
        ({"links": [{"peer": "evil@h", "verdict": "deny"}] * 30}, {Code.LINK_NOT_ALLOWED}),
        ({"tainted": True, "taint": {"stage": "condemned", "cause": B}}, {Code.NODE_TAINTED}),
        ({"state": "STOPPED", "tainted": True, "taint": {"stage": "held"}, "reason": "operator"}, set()),
        ({"state": "BACKOFF", "reason": "exited"}, {Code.NODE_DOWN}),
        ({"state": "BACKOFF", "reason": "start_failed", "detail": "the port"}, {Code.NODE_DOWN}),
        ({"state": "STOPPED", "reason": "operator"}, set()),
        ({"agent": "lost"}, {Code.AGENT_LOST}),
        ({"policy_generation": 1}, {Code.POLICY_NOT_ACTIVE}),
        ({"Policy_rolled_back": "overlay"}, {Code.POLICY_ROLLED_BACK}),
        ({"Metrics_problem": "the port is taken"}, {Code.METRICS_NOT_SERVED}),
        ({"Tainted_elsewhere": ["far@10.0.0.9"]}, {Code.NODE_TAINTED}),
        ({"Nodes": "nonsense", "links": None}, set()),
    ],
)
def test_what_is_not_in_force_is_told(clean: Planted, changes: dict[str, Any], codes: set[Code]) -> None:
    clean.status = status(**changes)
    assert told(clean.check()) == codes


def test_without_an_orchestrator_it_is_said_that_nothing_was_compared(clean: Planted) -> None:
    [finding] = [each for each in clean.check() if each.code is Code.ORCHESTRATOR_ABSENT]
    assert finding.severity is Severity.INFO
    assert "no orchestrator answers" in finding.what
