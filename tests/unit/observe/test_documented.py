"""docs/metrics.md lists what /metrics serves, with its type and its labels: no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from distsec.model.cluster import NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.observe.metrics import Metrics

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(distsec_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)


def served() -> dict[str, tuple[str, frozenset[str]]]:
    metrics = Metrics("1.0", listed=["b@127.0.0.1"])
    metrics.set_node_state("a@127.0.0.1", NodeState.RUNNING)
    metrics.set_links("a@127.0.0.1", {"allow": 1, "deny": 0})
    metrics.set_agent("a@127.0.0.1", True)
    metrics.set_certificate("a@127.0.0.1", 1, 2)
    metrics.set_policy("a@127.0.0.1", 1, 1)
    metrics.agent_refused("a@127.0.0.1", "term")
    metrics.event(
        SecurityEvent(EventType.NODE_CONNECTION_ATTEMPT, Severity.INFO, "a@127.0.0.1", 1.0, result="deny")
    )
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = (family.type, frozenset(labels))
    return found


def test_the_table_is_what_is_served() -> None:
    documented = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", labels))))
        for name, kind, labels in ROW.findall(DOCUMENT.read_text())
    }
    families = served()
    assert documented.keys() == families.keys()
    for name, (kind, labels) in families.items():
        assert documented[name][0] == kind, name
        if labels:  # a family without a series yet shows no labels
            assert documented[name][1] == labels, name
