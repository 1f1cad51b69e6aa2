"""From what is known of the nodes to the families that Prometheus reads. Pure; one function a family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from distsec.model.cluster import NodeState
from distsec.observe.counts import BUCKETS, NodeCounts

Nodes = Mapping[str, NodeCounts]
MICROS = 1_000_000


def families(nodes: Nodes, version: str, authority_not_after: int | None = None) -> Iterator[Metric]:
    """All families, in the order in which they are shown; each is there even where it has no series yet."""
    for family in _FAMILIES:
        yield family(nodes)
    yield _authority_expiry(authority_not_after)
    yield _build_info(version)


def _attempts(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_security_connection_attempts",
        "Attempts to link with a node, told by its events, by result and by the listed name or rule that"
        " matched. In a flood distsec_security_refusals_total is the exact one.",
        labels=("node", "result", "peer"),
    )
    for node, counts in nodes.items():
        for (result, peer), value in counts.attempts.items():
            family.add_metric((node, result, peer), value)
    return family


def _refusals(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_security_refusals",
        "Peers that were refused, exactly, by direction seen from the node and by reason.",
        labels=("node", "direction", "reason"),
    )
    for node, counts in nodes.items():
        for (direction, reason), value in counts.refusals.items():
            family.add_metric((node, direction, reason), value)
    return family


def _check_duration(nodes: Nodes) -> Metric:
    family = HistogramMetricFamily(
        "distsec_security_auth_check_duration_seconds",
        "How long a node took to decide about a peer.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        total = 0
        buckets = []
        for bound in BUCKETS:
            total += counts.check_buckets[bound]
            limit = "+Inf" if bound is None else repr(bound / MICROS)
            buckets.append((limit, float(total)))
        family.add_metric((node,), buckets, sum_value=counts.check_micros[""] / MICROS)
    return family


def _checks(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_security_auth_checks",
        "Decisions about peers, exactly, by result and by where they were made.",
        labels=("node", "result", "action"),
    )
    for node, counts in nodes.items():
        for (action, result), value in counts.checks.items():
            family.add_metric((node, result, action), value)
    return family


def _rotations(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_security_cert_rotations",
        "Certificates that a node was given in place of another.",
        labels=("node", "cert_cn"),
    )
    for node, counts in nodes.items():
        family.add_metric((node, node), counts.rotations)
    return family


def _node_state(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_node_state", "1 for the state that a node is in, 0 for the others.", labels=("node", "state")
    )
    for node, counts in nodes.items():
        for state in NodeState:
            family.add_metric((node, str(state)), float(counts.state is state))
    return family


def _starts(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_node_starts",
        "Processes that were started for a node by this orchestrator.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        family.add_metric((node,), counts.starts)
    return family


def _guard_missing(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_carrier_not_in_force",
        "1 from when the guard of a node was found not in force until it is proven again; a violation.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        family.add_metric((node,), float(counts.guard_missing))
    return family


def _tainted(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_node_tainted",
        "1 while a node may run what a compromised peer left behind.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        family.add_metric((node,), float(counts.tainted))
    return family


def _links(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_links",
        "Links that are up; one with verdict deny is a violation.",
        labels=("node", "verdict"),
    )
    for node, counts in nodes.items():
        for verdict, value in counts.links.items():
            family.add_metric((node, verdict), value)
    return family


def _shells(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_shells", "Shells of operators that are attached to a node.", labels=("node",)
    )
    for node, counts in nodes.items():
        family.add_metric((node,), float(counts.shells))
    return family


def _agent_connected(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_agent_connected", "Whether the agent inside a node is connected.", labels=("node",)
    )
    for node, counts in nodes.items():
        family.add_metric((node,), float(counts.agent_connected))
    return family


def _certificate_beginning(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_certificate_not_before_timestamp_seconds",
        "From when the certificate of a node is valid, in Unix time.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        if counts.certificate_not_before is not None:
            family.add_metric((node,), counts.certificate_not_before)
    return family


def _certificate_expiry(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_certificate_expiry_timestamp_seconds",
        "When the certificate of a node expires, in Unix time.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        if counts.certificate_not_after is not None:
            family.add_metric((node,), counts.certificate_not_after)
    return family


def _certificates_refused(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_certificates_refused",
        "Keys and certificates that somebody else has put into a node's directory and that were not taken.",
        labels=("node",),
    )
    for node, counts in nodes.items():
        family.add_metric((node,), counts.certificates_refused)
    return family


def _authority_expiry(not_after: int | None) -> Metric:
    """The label node is empty: it is the whole cluster's."""
    family = GaugeMetricFamily(
        "distsec_ca_expiry_timestamp_seconds",
        "When the certificate of the cluster's CA expires, in Unix time.",
        labels=("node",),
    )
    if not_after is not None:
        family.add_metric(("",), not_after)
    return family


def _policy_generation(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily(
        "distsec_policy_generation",
        "Generation of the policy that is wanted, and of the one that is active in a node.",
        labels=("node", "which"),
    )
    for node, counts in nodes.items():
        for which, generation in counts.policy.items():
            if generation is not None:
                family.add_metric((node, which), generation)
    return family


def _events_dropped(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_events_dropped",
        "Events that a node's ring could not hold until the orchestrator took them.",
        labels=("node", "lane"),
    )
    for node, counts in nodes.items():
        for lane, value in counts.dropped.items():
            family.add_metric((node, lane), value)
    return family


def _agent_refused(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_agent_refused",
        "Connections to a node's agent socket that the orchestrator dropped.",
        labels=("node", "reason"),
    )
    for node, counts in nodes.items():
        for reason, value in counts.agent_refused.items():
            family.add_metric((node, reason), value)
    return family


def _clock_steps(nodes: Nodes) -> Metric:
    family = CounterMetricFamily(
        "distsec_clock_steps",
        "Times that a node found its wall clock set by more than a minute.",
        labels=("node", "direction"),
    )
    for node, counts in nodes.items():
        for direction, value in counts.clock_steps.items():
            family.add_metric((node, direction), value)
    return family


def _build_info(version: str) -> Metric:
    """The label node is empty, which to Prometheus is the same as none: this is about the orchestrator."""
    family = GaugeMetricFamily(
        "distsec_build_info", "Always 1; the version of the orchestrator.", labels=("node", "version")
    )
    family.add_metric(("", version), 1)
    return family


_FAMILIES: tuple[Callable[[Nodes], Metric], ...] = (
    _attempts,
    _refusals,
    _check_duration,
    _checks,
    _rotations,
    _node_state,
    _starts,
    _guard_missing,
    _tainted,
    _links,
    _shells,
    _agent_connected,
    _certificate_beginning,
    _certificate_expiry,
    _certificates_refused,
    _policy_generation,
    _events_dropped,
    _agent_refused,
    _clock_steps,
)
