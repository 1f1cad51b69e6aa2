"""The metrics: families, exact counts over launches, and labels that no stranger chooses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.model.cluster import NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.policy import Direction, Reason
from distsec.observe.exact import MAX_COUNT, LaunchCounter
from distsec.observe.metrics import Metrics

NODE = "poller@127.0.0.1"
LISTED = (NODE, "agent@127.0.0.1", "cli-*@127.0.0.1")

FAMILIES = {
    "distsec_security_connection_attempts_total": {"node", "result", "peer"},
    "distsec_security_refusals_total": {"node", "direction", "reason"},
    "distsec_security_auth_check_duration_seconds": {"node", "le"},
    "distsec_security_auth_checks_total": {"node", "result", "action"},
    "distsec_security_cert_rotations_total": {"node", "cert_cn"},
    "distsec_node_state": {"node", "state"},
    "distsec_node_starts_total": {"node"},
    "distsec_carrier_not_in_force": {"node"},
    "distsec_node_tainted": {"node"},
    "distsec_links": {"node", "verdict"},
    "distsec_shells": {"node"},
    "distsec_agent_connected": {"node"},
    "distsec_certificate_not_before_timestamp_seconds": {"node"},
    "distsec_certificate_expiry_timestamp_seconds": {"node"},
    "distsec_certificates_refused_total": {"node"},
    "distsec_ca_expiry_timestamp_seconds": {"node"},
    "distsec_policy_generation": {"node", "which"},
    "distsec_events_dropped_total": {"node", "lane"},
    "distsec_agent_refused_total": {"node", "reason"},
    "distsec_clock_steps_total": {"node", "direction"},
    "distsec_build_info": {"node", "version"},
}


@dataclass
class Beat:
    """A heartbeat's counts."""

    refusals: Mapping[Any, int] = field(default_factory=dict)
    checks: Mapping[Any, int] = field(default_factory=dict)
    check_seconds: tuple[tuple[int | None, int], ...] = ()
    check_micros_sum: int = 0
    dropped: Mapping[Any, int] = field(default_factory=dict)


def metrics() -> Metrics:
    made = Metrics(listed=LISTED)
    made.set_node_state(NODE, NodeState.RUNNING)
    return made


def refusal(reason: str = "unknown_ca", launch: str | None = "L1", **more: Any) -> SecurityEvent:
    return SecurityEvent(
        EventType.CERTIFICATE_VALIDATION_FAILED,
        Severity.WARNING,
        NODE,
        1.0,
        result="deny",
        reason=reason,
        direction="in",
        launch=launch,
        **more,
    )


def value(made: Metrics, name: str, **labels: str) -> float | None:
    return made.registry.get_sample_value(name, {"node": NODE, **labels})


def refused(made: Metrics, reason: str = "unknown_ca") -> float | None:
    return value(made, "distsec_security_refusals_total", direction="in", reason=reason)


def attempts(made: Metrics, result: str, peer: str) -> float | None:
    return value(made, "distsec_security_connection_attempts_total", result=result, peer=peer)


def full() -> Metrics:
    """With every family holding something."""
    made = metrics()
    made.event(refusal(rule="agent@127.0.0.1"))
    made.heartbeat(NODE, "L1", Beat({("in", "denied"): 2}, {("link_in", "allow"): 1}, ((5, 1), (None, 1)), 9))
    made.set_links(NODE, {"allow": 2})
    made.set_agent(NODE, True)
    made.set_certificate(NODE, 1763764000, 1795300000)
    made.set_authority(2075300000)
    made.set_policy(NODE, 7, 6)
    made.agent_refused(NODE, "proof")
    return made


# ---- the families ----------


def test_the_families_and_their_labels_are_those_of_the_design_and_no_others() -> None:
    seen: dict[str, set[str]] = {}
    for line in full().render().decode().splitlines():
        if match := re.fullmatch(r"(\w+?)(?:_bucket|_sum|_count)?\{(.*)\} \S+", line):
            labels = set(re.findall(r'(\w+)="', match[2]))
            seen[match[1]] = seen.get(match[1], set()) | labels
    assert seen == FAMILIES


def test_promtool_finds_nothing_to_complain_about() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing: install the package prometheus")
        pytest.skip("promtool is not installed")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=full().render(), capture_output=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_state_of_a_node_is_one_and_the_others_zero() -> None:
    made = metrics()
    made.set_node_state(NODE, NodeState.FATAL)
    states = {str(state): value(made, "distsec_node_state", state=str(state)) for state in NodeState}
    assert states == {str(state): float(state is NodeState.FATAL) for state in NodeState}


def test_each_start_of_a_process_is_counted() -> None:
    made = metrics()
    for _ in range(2):
        made.event(SecurityEvent(EventType.NODE_STARTED, Severity.INFO, NODE, 1.0, detail="pid 7"))
    made.event(SecurityEvent(EventType.NODE_STOPPED, Severity.INFO, NODE, 1.0))
    assert value(made, "distsec_node_starts_total") == 2


def test_a_guard_that_is_not_in_force_is_shown_until_it_is_proven_again() -> None:
    made = metrics()
    assert value(made, "distsec_carrier_not_in_force") == 0
    made.set_guard_missing(NODE, True)
    assert value(made, "distsec_carrier_not_in_force") == 1
    made.set_guard_missing(NODE, False)
    assert value(made, "distsec_carrier_not_in_force") == 0


def test_a_node_is_tainted_that_is_named_also_before_it_is_known() -> None:
    made = Metrics()
    made.set_tainted({NODE, "elsewhere@10.0.0.9"})
    made.set_node_state(NODE, NodeState.STOPPED)
    assert value(made, "distsec_node_tainted") == 1
    assert made.registry.get_sample_value("distsec_node_tainted", {"node": "elsewhere@10.0.0.9"}) is None
    made.set_tainted(())
    assert value(made, "distsec_node_tainted") == 0


def test_gauges_follow_what_they_are_set_to() -> None:
    made = full()
    assert value(made, "distsec_links", verdict="allow") == 2
    assert value(made, "distsec_links", verdict="deny") == 0
    made.set_links(NODE, {"deny": 1})
    assert value(made, "distsec_links", verdict="allow") == 0
    assert value(made, "distsec_links", verdict="deny") == 1
    assert value(made, "distsec_agent_connected") == 1
    made.set_agent(NODE, False)
    assert value(made, "distsec_agent_connected") == 0
    assert value(made, "distsec_certificate_not_before_timestamp_seconds") == 1763764000
    assert value(made, "distsec_certificate_expiry_timestamp_seconds") == 1795300000
    assert value(made, "distsec_policy_generation", which="wanted") == 7
    assert value(made, "distsec_policy_generation", which="active") == 6


def test_the_histogram_is_cumulative_and_in_seconds() -> None:
    made = metrics()
    made.heartbeat(
        NODE, "L1", Beat(check_seconds=((5, 3), (10, 2), (5000, 1), (None, 4)), check_micros_sum=12_345)
    )
    name = "distsec_security_auth_check_duration_seconds"
    assert value(made, f"{name}_bucket", le="5e-06") == 3
    assert value(made, f"{name}_bucket", le="1e-05") == 5
    assert value(made, f"{name}_bucket", le="0.001") == 5
    assert value(made, f"{name}_bucket", le="0.005") == 6
    assert value(made, f"{name}_bucket", le="+Inf") == 10
    assert value(made, f"{name}_count") == 10
    assert value(made, f"{name}_sum") == pytest.approx(0.012345)


def test_bounds_that_a_node_invents_make_no_series() -> None:
    made = metrics()
    before = series(made)
    made.heartbeat(NODE, "L1", Beat(check_seconds=tuple((bound, 1) for bound in range(1000))))
    assert series(made) == before
    assert value(made, "distsec_security_auth_check_duration_seconds_count") == 1000


def test_a_rotation_is_counted_under_the_node_itself() -> None:
    made = metrics()
    made.event(SecurityEvent(EventType.CERTIFICATE_ROTATED, Severity.NOTICE, NODE, 1.0, peer="x@stranger"))
    made.event(SecurityEvent(EventType.CERTIFICATE_RENEWED, Severity.INFO, NODE, 2.0, reason="due"))
    assert value(made, "distsec_security_cert_rotations_total", cert_cn=NODE) == 2


def test_what_somebody_else_brought_and_was_not_taken_is_counted() -> None:
    made = metrics()
    made.event(SecurityEvent(EventType.CERTIFICATE_REFUSED, Severity.WARNING, NODE, 1.0, reason="expired"))
    assert value(made, "distsec_certificates_refused_total") == 1
    assert value(made, "distsec_security_cert_rotations_total", cert_cn=NODE) == 0


def test_when_the_ca_ends_is_told_of_no_node() -> None:
    made = metrics()
    assert "distsec_ca_expiry_timestamp_seconds{" not in made.render().decode()
    made.set_authority(2075300000)
    assert 'distsec_ca_expiry_timestamp_seconds{node=""} 2.0753e+09' in made.render().decode()


# ---- exact counts ----------


def test_events_and_heartbeats_tell_of_the_same_refusals_and_count_once() -> None:
    made = metrics()
    for _ in range(3):
        made.event(refusal())
    assert refused(made) == 3
    made.heartbeat(NODE, "L1", Beat({(Direction.IN, Reason.UNKNOWN_CA): 3}))
    assert refused(made) == 3


def test_refusals_whose_events_were_dropped_are_counted_all_the_same() -> None:
    made = metrics()
    made.event(refusal())
    made.heartbeat(NODE, "L1", Beat({("in", "unknown_ca"): 100_000}, dropped={"refusals": 99_999}))
    made.event(refusal())
    assert refused(made) == 100_000
    assert value(made, "distsec_events_dropped_total", lane="refusals") == 99_999


def test_a_restarted_node_counts_on_from_where_it_was() -> None:
    made = metrics()
    made.heartbeat(NODE, "L1", Beat({("in", "unknown_ca"): 5}, {("link_in", "deny"): 2}, ((5, 7),), 100))
    made.event(refusal(launch="L2"))
    assert refused(made) == 6
    made.heartbeat(NODE, "L2", Beat({("in", "unknown_ca"): 1}, {("link_in", "deny"): 1}, ((5, 1),), 10))
    assert refused(made) == 6
    assert value(made, "distsec_security_auth_checks_total", action="link_in", result="deny") == 3
    assert value(made, "distsec_security_auth_check_duration_seconds_count") == 8
    assert value(made, "distsec_security_auth_check_duration_seconds_sum") == pytest.approx(110e-6)


def test_a_violation_is_counted_as_an_unlisted_link() -> None:
    made = metrics()
    made.event(
        SecurityEvent(
            EventType.UNAUTHORIZED_ACCESS, Severity.CRITICAL, NODE, 1.0, "x@h", "deny", "not_allowed", "in"
        )
    )
    assert refused(made, "unlisted_link") == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["count", "tell", "launch"]), st.integers(min_value=-5, max_value=2**70)),
        max_size=40,
    )
)
def test_whatever_a_node_claims_a_counter_never_decreases(steps: list[tuple[str, int]]) -> None:
    counter: LaunchCounter[str] = LaunchCounter(["x"])
    last, launches = 0, 1
    for step, number in steps:
        if step == "count":
            counter.count("x")
        elif step == "tell":
            counter.tell("x", number)
        else:
            counter.begin_launch()
            launches += 1
        assert counter["x"] >= last
        last = counter["x"]
    assert last <= launches * MAX_COUNT
    assert dict(counter.items()) == {"x": last}


# ---- labels ----------


def series(made: Metrics) -> int:
    return sum(not line.startswith(b"#") for line in made.render().splitlines())


def test_ten_thousand_strangers_make_no_series() -> None:
    made = full()
    made.event(refusal(peer="x@h"))
    made.event(SecurityEvent(EventType.LINK_UP, Severity.INFO, NODE, 1.0, "stranger@h", "allow", launch="L1"))
    before = series(made)
    for number in range(10_000):
        name = f"x{number}@host{number}"
        made.event(refusal(peer=name, rule=name, identity=f"spiffe://x/{number}"))
        made.event(SecurityEvent(EventType.LINK_UP, Severity.INFO, NODE, 1.0, name, "allow", launch="L1"))
        made.event(refusal(f"reason{number}"))
        made.heartbeat(
            NODE, "L1", Beat({("in", name): 1, (name, "denied"): 1}, {(name, "allow"): 1}, dropped={name: 1})
        )
        made.agent_refused(NODE, f"reason{number % 40}")
    assert series(made) <= before + 32, "agent_refused holds 32 reasons, then `other`"
    assert b"host1" not in made.render()
    assert attempts(made, "deny", "unlisted") == 20_001


def test_a_refusal_is_labelled_by_the_rule_that_matched_and_never_by_the_claimed_name() -> None:
    made = metrics()
    made.event(refusal(peer="agent@127.0.0.1"))
    made.event(refusal(peer="cli-1@127.0.0.1", rule="cli-*@127.0.0.1"))
    assert attempts(made, "deny", "unlisted") == 1
    assert attempts(made, "deny", "cli-*@127.0.0.1") == 1
    assert attempts(made, "deny", "agent@127.0.0.1") is None


@pytest.mark.parametrize(
    ("peer", "label"),
    [
        ("agent@127.0.0.1", "agent@127.0.0.1"),
        ("cli-77@127.0.0.1", "cli-*@127.0.0.1"),
        ("x@127.0.0.1", "unlisted"),
    ],
)
def test_a_link_that_is_up_is_labelled_by_what_lists_it(peer: str, label: str) -> None:
    made = metrics()
    made.event(SecurityEvent(EventType.LINK_UP, Severity.INFO, NODE, 1.0, peer, "allow", launch="L1"))
    assert attempts(made, "allow", label) == 1


def test_a_removed_node_takes_all_its_series_with_it_and_late_events_bring_none_back() -> None:
    made = full()
    made.forget(NODE)
    made.event(refusal())
    made.heartbeat(NODE, "L1", Beat({("in", "denied"): 3}))
    made.set_agent(NODE, True)
    assert NODE.encode() not in made.render()
    made.set_node_state(NODE, NodeState.STARTING)
    assert refused(made) == 0


def test_events_of_the_orchestrator_itself_are_no_node() -> None:
    made = Metrics()
    made.event(SecurityEvent(EventType.CONFIGURATION_RELOADED, Severity.INFO, "", 1.0))
    assert series(made) == 1, "build_info"


def test_two_instances_share_nothing() -> None:
    first, second = full(), Metrics()
    assert series(first) > series(second) == 1
