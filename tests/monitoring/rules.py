"""The shipped alert rules, evaluated by promtool over series that a test gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config" / "prometheus" / "distsec.rules.yml"
NODE = 'job="distsec",cluster="shop",instance="h:9911",node="a@127.0.0.1"'

DAY = 1440
"""Minutes."""


def program(name: str, package: str) -> str:
    """The path of an installed program; CI has all of them."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing: install the package {package}")
        pytest.skip(f"{name} is not installed ({package})")
    return found


def alert_names() -> list[str]:
    """Every alert of the rules file."""
    return re.findall(r"^\s+- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """`series`: name with labels → promtool's notation of its values, one a minute. `at`: minutes.
    `fires`: whether `alert` is then firing.
    """

    alert: str
    what: str
    series: Mapping[str, str]
    at: float
    fires: bool


def series(family: str, values: str, labels: str = "", node: str = NODE) -> dict[str, str]:
    """One series of the node."""
    return {f"{family}{{{','.join(filter(None, (node, labels)))}}}": values}


def evaluate(case: Case, directory: Path) -> subprocess.CompletedProcess[str]:
    """What `promtool test rules` makes of it: exit code 0 if the alert is firing exactly where `fires`."""
    firing = {
        "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
        "eval_time": f"{int(case.at * 60)}s",
        "exp_samples": [{"value": 1}] if case.fires else [],
    }
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [firing],
            }
        ],
    }
    file = directory / "case.yml"
    file.write_text(json.dumps(document))  # JSON is YAML
    return subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
