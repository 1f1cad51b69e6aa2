"""The dashboard, the route of alerts and their documentation fit each other."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from typing import Any

import pytest

from tests.monitoring.rules import ROOT, RULES, alert_names, program

DASHBOARD = ROOT / "config" / "grafana" / "distsec.json"
ALERTMANAGER = ROOT / "config" / "prometheus" / "alertmanager.yml"
PAGE = ROOT / "docs" / "monitoring.md"


def severities() -> dict[str, str]:
    """Alert → severity."""
    found = re.findall(r"- alert: (\w+)$.*?severity: (\w+)$", RULES.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def rectangles() -> list[tuple[str, int, int, int, int]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [
        (panel["title"], at["x"], at["y"], at["x"] + at["w"], at["y"] + at["h"])
        for panel in panels
        for at in [panel["gridPos"]]
    ]


def test_no_panel_lies_on_another_or_beyond_the_edge() -> None:
    for (one, x, y, right, bottom), (other, x2, y2, right2, bottom2) in combinations(rectangles(), 2):
        assert right <= x2 or right2 <= x or bottom <= y2 or bottom2 <= y, f"{one} and {other}"
    assert all(right <= 24 for _, _, _, right, _ in rectangles())


def test_each_panel_has_a_number_of_its_own_and_a_unit() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    without = [p["title"] for p in panels if p["type"] != "row" and not p["fieldConfig"]["defaults"]["unit"]]
    assert without == []


def test_every_query_is_limited_by_the_variables() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [t["expr"] for p in panels for t in p.get("targets", ())]
    selectors = [s for e in expressions for s in re.findall(r"distsec_\w+(?:\{([^}]*)\})?", e)]
    assert len(selectors) > 20
    assert [s for s in selectors if 'cluster=~"$cluster",instance=~"$instance"' not in s] == []


@pytest.mark.parametrize(("alert", "severity"), severities().items())
def test_each_alert_goes_where_its_severity_says(alert: str, severity: str) -> None:
    expected = {"critical": "pager", "warning": "tickets", "info": "nobody"}[severity]
    labels = [f"alertname={alert}", f"severity={severity}", "cluster=shop", "node=a@127.0.0.1"]
    done = subprocess.run(
        [
            program("amtool", "prometheus-alertmanager"),
            "config",
            "routes",
            "test",
            f"--config.file={ALERTMANAGER}",
            f"--verify.receivers={expected}",
            *labels,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_alertmanager_takes_the_configuration() -> None:
    done = subprocess.run(
        [program("amtool", "prometheus-alertmanager"), "check-config", str(ALERTMANAGER)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_section_in_the_documentation_and_links_to_it() -> None:
    assert set(severities()) == set(alert_names())
    sections = re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alert_names())
    links = re.findall(r"runbook_url: docs/monitoring\.md#(\w+)$", RULES.read_text(), re.MULTILINE)
    assert links == [name.lower() for name in alert_names()]


def test_alerts_and_dashboard_name_only_metrics_that_are_documented() -> None:
    documented = set(re.findall(r"^\| `(distsec_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?<![\w:])distsec_[a-z_]+", RULES.read_text() + DASHBOARD.read_text()))
    assert {re.sub(r"_bucket$", "", name) for name in used} <= documented
