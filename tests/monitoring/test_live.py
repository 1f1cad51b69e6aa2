"""A real Prometheus scrapes a real cluster: each query of the dashboard, and an alert from end to end."""

from __future__ import annotations

import json
import re
import urllib.error
from typing import Any

import pytest

from tests.monitoring.rules import ROOT, alert_names
from tests.monitoring.servers import Prometheus, Receiver
from tests.system.cluster import HOST, Cluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.otp]

DASHBOARD = ROOT / "config" / "grafana" / "distsec.json"
VARIABLES = {
    "$cluster": "shop",
    "$instance": ".*",
    "$node": ".*",
    "$__rate_interval": "1m",
    "$__interval": "15s",
}

QUIET = {
    "Strangers at agent sockets": "only the node itself has spoken to its agent socket",
}
"""Panels that rightly show nothing of this cluster, and why."""


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(panel, expression with the variables replaced) of every target."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


@pytest.fixture(scope="module")
def seen(cluster: Cluster, prometheus: Prometheus) -> Cluster:
    """The cluster, after somebody with a certificate for no listed name was refused and that was scraped."""
    wait_until(lambda: prometheus.query("distsec_node_starts_total == 1"), "the first scrape")
    stranger = cluster.intruder("evil", hidden=True, leaf=cluster.leaf("evil"))
    assert not stranger.connect(cluster.node("a"))
    cluster.wait_event("UnauthorizedAccess", reason="not_allowed")
    wait_until(
        lambda: prometheus.query('increase(distsec_security_refusals_total{reason="not_allowed"}[1m]) > 0'),
        "the refusal to be scraped",
    )
    return cluster


def test_every_query_of_the_dashboard_returns_data_of_a_real_cluster(
    seen: Cluster, prometheus: Prometheus
) -> None:
    for title, expression in queries():
        assert "$" not in expression, f"{title}: a variable that Grafana does not know: {expression}"

    def empty() -> set[str]:
        found, wrong = set(), []
        for title, expression in queries():
            try:
                if not prometheus.query(expression):
                    found.add(title)
            except urllib.error.HTTPError as error:
                wrong.append((title, error.read().decode()))
        assert wrong == []
        return found

    wait_until(lambda: empty() == set(QUIET), "data in all panels but those that rightly have none")


def test_the_annotation_of_the_dashboard_is_a_query_too(seen: Cluster, prometheus: Prometheus) -> None:
    [annotation] = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    wait_until(lambda: prometheus.query(annotation["expr"]), "an alert to be shown")


def test_the_variables_of_the_dashboard_find_cluster_and_nodes(seen: Cluster, prometheus: Prometheus) -> None:
    variables = {each["name"]: each for each in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert set(variables) == {"datasource", "cluster", "instance", "node"}
    expected = {
        "cluster": {"shop"},
        "instance": {f"{HOST}:{seen.metrics_port}"},
        "node": {seen.node(name) for name in seen.names},
    }

    def found() -> dict[str, set[str]]:
        values = {}
        for name in expected:
            matched = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"])
            assert matched is not None and matched[2] == name
            series = matched[1].replace("$cluster", "shop").replace("$instance", ".*")
            values[name] = {each["metric"][name] for each in prometheus.query(series)}
        return values

    # After a scrape that took too long nothing is there until the next one.
    wait_until(lambda: found() == expected, f"{expected}", poll_seconds=0.2)


def test_a_stranger_with_a_certificate_raises_the_alarm_up_to_the_receiver(
    seen: Cluster, prometheus: Prometheus, receiver: Receiver
) -> None:
    alarm = ("DistsecUnlistedNodeSeen", seen.node("a"))
    wait_until(lambda: alarm in prometheus.firing(), "the alert to fire", poll_seconds=0.2)
    sent = ("/ticket", *alarm, "firing")
    wait_until(lambda: sent in receiver.received, "Alertmanager to send it", poll_seconds=0.2)
    assert prometheus.firing() == {alarm}, "a healthy cluster raises no other alarm"
    assert {path for path, name, _, _ in receiver.received if name == alarm[0]} == {"/ticket"}


def test_every_alert_is_one_that_prometheus_has_loaded(prometheus: Prometheus) -> None:
    groups = prometheus.get("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(alert_names())
    wait_until(
        lambda: (
            {
                rule["health"]
                for group in prometheus.get("/api/v1/rules")["data"]["groups"]
                for rule in group["rules"]
            }
            == {"ok"}
        ),
        "every rule to be evaluated without an error",
        poll_seconds=0.2,
    )
